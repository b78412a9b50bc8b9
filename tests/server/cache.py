"""What is computed once is found again: in memory, on disk, after damage and restarts."""

import os
import signal
import subprocess
import tempfile
import time

from server.common import LONG, SKIPPED, Server, chat, eq, test


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


def talk(s, messages, **more):
    """The next turn of a conversation, which grows by it; its usage."""
    r = s.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 100, **more},
               timeout=600)[2]
    m = r["choices"][0]["message"]
    messages.append({"role": "assistant", "content": m["content"]})
    messages.append({"role": "user", "content": "And of France?"})
    return r["usage"]


@test
def turns(_):
    """The next turn costs its own tokens, and where the answer before it had reasoning, which the next
    prompt leaves out, that answer's; also when the server was started anew in between."""
    for thinking in ("disabled", "enabled"):
        with tempfile.TemporaryDirectory() as d:
            options = ("--cache-dir", d, "--cache-min", "100")
            s = Server(*options)
            more = {"thinking": {"type": thinking}}
            m = [{"role": "user", "content": "A dog and a cat. " * (2000 if LONG else 500) +
                  "What is the capital of Cuba?"}]
            first = talk(s, m, **more)
            assert first["prompt_tokens"] > 2000
            for _ in range(2):
                u = talk(s, m, **more)
                assert u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"] < 80, u
            # by the counter too: a token that is computed again counts there
            assert s.metric("prompt_tokens_total") < first["prompt_tokens"] + 160
            eq(s.stop(), 0)
            s = Server(*options)
            u = talk(s, m, **more)
            assert u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"] < 80, u
            eq(s.metric("disk_loads_total"), 1)
            eq(s.stop(), 0)


@test
def shared_instructions(s):
    """Conversations with the same instructions compute those once."""
    system = {"role": "system", "content": "Answer like a sailor. " * 200}
    for i, text in enumerate(("Hello there!", "What is the capital of Cuba?", "Who are you?")):
        u = s.post("/v1/chat/completions", {"messages": [system, {"role": "user", "content": text}],
                                            "max_tokens": 200, "temperature": 0})[2]["usage"]
        new = u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"]
        assert new < 40 if i else new > 500, (i, u)


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
def keys_apart(_):
    """With --cache-scope key nobody finds out what others have asked."""
    s = Server("--api-key", "secret-key-1", "--api-key", "secret-key-2", "--cache-scope", "key")
    try:
        def cached(key):
            r = s.post("/v1/chat/completions", chat("The capital of Cuba is Havana. " * 30, max_tokens=2),
                       headers={"x-api-key": "secret-key-%d" % key})[2]
            return r["usage"]["prompt_tokens_details"]["cached_tokens"]

        eq(cached(1), 0)
        eq(cached(2), 0)
        assert cached(1) > 100
        assert cached(2) > 100
    finally:
        eq(s.stop(), 0)


@test
def full_disk(_):
    """A snapshot that does not fit is not there; the server goes on, and says so."""
    with tempfile.TemporaryDirectory() as d:
        mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k none "$0" && exec "$@"', d]
        if subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
            SKIPPED.append("a full disk: no file system can be mounted here")
            return
        s = Server("--cache-dir", d, "--cache-min", "100", before=mount)
        long = chat("The capital of Cuba is Havana. " * 150 + "What is the capital of Cuba?")
        first = s.post("/v1/chat/completions", long)[2]["choices"]
        for _ in range(100):  # it is written when the server has nothing else to do
            if s.metric("disk_errors_total") > 0:
                break
            time.sleep(0.1)
        eq(s.metric("disk_errors_total"), 1)
        eq(s.metric("disk_saves_total"), 0)
        files = os.listdir("/proc/%d/root%s" % (s.p.pid, d))
        eq(files, [])
        eq(s.post("/v1/chat/completions", long)[2]["choices"], first)
        eq(s.stop(), 0)
        assert b"No space left" in s.text()


@test
def killed_while_saving(_):
    """The old snapshot or the new one, never a mixture; what was left half written goes away."""
    with tempfile.TemporaryDirectory() as d:
        options = ("--cache-dir", d, "--cache-min", "100")
        long = chat("The capital of Cuba is Havana. " * (300 if LONG else 150) + "What is the capital of Cuba?")
        s = Server(*options)
        first = s.post("/v1/chat/completions", long)[2]["choices"][0]["message"]
        s.kill()
        for i in range(20 if LONG else 6):
            s = Server(*options)
            eq(s.post("/v1/chat/completions", long)[2]["choices"][0]["message"], first)
            eq(s.metric("disk_errors_total"), 0)
            s.p.send_signal(signal.SIGTERM)  # saves
            time.sleep(0.001 * i)
            s.kill()
        left = d + "/0123456789abcdef-500.dsv4seq.aB3dE6"
        for age, there in ((10, True), (3600, False)):  # another server may be writing it
            open(left, "w").close()
            os.utime(left, (time.time() - age,) * 2)
            Server(*options).kill()
            eq(os.path.exists(left), there)
