#!/bin/sh
# dsv4-quantize choosing types: what --sensitivity measures, what --fit, --bits and --dynamic choose by it and
# refuse, and that the choice loses less than one type for all at the same bytes.
# usage: BUILD=build/release tests/test_fit.sh (from the top of the tree)
set -u
Q=$(pwd)/${BUILD:-build/release}/dsv4-quantize
E=$(pwd)/${BUILD:-build/release}/dsv4-eval
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
export HOME="$T" DSV4_THREADS=2
[ -x "$Q" ] || { echo "no program $Q"; exit 1; }

. tests/program.sh
quantize() {
    code=$1
    shift
    run "$code" "$Q" "$@"
}
bytes() { cat "$1"/*.safetensors | wc -c; }
divergence() { # MODEL
    "$E" -q --json --exact --cache-quant off -m "$1" --against models/nano "$T/text" |
        sed -n 's/.*"kl": *{"mean": *\([-0-9.e+]*\).*/\1/p'
}

# ------------------------------------------------------------------ measuring
head -c 160 models/nano/eval/text.txt >"$T/short"
quantize 0 -t 1 --sensitivity "$T/short" models/nano "$T/sensitivity"
says out '^ +head +0.0[0-9]+ +0.0[0-9]+'
says out 'layers.3.ffn.experts.\*.w2'
quantize 0 -q -t 2 --sensitivity "$T/short" models/nano "$T/sensitivity2"
try "sensitivities with two threads" cmp "$T/sensitivity" "$T/sensitivity2"
if [ "$(grep -c '"matrix"' "$T/sensitivity")" -eq 91 ]; then pass; else fail "not all matrices are measured"; fi
quantize 2 --type bf16 --sensitivity "$T/short" models/nano "$T/no"
says err 'there are q8, q4, q4nl, q3, q2'
: >"$T/empty"
quantize 2 --sensitivity "$T/empty" models/nano "$T/no"

# ------------------------------------------------------------------ choosing
# Memory that the plan promises is what is there, and more of it never loses more.
needed() { sed -n 's/.*"bytes_needed_in_memory": *\([0-9]*\).*/\1/p' "$T/out"; }
quantize 0 --dry-run --json -t 1 --context 4096 models/nano
native=$(needed) last=1
for less in 2000000 1000000 10000; do
    fit=$((native - less))
    quantize 0 --dry-run --json -t 1 --context 4096 --fit $fit --sensitivities "$T/sensitivity" models/nano
    cp "$T/out" "$T/plan"
    try "a plan within $fit" awk -v fit=$fit -v last=$last '
        /"bytes_needed_in_memory"/ { gsub(/[^0-9]/, "", $2); needed = $2 }
        /"expected_kl":/ { gsub(/,/, "", $2); kl = $2 }
        END { if (needed == 0 || needed > fit || kl == "" || kl + 0 > last) exit 1; print kl }' "$T/plan"
    last=$(cat "$T/out")
done
quantize 4 --dry-run --context 4096 --fit 50M models/nano
says err 'with the smallest types 0.0[0-9]+ GiB are needed .* context of 4096 tokens'
quantize 2 --dry-run --bits 2.4 models/nano
says err 'the smallest types have 2.5[0-9]* bits'
quantize 2 --dry-run --fit 1G --preset tiny models/nano
says err 'no part of that'
quantize 2 --dry-run --dynamic models/nano
says err 'how much may be spent'
quantize 2 --dry-run --sensitivities "$T/sensitivity" models/nano
says err 'how much may be spent'
quantize 3 --dry-run --bits 3 --sensitivities models/nano/config.json models/nano
says err 'expected a file of dsv4-quantize --sensitivity'
grep -v layers.5.attn.wo_b "$T/sensitivity" >"$T/lost"
quantize 3 --dry-run --bits 3 --sensitivities "$T/lost" models/nano
quantize 0 --dry-run --bits 3 --head q8 --tensor 'layers.1.*=native' models/nano
says out 'output head +bf16 +q8'
says out 'routed experts +(q3|q2) +(0,)?[2-7][2-7,-]* ' # all but layer 1
quantize 2 --dry-run --bits 3 --tensor '*=native' models/nano
says err 'no matrix is left'
quantize 0 --dry-run --as v4-flash --fit 100G --context 100000
says out 'guess for others'
quantize 4 --dry-run --as v4-pro --fit 100G

# ------------------------------------------------------------------ better than one type for all
head -c 3000 models/nano/eval/text.txt >"$T/text"
quantize 0 -q --experts q3 --dense q3 --head q3 models/nano "$T/uniform"
quantize 0 -t 1 --bits 3.49 --dynamic models/nano "$T/chosen"
says err 'expected kl +0.0[0-9]+'
quantize 0 -q -t 2 --bits 3.49 --dynamic models/nano "$T/chosen2"
try "chosen with two threads" diff -r "$T/chosen" "$T/chosen2"
uniform=$(divergence "$T/uniform") chosen=$(divergence "$T/chosen")
echo "   q3 $(bytes "$T/uniform") bytes, KL $uniform; --bits 3.49 --dynamic $(bytes "$T/chosen") bytes, KL $chosen"
if [ "$(bytes "$T/chosen")" -le "$(bytes "$T/uniform")" ]; then pass; else fail "the choice is larger"; fi
try "the choice loses less than 0.7 of what q3 does" awk -v a="$chosen" -v b="$uniform" 'BEGIN { exit !(a > 0 && a < 0.7 * b) }'

# ------------------------------------------------------------------ together with fewer experts, and of a GGUF file
quantize 0 -q --calibrate "$T/text" models/nano "$T/importance"
quantize 0 --dry-run --json --context 4096 --prune-experts 50% --importance "$T/importance" models/nano
fit=$(($(needed) - 1000000))
quantize 0 --dry-run --json --context 4096 --fit $fit --prune-experts 50% --importance "$T/importance" models/nano
try "a pruned plan within $fit" test "$(needed)" -le $fit
quantize 0 -q --context 4096 --fit $fit --prune-experts 50% --importance "$T/importance" models/nano "$T/lite"
quantize 0 --verify models/nano "$T/lite"
quantize 0 -q --to gguf tests/golden/v4-tiny "$T/tiny.gguf"
quantize 0 -q --calibrate "$T/text" "$T/tiny.gguf" "$T/importance2"
quantize 0 --bits 4 --dynamic --prune-experts 50% --importance "$T/importance2" "$T/tiny.gguf" "$T/lite2"
says err '^bits +[34][.]'
quantize 0 --verify "$T/tiny.gguf" "$T/lite2"
quantize 0 --dry-run --json --bits 16 models/nano
says out '"expected_kl": 0[.0]*,'
closing_line
