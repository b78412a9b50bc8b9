#!/bin/sh
# The program dsv4-bench on the shapes of small models: what it prints, writes, compares and refuses.
# usage: BUILD=build/release tests/test_bench.sh (from the top of the tree)
set -u
B=$(pwd)/${BUILD:-build/release}/dsv4-bench
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
export DSV4_THREADS=2
[ -x "$B" ] || { echo "no program $B"; exit 1; }

. tests/program.sh

# bench CODE ARGS...: on the embedded model's config; what it said is in $T/out and $T/err
bench() {
    code=$1
    shift
    run "$code" "$B" --as models/nano/config.json "$@"
}
silent() {
    if [ -s "$T/$1" ]; then fail "std$1 is not empty"; else pass; fi
}

few="--reps 2 --decode 4 --depth 0,200 --prefill 24,40"

# a sheet
# shellcheck disable=SC2086 # options
bench 0 $few --check-prediction --layers 3 --svg "$T/a.svg"
silent err
says out '^slice +layers 0-2 of 8; 16 experts, weights of 16'
says out '^machine +read [0-9.]+ GB/s'
says out '^decode +1 +200 '
says out '^prefill +40 +0 '
says out '^experts up '
says out '^barriers a layer +1[0-9]'
says out '^ +a barrier [0-9.]+ ns '
says out '^whole model 8 layers'
says out '^prediction for layers 0-[5-7]'
if command -v python3 >/dev/null && python3 - "$T/a.svg" <<'END' >"$T/out" 2>"$T/err"; then pass; else fail "the drawing"; fi
import sys, xml.dom.minidom as m
d = m.parse(sys.argv[1])
assert len(d.getElementsByTagName("circle")) == 6, "a point for each measurement"
assert len(d.getElementsByTagName("polyline")) == 3, "decode and two prefills"
END

# JSON: figures that hold together
# shellcheck disable=SC2086
bench 0 $few --json --experts-format q4 --dense-format q8
silent err
cp "$T/out" "$T/a.json"
if python3 - "$T/a.json" <<'END' >"$T/out" 2>"$T/err"; then pass; else fail "figures of --json"; fi
import json, sys
r = json.load(open(sys.argv[1]))
assert len(r["measured"]) == 6 and r["threads"] == 2 and r["repetitions"] == 2
assert r["slice"]["experts_format"] == "q4" and r["slice"]["dense_format"] == "q8"
assert 0 < r["roofs"]["barrier_seconds"]["min"] < 1
roof = r["roofs"]["read_bytes_per_second"]
assert 0 < roof["min"] <= roof["median"] <= roof["max"]
for c in r["measured"]:
    t, s = c["tokens_per_second"], c["seconds_per_step"]
    assert 0 < t["min"] <= t["median"] <= t["max"]
    near = lambda a, b: abs(a / b - 1) < 1e-4
    assert near(t["max"], c["rows"] / s["min"]) and near(t["min"], c["rows"] / s["max"])
    assert 8 <= c["barriers_per_layer"] <= 16
    ops = sum(c["operators"].values())
    assert s["min"] * 0.999 <= ops <= s["max"] * 1.001, (ops, s)
    if c["kind"] == "decode":
        assert near(c["bytes_per_second"]["max"], c["bytes"] / s["min"]) and c["rows"] == 1
    else:
        assert near(c["multiply_adds_per_second"]["max"], c["multiply_adds"] / s["min"])
    whole = len(r["slice"]["layers"]) == r["whole_model"]["layers"]
    assert not c["whole_has_unmeasured_kinds"]
    assert c["whole_tokens_per_second"] < t["max"] * 1.05 or whole
deep = {c["depth"]: c["bytes"] for c in r["measured"] if c["kind"] == "decode"}
assert deep[200] > deep[0], "a cache is read"
END
# the whole model is a slice of itself: what is predicted is what was measured
bench 0 --reps 1 --decode 8 --depth 50 --prefill 20 --layers 8 --json
cp "$T/out" "$T/b.json"
if python3 - "$T/b.json" <<'END' >"$T/out" 2>"$T/err"; then pass; else fail "prediction of itself"; fi
import json, sys
for c in json.load(open(sys.argv[1]))["measured"]:
    a, b = c["whole_tokens_per_second"], c["tokens_per_second"]["median"]
    assert abs(a / b - 1) < 1e-6, (a, b)
END

# lines, and a comparison
# fewer bits are fewer bytes to read
bench 0 --reps 1 --decode 2 --depth 0 --prefill "" --json --experts-format q2 --dense-format q3
silent err
if python3 - "$T/a.json" "$T/out" <<'END' >"$T/said" 2>"$T/err"; then pass; else fail "q2 and q3 beside q4 and q8"; fi
import json, sys
a, b = [json.load(open(f)) for f in sys.argv[1:]]
assert b["slice"]["experts_format"] == "q2" and b["slice"]["dense_format"] == "q3"
of = lambda r: next(c["bytes"] for c in r["measured"] if c["kind"] == "decode" and c["depth"] == 0)
assert 0 < of(b) < of(a)
END

# shellcheck disable=SC2086
bench 0 $few --csv
says out '^kind,rows,depth,'
if [ "$(wc -l <"$T/out")" -eq 7 ]; then pass; else fail "lines of --csv"; fi
# shellcheck disable=SC2086
bench 0 $few --experts-format q4 --dense-format q8 --compare "$T/a.json"
says out 'against an earlier run'
says out '^decode +1 +200 +[0-9.]+ -> +[0-9.]+ tokens/s  [+-][0-9.]+ %  (faster|slower|within the ranges)'
bench 0 --reps 1 --decode 2 --depth 7 --prefill "" --compare "$T/a.json"
says out 'of another slice or model'
says out 'not in the earlier run'
echo '{"a": 1}' >"$T/wrong"
bench 3 --reps 1 --decode 2 --depth 7 --prefill "" --compare "$T/wrong"
says err 'not what dsv4-bench --json writes'

# other shapes; kernels that have no peak
for c in v4-pro v41-tiny; do
    "$B" --as "tests/golden/$c/config.json" --reps 1 --decode 2 --depth 40 --prefill 20 \
        >"$T/out" 2>"$T/err" && pass || fail "$c"
done
DSV4_SIMD=scalar "$B" --as models/nano/config.json --reps 1 --decode 2 --depth 40 --prefill 20 --exact \
    >"$T/out" 2>"$T/err" && pass || fail "scalar"
says out 'int8 not measured'
says out 'scalar kernels, exact'

# wrong usage says what is wrong
bench 2 --layers 9
says err 'the model has 1 to 8'
bench 2 --layers 0,9
says err 'layers are 0 to 7'
bench 2 --layers 0,x
says err 'neither a number nor like'
bench 2 --layers 0,3
says err 'layer 3 reads the compressed cache of layer 2, which is not in the slice'
bench 2 --held 17
says err 'weights for 17 of 16 experts'
bench 2 --depth 1,two
says err 'no list of numbers'
bench 2 --decode 0 --prefill ""
says err 'nothing to measure'
bench 2 --depth 17000
says err 'a context of'
bench 2 --json --csv
bench 2 --as v5
says err 'neither v4-flash, v4-pro or v4.1-flash'
bench 3 --as /nonexistent/config.json
bench 3 --as models/nano/README.md
bench 4 --max-memory 40M
says err 'need [0-9.]+ GB .*half of what is available'
bench 0 --version
says out '^dsv4-bench [0-9]'
bench 0 --help
says out 'check-prediction'

closing_line
