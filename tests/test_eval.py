"""dsv4-eval on the embedded model: its numbers against the same computed here from `dsv4 logits`, batch sizes,
interrupted runs, bad input.

usage: tests/test_eval.py BUILD (from the top of the tree). Prints "N passed, N failed".
       tests/test_eval.py --questions FILE: writes the questions of docs/evaluation.md, made of models/nano/eval
"""
import array
import json
import math
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

M = "models/nano"
TEXT = M + "/eval/text.txt"
QUICK = bool(os.environ.get("CHECK_QUICK"))  # sanitizers: the same code, ten times slower
LONG = os.environ.get("CHECK_LONG") is not None  # all of the text, all questions


def questions():
    """Facts of the evaluation set, each answer among those of the three questions that follow."""
    with open(M + "/eval/facts.jsonl", encoding="utf-8") as f:
        facts = [json.loads(line) for line in f]
    out = []
    for i, fact in enumerate(facts):
        choices = [fact["expected"]]
        for k in range(1, len(facts)):
            other = facts[(i + k) % len(facts)]["expected"]
            if other not in choices:
                choices.append(other)
            if len(choices) == 4:
                break
        answer = i % 4
        choices[0], choices[answer] = choices[answer], choices[0]
        out.append({"id": fact["id"], "context": fact["prompt"], "choices": choices, "answer": answer, "markers": True})
    return out


def write_questions(path, items):
    with open(path, "w", encoding="utf-8") as f:
        for item in items:
            f.write(json.dumps(item, ensure_ascii=False) + "\n")


if sys.argv[1] == "--questions":
    write_questions(sys.argv[2], questions())
    sys.exit(0)

B = sys.argv[1]
D, E = B + "/dsv4", B + "/dsv4-eval"
T = tempfile.mkdtemp()
passed = failed = skipped = 0
os.environ["DSV4_THREADS"] = "1"
for name in ("DSV4_MODEL", "NO_COLOR"):
    os.environ.pop(name, None)


def at(name):
    return os.path.join(T, name)


LARGE = TEXT if LONG else at("large")


def check(name, ok, *shown):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED:", name)
        for s in shown:
            print("   ", repr(s)[:1500])


def run(*args):
    return subprocess.run([E, *args], capture_output=True, timeout=200)


def result(name, *args):
    """What --json prints, without what a clock says and how much had to be computed (again)."""
    p = run(*args, "--json")
    check(name, p.returncode == 0 and p.stderr == b"", p.returncode, p.stderr)
    return timeless(json.loads(p.stdout)) if p.returncode == 0 else {}


def timeless(x):
    if isinstance(x, list):
        return [timeless(v) for v in x]
    if isinstance(x, dict):
        return {k: timeless(v) for k, v in x.items() if "second" not in k and k != "rows"}
    return x


def near(a, b, part=1e-6):
    return abs(a - b) <= part * max(abs(a), abs(b), 1e-30)


# ---------------------------------------------------------------- the same, computed here
def tokenize(path):
    out = subprocess.run([D, "tokenize", "-f", path], capture_output=True, check=True).stdout
    return [int(i) for i in out.split()]


def log_softmax(row):
    top = max(row)
    scale = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - scale for x in row]


def logits(ids, *options):
    with open(at("ids"), "w", encoding="ascii") as f:
        f.write(" ".join(str(i) for i in ids))
    subprocess.run([D, "logits", "--ids-file", at("ids"), "--out", at("npy"), "-q", *options], check=True)
    with open(at("npy"), "rb") as f:
        data = f.read()
    head = 10 + int.from_bytes(data[8:10], "little")
    values = array.array("f", data[head:])
    width = len(values) // len(ids)
    return [log_softmax(values[i * width:(i + 1) * width]) for i in range(len(ids))]


BOS = 0


def windows(ids, context):
    body = context - 1
    return [ids[i:i + body] for i in range(0, len(ids), body)]


def perplexity():
    with open(TEXT, encoding="utf-8") as f:
        text = f.read()
    with open(at("text"), "w", encoding="utf-8") as f:
        f.write(text[:700])
    with open(at("text2"), "w", encoding="utf-8") as f:
        f.write(text[5000:5900])
    with open(at("text3"), "w", encoding="utf-8") as f:
        f.write(text[7000:9000])
    with open(at("large"), "w", encoding="utf-8") as f:
        f.write(text[:6000])
    ids = tokenize(at("text"))
    cut = windows(ids, 64)
    check("the text has several windows, the last one short", len(cut) > 2 and len(cut[-1]) < 63, len(ids))
    nll, same, kl = [], 0, []
    for w in cut:
        q, p = logits([BOS] + w[:-1]), logits([BOS] + w[:-1], "--exact")
        for qr, pr, token in zip(q, p, w):
            nll.append(-qr[token])
            kl.append(sum(math.exp(a) * (a - b) for a, b in zip(pr, qr)))
            same += pr.index(max(pr)) == qr.index(max(qr))
    n = len(nll)
    mean = sum(nll) / n
    error = math.exp(mean) * math.sqrt((sum(x * x for x in nll) / n - mean * mean) / (n - 1))
    r = result("perplexity beside the exact one", at("text"), "--context", "64", "--against-exact")
    check("tokens", r["tokens"] == n, r["tokens"], n)
    check("perplexity", near(r["perplexity"], math.exp(mean)), r["perplexity"], math.exp(mean))
    check("its error", near(r["perplexity_error"], error, 1e-4), r["perplexity_error"], error)
    check("mean divergence", near(r["kl"]["mean"], sum(kl) / n, 1e-3), r["kl"], sum(kl) / n)
    check("largest divergence", near(r["kl"]["max"], max(kl), 1e-3), r["kl"], max(kl))
    check("99 % of divergences", near(r["kl"]["p99"], sorted(kl)[math.ceil(0.99 * n) - 1], 1e-2), r["kl"])
    check("same best token", near(r["same_top"], same / n), r["same_top"], same / n)
    # tokens that are not counted
    s = result("--skip", at("text"), "--context", "64", "--skip", "20")
    some = [x for k, x in enumerate(nll) if k % 63 >= 20]
    check("--skip leaves out the beginning of each window",
          s["tokens"] == len(some) and near(s["nll"], sum(some)), s, len(some), sum(some))
    return n


def reference_value():
    """The whole text, against what the reference implementation says about the shipped weights."""
    if not QUICK:
        with open(M + "/eval/perplexity.json", encoding="utf-8") as f:
            want = json.load(f)["shipped"]
        r = result("the whole text", TEXT, "--exact")
        check("the reference's perplexity", near(r["perplexity"], want, 1e-4), r["perplexity"], want)
    old = subprocess.run([D, "perplexity", "--exact", "--json", LARGE], capture_output=True, check=True).stdout
    r = result("a large text", LARGE, "--exact", "--save-logits", at("exact"), "--top", "64")
    check("the same as dsv4 perplexity", near(r["nll"], json.loads(old)["nll"], 1e-12), r["nll"], old)
    check("the file is there, its part is not", os.path.exists(at("exact")) and not os.path.exists(at("exact.part")))
    kept = result("against kept logits", LARGE, "--reference", at("exact"))
    full = result("against the model itself", LARGE, "--against-exact")
    k, f = kept["kl"], full["kl"]
    check("kept logits say the same, within their error",
          0 < k["mean_error"] < 0.4 * f["mean"] and abs(k["mean"] - f["mean"]) < 5 * k["mean_error"], k, f)
    check("the bound is one", 0.5 * f["mean"] < k["mean_at_least"] < f["mean"], k, f)
    check("the same best tokens", kept["same_top"] == full["same_top"], kept["same_top"], full["same_top"])
    check("both perplexities", kept["perplexity"] == full["perplexity"]
          and near(kept["reference_perplexity"], r["perplexity"]) and full["reference_perplexity"] == r["perplexity"],
          kept, full)
    itself = result("against itself", LARGE, "--exact", "--reference", at("exact"))
    check("no distance from itself", abs(itself["kl"]["mean"]) < 1e-6 and itself["same_top"] == 1, itself["kl"])


def groupings():
    """Batches and threads change nothing, to the last bit; several texts are counted together."""
    args = (at("text"), at("text2"), "--context", "50", "--against-exact")
    whole = result("two texts", *args)
    for more in (("--batch", "1"), ("--batch", "17"), ("-t", "2")):
        check(" ".join(more) + " gives the same", result(" ".join(more), *args, *more) == whole)
    one, two = (result("one text", at(n), "--context", "50") for n in ("text", "text2"))
    check("each text alone", [f["perplexity"] for f in whole["files"]] == [one["perplexity"], two["perplexity"]], whole["files"])
    check("both together", near(whole["nll"], one["nll"] + two["nll"], 1e-12), whole["nll"])
    p = run(*args)
    check("the sheet", p.returncode == 0 and p.stdout.count(b"\n") == 7 and b"KL " in p.stdout, p.stdout)


# ---------------------------------------------------------------- interrupted runs
def start(*args):
    return subprocess.Popen([E, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def lines(path):
    try:
        with open(path, "rb") as f:
            return f.read().count(b"\n")
    except FileNotFoundError:
        return 0


def stop_when(p, state, n, sig):
    while lines(state) < n and p.poll() is None:
        time.sleep(0.01)
    p.send_signal(sig)
    out, err = p.communicate(timeout=60)
    return p.returncode, out, err


def interrupted(name, args, stops):
    """A run that is stopped in several places says in the end what one says that is not."""
    state = at("state")
    if os.path.exists(state):
        os.remove(state)
    whole = result(name, *args, "--state", state)
    os.remove(state)
    for n, sig in stops:
        code, out, err = stop_when(start(*args, "--state", state), state, n, sig)
        check("%s, stopped after %d lines" % (name, n), code == (130 if sig == signal.SIGINT else -sig) and out == b"", code, out, err)
        check("it says how to go on", sig != signal.SIGINT or b"the same command goes on" in err, err)
        if sig == signal.SIGINT:
            with open(state, encoding="utf-8") as f:
                check("the state is JSON, line by line", all(isinstance(json.loads(x), dict) for x in f))
    check("%s, in several runs" % name, result("the rest", *args, "--state", state) == whole)
    before = lines(state)
    check("%s, when all is done" % name, result("again", *args, "--state", state) == whole and lines(state) == before)


def interruptions():
    args = (TEXT if LONG else at("text3"), "--context", "20", "--against-exact", "--save-logits", at("kept"), "--top", "8")
    interrupted("perplexity", args, [(5, signal.SIGINT), (12, signal.SIGKILL), (20, signal.SIGINT)])
    with open(at("kept"), "rb") as f:
        several = f.read()
    os.remove(at("kept"))
    result("kept logits at once", *args)
    with open(at("kept"), "rb") as f:
        check("kept logits of several runs are those of one", f.read() == several)
    interrupted("needle", ("needle", "--lengths", "128,64", "--depths", "0,90", "--seeds", "4"), [(4, signal.SIGINT), (11, signal.SIGKILL)])
    write_questions(at("many.jsonl"), questions()[:None if LONG else 30])
    interrupted("choice", ("choice", at("many.jsonl"), "--against-exact"), [(20, signal.SIGINT), (45, signal.SIGKILL)])
    p = start(TEXT, "--save-logits", at("never"))
    while not os.path.exists(at("never.part")) and p.poll() is None:
        time.sleep(0.01)
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    check("without --state nothing is left", p.returncode == 130 and not [x for x in os.listdir(T) if x.startswith("never")], p.returncode)


# ---------------------------------------------------------------- needles and questions
def needles():
    args = ("needle", "--lengths", "128,256", "--depths", "0,100", "--seeds", "2", "--against-exact")
    r = result("needles", *args, "--svg", at("grid.svg"))
    check("a grid for each model", [m["model"]["exact"] for m in r["models"]] == [False, True])
    check("a share for each cell", all(len(m["grid"]) == 2 and all(len(x) == 2 for x in m["grid"]) for m in r["models"]))
    texts = r["texts"]
    check("all texts", len(texts) == 16 and len({(t["seed"], t["length"], t["depth"]) for t in texts}) == 8, len(texts))
    check("texts are as long as they should", all(t["length"] - 20 < t["tokens"] <= t["length"] for t in texts), texts)
    check("an answer is found by its number", all(t["found"] == (t["wanted"] in t["answer"]) for t in texts))
    near_end = [t["found"] for t in texts if t["depth"] == 100]
    check("at the end of a text it is found", sum(near_end) >= 6, near_end)
    for more in (("--batch", "7"), ("-t", "2")):
        other = result("needles " + more[0], *args, *more)
        check(more[0] + " gives the same answers", other == r)
    # A hay that is forked answers like one that is not.
    alone = result("one needle", "needle", "--lengths", "256", "--depths", "100", "--seeds", "1", "--seed", "2")["texts"][0]
    same = [t for t in texts if (t["seed"], t["length"], t["depth"]) == (2, 256, 100)][0]
    check("a shared beginning changes nothing", alone == same, alone, same)
    raw = result("no chat format", "needle", "--raw", "--lengths", "100", "--depths", "50", "--seeds", "1")
    check("one text", len(raw["texts"]) == 1)
    svg = xml.etree.ElementTree.parse(at("grid.svg")).getroot()
    cells = [x for x in svg.iter() if x.tag.endswith("rect") and "fill" in x.attrib and x.get("x")]
    check("the picture has all cells", len(cells) == 8, len(cells))
    # on a terminal: progress, colours
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(E, [E, "needle", "--lengths", "128", "--depths", "50", "--seeds", "2"])
    out = b""
    try:
        while True:
            out += os.read(fd, 4096)
    except OSError:
        pass
    os.waitpid(pid, 0)
    check("a terminal sees a bar and colours", b"needle [" in out and b"\x1b[48;2;" in out and b"found" in out, out)


def choices():
    items = questions()[:12]
    items.insert(3, {"context": "Once upon a time there was", "choices": [" a", "n owl who lived", " the"], "answer": 0})
    items.insert(4, {"id": 7, "context": "", "choices": ["The road", "The bridge"], "answer": 1})
    write_questions(at("q.jsonl"), items)
    r = result("questions", "choice", at("q.jsonl"), "--exact")
    answers = r["answers"]
    check("an answer to each", [a["line"] for a in answers] == list(range(1, 15)) and answers[4]["id"] == 7)
    for k in (0, 3, 4):
        item, logp = items[k], []
        for choice in item["choices"]:
            markers = ["--markers"] if item.get("markers") else []
            ids = []
            for text in (item["context"], item["context"] + choice):
                with open(at("piece"), "w", encoding="utf-8") as f:
                    f.write(text)
                got = subprocess.run([D, "tokenize", *markers, "-f", at("piece")], capture_output=True, check=True).stdout
                ids.append([int(i) for i in got.split()])
            if ids[1][0] != BOS:
                ids = [[BOS] + x for x in ids]
            same = 0
            while same < min(len(ids[0]), len(ids[1]) - 1) and ids[0][same] == ids[1][same]:
                same += 1
            logp.append((same, ids[1]))
        begin = min(s for s, _ in logp)
        for i, (_, ids) in enumerate(logp):
            rows = logits(ids[:-1], "--exact")
            want = sum(rows[t - 1][ids[t]] for t in range(begin, len(ids)))
            got = answers[k]["log_likelihoods"][i]
            check("log-likelihood of question %d, choice %d" % (k, i), near(got, want, 1e-4), got, want)
    for a, item in zip(answers, items):
        ll = a["log_likelihoods"]
        per = [x / len(c.encode()) for x, c in zip(ll, item["choices"])]
        check("the most likely choice", ll[a["best"]] == max(ll) and per[a["best_per_byte"]] == max(per), a)
    n = len(items)
    check("share of right answers", near(r["models"][0]["accuracy"], sum(a["best"] == a["answer"] for a in answers) / n)
          and r["models"][0]["accuracy"] > 0.7, r["models"])
    check("a byte", near(r["models"][0]["accuracy_per_byte"], sum(a["best_per_byte"] == a["answer"] for a in answers) / n))
    fast = result("questions, two models", "choice", at("q.jsonl"), "--against-exact")
    check("the second model's answers are those it gives alone",
          [a["log_likelihoods"] for a in fast["answers"][n:]] == [a["log_likelihoods"] for a in answers])
    check("how often they agree", near(fast["same_answer"], sum(
        a["best_per_byte"] == b["best_per_byte"] for a, b in zip(fast["answers"], answers)) / n))
    for more in (("--batch", "3"), ("-t", "2")):
        check("choice " + more[0] + " gives the same", result("choice " + more[0], "choice", at("q.jsonl"), "--against-exact", *more) == fast)
    # what stood before a question does not matter
    write_questions(at("turned.jsonl"), items[::-1])
    turned = result("questions, turned round", "choice", at("turned.jsonl"))
    check("the order of questions does not matter", [a["log_likelihoods"] for a in turned["answers"]]
          == [a["log_likelihoods"] for a in fast["answers"][:n]][::-1])
    p = run("choice", at("q.jsonl"))
    check("the sheet of questions", p.returncode == 0 and b"14 questions" in p.stdout, p.stdout)


# ---------------------------------------------------------------- bad input
def bad():
    def refuse(code, part, *args):
        p = run(*args)
        check("%s: %d, %r" % (" ".join(args), code, part),
              p.returncode == code and part.encode() in p.stderr and p.stderr.count(b"\n") == 1
              and p.stderr.startswith(b"dsv4-eval: ") and p.stdout == b"", p.returncode, p.stderr, p.stdout)

    def file(name, text):
        with open(at(name), "wb") as f:
            f.write(text)
        return at(name)

    refuse(2, "", "perplexity")
    refuse(2, "--context", at("text"), "--context", "1")
    refuse(2, "context", at("text"), "--context", "100000000")
    refuse(2, "no text", file("empty", b""))
    refuse(2, "--skip", at("text"), "--context", "10", "--skip", "9")
    refuse(3, "nofile", at("nofile"))
    refuse(3, "", at("text"), "-m", at("nomodel"))
    refuse(2, "exclude each other", at("text"), "--reference", at("exact"), "--against", M)
    refuse(2, "--against-exact", at("text"), "--exact", "--against-exact")
    refuse(3, "nofile", at("text"), "--reference", at("nofile"))
    refuse(3, "not a file that --save-logits writes", at("text"), "--reference", TEXT)
    refuse(3, "another text", at("text"), "--reference", at("exact"))
    refuse(3, "--context 512", LARGE, "--context", "100", "--reference", at("exact"))
    with open(at("exact"), "rb") as f:
        kept = f.read()
    refuse(3, "damaged", LARGE, "--reference", file("short", kept[:-1]))
    refuse(3, "damaged", LARGE, "--reference", file("flipped", kept[:500] + bytes([kept[500] ^ 1]) + kept[501:]))
    refuse(1, "nodir", at("text"), "--save-logits", at("nodir/x"))
    refuse(2, "empty", at("text"), "--save-logits", "")
    refuse(2, "empty", at("text"), "--state", "")
    refuse(3, "not a state file", at("text"), "--state", file("list", b"[]\n"))
    refuse(3, "a state file of dsv4-eval is wanted", at("text"), "--state", at("text2"))
    run(at("text"), "--state", at("s"))
    refuse(3, "\"context\" was 512 and is 90", at("text"), "--state", at("s"), "--context", "90")
    refuse(3, "\"texts\"", at("text2"), "--state", at("s"))
    with open(at("s"), "rb") as f:
        state = f.read()
    refuse(3, "more windows", at("text"), "--state", file("s2", state + b"{}\n{}\n"))
    refuse(3, "unit 1 is not complete", at("text"), "--state", file("s2", state.replace(b'"counted"', b'"uncounted"')))
    # another model under the same name
    shutil.copytree(M, at("model"), ignore=shutil.ignore_patterns("eval"))
    run(at("text"), "-m", at("model"), "--state", at("s3"))
    os.utime(at("model/model.safetensors"), (1, 1))
    refuse(3, "\"model\"", at("text"), "-m", at("model"), "--state", at("s3"))
    # another tokenizer
    with open(at("model/tokenizer.json"), encoding="utf-8") as f:
        tokenizer = json.load(f)
    vocab = tokenizer["model"]["vocab"]
    names = sorted(vocab, key=vocab.get)
    digits = [n for n in names if n in ("x", "y")]
    vocab[digits[0]], vocab[digits[1]] = vocab[digits[1]], vocab[digits[0]]
    os.remove(at("model/tokenizer.json"))
    with open(at("model/tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(tokenizer, f)
    refuse(3, "another tokenizer", LARGE, "-m", at("model"), "--reference", at("exact"))
    refuse(3, "another tokenizer", at("text"), "--against", at("model"))
    # needles
    for value in ("", "1", "31", "64,", "a", "128,128", "99999999999"):
        refuse(2, "--lengths", "needle", "--lengths", value)
    refuse(2, "--depths", "needle", "--depths", "101")
    refuse(2, "too short", "needle", "--lengths", "32")
    refuse(1, "nodir", "needle", "--lengths", "128", "--depths", "0", "--seeds", "1", "--svg", at("nodir/x"))
    refuse(2, "", "needle", "surplus")
    # questions
    good = '{"context": "a", "choices": ["b", "c"], "answer": 0}\n'
    for text, part in (("", "no question"), ("\n \n", "no question"), ("{", "line 1"), (good + "x", "line 2"), ("[]", "not an object"),
                       ('{"choices": ["b", "c"], "answer": 0}', '"context"'),
                       ('{"context": 1, "choices": ["b", "c"], "answer": 0}', '"context"'),
                       ('{"context": "a", "choices": ["b"], "answer": 0}', "2 to 64"),
                       ('{"context": "a", "choices": %s, "answer": 0}' % json.dumps(["b"] * 65), "2 to 64"),
                       ('{"context": "a", "choices": ["b", ""], "answer": 0}', "an empty one"),
                       ('{"context": "a", "choices": ["b", 1], "answer": 0}', "not a text"),
                       ('{"context": "a", "choices": ["b", "c"], "answer": 2}', '"answer"'),
                       ('{"context": "a", "choices": ["b", "c"], "answer": -1}', '"answer"'),
                       ('{"context": "a", "choices": ["b", "c"], "answer": "b"}', '"answer"'),
                       ('{"context": "a", "choices": ["b", "c"], "answer": 0, "markers": 1}', '"markers"'),
                       ('{"context": "a", "context": "b", "choices": ["b", "c"], "answer": 0}', "line 1")):
        refuse(3, part, "choice", file("bad.jsonl", text.encode()))
    refuse(2, "--context is 3", "choice", file("long.jsonl", b'{"context": "The road was long.", "choices": ["b", "c"], "answer": 0}'), "--context", "3")
    refuse(3, "nofile", "choice", at("nofile"))
    refuse(2, "--needle", "choice", "--needle")
    p = run("--help")
    check("help", p.returncode == 0 and b"needle" in p.stdout and b"--save-logits" in p.stdout, p.stdout)
    p = run("choice", "--help")
    check("help of a command", p.returncode == 0 and b"FILE.jsonl" in p.stdout and b"--lengths" not in p.stdout, p.stdout)
    p = run("--version")
    check("version", p.returncode == 0 and p.stdout.startswith(b"dsv4-eval "), p.stdout)
    p = subprocess.run([E, at("text")], stdout=open("/dev/full", "wb"), stderr=subprocess.PIPE, timeout=60)
    check("a full device", p.returncode == 1 and b"standard output" in p.stderr, p.returncode, p.stderr)


try:
    for part in (perplexity, reference_value, groupings, needles, choices, interruptions, bad):
        if QUICK and part in (groupings, interruptions):
            print("SKIP dsv4-eval %s: CHECK_QUICK" % part.__name__)
            skipped += 1
        else:
            part()
finally:
    shutil.rmtree(T)
print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
sys.exit(failed != 0)
