"""blocks.bin: random blocks of every type and what the package `gguf` (PyPI) decodes them to.
A record: u32 type, u32 columns, u32 bytes, the block, the floats."""
import struct, sys
import numpy as np, gguf

rng = np.random.default_rng(6)
HALVES = {"Q4_0": [0], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "MXFP4": [], "IQ2_XXS": [0]}
with open(sys.argv[1], "wb") as f:
    for name, halves in HALVES.items():
        t = gguf.GGMLQuantizationType[name]
        cols, size = gguf.GGML_QUANT_SIZES[t]
        for _ in range(4):
            b = rng.integers(0, 256, size, dtype=np.uint8)
            for at in halves:
                b[at:at + 2] = np.frombuffer(np.float16(rng.normal() * 0.1).tobytes(), np.uint8)
            if name == "MXFP4":
                b[0] = rng.integers(110, 130)
            y = gguf.quants.dequantize(b.reshape(1, -1), t).astype(np.float32).ravel()
            f.write(struct.pack("<III", t.value, cols, size) + b.tobytes() + y.tobytes())
