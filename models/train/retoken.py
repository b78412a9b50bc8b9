"""Move a checkpoint to another tokenizer, keeping what the model knows.

Embedding and unembedding rows: a token both vocabularies hold keeps its row; a token that the old one held only with
(or without) its leading space takes that row plus the mean difference between such pairs; any other takes the mean of
its old pieces.  Engram rows are addressed by hashes of token ids, so every n-gram of generated text copies its rows
from the old address to the new one (the mean, where several meet).

usage: retoken.py IN.pt OLD_TOKENIZER.json NEW_TOKENIZER.json OUT.pt [DOCUMENTS]"""
import random
import sys

import numpy as np
import torch
from tokenizers import Tokenizer

import gen
from model import Hasher, build

MIX = dict(fact=6, arith=2, multi=3, single=1, tool=1, needle=1, story=2, code=2, files=1.5, facttext=2, copy=1)


def twin(s):
    return s[1:] if s.startswith("Ġ") else "Ġ" + s


def rows(w, old, new):
    """w [old vocab, d] -> [new vocab, d], and for each new token the old one that means the same, or -1"""
    v = old.get_vocab()
    both = [(i, v["Ġ" + s]) for s, i in v.items() if s.isalpha() and "Ġ" + s in v]
    diff = torch.stack([w[a] - w[b] for a, b in both]).mean(0)  # bare minus spaced
    out, same = torch.empty(new.get_vocab_size(), w.shape[1]), np.full(new.get_vocab_size(), -1)
    n = [0, 0, 0]
    for i in range(len(out)):
        s = new.id_to_token(i)
        if s in v:
            out[i], same[i] = w[v[s]], v[s]
            n[0] += 1
        elif twin(s) in v:
            same[i] = v[twin(s)]
            out[i] = w[same[i]] + (-diff if s.startswith("Ġ") else diff)
            n[1] += 1
        else:
            p = old.encode(new.decode([i], skip_special_tokens=False), add_special_tokens=False).ids
            out[i] = w[p].mean(0) if p else w.mean(0)
            n[2] += 1
    return out, same, n


def main(src, old, new, dst, docs=20000):
    old, new = Tokenizer.from_file(old), Tokenizer.from_file(new)
    ck = torch.load(src)
    sd, cfg = ck["model"], ck["cfg"]
    h0, h1 = Hasher(cfg, old), Hasher(cfg, new)
    for k in ("embed.weight", "head.weight"):
        sd[k], same, n = rows(sd[k], old, new)
    print("rows kept / from their twin / from pieces:", n)
    m, _, ncfg = build(new, cfg)
    names = [f"layers.{l}.engram.embed.weight" for l in cfg["engram_layer_ids"]]
    acc = [torch.zeros_like(sd[k]) for k in names]
    cnt = [torch.zeros(sd[k].shape[0]) for k in names]
    r = random.Random(5)
    N = cfg["engram_max_ngram_size"]
    heads = cfg["engram_n_heads"]
    for _ in range(docs // 500):
        for e in new.encode_batch([gen.doc(r, MIX, 100).replace(gen.CUT, "") for _ in range(500)], add_special_tokens=False):
            ids = np.array([e.ids])
            o = same[ids]
            pos = np.arange(ids.shape[1])[None]
            a, b = h0(np.maximum(o, 0), pos), h1(ids, pos)
            known = o[0] >= 0
            for k in range(len(names)):
                for s in range(1, N):  # an n-gram of s + 1 tokens counts where all of them are known
                    ok = known.copy()
                    for j in range(1, s + 1):
                        ok[j:] &= known[:-j]
                    sel = torch.from_numpy(np.nonzero(ok)[0])
                    col = slice((s - 1) * heads, s * heads)
                    fr, to = a[k][sel, col].flatten(), b[k][sel, col].flatten()
                    acc[k].index_add_(0, to, sd[names[k]][fr])
                    cnt[k].index_add_(0, to, torch.ones(len(to)))
    for k, x, c in zip(names, acc, cnt):
        print(k, "rows reached %.3f" % (c > 0).float().mean())
        sd[k] = x / c.clamp_min(1).unsqueeze(1)
    m.load_state_dict(sd)
    torch.save(dict(model=m.state_dict(), cfg=ncfg, step=0, tokens=ck["tokens"]), dst)


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:6]))
