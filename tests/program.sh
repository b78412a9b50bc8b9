# Sourced by tests of one program: counts, and what it said in $T/out and $T/err. The caller makes $T.
passed=0 failed=0

pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAILED: $1"
    head -c 900 "$T/out" "$T/err" | sed 's/^/    /'
}
says() { # out|err PATTERN
    if grep -qE -- "$2" "$T/$1"; then pass; else fail "std$1 does not match: $2"; fi
}
# run CODE COMMAND...
run() {
    code=$1
    shift
    "$@" >"$T/out" 2>"$T/err"
    got=$?
    if [ $got -eq "$code" ]; then pass; else fail "$*: ended with $got, expected $code"; fi
}
# try WHAT COMMAND...: ends with 0
try() {
    what=$1
    shift
    if "$@" >"$T/out" 2>"$T/err"; then pass; else fail "$what"; fi
}
closing_line() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}
