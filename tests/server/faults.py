"""Clients that hang up, say nothing, do not read, or are many; stopping."""

import concurrent.futures
import json
import signal
import socket
import time

from server.common import ENDLESS, Server, answer, begin, chat, content, eq, events, idle, test


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
def load(s):
    """Many streams at once: each is whole, and nothing is left behind."""
    def one(i):
        body = chat(stream=True) if i % 2 else {**ENDLESS, "max_tokens": 30, "stream": True}
        path = "/v1/chat/completions" if i % 2 else "/v1/completions"
        ev = events(s.request("POST", path, json.dumps(body).encode(), timeout=120)[2])
        assert ev[-1] == "[DONE]", ev[-1]
        if i % 2:
            eq(content(ev), answer())
        return True

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        eq(sum(pool.map(one, range(128))), 128)
    idle(s)
