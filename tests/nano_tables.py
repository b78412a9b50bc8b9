#!/usr/bin/env python3
"""The tables of docs/quantization.md and README.md that were measured on models/nano, measured again and put in their places; and on standard output
what its sentences, docs/evaluation.md and src/convert/sensitivity.c quote. For new weights of models/nano. `make nano-tables`, some ten minutes.

usage: nano_tables.py BUILD [prune] [presets] [bits] [types] [costs] [evaluation]"""
import json
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile

from nano_compare import NANO, TEXT, Nano, kl, part

BUILD, DOC, README = sys.argv[1], "docs/quantization.md", "README.md"
nano = Nano(BUILD)
run, compare = nano.run, nano.compare
KINDS = ["head", "attn.wq_a", "attn.wq_b", "attn.wkv", "attn.wo_a", "attn.wo_b", "ffn.experts.*.w1", "ffn.experts.*.w3", "ffn.experts.*.w2",
         "ffn.shared_experts.w1", "ffn.shared_experts.w3", "ffn.shared_experts.w2", "engram.wkv"]


def mb(x):
    return f"{x * 1e-6:.2f} MB"


def same(j):
    return "100 %" if j["same_top"] == 1 else f"{100 * j['same_top']:.1f} %"


def replace_table(head, rows):
    """the rows under the table head that begins like this"""
    doc = open(DOC).read()
    m = re.search(rf"^{re.escape(head)}.*\n\|[-|]+\n((?:\|.*\n)+)", doc, re.M)
    if not m:
        sys.exit(f"{DOC}: no table that begins with {head}")
    with open(DOC, "w") as f:
        f.write(doc[:m.start(1)] + "".join(r + "\n" for r in rows) + doc[m.end(1):])
    print("\n".join(rows), flush=True)


def shuffled(src, dst, seed):
    """an importance file by which other experts seem to have given most"""
    raw = bytearray(open(src, "rb").read())
    n = struct.unpack("<Q", raw[:8])[0]
    r = random.Random(seed)
    for name, t in json.loads(raw[8:8 + n]).items():
        if name.endswith(".norm"):
            lo, hi = (8 + n + x for x in t["data_offsets"])
            v = [raw[i:i + 4] for i in range(lo, hi, 4)]
            r.shuffle(v)
            raw[lo:hi] = b"".join(v)
    open(dst, "wb").write(raw)


def prune(d):
    text, learn, rows = part(d, "test", 0, 10000), part(d, "learn", 10000, len(TEXT)), []
    run("dsv4-quantize", "-q", f"--calibrate={learn}", NANO, f"{d}/importance")
    for keep in (16, 12, 8):
        size, j, said = compare(d, text, f"--prune-experts={keep}", f"--importance={d}/importance") if keep < 16 else compare(d, text)
        chance = [0]
        for seed in range(3 if keep < 16 else 0):
            shuffled(f"{d}/importance", f"{d}/random", seed)
            chance.append(compare(d, text, f"--prune-experts={keep}", f"--importance={d}/random")[1]["kl"]["mean"])
        norms = re.search(r"gave ([\d.]+) %.*, ([\d.]+) % in layer", said)
        rows.append(f"| {keep}{f' ({100 * keep // 16} %)' if keep < 16 else ''} | {mb(size)} | {f'{norms[1]} %, {norms[2]} %' if norms else '100 %'} | "
                    f"{j['kl']['mean']:.2g} | {same(j)} | {j['perplexity']:.3f} | {sum(chance) / max(1, len(chance) - 1):.2g} |")
    replace_table("| experts that stay |", rows)


def presets(d):
    text, calibrated = nano.preset_texts(d)
    doc, readme, rows = open(DOC).read(), open(README).read(), []
    for name in ("lossless", "quality", "balanced", "small", "tiny"):
        types = re.search(rf"^\| `{name}` \| ([^|]*) \|", doc, re.M)[1]
        a = compare(d, text, f"--preset={name}")[1]
        b = compare(d, text, f"--preset={name}", *calibrated)[1]
        rows.append(f"| `{name}` | {types} | {a['perplexity']:.4f} | {same(a)} | {b['perplexity']:.4f} | {same(b)} |")
        readme, n = re.subn(rf"^(\| `{name}` \|(?: [^|]* \|){{3}}).*$", rf"\1 {kl(a['kl']['mean'])} | {kl(b['kl']['mean'])} |", readme, flags=re.M)
        if n != 1:
            sys.exit(f"{README}: {n} rows of the preset {name}")
    replace_table("| preset | experts, dense, head |", rows)
    with open(README, "w") as f:
        f.write(readme)


def sensitivities(d, text, name, *options):
    run("dsv4-quantize", "-q", *options, f"--sensitivity={text}", NANO, f"{d}/{name}")
    return json.load(open(f"{d}/{name}"))["matrices"]


def bits(d):
    text, learn = part(d, "test", 0, 9000), part(d, "learn", 9000, 29000)
    sensitivities(d, part(d, "other", 29000, 34000), "measured")
    run("dsv4-quantize", "-q", f"--calibrate={learn}", NANO, f"{d}/importance")
    rows = []
    for b, t in (("3.5", "q3"), ("4.5", "q4nl")):
        one = f"--experts {t} --dense {t} --head {t}"
        for label, options in ((f"`{one}`", one.split()), (f"`--bits {b}`, shipped sensitivities", ["--bits", b]),
                               (f"`--bits {b}`, measured", ["--bits", b, f"--sensitivities={d}/measured"]),
                               (f"`--bits {b} --dynamic`, measured", ["--bits", b, "--dynamic", f"--sensitivities={d}/measured"])):
            size, j, _ = compare(d, text, *options, f"--importance={d}/importance")
            rows.append(f"| {label} | {mb(size)} | {kl(j['kl']['mean'])} | {same(j)} | {j['perplexity']:.4f} |")
    replace_table("| | bytes | KL |", rows)


def ranks(x):
    order = sorted(range(len(x)), key=lambda i: x[i])
    out = [0] * len(x)
    for k, i in enumerate(order):
        out[i] = k
    return out


def correlation(a, b):
    return statistics.correlation(ranks(a), ranks(b))


def costs(d):
    """sensitivities by kind, for sensitivity.c, and what docs/quantization.md tells of them"""
    text, short = part(d, "test", 0, 9000), part(d, "short", 0, 2600)
    full = sensitivities(d, text, "full")
    for k in KINDS:
        of = [x["sensitivity"] for x in full if x["matrix"].removesuffix(".weight").endswith(k)]
        print(f'    {{"{k}", {sum(of):.2g}}},  # {len(of)} matrices')
    tokens = json.load(open(f"{d}/full"))["tokens"]
    print(f"{tokens} tokens: {len(full)} matrices in q3 one by one {sum(x['kl'] for x in full):.4f}, least and most", min((x["kl"], x["matrix"]) for x in full), max((x["kl"], x["matrix"]) for x in full))
    all_at_once = compare(d, text, "--experts=q3", "--dense=q3", "--head=q3")[1]
    print(f"all at once {all_at_once['kl']['mean']:.4f}")
    q3, q2 = sensitivities(d, short, "q3"), sensitivities(d, short, "q2", "--type=q2")
    s = lambda m, key="sensitivity": [x[key] for x in m]
    print(f"{json.load(open(f'{d}/q3'))['tokens']} tokens: rank correlation {correlation(s(full), s(q3)):.2f}, sum {sum(s(q3, 'kl')):.4f}")
    ratio = sorted(b / a for a, b in zip(s(q3), s(q2)) if a > 0)
    quarter = statistics.quantiles(ratio, n=4)
    print(f"q2: sensitivities times {quarter[1]:.2f} (quartiles {quarter[0]:.2f}, {quarter[2]:.2f}), rank correlation {correlation(s(q3), s(q2)):.2f}, "
          f"E {sum(s(q2, 'error')) / sum(s(q3, 'error')):.1f} times, KL {sum(s(q2, 'kl')) / sum(s(q3, 'kl')):.1f} times")
    fp4 = compare(d, text, "--engram=fp4")[1]
    print(f"--engram fp4: KL {kl(fp4['kl']['mean'])}, same token {same(fp4)}, perplexity {fp4['perplexity']:.4f} for {fp4['reference_perplexity']:.4f}")


def types(d):
    env = dict(os.environ, QUALITY_TABLE="1", QUALITY_FLOAT_CACHE="1", CK_FORK="no")
    line = re.compile(r"^ +(\w+) +(.+?) +(all|smooth|experts) mean KL (\S+), .*same token (\S+) %, perplexity (\S+) \((\S+)\)", re.M)
    of = {(m[1], m[3], m[2].strip()): m for m in line.finditer(run("tests/check_quality", env=env).stdout)}
    ways = ["largest magnitude", "search", "calibrated", "error feedback"]
    for share, head in (("experts", "| routed experts | `fast` |"), ("smooth", "| experts, attention, head, Engram projections |")):
        rows = []
        for t in ("q8", "q4", "q4nl", "q3", "q2"):
            last = of[t, share, ways[-1]]
            rows.append(f"| `{t}` | {' | '.join(kl(float(of[t, share, w][4])) for w in ways)} | {last[5]} % | {last[6]} |")
        replace_table(head, rows)
    print("perplexity of the original", last[7])


def evaluation(d):
    """what docs/evaluation.md and docs/performance.md tell of nano's activations, caches, needles and kept logits"""
    text = f"{NANO}/eval/text.txt"
    ev = lambda *a: json.loads(run("dsv4-eval", *a[:a[0] in ("needle", "choice")], "-q", "--json", *a[a[0] in ("needle", "choice"):]).stdout)
    a = ev("--against-exact", text)
    print("as it comes, exact:", a["perplexity"], a["reference_perplexity"], a["kl"], a["same_top"])
    for exact in ([], ["--exact"]):
        print("cache-quant off", exact, ev("--cache-quant=off", *exact, text)["perplexity"])
    subprocess.run([sys.executable, "tests/test_eval.py", "--questions", f"{d}/q.jsonl"], check=True)
    print(run("dsv4-eval", "choice", "--against-exact", f"{d}/q.jsonl").stdout)
    print(run("dsv4-eval", "needle", "--lengths=64,96,128,192,256,512", "--seeds=8", "--against-exact").stdout)
    print(run("dsv4-eval", "needle", "--lengths=512,1024,2048,4096", "--seeds=4").stdout)
    rows = []
    for top in (8, 32, 128, 256):
        run("dsv4-eval", "-q", "--exact", f"--save-logits={d}/logits", f"--top={top}", text)
        k = ev(f"--reference={d}/logits", text)["kl"]
        rows.append((top, os.path.getsize(f"{d}/logits"), k))
        os.remove(f"{d}/logits")
    for r in rows:
        print(*r)


def main():
    for name in sys.argv[2:] or ["prune", "presets", "bits", "types", "costs", "evaluation"]:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as d:
            globals()[name](d)


if __name__ == "__main__":
    main()
