#!/usr/bin/env python3
"""The table of presets in README.md against what the programs say. usage: test_presets.py BUILD [update]"""
import json
import os
import re
import sys
import tempfile

from nano_compare import Nano, kl

nano = Nano(sys.argv[1])
PRESETS = ["lossless", "quality", "balanced", "small", "tiny"]
MODELS = ["v4-flash", "v4-pro", "v4.1-flash"]
HEAD = ["| preset | V4-Flash | V4-Pro | V4.1-Flash | KL on nano | calibrated, `--effort high` |", "|---|---|---|---|---|---|"]


def sizes(preset):
    for model in MODELS:
        j = json.loads(nano.run("dsv4-quantize", "--dry-run", "--json", "--threads=16", f"--as={model}", f"--preset={preset}").stdout)
        yield f"{j['bytes'] * 1e-9:.1f} / {j['bytes_needed_in_memory'] * 1e-9:.1f}"


def lines(measured):
    with tempfile.TemporaryDirectory() as d:
        text, calibrated = nano.preset_texts(d)
        for preset in PRESETS:
            if preset not in measured:
                yield f"| `{preset}` | {' | '.join(sizes(preset))} |"
                continue
            means = [nano.compare(d, text, f"--preset={preset}", *options)[1]["kl"]["mean"] for options in ((), calibrated)]
            yield f"| `{preset}` | {' | '.join(sizes(preset))} | {' | '.join(map(kl, means))} |"


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
