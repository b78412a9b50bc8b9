"""The curve of a training run: exact answers by kind of document, and loss on answers, over tokens.

usage: plot.py OUT.svg LOG.jsonl [LOG.jsonl ...]     (logs of train.py in their order; overlapping parts of a log continued later are cut)"""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

KINDS = ["fact", "code", "repeat", "tool answer", "needle", "multi", "arith", "tool call", "lists", "files"]
TAUGHT = ["listed", "pointed", "named"]  # steps on the way to files
WINDOW = 8  # log rows averaged, weighted by their answers


def read(paths):
    rows = []
    for p in paths:
        new = [json.loads(x) for x in open(p)]
        if new:
            rows = [r for r in rows if r["tokens"] < new[0]["tokens"]] + new
    return rows


def smooth(rows, get):
    """[(tokens, weighted mean over the last WINDOW rows)] of get(row) = (weight, value) or None"""
    out = []
    for i, r in enumerate(rows):
        v = [x for x in (get(q) for q in rows[max(0, i - WINDOW + 1): i + 1]) if x]
        if v:
            out.append((r["tokens"] / 1e6, sum(a * b for a, b in v) / sum(a for a, _ in v)))
    return zip(*out) if out else ([], [])


def main(out, paths):
    rows = read(paths)
    plt.rcParams.update({"svg.hashsalt": "nano", "font.size": 9})
    fig, (a, b) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(2, 1))
    for k in KINDS:
        a.plot(*smooth(rows, lambda r: r["skill"][k][:2] if k in r["skill"] else None), label=k, lw=1.3)
    for k, color in zip(TAUGHT, ("black", "gray", "silver")):
        a.plot(*smooth(rows, lambda r: r["skill"][k][:2] if k in r["skill"] else None), label=k, lw=1.0, ls="--", color=color)
    a.set(ylabel="exact answers (teacher forced)", ylim=(0, 1))
    a.legend(ncol=3, fontsize=8)
    for L in ("256", "512", "1024", "2048"):
        b.plot(*smooth(rows, lambda r: (1, r["loss"][L]) if L in r["loss"] else None), label=f"rows of {L}", lw=1.2)
    b.set(xlabel="tokens (millions) since the log began", ylabel="loss on answers and text", yscale="log")
    b.legend(fontsize=8)
    for x in (a, b):
        x.grid(alpha=0.3)
        for flag, style in (("sparse", ":"), ("qat", "--")):
            at = [r["tokens"] / 1e6 for p, r in zip(rows, rows[1:]) if r[flag] and not p[flag]]
            for t in at:
                x.axvline(t, color="gray", ls=style, lw=0.8)
    fig.tight_layout()
    fig.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
