#!/usr/bin/env python3
"""Tiny checkpoints of shapes that no release has but config.json may ask for, with the logits of the
reference in ../golden/generate.py (float64). They hold what random tests of the model found worth
keeping: see the remark of each case.

    python tests/golden-edge/make.py            # all, beside this file; needs torch, safetensors, tokenizers
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "golden"))
import generate as G  # noqa: E402


class Writer(G.Writer):
    """fp4 packs 32 columns to a scale: matrices of other widths become BF16. So do large F32 ones, to be small."""

    def f32(self, name, x):
        super().f32(name, x) if x.numel() < 300 else self.bf16(name, x)

    def fp4(self, name, x, group=32):
        super().fp4(name, x, group) if x.shape[1] % group == 0 else self.bf16(name, x)


def ffn_weights(w, p, c, E, hashed=False, id_dtype=torch.int64, vl=False, k=None):
    """As in generate.py, with shared experts of any number and tokens that name an expert twice."""
    d, ff = c["d"], c["ff"]
    w.bf16(p + "gate.weight", w.randn(E, d) * 1.5 * d**-0.5)
    if hashed:
        w.put(p + "gate.tid2eid", (w.rand(c["vocab"], c["k"]) * E).to(id_dtype))
    else:
        w.f32(p + "gate.bias", 0.3 * w.randn(E))
    parts = [(f"{p}experts.{e}.", ff, w.fp4) for e in range(E)]
    for q, width, put in parts + [(p + "shared_experts.", ff * w.n_shared, w.fp8)]:
        put(q + "w1.weight", w.randn(width, d) * 1.2 * d**-0.5)
        put(q + "w3.weight", w.randn(width, d) * 1.2 * d**-0.5)
        put(q + "w2.weight", w.randn(d, width) * 1.5 * width**-0.5)


class Ref(G.Ref):
    """A KV source that selects nothing has no index keys; the reference computes them, unused."""

    def __init__(self, cfg, weights, *a, **k):
        super().__init__(cfg, weights, *a, **k)
        for layer in self.c.get("kv_src", []):
            p = f"layers.{layer}.attn.indexer."
            self.W.setdefault(p + "wk.weight", torch.zeros(self.c["ic"], self.c["c"], dtype=self.dt))
            self.W.setdefault(p + "k_norm.weight", torch.ones(self.c["ic"], dtype=self.dt))


V4 = dict(vocab_size=40, hidden_size=32, num_hidden_layers=3, num_hash_layers=1, num_attention_heads=2, head_dim=80,
          qk_rope_head_dim=16, q_lora_rank=16, o_lora_rank=8, moe_intermediate_size=32, num_nextn_predict_layers=0,
          sliding_window=5, n_routed_experts=3)
V41 = dict(vocab_size=40, hidden_size=32, num_attention_heads=2, head_dim=32, qk_rope_head_dim=8, q_lora_rank=16,
           o_lora_rank=8, moe_intermediate_size=32, n_routed_experts=3, num_experts_per_tok=2, num_nextn_predict_layers=0,
           dspark_block_size=0, dspark_target_layer_ids=[], sliding_window=5, engram_layer_ids=[],
           rms_norm_eps=1e-6, index_n_heads=8)

CASES = {  # name -> (remark, family, config, tokens, quantizers, seed, scale tile)
    "v4-window": ("no compressed layer and no index numbers at all; everything that can be 1 is 1; odd widths; only rope channels", "v4",
                  dict(hidden_size=33, hc_mult=1, num_hidden_layers=2, num_hash_layers=1, num_attention_heads=3, head_dim=16,
                       o_groups=3, q_lora_rank=7, o_lora_rank=5, n_routed_experts=1, num_experts_per_tok=1, n_shared_experts=3,
                       moe_intermediate_size=9, sliding_window=1, compress_ratios=[0, 0], scoring_func="softmax", swiglu_limit=0.0,
                       hc_sinkhorn_iters=1), 40, False, 1, 7),
    "v4-odd": ("three streams, one index entry chosen, groups of 128 closing at the last token, tiles of 7", "v4",
               dict(hc_mult=3, compress_ratios=[128, 4, 4], head_dim=72, qk_rope_head_dim=8, index_topk=1, index_n_heads=16,
                    index_head_dim=32, o_groups=1, scoring_func="sigmoid", num_experts_per_tok=3), 128, False, 2, 7),
    "v4-wide": ("head_dim above 1024, more chosen entries than there are; caches quantized", "v4",
                dict(hidden_size=8, num_hidden_layers=1, num_hash_layers=0, compress_ratios=[4], head_dim=1088, qk_rope_head_dim=64, q_lora_rank=8,
                     num_attention_heads=1, o_groups=1, index_head_dim=64, index_n_heads=3, index_topk=1000), 30, True, 3, 128),
    "v41-keyless": ("a KV source that selects nothing, so it has no index keys; one stream; every expert chosen", "v41",
                    dict(hc_mult=1, num_hidden_layers=5, compress_ratios=[1, 1, 1, 2, 2], kv_source_layer_ids=[0, 2, 3],
                         index_source_layer_ids=[0, 1, 3], candidate_source_layer_id=-1, index_topk=4, index_head_dim=96, index_n_heads=10,
                         num_experts_per_tok=3, norm_topk_prob=False, gate_temp=0.5), 40, False, 4, 32),
    "v41-blocks": ("index sources before the candidate source; one candidate block of 7, so later rows choose among at most 7", "v41",
                   dict(num_hidden_layers=6, compress_ratios=[1, 1, 0, 1, 1, 1], kv_source_layer_ids=[0, 3], hc_mult=2,
                        index_source_layer_ids=[0, 1, 3, 4, 5], candidate_source_layer_id=3, candidate_topk_blocks=1,
                        candidate_block_size=7, index_topk=3, sliding_window=1), 50, False, 5, 32),
    "v41-hc16": ("sixteen streams, blocks larger than the context, caches quantized", "v41",
                 dict(hc_mult=16, num_hidden_layers=2, compress_ratios=[2, 2], kv_source_layer_ids=[0],
                      index_source_layer_ids=[0, 1], candidate_source_layer_id=0, candidate_topk_blocks=1000,
                      candidate_block_size=1000, index_topk=5, hidden_size=3, moe_intermediate_size=16), 40, True, 6, 32),
    "v41-engram": ("memory in layer 0, one stream, one head an n-gram, n-grams longer than the first tokens", "v41",
                   dict(vocab_size=272, hc_mult=1, num_hidden_layers=2, compress_ratios=[0, 2], kv_source_layer_ids=[1],
                        index_source_layer_ids=[1], candidate_source_layer_id=-1, index_topk=5, engram_layer_ids=[0, 1],
                        engram_vocab_size=2, engram_max_ngram_size=6, engram_n_heads=1, engram_pad_token_id=57, hidden_size=16, moe_intermediate_size=16), 24, False, 7, 32),
}


def write_model(path, cfg, seed):
    t = cfg.get("text_config", cfg)
    token_map = None
    if t.get("engram_layer_ids"):
        tok = os.path.join(path, "tokenizer.json")
        G.make_tokenizer(t["vocab_size"], tok)
        token_map, t["engram_compressed_vocab_size"] = G.engram_token_map(tok)
        primes = G.engram_primes(len(t["engram_layer_ids"]), t["engram_max_ngram_size"], t["engram_n_heads"], t["engram_vocab_size"])
        t["engram_num_embeddings"] = [sum(map(sum, layer)) for layer in primes]
    Writer.n_shared = t["n_shared_experts"]
    tensors = (G.make_v41 if cfg["model_type"] == "deepseek_v41" else G.make_v4)(cfg, seed)
    if not any(t["compress_ratios"]):
        for key in ("index_n_heads", "index_head_dim", "index_topk"):
            del t[key]
    json.dump(cfg, open(os.path.join(path, "config.json"), "w"), indent=1)
    save_file(tensors, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    return token_map


def build(name, root):
    remark, family, over, n, quant, seed, tile = CASES[name]
    path = os.path.join(root, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    cfg = G.v4_config(**{**V4, **over}) if family == "v4" else G.v41_config(**{**V41, **over})
    cfg["quantization_config"]["weight_block_size"] = [tile, tile]
    full = json.loads(json.dumps(cfg))
    token_map = write_model(path, cfg, seed)
    for key, value in full.get("text_config", full).items():  # the reference wants every number
        cfg.get("text_config", cfg).setdefault(key, value)
    ids = G.make_prompt(over.get("vocab_size", 40), n, seed)
    run = lambda dtype: (lambda r: (r, r.forward(ids)))(Ref(cfg, G.load_checkpoint(path), quant, dtype, token_map))
    ref, logits = run(torch.float64)
    s32 = G.spread(run(torch.float32)[1], logits)
    r = lambda v: float(f"{v:.1g}")
    tolerance = {"logits_abs": r(max(1e-3, 20 * s32["max"]))}
    if quant:
        tolerance = {"logits_row_max_median": r(max(0.01, 4 * s32["median_of_row_max"])), "logits_mean": r(max(0.004, 4 * s32["mean"]))}
    info = {"remark": remark, "family": family, "prompt_tokens": n, "quantizers": {"window_kv": quant},
            "smallest_selection_gaps": {k: min(v) for k, v in ref.margin.items() if v},
            "spread_float32_vs_float64": s32, "tolerance": tolerance}
    save_file({"input_ids": torch.tensor(ids), "logits": logits.float().contiguous()}, os.path.join(path, "expect.safetensors"))
    json.dump(info, open(os.path.join(path, "expect.json"), "w"), indent=1)
    print(name, json.dumps({k: info[k] for k in ("smallest_selection_gaps", "spread_float32_vs_float64", "tolerance")}))


if __name__ == "__main__":
    G.Writer, G.ffn_weights = Writer, ffn_weights
    for case in sys.argv[1:] or CASES:
        build(case, HERE)
