"""The description at /openapi.json, and the command line."""

import json
import os
import re
import subprocess
import sys
import tempfile

from server.common import LONG, PROGRAM, SKIPPED, Server, eq, test


@test
def description(s):
    """openapi.json says what the tables of parameters check, and has every route."""
    subprocess.run([sys.executable, "tools/make-openapi.py", "--check"], check=True)
    v = json.loads(s.get("/openapi.json")[2])
    routes = re.findall(r'\{"(GET|POST)", "([^"]+)"', open("src/server/route.c").read())
    eq({(m.lower(), p) for m, p in routes}, {(m, p) for p, o in v["paths"].items() for m in o})


@test
def requests_from_the_description(_):
    """schemathesis makes requests from openapi.json, right and wrong ones: every reply has a status, a media type
    and a shape that stand there, none is a 5xx, no route answers without its key or to other methods."""
    st = os.path.join(os.path.dirname(sys.executable), "st")
    if not os.path.exists(st):
        SKIPPED.append("the package schemathesis is not there")
        return
    s = Server("--api-key", "secret-key-1", "--max-tokens", "8", "--max-choices", "2")
    try:
        with tempfile.TemporaryDirectory() as d:  # it leaves files where it runs
            p = subprocess.run(
                [st, "run", s.url("/openapi.json"), "-H", "Authorization: Bearer secret-key-1",
                 # a description cannot say everything that a request must be: 400 is always possible
                 "--checks", "all", "--exclude-checks", "positive_data_acceptance",
                 "--phases", "coverage,fuzzing" if LONG else "fuzzing", "--max-examples", "300" if LONG else "5",
                 "--suppress-health-check", "too_slow",  # a busy machine is no fault of the description
                 "--generation-deterministic", "--request-timeout", "60", "--no-color"],
                cwd=d, capture_output=True, timeout=1800)
        assert p.returncode == 0, p.stdout.decode()[-6000:]
        eq(s.metric("errors_server_total", headers={"x-api-key": "secret-key-1"}), 0)
    finally:
        eq(s.stop(), 0)


@test
def command_line(_):
    def run(*args):
        p = subprocess.run([PROGRAM, *args], capture_output=True, timeout=60)
        return p.returncode, p.stdout.decode(), p.stderr.decode()

    eq(run("--check")[0], 0)
    eq(run("--version")[0], 0)
    assert "--api-key-file" in run("--help")[1]
    eq(run("--host", "0.0.0.0", "--check")[0], 2)
    eq(run("--host", "0.0.0.0", "--no-auth", "--check")[0], 0)
    eq(run("--api-key", "short", "--check")[0], 2)
    eq(run("--api-key", "long-enough", "--no-auth", "--check")[0], 2)
    eq(run("--api-key-file", "/nonexistent", "--check")[0], 2)
    eq(run("--max-choices", "20", "--check")[0], 2)
    eq(run("--allow-origin", "*", "--check")[0], 2)
    eq(run("--host", "no.such.name.invalid", "--no-auth")[0], 2)
    eq(run("-m", "/nonexistent")[0] in (1, 3), True)
    with tempfile.NamedTemporaryFile("w") as f:
        f.write("# a comment\nfirst-key-1234\n\nsecond-key-1234\n")
        f.flush()
        code, out, _ = run("--api-key-file", f.name, "--check")
        eq(code, 0)
        assert "2 keys" in out
