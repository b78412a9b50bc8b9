"""The machine around the server: TLS, clocks, files and sockets that run out, odd environments, signals."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

from server.common import CUBA, ENDLESS, PROGRAM, SKIPPED, Server, answer, begin, chat, content, eq, events, idle, parse, test


@test
def tls(_):
    """The library's own TLS: whole replies, streams, and clients that speak plain HTTP or leave."""
    if not shutil.which("openssl"):
        SKIPPED.append("TLS: no openssl to make a certificate")
        return
    with tempfile.TemporaryDirectory() as d:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                        "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", d + "/key.pem",
                        "-out", d + "/cert.pem"], check=True, capture_output=True)
        s = Server("--tls-cert", d + "/cert.pem", "--tls-key", d + "/key.pem", "--idle-timeout", "2")
        try:
            context = ssl.create_default_context(cafile=d + "/cert.pem")
            context.minimum_version = ssl.TLSVersion.TLSv1_2

            def ask(body):
                text = json.dumps(body).encode()
                with context.wrap_socket(s.connect(), server_hostname="localhost") as c:
                    c.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                              b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
                    out = b""
                    while piece := c.recv(65536):
                        out += piece
                return parse(out)

            status, _, body = ask(chat())
            eq((status, json.loads(body)["choices"][0]["message"]["content"]),
               (200, answer()))
            ev = events(ask(chat(stream=True))[2])
            eq(content(ev), answer())
            assert not s.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200")
            half = s.connect()
            half.sendall(b"\x16\x03\x01\x02\x00\x01")  # begins a handshake, and is silent
            for _ in range(5):
                c = context.wrap_socket(s.connect(), server_hostname="localhost")
                c.sendall(b"GET /hea")
                c.close()
            eq(half.recv(100), b"")
            eq(ask(chat(max_tokens=1))[0], 200)
        finally:
            eq(s.stop(), 0)
        with open(d + "/cert.pem", "w") as f:
            f.write("no certificate\n")
        try:
            Server("--tls-cert", d + "/cert.pem", "--tls-key", d + "/key.pem").kill()
            raise AssertionError("a broken certificate was taken")
        except RuntimeError as e:
            assert "certificate" in str(e), e


@test
def wall_clock_jumps(_):
    """Deadlines, pings and timeouts follow another clock. And nothing is ever fetched: not a connection is tried."""
    compiler = shutil.which(os.environ.get("CC", "cc").split()[-1])
    if not compiler or b"__tsan_init" in open(PROGRAM, "rb").read() or b"__asan_init" in open(PROGRAM, "rb").read():
        SKIPPED.append("a clock that jumps: no compiler, or a sanitizer that minds")
        return
    with tempfile.TemporaryDirectory() as d:
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", d + "/shim.so", "tests/server/shim.c"], check=True)
        s = Server("--idle-timeout", "3", before=["env", "LD_PRELOAD=%s/shim.so" % d])
        try:
            c = s.connect()
            begun = time.monotonic()
            eq(s.post("/v1/chat/completions", chat(timeout=50))[2]["choices"][0]["message"]["content"],
               answer())
            eq(c.recv(1), b"")  # said nothing
            assert 2 < time.monotonic() - begun < 10
            begun = time.monotonic()
            r = s.post("/v1/completions", {**ENDLESS, "timeout": 1.0})[2]
            eq(r["choices"][0]["finish_reason"], "length")
            assert 0.5 < time.monotonic() - begun < 6
            for url in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA",
                        "ftp://localhost/x", "http://[::1]:1/", "\\\\host\\share"):
                for part in ({"type": "image_url", "image_url": {"url": url}},
                             {"type": "input_image", "image_url": url},
                             {"type": "image", "source": {"type": "url", "url": url}},
                             {"type": "file", "file": {"file_data": url}}):
                    m = [{"role": "user", "content": [part, {"type": "text", "text": "what is this?"}]}]
                    for path, body in (("/v1/chat/completions", {"messages": m}), ("/tokenize", {"messages": m}),
                                       ("/v1/messages", {"messages": m, "max_tokens": 1}),
                                       ("/v1/responses", {"input": m})):
                        status, _, r = s.post(path, body)
                        eq((path, url, status), (path, url, 400))
                        assert "passwd" not in json.dumps(r) and "root" not in json.dumps(r)
        finally:
            eq(s.stop(), 0)
        assert b"CONNECT" not in s.text()


@test
def few_descriptors(_):
    """More connections than there are file descriptors: the silent make place, requests go on."""
    s = Server(before=["sh", "-c", 'ulimit -n 200; exec "$@"', "sh"])
    held = []
    try:
        for _ in range(400):
            held.append(s.connect())
        for _ in range(5):
            eq(s.post("/v1/chat/completions", chat())[0], 200)
    finally:
        for c in held:
            c.close()
    eq(s.get("/health")[0], 200)
    eq(s.stop(), 0)


@test
def odd_environment(_):
    """A locale with a decimal comma, no home, no standard input and output, umask 0."""
    with tempfile.TemporaryDirectory() as d:
        s = Server("--cache-dir", d + "/cache", "--cache-min", "50", before=[
            "env", "-u", "HOME", "-u", "PATH", "LC_ALL=de_DE.UTF-8", "LANG=de_DE.UTF-8", "TZ=Asia/Kathmandu",
            "/bin/sh", "-c", 'umask 0; exec "$@" <&- >&-', "sh"])
        r = s.post("/v1/chat/completions", chat("Words. " * 60 + CUBA, logprobs=True,
                                                top_p=0.95))
        eq(r[0], 200)
        float(s.metric("uptime_seconds"))
        eq(s.stop(), 0)
        files = os.listdir(d + "/cache")
        eq(len(files), 1)
        eq(os.stat(d + "/cache/" + files[0]).st_mode & 0o777, 0o600)
        eq(os.stat(d + "/cache").st_mode & 0o777, 0o700)


@test
def signals(_):
    """SIGPIPE and SIGHUP do nothing; SIGTERM at any moment of a request lets it finish."""
    s = Server()
    for n in (signal.SIGPIPE, signal.SIGHUP):
        s.p.send_signal(n)
    eq(s.post("/v1/chat/completions", chat())[0], 200)
    s.kill()
    for i in range(4):
        s = Server()
        c = begin(s, {"prompt": "word " * 1500, "max_tokens": 10, "ignore_eos": True})
        time.sleep(0.02 + 0.1 * i)
        s.p.send_signal(signal.SIGTERM)
        out = b""
        while piece := c.recv(65536):
            out += piece
        # taken in before the signal, or never read: no half reply
        assert not out or (parse(out)[0] == 200 and json.loads(parse(out)[2])["choices"]), out[:300]
        assert out or i == 0
        eq(s.p.wait(30), 0)


@test
def only_one_listens(s):
    """No socket listens but the server's own, on loopback."""
    inodes = {os.readlink("/proc/%d/fd/%s" % (s.p.pid, f)) for f in os.listdir("/proc/%d/fd" % s.p.pid)}
    listening = []
    for family in ("tcp", "tcp6"):
        for line in open("/proc/net/" + family).read().splitlines()[1:]:
            f = line.split()
            if f[3] == "0A" and "socket:[%s]" % f[9] in inodes:
                listening.append(f[1])
    eq(listening, ["%s:%04X" % (socket.inet_aton("127.0.0.1")[::-1].hex().upper(), s.port)])
    idle(s)


@test
def log_lines(_):
    """A line a request, whatever it contains; nothing of what was said, and no key."""
    s = Server("--log", "json", "--api-key", "secret-key-1")
    key = {"Authorization": "Bearer secret-key-1"}
    s.post("/v1/chat/completions", chat("private words"), headers=key)
    s.get("/no%0a%1b[31m\"such", headers=key)
    s.get('/a"b\\c', headers=key)
    s.raw(b"GET /\x1b]52;c;x\x07 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    s.get("/v1/models", headers={"Authorization": "Bearer secret-key-2"})
    eq(s.stop(), 0)
    text = s.text()
    assert b"private" not in text and answer().encode() not in text and b"secret" not in text, text
    assert not set(text) & (set(range(0x20)) - {0x0A}), text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith(b"{")]
    eq([r["status"] for r in lines if r.get("path") == "/v1/models"], [401])
    assert len(lines) >= 4, text
