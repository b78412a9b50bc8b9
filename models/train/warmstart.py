"""Two warm starts that save a small model most of the tokens it takes to discover copying.

  warmstart.py new OUT.pt TOKENIZER.json     a fresh model whose heads 0 and 1 of layer 0 look one and two tokens back, by position alone
  warmstart.py bus OUT.pt TOKENIZER.json IN.pt
                                             tokens are written out by the code they are read by: every row of the unembedding gets a
                                             linear code of its embedding in the 32 directions the final hidden state uses least, and
                                             one head of each of the last two layers writes that code from the values it reads

`bus` comes after the first few million tokens, when there are hidden states to measure."""
import math
import random
import sys

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import gen
from model import build, inv_freq, rms

MIX = dict(fact=2, arith=1.5, multi=2, story=1, code=1, files=1, needle=2, copy=2, facttext=1)


def previous_token(sd, cfg):
    """keys of layer 0 carry a constant channel turned by rope, queries the same turned back by one or two positions"""
    hd, r, ql = cfg["head_dim"], cfg["qk_rope_head_dim"], cfg["q_lora_rank"]
    a = "layers.0.attn."
    E = sd["embed.weight"]
    E[:, 0] = 1.5                                              # the constant channel
    x = E / E.square().mean(-1, keepdim=True).sqrt() * sd["layers.0.attn_norm.weight"]
    c0 = x[:, 0].mean()
    wkv, wq_a, wq_b = sd[a + "wkv.weight"], sd[a + "wq_a.weight"], sd[a + "wq_b.weight"]
    content = (x @ wkv[: hd - r].T).norm(dim=-1).mean()
    rel = torch.tensor([3.5, 2.6, 1.6])                        # the three fastest rope pairs tell neighbours apart
    wkv[hd - r:] = 0
    for i in range(3):
        wkv[hd - r + 2 * i, 0] = rel[i] * content / math.sqrt(44.0) / c0
    rest = (x @ wq_a[1:].T).square().sum(-1).mean().sqrt() / math.sqrt(ql - 1)
    wq_a[0] = 0
    wq_a[0, 0] = 3.0 * rest / c0                               # about 3 after q_norm
    f = inv_freq(cfg, False)
    for head, back in ((0, 1), (1, 2)):
        wq_b[head * hd: (head + 1) * hd] = 0
        for i, coef in enumerate((6.0, 5.0, 3.0)):
            b = coef * 8.0 / rel[i] / 2.9
            k = head * hd + hd - r + 2 * i
            wq_b[k, 0], wq_b[k + 1, 0] = b * math.cos(f[i] * back), -b * math.sin(f[i] * back)
    sd[a + "attn_sink"][:2] = -3.0


def ridge(X, Y, lam=3e-2):
    """the linear map from rows of X to rows of Y"""
    G = X.T @ X / len(X)
    return torch.linalg.solve(G + lam * G.diagonal().mean() * torch.eye(X.shape[1]), X.T @ Y / len(X)).T


def rows(tok, n, L=512):
    """packed documents of about n tokens: [(ids, pos, seg, whether the token has a successor)] of [4, L]"""
    r, docs, out = random.Random(11), [], []
    while sum(map(len, docs)) < n:
        e = tok.encode(gen.doc(r, MIX, 120).replace(gen.CUT, ""), add_special_tokens=False).ids
        if len(e) <= L:
            docs.append(e)
    while docs:
        ids, pos = np.full((4, L), 2, dtype=np.int64), np.tile(np.arange(L), (4, 1))
        seg, ok = np.full((4, L), -1, dtype=np.int64), np.zeros((4, L), dtype=bool)
        for b in range(4):
            at, k = 0, 0
            while docs and at + len(docs[-1]) <= L:
                d = docs.pop()
                end = min(L, at + len(d) + (len(d) & 1))
                ids[b, at: at + len(d)] = d
                pos[b, at:end], seg[b, at:end] = np.arange(end - at), k
                ok[b, at: at + len(d) - 1] = True
                at, k = end, k + 1
        out.append((ids, pos, seg, ok))
    return out


def copy_bus(ck, tok, gamma=1.5, alpha=4.0, kappa=1.0):
    m, hs, cfg = build(tok, ck["cfg"])
    sd, g, eps = ck["model"], torch.Generator().manual_seed(3), cfg["rms_norm_eps"]
    m.load_state_dict(sd)
    m.sparse = False
    data = rows(tok, 16000)
    keep = torch.cat([torch.from_numpy(d[3].flatten()) for d in data])
    cur = torch.cat([torch.from_numpy(d[0].flatten()) for d in data])[keep]
    seen, attention = {}, m.attention

    def watch(l, x, S):
        if l.i >= 5:
            seen.setdefault(f"x{l.i}", []).append(x)
            seen.setdefault(f"kv{l.i}", []).append(rms(l.attn.wkv(x), l.attn.kv_norm.weight, eps)[:, :32])
            if l.i == 5:
                seen.setdefault("comp", []).append(rms(l.attn.compressor.wkv(x), l.attn.compressor.norm.weight, eps)[:, :32])
        return attention(l, x, S)

    def run():
        """mean cross entropy, final hidden states; fills `seen`"""
        m.load_state_dict(sd)
        m.prepare()
        seen.clear()
        H, ce = [], []
        for ids, pos, seg, ok in data:
            x = torch.from_numpy(ids)
            h = m(x, torch.from_numpy(pos), torch.from_numpy(seg), hs(ids, pos))
            f = torch.from_numpy(ok.flatten())
            H.append(h[f])
            ce.append(F.cross_entropy(F.linear(h[f], m.head.weight), x.roll(-1, 1).flatten()[f], reduction="none"))
        return torch.cat(ce).mean().item(), torch.cat(H), {k: torch.cat(v)[keep] for k, v in seen.items()}

    m.attention = watch
    before, H, X = run()
    E = sd["embed.weight"].clone()
    E[:, 0] = 0
    E = E / E.norm(dim=-1, keepdim=True)
    types = torch.unique(cur)
    mu = E[types].mean(0)
    S, U = torch.linalg.eigh((E[types] - mu).T @ (E[types] - mu) / len(types))
    C = (E - mu) @ (U[:, 4:] / (S[4:] + 0.1 * S.mean()).sqrt())
    code = C @ torch.randn(C.shape[1], 32, generator=g)
    code = code / code.norm(dim=-1, keepdim=True)
    quiet = torch.linalg.eigh(H.T @ H / len(H))[1][:, :32].T
    for L, n in ((5, "layers.5.attn.compressor.wkv.weight"), (6, "layers.6.attn.wkv.weight"), (7, "layers.7.attn.wkv.weight")):
        A = ridge(X[f"x{L}"], code[cur])
        p, w = X[f"x{L}"] @ A.T, sd[n]
        w[:32] += A * (kappa * (X[f"x{L}"] @ w[:32].T).square().mean().sqrt() / p.square().mean().sqrt())
    _, _, X = run()
    fit = {k: ridge(x, code[cur]) for k, x in X.items() if k[0] != "x"}
    sd["head.weight"] += gamma * code @ quiet
    for L in (6, 7):
        a = f"layers.{L}.attn."
        A = (fit[f"kv{L}"] + fit["comp"]) / 2
        oa, ob = sd[a + "wo_a.weight"], sd[a + "wo_b.weight"]
        oa[64:96] = 0
        oa[64:96, :32] = oa[64:96, 64:96] = A
        ob[:, 64:96] = alpha * quiet.T / (X[f"kv{L}"] @ A.T).square().sum(-1).mean().sqrt() / 2
    print("cross entropy before %.3f after %.3f" % (before, run()[0]))


@torch.no_grad()
def main():
    what, dst, tok = sys.argv[1], sys.argv[2], Tokenizer.from_file(sys.argv[3])
    torch.manual_seed(1)
    if what == "new":
        m, _, cfg = build(tok)
        ck = dict(model=m.state_dict(), cfg=cfg, tokens=0)
        previous_token(ck["model"], cfg)
    else:
        ck = torch.load(sys.argv[4])
        copy_bus(ck, tok)
    torch.save(dict(model=ck["model"], cfg=ck["cfg"], tokens=ck["tokens"]), dst)


if __name__ == "__main__":
    main()
