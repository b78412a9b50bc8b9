#!/usr/bin/env python3
"""What the kernels reach of what they are meant to, as shares measured in one run: a slice of V4-Flash on made-up
weights, by dsv4-bench. Repetitions are interleaved; each figure is the median, its range behind it. Six minutes
on two cores; and what fast activations cost the embedded model. With SLICE, an official directory of some gigabytes
(nothing here writes one): loading it, and starting on it converted, which lies beside it for a while.
usage: tests/bench_targets.py [BUILD [SLICE]]"""
import ctypes
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time

BUILD = sys.argv[1] if len(sys.argv) > 1 else "build/release"
BENCH = [BUILD + "/dsv4-bench"]
EVAL = [BUILD + "/dsv4-eval", "--against-exact", "-m", "models/nano", "--json", "--quiet", "models/nano/eval/text.txt"]
SLICE = ["--as", "v4-flash", "--layers", "0-3", "--vocab", "16384", "--reps", "3", "--quiet", "--json"]
DECODE = SLICE + ["--held", "32", "--decode", "16", "--prefill", ""]
# What is neither a large matrix nor attention.
SMALL = ["embedding", "mHC attention", "mHC experts", "router"]


def result(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def bench(*args):
    return result([*BENCH, *args])


def line(what, got, target, unit="%", scale=100, most=False):
    """got: min, median and max; most: the target is an upper bound."""
    low, middle, high = (got[k] * scale for k in ("min", "median", "max"))
    meets = middle <= target if most else middle >= target
    span = f"({low:.1f} .. {high:.1f})" if low < high else ""
    print(f"{what:46} {middle:7.1f} {unit:3} {span:20} {'<=' if most else '>='} {target:g}"
          f"{'' if meets else '   missed'}", flush=True)


def of(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def one(value):
    return of([value])


def case(run, kind, rows, depth=0):
    return next(c for c in run["measured"] if (c["kind"], c["rows"], c["depth"]) == (kind, rows, depth))


def barriers_of_layers():
    """of a pair of layers, each of one kind: embedding and head have some, too"""
    few, many = (n * case(bench("--as", "v4-flash", "--layers", f"0-{n - 1}", "--experts", "16", "--vocab", "4096", "--reps", "1", "--quiet",
                                "--json", "--decode", "4", "--depth", "0", "--prefill", ""), "decode", 1)["barriers_per_layer"] for n in (4, 6))
    return (many - few) / 2


def decoding():
    run = bench(*DECODE, "--depth", "0")
    print(f"{run['kernels']}, {run['threads']} threads; median of {run['repetitions']} (least .. most)   target")
    step = case(run, "decode", 1)
    line("decode, official formats: of read bandwidth", step["share_of_read"], 90)
    total = sum(step["operators"].values())
    line("  mHC, norms, routing, embedding: of a step",
         one(sum(step["operators"][k] for k in SMALL) / total), 4, most=True)
    line("  barriers a layer", one(barriers_of_layers()), 12, unit="", scale=1, most=True)
    if run["roofs"]["barrier_seconds"]:
        line("  a barrier", run["roofs"]["barrier_seconds"], 1, unit="us", scale=1e6, most=True)
    for what, target, args in (("decode, exact activations: of read bandwidth", 75, ["--exact"]),
                               ("decode, 4-bit dense: of read bandwidth", 85, ["--dense-format", "q4"])):
        line(what, case(bench(*DECODE, "--depth", "0", *args), "decode", 1)["share_of_read"], target)


def crowded():
    base, many = (case(bench(*DECODE, "--depth", "0", *t), "decode", 1)["seconds_per_step"]
                  for t in ([], ["--threads", "16"]))
    line("decode, 16 threads: time beside one a core",
         {"min": many["min"] / base["max"], "median": many["median"] / base["median"],
          "max": many["max"] / base["min"]}, 2, unit="", scale=1, most=True)


def prompts():
    for experts in (48, 256):
        run = bench(*SLICE, "--experts", str(experts), "--held", str(min(experts, 64)), "--decode", "0",
                    "--depth", "0", "--prefill", "512,2048", "--reps", "2")
        # AVX2 has no instruction that multiplies and adds bytes in one go: a higher share is within reach.
        target = 60 if run["kernels"] == "avx2" else 45
        for rows in (512, 2048):
            share = case(run, "prefill", rows)["share_of_int8"]
            if share:
                line(f"prefill {rows}, {experts} experts: of int8 peak", share, target)


def depth():
    run = bench(*DECODE, "--depth", "4096,1000000", "--decode", "8")
    near, far = case(run, "decode", 1, 4096), case(run, "decode", 1, 1000000)
    a, b = near["seconds_per_step"], far["seconds_per_step"]
    line("decode at 1,000,000: time beside 4,096",
         {"min": b["min"] / a["max"], "median": b["median"] / a["median"], "max": b["max"] / a["min"]}, 1.25,
         unit="", scale=1, most=True)
    peak = run["roofs"]["int8_multiply_adds_per_second"]
    if peak:
        # One of the four layers has an index: 64 heads of 128 over a key every four tokens.
        adds = 64 * 128 * 1000000 / 4
        line("  indexer and its top-k: of int8 peak", one(adds / far["operators"]["index"] / peak["median"]), 70)


def divergence():
    for caches, options in (("", []), (", caches in f32", ["--cache-quant=off"])):
        run = result(EVAL + options)
        line(f"fast against exact{caches}: the same token", one(run["same_top"]), 99.5)
        line("  mean divergence", one(run["kl"]["mean"]), 100, unit="e-6", scale=1e6, most=True)


def copy_speed(size=1 << 30):
    """bytes a second copied into fresh memory, as a process gets it, by two threads"""
    source, target = mmap.mmap(-1, size), mmap.mmap(-1, size)
    a, b = (ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in (source, target))
    ctypes.memset(a, 1, size)
    half = [threading.Thread(target=ctypes.memmove, args=(b + i * size // 2, a + i * size // 2, size // 2)) for i in (0, 1)]
    begin = time.monotonic()
    for t in half:
        t.start()
    for t in half:
        t.join()
    return size / (time.monotonic() - begin)


def start(model):
    """seconds to the end of the first token, and the bytes resident at most"""
    begin = time.monotonic()
    child = subprocess.Popen([BUILD + "/dsv4", "run", "-q", "-n", "1", "--ctx", "4096", "-m", model, "hi"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(1)
    return time.monotonic() - begin, usage.ru_maxrss * 1024


def loading(directory):
    size = sum(e.stat().st_size for e in os.scandir(directory) if e.name.endswith(".safetensors"))
    speed, resident = [], []
    start(directory)  # into the system's cache
    for _ in range(5):
        copy = copy_speed()
        seconds, most = start(directory)
        speed.append(size / seconds / copy)
        resident.append(most / size)
    line(f"loading {size * 1e-9:.2f} GB with a token: of a copy's speed", of(speed), 60)
    line("  resident at most, beside the weights", of(resident), 105, most=True)
    converted = directory.rstrip("/") + ".bench"
    subprocess.run([BUILD + "/dsv4-quantize", "-q", directory, converted], check=True)
    try:
        line("  converted: start with a token", of([start(converted)[0] for _ in range(5)]), 1, unit="s", scale=1, most=True)
    finally:
        shutil.rmtree(converted)


decoding()
crowded()
prompts()
depth()
divergence()
if len(sys.argv) > 2:
    loading(sys.argv[2])
