"""What a file that dsv4-quantize wrote holds, read with the package `gguf` (PyPI), against what model.py says it should:
tensors of the same names and shapes, the same numbers (to a relative error), all keys.
compare.py WRITTEN EXPECTED [ERROR [TYPE_OF_EXPERTS TYPE_OF_SHARED_EXPERTS]]   prints how many tensors have which type"""
import collections, sys
import numpy as np, gguf

written, expected = (gguf.GGUFReader(path) for path in sys.argv[1:3])
most = float(sys.argv[3]) if len(sys.argv) > 3 else 0
experts, shared = sys.argv[4:6] if len(sys.argv) > 4 else ("MXFP4", "BF16")

for key, field in expected.fields.items():
    if key.startswith("GGUF.") or key == "deepseek4.nextn_predict_layers":
        continue
    want, have = field.contents(), written.fields[key].contents()
    if key == "deepseek4.attention.compress_ratios":  # config.json has one for the drafting layer, too
        want = want[:len(have)]
    assert have == want, (key, have, want)
    assert key == "tokenizer.ggml.tokens" or written.fields[key].types == field.types, key
n = len(written.fields["tokenizer.ggml.tokens"].contents())
assert n == len(written.fields["tokenizer.ggml.token_type"].contents()) == written.fields["deepseek4.vocab_size"].contents()
for key, value in {"general.alignment": 32, "general.quantization_version": 2, "deepseek4.attention.head_count_kv": 1}.items():
    assert written.fields[key].contents() == value, key

have, want = ({t.name: t for t in r.tensors} for r in (written, expected))
assert have.keys() == want.keys(), have.keys() ^ want.keys()
types, end = collections.Counter(), 0
for name, t in have.items():
    e = want[name]
    assert t.shape.tolist() == e.shape.tolist(), name
    assert t.data_offset % 32 == 0 and t.data_offset >= end, name
    end = t.data_offset + t.n_bytes
    types[t.tensor_type.name] += 1
    if "_exps." in name or "_shexp." in name:
        assert t.tensor_type.name == (experts if "_exps." in name else shared), name
    if len(t.shape) == 1:
        assert t.tensor_type.name == "F32", name
    if e.tensor_type.name == "I32":
        assert t.tensor_type.name == "I32" and (t.data == e.data).all(), name
        continue
    x, y = (gguf.quants.dequantize(s.data, s.tensor_type).astype(np.float64).ravel() for s in (t, e))
    error = np.sqrt(((x - y) ** 2).sum() / (y ** 2).sum()) if y.any() else np.abs(x).max()
    assert error <= (most if "_exps." in name or "_shexp." in name else 0), (name, error)
print(", ".join(f"{types[t]} {t}" for t in sorted(types)))
