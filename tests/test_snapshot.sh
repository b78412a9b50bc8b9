#!/bin/sh
# Sequences in files, as a user of dsv4 meets them: run --save and --load, chat --session; full disks, other
# models, broken files. usage: BUILD=build/release tests/test_snapshot.sh (from the top of the tree)
set -u
D=$(pwd)/${BUILD:-build/release}/dsv4
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
unset DSV4_MODEL
export HOME="$T" DSV4_THREADS=1
[ -x "$D" ] || { echo "no program $D"; exit 1; }

. tests/program.sh

# dsv4 COMMAND CODE ARGS...: with the embedded model; what it said is in $T/out and $T/err
dsv4() {
    command=$1 code=$2
    shift 2
    run "$code" "$D" "$command" -m models/nano --greedy "$@"
}

dsv4 run 0 -n 40 "The capital of Cuba" </dev/null
mv "$T/out" "$T/whole"
if "$D" version --json | grep -q '"xxhash": *false'; then
    dsv4 run 1 -n 4 --save "$T/a" "The capital of Cuba"
    says err 'no xxHash'
    echo "SKIP everything but the message: this build has no xxHash"
    echo "$passed passed, $failed failed"
    exit $((failed > 0))
fi

# ------------------------------------------------------------------ run
# In three parts, the middle one with nothing to add: the same text as in one go.
dsv4 run 0 -n 9 --save "$T/a" "The capital of Cuba" </dev/null
mv "$T/out" "$T/parts"
dsv4 run 0 -n 1 --load "$T/a" --save "$T/a" </dev/null
cat "$T/out" >>"$T/parts"
dsv4 run 0 -n 30 --load "$T/a" </dev/null
cat "$T/out" >>"$T/parts"
if cmp -s "$T/whole" "$T/parts"; then pass; else fail "saved and loaded: another text"; fi

# Only what is new is read.
dsv4 run 0 -n 3 --load "$T/a" --stats " The capital of Peru" </dev/null
says err 'prompt [0-9] tokens'

dsv4 run 3 --load "$T/nowhere" </dev/null
says err 'nowhere: cannot open: No such file'
dsv4 run 3 --load models/nano/config.json </dev/null
says err 'not a snapshot'
"$D" run -m tests/golden/v41-tiny --load "$T/a" -n 1 </dev/null >"$T/out" 2>"$T/err"
says err 'another model'
dsv4 run 1 --ctx 8 --load "$T/a" </dev/null
says err 'context holds 8'
dsv4 run 1 -n 2 --save "$T/no/such/place" x </dev/null
says err 'cannot create a file beside it'

# A full disk leaves the file of before.
cp "$T/a" "$T/kept"
(
    ulimit -f 8
    "$D" run -m models/nano --greedy -n 60 --load "$T/a" --save "$T/a" </dev/null >"$T/out" 2>"$T/err"
)
says err 'a: cannot write: File too large'
if cmp -s "$T/a" "$T/kept"; then pass; else fail "a full disk has changed the file"; fi
if [ "$(find "$T" -name 'a.*' | wc -l)" -eq 0 ]; then pass; else fail "a file is left behind"; fi

# ------------------------------------------------------------------ chat
S=$T/talk
dsv4 chat 0 --session "$S" <<END
My name is Anna.
END
dsv4 chat 0 --session "$S" --stats <<END
What is my name?
END
says out Anna
if grep -q '"format": "dsv4-chat-1"' "$S" && [ -s "$S.cache" ]; then pass; else fail "no session"; fi
# Only the new message is read, and not the conversation.
new=$(sed -n 's/.*prompt \([0-9]*\) tokens.*/\1/p' "$T/err")
if [ "${new:-99}" -lt 14 ]; then pass; else fail "the conversation was computed again"; fi
# Without its caches, or with broken ones, it goes on all the same.
echo broken >"$S.cache"
dsv4 chat 0 --session "$S" --stats <<END
What is my name?
END
says out Anna
says err 'not a snapshot of a sequence.*computed again'
dsv4 chat 0 --session "$S" -q <<END
What is my name?
END
says out Anna
echo '{' >"$S"
dsv4 chat 3 --session "$S" <<END
What is my name?
END
says err 'talk: line'

closing_line
