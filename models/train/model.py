"""dsv4-nano: own torch implementation of the V4.1 architecture for training and checking.
Parameters carry the official names (experts are stacked here and split at export)."""
import math
import unicodedata

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from fused import Sinkhorn, Collapse, Expand, Rms, Rope, Swiglu, HcMix, EngramGate

CFG = dict(
    vocab_size=4096, hidden_size=128, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1, head_dim=64, q_lora_rank=96, qk_rope_head_dim=32,
    rope_theta=10000, compress_rope_theta=160000,
    rope_scaling=dict(type="yarn", factor=16, original_max_position_embeddings=65536, beta_fast=32, beta_slow=1),
    max_position_embeddings=16384, sliding_window=64, compress_ratios=[0, 0, 2, 2, 2, 1, 1, 1], kv_source_layer_ids=[2, 4, 5], index_source_layer_ids=[2, 4, 5, 7],
    candidate_source_layer_id=5, candidate_topk_blocks=32, candidate_block_size=8, index_n_heads=4, index_head_dim=32, index_topk=64, o_groups=2, o_lora_rank=64,
    moe_intermediate_size=96, n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=2, scoring_func="sqrtsoftplus", gate_temp=1.0, norm_topk_prob=True,
    routed_scaling_factor=1.5, topk_method="noaux_tc", swiglu_limit=10.0, hc_mult=4, hc_sinkhorn_iters=20, hc_eps=1e-6,
    engram_layer_ids=[1, 4], engram_vocab_size=4096, engram_num_embeddings=None, engram_max_ngram_size=4, engram_n_heads=4, engram_head_dim=32, engram_pad_id=2,
    engram_compressed_vocab_size=None, num_nextn_predict_layers=0, hidden_act="silu", rms_norm_eps=1e-6, initializer_range=0.02, tie_word_embeddings=False,
    bos_token_id=0, eos_token_id=1, pad_token_id=2, attention_bias=False, attention_dropout=0.0, use_cache=True)


# ------------------------------------------------------------------ engram addressing
def normalize(t):
    t = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", t))
    t = "".join(c for c in t if unicodedata.category(c) != "Mn").lower()
    o, ws = [], False
    for c in t:
        if c in " \t\r\n":
            if not ws:
                o.append(" ")
            ws = True
        else:
            o.append(c)
            ws = False
    t = "".join(o)
    if t == " ":
        return t
    return t.strip()


def compressed_vocab(tok):
    keys, lut = {}, []
    for i in range(tok.get_vocab_size()):
        t = tok.decode([i], skip_special_tokens=False)
        k = tok.id_to_token(i) if "\ufffd" in t else (normalize(t) or t)
        lut.append(keys.setdefault(k, len(keys)))
    return lut, len(keys)


def is_prime(n):
    return n > 1 and all(n % i for i in range(2, int(n ** 0.5) + 1))


def primes_for(cfg):
    seen, out = set(), []
    for _ in cfg["engram_layer_ids"]:
        lay = []
        for _ in range(cfg["engram_max_ngram_size"] - 1):
            cur, row = cfg["engram_vocab_size"] - 1, []
            for _ in range(cfg["engram_n_heads"]):
                cur += 1
                while not is_prime(cur) or cur in seen:
                    cur += 1
                seen.add(cur)
                row.append(cur)
            lay.append(row)
        out.append(lay)
    return out


class Hasher:
    def __init__(self, cfg, tok):
        lut, n = compressed_vocab(tok)
        self.lut, self.n = np.array(lut, dtype=np.int64), n
        self.primes = primes_for(cfg)
        self.N = cfg["engram_max_ngram_size"]
        self.pad = self.lut[cfg["engram_pad_id"]]
        bound = max(1, (np.iinfo(np.int64).max // n) // 2)
        self.mult = [np.random.default_rng(10007 * l).integers(0, bound, size=self.N, dtype=np.int64) * 2 + 1 for l in cfg["engram_layer_ids"]]
        self.rows = [sum(sum(r) for r in lay) for lay in self.primes]

    def __call__(self, ids, pos):
        """ids, pos [B, L] numpy -> list per engram layer of [B*L, cols] int64"""
        c = self.lut[ids]
        toks = []
        for s in range(self.N):
            t = np.full_like(c, self.pad)
            t[:, s:] = c[:, : c.shape[1] - s]
            t[pos < s] = self.pad
            toks.append(t)
        out = []
        with np.errstate(over="ignore"):
            for lay, m in zip(self.primes, self.mult):
                x, cols, off = toks[0] * m[0], [], 0
                for s in range(1, self.N):
                    x = x ^ (toks[s] * m[s])
                    for p in lay[s - 1]:
                        cols.append(x % p + off)
                        off += p
                out.append(torch.from_numpy(np.stack(cols, -1).reshape(-1, len(cols))))
        return out


# ------------------------------------------------------------------ quantizers
def pow2_ceil(t):
    b = t.contiguous().view(torch.int32)
    return torch.exp2((((b >> 23) & 255) - 127 + ((b & 0x7FFFFF) != 0).to(torch.int32)).float())


def e2m1(x):
    """round to the e2m1 grid (values already scaled), ties to even code"""
    m = x.abs().clamp_max_(6.0)
    step = (m.clamp_min(1.0).view(torch.int32) & 0x7F800000).view(torch.float32) * 0.5
    return torch.copysign((m / step).round_() * step, x)


def q8_scale(amax):
    return pow2_ceil(amax.clamp_min(1e-4) * (1.0 / 448.0))


def fq8(x, b=32):
    y = x.unflatten(-1, (-1, b))
    s = q8_scale(y.abs().amax(-1, keepdim=True))
    return ((y / s).clamp(-448, 448).to(torch.float8_e4m3fn).float() * s).flatten(-2)


def fq4(x, b=32, e4m3=False):
    y = x.unflatten(-1, (-1, b))
    a = y.abs().amax(-1, keepdim=True)
    s = (a.clamp_min(6.0 * 2.0 ** -9) / 6.0).to(torch.float8_e4m3fn).float() if e4m3 else pow2_ceil(a.clamp_min(6.0 * 2.0 ** -126) * (1.0 / 6.0))
    return (e2m1(y / s) * s).flatten(-2)


def fq8_w(w, b=32):
    """weights: e4m3 with one power-of-two scale per b x b block"""
    o, i = w.shape
    y = w.view(o // b, b, i // b, b)
    s = pow2_ceil(y.abs().amax((1, 3), keepdim=True).clamp_min(1e-12) * (1.0 / 448.0))
    return ((y / s).clamp(-448, 448).to(torch.float8_e4m3fn).float() * s).view(o, i)


def ste(x, q):
    return x + (q - x).detach()


def ste_fn(x, f, *a):
    with torch.no_grad():
        q = f(x.detach(), *a)
    return ste(x, q) if x.requires_grad else q


# ------------------------------------------------------------------ pieces
def rms(x, w, eps):
    return Rms.apply(x, w, eps)


def rope(x, cos, sin, inv=False):
    """x [..., c] or [..., H, c]; cos/sin [..., r/2]; rotates adjacent pairs of the last r channels"""
    H = x.shape[-2] if x.dim() == cos.dim() + 1 else 1
    h = cos.shape[-1]
    return Rope.apply(x.reshape(-1, H, x.shape[-1]), cos.reshape(-1, h), sin.reshape(-1, h), inv).view(x.shape)


def inv_freq(cfg, compress):
    r = cfg["qk_rope_head_dim"]
    th = cfg["compress_rope_theta"] if compress else cfg["rope_theta"]
    f = 1.0 / (th ** (torch.arange(0, r, 2, dtype=torch.float) / r))
    if compress and cfg.get("rope_scaling"):
        y = cfg["rope_scaling"]
        dim = lambda n: r * math.log(y["original_max_position_embeddings"] / (n * 2 * math.pi)) / (2 * math.log(th))
        lo, hi = max(math.floor(dim(y["beta_fast"])), 0), min(math.ceil(dim(y["beta_slow"])), r - 1)
        ramp = ((torch.arange(r // 2, dtype=torch.float) - lo) / max(hi - lo, 0.001)).clamp(0, 1)
        f = f / y["factor"] * ramp + f * (1 - ramp)
    return f


class FlashSink(torch.autograd.Function):
    """softmax(q k^T * scale + mask) k with a per-row sink logit in the denominator (K = V)"""

    @staticmethod
    def forward(ctx, q, k, mask, sink, scale):
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, 0.0, False, attn_mask=mask, scale=scale)
        l2 = torch.logaddexp(lse, sink)
        o = o * torch.exp(lse - l2).unsqueeze(-1)
        ctx.save_for_backward(q, k, mask, sink, o, l2)
        ctx.scale = scale
        ctx.mark_non_differentiable(l2)
        return o, l2

    @staticmethod
    def backward(ctx, g, _):
        q, k, mask, sink, o, l2 = ctx.saved_tensors
        gq, gk, gv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(g, q, k, k, o, l2, 0.0, False, attn_mask=mask, scale=ctx.scale)
        gs = -(torch.exp(sink - l2) * (g * o).sum(-1)).sum((0, 1), keepdim=True)
        return gq, gk + gv, None, gs, None


class PerExpert(torch.autograd.Function):
    """x [N, i] sorted by expert, w [E, o, i], ends: where each expert's rows end -> [N, o]"""

    @staticmethod
    def forward(ctx, x, w, ends):
        ctx.save_for_backward(x, w)
        ctx.ends = ends
        y = x.new_empty(x.shape[0], w.shape[1])
        for e, (lo, hi) in enumerate(zip([0] + ends, ends)):
            torch.mm(x[lo:hi], w[e].t(), out=y[lo:hi])
        return y

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        gx, gw = torch.empty_like(x), torch.empty_like(w)
        for e, (lo, hi) in enumerate(zip([0] + ctx.ends, ctx.ends)):
            torch.mm(g[lo:hi], w[e], out=gx[lo:hi])
            torch.mm(g[lo:hi].t(), x[lo:hi], out=gw[e])
        return gx, gw, None


class Lin(nn.Module):
    """a weight that is shipped as fp8 (32 x 32 blocks); fake-quantized when model.qat is set"""

    def __init__(self, o, i, kind="fp8"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i) * i ** -0.5)
        self.kind, self.q = kind, None

    def w(self):
        return self.weight if self.q is None else self.q

    def forward(self, x):
        return F.linear(x, self.w())


class Vec(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))


class Mod(nn.Module):
    pass


class Layer(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        d, H, hd, ql, n = c["hidden_size"], c["num_attention_heads"], c["head_dim"], c["q_lora_rank"], c["hc_mult"]
        E, ff = c["n_routed_experts"], c["moe_intermediate_size"]
        self.i, self.ratio = i, c["compress_ratios"][i]
        self.attn_norm, self.ffn_norm = Vec(d), Vec(d)
        a = self.attn = Mod()
        a.wq_a, a.q_norm, a.wq_b = Lin(ql, d), Vec(ql), Lin(H * hd, ql)
        a.wkv, a.kv_norm = Lin(hd, d), Vec(hd)
        a.wo_a = Lin(c["o_groups"] * c["o_lora_rank"], H * hd // c["o_groups"])
        a.wo_b = Lin(d, c["o_groups"] * c["o_lora_rank"])
        a.attn_sink = nn.Parameter(torch.zeros(H))
        self.kv_src = i in c["kv_source_layer_ids"]
        self.ix_src = i in c["index_source_layer_ids"]
        if self.kv_src:
            a.compressor = Mod()
            a.compressor.wkv = Lin(hd, d, "bf16")
            if self.ratio > 1:
                a.compressor.wgate = Lin(hd, d, "bf16")
                nn.init.normal_(a.compressor.wgate.weight, std=0.02)
            a.compressor.norm = Vec(hd)
        if self.ix_src:
            a.indexer = Mod()
            a.indexer.wq_b = Lin(c["index_n_heads"] * c["index_head_dim"], ql)
            a.indexer.weights_proj = Lin(c["index_n_heads"], d, "bf16")
            if self.kv_src:
                a.indexer.wk, a.indexer.k_norm = Lin(c["index_head_dim"], hd), Vec(c["index_head_dim"])
        f = self.ffn = Mod()
        f.gate = Mod()
        f.gate.weight = nn.Parameter(torch.randn(E, d) * d ** -0.5)
        f.gate.register_buffer("bias", torch.zeros(E))
        f.w13 = nn.Parameter(torch.randn(E, 2 * ff, d) * d ** -0.5)
        f.w2 = nn.Parameter(torch.randn(E, d, ff) * ff ** -0.5 * 0.5)
        f.shared_experts = Mod()
        f.shared_experts.w1, f.shared_experts.w2, f.shared_experts.w3 = Lin(ff, d), Lin(d, ff), Lin(ff, d)
        f.q = None
        with torch.no_grad():
            a.wo_b.weight.mul_(0.5)
            f.shared_experts.w2.weight.mul_(0.5)
        for s in ("attn", "ffn"):
            fn = nn.Parameter(torch.randn((2 + n) * n, n * d) * 0.02)
            base = torch.zeros((2 + n) * n)
            j = (2 * i + (s == "ffn")) % n
            base[:n] = -1.0
            base[(j + 1) % n] = 1.0   # this pre mix is used by the next site
            base[2 * n:] = (torch.eye(n) * 4.0).flatten()
            setattr(self, f"hc_{s}_fn", fn)
            setattr(self, f"hc_{s}_base", nn.Parameter(base))
            setattr(self, f"hc_{s}_scale", nn.Parameter(torch.full((3,), 0.3)))
        self.engram = None
        if i in c["engram_layer_ids"]:
            e = self.engram = Mod()
            k = c["engram_layer_ids"].index(i)
            cols = (c["engram_max_ngram_size"] - 1) * c["engram_n_heads"]
            e.embed = Mod()
            e.embed.weight = nn.Parameter(torch.randn(c["engram_num_embeddings"][k], c["engram_head_dim"]) * 0.1)
            e.q = None
            e.wkv = Lin((n + 1) * d, cols * c["engram_head_dim"])
            e.q_weight, e.k_weight = nn.Parameter(torch.ones(n, d)), nn.Parameter(torch.ones(n, d))


class Nano(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.c = c = cfg
        self.embed, self.head, self.norm = Mod(), Mod(), Vec(c["hidden_size"])
        self.embed.weight = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * 0.5)
        self.head.weight = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * c["hidden_size"] ** -0.5 * 0.5)
        self.layers = nn.ModuleList([Layer(c, i) for i in range(c["num_hidden_layers"])])
        self.f0, self.f1 = inv_freq(c, False), inv_freq(c, True)
        self.qat = False      # weight fake-quantization
        self.cacheq = True    # cache quantizers (part of the model)
        self.sparse = True    # real top-k selection (False: every visible entry, early training)
        self.counts = None
        self.points = self.tellers = None  # see pointing: over entries of the last KV source, over the last layer's window

    def prepare(self):
        """take the weights of the next forward pass from the parameters, rounded to the shipped formats when qat is set"""
        for m in self.modules():
            if isinstance(m, Lin):
                m.q = ste_fn(m.weight, fq8_w) if self.qat and m.kind == "fp8" else (ste_fn(m.weight, lambda w: w.bfloat16().float()) if self.qat else None)
        for l in self.layers:
            l.ffn.q = (ste_fn(l.ffn.w13, fq4), ste_fn(l.ffn.w2, fq4)) if self.qat else (l.ffn.w13, l.ffn.w2)
            if l.engram is not None:
                l.engram.q = (ste_fn(l.engram.embed.weight, fq8) if self.qat else l.engram.embed.weight,)

    def hc(self, l, s, h):
        """mHC coefficients of site s ("attn" or "ffn") of layer l from the streams h [T, n, d]"""
        f = h.flatten(1)
        fn, base, sc = getattr(l, f"hc_{s}_fn"), getattr(l, f"hc_{s}_base"), getattr(l, f"hc_{s}_scale")
        pre, post, lg = HcMix.apply(f, F.linear(f, fn), base, sc, self.c["rms_norm_eps"], self.c["hc_eps"])
        comb = Sinkhorn.apply(lg, self.c["hc_sinkhorn_iters"], self.c["hc_eps"])
        return pre, post, comb

    def moe(self, l, x):
        c, f = self.c, l.ffn
        E, k, T, L = c["n_routed_experts"], c["num_experts_per_tok"], x.shape[0], c["swiglu_limit"]
        s = F.softplus(F.linear(x, f.gate.weight) / c["gate_temp"]).sqrt()
        idx = (s.detach() + f.gate.bias).topk(k, -1)[1]
        w = s.gather(1, idx)
        w = w / (w.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]
        e = idx.flatten()
        order = torch.argsort(e, stable=True)
        cnt = torch.bincount(e, minlength=E)
        if self.counts is not None:
            self.counts[l.i] += cnt
        xs = x.index_select(0, order // k)  # rows sorted by expert
        ends, (w13, w2) = cnt.cumsum(0).tolist(), f.q
        y = PerExpert.apply(Swiglu.apply(PerExpert.apply(xs, w13, ends), L), w2, ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(T * k)
        o = y.index_select(0, back).view(T, k, -1)
        o = (o * w.unsqueeze(-1)).sum(1)
        se = f.shared_experts
        return o + se.w2(Swiglu.apply(F.linear(x, torch.cat((se.w1.w(), se.w3.w()))), L))

    def engram_apply(self, l, h, ids):
        c, e = self.c, l.engram
        kv = e.wkv(F.embedding(ids, e.q[0]).flatten(1))
        return EngramGate.apply(h, kv, e.q_weight * e.k_weight, c["rms_norm_eps"])

    def index_scores(self, q, k, w):
        """sum over heads of w relu(q . k): q [B,S,nh,hd], k [B,G,hd], w [B,S,nh] -> [B,S,G]"""
        B, S, nh, hd = q.shape
        s = torch.matmul(q.reshape(B, S * nh, hd), k.transpose(1, 2)).view(B, S, nh, -1).relu() * hd ** -0.5
        return (s * (w * nh ** -0.5).unsqueeze(-1)).sum(2)

    def attention(self, l, x, S):
        """x [B*L, d] -> [B*L, d]; S is the state of this forward pass (see setup)"""
        c, a, B, L = self.c, l.attn, S["B"], S["L"]
        H, hd, W, eps = c["num_attention_heads"], c["head_dim"], c["sliding_window"], c["rms_norm_eps"]
        n = L // W
        cos, sin = S["rope1" if l.ratio else "rope0"]
        qr = rms(a.wq_a(x), a.q_norm.weight, eps)
        q = rope(a.wq_b(qr).view(B, L, H, hd), cos, sin)
        kv = rope(rms(a.wkv(x), a.kv_norm.weight, eps).view(B, L, hd), cos, sin)
        if self.cacheq:
            kv = ste_fn(kv, fq8)
        # blocks of W queries see their own block and the one before
        kvp = F.pad(kv, (0, 0, W, 0)).view(B, n + 1, W, hd)
        keys = torch.cat((kvp[:, :-1], kvp[:, 1:]), 2)
        qb = q.view(B, n, W, H, hd).transpose(2, 3).reshape(B * n, 1, H * W, hd)
        sink = a.attn_sink.view(H, 1).expand(H, W).reshape(1, 1, H * W)
        if not l.ratio:
            o, _ = FlashSink.apply(qb, keys.reshape(B * n, 1, 2 * W, hd), S["wmask"], sink, hd ** -0.5)
        else:
            if l.kv_src:
                self.publish_entries(l, x, S)
            if l.ix_src:
                self.publish_selection(l, x, qr, S)
            o, lse = self.attend(qb.view(B, n, H * W, hd), keys, sink, l.ratio, S)
            if S["samp"] is not None:
                self.note_mass(q, lse, l.ratio, S)
            if self.points is not None and l.i == max(c["kv_source_layer_ids"]):
                self.point_loss = self.pointing(q, S["comp"], S["vis%d" % l.ratio], self.points)
            if self.points is not None and l.i == c["num_hidden_layers"] - 1:
                self.point_loss = self.point_loss + self.pointing(q, kv, S["window"], self.tellers)
        o = o.view(B, n, H, W, hd).transpose(2, 3).reshape(B, L, H, hd)
        o = rope(o, cos, sin, True)
        g = c["o_groups"]
        z = torch.bmm(o.reshape(B * L, g, -1).transpose(0, 1), a.wo_a.w().view(g, -1, H * hd // g).transpose(1, 2)).transpose(0, 1).reshape(B * L, -1)
        return a.wo_b(z)

    def publish_entries(self, l, x, S):
        """a KV source: compressed entries and index keys for itself and the layers after it"""
        cm, ix, B, L, r, eps = l.attn.compressor, l.attn.indexer, S["B"], S["L"], l.ratio, self.c["rms_norm_eps"]
        lat = cm.wkv(x)
        if r > 1:
            gate = cm.wgate(x).view(B, L // r, r, -1).softmax(2)
            lat = (lat.view(B, L // r, r, -1) * gate).sum(2)
        lat = rms(lat.view(B, L // r, -1), cm.norm.weight, eps)
        cos, sin = (t[:, ::r] for t in S["rope1"])  # rotated at the group's first position
        comp = rope(lat, cos, sin)
        S["comp"] = ste_fn(comp, lambda v: fq4(v, 16, True)) if self.cacheq else comp
        keys = rope(rms(ix.wk(lat.detach()), ix.k_norm.weight, eps), cos, sin)
        S["keys"] = ste_fn(keys, fq4) if self.cacheq else keys

    def index_query(self, l, x, qr, cos, sin):
        """x [.., d], qr [.., q_lora] -> index queries [.., nh, hd], head weights [.., nh]"""
        ix = l.attn.indexer
        z = rope(ix.wq_b(qr).unflatten(-1, (self.c["index_n_heads"], -1)), cos, sin)
        return (ste_fn(z, fq4) if self.cacheq else z), ix.weights_proj(x)

    def publish_selection(self, l, x, qr, S):
        """an index source: which entries it and the layers after it attend, as an additive mask, and on sampled queries the
        scores the indexer is trained by.  The indexer sees detached inputs: the trunk learns nothing from its loss."""
        B, L, r = S["B"], S["L"], l.ratio
        vis = S["vis%d" % r]
        G = vis.shape[-1]
        x, qr = x.detach().view(B, L, -1), qr.detach().view(B, L, -1)
        cos, sin = S["rope1"]
        if self.sparse and G > self.c["index_topk"]:
            S["blocks"] = self.mask_blocks(self.select(l, x, qr, S), r, S)
        else:  # every visible entry
            if "dense%d" % r not in S:
                S["dense%d" % r] = self.mask_blocks(torch.zeros(vis.shape).masked_fill_(~vis, -1e30), r, S)
            S["blocks"] = S["dense%d" % r]
        if S["samp"] is not None:
            b, t = S["samp"]
            z, w = self.index_query(l, x[b, t].unsqueeze(1), qr[b, t].unsqueeze(1), cos[b, t].unsqueeze(1), sin[b, t].unsqueeze(1))
            sc = self.index_scores(z.view(B, -1, *z.shape[2:]), S["keys"], w.view(B, -1, w.shape[-1]))
            term = [sc.masked_fill(~vis[b, t].view(B, -1, G), -1e30), []]
            S["index_loss"].append(term)
            S["learners"] = [term] + S.get("candidate_learner", [])
            if l.i == self.c["candidate_source_layer_id"]:
                S["candidate_learner"] = [term]

    @torch.no_grad()
    def select(self, l, x, qr, S, rows=512):
        """the real selection: top-k of the scores, inside the candidate blocks after the candidate source; [B, L, G] of 0 and -1e30"""
        c, B, L, r = self.c, S["B"], S["L"], l.ratio
        vis, newest, source, bs = S["vis%d" % r], S["newest%d" % r], c["candidate_source_layer_id"], c["candidate_block_size"]
        cos, sin = S["rope1"]
        mask = torch.full(vis.shape, -1e30)
        for b in range(B):
            z, w = self.index_query(l, x[b: b + 1], qr[b: b + 1], cos[b: b + 1], sin[b: b + 1])
            for t in range(0, L, rows):
                at = (b, slice(t, t + rows))
                sc = self.index_scores(z[:, t: t + rows], S["keys"][b: b + 1], w[:, t: t + rows])[0].masked_fill(~vis[at], -math.inf)
                if l.i == source:
                    best = F.pad(sc, (0, -sc.shape[-1] % bs), value=-math.inf).unflatten(-1, (-1, bs)).amax(-1)
                    best = best.masked_fill(torch.arange(best.shape[-1]) == newest[at].unsqueeze(-1) // bs, math.inf)
                    top = best.topk(min(c["candidate_topk_blocks"], best.shape[-1]), -1)
                    keep = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, top[1], top[0] > -math.inf)
                    S.setdefault("candidates", torch.zeros(vis.shape, dtype=torch.bool))[at] = keep.repeat_interleave(bs, -1)[:, : sc.shape[-1]]
                elif 0 <= source < l.i:
                    sc = sc.masked_fill(~S["candidates"][at], -math.inf)
                top = sc.topk(c["index_topk"], -1, sorted=False)
                mask[at].scatter_(-1, top[1], torch.where(top[0] > -math.inf, 0.0, -1e30))
        return mask

    def mask_blocks(self, mask, r, S):
        """mask [B, L, G] -> [(first block, end, entries, [B*blocks, 1, H*W, 2W + entries])], later queries with more entries"""
        B, L, W, H = S["B"], S["L"], self.c["sliding_window"], self.c["num_attention_heads"]
        n, G = L // W, mask.shape[-1]
        out, step, m4 = [], (n + 3) // 4, mask.view(B, n, W, G)
        for i in range(0, n, step):
            j = min(n, i + step)
            e = min(G, j * W // r)
            m = torch.cat((S["wm"][:, i:j], m4[:, i:j, :, :e]), -1).unsqueeze(2).expand(-1, -1, H, -1, -1)
            out.append((i, j, e, m.reshape(B * (j - i), 1, H * W, -1)))
        return out

    def attend(self, q, keys, sink, r, S):
        """q [B, n, H*W, hd] over window keys [B, n, 2W, hd] and selected entries -> o, log-sum-exp [B, L, H]"""
        B, W, H, hd = S["B"], self.c["sliding_window"], self.c["num_attention_heads"], q.shape[-1]
        outs, lses = [], []
        for i, j, e, m in S["blocks"]:
            K = torch.cat((keys[:, i:j], S["comp"][:, None, :e].expand(B, j - i, e, hd)), 2).reshape(B * (j - i), 1, -1, hd)
            o, lse = FlashSink.apply(q[:, i:j].reshape(B * (j - i), 1, H * W, hd), K, m, sink, hd ** -0.5)
            outs.append(o.view(B, j - i, H * W, hd))
            lses.append(lse.view(B, j - i, H, W))
        return torch.cat(outs, 1), torch.cat(lses, 1).transpose(2, 3).reshape(B, -1, H)

    @torch.no_grad()
    def note_mass(self, q, lse, r, S):
        """what the sampled queries would attend over all visible entries, mean of the heads: the target of the indexer that chooses
        for this layer, and of the one whose blocks it may choose from: what those leave out no later layer can see"""
        B, (b, t), H, hd = S["B"], S["samp"], q.shape[2], q.shape[3]
        lg = torch.matmul(q.detach()[b, t].view(B, -1, hd), S["comp"].detach().transpose(1, 2)) * hd ** -0.5
        p = torch.exp(lg.view(len(b), H, -1) - lse[b, t].unsqueeze(-1)).masked_fill(~S["vis%d" % r][b, t].unsqueeze(1), 0).mean(1)
        for term in S["learners"]:
            term[1].append(p.view(B, -1, p.shape[-1]))

    def pointing(self, q, k, vis, points):
        """points: (row, position, keys to look at): -log of the probability, by all heads together, that one of these is looked at"""
        b, t, to = points
        lg = torch.bmm(q[b, t], k[b].transpose(1, 2)) * q.shape[-1] ** -0.5
        p = lg.masked_fill(~vis[b, t].unsqueeze(1), -1e30).softmax(2).mean(1)
        return -torch.log(p.gather(1, to).sum(1) + 1e-9).mean()

    def setup(self, B, L, pos, seg):
        """state of one forward pass: rope tables, masks, and what sources publish.  pos, seg [B, L] long; documents start at even offsets"""
        W = self.c["sliding_window"]
        S = dict(B=B, L=L, index_loss=[], samp=None)
        for i, f in enumerate((self.f0, self.f1)):
            ang = pos.float().unsqueeze(-1) * f
            S[f"rope{i}"] = (ang.cos(), ang.sin())
        n = L // W
        segp = F.pad(seg, (W, 0), value=-7).view(B, n + 1, W)
        ks = torch.cat((segp[:, :-1], segp[:, 1:]), 2)            # [B, n, 2W]
        t = torch.arange(W).view(W, 1) + W
        j = torch.arange(2 * W).view(1, -1)
        ok = (j <= t) & (t - j < W) & (ks.unsqueeze(2) == seg.view(B, n, W, 1))
        S["wm"] = torch.zeros(ok.shape).masked_fill_(~ok, -1e30)  # [B, n, W, 2W]
        if self.points is not None:
            back = torch.arange(L).view(-1, 1) - torch.arange(L)
            S["window"] = (back >= 0) & (back < W) & (seg.unsqueeze(1) == seg.unsqueeze(2))
        H = self.c["num_attention_heads"]
        S["wmask"] = S["wm"].unsqueeze(2).expand(-1, -1, H, -1, -1).reshape(B * n, 1, H * W, 2 * W)
        for r in set(self.c["compress_ratios"]) - {0}:
            gpos = torch.arange(L // r) * r + r - 1
            v = (gpos.view(1, 1, -1) <= torch.arange(L).view(1, -1, 1)) & (seg[:, ::r].unsqueeze(1) == seg.unsqueeze(-1))
            S["vis%d" % r] = v
            S["newest%d" % r] = (torch.arange(L) + 1).view(1, -1).expand(B, -1) // r - 1
        return S

    def forward(self, ids, pos, seg, hashes, samp=None, features=None):
        """ids [B, L] -> final hidden states [B*L, d] (after norm).  samp: (rows, positions) of queries the indexer learns from;
        features: layers whose attention-site input (mean of the streams) is kept in self.features, for the drafting head"""
        c = self.c
        B, L = ids.shape
        S = self.setup(B, L, pos, seg)
        if samp is not None:
            S["samp"] = samp
        h = F.embedding(ids.flatten(), self.embed.weight).unsqueeze(1).expand(-1, c["hc_mult"], -1).contiguous()
        pre = torch.zeros(B * L, c["hc_mult"])
        pre[:, 0] = 1.0
        kept = []
        for l in self.layers:
            if l.engram is not None:
                h = self.engram_apply(l, h, hashes[c["engram_layer_ids"].index(l.i)])
            if features and l.i in features:
                kept.append(h.mean(1))
            pa, post, comb = self.hc(l, "attn", h)
            x = rms(Collapse.apply(h, pre), l.attn_norm.weight, c["rms_norm_eps"])
            if l.i == max(c["kv_source_layer_ids"]):
                self.last_source = x  # all that the layers from here on can find about a token
            self.last_input = x
            o = self.attention(l, x, S)
            h = Expand.apply(o, h, post, comb)
            pre, post, comb = self.hc(l, "ffn", h)
            o = self.moe(l, rms(Collapse.apply(h, pa), l.ffn_norm.weight, c["rms_norm_eps"]))
            h = Expand.apply(o, h, post, comb)
        self.index_terms = S["index_loss"]
        self.features = torch.cat(kept, -1) if kept else None
        return rms(Collapse.apply(h, pre), self.norm.weight, c["rms_norm_eps"])

    def index_loss(self):
        """KL of the indexer's distribution from the attention mass, for each source against the layers that use its choice;
        queries that look at entries hardly at all count little"""
        tot = 0.0
        for sc, ps in self.index_terms:
            p = torch.stack(ps).mean(0)
            mass = p.sum(-1)
            p = p / (mass.unsqueeze(-1) + 1e-9)
            ce = -(p * F.log_softmax(sc, -1)).sum(-1) + (p * (p + 1e-9).log()).sum(-1)
            wt = mass / (mass + 0.05)
            tot = tot + (ce * wt).sum() / (wt.sum() + 1e-6)
        return tot


def build(tok, cfg=None):
    cfg = dict(CFG if cfg is None else cfg)
    cfg["engram_num_embeddings"] = [sum(sum(r) for r in lay) for lay in primes_for(cfg)]
    hs = Hasher(cfg, tok)
    cfg["engram_compressed_vocab_size"] = hs.n
    return Nano(cfg), hs, cfg
