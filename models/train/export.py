"""Write a training checkpoint in the official V4.1 layout: fp8 e4m3 for dense weights (32 x 32 tiles) and engram rows, fp4 for routed
experts (32 columns a scale), bf16 and float32 for the rest; and read such a directory back into the training model.

usage: export.py CKPT.pt OUT_DIR [DRAFT.pt]     (OUT_DIR already holds tokenizer.json and tokenizer_config.json)
       export.py --back MODEL_DIR CKPT.pt       (to train on from shipped weights; what the optimizer knew is lost)"""
import json
import os
import sys

import torch
from safetensors.torch import save_file, load_file

from model import e2m1, pow2_ceil, build

def e8m0(s):
    """powers of two -> their e8m0 codes"""
    e = torch.log2(s).round().to(torch.int32)
    return (e + 127).clamp(0, 254).to(torch.uint8).view(torch.float8_e8m0fnu)


def fp8_block(w, b=32):
    """one scale a b x b tile"""
    o, i = w.shape
    y = w.view(o // b, b, i // b, b)
    s = pow2_ceil(y.abs().amax((1, 3), keepdim=True).clamp_min(1e-12) * (1.0 / 448.0))
    return (y / s).clamp(-448, 448).view(o, i).to(torch.float8_e4m3fn), e8m0(s.view(o // b, i // b))


def fp8_rows(w, b=32):
    """one scale per b columns of each row"""
    y = w.unflatten(-1, (-1, b))
    s = pow2_ceil(y.abs().amax(-1, keepdim=True).clamp_min(1e-4) * (1.0 / 448.0))
    return (y / s).clamp(-448, 448).flatten(-2).to(torch.float8_e4m3fn), e8m0(s.squeeze(-1))


LUT = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def fp4(w, b=32):
    """e2m1, two a byte (low nibble first), one scale per b columns"""
    y = w.unflatten(-1, (-1, b))
    s = pow2_ceil(y.abs().amax(-1, keepdim=True).clamp_min(6.0 * 2.0 ** -126) * (1.0 / 6.0))
    v = e2m1(y / s).flatten(-2)
    code = torch.bucketize(v.abs(), LUT).to(torch.uint8) | (torch.signbit(v).to(torch.uint8) << 3)
    return (code[:, 0::2] | (code[:, 1::2] << 4)).view(torch.int8), e8m0(s.squeeze(-1))


def tensors(sd, cfg):
    """training names and float weights -> official names and stored tensors"""
    out, ff = {}, cfg["moe_intermediate_size"]

    def q8(n, w):
        out[n + ".weight"], out[n + ".scale"] = fp8_block(w.float())

    for n, w in sd.items():
        w = w.detach().float()
        if n.endswith("ffn.w13") or n.endswith("ffn.w2"):
            base = n.rsplit(".", 1)[0]
            for e in range(w.shape[0]):
                for k, x in ((("w1", w[e, :ff]), ("w3", w[e, ff:])) if n.endswith("w13") else (("w2", w[e]),)):
                    out[f"{base}.experts.{e}.{k}.weight"], out[f"{base}.experts.{e}.{k}.scale"] = fp4(x.contiguous())
        elif ".hc_" in n or n.endswith("attn_sink") or n.endswith("gate.bias"):
            out[n] = w.clone()
            if n.endswith("gate.bias"):
                out[n + "_vl"] = w.clone()
        elif n.endswith("engram.embed.weight"):
            out[n], out[n[:-6] + "scale"] = fp8_rows(w)
        elif w.dim() == 2 and n.endswith(".weight") and not any(x in n for x in ("gate.weight", "wgate", "compressor.wkv", "weights_proj", "markov_head", "confidence_head")) and n not in ("embed.weight", "head.weight"):
            q8(n[: -len(".weight")], w)
        else:
            out[n] = w.bfloat16()
    return {k: v.contiguous() for k, v in out.items()}


def dequant(path):
    """exported file -> {training name: float32}"""
    raw, out = load_file(path), {}
    ex = {}
    for n, t in raw.items():
        if n.endswith(".scale") and n[:-5] + "weight" in raw:
            continue
        s = raw.get(n[:-6] + "scale") if n.endswith(".weight") else None
        if s is not None:
            s = torch.exp2(s.view(torch.uint8).float() - 127)
        if s is None:
            t = t.float()
        elif t.dtype == torch.int8:
            u = t.view(torch.uint8)
            c = torch.stack((u & 15, u >> 4), -1).flatten(1).long()
            t = torch.where(c > 7, -LUT[c & 7], LUT[c & 7]) * s.repeat_interleave(32, 1)
        elif "engram.embed" in n:
            t = t.float() * s.repeat_interleave(32, 1)
        else:
            t = t.float() * s.repeat_interleave(32, 0).repeat_interleave(32, 1)
        if ".experts." in n and "shared" not in n:
            b, r = n.split(".experts.")
            e, k, _ = r.split(".")
            ex.setdefault(b, {})[(int(e), k)] = t
        elif not n.endswith("bias_vl"):
            out[n] = t
    for b, d in ex.items():
        E = max(e for e, _ in d) + 1
        out[b + ".w13"] = torch.stack([torch.cat((d[e, "w1"], d[e, "w3"])) for e in range(E)])
        out[b + ".w2"] = torch.stack([d[e, "w2"] for e in range(E)])
    return out


def load_dir(path, ck=None, bf16=False):
    """model with the shipped weights (or, with ck, the unquantized training weights, optionally rounded to bf16)"""
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
    m, hs, cfg = build(tok)
    if ck:
        sd = torch.load(ck)["model"]
        if bf16:
            sd = {k: v.bfloat16().float() for k, v in sd.items()}
    else:
        sd = {k: v for k, v in dequant(os.path.join(path, "model.safetensors")).items() if not k.startswith("mtp.")}
    m.load_state_dict(sd)
    m.requires_grad_(False)
    m.qat, m.sparse = False, True
    m.prepare()
    return m, hs, tok, cfg


def main():
    if sys.argv[1] == "--back":
        m, _, _, cfg = load_dir(sys.argv[2])
        return torch.save(dict(model=m.state_dict(), cfg=cfg, tokens=0), sys.argv[3])
    ck, out = sys.argv[1:3]
    c = torch.load(ck)
    t = tensors(c["model"], c["cfg"])
    if len(sys.argv) > 3:  # a drafting head
        d = torch.load(sys.argv[3])
        t.update(tensors({k.replace("layers.", "mtp.", 1): v for k, v in d["model"].items()}, c["cfg"]))
        c["cfg"] = dict(c["cfg"], **d["spark"])
    save_file(t, os.path.join(out, "model.safetensors.tmp"), metadata={"format": "pt"})
    os.replace(os.path.join(out, "model.safetensors.tmp"), os.path.join(out, "model.safetensors"))
    text = dict(model_type="deepseek_v41_text", **c["cfg"], dtype="bfloat16")
    text["engram_pad_token_id"] = text.pop("engram_pad_id")
    cfg = {"architectures": ["DeepseekV41ForCausalLM"], "model_type": "deepseek_v41", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "dtype": "bfloat16",
           "tie_word_embeddings": False, "image_token_id": 4095,
           "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [32, 32], "scale_fmt": "ue8m0", "expert_dtype": "fp4"},
           "text_config": text, "transformers_version": "5.14.0"}
    json.dump(cfg, open(os.path.join(out, "config.json"), "w"), indent=1)
    json.dump({"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": True, "temperature": 1.0, "top_p": 1.0},
              open(os.path.join(out, "generation_config.json"), "w"), indent=1)
    n = sum(v.numel() * (2 if v.dtype == torch.int8 else 1) for k, v in t.items() if not k.endswith(".scale"))
    print("tensors", len(t), "weights", n, "bytes", os.path.getsize(os.path.join(out, "model.safetensors")), "tokens trained", c["tokens"])


if __name__ == "__main__":
    main()
