#!/bin/sh
# GGUF files against directories: a golden model without loss (golden-gguf/model.py), made-up ones of every type
# (golden-gguf/made.py). The package `gguf` that writes the files comes from PyPI; without Python or PyPI this is
# one skipped test.
set -u
build=${BUILD:-build/release}
D=$build/dsv4
venv=build/venv/gguf-jinja
skip()
{
    echo "SKIP GGUF files against directories: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}
if ! [ -e "$venv/complete" ]; then
    command -v "${PYTHON:-python3}" >/dev/null || skip "no python3"
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv" >/dev/null 2>&1 || skip "python3 has no venv module"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 20 \
        gguf==0.19.0 jinja2==3.1.6 >"$venv/log" 2>&1 || skip "PyPI gives no gguf or jinja2 (see $venv/log)"
    touch "$venv/complete"
fi
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
unset DSV4_MODEL
export HOME="$T" DSV4_THREADS=2
. tests/program.sh

# write MODEL|MADE ARGS...: a file by one of the scripts
write() {
    script=$1
    shift
    "$venv/bin/python" -B "tests/golden-gguf/$script.py" "$@" || exit 1
}
answer() { # MODEL TEXT
    "$D" -m "$1" --exact --greedy -n 40 --ctx 512 "$2" 2>"$T/err"
}

# ------------------------------------------------------------------ without loss
write model tests/golden/v4-tiny "$T/tiny.gguf"
for text in "abc def ghi" "one, two and three" "Zebra 1234"; do
    answer tests/golden/v4-tiny "$text" >"$T/want"
    answer "$T/tiny.gguf" "$text" >"$T/out"
    if [ -s "$T/want" ] && cmp -s "$T/want" "$T/out"; then
        pass
    else
        fail "\"$text\": the file answers otherwise than the directory"
    fi
done
same() { # FILE: "Zebra 1234" is answered as by the directory
    answer "$1" "Zebra 1234" >"$T/out"
    if cmp -s "$T/want" "$T/out"; then pass; else fail "$1 answers otherwise than the directory"; fi
}
"$D" tokenize -m tests/golden/v4-tiny "one, two and three" >"$T/want.ids"
run 0 "$D" tokenize -m "$T/tiny.gguf" "one, two and three"
if [ -s "$T/want.ids" ] && cmp -s "$T/want.ids" "$T/out"; then pass; else fail "other ids of a file than of its directory"; fi
head -c 100000 "$T/tiny.gguf" >"$T/cut.gguf"
run 3 "$D" -m "$T/cut.gguf" -n 1 x
write model tests/golden/v4-tiny "$T/drafts.gguf" 0 drafts
same "$T/drafts.gguf"

# ------------------------------------------------------------------ parts
write model tests/golden/v4-tiny "$T/parts.gguf" 60
set -- "$T"/parts-0000?-of-0000?.gguf
same "$1"
same "$3"
"$D" info -m "$2" >"$T/out" 2>"$T/err"
says out "shards +$#\$"
run 3 "$D" info -m "$T/nothing-00001-of-00002.gguf"
cp "$2" "$T/lonely-00002-of-0000$#.gguf"
run 3 "$D" info -m "$T/lonely-00002-of-0000$#.gguf"
says err "lonely-00001-of-0000$#.gguf: cannot open"
cp "$2" "$T/renamed.gguf"
run 3 "$D" info -m "$T/renamed.gguf"
says err "part 2 of $# of a model; expected a name that ends with -00002-of-0000$#.gguf"
run 0 "$D-quantize" -q "$2" "$T/parts"
cp "$3" "$2"
run 3 "$D" info -m "$1"
says err "part 3 of $# by its metadata, 2 of $# by its name"

# ------------------------------------------------------------------ converted
seq 5 60 | tr '\n' ' ' >"$T/ids"
# logits OUT MODEL OPTION...
logits() {
    to=$1 from=$2
    shift 2
    "$D" logits -m "$from" --ctx 512 --ids-file "$T/ids" --out "$to" "$@" >"$T/out" 2>"$T/err"
}
# alike WHAT MODEL MODEL OPTION...: the same logits, bit for bit
alike() {
    what=$1 one=$2 two=$3
    shift 3
    if logits "$T/one" "$one" "$@" && logits "$T/two" "$two" "$@" && cmp -s "$T/one" "$T/two"; then
        pass
    else
        fail "$what: other logits"
    fi
}
Q=$D-quantize
run 0 "$Q" -q "$T/tiny.gguf" "$T/tiny"
run 0 "$Q" --verify "$T/tiny.gguf" "$T/tiny"
alike "parts converted" "$T/parts" "$T/tiny"
alike "a file converted" "$T/tiny.gguf" "$T/tiny"
# One level of kernels adds fp8 and BF16 in the same order: there the directory that the file came of has these bits.
export DSV4_SIMD=scalar
alike "a file and its directory" tests/golden/v4-tiny "$T/tiny" --exact
unset DSV4_SIMD
grep -q "{{ a template }}" "$T/tiny/chat_template.jinja" && grep -q "0.5" "$T/tiny/generation_config.json" && pass ||
    fail "a template and a temperature are carried along"
run 2 "$Q" -q "$T/tiny.gguf" "$T/tiny.gguf"
says err 'same directory|not a directory'

# All K types are q8 in memory, and that is what a plan counts.
held() {
    "$D" plan --json -m "$1" --ctx 512 | sed -n '/"what": "weights"/,/bytes/s/.*"bytes": *\([0-9]*\).*/\1/p'
}
write made "$T/q8.gguf" Q4_K Q8_0
for type in Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS; do
    write made "$T/k.gguf" Q4_K $type
    if [ "$(held "$T/k.gguf")" = "$(held "$T/q8.gguf")" ]; then
        pass
    else
        fail "$type: a plan of $(held "$T/k.gguf") bytes of weights; q8 takes $(held "$T/q8.gguf")"
    fi
done
# Native: what an engine makes of the file, bit for bit; blocks that a format of ours has are kept without error.
for types in "Q4_K Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS" "Q8_0 Q8_0 Q4_0 MXFP4 BF16 F16 F32"; do
    # shellcheck disable=SC2086 # words
    write made "$T/mix.gguf" $types
    rm -rf "$T/mix"
    run 0 "$Q" -q --threads 1 "$T/mix.gguf" "$T/mix"
    alike "$types converted" "$T/mix.gguf" "$T/mix"
    run 0 "$Q" --verify "$T/mix.gguf" "$T/mix"
done
run 0 "$Q" --verify --json "$T/mix.gguf" "$T/mix"
if grep -q '"relative_error": 0.0' "$T/out" && ! grep '"relative_error"' "$T/out" | grep -qv ': 0.0,'; then
    pass
else
    fail "blocks were not kept as they are"
fi
run 0 "$Q" --dry-run "$T/mix.gguf"
says out 'embedding +Q8_0 +F32'
says out 'MXFP4 +e2m1'
run 0 "$Q" -q --type q4 --effort fast --shard-size 256K "$T/k.gguf" "$T/q4"
run 0 "$Q" --verify "$T/k.gguf" "$T/q4"
says out 'layers.0.attn.wq_a +q4 +1'
(ulimit -f 600 && exec "$Q" -q --type q4 --effort fast "$T/k.gguf" "$T/again" >"$T/out" 2>"$T/err")
if [ -d "$T/again.partial" ]; then pass; else fail "a file that cannot grow"; fi
run 0 "$Q" -q --type q4 --effort fast "$T/k.gguf" "$T/again"
run 0 "$Q" -q --type q4 --effort fast "$T/k.gguf" "$T/once"
run 0 diff -r "$T/once" "$T/again"
for table in F32 F16 BF16 Q8_0 Q4_0 Q2_K Q3_K Q5_K Q6_K IQ2_XXS MXFP4; do
    write made "$T/table.gguf" $table BF16 F16 F32 MXFP4 Q4_0
    run 0 "$D" -m "$T/table.gguf" --greedy -n 4 --ctx 512 "abc def"
done

# ------------------------------------------------------------------ written by dsv4-quantize
cp -r tests/golden/v4-tiny "$T/source"
printf '{{ a template }}' >"$T/source/chat_template.jinja"
printf '{"do_sample": true, "temperature": 0.5}' >"$T/source/generation_config.json"
compare() { # FILE ERROR TYPES...: with what model.py made of the same directory
    if "$venv/bin/python" -B tests/golden-gguf/compare.py "$1" "$T/tiny.gguf" "$2" "$3" "$4" >"$T/out" 2>"$T/err"; then
        pass
    else
        fail "$1 is not what it should be"
    fi
}
run 0 "$Q" -q --to gguf "$T/source" "$T/written.gguf"
compare "$T/written.gguf" 0 MXFP4 BF16
says out '^[0-9]+ BF16, [0-9]+ F32, 2 I32, 18 MXFP4$'
same "$T/written.gguf"
run 0 "$Q" -q --to gguf --tensor '*.ffn.experts.*=q4' --tensor '*.shared_experts.*=q8' "$T/source" "$T/small.gguf"
compare "$T/small.gguf" 0.12 Q4_0 Q8_0
run 0 "$Q" --verify "$T/source" "$T/small.gguf"
says out 'layers.0.ffn.experts.\*.w1 +Q4_0 +8 +[0-9]+ +0.0[0-9]+'
says out 'layers.2.attn.wq_b +BF16 +1 +[0-9]+ +0 +0 +0'
run 0 "$Q" -q --to gguf tests/golden/v4-tiny "$T/own.gguf"
run 0 "$venv/bin/python" -B tests/golden-gguf/chat.py "$T/own.gguf" tests/golden/chat/encode_v4.json
says out '^[0-9][0-9]'
run 0 "$Q" -q --to gguf --experts q8 --effort fast "$T/source" "$T/eight.gguf"
compare "$T/eight.gguf" 0.01 Q8_0 BF16
# calibrated, with error feedback, with fewer experts: as in a directory
head -c 3000 README.md >"$T/text"
run 0 "$Q" -q --calibrate "$T/text" --covariance "$T/source" "$T/importance"
set -- --importance "$T/importance" --effort high --experts q4 --dense q8 --prune-experts 4
run 0 "$Q" -q "$@" "$T/source" "$T/pruned"
run 0 "$Q" -q --to gguf "$@" "$T/source" "$T/pruned.gguf"
answer "$T/pruned" "abc def ghi" >"$T/want4"
answer "$T/pruned.gguf" "abc def ghi" >"$T/out"
if [ -s "$T/want4" ] && cmp -s "$T/want4" "$T/out"; then pass; else fail "a pruned file answers otherwise"; fi
run 3 "$Q" --verify "$T/source" "$T/pruned.gguf"
says err 'pruned.gguf has 4 experts in a layer'
# what became of blocks becomes blocks again, and a directory on the way changes nothing
run 0 "$Q" -q --to gguf "$T/small.gguf" "$T/again.gguf"
compare "$T/again.gguf" 0.12 Q4_0 Q8_0
run 0 "$Q" -q "$T/source" "$T/packed"
run 0 "$Q" -q --to gguf "$T/packed" "$T/from-packed.gguf"
compare "$T/from-packed.gguf" 0 MXFP4 BF16
run 0 "$Q" --dry-run --to gguf "$T/source"
says out 'routed experts +e2m1 +MXFP4 +144 '
says out 'left out +87'
run 0 "$Q" --verify "$T/source" "$T/written.gguf"
says out 'layers.0.ffn.experts.\*.w1 +MXFP4 +8 +[0-9]+ +0 +0 +0'
cp "$T/written.gguf" "$T/hurt.gguf"
printf '\125' | dd of="$T/hurt.gguf" bs=1 seek=1000000 conv=notrunc 2>/dev/null
run 3 "$Q" --verify "$T/source" "$T/hurt.gguf"
says err 'hurt.gguf: layers.* is not what the source has'
run 2 "$Q" --to gguf "$T/source" "$T/written.gguf"
says err 'written.gguf exists'
run 1 "$Q" --to gguf "$T/source" "$T/nowhere/x.gguf"
run 3 "$Q" --to gguf tests/golden/v41-tiny "$T/no.gguf"
says err 'V4.1'
run 3 "$Q" --to gguf --preset balanced "$T/source" "$T/no.gguf"
says err 'would be q4nl'
# a file may not grow beyond 1 MB: what is done stays, and the same command goes on
(ulimit -f 1024 && exec "$Q" --to gguf "$T/source" "$T/full.gguf" >"$T/out" 2>"$T/err")
if [ $? -eq 1 ] && [ ! -e "$T/full.gguf" ]; then pass; else fail "a file that cannot be written"; fi
says err 'model.gguf: cannot .*: File too large'
run 0 "$Q" -q --to gguf "$T/source" "$T/full.gguf"
if cmp -s "$T/written.gguf" "$T/full.gguf" && [ ! -e "$T/full.gguf.partial" ]; then pass; else fail "after a full disk"; fi
# An f16 scale that is no number, of blocks that are kept and of blocks that are encoded.
for type in Q8_0 Q4_K; do
    write made "$T/nan.gguf" BF16 $type
    "$venv/bin/python" - "$T/nan.gguf" <<'EOF'
import sys, gguf
t = next(t for t in gguf.GGUFReader(sys.argv[1], "r+").tensors if t.name == "blk.1.attn_kv.weight")
t.data[3, 0:2] = (0, 0x7e)
EOF
    run 3 "$D" -m "$T/nan.gguf" -n 1 x
    says err 'blk.1.attn_kv.weight holds a NaN'
    run 3 "$Q" -q "$T/nan.gguf" "$T/nan"
    says err 'blk.1.attn_kv.weight holds a NaN or an infinity'
    run 0 "$Q" -q --allow-nan "$T/nan.gguf" "$T/nan"
    says err '[0-9]+ weights were NaN or infinite and are 0 now'
    run 0 "$D" -m "$T/nan" --greedy -n 2 --ctx 512 x
    rm -rf "$T/nan"
done
closing_line
