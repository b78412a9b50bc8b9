"""dsv4-server over real sockets: framing, limits, shapes, streams, the clients of OpenAI and Anthropic.

usage: python tests/test_server.py PROGRAM [NAME...]     (from the top of the tree)
"""

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

PROGRAM = sys.argv[1]
TESTS = []
SKIPPED = []


def test(f):
    TESTS.append(f)
    return f


class Server:
    """A running server on a port of its own."""

    def __init__(self, *args):
        self.log = tempfile.TemporaryFile()
        self.args = args
        env = dict(os.environ, DSV4_THREADS="2")
        env.pop("DSV4_MODEL", None)
        self.p = subprocess.Popen([PROGRAM, "--port", "0", "--batch", "64", *args], stderr=self.log,
                                  stdout=subprocess.DEVNULL, env=env)
        for _ in range(600):
            m = re.search(rb"listening on https?://\S+:(\d+)/", self.text())
            if m:
                self.port = int(m.group(1))
                return
            if self.p.poll() is not None:
                break
            time.sleep(0.1)
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

    def metric(self, name):
        _, _, body = self.get("/metrics")
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


def chat(text="What is the capital of Cuba?", **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0,
            "thinking": {"type": "disabled"}, **more}


def eq(a, b):
    assert a == b, "%r is not %r" % (a, b)


TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
                   "required": ["city"], "additionalProperties": False}}}
OTHER_TOOL = {"type": "function", "function": {
    "name": "get_time", "parameters": {"type": "object", "properties": {
        "zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"], "additionalProperties": False}}}


# ------------------------------------------------------------------ framing

@test
def framing(s):
    host = "Host: 127.0.0.1:%d\r\n" % s.port
    json_type = "Content-Type: application/json\r\n"
    body = json.dumps(chat(max_tokens=2))
    post = "POST /v1/chat/completions HTTP/1.1\r\n" + host + json_type
    length = "Content-Length: %d\r\n" % len(body)
    bad = {
        "two hosts": "GET /health HTTP/1.1\r\n" + host + host + "\r\n",
        "no host": "GET /health HTTP/1.1\r\n\r\n",
        "two lengths": post + length + length + "\r\n" + body,
        "two different lengths": post + length + "Content-Length: 3\r\n\r\n" + body,
        "length and encoding": post + length + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two encodings": post + "Transfer-Encoding: chunked\r\n" * 2 + "\r\n0\r\n\r\n",
        "unknown encoding": post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "encoding identity": post + "Transfer-Encoding: identity\r\n\r\n",
        "length with a sign": post + "Content-Length: +5\r\n\r\nhello",
        "length in hex": post + "Content-Length: 0x5\r\n\r\nhello",
        "length too large": post + "Content-Length: 99999999999999999999\r\n\r\n",
        "negative length": post + "Content-Length: -1\r\n\r\n",
        "two keys": "GET /health HTTP/1.1\r\n" + host + "Authorization: Bearer a\r\n" * 2 + "\r\n",
        "space before colon": "GET /health HTTP/1.1\r\n" + host + "X-A : b\r\n\r\n",
        "folded line": "GET /health HTTP/1.1\r\n" + host + "X-A: b\r\n c\r\n\r\n",
        "NUL in a value": "GET /health HTTP/1.1\r\n" + host + "X-A: b\0c\r\n\r\n",
        "%00 in the path": "GET /health%00 HTTP/1.1\r\n" + host + "\r\n",
        "broken escape": "GET /heal%zz HTTP/1.1\r\n" + host + "\r\n",
        "absolute target": "GET http://evil/health HTTP/1.1\r\n" + host + "\r\n",
        "control byte in target": "GET /he\x01alth HTTP/1.1\r\n" + host + "\r\n",
        "HTTP/1.0 with encoding": "POST /tokenize HTTP/1.0\r\n" + host + json_type +
                                  "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/3.7": "GET /health HTTP/3.7\r\n" + host + "\r\n",
        "chunk size that is no number": post + "Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        "huge chunk size": post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab\r\n",
        "negative chunk size": post + "Transfer-Encoding: chunked\r\n\r\n-2\r\nab\r\n0\r\n\r\n",
        "garbage": "\x16\x03\x01\x02garbage\r\n\r\n",
    }
    for name, data in bad.items():
        try:
            out = s.raw(data.encode("latin-1"), timeout=2)
        except socket.timeout:
            out = b""  # waits for what never comes: slow_and_silent shows how that ends
        status = parse(out)[0] if out else 0
        # refused, or hung up on without a word; never an answer, never two
        assert status in (0, 400, 413, 431, 501, 505), (name, out[:200])
        # (libmicrohttpd 0.9.75 writes the head of its own refusals twice, and closes)
        eq(set(re.findall(rb"HTTP/1\.1 (\d+)", out)) - {b"400", b"413", b"431", b"501", b"505"}, set())
    eq(s.get("/health")[0], 200)


@test
def framing_good(s):
    host = "Host: 127.0.0.1:%d\r\n" % s.port
    # HTTP/1.0, HEAD, pipelining, chunked bodies, a body in single bytes
    eq(parse(s.raw(b"GET /health HTTP/1.0\r\n\r\n"))[0], 200)
    status, head, body = s.request("HEAD", "/health")
    eq((status, body), (200, b""))
    two = ("GET /health HTTP/1.1\r\n" + host + "\r\n" + "GET /v1/models HTTP/1.1\r\n" + host +
           "Connection: close\r\n\r\n").encode()
    out = s.raw(two)
    eq(out.count(b"HTTP/1.1 200"), 2)
    text = json.dumps({"content": "Hello there"}).encode()
    pieces = b"".join(b"%x\r\n%s\r\n" % (1, bytes([c])) for c in text) + b"0\r\n\r\n"
    out = s.raw(("POST /tokenize HTTP/1.1\r\n" + host + "Content-Type: application/json\r\n"
                 "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n").encode() + pieces)
    status, _, body = parse(out)
    eq(status, 200)
    eq(json.loads(body)["count"], 2)


@test
def routes(s):
    eq(s.get("/nothing")[0], 404)
    eq(s.get("/v1/../etc/passwd")[0], 404)
    eq(s.get("//health")[0], 404)
    eq(s.get("/health/")[0], 404)
    status, head, _ = s.request("DELETE", "/health")
    eq(status, 405)
    assert "GET" in head["allow"]
    eq(s.request("BREW", "/health")[0], 501)
    eq(s.get("/v1/chat/completions")[0], 405)
    status, _, body = s.request("POST", "/v1/chat/completions", b"{}", {"Content-Type": "text/plain"})
    eq(status, 415)
    eq(json.loads(body)["error"]["type"], "invalid_request_error")
    eq(s.get("/v1/models/nano")[0], 200)
    eq(s.get("/v1/models/other")[0], 404)
    for path in ("/", "/chat.js", "/chat.css", "/openapi.json", "/props", "/slots", "/metrics"):
        status, head, body = s.get(path)
        eq(status, 200)
        assert body and head["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in head["content-security-policy"]


@test
def hosts_and_origins(s):
    eq(s.get("/health", headers={"Host": "evil.example"})[0], 403)
    eq(s.get("/health", headers={"Host": "localhost:%d" % s.port})[0], 200)
    eq(s.get("/health", headers={"Origin": "http://evil.example"})[0], 403)
    eq(s.get("/health", headers={"Origin": "null"})[0], 403)
    status, head, _ = s.get("/health", headers={"Origin": "http://127.0.0.1:%d" % s.port})
    eq(status, 200)
    assert "access-control-allow-origin" not in head
    eq(s.request("OPTIONS", "/v1/chat/completions",
                 headers={"Origin": "http://evil.example"})[0], 403)


@test
def cors_and_keys(_):
    s = Server("--api-key", "secret-key-1", "--api-key", "secret-key-2", "--allow-origin",
               "https://app.example")
    try:
        bearer = {"Authorization": "Bearer secret-key-2"}
        for path in ("/v1/models", "/metrics", "/props", "/slots", "/openapi.json"):
            for wrong in ({}, {"Authorization": "Bearer secret-key-3"}, {"Authorization": "Basic x"},
                          {"Authorization": "Bearer "}, {"x-api-key": "secret-key-11"}):
                status, head, body = s.get(path, headers=wrong)
                eq(status, 401)
                assert "error" in json.loads(body)
            eq(s.get(path, headers=bearer)[0], 200)
            eq(s.get(path, headers={"x-api-key": "secret-key-1"})[0], 200)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
                     "/v1/messages/count_tokens", "/tokenize", "/detokenize"):
            eq(s.post(path, {})[0], 401)
            eq(s.request("HEAD", path)[0], 401)
        eq(s.get("/v1/models/", headers={})[0], 401)
        eq(s.get("//v1/models")[0], 401)
        eq(s.get("/V1/models")[0], 401)
        eq(s.get("/v1%2fmodels")[0], 401)
        eq(s.get("/health")[0], 200)
        eq(s.get("/")[0], 200)
        origin = {"Origin": "https://app.example"}
        status, head, _ = s.request("OPTIONS", "/v1/chat/completions", headers=origin)
        eq((status, head["access-control-allow-origin"]), (204, "https://app.example"))
        status, head, _ = s.get("/v1/models", headers={**origin, **bearer})
        eq((status, head["access-control-allow-origin"]), (200, "https://app.example"))
        eq(s.get("/v1/models", headers={"Origin": "https://app.example.evil", **bearer})[0], 403)
    finally:
        eq(s.stop(), 0)
    assert b"secret" not in s.text()


# ------------------------------------------------------------------ bad bodies

@test
def bad_json(s):
    bad = [b"", b"{", b"[]", b"null", b'"x"', b"{}x", b'{"a":1,"a":2}', b"\xff\xfe", b'{"messages":"\xc3"}',
           b"[" * 100000, b'{"a":' * 50000, b'{"messages": NaN}', b'{"n": 1e999}', b"{'a': 1}",
           b'{"messages":[{"role":"user","content":"\\ud800"}]}']
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
                 "/tokenize", "/detokenize", "/v1/messages/count_tokens"):
        for body in bad:
            status, _, v = s.post(path, body)
            eq(status, 400)
            assert v["error"]["message"] and v["error"]["type"] == "invalid_request_error", v
            assert "/work" not in json.dumps(v)


@test
def wrong_types(s):
    """Every parameter with every wrong type, and numbers out of range."""
    values = [None, True, -1, 0, 1.5, 1e300, 2 ** 63 - 1, -2 ** 63, "x", "", [], [1], {}, {"a": 1}, [[]],
              "\u0000"]
    names = ["model", "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format",
             "grammar", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
             "presence_penalty", "repetition_penalty", "seed", "stop", "max_tokens",
             "max_completion_tokens", "n", "logprobs", "top_logprobs", "logit_bias", "stream",
             "stream_options", "reasoning_effort", "thinking", "user", "metadata", "store",
             "service_tier", "functions", "modalities", "timeout", "reasoning", "verbosity"]
    for name in names:
        for v in values:
            body = {**chat(max_tokens=1), name: v}
            if name in ("max_completion_tokens",):
                body.pop("max_tokens")
            if v is True and name == "stream":
                continue
            status, _, r = s.post("/v1/chat/completions", body)
            assert status in (200, 400, 404), (name, v, status, r)
            if status == 400:
                assert r["error"]["param"] is None or isinstance(r["error"]["param"], str)
    for extra in ({"stop": ["x"] * 10000}, {"n": 1000}, {"max_tokens": -1}, {"max_tokens": 0},
                  {"temperature": 2.1}, {"top_p": 0}, {"logit_bias": {"5000": 1}},
                  {"logit_bias": {"a": 1}}, {"logit_bias": {"1": 1000}}, {"stop": [""]},
                  {"stop": [1]}, {"stop": "x" * 5000}, {"top_logprobs": 3}, {"unknown": 1},
                  {"stream_options": {"include_usage": True}}, {"store": True},
                  {"tool_choice": "required"}, {"tools": [{}]}, {"tools": [TOOL, TOOL]},
                  {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
                  {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_object"}},
                  {"response_format": {"type": "json_schema"}}, {"grammar": "root ::= ("},
                  {"reasoning_effort": "enormous"}, {"thinking": {"type": "perhaps"}},
                  {"thinking": {"type": "enabled", "budget_tokens": -4}}):
        status, _, r = s.post("/v1/chat/completions", {**chat(max_tokens=1), **extra})
        assert status == 400, (extra, status, r)
        assert r["error"]["message"], r


@test
def bad_messages(s):
    bad = [[], "x", [1], [{}], [{"role": "robot", "content": "x"}], [{"role": "user"}],
           [{"role": "user", "content": 5}], [{"role": "user", "content": [{"type": "image_url",
             "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}],
           [{"role": "user", "content": [{"type": "input_audio"}]}],
           [{"role": "tool", "tool_call_id": "x", "content": "y"}],
           [{"role": "assistant", "content": None}], [{"role": "user", "content": "x", "odd": 1}],
           [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [
               {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]]
    for m in bad:
        status, _, r = s.post("/v1/chat/completions", {"messages": m, "max_tokens": 1})
        assert status == 400, (m, status, r)
    for m in bad[:7]:
        status, _, r = s.post("/v1/messages", {"messages": m, "max_tokens": 1})
        assert status == 400 and r["type"] == "error", (m, status, r)
    for v in ({"input": []}, {"input": [{"type": "odd"}]}, {"input": "x", "previous_response_id": "r"},
              {}, {"input": "x", "tools": [{"type": "web_search"}]}, {"input": "x", "background": True}):
        status, _, r = s.post("/v1/responses", v)
        assert status == 400, (v, status, r)


@test
def size_limits(_):
    s = Server("--max-body", "100K", "--max-messages", "5", "--max-tools", "1", "--max-choices", "2")
    try:
        eq(s.post("/tokenize", {"content": "x" * 200000})[0], 413)
        chunked = (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                   b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
                   b"10000\r\n" + b"x" * 65536 + b"\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n")
        eq(parse(s.raw(chunked))[0], 413)
        m = [{"role": "user", "content": "x"}] * 6
        eq(s.post("/v1/chat/completions", {"messages": m})[0], 400)
        eq(s.post("/v1/chat/completions", chat(tools=[TOOL, OTHER_TOOL]))[0], 400)
        eq(s.post("/v1/chat/completions", chat(n=3))[0], 400)
        eq(s.request("GET", "/health", headers={"X-Long": "x" * 100000})[0] in (0, 413, 431), True)
        status, _, r = s.post("/v1/completions", {"prompt": [5] * 17000})
        eq((status, r["error"]["code"]), (400, "context_length_exceeded"))
        status, _, r = s.post("/v1/completions", {"prompt": [5] * 16384})
        eq(status, 400)
        eq(s.get("/health")[0], 200)
    finally:
        eq(s.stop(), 0)


@test
def markers_are_text(s):
    """No text of a user becomes a control token."""
    tok = json.load(open("models/nano/tokenizer.json"))
    added = {a["content"]: a["id"] for a in tok["added_tokens"]}
    for name, i in added.items():
        _, _, r = s.post("/tokenize", {"content": "a%sb" % name})
        assert i not in r["tokens"], name
        if name == "<｜deepseek_image｜>":
            continue  # stands for an image: refused as text
        one = s.post("/tokenize", {"messages": [{"role": "user", "content": "a%sb" % name}]})[2]
        plain = s.post("/tokenize", {"messages": [{"role": "user", "content": "ab"}]})[2]
        eq(one["tokens"].count(i), plain["tokens"].count(i))


# ------------------------------------------------------------------ answers

@test
def chat_whole_and_stream(s):
    status, head, r = s.post("/v1/chat/completions", chat())
    eq(status, 200)
    c = r["choices"][0]
    eq(c["message"]["content"], "The capital of Cuba is Havana.")
    eq(c["finish_reason"], "stop")
    u = r["usage"]
    eq(u["total_tokens"], u["prompt_tokens"] + u["completion_tokens"])
    assert head["request-id"].startswith("req_")
    status, head, body = s.request("POST", "/v1/chat/completions", json.dumps(
        chat(stream=True, stream_options={"include_usage": True})).encode())
    eq(head["content-type"], "text/event-stream")
    ev = events(body)
    eq(ev[-1], "[DONE]")
    eq(ev[-2]["usage"]["completion_tokens"], u["completion_tokens"])
    eq("".join(e["choices"][0]["delta"].get("content", "") for e in ev[:-2]),
       "The capital of Cuba is Havana.")
    eq(ev[-3]["choices"][0]["finish_reason"], "stop")


@test
def reasoning(s):
    body = chat("What is 3 + 4?", max_tokens=200)
    body["thinking"] = {"type": "enabled"}
    r = s.post("/v1/chat/completions", body)[2]
    m = r["choices"][0]["message"]
    assert m["reasoning_content"] and "think>" not in json.dumps(m), m
    n = r["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < n < r["usage"]["completion_tokens"]
    hidden = s.post("/v1/chat/completions", {**body, "reasoning": "hidden"})[2]
    m = hidden["choices"][0]["message"]
    assert "reasoning_content" not in m
    eq(hidden["usage"]["completion_tokens_details"]["reasoning_tokens"], n)
    eq(m["content"], r["choices"][0]["message"]["content"])
    body["thinking"]["budget_tokens"] = 3
    short = s.post("/v1/chat/completions", body)[2]
    assert short["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 4
    assert "think>" not in json.dumps(short)
    ev = events(s.request("POST", "/v1/chat/completions",
                          json.dumps({**body, "stream": True, "reasoning": "hidden"}).encode())[2])
    assert not any("reasoning_content" in e["choices"][0]["delta"] for e in ev[:-1])


@test
def stops_and_limits(s):
    r = s.post("/v1/chat/completions", chat(stop=["Havana"]))[2]
    eq(r["choices"][0]["message"]["content"], "The capital of Cuba is ")
    eq(r["choices"][0]["finish_reason"], "stop")
    r = s.post("/v1/chat/completions", chat(stop=["pital of"]))[2]
    eq(r["choices"][0]["message"]["content"], "The ca")
    r = s.post("/v1/chat/completions", chat(max_tokens=3))[2]
    eq(r["choices"][0]["finish_reason"], "length")
    eq(r["usage"]["completion_tokens"], 3)
    r = s.post("/v1/messages", {"messages": [{"role": "user", "content": "What is the capital of Cuba?"}],
                                "temperature": 0, "max_tokens": 50, "stop_sequences": [" is"]})[2]
    eq((r["stop_reason"], r["stop_sequence"]), ("stop_sequence", " is"))


@test
def choices_and_seeds(s):
    body = {**chat("Tell me a story.", n=3, temperature=1.0, max_tokens=20), "seed": 7}
    a, b = s.post("/v1/chat/completions", body)[2], s.post("/v1/chat/completions", body)[2]
    texts = [c["message"]["content"] for c in a["choices"]]
    eq(len(texts), 3)
    eq(texts, [c["message"]["content"] for c in b["choices"]])
    assert len(set(texts)) > 1, texts
    r = s.post("/v1/completions", {"prompt": ["Once upon", "The capital"], "n": 2, "max_tokens": 4,
                                   "echo": True})[2]
    eq([c["index"] for c in r["choices"]], [0, 1, 2, 3])
    assert r["choices"][2]["text"].startswith("The capital")


@test
def logprobs_and_bias(s):
    r = s.post("/v1/chat/completions", chat(logprobs=True, top_logprobs=3))[2]
    c = r["choices"][0]
    content = c["logprobs"]["content"]
    eq("".join(t["token"] for t in content), c["message"]["content"])
    for t in content:
        eq(len(t["top_logprobs"]), 3)
        eq(t["top_logprobs"][0]["logprob"], t["logprob"])
        eq(bytes(t["bytes"]).decode(), t["token"])
    first = s.post("/tokenize", {"content": content[0]["token"]})[2]["tokens"][0]
    r = s.post("/v1/chat/completions", chat(logit_bias={str(first): -100}))[2]
    assert not r["choices"][0]["message"]["content"].startswith(content[0]["token"])
    r = s.post("/v1/chat/completions", chat(logit_bias={str(first): 100}, max_tokens=3))[2]
    eq(r["choices"][0]["message"]["content"], content[0]["token"] * 3)


@test
def constrained(s):
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 10},
                                               "ok": {"type": "boolean"}},
              "required": ["city", "ok"], "additionalProperties": False}
    for thinking in ("disabled", "enabled"):
        body = chat("Answer with json.", max_tokens=300, temperature=1.0, seed=3, response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        body["thinking"] = {"type": thinking, "budget_tokens": 10}
        for seed in range(3):
            r = s.post("/v1/chat/completions", {**body, "seed": seed})[2]
            c = r["choices"][0]
            v = json.loads(c["message"]["content"])
            eq(sorted(v), ["city", "ok"])
            eq(c["finish_reason"], "stop")
    r = s.post("/v1/chat/completions", chat("yes or no?", grammar='root ::= "yes" | "no"'))[2]
    assert r["choices"][0]["message"]["content"] in ("yes", "no")
    status, _, r = s.post("/v1/chat/completions", chat(response_format={
        "type": "json_schema", "json_schema": {"schema": {"type": "object", "unevaluatedItems": False}}}))
    eq(status, 400)
    assert "unevaluatedItems" in r["error"]["message"], r


@test
def tools(s):
    for choice, names in (("required", {"get_weather", "get_time"}),
                          ({"type": "function", "function": {"name": "get_time"}}, {"get_time"})):
        for seed in range(3):
            body = chat("What is the weather?", tools=[TOOL, OTHER_TOOL], tool_choice=choice,
                        parallel_tool_calls=False, temperature=1.0, seed=seed, max_tokens=200)
            r = s.post("/v1/chat/completions", body)[2]
            c = r["choices"][0]
            eq(c["finish_reason"], "tool_calls")
            eq(len(c["message"]["tool_calls"]), 1)
            call = c["message"]["tool_calls"][0]["function"]
            assert call["name"] in names
            args = json.loads(call["arguments"])
            eq(list(args), ["city"] if call["name"] == "get_weather" else ["zone"])
            assert "DSML" not in json.dumps(c)
            ev = events(s.request("POST", "/v1/chat/completions",
                                  json.dumps({**body, "stream": True}).encode())[2])
            got = [t for e in ev[:-1] for t in e["choices"][0]["delta"].get("tool_calls", [])]
            eq(got[0]["function"]["name"], call["name"])
            eq("".join(t["function"].get("arguments", "") for t in got), call["arguments"])
    for seed in range(8):  # whatever the model does, no tags are shown
        r = s.post("/v1/chat/completions", chat("What is the weather in Paris?", tools=[TOOL],
                                                temperature=1.0, seed=seed, max_tokens=150))[2]
        assert "DSML" not in json.dumps(r), r
        r = s.post("/v1/chat/completions", chat("What is the weather in Paris?", tools=[TOOL],
                                                tool_choice="none", seed=seed, max_tokens=60))[2]
        assert "tool_calls" not in r["choices"][0]["message"]
    turn = s.post("/v1/chat/completions", chat(
        "What is the weather in Paris?", tools=[TOOL], tool_choice="required",
        parallel_tool_calls=False, max_tokens=200))[2]["choices"][0]["message"]
    call = turn["tool_calls"][0]
    r = s.post("/v1/chat/completions", {
        "tools": [TOOL], "thinking": {"type": "disabled"}, "max_tokens": 30, "temperature": 0, "messages": [
            {"role": "user", "content": "What is the weather in Paris?"}, turn,
            {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]})
    eq(r[0], 200)
    # what was generated is found again, though it comes back as text
    assert r[2]["usage"]["prompt_tokens_details"]["cached_tokens"] > 100, r[2]["usage"]


@test
def prefix_cache(s):
    long = "The capital of Cuba is Havana. " * 60
    first = s.post("/v1/chat/completions", chat(long + "What is the capital of Cuba?"))[2]
    eq(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
    answer = first["choices"][0]["message"]["content"]
    second = s.post("/v1/chat/completions", {**chat(), "messages": [
        {"role": "user", "content": long + "What is the capital of Cuba?"},
        {"role": "assistant", "content": answer}, {"role": "user", "content": "Thank you."}]})[2]
    u = second["usage"]
    new = u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"]
    assert new < 40, u
    off = s.post("/v1/chat/completions", chat(long + "What is the capital of Cuba?",
                                              cache_prompt=False))[2]
    eq(off["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
    eq(off["choices"][0]["message"]["content"], answer)


@test
def anthropic_shapes(s):
    body = {"max_tokens": 60, "temperature": 0, "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]}
    status, _, r = s.post("/v1/messages", body)
    eq((status, r["type"], r["role"]), (200, "message", "assistant"))
    eq(r["content"][0]["type"], "text")
    n = s.post("/v1/messages/count_tokens", {k: body[k] for k in ("system", "messages")})[2]
    eq(n["input_tokens"], r["usage"]["input_tokens"] + r["usage"]["cache_read_input_tokens"])
    status, _, r = s.post("/v1/messages", {**body, "max_tokens": 0})
    eq((status, r["type"], r["error"]["type"]), (400, "error", "invalid_request_error"))
    status, _, r = s.post("/v1/messages", {
        "max_tokens": 200, "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [{"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True}})
    eq((status, r["stop_reason"]), (200, "tool_use"))
    use = r["content"][-1]
    eq((use["type"], list(use["input"])), ("tool_use", ["city"]))
    status, _, r = s.post("/v1/messages", {
        "max_tokens": 20, "messages": [
            {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": [use]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use["id"],
                                          "content": [{"type": "text", "text": "sunny"}]}]}],
        "tools": [{"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}]})
    eq(status, 200)


@test
def responses_shapes(s):
    body = {"input": "What is the capital of Cuba?", "temperature": 0, "reasoning": {"effort": "none"}}
    status, _, r = s.post("/v1/responses", body)
    eq((status, r["object"], r["status"]), (200, "response", "completed"))
    eq(r["output"][0]["content"][0]["text"], "The capital of Cuba is Havana.")
    ev = events(s.request("POST", "/v1/responses", json.dumps({**body, "stream": True}).encode())[2])
    eq([e["sequence_number"] for e in ev], list(range(len(ev))))
    eq(ev[0]["type"], "response.created")
    eq(ev[-1]["type"], "response.completed")
    eq("".join(e["delta"] for e in ev if e["type"] == "response.output_text.delta"),
       "The capital of Cuba is Havana.")
    eq(ev[-1]["response"]["output"][0]["content"], r["output"][0]["content"])


# ------------------------------------------------------------------ clients

def clients():
    try:
        import anthropic
        import openai
        return openai, anthropic
    except ImportError:
        SKIPPED.append("the packages openai and anthropic are not there")
        return None, None


@test
def openai_client(s):
    openai, _ = clients()
    if not openai:
        return
    c = openai.OpenAI(base_url=s.url("/v1"), api_key="none", max_retries=0)
    eq([m.id for m in c.models.list()], ["nano"])
    off = {"thinking": {"type": "disabled"}}
    m = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    r = c.chat.completions.create(model="nano", messages=m, temperature=0, extra_body=off)
    assert r.choices[0].message.content and r.usage.total_tokens > 0
    text = ""
    for e in c.chat.completions.create(model="nano", messages=m, temperature=0, stream=True,
                                       stream_options={"include_usage": True}, extra_body=off):
        if e.choices:
            text += e.choices[0].delta.content or ""
        else:
            eq(e.usage.completion_tokens, r.usage.completion_tokens)
    eq(text, r.choices[0].message.content)
    with c.chat.completions.stream(model="nano", messages=m, temperature=0, extra_body=off,
                                   tools=[TOOL], tool_choice="required",
                                   parallel_tool_calls=False, max_tokens=200) as st:
        for _ in st:
            pass
        final = st.get_final_completion()
    eq(final.choices[0].finish_reason, "tool_calls")
    eq(list(json.loads(final.choices[0].message.tool_calls[0].function.arguments)), ["city"])
    r = c.completions.create(model="nano", prompt="Once upon a time", max_tokens=5, logprobs=2)
    eq(len(r.choices[0].logprobs.tokens), 5)
    r = c.responses.create(model="nano", input="Hello!", reasoning={"effort": "none"}, temperature=0)
    assert r.output_text
    text = ""
    with c.responses.stream(model="nano", input="Hello!", reasoning={"effort": "none"},
                            temperature=0) as st:
        for e in st:
            if e.type == "response.output_text.delta":
                text += e.delta
        eq(st.get_final_response().output_text, text)
    eq(text, r.output_text)
    r = c.responses.create(model="nano", input="Weather?", temperature=0, max_output_tokens=200,
                           reasoning={"effort": "none"}, parallel_tool_calls=False, tools=[{
                               "type": "function", **TOOL["function"]}], tool_choice="required")
    call = r.output[-1]
    eq((call.type, call.name), ("function_call", "get_weather"))
    r = c.responses.create(model="nano", temperature=0, reasoning={"effort": "none"},
                           max_output_tokens=20, input=[
        {"role": "user", "content": "Weather?"}, call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}])
    eq(r.object, "response")
    try:
        c.chat.completions.create(model="nano", messages=[])
        raise AssertionError("an empty list was taken")
    except openai.BadRequestError as e:
        eq(e.param, "messages")
    try:
        c.chat.completions.create(model="other", messages=m)
        raise AssertionError("another model was taken")
    except openai.NotFoundError:
        pass


@test
def openai_async(s):
    openai, _ = clients()
    if not openai:
        return
    import asyncio

    async def one(c, i):
        text = ""
        st = await c.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": "What is the capital of Cuba?"}],
            temperature=0, stream=True, extra_body={"thinking": {"type": "disabled"}})
        async for e in st:
            text += e.choices[0].delta.content or ""
        return text

    async def many():
        async with openai.AsyncOpenAI(base_url=s.url("/v1"), api_key="x", max_retries=0) as c:
            return await asyncio.gather(*(one(c, i) for i in range(24)))

    eq(set(asyncio.run(many())), {"The capital of Cuba is Havana."})


@test
def anthropic_client(s):
    _, anthropic = clients()
    if not anthropic:
        return
    c = anthropic.Anthropic(base_url=s.url(), api_key="none", max_retries=0)
    m = [{"role": "user", "content": "What is the capital of Cuba?"}]
    cold = {"temperature": 0}
    r = c.messages.create(model="nano", max_tokens=50, messages=m, extra_body=cold)
    eq(r.content[0].text, "The capital of Cuba is Havana.")
    with c.messages.stream(model="nano", max_tokens=50, messages=m, extra_body=cold) as st:
        eq("".join(st.text_stream), r.content[0].text)
        eq(st.get_final_message().stop_reason, "end_turn")
    n = c.messages.count_tokens(model="nano", messages=m)
    eq(n.input_tokens, r.usage.input_tokens + r.usage.cache_read_input_tokens)
    with c.messages.stream(model="nano", max_tokens=300, messages=m, extra_body=cold,
                           thinking={"type": "enabled", "budget_tokens": 1024}) as st:
        for _ in st:
            pass
        final = st.get_final_message()
    eq(final.content[0].type, "thinking")
    tool = [{"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}]
    with c.messages.stream(model="nano", max_tokens=200, messages=m, tools=tool, extra_body=cold,
                           tool_choice={"type": "any", "disable_parallel_tool_use": True}) as st:
        for _ in st:
            pass
        final = st.get_final_message()
    eq(final.stop_reason, "tool_use")
    eq(list(final.content[-1].input), ["city"])
    try:
        c.messages.create(model="nano", max_tokens=5, messages=[])
        raise AssertionError("an empty list was taken")
    except anthropic.BadRequestError as e:
        eq(e.body["error"]["type"], "invalid_request_error")
    import asyncio

    async def many():
        async with anthropic.AsyncAnthropic(base_url=s.url(), api_key="x", max_retries=0) as a:
            return await asyncio.gather(*(a.messages.create(
                model="nano", max_tokens=50, messages=m, extra_body=cold) for _ in range(8)))

    eq({x.content[0].text for x in asyncio.run(many())}, {"The capital of Cuba is Havana."})


# ------------------------------------------------------------------ people who behave badly

def idle(s, seconds=20):
    """Waits until nothing is in work."""
    for _ in range(int(seconds * 10)):
        r = json.loads(s.get("/slots")[2])
        if r["running"] == 0 and r["queued"] == 0:
            return
        time.sleep(0.1)
    raise AssertionError("still busy: %r" % r)


def begin(s, body, window=None):
    """A request whose answer is not read."""
    text = json.dumps(body).encode()
    c = socket.socket()
    c.settimeout(30)
    if window:
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    c.connect(("127.0.0.1", s.port))
    c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(text) + text)
    return c


ENDLESS = {"prompt": "Once upon a time", "max_tokens": 15000, "ignore_eos": True, "temperature": 1.0}


@test
def hang_up(s):
    for stream in (True, False):
        for _ in range(10):
            c = begin(s, {**ENDLESS, "stream": stream})
            if stream:
                c.recv(100)
            else:
                time.sleep(0.05)
            c.close()
        idle(s)
    c = begin(s, {**ENDLESS, "stream": True})  # closed with data unread: a reset
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    c.recv(10)
    c.close()
    idle(s)
    eq(s.get("/health")[0], 200)


@test
def half_closed(s):
    body = json.dumps(chat(max_tokens=5)).encode()
    s.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
          b"Content-Length: %d\r\n\r\n" % len(body) + body, half_close=True)
    s.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
          b"Content-Length: 1000\r\n\r\n{", half_close=True)
    idle(s)


@test
def slow_and_silent(_):
    s = Server("--idle-timeout", "2", "--body-timeout", "2", "--max-connections", "50",
               "--send-timeout", "2")
    try:
        silent = [s.connect() for _ in range(200)]
        eq(s.get("/health")[0], 200)  # the oldest made place
        begun = time.time()
        slow = s.connect()
        slow.settimeout(0.5)
        data = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200
        gone = False
        for i in range(40):  # a byte now and then does not prolong it
            try:
                slow.sendall(data[i:i + 1])
                if slow.recv(10) == b"":
                    gone = True
            except socket.timeout:
                pass
            except OSError:
                gone = True
            if gone:
                break
        assert gone and time.time() - begun < 10
        body = s.connect(10)
        body.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 1000\r\n\r\n{")
        begun = time.time()
        eq(body.recv(1000), b"")
        assert time.time() - begun < 6
        unread = begin(s, {**ENDLESS, "stream": True, "logprobs": 20}, window=4096)
        idle(s, 60)
        unread.close()
        for c in silent:
            c.close()
    finally:
        s.kill()


@test
def many_idle(s):
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n = min(10000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = []
    try:
        for _ in range(n):
            held.append(s.connect())
        eq(s.post("/v1/chat/completions", chat())[0], 200)
    finally:
        for c in held:
            c.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    eq(s.get("/health")[0], 200)


@test
def queue_and_deadline(_):
    s = Server("--parallel", "1", "--queue", "2")
    try:
        held = [begin(s, {**ENDLESS, "stream": True}) for _ in range(3)]
        time.sleep(1)
        status, head, r = s.post("/v1/chat/completions", chat())
        eq((status, r["error"]["code"]), (429, "queue_full"))
        assert int(head["retry-after"]) >= 1
        held[1].recv(200)
        text = b""
        held[2].settimeout(5)
        while b": ping" not in text:  # who waits sees signs of life
            text += held[2].recv(1000)
        for c in held:
            c.close()
        idle(s)
        begun = time.time()
        status, _, r = s.post("/v1/completions", {**ENDLESS, "timeout": 1.0})
        eq((status, r["choices"][0]["finish_reason"]), (200, "length"))
        assert time.time() - begun < 5
        eq(s.get("/health")[0], 200)
    finally:
        s.kill()


@test
def progress(s):
    body = {**chat("word " * 3000, max_tokens=1), "stream": True, "return_progress": True,
            "cache_prompt": False}
    ev = events(s.request("POST", "/v1/chat/completions", json.dumps(body).encode())[2])
    steps = [e["prompt_progress"] for e in ev[:-1] if "prompt_progress" in e]
    assert len(steps) > 3, ev[:3]
    eq([p["processed"] for p in steps], sorted(p["processed"] for p in steps))
    eq(steps[-1]["processed"], steps[-1]["total"])


@test
def drain(_):
    s = Server()
    c = begin(s, {"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True, "stream": True})
    first = c.recv(300)
    s.p.send_signal(signal.SIGTERM)
    out = first
    while True:
        piece = c.recv(65536)
        if not piece:
            break
        out += piece
    assert b"[DONE]" in out
    eq(s.p.wait(30), 0)
    s = Server()
    c = begin(s, {**ENDLESS, "stream": True})
    c.recv(100)
    s.p.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    eq(s.p.poll(), None)
    s.p.send_signal(signal.SIGTERM)
    eq(s.p.wait(5), 143)


@test
def disk_cache(_):
    with tempfile.TemporaryDirectory() as d:
        long = chat("The capital of Cuba is Havana. " * 150 + "What is the capital of Cuba?")
        s = Server("--cache-dir", d + "/cache", "--cache-min", "100")
        first = s.post("/v1/chat/completions", long)[2]
        eq(s.stop(), 0)
        files = os.listdir(d + "/cache")
        eq(len(files), 1)
        s = Server("--cache-dir", d + "/cache", "--cache-min", "100")
        again = s.post("/v1/chat/completions", long)[2]
        n = again["usage"]["prompt_tokens"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > n - 20, again["usage"]
        eq(again["choices"][0]["message"]["content"], first["choices"][0]["message"]["content"])
        eq(s.metric("disk_loads_total"), 1)
        s.kill()  # at any time
        path = d + "/cache/" + files[0]
        data = bytearray(open(path, "rb").read())
        for at in (len(data) // 2, len(data) - 10):
            broken = bytearray(data)
            broken[at] ^= 1
            open(path, "wb").write(broken)
            s = Server("--cache-dir", d + "/cache", "--cache-min", "100")
            r = s.post("/v1/chat/completions", long)[2]
            eq(r["choices"][0]["message"]["content"], first["choices"][0]["message"]["content"])
            eq(r["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
            assert s.metric("disk_errors_total") >= 1
            s.kill()
        open(path, "wb").write(data[:1000])
        s = Server("--cache-dir", d + "/cache", "--cache-min", "100", "--cache-disk", "1M")
        eq(s.post("/v1/chat/completions", long)[0], 200)
        eq(s.stop(), 0)


@test
def load(s):
    """Many streams at once: each is whole, and nothing is left behind."""
    def one(i):
        body = chat(stream=True) if i % 2 else {**ENDLESS, "max_tokens": 30, "stream": True}
        path = "/v1/chat/completions" if i % 2 else "/v1/completions"
        ev = events(s.request("POST", path, json.dumps(body).encode(), timeout=120)[2])
        assert ev[-1] == "[DONE]", ev[-1]
        if i % 2:
            eq("".join(e["choices"][0]["delta"].get("content", "") for e in ev[:-1]),
               "The capital of Cuba is Havana.")
        return True

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        eq(sum(pool.map(one, range(128))), 128)
    idle(s)


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


def main():
    wanted = sys.argv[2:]
    passed = failed = 0
    shared = None
    for f in TESTS:
        if wanted and f.__name__ not in wanted:
            continue
        begun = time.time()
        try:
            if not shared or shared.p.poll() is not None:
                shared = Server()
            f(shared)
            passed += 1
            if wanted:
                print("%s: %.1f s" % (f.__name__, time.time() - begun))
        except BaseException:
            failed += 1
            print("FAILED: %s" % f.__name__)
            traceback.print_exc(limit=4, file=sys.stdout)
            if shared and shared.p.poll() is not None:
                print("the server ended with %d: %r" % (shared.p.returncode, shared.text()[-1000:]))
    if shared:
        code = shared.stop()
        if code != 0:
            failed += 1
            print("FAILED: the shared server ended with %d: %r" % (code, shared.text()[-600:]))
    for why in sorted(set(SKIPPED)):
        print("SKIP clients of dsv4-server: %s" % why)
    print("%d passed, %d failed%s" % (passed, failed, ", 1 skipped" if SKIPPED else ""))
    sys.exit(1 if failed else 0)


main()
