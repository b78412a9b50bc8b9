"""Autograd functions over kernels.cpp: hyper-connections, norms, rope, SwiGLU, engram gate.
Built once with the C++ compiler and ninja, into NANO_BUILD or torch's own cache."""
import os

import torch
from torch.utils.cpp_extension import load_inline

_ext = load_inline("nano_fused", open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernels.cpp")).read(),
                   functions=[k + d for k in ("sink", "col", "exp", "rms", "sg", "hm", "eg") for d in ("_fwd", "_bwd")] + ["rope_f", "ce_"],
                   extra_cflags=["-O3", "-march=native", "-ffast-math", "-funroll-loops", "-Wno-psabi"],
                   build_directory=os.environ.get("NANO_BUILD"), verbose=False)


class Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, iters, eps):
        ctx.save_for_backward(x)
        ctx.a = (iters, eps)
        return _ext.sink_fwd(x, iters, eps)

    @staticmethod
    def backward(ctx, g):
        return _ext.sink_bwd(ctx.saved_tensors[0], g.contiguous(), *ctx.a), None, None


class Collapse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, pre):
        ctx.save_for_backward(h, pre)
        return _ext.col_fwd(h, pre)

    @staticmethod
    def backward(ctx, g):
        return tuple(_ext.col_bwd(g.contiguous(), *ctx.saved_tensors))


class Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o, h, post, comb):
        ctx.save_for_backward(o, h, post, comb)
        return _ext.exp_fwd(o, h, post, comb)

    @staticmethod
    def backward(ctx, g):
        return tuple(_ext.exp_bwd(g.contiguous(), *ctx.saved_tensors))


class Rms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        x = x.contiguous()
        y, rs = _ext.rms_fwd(x, w, eps)
        ctx.save_for_backward(x, w, rs)
        return y

    @staticmethod
    def backward(ctx, g):
        gx, gw = _ext.rms_bwd(g.contiguous(), *ctx.saved_tensors)
        return gx, gw, None


class Rope(torch.autograd.Function):
    """x [N, H, c], cos/sin [N, r/2]"""
    @staticmethod
    def forward(ctx, x, cos, sin, inverse):
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.s = -1.0 if inverse else 1.0
        return _ext.rope_f(x.contiguous(), cos, sin, ctx.s)

    @staticmethod
    def backward(ctx, g):
        return _ext.rope_f(g.contiguous(), *ctx.saved_tensors, -ctx.s), None, None, None


class Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lim):
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.l = lim
        return _ext.sg_fwd(x, lim).view(*x.shape[:-1], x.shape[-1] // 2)

    @staticmethod
    def backward(ctx, g):
        return _ext.sg_bwd(g.contiguous(), ctx.saved_tensors[0], ctx.l), None


class HcMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, f, m, base, sc, eps, heps):
        pre, post, lg, rs = _ext.hm_fwd(f, m, base, sc, eps, heps)
        ctx.save_for_backward(f, m, sc, pre, post, rs)
        ctx.h = heps
        return pre, post, lg

    @staticmethod
    def backward(ctx, a, b, c):
        gf, gm, gb, gs = _ext.hm_bwd(a.contiguous(), b.contiguous(), c.contiguous(), *ctx.saved_tensors, ctx.h)
        return gf, gm, gb, gs, None, None


class EngramGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, kv, qk, eps):
        y, st = _ext.eg_fwd(h, kv, qk, eps)
        ctx.save_for_backward(h, kv, qk, st)
        return y

    @staticmethod
    def backward(ctx, g):
        return (*_ext.eg_bwd(g.contiguous(), *ctx.saved_tensors), None)


class CrossEntropy(torch.autograd.Function):
    """h [N, d], w [V, d] (V a multiple of 16), targets [N] -> losses [N], argmax [N]"""
    @staticmethod
    def forward(ctx, h, w, tgt):
        z = h @ w.t()
        best = z.argmax(-1)
        loss = _ext.ce_(z, tgt)
        ctx.save_for_backward(h, w, z)
        ctx.mark_non_differentiable(best)
        return loss, best

    @staticmethod
    def backward(ctx, g, _):
        h, w, z = ctx.saved_tensors
        z.mul_(g.unsqueeze(1))
        return z @ w, z.t() @ h, None
