#!/bin/sh
# Folders as prompts: dsv4 --repo, dsv4 repo (tests/test_page.sh compares the chat page with them).
# usage: BUILD=build/release tests/test_repo.sh
command -v "${PYTHON:-python3}" >/dev/null || {
    echo "SKIP folders as prompts: no python3"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}
exec "${PYTHON:-python3}" -B tests/test_repo.py "${BUILD:-build/release}/dsv4"
