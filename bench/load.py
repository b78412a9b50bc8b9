#!/usr/bin/env python3
"""Load on a running dsv4-server: N clients that stream for S seconds; what they saw.

usage: bench/load.py URL [--clients N] [--seconds S] [--tokens T] [--pid PID]
Only Python's own library. PID: the server's, for its resident memory."""

import argparse
import http.client
import json
import statistics
import threading
import time
import urllib.parse


def resident(pid):
    with open("/proc/%d/statm" % pid) as f:
        return int(f.read().split()[1]) * 4096 / 1e6


def client(a, host, i, end, out):
    n = 0
    while time.time() < end:
        n += 1
        body = json.dumps({"prompt": "Client %d, story %d. Once upon a time" % (i, n), "max_tokens": a.tokens,
                           "ignore_eos": True, "temperature": 1.0, "stream": True})
        begun = last = time.time()
        got = 0
        try:
            c = http.client.HTTPConnection(host, timeout=120)
            c.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            r = c.getresponse()
            done = False
            for line in r:
                now = time.time()
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: "):
                    got += 1
                    (out["first"] if got == 1 else out["between"]).append(now - last)
                    last = now
            if r.status != 200 or not done:
                raise RuntimeError("status %d, %d events" % (r.status, got))
            c.close()
            out["tokens"].append(a.tokens)
        except Exception as e:
            out["errors"].append(str(e))
        out["requests"].append(time.time() - begun)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("url")
    p.add_argument("--clients", type=int, default=16)
    p.add_argument("--seconds", type=float, default=10)
    p.add_argument("--tokens", type=int, default=100)
    p.add_argument("--pid", type=int)
    a = p.parse_args()
    host = urllib.parse.urlsplit(a.url).netloc
    out = {k: [] for k in ("first", "between", "tokens", "errors", "requests")}
    begun = time.time()
    threads = [threading.Thread(target=client, args=(a, host, i, begun + a.seconds, out))
               for i in range(a.clients)]
    memory = []
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        if a.pid:
            memory.append(resident(a.pid))
        time.sleep(min(1, a.seconds / 10))
    seconds = time.time() - begun
    b = sorted(out["between"])
    print("%d clients, %.0f s: %d requests, %d errors, %.0f tokens/s" % (
        a.clients, seconds, len(out["tokens"]), len(out["errors"]), sum(out["tokens"]) / seconds))
    if b:
        print("between tokens: median %.1f ms, p99 %.1f ms, most %.1f ms; first token: median %.0f ms" % (
            1e3 * statistics.median(b), 1e3 * b[int(len(b) * 0.99)], 1e3 * b[-1],
            1e3 * statistics.median(out["first"])))
    if memory:
        print("resident: %.0f MB at first, %.0f MB at last, %.0f MB at most" % (
            memory[0], memory[-1], max(memory)))
    for e in out["errors"][:5]:
        print("error: %s" % e)


main()
