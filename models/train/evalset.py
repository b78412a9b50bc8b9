"""Evaluation sets, and scores of exported weights on them.

  evalset.py make eval|held SET_DIR TOKENIZER.json     write the instances (drawn with a seed, split from training by a CRC of the instance)
  evalset.py score MODEL_DIR SET_DIR [--skills a,b] [--limit n] [--dense] [--ck x.pt [--bf16]] [--json FILE]
  evalset.py table scores.json [held.json]             scores as a Markdown table
  evalset.py record MODEL_DIR SET_DIR [--reference golden/generate.py]
                                                       score, and write what the engine is compared with:
                                                       greedy ids into the .jsonl files, scores.json, perplexity.json, greedy.jsonl, logits.safetensors,
                                                       and with --reference agreement.json (an independent implementation on the same weights)

Exact: greedy decoding gives the expected answer to its last token.  That is so when under teacher forcing every token of the
answer, the end of sentence included, is the argmax, so one forward pass over prompt and answer decides it."""
import argparse
import json
import os
import random
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np

import gen
from chatenc import encode, BOS, EOS

SEEDS = dict(eval=111, held=222)
EFFORT = [50, 75, 50, 75, 25, 100]
NEEDLES = ((128, 60), (256, 60), (512, 60), (1024, 60), (2048, 40), (4096, 24), (8192, 4), (16000, 2))  # prompt tokens, instances
IDS_UP_TO = 700      # longer prompts are stored without their ids
GREEDY = [("smalltalk", 2), ("facts", 3), ("arithmetic_thinking", 3), ("code", 2), ("story_cloze", 2), ("tools_call", 2), ("tools_answer", 1), ("memory", 2), ("files", 1), ("needle_512", 1), ("needle_1024", 1)]
LOGITS = [("facts", 0, None), ("arithmetic_thinking", 3, None), ("tools_call", 1, 16), ("needle_1024", 0, 16)]  # skill, instance, rows from the end (None: all)


# ------------------------------------------------------------------ instances
def openai(ms):
    """our messages in the shape of the OpenAI chat API"""
    out = []
    for i, m in enumerate(ms):
        o = dict(role=m["role"])
        if "content" in m:
            o["content"] = m["content"]
        if m.get("tools"):
            o["tools"] = m["tools"]
        if m.get("reasoning"):
            o["reasoning_content"] = m["reasoning"]
        if m.get("calls"):
            o["tool_calls"] = [dict(id=f"call_{i}_{k}", type="function", function=dict(name=n, arguments=json.dumps(a, ensure_ascii=False))) for k, (n, a) in enumerate(m["calls"])]
        if o["role"] == "tool" and out and out[-1].get("tool_calls"):
            o["tool_call_id"] = out[-1]["tool_calls"][0]["id"]
        out.append(o)
    return out


def item(skill, ms, think, effort, short, **kw):
    """ms ends with the assistant message that is expected; short is the part of it that carries the answer"""
    full, prompt = encode(ms, think, effort, generation_prompt=False), encode(ms[:-1], think, effort)
    if not full.startswith(prompt) or not full.endswith(EOS):
        raise ValueError(skill)
    return dict(skill=skill, thinking=think, effort=effort if think else None, messages=openai(ms[:-1]), prompt=prompt, expected=full[len(prompt): -len(EOS)], short=str(short), **kw)


def qa(skill, r, t, think=False, sysp=0.25, **kw):
    q, a, s, th = t
    ms = [dict(role="system", content=r.choice(gen.SYS))] if r.random() < sysp else []
    ms += [dict(role="user", content=q), dict(role="assistant", content=a, reasoning=th)]
    return item(skill, ms, think, r.choice(EFFORT), s, **kw)


def raw(skill, prompt, expected):
    """plain text to be continued; the answer is right when the continuation begins with `expected`"""
    return dict(skill=skill, thinking=False, effort=None, messages=None, prompt=BOS + prompt, expected=expected, short=expected, prefix=True)


def cloze(r):
    """a story cut where what follows is decided by what came before"""
    n, m = r.sample(gen.NAMES, 2)
    a, o, p, p2 = r.choice(gen.ADJ), r.choice(gen.OBJ), *r.sample(gen.PLACE, 2)
    an, fo = r.choice(gen.ANIMAL), r.choice(gen.FOOD)
    return [
        (f"Once upon a time there was a child named {n}. {n} had a {a} {o}. One day {n} took the {o} to the {p}. There {n} lost the {a} {o}. {n} was sad and looked everywhere. Then a friendly {an} came by. The", f" {an} had found the {a} {o}"),
        (f"{n} and {m} were good friends. They lived close to the {p}. One morning {n} said to {m}: let us go to the {p2}. {m} took some {fo} and {n} took a {o}. On the way they met a {an}. The {an} was hungry, so {m} shared the", f" {fo}. At the {p2} they played with the {o}"),
        (f"There was an old {an} who lived in the {p}. The {an} had a {a} {o} that everyone liked. One night the {o} was gone. {n} came to help the old {an}. {n} looked in the {p2} and found the", f" {a} {o}. The old {an} was very"),
        (f"{n} wanted to build a {o}. The {o} had to be {a}. First {n} went to the {p} to get wood. Then {m} came to help. They worked for three days. When the", f" {a} {o} was ready, {n} and {m} ate"),
        (f"{n} was afraid of the dark. At night {n} heard a sound from the {p}. {n} took a {a} {o} and went to look. It was only a small {an}. The {an} was looking for {fo}. {n} laughed and gave the", f" {an} some {fo}. After that night {n} was not afraid any more."),
    ][r.randrange(5)]


def needle_of(r, tok, target):
    """a needle question in a prompt of about `target` tokens, and where it lies (0..1)"""
    w = int(target / 1.32)
    for _ in range(8):
        p, a, v, t, d = gen.needle(r, w, depth=r.random(), n_extra=r.choice([0, 1, 2]))
        n = len(tok.encode(p, add_special_tokens=False).ids)
        if abs(n - target) < target * 0.04:
            break
        w = int(w * target / n)
    return (p, a, v, t), round(d, 3)


def tools(r, n_call, n_answer, n_none):
    call, answer, none = [], [], []
    while len(call) < n_call or len(answer) < n_answer or len(none) < n_none:
        ms, info = gen.tool_chat(r, 1)
        think, eff = r.random() < 0.3, r.choice(EFFORT)
        if info["kind"] == "none":
            none.append(item("tools_none", ms, think, eff, info["short"]))
        elif len(call) < n_call:
            call.append(item("tools_call", ms[:3], think, eff, "", call=dict(name=info["name"], arguments=info["args"])))
        else:
            answer.append(item("tools_answer", ms, think, eff, info["answer"]))
    return dict(tools_call=call, tools_answer=answer[:n_answer], tools_none=none[:n_none])


def memory(r):
    told, reply, ask, answer, short = gen.memory_chat(r)
    ms = [dict(role="user", content=told), dict(role="assistant", content=reply)]
    for _ in range(r.choice([0, 0, 1, 2])):
        q, a, s, t = gen.turn(r)
        ms += [dict(role="user", content=q), dict(role="assistant", content=a)]
    ms += [dict(role="user", content=ask), dict(role="assistant", content=answer, reasoning="The user said it before. " + answer)]
    return item("memory", ms, r.random() < 0.2, r.choice(EFFORT), short)


def code(r, split):
    while True:
        t = gen.code_chat(r, split)
        if t[0].startswith(("Comp", "Fin", "Write the body")):
            return qa("code", r, t, r.random() < 0.3)


def instances(split, tok):
    """{skill: [instance]}"""
    r = random.Random(SEEDS[split])
    S = {}
    S["facts"] = [qa("facts", r, gen.fact(r, split)) for _ in range(200)]
    S["facts_thinking"] = [qa("facts_thinking", r, gen.fact(r, split), True) for _ in range(50)]
    S["smalltalk"] = [qa("smalltalk", r, gen.smalltalk(r)) for _ in range(40)]
    for k, think in (("arithmetic_thinking", True), ("arithmetic_chat", False)):
        xs = [gen.arith(r, split) for _ in range(200)]
        S[k] = [qa(k, r, x[:4], think, kind=x[4]) for x in xs]
    S.update(tools(r, 150, 80, 60))
    for L, n in NEEDLES:
        S[f"needle_{L}"] = []
        for _ in range(n):
            t, d = needle_of(r, tok, L)
            S[f"needle_{L}"].append(qa(f"needle_{L}", r, t, r.random() < 0.2, 0.1, depth=d))
    S["files"] = [qa("files", r, gen.multifile(r, big=r.random() < 0.3), r.random() < 0.25, 0.1) for _ in range(100)]
    S["code"] = [code(r, split) for _ in range(100)]
    S["code_raw"] = []
    for _ in range(60):
        _, head, body = gen.code_item(r, split)
        S["code_raw"].append(raw("code_raw", head + "\n", body))
    S["story_cloze"] = [raw("story_cloze", *cloze(r)) for _ in range(100)]
    S["memory"] = [memory(r) for _ in range(80)]
    S["repeat"] = [qa("repeat", r, gen.repeat(r)) for _ in range(60)]
    lists = {t[0]: t for t in (gen.listing(r, split) for _ in range(400))}  # few there are: each once
    S["listing"] = [qa("listing", r, t) for t in lists.values()]
    return S


def held_out_text(split):
    """stories, filler, facts and code, for perplexity"""
    r, out = random.Random(SEEDS[split] + 1), []
    while sum(map(len, out)) < 40000:
        k = r.random()
        if k < 0.5:
            out.append(" ".join(gen.story(r) for _ in range(r.choice([1, 2]))))
        elif k < 0.8:
            out.append(" ".join(gen.sent(r) for _ in range(r.randint(4, 10))))
        elif k < 0.9:
            out.append(" ".join(gen.FACTS[r.randrange(len(gen.FACTS))][3] for _ in range(r.randint(3, 8))))
        else:
            out.append("\n".join(gen.code_item(r, split)[1:]))
    return "\n".join(out) + "\n"


def write_rows(path, rows):
    with open(path, "w") as f:
        f.writelines(json.dumps(x, ensure_ascii=False) + "\n" for x in rows)


def make(split, out, tokenizer):
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(tokenizer)
    os.makedirs(out, exist_ok=True)
    for k, v in instances(split, tok).items():
        for i, x in enumerate(v):
            ids = tok.encode(x["prompt"], add_special_tokens=False).ids
            v[i] = dict(id=f"{split}-{k}-{i}", **x, n_prompt=len(ids), **(dict(prompt_ids=ids) if len(ids) <= IDS_UP_TO else {}))
        write_rows(os.path.join(out, k + ".jsonl"), v)
        print(k, len(v))
    with open(os.path.join(out, "text.txt"), "w") as f:
        f.write(held_out_text(split))


# ------------------------------------------------------------------ running the model
class Scorer:
    def __init__(self, m, hs, tok):
        import torch
        self.t, self.m, self.hs, self.tok = torch, m, hs, tok
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def encode(self, s):
        return self.tok.encode(s, add_special_tokens=False).ids

    def hidden(self, ids, pos, seg):
        t = self.t
        with t.no_grad():
            return self.m(t.from_numpy(ids), t.from_numpy(pos), t.from_numpy(seg), self.hs(ids, pos)).view(*ids.shape, -1)

    def head(self, h):
        with self.t.no_grad():
            return h @ self.m.head.weight.T

    def logits(self, ids, rows):
        """one sequence -> logits of the given rows"""
        L = (len(ids) + 63) // 64 * 64
        a = np.full((1, L), 2, dtype=np.int64)
        a[0, : len(ids)] = ids
        return self.head(self.hidden(a, np.arange(L)[None].copy(), np.zeros((1, L), dtype=np.int64))[0][rows])

    def teacher(self, seqs):
        """[(prompt ids, answer ids)] -> [(argmax at every answer position, negative log-likelihood)]; sequences are packed"""
        t, res = self.t, [None] * len(seqs)
        order = sorted(range(len(seqs)), key=lambda i: -len(seqs[i][0]) - len(seqs[i][1]))
        while order:
            n0 = sum(map(len, seqs[order[0]]))
            L = (n0 + 63) // 64 * 64 if n0 > 512 else 512
            B = max(1, 2048 // L)
            ids = np.full((B, L), 2, dtype=np.int64)
            pos, seg = np.tile(np.arange(L), (B, 1)), np.full((B, L), -1, dtype=np.int64)
            put = []
            for b in range(B):
                at, k, i = 0, 0, 0
                while i < len(order):
                    p, a = seqs[order[i]]
                    n = len(p) + len(a)
                    if at + n > L:
                        i += 1
                        continue
                    ids[b, at: at + n] = p + a
                    ne = min(L - at, n + (n & 1))
                    pos[b, at: at + ne] = np.arange(ne)
                    seg[b, at: at + ne] = k
                    put.append((order.pop(i), b, at + len(p), len(a)))
                    at += ne
                    k += 1
            h = self.hidden(ids, pos, seg)
            for j, b, s, n in put:
                lg = self.head(h[b, s - 1: s - 1 + n])
                res[j] = (lg.argmax(-1).tolist(), -lg.log_softmax(-1).gather(1, t.tensor(seqs[j][1])[:, None]).sum().item())
        return res

    def greedy(self, prompt, n):
        """greedy ids (at most n, up to the end of sentence) by recomputation, and the smallest margin between the best two logits"""
        out, margin = [], float("inf")
        while len(out) < n and (not out or out[-1] != 1):
            ids = prompt + out
            top = self.logits(ids, [len(ids) - 1])[0].topk(2)
            out.append(int(top.indices[0]))
            margin = min(margin, float(top.values[0] - top.values[1]))
        return out, margin

    def perplexity(self, path, window=512):
        """of a text cut into windows of `window` tokens, the first of each being the begin of sentence"""
        ids = self.encode(open(path).read())
        r = self.teacher([([0], ids[i: i + window - 1]) for i in range(0, len(ids), window - 1)])
        return float(np.exp(sum(x[1] for x in r) / len(ids)))


def rows_of(sdir, skill):
    return [json.loads(x) for x in open(os.path.join(sdir, skill + ".jsonl"))]


def skills_of(sdir):
    return sorted(f[:-6] for f in os.listdir(sdir) if f.endswith(".jsonl") and f != "greedy.jsonl")


def short_right(x, a, am, tok):
    """the tokens of `short` inside the expected text are all the argmax"""
    t = tok.decode(a, skip_special_tokens=False)
    if am == a or not x["short"] or x["short"] not in t:
        return am == a
    lo = t.rindex(x["short"])
    hi, at = lo + len(x["short"]), 0
    for u, v in zip(a, am):
        n = len(tok.decode([u], skip_special_tokens=False))
        if at < hi and at + n > lo and u != v:
            return False
        at += n
    return True


def score(sc, sdir, skills=None, limit=None, write=False):
    """{skill: counts}; with write, greedy ids and text of the right answers go into the .jsonl files"""
    rep = {}
    for k in skills_of(sdir):
        if skills and not any(k.startswith(s) for s in skills):
            continue
        t0, rows = time.time(), rows_of(sdir, k)[:limit]
        seqs = []
        for x in rows:
            p, end = sc.encode(x["prompt"]), "" if x.get("prefix") else EOS
            full = sc.encode(x["prompt"] + x["expected"] + end)
            seqs.append((p, full[len(p):] if full[: len(p)] == p else sc.encode(x["expected"] + end)))
        res = sc.teacher(seqs)
        exact = [am == a for (p, a), (am, _) in zip(seqs, res)]
        right = sum(u == v for (p, a), (am, _) in zip(seqs, res) for u, v in zip(am, a))
        short = sum(short_right(x, a, am, sc.tok) for x, (p, a), (am, _) in zip(rows, seqs, res))
        n = len(rows)
        rep[k] = dict(n=n, exact_greedy=round(sum(exact) / n, 4), answer_tokens_teacher_forced=round(short / n, 4),
                      token_accuracy_teacher_forced=round(right / sum(len(a) for _, a in seqs), 4))
        print(f"{k:22s} n {n:4d} exact {sum(exact)/n:.3f} answer {short/n:.3f} token {rep[k]['token_accuracy_teacher_forced']:.3f}  {time.time()-t0:.1f}s", flush=True)
        if write:
            for x, ok, (p, a) in zip(rows, exact, seqs):
                x.update(exact=ok, greedy_ids=a if ok else None, greedy_text=sc.tok.decode(a, skip_special_tokens=False) if ok else None)
            write_rows(os.path.join(sdir, k + ".jsonl"), rows)
    return rep


# ------------------------------------------------------------------ what the engine is compared with
def record(args):
    from safetensors.torch import save_file
    from export import load_dir
    import torch
    m, hs, tok, _ = load_dir(args.model)
    sc, sdir = Scorer(m, hs, tok), args.set
    rep = score(sc, sdir, write=True)
    text, ppl = os.path.join(sdir, "text.txt"), {}
    ppl["shipped"] = sc.perplexity(text)
    m.cacheq = False
    ppl["shipped, cache quantizers off"] = sc.perplexity(text)
    m.cacheq, m.sparse = True, False
    ppl["shipped, every entry attended"] = sc.perplexity(text)
    m.sparse = True
    if args.ck:
        ppl["bf16"] = Scorer(*load_dir(args.model, args.ck, True)[:3]).perplexity(text)
    json.dump(ppl, open(os.path.join(sdir, "perplexity.json"), "w"), indent=1)
    rep["text_perplexity"] = ppl
    json.dump(rep, open(os.path.join(sdir, "scores.json"), "w"), indent=1)
    out = []
    for k, n in GREEDY:
        for x in rows_of(sdir, k)[:n]:
            p = sc.encode(x["prompt"])
            ids, margin = sc.greedy(p, 64)
            out.append(dict(id=x["id"], prompt=x["prompt"], greedy_ids=ids, greedy_text=tok.decode(ids, skip_special_tokens=False), min_margin=round(margin, 5)))
    write_rows(os.path.join(sdir, "greedy.jsonl"), out)
    T, agree = {}, []
    for k, i, last in LOGITS:
        x = rows_of(sdir, k)[i]
        ids = sc.encode(x["prompt"])
        rows = list(range(len(ids)))[-last if last else 0:]
        lg = sc.logits(ids, rows)
        T.update({x["id"] + ".ids": torch.tensor(ids, dtype=torch.int32), x["id"] + ".rows": torch.tensor(rows, dtype=torch.int32), x["id"] + ".logits": lg.contiguous()})
        if args.reference:
            agree.append(dict(id=x["id"], tokens=len(ids), **compare(args, ids, rows, lg)))
    save_file(T, os.path.join(sdir, "logits.safetensors"))
    if agree:
        json.dump(agree, open(os.path.join(sdir, "agreement.json"), "w"), indent=1)


def compare(args, ids, rows, lg):
    """logits of the reference that made the goldens, in float32 and float64, against ours"""
    import importlib.util
    import torch
    spec = importlib.util.spec_from_file_location("golden_generate", args.reference)
    g = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(g)
    out = {}
    for name, dt in (("", torch.float32), ("vs_float64_", torch.float64)):
        with torch.no_grad():
            ref = g.new_ref(args.model, True, dt).forward(ids)[rows].double()
        d = (ref - lg.double()).abs().amax(-1)
        out[name + ("max_abs" if not name else "max")] = d.max().item()
        out[name + ("median_row_max" if not name else "median_row")] = d.median().item()
        if not name:
            out.update(logit_std=ref.std().item(), argmax_agree=(ref.argmax(-1) == lg.argmax(-1)).double().mean().item())
    return out


def main():
    if sys.argv[1] == "make":
        return make(*sys.argv[2:5])
    if sys.argv[1] == "table":
        return table(*sys.argv[2:4])
    A = argparse.ArgumentParser()
    A.add_argument("cmd", choices=["score", "record"])
    A.add_argument("model")
    A.add_argument("set")
    A.add_argument("--skills")
    A.add_argument("--limit", type=int)
    A.add_argument("--dense", action="store_true", help="attend every visible entry")
    A.add_argument("--ck", help="training checkpoint in place of the exported weights (record: for the bf16 perplexity)")
    A.add_argument("--bf16", action="store_true", help="round --ck to bf16")
    A.add_argument("--json", help="write the scores there")
    A.add_argument("--reference", help="golden/generate.py")
    args = A.parse_args()
    if args.cmd == "record":
        return record(args)
    from export import load_dir
    m, hs, tok, _ = load_dir(args.model, args.ck, args.bf16)
    m.sparse = not args.dense
    sc = Scorer(m, hs, tok)
    rep = score(sc, args.set, args.skills and args.skills.split(","), args.limit)
    if not args.skills:
        rep["text"] = sc.perplexity(os.path.join(args.set, "text.txt"))
        print("perplexity", round(rep["text"], 4))
    if args.json:
        json.dump(rep, open(args.json, "w"), indent=1)


def table(path, held=None):
    a, b = json.load(open(path)), json.load(open(held)) if held else {}
    print("| skill | exact, eval (n) | exact, held out (n) | answer, eval | token, eval |\n|---|---|---|---|---|")
    for k in sorted(a, key=lambda k: (k.split("_")[0], int(k.split("_")[1]) if k.startswith("needle") else 0, k)):
        if "exact_greedy" in a[k]:
            h = f"{b[k]['exact_greedy']:.3f} ({b[k]['n']})" if k in b else "-"
            print(f"| {k} | {a[k]['exact_greedy']:.3f} ({a[k]['n']}) | {h} | {a[k]['answer_tokens_teacher_forced']:.3f} | {a[k]['token_accuracy_teacher_forced']:.3f} |")


if __name__ == "__main__":
    main()
