#!/bin/sh
# What programs tell about themselves: every option of --help stands in the manual page and in the completions,
# formatters and shells read them without complaint, and completions complete.
# usage: BUILD=build/release tests/test_docs.sh (from the top of the tree)
# shellcheck disable=SC2016 # what stands in quotes is for the other shell
set -u
BUILD=${BUILD:-build/release}
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
export HOME="$T"
passed=0 failed=0 skipped=0

ok() { # NAME COMMAND...: ends with 0
    name=$1
    shift
    if "$@" >"$T/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name: $*"
        head -c 600 "$T/log"
    fi
}
quiet() { # NAME COMMAND...: and says nothing
    name=$1
    shift
    ok "$name" sh -c '! "$@" 2>&1 | grep .' sh "$@"
}
skip() {
    skipped=$((skipped + 1))
    echo "SKIP $1"
}
there() { command -v "$1" >/dev/null; }

# The lines of all --help that begin with an option.
options() { grep -oE '^ +(-., )?--[a-z0-9-]+' | grep -oE -- '--[a-z0-9-]+' | sort -u; }

every_option() { # PROGRAM
    missing=
    while read -r o; do
        name=${o#--}
        grep -qF -- "$(echo "$o" | sed 's/-/\\-/g')" "$T/$1.1" || missing="$missing man:$o"
        grep -qF -- "$o" "$T/$1.bash" || missing="$missing bash:$o"
        grep -qE -- "$o(=|\[)" "$T/$1.zsh" || missing="$missing zsh:$o"
        grep -qE -- "-l $name( |\$)" "$T/$1.fish" || missing="$missing fish:$o"
    done <"$T/$1.options"
    echo "$missing"
    [ -z "$missing" ] && [ "$(wc -l <"$T/$1.options")" -ge 5 ]
}

programs=
for path in "$BUILD"/dsv4 "$BUILD"/dsv4-*; do
    [ -f "$path" ] && [ -x "$path" ] || continue
    p=${path##*/}
    programs="$programs $p"
    if [ "$p" = dsv4 ]; then
        "$path" help --man >"$T/$p.1"
        for s in bash zsh fish; do "$path" completion $s >"$T/$p.$s"; done
        for c in $("$path" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do "$path" "$c" --help; done |
            options >"$T/$p.options"
        ok "$p: no completion for tcsh" sh -c '"$1" completion tcsh 2>&1 | grep -q "bash, zsh and fish"' sh "$path"
    else
        "$path" --man >"$T/$p.1"
        for s in bash zsh fish; do "$path" --completion=$s >"$T/$p.$s"; done
        commands=$("$path" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')
        for c in "" $commands; do "$path" $c --help; done | options >"$T/$p.options"
        ok "$p: no completion for tcsh" sh -c '"$1" --completion=tcsh 2>&1 | grep -q "bash, zsh and fish"' sh "$path"
        [ -n "$commands" ] || ok "$p: --help has no commands" sh -c '! "$1" --help | grep -q COMMAND' sh "$path"
    fi
    ok "$p: every option" every_option "$p"
    ok "$p: sections of the manual page" sh -c \
        'for s in NAME SYNOPSIS DESCRIPTION ENVIRONMENT "EXIT STATUS"; do grep -qx ".SH $s" "$1" || exit 1; done' sh "$T/$p.1"
    there groff && quiet "$p: groff" groff -man -Tutf8 -ww -z "$T/$p.1"
    there mandoc && quiet "$p: mandoc" sh -c 'mandoc -T lint -W warning "$1" | grep -v "missing date"' sh "$T/$p.1"
    there bash && quiet "$p: bash" bash -n "$T/$p.bash"
    there zsh && quiet "$p: zsh" zsh -n "$T/$p.zsh"
    there fish && quiet "$p: fish" fish -n "$T/$p.fish"
done
for tool in groff mandoc bash zsh fish; do there $tool || skip "$tool is not here"; done
echo "$programs" | grep -q dsv4-bench || { failed=$((failed + 1)); echo "FAILED: programs: $programs"; }

# ------------------------------------------------------------------ completing
bash_completes() { # PROGRAM WANT WORD...: the words after the last one
    program=$1 want=$2
    shift 2
    got=$(bash -c 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); "_$1"; echo ${COMPREPLY[@]}' bash \
        "$T/$program.bash" "$program" "$@")
    echo "$got"
    [ "$got" = "$want" ]
}
if there bash; then
    ok "bash: a command" bash_completes dsv4 chat cha
    ok "bash: the words of an option" bash_completes dsv4 "on off" chat --cache-quant o
    ok "bash: an option of a command" bash_completes dsv4 --window perplexity --w
    ok "bash: an option of a program without commands" bash_completes dsv4-bench "--prefill" --pr
    ok "bash: its words" bash_completes dsv4-bench "mxfp4" --dense-format mx
fi
if there fish; then
    ok "fish: an option" sh -c 'fish -c "source $1; complete -C \"dsv4-bench --pref\"" | grep -q "^--prefill"' sh "$T/dsv4-bench.fish"
    ok "fish: a command" sh -c 'fish -c "source $1; complete -C \"dsv4 perpl\"" | grep -q "^perplexity"' sh "$T/dsv4.fish"
    ok "fish: an option of a command" sh -c 'fish -c "source $1; complete -C \"dsv4 perplexity --wind\"" | grep -q "^--window"' sh "$T/dsv4.fish"
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
