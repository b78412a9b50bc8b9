#!/bin/sh
# The chat page in headless Chromium: types, waits for streams, unfolds reasoning, attaches files, stops.
# Screenshots go to SHOTS (build/page by default). Skipped by name where there is no Chromium.
# usage: BUILD=build/release tests/test_page.sh
build=${BUILD:-build/release}
skip()
{
    echo "SKIP the chat page: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}
[ -x "$build/dsv4-server" ] || skip "dsv4-server is not built (no libmicrohttpd)"
command -v "${PYTHON:-python3}" >/dev/null || skip "no python3"
chromium=$(command -v chromium || command -v chromium-browser) || skip "no chromium"
exec "${PYTHON:-python3}" -B tests/test_page.py "$build/dsv4-server" "$chromium" "${SHOTS:-build/page}"
