"""The description at /openapi.json, and the command line."""

import json
import re
import subprocess
import sys
import tempfile

from server.common import PROGRAM, eq, test


@test
def description(s):
    """openapi.json says what the tables of parameters check, and has every route."""
    subprocess.run([sys.executable, "tools/make-openapi.py", "--check"], check=True)
    v = json.loads(s.get("/openapi.json")[2])
    routes = re.findall(r'\{"(GET|POST)", "([^"]+)"', open("src/server/route.c").read())
    eq({(m.lower(), p) for m, p in routes}, {(m, p) for p, o in v["paths"].items() for m in o})


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
