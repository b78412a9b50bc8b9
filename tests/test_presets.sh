#!/bin/sh
# The table of presets in README.md, made again: bytes of the released models and memory from the plan, divergence of
# the embedded model by measuring it, of one preset (CHECK_LONG=1: of all). UPDATE=1 writes the table anew.
# usage: BUILD=build/release tests/test_presets.sh (from the top of the tree)
set -u
if ! command -v python3 >/dev/null; then
    echo "SKIP the table of presets: no python3"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
exec python3 tests/test_presets.py "${BUILD:-build/release}" ${UPDATE:+update}
