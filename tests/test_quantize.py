"""What a converted directory holds, read without dsv4: test_quantize.py SOURCE CONVERTED [TOLERANCE]

Decodes every matrix of both directories with the few lines of Packed below and compares them; all other
tensors have to be equal byte for byte. Prints the number of matrices. Standard library only."""
import glob, json, os, struct, sys

SIZE = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}
E2M1 = [0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6]
E4M3 = [(1 - c // 128 * 2) * ((c & 7) * 2**-9 if c & 120 == 0 else (8 + (c & 7)) * 2.0**((c >> 3 & 15) - 10))
        for c in range(256)]


def tensors(folder):
    out = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        data = open(path, "rb").read()
        n = struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(data[8:8 + n]).items():
            if name != "__metadata__":
                a, b = t["data_offsets"]
                out[name] = (t["dtype"], t["shape"], data[8 + n + a:8 + n + b])
    return out


def floats(dtype, raw):
    if dtype == "BF16":
        return [x for x, in struct.iter_unpack("<f", b"".join(b"\0\0" + raw[i:i + 2] for i in range(0, len(raw), 2)))]
    return [x for x, in struct.iter_unpack({"F32": "<f", "F16": "<e"}[dtype], raw)]


# ---- the reader: row r of a packed matrix as floats (docs/quantization.md)
def packed_row(codes, scales, kind, r, block, table):
    panel, bytes_ = codes[1][0], codes[1][1]
    p = codes[2][r // 16 * bytes_:][:bytes_]
    row = b"".join(p[u * 64 + r % 16 * 4:][:4] for u in range(bytes_ // 64))
    n = {"bf16": 1, "e4m3": 2, "q8": 2}.get(kind, 4) * len(row) // 2
    if kind == "bf16":
        return floats("BF16", row)
    at = (lambda g: r // 16 * -(-n // block) + g * 32 // block) if kind == "e4m3" else (lambda g: (r // 16 * (n // 32) + g) * 16 + r % 16)
    scale = [struct.unpack_from("<e", scales[2], at(g) * 2)[0] if scales[0] == "F16" else 2.0**(scales[2][at(g)] - 127) for g in range(n // 32)]
    order = [0, 2, 4, 6, 1, 3, 5, 7] # q8: eight columns lie like this
    value = {"e4m3": lambda c: E4M3[row[c]], "q8": lambda c: struct.unpack_from("<b", row, c // 8 * 8 + order.index(c % 8))[0]}.get(
        kind, lambda c: table[row[c // 2] >> c % 2 * 4 & 15])
    return [scale[c // 32] * value(c) for c in range(n)]


def plain_row(codes, scales, r, block):
    dtype, (rows, width), raw = codes
    row = raw[r * width * SIZE[dtype]:][:width * SIZE[dtype]]
    if dtype in ("BF16", "F32", "F16"):
        return floats(dtype, row)
    if dtype == "F8_E4M3":
        at = r // block * scales[1][1]
        return [E4M3[row[c]] * 2.0**(scales[2][at + c // block] - 127) for c in range(width)]
    return [E2M1[row[c // 2] >> c % 2 * 4 & 15] * 2.0**(scales[2][r * scales[1][1] + c // 32] - 127) for c in range(2 * width)]


def star(name):
    return ".".join("*" if i > 0 and part.isdigit() and name.split(".")[i - 1] == "experts" else part
                    for i, part in enumerate(name.split(".")))


def main():
    source, made = tensors(sys.argv[1]), tensors(sys.argv[2])
    most = float(sys.argv[3]) if len(sys.argv) > 3 else 0
    q = json.load(open(os.path.join(sys.argv[2], "config.json")))["quantization_config"]
    block, count = q["weight_block_size"][0], 0
    assert source.keys() <= made.keys(), source.keys() - made.keys()
    for name in made.keys() - source.keys():  # scales of what had none
        assert name.endswith(".scale") and name[:-6] + ".weight" in made, name
    for name in sorted(source):
        base = name.rsplit(".", 1)[0]
        kind = q["types"].get(base) or q["types"].get(star(base))
        if not kind or name.endswith(".bias"):
            assert source[name] == made[name], name
            continue
        if not name.endswith(".weight"):
            continue
        count += 1
        scale = base + ".scale"
        table = E2M1 if kind == "e2m1" else q["tables"].get(kind)
        rows = source[name][1][0]
        assert made[name][1][0] == -(-rows // 16), name
        for r in {0, rows // 2, rows - 1}:
            a = plain_row(source[name], source.get(scale), r, block)
            b = packed_row(made[name], made.get(scale), kind, r, block, table)
            off = sum((x - y)**2 for x, y in zip(a, b))**.5
            size = sum(x * x for x in a)**.5
            assert len(a) == len(b) and off <= most * size, (name, kind, r, off, size)
    print(count)


main()
