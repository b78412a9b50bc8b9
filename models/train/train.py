"""Train dsv4-nano on CPU: single-threaded processes with parameters, gradients and optimizer state in shared memory.

Every process draws its own documents and computes one microbatch of 2048 tokens; gradients are averaged and each
process updates the parameters it owns (Muon for matrices, Adam for the rest).  The schedule counts tokens, not time, so
processes may be stopped and continued (kill -STOP, -CONT), and a killed run goes on from OUT/ck.pt with --init.

Loss: cross entropy on answers and raw text, and on a few prompt tokens; the indexer learns from a KL term against the
attention mass of sampled queries.  What file a listed function belongs to is taught in three steps: the file can be read
where the function is listed, attention finds that line where the function is named, the file can be read there.  Cache
quantizers are always on.  Attention sees every visible entry first, the real top-k and candidate blocks after --sparse;
weights are rounded to their shipped formats after --qat (straight-through).
With --indexer nothing else learns: its last part, when what it has to find no longer moves.

usage: train.py OUT TOKENS [--init ck.pt] [--mix base|chat|far] [--decay f] [--sparse f] [--qat f] [--indexer]   (f: fraction of TOKENS)
writes OUT/ck.pt (resumable), OUT/log.jsonl (loss, and exact answers by kind of document, on text never seen before)"""
import argparse
import json
import math
import os
import random
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer

from data import LENGTHS, MICRO, MIX, PROBE, Data
from fused import CrossEntropy
from model import build

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT_SHARE = 0.06    # share of prompt tokens that are targets
PROBE_SHARE, POINT_SHARE = 0.2, 0.5  # weights of what teaches that, and of what teaches to look there
SAVE_SECONDS = 240
LOG_STEPS = 25


def newton_schulz(G, steps=5):
    """the nearest (semi-)orthogonal matrix, roughly: Muon's step direction"""
    a, b, c = 3.4445, -4.7750, 2.0315
    t = G.shape[-2] > G.shape[-1]
    X = G.transpose(-2, -1) if t else G
    X = X / (X.flatten(-2).norm(dim=-1)[..., None, None] + 1e-7)
    for _ in range(steps):
        Y = X @ X.transpose(-2, -1)
        X = a * X + (b * Y + c * (Y @ Y)) @ X
    return X.transpose(-2, -1) if t else X


def groups(m):
    """name -> (kind, learning rate, weight decay, shape as Muon sees it)"""
    out, ff = {}, m.c["moe_intermediate_size"]
    for n, p in m.named_parameters():
        if n.endswith("ffn.w13"):
            out[n] = ("muon", 0.015, 0.05, (-1, ff, p.shape[2]))
        elif n.endswith("ffn.w2"):
            out[n] = ("muon", 0.015, 0.05, None)
        elif "engram.embed" in n:
            out[n] = ("adam", 6e-3, 0.0, None)
        elif "indexer" in n or "wgate" in n or n.endswith("gate.weight") or n.startswith("probe"):
            out[n] = ("adam", 2e-3, 0.0, None)
        elif n in ("embed.weight", "head.weight"):
            out[n] = ("adam", 3e-3, 0.01, None)
        elif ".hc_" in n:
            out[n] = ("adam", 2e-3 if n.endswith("_fn") else 4e-3, 0.0, None)
        elif p.dim() == 2 and "engram.q_" not in n and "engram.k_" not in n:
            out[n] = ("muon", 0.015, 0.05, None)
        else:
            out[n] = ("adam", 3e-3, 0.0, None)
    return out


class Shared:
    """everything the processes share: parameters, gradients, optimizer moments, router counts"""

    def __init__(self, m, ranks, ck):
        n = sum(p.numel() for p in m.parameters())
        flat = torch.empty(n).share_memory_()
        self.off, o = {}, 0
        for k, p in m.named_parameters():
            v = flat[o: o + p.numel()]
            v.copy_(p.data.view(-1))
            p.data = v.view(p.shape)
            self.off[k] = slice(o, o + p.numel())
            o += p.numel()
        for l in m.layers:
            l.ffn.gate.bias = l.ffn.gate.bias.share_memory_()
        self.grad = torch.zeros(ranks, n).share_memory_()
        self.m1, self.m2 = torch.zeros(n).share_memory_(), torch.zeros(n).share_memory_()
        self.counts = torch.zeros(ranks, m.c["num_hidden_layers"], m.c["n_routed_experts"], dtype=torch.long).share_memory_()
        self.steps = 0
        if "m1" in ck:
            self.m1.copy_(ck["m1"])
            self.steps = ck["opt_steps"]
            for k, v in ck["m2"].items():
                self.m2[self.off[k]] = v.float().view(-1)

    def save(self, path, m, gr, **kw):
        sd = m.state_dict()
        kw["probe"] = [sd.pop(f"probe.{i}.weight") for i in range(2)]
        m2 = {k: self.m2[s].bfloat16() for k, s in self.off.items() if gr[k][0] == "adam"}
        torch.save(dict(model=sd, cfg=m.c, m1=self.m1.bfloat16(), m2=m2, **kw), path + ".tmp")
        os.replace(path + ".tmp", path)


def loss_of(m, hs, data, L):
    """one microbatch: loss, losses of the indexer and of what files are taught with, loss on answers, answers right by kind"""
    d = data.batch(L)
    B = d.ids.shape[0]
    x, wt = torch.from_numpy(d.ids), torch.from_numpy(d.want)
    S = m.queries // B  # queries the indexer learns from, half of them on answers
    q = torch.cat((torch.multinomial((wt == 2).float() + 1e-3, S // 2, replacement=True), torch.randint(0, L, (B, S - S // 2))), 1)
    rows = torch.arange(B).view(B, 1).expand(B, S)
    m.prepare()
    m.points = tuple(map(torch.tensor, zip(*((b, t, to) for b, t, _, to in d.named)))) if d.told else None
    m.tellers = tuple(map(torch.tensor, zip(*d.told)))
    h = m(x, torch.from_numpy(d.pos), torch.from_numpy(d.seg), hs(d.ids, d.pos), samp=(rows.reshape(-1), q.reshape(-1)))
    f = wt.flatten()
    sel = torch.nonzero((f == 2) | ((f == 1) & (torch.rand(f.shape[0]) < PROMPT_SHARE))).squeeze(1)
    tgt = x.roll(-1, 1).flatten()[sel]
    losses, best = CrossEntropy.apply(h[sel], m.head.weight, tgt)
    right = torch.zeros(B * L, dtype=torch.bool)
    right[sel] = best == tgt
    right = right.view(B, L)
    score, taught = {}, torch.zeros(())
    for what, at, x, probe in (("listed", d.listed, m.last_source, m.probe[0]), ("named", d.named, m.last_input, m.probe[1])):
        if at:
            names = torch.tensor([f[2] for f in at])
            read = probe(x[torch.tensor([f[0] * L + f[1] for f in at])]).view(len(at), PROBE, -1) @ m.embed.weight.detach().T
            taught = taught + F.cross_entropy(read.flatten(0, 1), names.flatten()) * PROBE_SHARE
            ok = read.argmax(-1) == names
            score[what] = [len(at), int(ok.all(1).sum()), ok.numel(), int(ok.sum())]
    if d.told:
        taught = taught + m.point_loss * POINT_SHARE
        score["pointed"] = [1, math.exp(-0.5 * m.point_loss.item()), 1, 0]
    for k, b, lo, hi in d.spans:
        s = score.setdefault(k, [0, 0, 0, 0])  # answers, exact, tokens, right tokens
        ok = right[b, lo:hi]
        s[0] += 1
        s[1] += bool(ok.all())
        s[2] += hi - lo
        s[3] += int(ok.sum())
    return losses.mean(), m.index_loss(), taught, losses.detach()[f[sel] == 2].mean().item(), score


def update(m, sh, mine, gr, step, lr):
    """one optimizer step on the parameters named in mine"""
    ps, b1, b2 = dict(m.named_parameters()), 0.9, 0.97
    with torch.no_grad():
        for n in mine:
            p, (kind, base, wd, shape), s = ps[n], gr[n], sh.off[n]
            d = sh.grad[:, s].mean(0).view(p.shape)
            m1, m2 = sh.m1[s].view(p.shape), sh.m2[s].view(p.shape)
            if kind == "muon":
                m1.mul_(0.95).add_(d)
                u = d.add(m1, alpha=0.95)
                u = newton_schulz(u if shape is None else u.view(shape))
                u = u * max(1.0, u.shape[-2] / u.shape[-1]) ** 0.5
                p.mul_(1 - lr * base * wd).add_(u.reshape(p.shape), alpha=-lr * base)
            else:
                m1.mul_(b1).add_(d, alpha=1 - b1)
                m2.mul_(b2).addcmul_(d, d, value=1 - b2)
                if wd:
                    p.mul_(1 - lr * base * wd)
                p.addcdiv_(m1, (m2 / (1 - b2 ** step)).sqrt_().add_(1e-9), value=-lr * base / (1 - b1 ** step))


def balance(m, counts, rate):
    """router bias: experts below the mean load are preferred a little more (no auxiliary loss)"""
    c = counts.sum(0).float()
    for l in m.layers:
        l.ffn.gate.bias += rate * torch.sign(c[l.i].mean() - c[l.i])


def worker(rank, args, m, hs, sh, bar, before):
    torch.set_num_threads(1)
    torch.manual_seed(args.seed * 100 + rank)
    data = Data(Tokenizer.from_file(args.tok), args.seed * 1000 + rank, args.mix)
    r = random.Random(args.seed * 77)  # the same row lengths on every rank
    gr, load, mine = groups(m), [0] * args.ranks, []
    m.queries = 512 if args.indexer else 128
    for n, p in m.named_parameters():
        p.requires_grad_(not args.indexer or "indexer" in n)
    for n, p in sorted(((n, p) for n, p in m.named_parameters() if p.requires_grad), key=lambda x: -x[1].numel()):
        k = load.index(min(load))
        load[k] += p.numel() * (4 if gr[n][0] == "muon" else 1)
        if k == rank:
            mine.append(n)
    m.counts = torch.zeros_like(sh.counts[0])
    L_of, L_w = zip(*LENGTHS[args.mix].items())
    done, step, last_save, loss, skill = 0, 0, time.time(), {}, {}
    t0 = time.time()
    log = open(os.path.join(args.out, "log.jsonl"), "a") if rank == 0 else None
    while done < args.tokens:
        f = done / args.tokens
        L = r.choices(L_of, L_w)[0]
        m.sparse, m.qat = f >= args.sparse, f >= args.qat
        m.zero_grad(set_to_none=True)
        ce, il, taught, answers, score = loss_of(m, hs, data, L)
        (il if args.indexer else ce + il + taught).backward()
        ok = math.isfinite(ce.item())
        for n, p in m.named_parameters():
            v = sh.grad[rank, sh.off[n]]
            v.copy_(p.grad.view(-1)) if ok and p.grad is not None else v.zero_()
        sh.counts[rank] = m.counts
        m.counts.zero_()
        bar.wait()
        step += 1
        lr = args.lr * min(1.0, step / args.warmup) * (1.0 if f < args.decay else max(0.02, 1 - 0.98 * (f - args.decay) / (1 - args.decay)))
        update(m, sh, mine, gr, sh.steps + step, lr)
        if rank == 0 and not args.indexer:
            balance(m, sh.counts, 0.003 if f < args.decay else 0.001)
        done += args.ranks * MICRO
        for k, v in ((L, (1, answers, il.item())),):
            a = loss.setdefault(k, [0, 0.0, 0.0])
            loss[k] = [x + y for x, y in zip(a, v)]
        for k, v in score.items():
            skill[k] = [x + y for x, y in zip(skill.get(k, [0] * 4), v)]
        if rank == 0 and step % LOG_STEPS == 0:
            c = sh.counts.sum(0).float()
            row = dict(tokens=before + done, seconds=round(time.time() - t0, 1), cpu=round(time.process_time(), 1), lr=round(lr, 4), sparse=m.sparse, qat=m.qat,
                       loss={k: round(v[1] / v[0], 4) for k, v in sorted(loss.items())}, index={k: round(v[2] / v[0], 4) for k, v in sorted(loss.items())},
                       skill={k: [v[0], round(v[1] / v[0], 4), round(v[3] / v[2], 4)] for k, v in sorted(skill.items())}, load=round((c.amax(1) / c.mean(1)).max().item(), 2))
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(f"{row['tokens']/1e6:.2f}M {done/row['seconds']:.0f}/s lr {lr:.2f}", row["loss"], {k: v[1] for k, v in row["skill"].items()}, flush=True)
            loss, skill = {}, {}
        if rank == 0 and (time.time() - last_save > SAVE_SECONDS or done >= args.tokens):
            last_save = time.time()
            sh.save(os.path.join(args.out, "ck.pt"), m, gr, opt_steps=sh.steps + step, tokens=before + done)
        bar.wait()


def main():
    A = argparse.ArgumentParser()
    A.add_argument("out")
    A.add_argument("tokens", type=float, help="tokens of this run")
    A.add_argument("--init", help="checkpoint to continue from")
    A.add_argument("--mix", default="base", choices=list(MIX))
    A.add_argument("--decay", type=float, default=2.0, help="where the learning rate starts to fall (fraction of the run; above 1: never)")
    A.add_argument("--sparse", type=float, default=2.0)
    A.add_argument("--qat", type=float, default=2.0)
    A.add_argument("--indexer", action="store_true", help="train the indexer alone, on what the rest attends")
    A.add_argument("--lr", type=float, default=1.0)
    A.add_argument("--warmup", type=int, default=60, help="steps")
    A.add_argument("--seed", type=int, default=1)
    A.add_argument("--ranks", type=int, default=2)
    A.add_argument("--tok", default=os.path.join(HERE, "..", "nano", "tokenizer.json"))
    args = A.parse_args()
    torch.set_num_threads(1)
    os.makedirs(args.out, exist_ok=True)
    torch.manual_seed(args.seed)
    m, hs, _ = build(Tokenizer.from_file(args.tok))
    ck = torch.load(args.init) if args.init else {}  # without it: a fresh model
    if ck:
        m.load_state_dict(ck["model"])
    m.probe = torch.nn.ModuleList(torch.nn.Linear(m.c["hidden_size"], PROBE * m.c["hidden_size"], bias=False) for _ in range(2))
    for p, w in zip(m.probe, ck.get("probe", [])):
        p.weight.data.copy_(w)
    sh = Shared(m, args.ranks, ck)
    ctx = mp.get_context("fork")
    bar = ctx.Barrier(args.ranks)
    ws = [ctx.Process(target=worker, args=(k, args, m, hs, sh, bar, ck.get("tokens", 0))) for k in range(args.ranks)]
    for w in ws:
        w.start()
    for w in ws:
        w.join()


if __name__ == "__main__":
    main()
