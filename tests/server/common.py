"""What the tests of dsv4-server share: a server on a port of its own, requests over plain sockets."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

PROGRAM = sys.argv[1]
TESTS = []
SKIPPED = []
LONG = bool(os.environ.get("CHECK_LONG")) and not os.environ.get("CHECK_QUICK")  # quick: with a sanitizer


def test(f):
    TESTS.append(f)
    return f


class Server:
    """A running server on a port of its own."""

    def __init__(self, *args, before=()):
        """before: a command that ends by executing the server's."""
        self.log = tempfile.TemporaryFile()
        self.args = args
        env = dict(os.environ, DSV4_THREADS="2")
        env.pop("DSV4_MODEL", None)
        self.p = subprocess.Popen([*before, PROGRAM, "--port", "0", "--batch", "64", *args], stderr=self.log,
                                  stdout=subprocess.DEVNULL, env=env)
        for _ in range(6000):
            m = re.search(rb"listening on https?://\S+:(\d+)/", self.text())
            if m:
                self.port = int(m.group(1))
                return
            if self.p.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError("the server does not start: %r" % self.text())

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def stop(self, timeout=60):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
        return self.p.wait(timeout)

    def kill(self):
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait()

    def connect(self, timeout=30):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        return s

    def url(self, path=""):
        return "http://127.0.0.1:%d%s" % (self.port, path)

    def metric(self, name, **kw):
        _, _, body = self.get("/metrics", **kw)
        m = re.search(r"^dsv4_%s (\S+)$" % name, body.decode(), re.M)
        return float(m.group(1))

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, bytes) of one request on a connection of its own."""
        head = {"Host": "127.0.0.1:%d" % self.port, "Connection": "close"}
        if body is not None:
            head["Content-Type"] = "application/json"
            head["Content-Length"] = str(len(body))
        head.update(headers or {})
        lines = ["%s %s HTTP/1.1" % (method, path)]
        lines += ["%s: %s" % kv for kv in head.items() if kv[1] is not None]
        raw = ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")
        return parse(self.raw(raw, timeout))

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, value, **kw):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        status, head, text = self.request("POST", path, body, **kw)
        return status, head, json.loads(text) if text else None

    def raw(self, data, timeout=30, half_close=False):
        """Everything that comes back."""
        out = b""
        with self.connect(timeout) as s:
            try:
                s.sendall(data)
                if half_close:
                    s.shutdown(socket.SHUT_WR)
                while True:
                    piece = s.recv(65536)
                    if not piece:
                        break
                    out += piece
            except (ConnectionResetError, BrokenPipeError):
                pass
        return out


def parse(raw):
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0]:
        return 0, {}, b""
    status = int(lines[0].split()[1])
    fields = {k.lower(): v.strip() for k, _, v in (l.partition(":") for l in lines[1:])}
    if fields.get("transfer-encoding") == "chunked":
        out = b""
        while body:
            n, _, body = body.partition(b"\r\n")
            n = int(n, 16)
            if n == 0:
                break
            out, body = out + body[:n], body[n + 2:]
        body = out
    return status, fields, body


def events(body):
    """The data of server-sent events; comments are left out."""
    out = []
    for block in body.decode().split("\n\n"):
        data = [l[6:] for l in block.split("\n") if l.startswith("data: ")]
        if data:
            out.append(data[0] if data[0] == "[DONE]" else json.loads(data[0]))
    return out


CUBA = "What is the capital of Cuba?"


def chat(text=CUBA, **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0,
            "thinking": {"type": "disabled"}, **more}


def eq(a, b):
    assert a == b, "%r is not %r" % (a, b)


@functools.lru_cache(None)
def answer():
    """What the model says to chat(), whatever its weights are: `dsv4` answers the same question."""
    env = dict(os.environ, DSV4_THREADS="2")
    env.pop("DSV4_MODEL", None)
    text = subprocess.run([os.path.join(os.path.dirname(PROGRAM), "dsv4"), "ask", "--think", "off", "--greedy", CUBA],
                          check=True, env=env, capture_output=True, timeout=120).stdout.decode()
    assert len(text) > 8, text
    return text.removesuffix("\n")


def content(events):
    """The text of a streamed chat."""
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events if e != "[DONE]" and e["choices"])


TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
                   "required": ["city"], "additionalProperties": False}}}
OTHER_TOOL = {"type": "function", "function": {
    "name": "get_time", "parameters": {"type": "object", "properties": {
        "zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"], "additionalProperties": False}}}


def idle(s, seconds=20):
    """Waits until nothing is in work."""
    for _ in range(int(seconds * 50)):
        r = json.loads(s.get("/slots")[2])
        if r["running"] == 0 and r["queued"] == 0:
            return
        time.sleep(0.02)
    raise AssertionError("still busy: %r" % r)


def begin(s, body, window=None):
    """A request whose answer is not read."""
    text = json.dumps(body).encode()
    c = socket.socket()
    c.settimeout(120)  # with a sanitizer, on a busy machine
    if window:
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    c.connect(("127.0.0.1", s.port))
    c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(text) + text)
    return c


ENDLESS = {"prompt": "Once upon a time", "max_tokens": 15000, "ignore_eos": True, "temperature": 1.0}
