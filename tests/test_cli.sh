#!/bin/sh
# Tests of the program dsv4 as a user meets it: every command, every exit code, bad input, closed and full
# outputs, signals, a terminal. usage: BUILD=build/release tests/test_cli.sh (from the top of the tree).
# What needs python3 (a pseudo terminal, JSON) is skipped by name where there is none.
# shellcheck disable=SC2016 # $D in quotes is expanded by the sh -c that runs it
set -u
D=$(pwd)/${BUILD:-build/release}/dsv4
M=models/nano
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
export D T M
unset DSV4_MODEL XDG_STATE_HOME NO_COLOR
export HOME="$T/home" TERM=xterm
export DSV4_THREADS=1 # many short runs, beside whatever else this machine does
mkdir "$HOME"
passed=0 failed=0 skipped=0
[ -x "$D" ] || { echo "no program $D"; exit 1; }
PY=$(command -v python3 || true)
[ -n "$PY" ] && "$PY" -c 'import pty, json' 2>/dev/null || PY=

pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAILED: $1"
    shift
    for line; do printf '    %s\n' "$line"; done
    head -c 600 "$T/out" "$T/err" | sed 's/^/    /'
}
skip() {
    skipped=$((skipped + 1))
    echo "SKIP $1"
}

# run CODE OUT ERR COMMAND...: the command (a line for sh) must end with CODE; OUT and ERR are extended
# regular expressions that a line of stdout and stderr must match; "" says nothing, "-" that it is empty.
run() {
    code=$1 out=$2 err=$3
    shift 3
    sh -c "$*" </dev/null >"$T/out" 2>"$T/err"
    got=$?
    if [ "$got" -ne "$code" ]; then
        fail "$*" "ended with $got, expected $code"
    elif ! matches "$T/out" "$out"; then
        fail "$*" "stdout does not match: $out"
    elif ! matches "$T/err" "$err"; then
        fail "$*" "stderr does not match: $err"
    elif [ "$code" -ne 0 ] && [ -s "$T/err" ] && grep -qvE '^dsv4: ' "$T/err"; then
        fail "$*" "stderr holds something else than messages"
    else
        pass
    fi
}
matches() {
    case $2 in
    '') return 0 ;;
    -) [ ! -s "$1" ] ;;
    *) grep -qaE -- "$2" "$1" ;;
    esac
}
holds() { # NAME COMMAND...
    what=$1
    shift
    if "$@"; then pass; else fail "$what"; fi
}
same() { # NAME FILE FILE
    if cmp -s "$2" "$3"; then pass; else fail "$1" "$2 and $3 differ"; fi
}

# ------------------------------------------------------------------ help (man pages, completions: test_docs.sh)
run 0 '^Commands:' - '$D --help'
run 0 '^Commands:' - '$D -h'
run 0 '^dsv4 [0-9]' - '$D --version'
run 0 '^kernels ' - '$D version'
commands=$("$D" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')
holds "the list of commands" [ "$(echo "$commands" | wc -l)" -ge 13 ]
for c in $commands; do
    run 0 'Usage:' - '$D '"$c"' --help'
    "$D" help "$c" >"$T/help"
    same "help $c = $c --help" "$T/help" "$T/out"
done
# ------------------------------------------------------------------ wrong usage: 2, with a hint
run 2 - 'did you mean chat' '$D chta'
run 2 - 'did you mean tokenize' '$D tokenise abc'
run 2 - 'did you mean --temp' '$D --tmp 1 hello'
run 2 - 'unknown option' '$D --zzzzzzzz hello'
run 2 - 'unknown option' '$D -Z hello'
run 2 - 'no option of dsv4 chat' '$D chat --window 5'
run 2 - 'needs a value' '$D hello --temp'
run 2 - 'takes no value' '$D --json=1 hello'
run 2 - 'is not a number from 0 to 100' '$D --temp x hello'
run 2 - 'is not a number' '$D --temp nan hello'
run 2 - 'is not a number' '$D --temp -1 hello'
run 2 - 'DSV4_THREADS' 'DSV4_THREADS=none $D hello'
run 2 - 'is not a number' '$D --top-p 1.5 hello'
run 2 - 'is not a number' '$D -n 1e3 hello'
run 2 - 'is not a number' '$D -n 99999999999999999999 hello'
run 2 - 'is not a number' '$D --ctx 0 hello'
run 2 - 'none of on.off' '$D --cache-quant maybe hello'
run 2 - 'number of bytes' '$D --max-memory 5X hello'
run 2 - 'seed' '$D --seed -1 hello'
run 2 - 'logit-bias' '$D --logit-bias 5 hello'
run 2 - 'no token 4096' '$D --logit-bias 4096=1 hello'
run 2 - 'stop' '$D --stop "" hello'
run 2 - 'logprobs goes with' '$D --logprobs 3 hello'
run 2 - 'thinking "sometimes"' '$D --think sometimes hello'
run 2 - 'revision is for V4' '$D --revision preview hello'
run 2 - 'chunks' '$D run --chunks 3,0 hello'
run 2 - 'chunks' '$D run --chunks 3,,1 hello'
run 2 - 'chunks' '$D run --chunks 3,1, hello'
run 2 - 'empty' '$D ""'
run 2 - 'empty' '$D "   "'
run 2 - 'empty' 'printf "\n\n" | $D'
run 2 - 'empty' '$D -m "" hello'
run 2 - 'too much' '$D chat hello'
run 2 - 'missing' '$D perplexity'
run 2 - 'missing' '$D logits'
run 2 - 'is none of render' '$D debug dance'
run 2 - 'no such command' '$D help nothing'
run 2 - 'one of them' 'echo 1 >$T/one; $D run --ids-file $T/one text'
run 2 - 'no model' 'cp $D $T/dsv4 && $T/dsv4 hello'
run 2 - 'no token id' '$D detokenize 12x'
run 2 - 'out of range' '$D detokenize 4096'
run 2 - 'out of range' '$D detokenize 99999999999999999999'

# ------------------------------------------------------------------ refused: 3
run 3 - '/nowhere' '$D -m /nowhere hello'
run 3 - 'config.json' '$D -m $T hello'
run 3 - 'README' '$D -m README.md hello'
run 3 - '' '$D info /nowhere'
run 3 - '' '$D plan /nowhere'
run 3 - '' '$D -m /dev/zero hello'
run 3 - 'nofile' '$D -f $T/nofile hello'
run 3 - 'nofile' '$D run -f $T/nofile'
run 3 - 'directory' '$D run -f $T'
run 3 - 'nofile' '$D perplexity $T/nofile'
run 3 - 'nofile' '$D tokenize --tokenizer $T/nofile hello'
run 3 - 'no token id' 'echo "1 2 x3" >$T/ids; $D run --ids-file $T/ids'
run 3 - 'number 3' 'echo "1 2 4096" >$T/ids; $D logits --ids-file $T/ids --out $T/x.npy'
run 3 - 'no token ids' ': >$T/ids; $D logits --ids-file $T/ids --out $T/x.npy'
run 3 - '' 'echo "-1" >$T/ids; $D detokenize --ids-file $T/ids'
run 3 - '' 'printf "1\0002" >$T/ids; $D detokenize --ids-file $T/ids'
run 3 - 'not a list' 'echo "{}" >$T/tools; $D --tools $T/tools hello'
run 3 - 'line 1' 'echo "[{]" >$T/tools; $D --tools $T/tools hello'
mkdir "$T/cut" && cp $M/*.json "$T/cut" && head -c 1000000 $M/model.safetensors >"$T/cut/model.safetensors"
run 3 - 'model.safetensors' '$D -m $T/cut hello'
cp $M/model.safetensors "$T/cut" && echo '{' >"$T/cut/config.json"
run 3 - 'config.json' '$D -m $T/cut hello'
cp $M/config.json "$T/cut" && printf '{"a":"\033[31m"' >"$T/cut/tokenizer.json"
run 3 - 'tokenizer.json' '$D -m $T/cut hello'
holds "a refused run leaves no file" [ ! -e "$T/x.npy" ]

# ------------------------------------------------------------------ too little memory: 4; too long: 1
run 4 - 'memory' '$D --max-memory 1M hello'
run 1 - 'context holds 8' '$D --ctx 8 "one two three four five six seven eight nine ten"'
run 1 - 'context holds 4' 'echo "1 2 3 4 5" >$T/ids; $D run --ctx 4 --ids-file $T/ids'
run 1 - 'context holds 4' '$D logits --ctx 4 --ids-file $T/ids --out $T/x.npy'
run 2 - 'window' '$D perplexity --ctx 16 --window 17 $M/eval/text.txt'

# ------------------------------------------------------------------ answers
run 0 '^I am glad to hear that\.$' - '$D --greedy "Well done!"'
run 0 '^I am glad to hear that\.$' - '$D --greedy Well done!'
run 0 '^I am glad to hear that\.$' - 'echo "Well done!" | $D --temp 0'
run 0 '^I am glad to hear that\.$' - '$D -m $M ask --greedy -- "Well done!"'
run 0 '^I am glad to hear that\.$' - 'DSV4_MODEL=$M $D --greedy "Well done!"'
run 3 - '/nowhere' 'DSV4_MODEL=/nowhere $D --greedy "Well done!"'
run 0 '^I am glad to$' - '$D --greedy -n 4 "Well done!"'
run 0 '^I am $' - '$D --greedy --stop glad "Well done!"'
run 0 '' 'answer [0-9]+ tokens, [0-9.]+ tokens/s; memory' '$D --greedy --stats "Well done!"'
run 0 '.' 'not UTF-8' '$D --greedy "$(printf "Well done!\\377")"'
run 0 '^I am glad' '' 'LC_ALL=de_DE.UTF-8 $D --temp 0.0 --top-p 0.5 "Well done!"'
run 0 '^I am glad to hear that\.$' - 'env -u HOME $D --greedy "Well done!"'
run 0 '^I am glad to hear that\.$' - '$D --greedy -t 1 --batch 3 --cache-quant off --exact --ctx 64 "Well done!"'
run 0 '' - 'printf "The pass key is 12345.\n" >$T/note; $D --greedy -f $T/note "What is the pass key?"'
run 0 '' - '$D --seed 7 -n 30 "Tell me a story." >$T/a; $D --seed 7 -n 30 -t 2 "Tell me a story." >$T/b'
same "the same seed, the same text" "$T/a" "$T/b"
run 0 '' - '$D --think on --greedy "What is 12 + 30?"'
holds "no reasoning on stdout" [ "$(grep -c think "$T/out")" -eq 0 ]
run 0 '' '[0-9]' '$D --think 80 --greedy --show-thinking "What is 12 + 30?"'
run 0 '' - '$D --system "Answer briefly." --greedy "Well done!"'

# ------------------------------------------------------------------ raw completion, ids
# The prompt of a question, token by token: what it answers is what the chat answers, whatever the weights.
(echo 0 4081; $D tokenize "Well done!"; echo 4082 4086) >"$T/ids"
n_ids=$(wc -w <"$T/ids")
run 0 '^[0-9]+( [0-9]+)+ 1$' - '$D run --ids-file $T/ids --ids --temp 0 -n 24 | tee $T/want'
run 0 - - '$D run --model $M --ids-file $T/ids --ids --temp 0 -n 24 --out $T/answer --chunks 3,1,2'
same "run --out, in other chunks" "$T/answer" "$T/want"
run 0 '' - '$D --greedy "Well done!" | tee $T/a'
run 0 - - '$D run --ids-file - --greedy <$T/ids >$T/b; echo >>$T/b'
same "ids of a prompt = the chat" "$T/a" "$T/b"
first=$(cut -d' ' -f1 "$T/want")
run 0 '^[0-9]+ [0-9]+ [0-9]+$' - '$D run --ids-file $T/ids --ids --greedy -n 3 --cache-quant off --threads 2'
run 0 '^1204' - '$D run --ids-file $T/ids --ids --greedy -n 1 --logit-bias '"$first"'=-inf --logit-bias 1204=100'
run 0 '' - '$D run --greedy -n 8 "Once upon a time"'
run 0 '' - 'printf "Once upon a time" | $D run --greedy -n 8 >$T/a; $D run --greedy -n 8 -f $T/src 2>/dev/null; printf "Once upon a time" >$T/src; $D run --greedy -n 8 -f $T/src >$T/b'
same "run from a pipe = from a file" "$T/a" "$T/b"
run 0 - - '$D run --greedy -n 8 --out $T/c "Once upon a time"'
same "run --out = stdout" "$T/a" "$T/c"
run 0 '' - '$D run --greedy -n 5 ""'
run 2 - 'empty' '$D run --no-bos ""'
run 0 '' - '$D run --greedy -n 5 --no-bos --markers "<｜User｜>Hi<｜Assistant｜></think>"'

# ------------------------------------------------------------------ tokenizer
run 0 '^[0-9]+ [0-9]+$' - '$D tokenize "Hello there" | tee $T/hello'
run 0 '^Hello there$' - '$D tokenize "Hello there" | $D detokenize | cat; echo'
run 0 '^Hello there$' - '$D detokenize $(cat $T/hello); echo'
run 0 '^4085$' - '$D tokenize --markers "<think>"'
run 0 '^[0-9]+ [0-9]+ ' - '$D tokenize "<think>"'
run 0 '^4085	<think>$' - '$D tokenize --markers --pieces "<think>"'
run 0 '^$' - '$D tokenize ""'
run 0 '' 'not UTF-8' '$D tokenize "$(printf "a\\377b")"'
run 0 '' - 'head -c 100000 $M/eval/text.txt >$T/a; $D tokenize -f $T/a | $D detokenize >$T/b'
same "tokenize and back" "$T/a" "$T/b"
run 0 '' - 'printf "a\000b\033[31m\n" >$T/a; $D tokenize <$T/a | $D detokenize >$T/b'
same "control bytes pass a pipe unchanged" "$T/a" "$T/b"

# ------------------------------------------------------------------ threads and nodes
run 0 '^threads' - '$D topology'
run 0 '"lanes"' - '$D topology --json -t 3'
run 0 'weights bytes' - '$D topology -m $M'
run 2 - 'this machine has cpus' '$D topology --cpus 0-65000'
run 2 - 'no list' '$D --cpus x hello'
run 2 - 'NUMA node' '$D --numa 900 hello'
run 2 - 'auto, off' '$D plan --numa on'

# ------------------------------------------------------------------ logits, perplexity, info, plan
run 0 - - '$D logits --ids-file $T/ids --out $T/l.npy'
size=$(wc -c <"$T/l.npy")
holds "size of the .npy" [ "$size" -eq $((128 + n_ids * 4096 * 4)) ]
run 0 - - '$D logits --ids-file $T/ids --chunks 2,1,3 --threads 2 >$T/l2.npy'
same "logits do not depend on chunks and threads" "$T/l.npy" "$T/l2.npy"
head -c 3000 $M/eval/text.txt >"$T/text"
run 0 '^perplexity [0-9]' - '$D perplexity $T/text'
run 0 '^perplexity [0-9]' - '$D perplexity --window 100 --cache-quant off - <$T/text'
run 2 - 'no text' ': >$T/empty; $D perplexity $T/empty'
run 0 'V4.1' - '$D info'
run 0 'V4' - '$D info tests/golden/v4-tiny'
run 0 'caches' - '$D plan --ctx 1000'
run 0 'caches' - '$D plan -m tests/golden/v4-tiny --paged --rewind 4096 --max-memory 8G'

# ------------------------------------------------------------------ debug
run 0 '"prompt": ".*Hi.*"ids": \[' - 'echo "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"options\":{\"thinking_mode\":\"chat\"}}" | $D debug render --family v41'
run 0 '"error":' - 'echo "{\"messages\":[{\"role\":\"ghost\",\"content\":\"Hi\"}],\"options\":{\"thinking_mode\":\"chat\"}}" | $D debug render'
run 0 '"error":' - 'echo "{{{{" | $D debug parse'
run 0 '"reasoning_content": "a", "content": "b", "tool_calls": \[\], "finish_reason": "length"' - 'echo "{\"text\":\"a</think>b\",\"thinking_mode\":\"thinking\"}" | $D debug parse'
run 0 '"ids": \[4085\], "ids_plain": \[[0-9, ]+\], "cuts": \[' - 'echo "{\"text\":\"<think>\"}" | $D debug tokenize'
run 0 '"bytes": "48656c6c6f", "pieces": \["Hello"\], "flush": ""' - 'echo "{\"ids\":[$(cut -d" " -f1 $T/hello)]}" | $D debug detokenize'
run 0 '"error":.*out of range' - 'echo "{\"ids\":[-1]}" | $D debug detokenize'
run 0 - - '$D debug tokenize --tokenizer tests/golden/v4-tiny/tokenizer.json'
run 2 - 'none of v4, v41' '$D debug render --family v5'
run 2 - 'is for --family v4' '$D debug render --family v41 --revision 0731'

# ------------------------------------------------------------------ outputs that are closed, full, gone
run 1 '' 'standard output: cannot write' '$D version >&-'
run 1 '' 'standard output: cannot write' '$D --greedy "Well done!" >&-'
run 0 '^I am glad' '' '$D --greedy "Well done!" 2>&-'
run 0 '^I am glad' - '$D --greedy "Well done!" <&-'
run 1 - 'standard output: cannot write: Broken pipe' '(sleep 0.2; $D help --man; echo $? >$T/code) | true; sleep 0.6; exit $(cat $T/code)'
run 1 - 'Broken pipe' '(sleep 0.2; $D --greedy "Well done!"; echo $? >$T/code) | true; while ! [ -s $T/code ]; do sleep 0.1; done; exit $(cat $T/code)'
if [ -w /dev/full ]; then
    run 1 - 'No space left' '$D version >/dev/full'
    run 1 - 'No space left' '$D --greedy "Well done!" >/dev/full'
    run 1 - 'No space left' '$D --json --greedy "Well done!" >/dev/full'
    run 1 - 'No space left' '$D run --greedy -n 3 --out /dev/full abc'
    run 1 - 'No space left' '$D logits --ids-file $T/ids --out /dev/full'
    holds "/dev/full is still a device" [ -c /dev/full ]
else
    skip "full outputs (no /dev/full)"
fi
run 1 - 'nodir' '$D run --greedy -n 3 --out $T/nodir/x abc'
run 1 - 'directory' '$D run --greedy -n 3 --out $T abc'
run 0 - - 'echo old >$T/target; ln -sf target $T/link; $D run --greedy -n 3 --out $T/link abc; test -L $T/link; test "$(cat $T/target)" != old'

# ------------------------------------------------------------------ chat through a pipe
run 0 '^I am glad to hear that\.$' - 'echo "Well done!" | $D chat --greedy'
run 0 '' - 'printf "Well done!\n\nWell done!\n/quit\nnot reached\n" | $D chat --greedy'
holds "two messages, two answers" [ "$(grep -c . "$T/out")" -eq 2 ]
run 0 '' - 'printf "Well done!\n/clear\nWell done!\n" | $D chat --greedy'
holds "/clear forgets" [ "$(sort -u "$T/out" | wc -l)" -eq 1 ]
run 2 '^I am glad' 'no such command' 'printf "/nonsense\nWell done!\n" | $D chat --greedy'
run 0 '' - 'printf "Well \\\\\ndone!\n/save $T/c1\n" | $D chat --greedy; grep -q "Well .ndone!" $T/c1'
run 0 '' - 'printf "\"\"\"\nWell\ndone!\n\"\"\"\n/save $T/c2\n" | $D chat --greedy; grep -q "Well.ndone!" $T/c2'
run 0 '' - 'printf "/system Be brief.\nWell done!\n/save $T/c3\n" | $D chat --greedy; grep -q "Be brief" $T/c3'
run 0 '' - 'printf "/load $T/c3\n/save $T/c4\n" | $D chat --greedy'
same "/save and /load" "$T/c3" "$T/c4"
run 0 '' - 'printf "/file $T/note\nWhat is the pass key?\n/save $T/c5\n" | $D chat --greedy; grep -q "12345" $T/c5'
run 3 '' 'not a conversation' 'echo "{\"a\":5}" >$T/bad; printf "/load $T/bad\n" | $D chat'
run 3 '' 'nofile' 'printf "/load $T/nofile\n" | $D chat'
run 1 '' 'nodir' 'printf "/save $T/nodir/x\n" | $D chat'
run 2 '' 'none of off' 'printf "/think maybe\n" | $D chat'
run 0 '' 'not UTF-8' 'printf "a\377\n" | $D chat -n 3'
run 1 '' 'context holds 16' 'printf "one two three four five six seven eight nine ten eleven twelve\nHi\n" | $D chat --ctx 16 -n 2'
holds "the next message works after one that was too long" grep -q . "$T/out"
run 0 '' '' 'printf "Hi\n" | $D chat --think on --greedy; printf "/think low\nHi\n/think off\nHi\n" | $D chat --greedy'

# A turn's reasoning is taken back when the next begins: from the mark at the end of its prompt, rings or not.
printf "What is 12 + 345?\nWhat is 77 + 4?\nWhat is 5 + 5?\n" |
    "$D" chat --think on --greedy --stats --rewind 1 >"$T/out" 2>"$T/err"
holds "no turn is computed again" [ "$(sed -n 's/^prompt \([0-9]*\) tokens.*/\1/p' "$T/err" | sed 1d | sort -n | tail -n 1)" -lt 40 ]

# The file of a model shrinks while it is mapped: an answer, or our message and our code.
cp -r $M "$T/shrink" && mkfifo "$T/fifo"
"$D" chat -m "$T/shrink" --greedy <"$T/fifo" >"$T/shrink.out" 2>"$T/shrink.err" &
pid=$!
exec 3>"$T/fifo"
echo 'Well done!' >&3
n=0
while ! grep -q . "$T/shrink.out" 2>/dev/null && [ $n -lt 600 ]; do n=$((n + 1)); sleep 0.1; done
: >"$T/shrink/model.safetensors"
echo 'Well done!' >&3
exec 3>&-
wait $pid
code=$?
cp "$T/shrink.out" "$T/out" && cp "$T/shrink.err" "$T/err"
case $code in
3) holds "SIGBUS has a message" matches "$T/err" '^dsv4: .*/shrink/model\.safetensors.*shrank' ;;
0) pass ;;
*) fail "a model's file shrinks" "ended with $code" ;;
esac

# ------------------------------------------------------------------ with python3: JSON, signals, a terminal
if [ -n "$PY" ]; then
    "$PY" tests/test_cli.py "$D" >"$T/out" 2>"$T/err"
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$T/out" | tail -n 1)
    why=$(sed -n 's/^SKIP //p' "$T/out")
    [ -z "$why" ] || skip "$why"
    if [ -n "$line" ]; then
        passed=$((passed + ${line%% passed*}))
        bad=${line#*, }
        failed=$((failed + ${bad%% failed}))
        [ "${bad%% failed}" = 0 ] || { cat "$T/out" "$T/err"; }
    else
        fail "tests/test_cli.py"
        cat "$T/err"
    fi
else
    skip "JSON, signals and the terminal (no python3)"
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
