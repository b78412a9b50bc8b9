#!/bin/sh
# The program dsv4-quantize: what it makes (read by test_quantize.py, run by dsv4), says and refuses; SIGKILL at
# random moments, a full disk, a source that changed. CHECK_LONG=1: fifty kills.
# usage: BUILD=build/release tests/test_quantize.sh (from the top of the tree)
set -u
D=$(pwd)/${BUILD:-build/release}/dsv4
Q=$D-quantize
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
unset DSV4_MODEL
export HOME="$T" DSV4_THREADS=2
[ -x "$Q" ] || { echo "no program $Q"; exit 1; }

. tests/program.sh
# quantize CODE ARGS...; what it said is in $T/out and $T/err
quantize() {
    code=$1
    shift
    run "$code" "$Q" "$@"
}
sums() { (cd "$1" && find . -type f -exec cksum {} + | sort -k3); }

before=$(sums models/nano)

# ------------------------------------------------------------------ what it makes
quantize 0 models/nano "$T/native"
says err 'native in [0-9.]+ s'
quantize 0 -q --type q4nl "$(pwd)/models/nano/" "$T/q4nl/"
if [ -s "$T/err" ]; then fail "--quiet is not"; else pass; fi
quantize 0 -q --experts q8 --dense q8 --head q8 models/nano "$T/q8"
if command -v python3 >/dev/null; then
    try "another reader: native" python3 tests/test_quantize.py models/nano "$T/native"
    says out '^475$'
    try "another reader: q4nl" python3 tests/test_quantize.py models/nano "$T/q4nl" 0.16
    try "another reader: q8" python3 tests/test_quantize.py models/nano "$T/q8" 0.02
else
    echo "SKIP another reader: no python3"
fi
ask="What is the capital of Cuba?"
for kind in native q8 q4nl; do
    "$D" -m "$T/$kind" --greedy "$ask" >"$T/out" 2>"$T/err"
    says out 'Havana'
done
"$D" info -m "$T/native" >"$T/out" 2>"$T/err"
says out 'routed experts +768 +4.719 million'
if [ "$(stat -c %a "$T/native/config.json" 2>/dev/null)" = "$(stat -c %a "$T/native/"*.safetensors 2>/dev/null)" ]; then
    pass
else
    fail "config.json has other permissions than the shards"
fi

# ------------------------------------------------------------------ what it says
quantize 0 --help
says out 'SOURCE \[DESTINATION\]'
quantize 0 --dry-run --dense q8 --head q8 models/nano
says out '^source bytes +[0-9.]+ MB'
says out 'output head +bf16 +q8 +1 +1.05 MB +557.06 kB'
says out 'routed experts +e2m1 +e2m1'
quantize 0 --dry-run --json models/nano
says out '"bytes_of_weights": *[0-9]{7}'
if [ -e "$T/dry" ]; then fail "a dry run wrote"; else pass; fi
# a config alone: what its checkpoint would become (nano's has a bias for images beside)
quantize 0 --dry-run --experts q3 models/nano
lines='bytes of (caches|buffers)|experts|attention|Engram'
grep -E "$lines" "$T/out" >"$T/plan"
quantize 0 --dry-run --experts q3 --as models/nano/config.json
grep -E "$lines" "$T/out" >"$T/plan-as"
try "a plan from a config alone" diff "$T/plan" "$T/plan-as"
quantize 0 --dry-run --as v4-flash --context 100000
says out 'bytes +156\.02 GB'
says out 'context +100000'
quantize 2 --dry-run --as v4-flash --importance x --prune-experts 50%
says err "a checkpoint's routers"
quantize 2 --dry-run --as v5
says err 'neither v4-flash'
quantize 2 --as v4-pro "$T/no"
says err 'for --dry-run'
quantize 2 --dry-run --context 20000 models/nano
says err 'at most 16384'
quantize 0 --verify models/nano "$T/native"
says out 'layers.0.ffn.experts.\*.w1 +e2m1 +16 +0.1966 million +0 +0 +0'
quantize 0 --verify models/nano "$T/q4nl"
says out 'layers.3.attn.wq_b +q4nl +1 +[0-9]+ +0.0[4-9]'
quantize 0 --verify --json "$T/q4nl"
says out '"damage": *null'

# Engram tables in fp4, and back in fp8, which has all that fp4 has
quantize 0 -q -t 1 --engram fp4 --shard-size 512K models/nano "$T/engram4"
quantize 0 -q -t 2 --engram fp4 --shard-size 512K models/nano "$T/engram4b"
try "Engram tables with one thread" diff -r "$T/engram4" "$T/engram4b"
quantize 0 --verify models/nano "$T/engram4"
says out 'layers.1.engram.embed +e2m1 +1 +1.593 million +0.1[0-9]+ '
quantize 0 -q --engram fp8 "$T/engram4" "$T/engram8"
quantize 0 --verify "$T/engram4" "$T/engram8"
says out 'layers.4.engram.embed +e4m3 +1 +1.631 million +0 +0 +0'
quantize 0 -q --engram fp8 models/nano "$T/same"
try "fp8 tables stay as they are" diff -r "$T/native" "$T/same"
"$D" -m "$T/engram4" --greedy "$ask" >"$T/out" 2>"$T/err"
says out 'Havana'
quantize 2 --dry-run --engram q4 models/nano
says err 'there are native, fp8 and fp4'
quantize 2 --dry-run --engram fp4 --as v4-flash
says err 'has no Engram tables'

# a bit that fell over, in the file and in what it means
cp -r "$T/native" "$T/hurt"
shard=$(ls "$T/hurt/"*.safetensors)
printf '\125' | dd of="$shard" bs=1 seek=300000 conv=notrunc 2>/dev/null
quantize 3 --verify "$T/hurt"
if "$D" version --json | grep -q '"xxhash": *false'; then :; else says err 'has not the checksum'; fi
quantize 3 --verify models/nano "$T/hurt"
says err 'hurt: '

# ------------------------------------------------------------------ calibration
head -c 12000 models/nano/eval/text.txt >"$T/text"
quantize 0 --calibrate "$T/text" --covariance models/nano "$T/importance"
says out 'tokens +[0-9]{4}'
says out '^ +7 +[0-9]+ +[0-9]+ +0 '
DSV4_THREADS=1 "$Q" -q --calibrate "$T/text" --covariance models/nano "$T/importance1" 2>"$T/err"
try "a calibration with one thread" cmp "$T/importance" "$T/importance1"
quantize 0 -q --calibrate "$T/text" models/nano "$T/diagonal"
few="--tensor *experts.?.w*=q4 --tensor *attn.w*=q3 --shard-size 512K"
for kind in none diagonal importance; do
    set -- -q --effort normal
    [ $kind = none ] || set -- -q --importance "$T/$kind"
    # shellcheck disable=SC2086 # words
    quantize 0 "$@" $few models/nano "$T/by-$kind"
done
try "the same importance with and without covariances" diff -r "$T/by-diagonal" "$T/by-importance"
if diff -rq "$T/by-none" "$T/by-diagonal" >/dev/null; then fail "the importance counts for nothing"; else pass; fi
# shellcheck disable=SC2086 # words
for threads in 1 2; do
    quantize 0 -q -t $threads --effort high --importance "$T/importance" $few models/nano "$T/high$threads"
done
try "high effort with one thread" diff -r "$T/high1" "$T/high2"
if diff -rq "$T/high1" "$T/by-importance" >/dev/null; then fail "high effort is normal"; else pass; fi
"$D" -m "$T/high1" --greedy "$ask" >"$T/out" 2>"$T/err"
says out 'Havana'
quantize 2 --effort high --type q4 models/nano "$T/no"
says err 'needs an importance file with covariances'
quantize 3 --effort high --importance "$T/diagonal" --type q4 models/nano "$T/no"
says err 'has no covariances'
quantize 3 --importance models/nano/model.safetensors --type q4 models/nano "$T/no"
says err 'knows none of the [0-9]+ matrices'
head -c 100000 "$T/importance" >"$T/short"
quantize 3 --importance "$T/short" --type q4 models/nano "$T/no"
: >"$T/empty"
quantize 2 --calibrate "$T/empty" models/nano "$T/no"
says err 'empty is empty'
quantize 2 --calibrate "$T/text" models/nano
says err 'where to'

# ------------------------------------------------------------------ fewer experts
quantize 0 --prune-experts 75% --dense q8 --importance "$T/diagonal" models/nano "$T/twelve"
says err '^12 of 16 experts of a layer stay; they gave [89][0-9].[0-9] % of .*, [0-9.]+ % in layer [0-7]$'
"$D" info -m "$T/twelve" >"$T/out" 2>"$T/err"
says out 'routed experts +576 '
"$D" -m "$T/twelve" --greedy "$ask" >"$T/out" 2>"$T/err"
says out 'Havana'
quantize 0 --verify models/nano "$T/twelve"
says out 'layers.0.ffn.experts.\*.w1 +e2m1 +12 '
says out 'layers.0.ffn.gate +bf16 +1 +1536 +0'
quantize 0 --dry-run --json --prune-experts 8 --importance "$T/diagonal" models/nano
says out '"norm_kept_worst": 0\.[0-9]+'
quantize 2 --prune-experts 1 --importance "$T/diagonal" models/nano "$T/no"
says err 'every token goes to 2'
quantize 2 --prune-experts 8 models/nano "$T/no"
says err 'needs an importance file'

# ------------------------------------------------------------------ more shards than descriptors, as they are set
quantize 0 -q --shard-size 20K models/nano "$T/shards"
run 0 sh -c "ulimit -Sn 64 && '$Q' -q '$T/shards' '$T/joined'"
quantize 0 -q --verify models/nano "$T/joined"
rm -rf "$T/shards" "$T/joined"

# ------------------------------------------------------------------ what it refuses
quantize 2
quantize 2 models/nano
says err 'where to'
quantize 2 models/nano "$T/native"
says err 'exists and is not empty'
quantize 2 models/nano models/nano
says err 'same directory'
# the last step gives the finished directory its name: what cannot have it is known before the first
mkdir "$T/place" "$T/place/mount" && ln -s . "$T/place/link" && mkfifo "$T/place/fifo"
for no in "" . .. / "$T/place/." "$T/place/link" "$T/place/fifo"; do quantize 2 models/nano "$no"; done
says err 'fifo exists and is not a directory'
quantize 2 "" "$T/no"
says err 'name of the source is empty'
if unshare -rm mount -t tmpfs none "$T/place/mount" 2>/dev/null; then
    run 2 unshare -rm sh -c "mount -t tmpfs none '$T/place/mount' && '$Q' models/nano '$T/place/mount'"
    says err 'where a file system is mounted'
fi
if [ "$(cd "$T/place" && echo *)" = "fifo link mount" ]; then pass; else fail "a refused destination left something"; fi
for what in --calibrate --sensitivity; do
    quantize 2 $what "$T/text" models/nano ""
    for no in "$T/place" "$T/place/fifo"; do quantize 1 $what "$T/text" models/nano "$no"; done
    says err 'fifo: a device or the like, not a file'
    quantize 1 $what "$T/text" models/nano "$T/no/such/place"
    if [ -p "$T/place/fifo" ]; then pass; else fail "$what replaced a FIFO"; fi
done
quantize 2 --type q7 models/nano "$T/no"
says err 'unknown type "q7"'
quantize 2 --tensor 'layer.0.attn.wq_a=q8' models/nano "$T/no"
says err 'fits no matrix; near are layers.0.attn.wq_a'
quantize 3 tests/golden "$T/no"
says err 'golden/config.json: cannot open'
quantize 4 --max-ram 4K models/nano "$T/no"
if ls -d "$T/no"* >/dev/null 2>&1; then fail "a refused conversion left something"; else pass; fi

# ------------------------------------------------------------------ a full disk
# A file may not grow beyond 512 kB (or 1 MB: shells differ in the unit).
(ulimit -f 1024 && exec "$Q" models/nano "$T/full" >"$T/out" 2>"$T/err")
if [ $? -eq 1 ]; then pass; else fail "a file that cannot be written"; fi
says err 'model-00001-of-00001.safetensors: cannot .*: File too large'
if [ -d "$T/full.partial" ] && [ ! -e "$T/full" ]; then pass; else fail "what is left has the wrong name"; fi
"$D" -m "$T/full.partial" x >"$T/out" 2>"$T/err"
if [ $? -eq 3 ]; then pass; else fail "a partial directory is taken for a whole one"; fi
quantize 0 -q models/nano "$T/full"
try "after a full disk" diff -r "$T/native" "$T/full"

# A disk of 4 MB, where we may have one.
mkdir "$T/small"
if unshare -rm mount -t tmpfs -o size=4m none "$T/small" 2>/dev/null; then
    unshare -rm sh -c "mount -t tmpfs -o size=4m none '$T/small' && '$Q' models/nano '$T/small/x'" >"$T/out" 2>"$T/err"
    if [ $? -eq 1 ]; then pass; else fail "a small disk"; fi
    says err 'GiB are to be written, 0.00 GiB are free on that disk'
else
    echo "SKIP a small disk: mounting is not allowed here"
fi

# ------------------------------------------------------------------ killed
kills=6
[ -z "${CHECK_LONG:-}" ] || kills=50
convert="$Q -q --type q4 --shard-size 512K models/nano"
quantize 0 -q --type q4 --shard-size 512K models/nano "$T/whole"
n=0
while [ $n -lt $kills ]; do
    n=$((n + 1))
    # shellcheck disable=SC2086 # words
    $convert "$T/killed" 2>"$T/err" &
    pid=$!
    sleep "0.$(awk -v s="$$$n" 'BEGIN { srand(s); printf "%03d", rand() * 150 }')"
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ -e "$T/killed" ] || continue
    try "killed and continued" diff -r "$T/whole" "$T/killed"
    rm -rf "$T/killed"
done
quantize 0 -q --type q4 --shard-size 512K models/nano "$T/killed"
try "killed and continued" diff -r "$T/whole" "$T/killed"
if ls -d "$T"/killed.* >/dev/null 2>&1; then fail "something partial is left"; else pass; fi

# ------------------------------------------------------------------ the source
cp -r models/nano "$T/source"
(ulimit -f 1024 && exec "$Q" "$T/source" "$T/moved" >"$T/out" 2>"$T/err")
touch "$T/source/model.safetensors"
quantize 3 "$T/source" "$T/moved"
says err 'begun from another source or with other options'
rm "$T/source/model.safetensors"
quantize 3 "$T/source" "$T/moved"
says err 'source: neither'
if [ "$before" = "$(sums models/nano)" ]; then pass; else fail "the source has changed"; fi

closing_line
