#!/bin/sh
# dsv4-server as its clients meet it: with Python's own sockets, and with packages from PyPI: the clients openai
# and anthropic, schemathesis (requests from /openapi.json), deepseek-recipe (a second opinion). They lie in a
# virtual environment below build/venv; without PyPI those tests are skipped by name.
# usage: BUILD=build/release tests/test_server.sh [NAME...]
build=${BUILD:-build/release}
venv=build/venv/server
packages="openai anthropic schemathesis deepseek-recipe"
skip()
{
    echo "SKIP dsv4-server: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}
[ -x "$build/dsv4-server" ] || skip "it is not built (no libmicrohttpd)"
command -v "${PYTHON:-python3}" >/dev/null || skip "no python3"
python=${PYTHON:-python3}
if [ "$(cat "$venv/complete" 2>/dev/null)" != "$packages" ]; then
    rm -rf "$venv"
    if "$python" -m venv "$venv" >/dev/null 2>&1 &&
        "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 30 \
            $packages >"$venv/log" 2>&1; then
        echo "$packages" >"$venv/complete"
    fi
fi
[ -e "$venv/complete" ] && python=$venv/bin/python
exec "$python" -B tests/test_server.py "$build/dsv4-server" "$@"
