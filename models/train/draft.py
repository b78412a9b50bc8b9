"""The drafting head (DSpark): two window-only blocks that guess the next four tokens from features of the trunk, trained with the trunk frozen.

After real position p, whose successor is known, a block of 1 + 3 noise tokens runs at p+1.. against the trunk's features of the last
`window` positions; row k guesses the token at p+2+k.  A Markov head adds what the token before tells; a confidence head says how
likely a guess is right.  Losses, on answers only: cross entropy of each row given the true tokens before it, and binary cross
entropy of the confidence.

usage: draft.py train OUT TOKENS TRUNK.pt [--init OUT/draft.pt]    TOKENS: trunk tokens read
       draft.py score MODEL_DIR SET_DIR                            mean accepted length on answers the trunk gives itself
       draft.py check MODEL_DIR golden/generate.py                 drafts equal to the reference's"""
import argparse
import json
import os
import random
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from data import MICRO, Data
from fused import Collapse, CrossEntropy, Expand
from model import FlashSink, Layer, Lin, Mod, Nano, Vec, build, fq8, inv_freq, rms, rope, ste_fn
from train import newton_schulz

HERE = os.path.dirname(os.path.abspath(__file__))
SPARK = dict(num_nextn_predict_layers=2, dspark_block_size=4, dspark_noise_token_id=None, dspark_target_layer_ids=[5, 6, 7], dspark_markov_rank=32,
             dspark_n_routed_experts=4, dspark_num_experts_per_tok=2)
ANCHORS = 256  # drafted blocks a microbatch


class Draft(Nano):
    """blocks are ordinary layers of ratio 0; hc, moe and prepare come from Nano"""

    def __init__(self, cfg, noise):
        torch.nn.Module.__init__(self)
        self.spark = dict(SPARK, dspark_noise_token_id=noise)
        n, d, rank = self.spark["num_nextn_predict_layers"], cfg["hidden_size"], self.spark["dspark_markov_rank"]
        self.c = dict(cfg, num_hidden_layers=n, compress_ratios=[0] * n, kv_source_layer_ids=[], index_source_layer_ids=[], engram_layer_ids=[],
                      n_routed_experts=self.spark["dspark_n_routed_experts"], num_experts_per_tok=self.spark["dspark_num_experts_per_tok"])
        self.layers = torch.nn.ModuleList([Layer(self.c, i) for i in range(n)])
        first, last = self.layers[0], self.layers[-1]
        first.main_proj, first.main_norm = Lin(d, d * len(self.spark["dspark_target_layer_ids"])), Vec(d)
        last.norm, last.markov_head, last.confidence_head = Vec(d), Mod(), Mod()
        last.markov_head.embed, last.markov_head.head, last.confidence_head.proj = Mod(), Mod(), Mod()
        last.markov_head.embed.weight = torch.nn.Parameter(torch.randn(cfg["vocab_size"], rank) * 0.3)
        last.markov_head.head.weight = torch.nn.Parameter(torch.zeros(cfg["vocab_size"], rank))
        last.confidence_head.proj.weight = torch.nn.Parameter(torch.zeros(1, d + rank))
        self.f0, self.qat, self.cacheq, self.counts = inv_freq(cfg, False), False, True, None

    def rope_at(self, pos):
        a = pos.float().unsqueeze(-1) * self.f0
        return a.cos(), a.sin()

    def forward(self, main, pos, seg, rows, at, first, embed):
        """main [B, L, 3d] trunk features, pos, seg [B, L]; blocks after positions at [M] of rows [M], whose successor is first [M]
        -> x [M, block, d] before the norm (what the heads read)"""
        c, (B, L), M, K = self.c, pos.shape, len(at), self.spark["dspark_block_size"]
        H, hd, W, eps, n = c["num_attention_heads"], c["head_dim"], c["sliding_window"], c["rms_norm_eps"], c["hc_mult"]
        l0 = self.layers[0]
        mx = rms(l0.main_proj(main.view(B * L, -1)), l0.main_norm.weight, eps)
        ring = at.unsqueeze(1) - torch.arange(W - 1, -1, -1)                     # [M, W] positions in the row
        seen = (ring >= 0) & (seg[rows.unsqueeze(1), ring.clamp_min(0)] == seg[rows, at].unsqueeze(1))
        where = (rows.unsqueeze(1) * L + ring.clamp_min(0)).flatten()
        mask = torch.zeros(M, W + K).masked_fill_(~torch.cat((seen, torch.ones(M, K, dtype=torch.bool)), 1), -1e30)
        mask = mask.view(M, 1, 1, W + K).expand(M, 1, H * K, W + K)
        dpos = pos[rows, at].unsqueeze(1) + 1 + torch.arange(K)
        cos, sin = self.rope_at(pos)
        dcos, dsin = self.rope_at(dpos)
        ids = torch.full((M, K), self.spark["dspark_noise_token_id"])
        ids[:, 0] = first
        h = F.embedding(ids.flatten(), embed).unsqueeze(1).expand(-1, n, -1).contiguous()
        pre = torch.zeros(M * K, n)
        pre[:, 0] = 1.0
        for l in self.layers:
            a = l.attn
            pa, post, comb = self.hc(l, "attn", h)
            x = rms(Collapse.apply(h, pre), l.attn_norm.weight, eps)
            q = rope(a.wq_b(rms(a.wq_a(x), a.q_norm.weight, eps)).view(M, K, H, hd), dcos, dsin)
            kv = [rope(rms(a.wkv(y), a.kv_norm.weight, eps).view(*s, hd), cc, ss) for y, s, cc, ss in ((mx, (B, L), cos, sin), (x, (M, K), dcos, dsin))]
            kv = [ste_fn(v, fq8) if self.cacheq else v for v in kv]
            keys = torch.cat((kv[0].view(B * L, hd)[where].view(M, W, hd), kv[1]), 1).unsqueeze(1)
            o, _ = FlashSink.apply(q.transpose(1, 2).reshape(M, 1, H * K, hd), keys, mask, a.attn_sink.view(H, 1).expand(H, K).reshape(1, 1, H * K), hd ** -0.5)
            o = rope(o.view(M, H, K, hd).transpose(1, 2).contiguous(), dcos, dsin, True)
            g = c["o_groups"]
            z = torch.bmm(o.reshape(M * K, g, -1).transpose(0, 1), a.wo_a.w().view(g, -1, H * hd // g).transpose(1, 2)).transpose(0, 1).reshape(M * K, -1)
            h = Expand.apply(a.wo_b(z), h, post, comb)
            pre, post, comb = self.hc(l, "ffn", h)
            h = Expand.apply(self.moe(l, rms(Collapse.apply(h, pa), l.ffn_norm.weight, eps)), h, post, comb)
        return Collapse.apply(h, pre).view(M, K, -1)

    def heads(self, x):
        """x [.., d] -> x normed, Markov tables, confidence weights"""
        l = self.layers[-1]
        return rms(x, l.norm.weight, self.c["rms_norm_eps"]), l.markov_head.embed.weight, l.markov_head.head.weight, l.confidence_head.proj.weight[0]

    @torch.no_grad()
    def pick(self, x, first, head):
        """x [M, K, d] -> drafted ids [M, K], confidence logits [M, K], left to right"""
        y, w1, w2, wc = self.heads(x)
        base, prev, out, conf = y @ head.T, first, [], []
        for k in range(x.shape[1]):
            m = w1[prev]
            conf.append(torch.cat((x[:, k], m), -1) @ wc)
            prev = (base[:, k] + m @ w2.T).argmax(-1)
            out.append(prev)
        return torch.stack(out, 1), torch.stack(conf, 1)


def batch(m, hs, data, L, r):
    """a row batch, its trunk features, and anchors with the ids that follow them"""
    ids, pos, seg, want = data.batch(L)[:4]
    x, p, s, wt = (torch.from_numpy(v) for v in (ids, pos, seg, want))
    with torch.no_grad():
        m(x, p, s, hs(ids, pos), features=SPARK["dspark_target_layer_ids"])
    K = SPARK["dspark_block_size"]
    B = ids.shape[0]
    ok = torch.zeros(B, L, dtype=torch.bool)
    ok[:, : L - K - 1] = (wt[:, : L - K - 1] == 2) & (s[:, : L - K - 1] >= 0)
    cand = torch.nonzero(ok)
    sel = cand[torch.randperm(len(cand))[:ANCHORS]]
    rows, at = sel[:, 0], sel[:, 1]
    nxt = at.unsqueeze(1) + torch.arange(2, K + 2)
    tgt = x[rows.unsqueeze(1), nxt]
    # a target counts while it belongs to the same answer
    good = (wt[rows.unsqueeze(1), nxt - 1] == 2).cumprod(1).bool() & (s[rows.unsqueeze(1), nxt] == s[rows, at].unsqueeze(1)) & (wt[rows, at] == 2).unsqueeze(1)
    return m.features.view(B, L, -1), p, s, rows, at, x[rows, at + 1], tgt, good


def step_loss(d, m, b):
    main, pos, seg, rows, at, first, tgt, good = b
    d.prepare()
    x = d(main, pos, seg, rows, at, first, m.embed.weight)
    y, w1, w2, wc = d.heads(x)
    prev = torch.cat((first.unsqueeze(1), tgt[:, :-1]), 1)
    mk = w1[prev]
    sel = torch.nonzero(good.flatten()).squeeze(1)
    # trunk head and Markov head as one product: [x, m] . [head, w2]
    ce, best = CrossEntropy.apply(torch.cat((y.flatten(0, 1)[sel], mk.flatten(0, 1)[sel]), 1), torch.cat((m.head.weight, w2), 1), tgt.flatten()[sel])
    right = torch.zeros(good.numel(), dtype=torch.bool)
    right[sel] = best == tgt.flatten()[sel]
    right = right.view(good.shape)
    conf = torch.cat((x.detach(), mk.detach()), -1) @ wc
    bce = F.binary_cross_entropy_with_logits(conf[good], right[good].float())
    full = good.all(1)
    return ce.mean() + 0.1 * bce, ce.mean().item(), right[full].cumprod(1).sum(1).float().mean().item() if full.any() else 0.0


def train(args):
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    os.makedirs(args.out, exist_ok=True)
    tok = Tokenizer.from_file(args.tok)
    m, hs, cfg = build(tok)
    ck = torch.load(args.trunk)
    m.load_state_dict(ck["model"])
    m.requires_grad_(False)
    m.qat, m.sparse = True, False
    m.prepare()
    d = Draft(cfg, tok.token_to_id("<｜place▁holder▁no▁0｜>"))
    if args.init:
        d.load_state_dict(torch.load(args.init)["model"])
    data, r = Data(tok, args.seed * 1000 + 7, "chat"), random.Random(args.seed)
    muon = [p for n, p in d.named_parameters() if p.dim() >= 2 and p.shape[0] > 1 and ".hc_" not in n and "markov" not in n and "gate" not in n]
    rest = [p for p in d.parameters() if all(p is not q for q in muon)]
    adam = torch.optim.Adam(rest, lr=3e-3, betas=(0.9, 0.97))
    mom = [torch.zeros_like(p) for p in muon]
    total, acc, t0 = int(args.tokens) // MICRO, [0.0, 0.0, 0], time.time()
    for step in range(total):
        f = step / total
        lr = min(1.0, (step + 1) / 40) * (1.0 if f < 0.6 else max(0.02, 1 - 0.98 * (f - 0.6) / 0.4))
        d.qat = f >= 0.7
        d.zero_grad(set_to_none=True)
        loss, ce, length = step_loss(d, m, batch(m, hs, data, r.choices((256, 512), (0.8, 0.2))[0], r))
        loss.backward()
        with torch.no_grad():
            for g in adam.param_groups:
                g["lr"] = 3e-3 * lr
            adam.step()
            for p, v in zip(muon, mom):
                v.mul_(0.95).add_(p.grad)
                u = newton_schulz(p.grad.add(v, alpha=0.95))
                p.mul_(1 - lr * 0.015 * 0.05).add_(u * max(1.0, u.shape[-2] / u.shape[-1]) ** 0.5, alpha=-lr * 0.015)
        acc = [acc[0] + ce, acc[1] + length, acc[2] + 1]
        if (step + 1) % 20 == 0 or step + 1 == total:
            row = dict(tokens=(step + 1) * MICRO, seconds=round(time.time() - t0, 1), ce=round(acc[0] / acc[2], 4), accepted_teacher_forced=round(acc[1] / acc[2], 3))
            print(row, flush=True)
            with open(os.path.join(args.out, "draft.jsonl"), "a") as f_:
                f_.write(json.dumps(row) + "\n")
            acc = [0.0, 0.0, 0]
            torch.save(dict(model=d.state_dict(), spark=d.spark, tokens=(step + 1) * MICRO), os.path.join(args.out, "draft.pt.tmp"))
            os.replace(os.path.join(args.out, "draft.pt.tmp"), os.path.join(args.out, "draft.pt"))


def trunk_features(m, hs, ids):
    """one sequence -> features [1, L, 3d], pos, seg (padded to whole windows)"""
    L = (len(ids) + 63) // 64 * 64
    a = np.full((1, L), 2, dtype=np.int64)
    a[0, : len(ids)] = ids
    pos = np.arange(L)[None].copy()
    with torch.no_grad():
        m(torch.from_numpy(a), torch.from_numpy(pos), torch.zeros(1, L, dtype=torch.long), hs(a, pos), features=SPARK["dspark_target_layer_ids"])
    return m.features.view(1, L, -1), torch.from_numpy(pos), torch.zeros(1, L, dtype=torch.long)


def load(path):
    from export import dequant, load_dir
    m, hs, tok, cfg = load_dir(path)
    spark = json.load(open(os.path.join(path, "config.json")))["text_config"]
    d = Draft(cfg, spark["dspark_noise_token_id"])
    sd = {k.replace("mtp.", "layers.", 1): v for k, v in dequant(os.path.join(path, "model.safetensors")).items() if k.startswith("mtp.")}
    d.load_state_dict(sd)
    d.requires_grad_(False)
    d.prepare()
    return m, hs, tok, d


def drafts(m, hs, d, ids, at):
    """ids of one sequence, positions at (each before the last) -> drafted ids, confidences"""
    main, pos, seg = trunk_features(m, hs, ids)
    at = torch.tensor(at)
    first = torch.tensor(ids)[at + 1]
    with torch.no_grad():
        x = d(main, pos, seg, torch.zeros_like(at), at, first, m.embed.weight)
    return d.pick(x, first, m.head.weight)


def score(args):
    """speculative decoding of right answers: after each block the accepted tokens and the one the trunk adds are kept"""
    from evalset import rows_of, skills_of
    m, hs, tok, d = load(args.model)
    K, tot = SPARK["dspark_block_size"], [0, 0]
    for k in skills_of(args.set):
        n = a = 0
        for x in [x for x in rows_of(args.set, k) if x.get("exact") and not x.get("prefix") and x["n_prompt"] < 600][: args.limit]:
            p = tok.encode(x["prompt"], add_special_tokens=False).ids
            ids, at = p + x["greedy_ids"], len(p) - 1
            if len(ids) - 1 <= at + 1:
                continue
            got, _ = drafts(m, hs, d, ids, list(range(at, len(ids) - 2)))
            p0 = at
            while p0 + 1 + K < len(ids):  # blocks whose four tokens all exist
                g, w = got[p0 - at].tolist(), ids[p0 + 2: p0 + 2 + K]
                c = next((i for i in range(K) if i >= len(w) or g[i] != w[i]), K)
                n, a = n + 1, a + c
                p0 += c + 1
        tot = [tot[0] + n, tot[1] + a]
        if n:
            print(f"{k:22s} blocks {n:5d} accepted {a / n:.2f} of {K}", flush=True)
    if tot[0]:
        print(f"{'all':22s} blocks {tot[0]:5d} accepted {tot[1] / tot[0]:.3f} of {K}")


def check(args):
    """the reference of the goldens drafts the same tokens from the exported weights"""
    import importlib.util
    spec = importlib.util.spec_from_file_location("golden_generate", args.set)
    g = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(g)
    m, hs, tok, d = load(args.model)
    ids = tok.encode("<｜begin▁of▁sentence｜><｜User｜>What is the capital of France?<｜Assistant｜></think>The capital of France is Paris.", add_special_tokens=False).ids
    with torch.no_grad():
        ref = g.new_ref(args.model, True, torch.float32)
        ref.forward(ids)
        ref.dspark_seed(ref.main, 0)
        at = list(range(3, len(ids) - 1))
        got, conf = drafts(m, hs, d, ids, at)
        for i, p in enumerate(at):
            want, _, _, c = ref.dspark_draft(ids[p + 1], p)
            print(p, got[i].tolist() == want, float((conf[i] - c).abs().max()))


def main():
    A = argparse.ArgumentParser()
    sub = A.add_subparsers(dest="cmd", required=True)
    t = sub.add_parser("train")
    t.add_argument("out")
    t.add_argument("tokens", type=float)
    t.add_argument("trunk")
    t.add_argument("--init")
    t.add_argument("--seed", type=int, default=1)
    t.add_argument("--tok", default=os.path.join(HERE, "..", "nano", "tokenizer.json"))
    for name in ("score", "check"):
        s = sub.add_parser(name)
        s.add_argument("model")
        s.add_argument("set")
        s.add_argument("--limit", type=int, default=20)
    args = A.parse_args()
    dict(train=train, score=score, check=check)[args.cmd](args)


if __name__ == "__main__":
    main()
