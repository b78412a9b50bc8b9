#!/bin/sh
# Runs the given test programs from the top of the tree, JOBS (1) of them at a time, and adds up their
# closing lines ("N passed, N failed[, N skipped]"). A program that prints none, or exits non-zero without
# counting a failure, is one failure. usage: [JOBS=N] tests/run.sh PROGRAM...

# One program: what is to be seen of it on standard output, its counts as a line of $2.
one() { # program, counts
    log=$(mktemp) || exit 1
    begin=$(date +%s)
    "$1" >"$log" 2>&1
    code=$?
    took=$(($(date +%s) - begin))
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -n 1)
    p=0 f=0 s=0
    if [ -n "$line" ]; then
        p=${line%% passed*}
        f=${line#* passed, }
        f=${f%% failed*}
        case "$line" in *skipped) s=${line#* failed, } s=${s%% skipped} ;; esac
    fi
    {
        echo "== $1"
        if [ "$code" -ne 0 ] && [ "$f" -eq 0 ]; then
            f=1
            echo "   ended with code $code"
        elif [ -z "$line" ]; then
            f=1
            echo "   printed no closing line"
        fi
        if [ "$f" -ne 0 ]; then cat "$log"; else grep -E '^(SKIP|   )' "$log"; echo "   ${line}, $took s"; fi
    } >"$log.shown"
    cat "$log.shown"
    rm -f "$log" "$log.shown"
    echo "$p $f $s" >>"$2"
}

if [ "$1" = --one ]; then
    one "$3" "$2"
    exit 0
fi
counts=$(mktemp) || exit 1
trap 'rm -f "$counts"' EXIT
if [ "${JOBS:-1}" -gt 1 ]; then
    printf '%s\n' "$@" | xargs -n 1 -P "$JOBS" "$0" --one "$counts"
else
    for t in "$@"; do one "$t" "$counts"; done
fi
awk -v wanted=$# '{ p += $1; f += $2; s += $3 }
    END { f += wanted - NR; print p + 0 " passed, " f + 0 " failed, " s + 0 " skipped"; exit !(f == 0 && p > 0) }' "$counts"
