#!/bin/sh
# Runs the given test programs from the top of the tree, one after the other, and adds up their closing
# lines ("N passed, N failed[, N skipped]"). A program that prints none, or exits non-zero without
# counting a failure, is one failure. usage: tests/run.sh PROGRAM...
passed=0 failed=0 skipped=0
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
for t in "$@"; do
    echo "== $t"
    begin=$(date +%s)
    "$t" >"$log" 2>&1
    code=$?
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -n 1)
    f=0
    if [ -n "$line" ]; then
        passed=$((passed + $(echo "$line" | sed 's/ passed.*//')))
        f=$(echo "$line" | sed 's/.*, \([0-9]*\) failed.*/\1/')
        case "$line" in *skipped) skipped=$((skipped + $(echo "$line" | sed 's/.*, \([0-9]*\) skipped/\1/'))) ;; esac
    fi
    if [ "$code" -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1
        echo "   ended with code $code"
    elif [ -z "$line" ]; then
        f=1
        echo "   printed no closing line"
    fi
    failed=$((failed + f))
    if [ "$f" -ne 0 ]; then cat "$log"; else grep -E '^(SKIP|   )' "$log"; echo "   ${line}, $(($(date +%s) - begin)) s"; fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
