#!/bin/sh
# Runs fuzz targets for TIME seconds each, JOBS at a time, from the top of the tree.
# usage: tests/fuzz.sh BUILD [fuzz_NAME...]     (without names: all that BUILD/tests has)
# The committed seeds in tests/corpus/NAME are read only; what the fuzzer finds goes to BUILD/work/NAME
# and serves the next run. A crash, a leak, an input slower than 10 s or bigger than 2 GB fails; the
# reproducer's path is printed, and belongs into tests/corpus/NAME once it is mended.
set -u
build=$1
shift
time=${TIME:-60} jobs=${JOBS:-1}
if [ $# -eq 0 ]; then
    for f in tests/fuzz_*.c; do
        f=$(basename "$f" .c)
        [ "$f" = fuzz_main ] || set -- "$@" "$f"
    done
fi
mkdir -p "$build/logs" "$build/crashes"

one() { # fuzz_NAME
    name=${1#fuzz_}
    mkdir -p "$build/work/$name"
    set -- "$build/tests/$1" "$build/work/$name"
    [ -d "tests/corpus/$name" ] && set -- "$@" "tests/corpus/$name"
    [ -f "tests/corpus/$name.dict" ] && set -- "$@" "-dict=tests/corpus/$name.dict"
    "$@" -max_total_time="$time" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$build/crashes/$name-" >"$build/logs/$name" 2>&1
    echo $? >"$build/logs/$name.code"
}

# Targets in groups of JOBS: plain sh can wait for all of a group, and all take the same time.
n=0
for t in "$@"; do
    one "$t" &
    n=$((n + 1))
    if [ $((n % jobs)) -eq 0 ]; then wait; fi
done
wait

passed=0 failed=0
for t in "$@"; do
    name=${t#fuzz_}
    log=$build/logs/$name
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    if [ "$(cat "$log.code")" = 0 ]; then
        passed=$((passed + 1))
        cov=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
        echo "$t: $runs inputs in $time s, $cov"
    else
        failed=$((failed + 1))
        tail -n 60 "$log"
        echo "$t: FAILED, reproducer: $(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
