"""A golden V4 directory as a GGUF file, written with the package `gguf` (PyPI) without any loss: fp4 experts as MXFP4,
matrices of fp8 and BF16 as BF16, everything else as F32; names and keys as llama.cpp's converter has them.
model.py DIR FILE [TENSORS_A_PART [drafts]]

drafts: with (empty) tensors of a drafting layer, which block_count then counts."""
import json, re, struct, sys
import numpy as np, gguf

BF16 = gguf.GGMLQuantizationType.BF16
TOP = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight",
       "hc_head_fn": "output_hc_fn.weight", "hc_head_base": "output_hc_base.weight", "hc_head_scale": "output_hc_scale.weight"}
LAYER = {"attn.wq_a.weight": "attn_q_a.weight", "attn.wq_b.weight": "attn_q_b.weight", "attn.wkv.weight": "attn_kv.weight",
         "attn.wo_a.weight": "attn_output_a.weight", "attn.wo_b.weight": "attn_output_b.weight", "attn.q_norm.weight": "attn_q_a_norm.weight",
         "attn.kv_norm.weight": "attn_kv_a_norm.weight", "attn.attn_sink": "attn_sinks.weight", "attn_norm.weight": "attn_norm.weight",
         "ffn_norm.weight": "ffn_norm.weight", "attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
         "attn.indexer.weights_proj.weight": "indexer.proj.weight", "ffn.gate.weight": "ffn_gate_inp.weight",
         "ffn.gate.bias": "exp_probs_b.bias", "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
         "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight", "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
         "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight"}
for a in ("attn", "ffn"):
    for b in ("fn", "base", "scale"):
        LAYER[f"hc_{a}_{b}"] = f"hc_{a}_{b}.weight"
for a, b in (("attn.compressor.", "attn_compressor_"), ("attn.indexer.compressor.", "indexer_compressor_")):
    for x, y in (("wkv.weight", "kv.weight"), ("wgate.weight", "gate.weight"), ("ape", "ape.weight"), ("norm.weight", "norm.weight")):
        LAYER[a + x] = b + y

def metadata(w, cfg, tok, drafts=False):
    k = "deepseek4."
    for key, name in {"embedding_length": "hidden_size", "attention.head_count": "num_attention_heads", "attention.key_length": "head_dim",
                      "attention.q_lora_rank": "q_lora_rank", "attention.output_lora_rank": "o_lora_rank",
                      "attention.output_group_count": "o_groups", "rope.dimension_count": "qk_rope_head_dim",
                      "attention.sliding_window": "sliding_window", "context_length": "max_position_embeddings",
                      "attention.indexer.head_count": "index_n_heads", "attention.indexer.key_length": "index_head_dim",
                      "attention.indexer.top_k": "index_topk", "hyper_connection.count": "hc_mult",
                      "hyper_connection.sinkhorn_iterations": "hc_sinkhorn_iters", "expert_count": "n_routed_experts",
                      "expert_used_count": "num_experts_per_tok", "expert_shared_count": "n_shared_experts",
                      "expert_feed_forward_length": "moe_intermediate_size", "hash_layer_count": "num_hash_layers"}.items():
        w.add_uint32(k + key, cfg[name])
    for key, name in {"rope.freq_base": "rope_theta", "attention.compress_rope_freq_base": "compress_rope_theta",
                      "attention.layer_norm_rms_epsilon": "rms_norm_eps", "hyper_connection.epsilon": "hc_eps",
                      "expert_weights_scale": "routed_scaling_factor"}.items():
        w.add_float32(k + key, cfg[name])
    layers = cfg["num_hidden_layers"]
    w.add_uint32(k + "block_count", layers + drafts)
    w.add_uint32(k + "nextn_predict_layers", cfg["num_nextn_predict_layers"])
    w.add_uint32(k + "expert_gating_func", 4)
    w.add_bool(k + "expert_weights_norm", cfg["norm_topk_prob"])
    w.add_array(k + "swiglu_clamp_exp", [float(cfg["swiglu_limit"])] * layers)
    w.add_array(k + "attention.compress_ratios", cfg["compress_ratios"])
    s = cfg["rope_scaling"]
    w.add_string(k + "rope.scaling.type", "yarn")
    w.add_float32(k + "rope.scaling.factor", s["factor"])
    w.add_uint32(k + "rope.scaling.original_context_length", s["original_max_position_embeddings"])
    w.add_float32(k + "rope.scaling.yarn_beta_fast", s["beta_fast"])
    w.add_float32(k + "rope.scaling.yarn_beta_slow", s["beta_slow"])
    added = {t["id"]: t for t in tok["added_tokens"]}
    words = {i: t for t, i in tok["model"]["vocab"].items()}
    size = max(list(words) + list(added)) + 1
    w.add_chat_template("{{ a template }}")
    w.add_float32("general.sampling.temp", 0.5)
    w.add_string("tokenizer.ggml.model", "gpt2")
    w.add_string("tokenizer.ggml.pre", "joyai-llm")
    w.add_array("tokenizer.ggml.tokens", [added[i]["content"] if i in added else words[i] for i in range(size)])
    w.add_array("tokenizer.ggml.token_type", [(3 if added[i]["special"] else 4) if i in added else 1 for i in range(size)])
    w.add_array("tokenizer.ggml.merges", [m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]] or ["a b"])
    w.add_uint32("tokenizer.ggml.bos_token_id", cfg["bos_token_id"])
    w.add_uint32("tokenizer.ggml.eos_token_id", cfg["eos_token_id"])
    w.add_uint32(k + "vocab_size", cfg["vocab_size"])

def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

def e8m0(b):
    return np.exp2(b.astype(np.float32) - 127)

E4M3 = np.array([(-1.0) ** (c >> 7) * ((c & 7) / 8 * 2.0 ** -6 if c >> 3 & 15 == 0 else (1 + (c & 7) / 8) * 2.0 ** ((c >> 3 & 15) - 7))
                 for c in range(256)], np.float32)

def main(src, dst, part=0, drafts=False):
    cfg = json.load(open(src + "/config.json"))
    raw = open(src + "/model.safetensors", "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8:8 + n])
    head.pop("__metadata__", None)

    def data(name):
        a, b = head[name]["data_offsets"]
        return np.frombuffer(raw, np.uint8, b - a, 8 + n + a), head[name]["dtype"], head[name]["shape"]

    def plain(name):
        b, t, shape = data(name)
        if t == "F32": return b.view(np.float32).reshape(shape)
        if t == "BF16": return (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if t == "I64": return b.view(np.int64).astype(np.int32).reshape(shape)
        assert t == "F8_E4M3", (name, t)
        s = e8m0(data(name[:-6] + "scale")[0]).reshape(data(name[:-6] + "scale")[2])
        s = np.repeat(np.repeat(s, 128, 0), 128, 1)[:shape[0], :shape[1]]
        return E4M3[b].reshape(shape) * s

    def add(name, stored):
        x = plain(name)
        if x.ndim == 2 and head[name]["dtype"] != "F32" and x.dtype == np.float32:
            w.add_tensor(stored, gguf.quants.quantize(x, BF16), raw_dtype=BF16)
        else:
            w.add_tensor(stored, x)

    def mxfp4(name):
        b, t, shape = data(name)
        assert t in ("I8", "U8")
        s = data(name[:-6] + "scale")[0].reshape(shape[0], -1, 1)
        q = np.stack([b & 15, b >> 4], -1).reshape(shape[0], -1, 32)
        return np.concatenate([s, q[..., :16] | q[..., 16:] << 4], -1).reshape(shape[0], -1).astype(np.uint8)

    w = gguf.GGUFWriter(dst, "deepseek4", split_max_tensors=int(part))
    metadata(w, cfg, json.load(open(src + "/tokenizer.json")), bool(drafts))
    if drafts:
        for name in ("attn_norm", "nextn.eh_proj", "nextn.enorm"):
            w.add_tensor(f"blk.{cfg['num_hidden_layers']}.{name}.weight", np.zeros(4, np.float32))
    for name in head:
        m = re.match(r"layers\.(\d+)\.(.+)", name)
        if name.startswith("mtp.") or name.endswith(".scale"): continue
        if not m: add(name, TOP[name]); continue
        e = re.match(r"ffn\.experts\.(\d+)\.(w[123])\.weight", m[2])
        if not e: add(name, f"blk.{m[1]}.{LAYER[m[2]]}"); continue
        if e[1] != "0": continue
        kind = {"w1": "gate", "w2": "down", "w3": "up"}[e[2]]
        fused = np.stack([mxfp4(f"layers.{m[1]}.ffn.experts.{i}.{e[2]}.weight") for i in range(cfg["n_routed_experts"])])
        w.add_tensor(f"blk.{m[1]}.ffn_{kind}_exps.weight", fused, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
    finish(w)


if __name__ == "__main__":
    main(*sys.argv[1:])
