#!/bin/sh
# Speed of the embedded model and of the tokenizer, measured through the program; best of five runs.
# Runs from the top of the tree; BUILD is the folder of the build, THREADS the threads to use.
set -u
BUILD=${BUILD:-build/release}
dsv4=$BUILD/dsv4
threads=${THREADS:+--threads $THREADS}
text=models/nano/eval/text.txt
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

# The best figure of a member of the statistics.
best() { # member, arguments...
    member=$1
    shift
    for _ in 1 2 3 4 5; do
        # shellcheck disable=SC2086 # options or nothing
        "$dsv4" run --json --greedy --ignore-eos $threads "$@" || exit 1
    done | grep -o "\"$member\": *[0-9.e+]*" | sed 's/.*: *//' | sort -g | tail -n 1
}

seconds() { # command...
    b=$(date +%s.%N)
    "$@" >/dev/null || exit 1
    e=$(date +%s.%N)
    echo "$b $e" | awk '{print $2 - $1}'
}

# Without the start of the program: the difference between a long and a short text.
encode() {
    i=0
    while [ $i -lt 250 ]; do
        cat "$text"
        i=$((i + 1))
    done >"$dir/long"
    cp "$text" "$dir/short"
    for _ in 1 2 3 4 5; do
        a=$(seconds "$dsv4" tokenize -f "$dir/short")
        b=$(seconds "$dsv4" tokenize -f "$dir/long")
        echo "$a $b"
    done | awk -v l="$(wc -c <"$dir/long")" -v s="$(wc -c <"$dir/short")" '
        {v = (l - s) / ($2 - $1) / 1e6; if (v > best) best = v}
        END {printf "%.1f", best}'
}

head -c 8000 "$text" >"$dir/prompt"
echo "$("$dsv4" version | head -n 1), $(getconf _NPROCESSORS_ONLN) cores${THREADS:+, $THREADS threads}"
echo "generation  $(best generated_tokens_per_second -n 256 'Once upon a time') tokens/s"
echo "prompt      $(best prompt_tokens_per_second -n 1 -f "$dir/prompt") tokens/s"
echo "encoding    $(encode) MB/s, ids printed"
