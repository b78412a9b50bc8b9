#!/usr/bin/env python3
"""Load on a running dsv4-server, and what its clients saw. Only Python's own library.

usage: bench/load.py streams URL [--clients 16] [--seconds 10] [--tokens 100] [--pid PID]   many who read streams
       bench/load.py hangups URL [--rate 20] [--seconds 60]                    clients that leave after a moment
       bench/load.py turns URL [--tokens 50000] [--turns 3]           a conversation that begins with a long text
PID: the server's, for its resident memory. docs/server.md has the figures."""

import argparse
import http.client
import json
import re
import socket
import statistics
import sys
import threading
import time
import urllib.parse


def post(host, path, body, timeout=600):
    c = http.client.HTTPConnection(host, timeout=timeout)
    c.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return c, c.getresponse()


def get(host, path):
    c = http.client.HTTPConnection(host, timeout=60)
    c.request("GET", path)
    return c.getresponse().read().decode()


def metric(host, name):
    return float(re.search(r"^dsv4_%s (\S+)$" % name, get(host, "/metrics"), re.M).group(1))


def stream_events(r):
    """The JSON of each event with its time; [DONE] as None."""
    for line in r:
        if line.startswith(b"data: [DONE]"):
            yield time.time(), None
        elif line.startswith(b"data: "):
            yield time.time(), json.loads(line[6:])


# ------------------------------------------------------------------ streams

def resident(pid):
    with open("/proc/%d/statm" % pid) as f:
        return int(f.read().split()[1]) * 4096 / 1e6


def client(a, host, i, end, out):
    n = 0
    while time.time() < end:
        n += 1
        body = {"prompt": "Client %d, story %d. Once upon a time" % (i, n), "max_tokens": a.tokens,
                "ignore_eos": True, "temperature": 1.0, "stream": True}
        begun = last = time.time()
        seen = 0
        try:
            c, r = post(host, "/v1/completions", body)
            done = False
            for line in r:  # not decoded: a client in Python would be what is measured
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: "):
                    now = time.time()
                    seen += 1
                    (out["first"] if seen == 1 else out["between"]).append(now - last)
                    last = now
            c.close()
            if r.status != 200 or not done:
                raise RuntimeError("status %d, %d events" % (r.status, seen))
            out["done"].append((begun, time.time()))
        except Exception as e:
            out["errors"].append(str(e))


def show_memory(samples):
    """Where it was after two minutes, if it got that far, and at the end."""
    at = [m for t, m in samples if t >= 120] or [m for _, m in samples[len(samples) // 2:]]
    print("resident: %.1f MB after %s, %.1f MB at last, %.1f MB at most" % (
        at[0], "2 minutes" if samples[-1][0] >= 120 else "half of the time", at[-1], max(m for _, m in samples)))


def streams(a, host):
    out = {k: [] for k in ("first", "between", "done", "errors")}
    begun = time.time()
    before = metric(host, "output_tokens_total")
    threads = [threading.Thread(target=client, args=(a, host, i, begun + a.seconds, out))
               for i in range(a.clients)]
    memory = []
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        if a.pid:
            memory.append((time.time() - begun, resident(a.pid)))
        time.sleep(min(1, a.seconds / 10))
    seconds = time.time() - begun
    tokens = metric(host, "output_tokens_total") - before
    print("%d clients, %.0f s: %d requests, %d errors, %.1f tokens/s" % (
        a.clients, seconds, len(out["done"]), len(out["errors"]), tokens / seconds))
    b = sorted(out["between"])
    if b:
        print("decoding: %.1f tokens/s together" % (a.clients / statistics.mean(b)))
        median = statistics.median(b)
        p99 = b[int(len(b) * 0.99)]
        print("between tokens: median %.1f ms, p99 %.1f ms (%.1f times), most %.1f ms; first token: median %.0f ms" % (
            1e3 * median, 1e3 * p99, p99 / median, 1e3 * b[-1], 1e3 * statistics.median(out["first"])))
    if memory:
        show_memory(memory)
    for e in out["errors"][:5]:
        print("error: %s" % e)
    return not out["errors"]


# ------------------------------------------------------------------ hang-ups

def leave(host, i, delay):
    body = json.dumps({"prompt": "Once upon a time %d" % i, "max_tokens": 4000, "ignore_eos": True,
                       "stream": i % 2 == 0}).encode()
    name, _, port = host.rpartition(":")
    c = socket.create_connection((name, int(port)), timeout=30)
    c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % (host.encode(), len(body)) + body)
    time.sleep(delay)
    if i % 3 == 0:  # not a farewell but a reset
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    c.close()


def hangups(a, host):
    before = metric(host, "cancelled_total")
    begun = time.time()
    n = 0
    while time.time() - begun < a.seconds:
        threading.Thread(target=leave, args=(host, n, n % 10 / 20)).start()
        n += 1
        time.sleep(max(0, begun + n / a.rate - time.time()))
    for _ in range(100):
        slots = json.loads(get(host, "/slots"))
        if slots["running"] == 0 and slots["queued"] == 0:
            break
        time.sleep(0.1)
    print("%d hang-ups in %.0f s; %.0f seen; afterwards %d running, %d queued, %d kept sequences of %.1f MB" % (
        n, time.time() - begun, metric(host, "cancelled_total") - before, slots["running"], slots["queued"],
        slots["cached_sequences"], slots["cached_bytes"] / 1e6))
    return slots["running"] == 0 and slots["queued"] == 0


# ------------------------------------------------------------------ turns

def turns(a, host):
    words = "the capital of Cuba is Havana and a dog likes to run in the garden when the sun shines ".split()
    text = " ".join(words[i * i * 7 % len(words)] for i in range(a.tokens))
    while json.loads(b"".join(post(host, "/tokenize", {"content": text})[1]))["count"] > a.tokens:
        text = text[:len(text) * 9 // 10]
    messages = [{"role": "user", "content": text + " What is the capital of Cuba?"}]
    first_turn = 0
    for turn in range(a.turns):
        begun, first, answer = time.time(), None, ""
        c, r = post(host, "/v1/chat/completions", {
            "messages": messages, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 50,
            "thinking": {"type": "disabled"}})
        for now, e in stream_events(r):
            for choice in (e or {}).get("choices", []):
                if choice["delta"].get("content"):
                    first = first or now
                    answer += choice["delta"]["content"]
            u = (e or {}).get("usage") or {}
            if u:
                usage = u
        c.close()
        seconds = (first or time.time()) - begun
        first_turn = first_turn or seconds
        print("turn %d: %d tokens, %d of them cached; first token after %.3f s (%.1f %% of turn 1)" % (
            turn + 1, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], seconds,
            100 * seconds / first_turn))
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And of France?"}]
    return True


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="mode", required=True)
    for f in (streams, hangups, turns):
        q = sub.add_parser(f.__name__)
        q.set_defaults(run=f)
        q.add_argument("url")
        if f is not turns:
            q.add_argument("--seconds", type=float, default=10 if f is streams else 60)
        if f is streams:
            q.add_argument("--clients", type=int, default=16)
            q.add_argument("--tokens", type=int, default=100)
            q.add_argument("--pid", type=int)
        elif f is hangups:
            q.add_argument("--rate", type=float, default=20)
        else:
            q.add_argument("--tokens", type=int, default=50000)
            q.add_argument("--turns", type=int, default=3)
    a = p.parse_args()
    sys.exit(0 if a.run(a, urllib.parse.urlsplit(a.url).netloc) else 1)


main()
