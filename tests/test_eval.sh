#!/bin/sh
# The program dsv4-eval on the embedded model: tests/test_eval.py. usage: BUILD=build/release tests/test_eval.sh
build=${BUILD:-build/release}
for program in dsv4 dsv4-eval; do
    [ -x "$build/$program" ] || { echo "no program $build/$program"; exit 1; }
done
if ! command -v "${PYTHON:-python3}" >/dev/null; then
    echo "SKIP dsv4-eval: no python3"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
exec "${PYTHON:-python3}" -B tests/test_eval.py "$build"
