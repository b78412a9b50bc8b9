#!/usr/bin/env python3
"""The table of presets in README.md against what the programs say. usage: test_presets.py BUILD [update]"""
import json
import os
import re
import subprocess
import sys
import tempfile

BUILD = sys.argv[1]
PRESETS = ["lossless", "quality", "balanced", "small", "tiny"]
MODELS = ["v4-flash", "v4-pro", "v4.1-flash"]
NANO, TEST, LEARN = "models/nano", 9000, 20000  # bytes of the text: what is measured on, what follows for calibration
HEAD = ["| preset | V4-Flash | V4-Pro | V4.1-Flash | KL on nano | calibrated, `--effort high` |", "|---|---|---|---|---|---|"]


def run(program, *args):
    got = subprocess.run([f"{BUILD}/{program}", *args], capture_output=True, text=True)
    assert got.returncode == 0, (program, args, got.stderr)
    return got.stdout


def sizes(preset):
    for model in MODELS:
        j = json.loads(run("dsv4-quantize", "--dry-run", "--json", "--threads=16", f"--as={model}", f"--preset={preset}"))
        yield f"{j['bytes'] * 1e-9:.1f} / {j['bytes_needed_in_memory'] * 1e-9:.1f}"


def divergence(d, *options):
    run("dsv4-quantize", "-q", *options, NANO, f"{d}/model")
    j = json.loads(run("dsv4-eval", "-q", "--json", "--exact", "--cache-quant=off", f"--model={d}/model", f"--against={NANO}", f"{d}/test"))
    subprocess.run(["rm", "-r", f"{d}/model"], check=True)
    return j["kl"]["mean"]


def kl_text(x):
    return "0" if x == 0 else f"{x:.1e}"


def lines(measured):
    with tempfile.TemporaryDirectory() as d:
        text = open(f"{NANO}/eval/text.txt", "rb").read()
        open(f"{d}/test", "wb").write(text[:TEST])
        open(f"{d}/learn", "wb").write(text[TEST:TEST + LEARN])
        run("dsv4-quantize", "-q", f"--calibrate={d}/learn", "--covariance", NANO, f"{d}/importance")
        for preset in PRESETS:
            if preset not in measured:
                yield f"| `{preset}` | {' | '.join(sizes(preset))} |"
                continue
            kl = [divergence(d, f"--preset={preset}"),
                  divergence(d, f"--preset={preset}", "--effort=high", f"--importance={d}/importance")]
            yield f"| `{preset}` | {' | '.join(sizes(preset))} | {' | '.join(map(kl_text, kl))} |"


def agree(told, found):
    """Sizes to the digit; divergences within a quarter: sums of floats differ a little from one CPU to the next."""
    a, b = told.split("|")[1:-1], found.split("|")[1:-1]
    if len(a) != 6 or a[:4] != b[:4]:
        return False
    return all(abs(float(x) - float(y)) <= 0.25 * float(y) for x, y in zip(a[4:], b[4:]))


def main():
    readme = open("README.md").read()
    at = readme.index(HEAD[0])
    told = re.match(r"(\|.*\n)+", readme[at:]).group(0)
    update = sys.argv[2:] == ["update"]
    found = list(lines(PRESETS if update or os.environ.get("CHECK_LONG") else ["tiny"]))
    if update:
        open("README.md", "w").write(readme.replace(told, "\n".join(HEAD + found) + "\n"))
        return 0
    rows = told.splitlines()[2:]
    bad = [(a, b) for a, b in zip(rows, found) if not agree(a, b)]
    for a, b in bad:
        print(f"FAILED: README.md says\n    {a}\n    and this is\n    {b}")
    if len(rows) != len(found):
        print(f"FAILED: {len(rows)} presets in README.md, {len(found)} there are")
    failed = len(bad) + (len(rows) != len(found))
    print(f"{len(found) - len(bad)} passed, {failed} failed")
    return failed > 0


sys.exit(main())
