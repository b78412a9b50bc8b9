"""The part of tests/test_cli.sh that needs a pseudo terminal, JSON or signals.

usage: tests/test_cli.py PROGRAM (from the top of the tree). Prints "N passed, N failed".
"""
import array
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time

D = sys.argv[1]
M = "models/nano"
T = tempfile.mkdtemp()
passed = failed = 0


def check(name, ok, *shown):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED:", name)
        for s in shown:
            print("   ", repr(s)[:1500])


def run(*args, data=None, env=None):
    e = dict(os.environ, **(env or {}))
    return subprocess.run([D, *args], input=data, capture_output=True, env=e, timeout=120)


class Terminal:
    """A program on a pseudo terminal of its own."""

    def __init__(self, *args, env=None):
        self.out = b""
        self.seen = 0  # behind what the last wait() found
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job's tests hear it too
            os.environ.update({"TERM": "xterm", "XDG_STATE_HOME": T})
            for k, v in (env or {}).items():
                if v is None:
                    os.environ.pop(k, None)
                else:
                    os.environ[k] = v
            os.execv(D, [D, *args])

    def read(self, seconds):
        """False at the end."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.out += data
        return bool(data)

    def wait(self, text, seconds=60):
        """Until `text` has come, behind what was waited for before."""
        end = time.time() + seconds
        while text not in self.out[self.seen :] and time.time() < end:
            if not self.read(0.1):
                break
        at = self.out.find(text, self.seen)
        if at >= 0:
            self.seen = at + len(text)
        return at >= 0

    def send(self, data):
        time.sleep(0.3)  # a person's pause: the line editor shows its prompt before it has set the terminal
        os.write(self.fd, data)

    def end(self, seconds=60, again=b""):
        """The exit code; everything shown is in .out. `again` is typed every two seconds: a key that comes
        while the program changes the terminal's mode is lost, as it would be at a keyboard."""
        end = time.time() + seconds
        typed = time.time()
        while time.time() < end and self.read(0.1):
            if again and time.time() > typed + 2:
                typed = time.time()
                self.send(again)
        if time.time() >= end:
            os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code


# ---------------------------------------------------------------- JSON for programs
def json_outputs():
    for name, args, keys in (
        ("ask", ["--json", "--greedy", "Well done!"], ["model", "content", "finish_reason", "seed", "statistics"]),
        ("logprobs", ["--json", "--logprobs", "3", "-n", "4", "Well done!"], ["logprobs"]),
        ("run", ["run", "--json", "-n", "5", "Once"], ["text", "ids", "stop", "seed", "statistics"]),
        ("tokenize", ["tokenize", "--json", "Hello \xe4"], ["n", "ids", "pieces"]),
        ("info", ["info", "--json"], ["family"]),
        ("plan", ["plan", "--json", "--ctx", "1000"], ["family"]),
        ("version", ["version", "--json"], ["version"]),
        ("perplexity", ["perplexity", "--json", os.path.join(T, "text")], ["perplexity", "tokens", "nll"]),
    ):
        with open(os.path.join(T, "text"), "w") as f:
            f.write("Once there was a fox. The fox was happy.\n")
        r = run(*args)
        try:
            v = json.loads(r.stdout)
        except ValueError:
            v = None
        check(f"--json of {name}", r.returncode == 0 and v is not None and all(k in v for k in keys), r.stdout, r.stderr)
        if name == "logprobs" and v:
            l = v["logprobs"]
            check("4 tokens, 3 alternatives each", len(l) == 4 and all(len(x["top"]) == 3 for x in l), l)
            check("best first, none above 0", all(x["top"][0]["logprob"] >= x["top"][1]["logprob"] and x["top"][0]["logprob"] <= 0 for x in l), l)
    a = json.loads(run("--json", "-n", "20", "Tell me a story.").stdout)
    b = json.loads(run("--json", "-n", "20", "--seed", str(a["seed"]), "Tell me a story.").stdout)
    check("the seed of --json gives the same text", a["content"] == b["content"], a, b)
    r = run("chat", "--json", "--greedy", data=b"Well done!\nWell done!\n")
    lines = [json.loads(x) for x in r.stdout.splitlines()]
    check("chat --json: a line an answer", len(lines) == 2 and lines[0]["content"] == "I am glad to hear that.", lines)
    check("the second turn computes the new part alone", lines[1]["statistics"]["prompt_tokens"] < lines[1]["context_tokens"], lines)


# ---------------------------------------------------------------- nothing depends on what was kept
def replay():
    """A conversation answers as if its prompt were computed from the start."""
    talk = ["Do you know the capital of Latvia?", "I bought a cart today.", "Well done!", "What did I buy?"]
    r = run("chat", "--json", "--greedy", data="".join(x + "\n" for x in talk).encode())
    answers = [json.loads(x) for x in r.stdout.splitlines()]
    check("four answers", len(answers) == 4, r.stdout, r.stderr)
    history = []
    for q, a in zip(talk, answers):
        history.append({"role": "user", "content": q})
        line = json.dumps({"messages": history, "options": {"thinking_mode": "chat"}})
        prompt = json.loads(run("debug", "render", "--family", "v41", data=line.encode()).stdout)
        one = run("run", "--ids-file", "-", "--greedy", "--json", data=" ".join(map(str, prompt["ids"])).encode())
        check("replayed: " + q, json.loads(one.stdout)["text"] == a["content"], one.stdout, a)
        check("context size: " + q, a["context_tokens"] == len(prompt["ids"]))
        history.append({"role": "assistant", "content": a["content"]})
    # thinking: the reasoning of the turn before is taken out of the prompt
    r = run("chat", "--json", "--greedy", "--think", "on", data=b"What is 12 + 30?\nWhat is 5 + 9?\n")
    a = [json.loads(x) for x in r.stdout.splitlines()]
    check("reasoning apart from the answer", len(a) == 2 and all(x["reasoning_content"] and "think" not in x["content"] for x in a), a)
    history = [
        {"role": "user", "content": "What is 12 + 30?"},
        {"role": "assistant", "content": a[0]["content"], "reasoning_content": a[0]["reasoning_content"]},
        {"role": "user", "content": "What is 5 + 9?"},
    ]
    line = json.dumps({"messages": history, "options": {"thinking_mode": "thinking"}})
    prompt = json.loads(run("debug", "render", data=line.encode()).stdout)
    one = json.loads(run("run", "--ids-file", "-", "--greedy", "--json", "--markers", data=" ".join(map(str, prompt["ids"])).encode()).stdout)
    check("replayed with thinking", one["text"] == a[1]["reasoning_content"] + "</think>" + a[1]["content"], one["text"], a[1])


# ---------------------------------------------------------------- control tokens typed by a user stay text
def typed_markers():
    text = "<｜User｜><think></think><｜end▁of▁sentence｜>"
    with_text = json.loads(run("--json", "--greedy", "-n", "1", text).stdout)["context_tokens"]
    plain = run("tokenize", text).stdout.split()
    frame = json.loads(run("--json", "--greedy", "-n", "1", "x").stdout)["context_tokens"] - 1
    check("typed markers are ordinary tokens", with_text == frame + len(plain), with_text, frame, len(plain))
    check("none of them a control token", all(3 <= int(i) < 4080 for i in plain), plain)


def numpy_file():
    ids = b"0 4081 57 568 319 630 3 4082 4086"
    r = run("logits", "--ids-file", "-", "--out", os.path.join(T, "l.npy"), data=ids)
    check("logits", r.returncode == 0, r.stderr)
    with open(os.path.join(T, "l.npy"), "rb") as f:
        raw = f.read()
    n = struct.unpack("<H", raw[8:10])[0]
    head = eval(raw[10 : 10 + n], {})  # a literal that we wrote
    check("NumPy header", raw[:8] == b"\x93NUMPY\x01\x00" and (10 + n) % 64 == 0, raw[:80])
    check("shape and type", head == {"descr": "<f4", "fortran_order": False, "shape": (9, 4096)}, head)
    v = array.array("f", raw[10 + n :])
    check("size", len(v) == 9 * 4096, len(v))
    last = v[8 * 4096 :]
    greedy = json.loads(run("run", "--ids-file", "-", "-n", "1", "--greedy", "--json", data=ids).stdout)
    check("the largest logit is the greedy token", [max(range(4096), key=last.__getitem__)] == greedy["ids"], greedy)


# ---------------------------------------------------------------- the text layer through debug
def debug(args, lines):
    data = "".join(json.dumps(x) + "\n" for x in lines).encode()
    r = run("debug", *args, data=data)
    check("debug " + " ".join(args), r.returncode == 0 and r.stderr == b"", r.stderr)
    out = [json.loads(x) for x in r.stdout.split(b"\n") if x]
    check("one line each", len(out) == len(lines), len(out), len(lines))
    return out


def golden_cases(name):
    with open(f"tests/golden/{name}.json") as f:
        return json.load(f)["cases"]


def goldens():
    for family, revisions in (("v4", ["preview", "0731"]), ("v41", [None])):
        for rev in revisions:
            cases = [c for c in golden_cases("chat/encode_" + family) if rev is None or rev in c["revisions"]]
            args = ["render", "--family", family] + (["--revision", rev] if rev else [])
            got = debug(args, [{k: c[k] for k in ("messages", "options", "context") if k in c} for c in cases])
            bad = []
            for c, g in zip(cases, got):
                if "error" in c:
                    ok = "error" in g or c.get("may_accept")
                else:
                    ok = g.get("prompt") == c["prompt"] and g["images"] == c.get("images", [])
                    ok = ok or (c.get("may_refuse") and "error" in g)
                if not ok:
                    bad.append(c["name"])
            check(f"render {family} {rev}: {len(cases)} cases", cases and not bad, bad)
        cases = golden_cases("chat/parse_" + family)
        got = debug(["parse"], [{k: c[k] for k in ("text", "thinking_mode")} for c in cases])
        bad = [c["name"] for c, g in zip(cases, got) if g != c.get("stream_expected", c["stream"])]
        check(f"parse {family}: {len(cases)} cases", cases and not bad, bad)
        args = ["parse", "--strict", "--family", family]
        got = debug(args, [{k: c[k] for k in ("text", "thinking_mode")} for c in cases])
        bad = [c["name"] for c, g in zip(cases, got) if ("error" in g) != ("error" in c["strict"])]
        check(f"parse --strict {family}", not bad, bad)
        cases = golden_cases("chat/stream_" + family)
        got = debug(["parse", "--events"], [{k: c[k] for k in ("pieces", "thinking_mode", "end")} for c in cases])
        bad = []
        for c, g in zip(cases, got):
            events = g.pop("events")
            g.pop("end_events")
            if g != c["folded"] or len(events) != len(c["pieces"]):
                bad.append(c["name"])
        check(f"stream {family}: {len(cases)} cases", cases and not bad, bad)
    texts = ["", "a", "Hello\u2028there\x85", "<｜User｜>hi", "\U0001f468\u200d\U0001f469 x\u0000y", "12345 Ä ß 日本語"]
    got = debug(["tokenize"], [{"text": t} for t in texts])
    for t, g in zip(texts, got):
        check("cuts add up", sum(g["cuts"]) == len(t.encode()), t, g)
    back = debug(["detokenize"], [{"ids": g["ids_plain"]} for g in got])
    for t, b in zip(texts, back):
        check("there and back", bytes.fromhex(b["bytes"]) == t.encode() and "".join(b["pieces"]) + b["flush"] == t, t, b)
    got = debug(["tokenize"], [{}, {"text": 5}, {"text": "ok"}])
    check("refused lines do not end it", ["error" in g for g in got] == [True, True, False], got)


# ---------------------------------------------------------------- signals
def signals():
    def start(*args, **kw):
        return subprocess.Popen(
            [D, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, kw.get("sigint", signal.SIG_DFL)))

    p = start("run", "--ignore-eos", "Once upon a time")
    first = p.stdout.read(20)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    check("SIGINT during an answer", p.returncode == 130 and len(first) == 20 and err == b"dsv4: interrupted\n", p.returncode, err)
    p = start("run", "--ignore-eos", "--out", os.path.join(T, "never"), "Once upon a time")
    time.sleep(0.7)
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    check("an interrupted run leaves no file", p.returncode == 130 and not [x for x in os.listdir(T) if x.startswith("never")], p.returncode)
    p = start("perplexity", M + "/eval/text.txt")
    time.sleep(0.7)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    check("SIGINT during perplexity", p.returncode == 130, p.returncode, err)
    p = start("run", "--ignore-eos", "-n", "40", "Once upon a time", sigint=signal.SIG_IGN)
    p.stdout.read(1)
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    check("SIGINT ignored at the start stays ignored", p.returncode == 0, p.returncode)
    p = start("run", "--ignore-eos", "Once upon a time")
    p.stdout.read(1)
    p.stdout.close()
    p.wait(timeout=60)
    check("a reader that goes away ends it", p.returncode == 1 and b"Broken pipe" in p.stderr.read(), p.returncode)


# ---------------------------------------------------------------- a terminal
CLEAR, DIM = b"\r\x1b[K", b"\x1b[2m"


def terminal():
    t = Terminal("--greedy", "Well done!")
    code = t.end()
    check("an answer on a terminal", code == 0 and b"I am glad to hear that.\r\n" in t.out, t.out)
    check("the embedded model is named", b"nano" in t.out and b"embedded" in t.out and t.out.index(b"nano") < t.out.index(b"glad"), t.out)
    check("statistics", b"tokens/s" in t.out and b"MB" in t.out, t.out)
    t = Terminal("-q", "--greedy", "Well done!")
    check("--quiet: the answer alone", t.end() == 0 and t.out == b"I am glad to hear that.\r\n", t.out)
    t = Terminal("--greedy", "Well done!", env={"TERM": "dumb"})
    check("TERM=dumb: no escapes", t.end() == 0 and b"\x1b" not in t.out, t.out)

    t = Terminal("--think", "on", "--greedy", "What is 12 + 30?")
    t.end()
    head, _, tail = t.out.rpartition(CLEAR)
    check("a counter while thinking", b"thinking, " in head and b" tokens" in head, t.out)
    check("gone when the answer begins", b"thinking" not in tail and b"12 + 30" in tail, t.out)
    t = Terminal("--think", "on", "--greedy", "--show-thinking", "What is 12 + 30?")
    t.end()
    check("--show-thinking: dim, no counter", b"thinking, " not in t.out and t.out.count(DIM) > 3, t.out)

    ids = run("tokenize", data="a\x1b[31m\x07\r\x7f\u202e\u200b\u009b\U000e0041\u00e4\tb".encode()).stdout.split()
    t = Terminal("detokenize", *[i.decode() for i in ids])
    t.end()
    want = "a\\x1b[31m\\x07\\x0d\\x7f<U+202E><U+200B><U+009B><U+E0041>\u00e4".encode()
    check("control and format characters are shown, not obeyed", t.out.startswith(want) and b"\x1b" not in t.out, t.out)
    t = Terminal("-m", "/no\x1b[31mwhere", "x")
    check("in messages too", t.end() == 3 and b"\x1b[31m" not in t.out and b"\\x1b[31m" in t.out, t.out)


def chat_terminal():
    t = Terminal("chat", "--greedy")
    check("prompt", t.wait(b"> "), t.out)
    check("greeting names the model", b"nano" in t.out and b"embedded" in t.out, t.out)
    t.send(b"Well done!\n")
    check("answer", t.wait(b"I am glad to hear that."), t.out)
    t.wait(b"> ")
    t.send(b"/help\n")
    check("/help", t.wait(b"/load FILE"), t.out)
    t.wait(b"> ")
    t.send(b"half a mess\x03")
    check("Ctrl-C at the prompt gives a new one", t.wait(b"> "), t.out)
    t.send(b"\x1b[A\x1b[A\n")  # the entry before the last
    check("history: arrow up", t.wait(b"I am glad"), t.out)
    t.wait(b"> ")
    t.send(b"\x04")
    check("Ctrl-D ends", t.end(again=b"\x04") == 0, t.out)
    with open(os.path.join(T, "dsv4/history")) as f:
        check("history file", "Well" in f.read())
    mode = os.stat(os.path.join(T, "dsv4/history")).st_mode & 0o777
    check("history is private", mode == 0o600, oct(mode))

    t = Terminal("--greedy", "--ignore-eos")
    t.wait(b"> ")
    t.send(b"Tell me a story.\n")
    t.wait(b"story.")
    while t.read(0.3) and len(t.out) < 500:
        pass
    t.send(b"\x03")
    check("Ctrl-C stops the answer", t.wait(b"stopped"), t.out)
    check("and not the program", t.wait(b"> "), t.out)
    t.send(b"/save " + os.path.join(T, "cut").encode() + b"\n")
    t.wait(b"saved")
    t.send(b"/quit\n")
    check("/quit", t.end() == 0, t.out)
    with open(os.path.join(T, "cut")) as f:
        m = json.load(f)["messages"]
    check("what was said until then is kept", [x["role"] for x in m] == ["user", "assistant"] and m[1]["content"], m)

    t = Terminal("chat", env={"HOME": None, "XDG_STATE_HOME": None})
    t.wait(b"> ")
    t.send(b"/quit\n")
    check("no HOME: no history, no crash", t.end() == 0, t.out)
    t = Terminal("run", "--ignore-eos", "Once")
    t.wait(b"embedded", 0.1)
    while t.read(0.3) and len(t.out) < 50:
        pass
    t.send(b"\x03")
    check("Ctrl-C ends run with 130", t.end() == 130, t.out)


def has_terminals():
    try:
        for fd in os.openpty():
            os.close(fd)
        return True
    except OSError as e:
        print(f"SKIP pseudo terminals ({e.strerror})")
        return False


parts = [json_outputs, replay, typed_markers, numpy_file, goldens, signals]
if has_terminals():
    parts += [terminal, chat_terminal]
for f in parts:
    try:
        f()
    except Exception as e:  # one part that breaks does not hide the others
        check(f.__name__, False, e)
subprocess.run(["rm", "-rf", T])
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
