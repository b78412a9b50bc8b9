#!/bin/sh
# GGUF files against directories: a golden model without loss (golden-gguf/model.py), made-up ones of every type
# (golden-gguf/made.py). The package `gguf` that writes the files comes from PyPI; without Python or PyPI this is
# one skipped test.
set -u
build=${BUILD:-build/release}
D=$build/dsv4
venv=build/venv/gguf
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
        gguf==0.19.0 >"$venv/log" 2>&1 || skip "PyPI gives no gguf==0.19.0 (see $venv/log)"
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
cp "$3" "$2"
run 3 "$D" info -m "$1"
says err "part 3 of $# by its metadata, 2 of $# by its name"

# ------------------------------------------------------------------ every type
# All K types are q8 in memory, and that is what a plan counts.
held() {
    "$D" plan --json -m "$1" --ctx 512 | sed -n '/"what": "weights"/,/bytes/s/.*"bytes": *\([0-9]*\).*/\1/p'
}
write made "$T/q8.gguf" Q4_K Q8_0
for type in Q2_K Q3_K Q4_K Q5_K Q6_K; do
    write made "$T/k.gguf" Q4_K $type
    if [ "$(held "$T/k.gguf")" = "$(held "$T/q8.gguf")" ]; then
        pass
    else
        fail "$type: a plan of $(held "$T/k.gguf") bytes of weights; q8 takes $(held "$T/q8.gguf")"
    fi
done
for table in F32 F16 BF16 Q8_0 Q4_0 Q2_K Q3_K Q5_K Q6_K MXFP4; do
    write made "$T/table.gguf" $table BF16 F16 F32 MXFP4 Q4_0
    run 0 "$D" -m "$T/table.gguf" --greedy -n 4 --ctx 512 "abc def"
done
closing_line
