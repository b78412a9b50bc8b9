"""Clients that mean harm: raw sockets, every route, every place a text can be in. Other clients notice nothing."""

import concurrent.futures
import json
import os
import re
import socket
import tempfile
import time

from server.common import ENDLESS, TOOL, Server, answer, begin, chat, content, eq, events, idle, parse, test


def host(s):
    return "Host: 127.0.0.1:%d\r\n" % s.port


def post(s, path, value, more="Connection: close\r\n"):
    text = json.dumps(value)
    return ("POST %s HTTP/1.1\r\n%sContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s" %
            (path, host(s), more, len(text), text)).encode()


def get(s, path="/health", more="Connection: close\r\n"):
    return ("GET %s HTTP/1.1\r\n%s%s\r\n" % (path, host(s), more)).encode()


@test
def pipelining(s):
    """Replies in the order of requests, also behind a stream; nothing is answered behind a request that is refused."""
    out = s.raw(post(s, "/v1/chat/completions", chat(stream=True), "") + get(s, "/v1/models", "") +
                get(s, more=host(s)) + get(s))
    eq(re.findall(rb"HTTP/1\.1 (\d+)", out), [b"200", b"200", b"400"])
    first, second = out.index(b"[DONE]"), out.index(b'"object":"list"')
    assert first < second < out.index(b"400 Bad Request"), out
    eq(s.raw(get(s, more="") * 200 + get(s)).count(b"HTTP/1.1 200"), 201)
    eq(s.raw(post(s, "/tokenize", {"content": "a"}, "") * 50 +
             post(s, "/tokenize", {"content": "a"})).count(b'"count":1,'), 51)


@test
def closed_at_once(s):
    """Who asks for the end of the connection, or closes its own side, does not wait for it, whoever else is there."""
    other = s.connect()  # says nothing
    for data in (get(s), get(s).replace(b"1.1", b"1.0"), post(s, "/tokenize", {"content": "a"})):
        waited = []
        for half_close in (False, True) * 5:
            begun = time.monotonic()
            eq(parse(s.raw(data, half_close=half_close))[0], 200)
            waited.append(time.monotonic() - begun)
        assert sorted(waited)[len(waited) // 2] < 0.1, waited
    begun = time.monotonic()
    assert s.raw(get(s, more=""), half_close=True).endswith(b'"ok"}')
    assert time.monotonic() - begun < 5
    eq(s.raw(b"", half_close=True), b"")
    other.close()


@test
def header_injection(s):
    """Nothing that a request says comes back in the head of a reply, however it is wrapped."""
    evil = "X-Evil: 1"
    for data in (get(s, "/health?a=%0d%0a" + evil.replace(" ", "%20")), get(s, "/%0d%0aX-Evil:%201"),
                 get(s, more="Origin: http://127.0.0.1:%d\r %s\r\nConnection: close\r\n" % (s.port, evil)),
                 get(s, more="X-Request-Id: a\r%s\r\nConnection: close\r\n" % evil),
                 get(s, more="x-api-key: %%0d%%0a%s\r\nConnection: close\r\n" % evil),
                 post(s, "/v1/chat/completions", chat(model="x\r\nX-Evil: 1\r\n")),
                 post(s, "/v1/chat/completions", chat(max_tokens=1, user="a\r\n\r\nX-Evil: 1")),
                 post(s, "/v1/chat/completions", {**chat(), "x\r\nX-Evil: 1\r\n\r\n": 1})):
        out = s.raw(data)
        head = out.partition(b"\r\n\r\n")[0]
        assert b"evil" not in head.lower() and head.startswith(b"HTTP/1."), out


@test
def chunks(s):
    """Chunk extensions, leading zeros, trailers that look like headers: the body is what it is, and ends where it does."""
    text = b'{"content":"a"}'
    head = post(s, "/tokenize", {})[:-2].replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")
    for body, expected in ((b"f;a=b\r\n%s\r\n0\r\n\r\n" % text, 200), (b"00f\r\n%s\r\n0\r\n\r\n" % text, 200),
                           (b"f\r\n%s\r\n0\r\nHost: evil.example\r\nContent-Length: 3\r\n\r\n" % text, 200),
                           (b"f\r\n%sX0\r\n\r\n" % text, 400), (b"0x\r\n\r\n", 400), (b"0\r\n\r\n", 400)):
        status, _, reply = parse(s.raw(head + body))
        assert status == expected, (body, status, reply)
        if status == 200:
            eq(json.loads(reply)["count"], 1)


@test
def expect_continue(s):
    text = b'{"content":"a"}'
    head = post(s, "/tokenize", {})[:-2].replace(b"Content-Length: 2", b"Expect: 100-continue\r\nContent-Length: %d")
    with s.connect() as c:
        c.sendall(head % len(text))
        eq(c.recv(1000), b"HTTP/1.1 100 Continue\r\n\r\n")
        c.sendall(text)
        assert c.recv(1000).startswith(b"HTTP/1.1 200")
    for length in (1 << 40, 10 ** 17):  # refused before any of it is sent
        with s.connect() as c:
            c.sendall(head % length)
            assert c.recv(1000).startswith(b"HTTP/1.1 413")


@test
def trickle(_):
    """A byte of the body now and then does not prolong its time."""
    s = Server("--body-timeout", "2")
    try:
        with s.connect(0.3) as c:
            c.sendall(post(s, "/tokenize", {"content": "a" * 1000})[:-900])
            begun = time.monotonic()
            gone = False
            while not gone and time.monotonic() - begun < 10:
                try:
                    c.sendall(b"a")
                    gone = c.recv(10) == b""
                except socket.timeout:
                    pass
                except OSError:
                    gone = True
            assert gone and time.monotonic() - begun < 6
        eq(s.get("/health")[0], 200)
    finally:
        eq(s.stop(), 0)


@test
def every_route_wants_a_key(_):
    """All that route.c lists but what it calls open, with every method and every way to spell the path."""
    table = re.findall(r'\{"(\w+)", "([^"]+)", [^}]*\}', open("src/server/route.c").read())
    assert len(table) >= 15, table
    s = Server("--api-key", "secret-key-1")
    try:
        public = {p for _, p in table if s.get(p)[0] == 200}
        eq(public, {"/health", "/", "/chat.js", "/markdown.js", "/repo.js", "/chat.css"})
        for path in sorted({p for _, p in table} - public):
            for spelled in (path, path + "/", "/" + path, path.upper(), path.replace("/", "%2f"), path + "?key=secret-key-1",
                            "/." + path, path + "/..", path + "%20", path + ";a"):
                for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY"):
                    status = s.request(method, spelled, b"{}" if method == "POST" else None)[0]
                    assert status == (401 if spelled[0] == "/" else 400), (method, spelled, status)
        for key in ("", "secret-key-", "secret-key-11", "SECRET-KEY-1", "secret-key-1,secret-key-1", "*", "a" * 60000):
            eq(s.get("/v1/models", headers={"x-api-key": key})[0], 401)
    finally:
        eq(s.stop(), 0)


@test
def errors_tell_no_paths(_):
    """What is refused names the parameter, and nothing of this machine's files."""
    with tempfile.TemporaryDirectory() as d:
        s = Server("--cache-dir", d, "--cache-min", "50")
        seen = 0
        try:
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize",
                         "/detokenize", "/v1/messages/count_tokens"):
                for value in ({}, {"model": "/etc/passwd"}, {"model": "../../secret"}, {"messages": []}, {"prompt": 5},
                              {"input": [{"type": "input_file", "file_id": "/etc/passwd"}]}, {"tokens": [-1]},
                              {"messages": [{"role": "user", "content": [{"type": "file", "path": d}]}]},
                              {"messages": "x", "max_tokens": "y"}, {"grammar": "root ::= file"}, []):
                    status, _, r = s.post(path, value)
                    text = json.dumps(r)
                    assert status in (400, 404), (path, value, r)
                    for secret in (d, os.getcwd(), "src/", ".c:", "/tmp", "/proc", "0x"):
                        assert secret not in text or secret in json.dumps(value), (value, text)
                    seen += 1
            assert seen > 70
        finally:
            eq(s.stop(), 0)


@test
def disk_quota(_):
    """Files may not grow (SIGXFSZ, EFBIG): no snapshot is kept, requests are answered."""
    with tempfile.TemporaryDirectory() as d:
        s = Server("--cache-dir", d, "--cache-min", "50", before=["sh", "-c", 'ulimit -f 40; exec "$@"', "sh"])
        long = chat("A dog and a cat. " * 150)
        first = s.post("/v1/chat/completions", long)[2]["choices"]
        eq(s.post("/v1/chat/completions", long)[2]["choices"], first)
        eq(s.stop(), 0)
        eq(os.listdir(d), [])
        assert b"cannot write" in s.text(), s.text()


@test
def one_cache_directory(_):
    """Two servers may share it; each finds what the other has written before it was started."""
    with tempfile.TemporaryDirectory() as d:
        options = ("--cache-dir", d, "--cache-min", "50")
        long = [chat("%s and a cat. " % who * 60) for who in ("A dog", "A fox")]
        two = [Server(*options), Server(*options)]
        first = [s.post("/v1/chat/completions", v)[2]["choices"] for s, v in zip(two, long)]
        eq([s.stop() for s in two], [0, 0])
        s = Server(*options)
        for v, expected in zip(long, first):
            r = s.post("/v1/chat/completions", v)[2]
            eq(r["choices"], expected)
            assert r["usage"]["prompt_tokens_details"]["cached_tokens"] > 100, r["usage"]
        eq(s.metric("disk_errors_total"), 0)
        eq(s.stop(), 0)


@test
def context_edges(s):
    """The last prompt that fits is answered, one token more is refused with the numbers."""
    ctx = json.loads(s.get("/props")[2])["context_length"]
    ids = s.post("/tokenize", {"content": "word " * 50})[2]["tokens"]
    ids = (ids * (ctx // len(ids) + 1))[:ctx]
    r = s.post("/v1/completions", {"prompt": ids[:-1], "max_tokens": 100, "ignore_eos": True}, timeout=300)
    eq((r[0], r[2]["choices"][0]["finish_reason"], r[2]["usage"]["completion_tokens"]), (200, "length", 2))
    for n in (1, 2, 40):
        status, _, r = s.post("/v1/completions", {"prompt": ids * n})
        eq((status, r["error"]["code"]), (400, "context_length_exceeded"))
        assert str(ctx) in r["error"]["message"] and str(ctx * n) in r["error"]["message"], r


@test
def others_notice_nothing(s):
    """While one client does its worst, another gets the same words and no long silence."""
    def abuse():
        for i in range(6):
            for data in (b"\x16\x03\x01\x02garbage\r\n\r\n", get(s, more=host(s)), b"POST /v1/chat/completions HTTP/1.1\r\n",
                         post(s, "/v1/chat/completions", chat(n=1000)),
                         post(s, "/v1/chat/completions", {"messages": [[[]]] * 1000}),
                         post(s, "/v1/chat/completions", chat(grammar="root ::= (" * 2000)),
                         post(s, "/v1/completions", {**ENDLESS, "stream": True})):
                with s.connect() as c:
                    c.sendall(data)
                    if i % 2:  # a reset
                        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return True

    idle_ones = [s.connect() for _ in range(300)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        worst = [pool.submit(abuse) for _ in range(2)]
        begun = time.monotonic()
        while time.monotonic() - begun < 2 or not all(w.done() for w in worst):
            ev = events(s.request("POST", "/v1/chat/completions", json.dumps(chat(stream=True)).encode())[2])
            eq((content(ev), ev[-1]), (answer(), "[DONE]"))
        assert all(w.result() for w in worst)
    for c in idle_ones:
        c.close()
    idle(s)
    c = begin(s, {**ENDLESS, "max_tokens": 3})  # a socket that was reset frees its place
    assert c.recv(20).startswith(b"HTTP/1.1 200")
    c.close()
