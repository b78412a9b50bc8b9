#!/bin/sh
# The program dsv4 where things are scarce: address space, threads, descriptors, stack, file size; as another
# user, in a directory it may not write to, under valgrind. Each run either answers as always or says in one
# message why not, with one of our exit codes; it never dies of a signal. What test_cli.sh shows (closed and
# full outputs, signals, files that shrink) is not repeated here.
# usage: BUILD=build/release tests/test_environment.sh (from the top of the tree)
# shellcheck disable=SC2016,SC3045 # $D in quotes is expanded by the sh -c that runs it; ulimit -v, -s
set -u
D=$(pwd)/${BUILD:-build/release}/dsv4
M=$(pwd)/models/nano
G=$(pwd)/tests/golden/v41-tiny
T=$(mktemp -d) || exit 1
trap 'chmod -R u+w "$T"; rm -rf "$T"' EXIT
chmod 755 "$T"
export D M G T
unset DSV4_MODEL OMP_NUM_THREADS OMP_STACKSIZE OMP_THREAD_LIMIT OMP_PROC_BIND
export HOME="$T"
passed=0 failed=0 skipped=0
[ -x "$D" ] || { echo "no program $D"; exit 1; }

pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAILED: $1"
    echo "    $2"
    head -c 600 "$T/out" "$T/err" | sed 's/^/    /'
}
skip() {
    skipped=$((skipped + 1))
    echo "SKIP $1"
}
sanitized() { grep -qaE '__(asan|tsan)_init' "$D"; }

# run CODES ERR COMMAND...: sh runs the command; it must end with one of CODES. After 0 stdout must be the
# known answer (if the command asks for it), after anything else stderr must be our message alone, and match
# the extended regular expression ERR. Sets $got.
ask='"$D" -m "$M" --greedy "Well done!"'
run() {
    codes=$1 err=$2
    shift 2
    sh -c "$*" </dev/null >"$T/out" 2>"$T/err"
    got=$?
    case " $codes " in
    *" $got "*) ;;
    *) fail "$*" "ended with $got, expected one of: $codes" && return ;;
    esac
    if [ $got -eq 0 ]; then
        case $* in
        *'Well done!'*)
            [ "$(cat "$T/out")" = "I am glad to hear that." ] || { fail "$*" "another answer" && return; } ;;
        esac
    elif [ "$(grep -c '^dsv4: ' "$T/err")" -ne 1 ] || [ "$(wc -l <"$T/err")" -ne 1 ]; then
        fail "$*" "ended with $got, and stderr is not one message" && return
    elif ! grep -qE "$err" "$T/err"; then
        fail "$*" "the message does not match: $err" && return
    fi
    pass
}

# ------------------------------------------------------------------ address space
# From far too little for the program itself (the dynamic linker may say so, in its own words) to plenty.
# In between every size is one at which some step of ours meets the end.
if sanitized; then
    skip "little address space (a sanitizer needs terabytes of it)"
else
    refused=0 worked=0 sizes=0
    for kib in 1000 4000 8000 12000 16000 20000 24000 32000 40000 48000 56000 64000 80000 96000 128000 \
        192000 256000 512000 1024000 4096000; do
        sizes=$((sizes + 1))
        sh -c "ulimit -v $kib; exec $ask" </dev/null >"$T/out" 2>"$T/err"
        got=$?
        if [ $got -eq 0 ]; then
            worked=$((worked + 1))
            [ "$(cat "$T/out")" = "I am glad to hear that." ] || fail "ulimit -v $kib" "another answer"
        elif grep -qE 'error while loading shared libraries|cannot (map|allocate)|Cannot allocate memory' \
            "$T/err" && ! grep -q '^dsv4: ' "$T/err" && [ $got -ge 126 ] && [ $got -le 127 ]; then
            refused=$((refused + 1)) # before main
        elif [ $got -eq 139 ] && [ $kib -lt 4000 ] && ! grep -q "^dsv4: " "$T/err"; then
            refused=$((refused + 1)) # the kernel kills what it cannot even lay out
        elif { [ $got -eq 4 ] || [ $got -eq 1 ]; } && [ "$(grep -c '^dsv4: ' "$T/err")" -eq 1 ] &&
            [ "$(wc -l <"$T/err")" -eq 1 ]; then
            refused=$((refused + 1))
        else
            fail "ulimit -v $kib" "ended with $got"
        fi
    done
    if [ $((refused + worked)) -eq $sizes ] && [ $refused -ge 3 ] && [ $worked -ge 3 ]; then
        pass
    else
        fail "address space" "$refused refused, $worked worked of $sizes"
    fi
    echo "   address space: $refused sizes refused, $worked worked"
fi
run 4 'not enough memory: .* GiB' '"$D" -m "$M" --max-memory 2M hello'
run '0 4' 'memory' '"$D" plan -m "$M" --max-memory 2M'

# ------------------------------------------------------------------ descriptors, file size, stack
for n in 4 5 6 8; do
    run '0 1 3' 'Too many open files|cannot open|is not where' "ulimit -n $n; $ask"
done
[ $got -eq 0 ] && pass || fail "ulimit -n 8" "is not enough"
# a signal by default
run 1 'cannot write: File too large' 'ulimit -f 1; echo "1 2 3 4 5 6" >"$T/ids"; "$D" logits -m "$M" --ids-file "$T/ids" --out "$T/big"'
[ -e "$T/big" ] && fail "a failed --out" "leaves a file" || pass
if sanitized; then
    skip "a small stack (a sanitizer makes frames larger)"
else
    # the threads of OpenMP get their stacks by the same limit
    for kib in 64 128 256; do
        run 0 '' "ulimit -s $kib; $ask"
        run 0 '' "ulimit -s $kib; "'"$D" info -m "$M"'
    done
fi

# ------------------------------------------------------------------ directories
mkdir "$T/closed"
chmod 555 "$T/closed"
run 0 '' "cd \"\$T/closed\" && $ask"
run 0 '' "cd / && umask 777 && $ask"
mkdir "$T/gone"
run 0 '' "cd \"\$T/gone\" && rmdir \"\$T/gone\" && $ask"
run '2 3' '' 'mkdir "$T/gone"; cd "$T/gone" && rmdir "$T/gone" && "$D" -m . hello'
run 0 '' "env -i $ask"
run 0 '' "HOME=/nowhere TZ=:nonsense TERM=nonsense LANG=xx_XX LC_ALL=xx_XX.nonsense $ask"
run 0 '' "OMP_NUM_THREADS=3 OMP_DYNAMIC=true $ask"
run 0 '' "OMP_THREAD_LIMIT=1 $ask -t 2"

# ------------------------------------------------------------------ as another user
other=
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null && command -v prlimit >/dev/null; then
    other='setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all'
    $other test -x "$D" -a -r "$M/config.json" || other=
fi
if [ -z "$other" ]; then
    skip "threads that cannot be created, files that may not be read (needs root, setpriv, prlimit)"
else
    run 0 '' "$other $ask"
    # LeakSanitizer wants a thread of its own at exit.
    alone="env ASAN_OPTIONS=detect_leaks=0 $other prlimit --nproc=1"
    run 1 'only 1 of 3 threads' "$alone $ask -t 3"
    run 0 '' "$alone $ask -t 1"
    cp -r "$G" "$T/secret"
    chmod 0 "$T/secret/model.safetensors"
    run 3 'model.safetensors: cannot open: Permission denied' "$other \"\$D\" info \"\$T/secret\""
    chmod 0 "$T/secret"
    run 3 'cannot open' "$other \"\$D\" info \"\$T/secret\""
    run 1 'cannot' "cd \"\$T/closed\" && $other \"\$D\" -m \"\$M\" run --greedy -n 3 --out x abc"
fi

# ------------------------------------------------------------------ many threads on few cores
run 0 '' "$ask -t 7"
run '0 1' 'threads' '"$D" -m "$M" -t 150 -n 1 --greedy hello'
run 2 'threads|--threads' "$ask -t 5000"

# ------------------------------------------------------------------ valgrind
if ! command -v valgrind >/dev/null; then
    skip "valgrind (not installed)"
elif sanitized; then
    skip "valgrind (the build has a sanitizer)"
else
    echo '3 40 50 60 70' >"$T/ids"
    valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
        --child-silent-after-fork=yes "$D" run -m "$G" -t 1 --ctx 64 --batch 8 --ids-file "$T/ids" \
        --ids --greedy --ignore-eos -n 4 </dev/null >"$T/out" 2>"$T/err"
    got=$?
    if [ $got -eq 0 ] && ! [ -s "$T/err" ]; then pass; else fail "valgrind, a run" "ended with $got"; fi
    valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
        "$D" info "$G/nowhere" </dev/null >"$T/out" 2>"$T/err"
    got=$?
    if [ $got -eq 3 ]; then pass; else fail "valgrind, a refusal" "ended with $got"; fi
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
