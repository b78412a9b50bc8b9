#!/bin/sh
# A golden model as a GGUF file without loss (golden-gguf/model.py) says the same as its directory. The package
# `gguf` that writes the file comes from PyPI; without Python or PyPI this is one skipped test.
build=${BUILD:-build/release}
venv=build/venv/gguf
skip()
{
    echo "SKIP GGUF file against its directory: $1"
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
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
"$venv/bin/python" -B tests/golden-gguf/model.py tests/golden/v4-tiny "$tmp/tiny.gguf" || exit 1
for text in "abc def ghi" "one, two and three" "Zebra 1234"; do
    for from in tests/golden/v4-tiny "$tmp/tiny.gguf"; do
        "$build/dsv4" -m "$from" --exact --greedy -n 40 --ctx 512 "$text" >"$tmp/out" 2>"$tmp/err" || {
            cat "$tmp/err"
            failed=$((failed + 1))
        }
        mv "$tmp/out" "$tmp/$(basename "$from").out"
    done
    if [ -s "$tmp/v4-tiny.out" ] && cmp -s "$tmp/v4-tiny.out" "$tmp/tiny.gguf.out"; then
        passed=$((passed + 1))
    else
        echo "FAIL \"$text\": the file answers otherwise than the directory"
        failed=$((failed + 1))
    fi
done
head -c 100000 "$tmp/tiny.gguf" >"$tmp/cut.gguf"
if "$build/dsv4" -m "$tmp/cut.gguf" -n 1 x >"$tmp/out" 2>&1; then
    echo "FAIL a cut file is taken"
    failed=$((failed + 1))
else
    passed=$((passed + 1))
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
