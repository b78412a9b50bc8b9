"""Where a request ends, which paths there are, who may ask."""

import json
import re
import socket

from server.common import Server, chat, eq, parse, test


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
    eq(s.request("BREW", "/health")[0], 400)
    eq(s.request("TRACE", "/health")[0], 405)
    eq(s.get("/v1/chat/completions")[0], 405)
    status, _, body = s.request("POST", "/v1/chat/completions", b"{}", {"Content-Type": "text/plain"})
    eq(status, 415)
    eq(json.loads(body)["error"]["type"], "invalid_request_error")
    eq(s.get("/v1/models/nano")[0], 200)
    eq(s.get("/v1/models/other")[0], 404)
    for path in ("/", "/chat.js", "/markdown.js", "/repo.js", "/chat.css", "/openapi.json", "/props", "/slots", "/metrics"):
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
