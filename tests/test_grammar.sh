#!/bin/sh
# Constrained decoding against another validator: random texts under the mask, and what the embedded model
# writes through `dsv4 run`, have to be valid for the jsonschema package (PyPI, in a virtual environment
# below build/venv). Without Python, its venv module or PyPI this is one skipped test.
build=${BUILD:-build/release}
venv=build/venv/grammar
skip()
{
    echo "SKIP constrained decoding against jsonschema: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}
for program in "$build/tests/check_grammar" "$build/dsv4"; do
    [ -x "$program" ] || {
        echo "$program is missing: make programs tests"
        exit 1
    }
done
if ! [ -e "$venv/complete" ]; then
    command -v "${PYTHON:-python3}" >/dev/null || skip "no python3"
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv" >/dev/null 2>&1 || skip "python3 has no venv module"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 20 \
        'jsonschema[format-nongpl]==4.23.0' >"$venv/log" 2>&1 || skip "PyPI gives no jsonschema (see $venv/log)"
    touch "$venv/complete"
fi
exec "$venv/bin/python" -B tests/test_grammar.py "$build"
