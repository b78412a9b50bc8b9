"""A made-up V4 model: its table of embeddings has the first type, its matrices the others in turn, random blocks all.
made.py FILE TABLE TYPE..."""
import json, sys
import numpy as np, gguf
from model import metadata, finish

# Where the f16 scales of a block are, and values that make weights of about 0.1 at most.
SCALES = {"F32": {}, "F16": {}, "BF16": {}, "MXFP4": {}, "Q8_0": {0: 1e-3}, "Q4_0": {0: 1.5e-2},
          "Q2_K": {80: 2e-3, 82: 5e-3}, "Q3_K": {108: 8e-4}, "Q4_K": {0: 1e-4, 2: 1.5e-3},
          "Q5_K": {0: 5e-5, 2: 1.5e-3}, "Q6_K": {208: 2.5e-5}, "IQ2_XXS": {0: 6e-4}}
CONFIG = dict(hidden_size=256, moe_intermediate_size=256, q_lora_rank=256, head_dim=128, o_lora_rank=128, num_hidden_layers=3,
              qk_rope_head_dim=64, index_head_dim=128, num_nextn_predict_layers=0)
rng = np.random.default_rng(4)


def blocks(kind, shape):
    t = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16", "BF16"):
        x = rng.normal(size=shape).astype(np.float32) * np.float32(0.05)
        return x if kind == "F32" else gguf.quants.quantize(x, t)
    cols, size = gguf.GGML_QUANT_SIZES[t]
    b = rng.integers(0, 256, (*shape[:-1], shape[-1] // cols, size), dtype=np.uint8)
    for at, d in SCALES[kind].items():
        b[..., at:at + 2] = np.frombuffer(np.float16(d).tobytes(), np.uint8)
    if kind == "MXFP4":
        b[..., 0] = rng.integers(119, 122, b.shape[:-1])
    return b.reshape(*shape[:-1], -1)


def main(path, table, *kinds):
    cfg = json.load(open("tests/golden/v4-tiny/config.json")) | CONFIG
    d, H, c, q = cfg["hidden_size"], cfg["num_attention_heads"], cfg["head_dim"], cfg["q_lora_rank"]
    o, g, ff, E = cfg["o_lora_rank"], cfg["o_groups"], cfg["moe_intermediate_size"], cfg["n_routed_experts"]
    hc, ih, ic = cfg["hc_mult"], cfg["index_n_heads"], cfg["index_head_dim"]
    w, turn = gguf.GGUFWriter(path, "deepseek4"), 0
    metadata(w, cfg, json.load(open("tests/golden/v4-tiny/tokenizer.json")))

    def matrix(name, *shape):
        nonlocal turn
        kind = kinds[turn % len(kinds)]
        turn += 1
        w.add_tensor(name + ".weight", blocks(kind, shape), raw_dtype=gguf.GGMLQuantizationType[kind])

    def vector(name, *shape, mean=0.0):
        w.add_tensor(name, (mean + 0.1 * rng.normal(size=shape)).astype(np.float32))

    def site(name, rows):
        vector(name + "_fn.weight", rows, hc * d)
        vector(name + "_base.weight", rows)
        vector(name + "_scale.weight", 1 if rows == hc else 3, mean=1.0)

    def compressor(name, ratio, width):
        coff = 2 if ratio == 4 else 1
        matrix(name + "_kv", coff * width, d)
        matrix(name + "_gate", coff * width, d)
        vector(name + "_ape.weight", ratio, coff * width)
        vector(name + "_norm.weight", width, mean=1.0)

    w.add_tensor("token_embd.weight", blocks(table, (cfg["vocab_size"], d)), raw_dtype=gguf.GGMLQuantizationType[table])
    matrix("output", cfg["vocab_size"], d)
    vector("output_norm.weight", d, mean=1.0)
    site("output_hc", hc)
    for layer in range(cfg["num_hidden_layers"]):
        b, ratio = f"blk.{layer}.", cfg["compress_ratios"][layer]
        for name, n in (("attn_norm", d), ("ffn_norm", d), ("attn_q_a_norm", q), ("attn_kv_a_norm", c)):
            vector(b + name + ".weight", n, mean=1.0)
        vector(b + "attn_sinks.weight", H)
        for name, rows, cols in (("attn_q_a", q, d), ("attn_q_b", H * c, q), ("attn_kv", c, d),
                                 ("attn_output_a", g * o, H * c // g), ("attn_output_b", d, g * o), ("ffn_gate_inp", E, d),
                                 ("ffn_gate_shexp", ff, d), ("ffn_down_shexp", d, ff), ("ffn_up_shexp", ff, d)):
            matrix(b + name, rows, cols)
        for name, rows, cols in (("gate", ff, d), ("down", d, ff), ("up", ff, d)):
            matrix(f"{b}ffn_{name}_exps", E, rows, cols)
        if ratio:
            compressor(b + "attn_compressor", ratio, c)
        if ratio == 4:
            compressor(b + "indexer_compressor", ratio, ic)
            matrix(b + "indexer.attn_q_b", ih * ic, q)
            matrix(b + "indexer.proj", ih, d)
        if layer < cfg["num_hash_layers"]:
            ids = [rng.choice(E, cfg["num_experts_per_tok"], replace=False) for _ in range(cfg["vocab_size"])]
            w.add_tensor(b + "ffn_gate_tid2eid.weight", np.stack(ids).astype(np.int32))
        else:
            vector(b + "exp_probs_b.bias", E)
        site(b + "hc_attn", (2 + hc) * hc)
        site(b + "hc_ffn", (2 + hc) * hc)
    finish(w)


main(*sys.argv[1:])
