"""models/nano converted, against models/nano itself: what test_presets.py checks and nano_tables.py writes down."""
import json
import os
import shutil
import subprocess
import sys

NANO = "models/nano"
TEXT = open(f"{NANO}/eval/text.txt", "rb").read()


class Nano:
    def __init__(self, build):
        self.build = build

    def run(self, program, *args, **kw):
        got = subprocess.run([f"{self.build}/{program}", *args], capture_output=True, text=True, **kw)
        if got.returncode != 0:
            sys.exit(f"{program} {' '.join(args)}: {got.stderr}{got.stdout[-500:]}")
        return got

    def compare(self, d, text, *options):
        """converted so in the directory d: (bytes of the weights, results on the file text, what the conversion said)"""
        said = self.run("dsv4-quantize", *options, NANO, f"{d}/model").stderr
        size = sum(os.path.getsize(f"{d}/model/{f}") for f in os.listdir(f"{d}/model") if f.endswith(".safetensors"))
        j = json.loads(self.run("dsv4-eval", "-q", "--json", "--exact", "--cache-quant=off", f"--model={d}/model", f"--against={NANO}", text).stdout)
        shutil.rmtree(f"{d}/model")
        return size, j, said

    def preset_texts(self, d):
        """the text that presets are measured on, and the options of a calibrated conversion (from text after it)"""
        learn = part(d, "learn", 9000, 29000)
        self.run("dsv4-quantize", "-q", f"--calibrate={learn}", "--covariance", NANO, f"{d}/importance")
        return part(d, "test", 0, 9000), ("--effort=high", f"--importance={d}/importance")


def part(d, name, lo, hi):
    with open(f"{d}/{name}", "wb") as f:
        f.write(TEXT[lo:hi])
    return f"{d}/{name}"


def kl(x):
    return "0" if x == 0 else f"{x:.1e}"
