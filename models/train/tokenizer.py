"""Make the byte-level BPE tokenizer: 4096 entries, DeepSeek pre-tokenizer structure, digits never merged.

Merges are learned in two rounds.  Round one sees words without what stands before them, round two glues the
space, slash or underscore on.  So " village", "village" and "/village" are one token each, or share their pieces,
and copying a word into a tool call is copying a token, not spelling.

usage: tokenizer.py OUT_DIR"""
import collections
import json
import random
import re
import sys

from tokenizers import Tokenizer, Regex, decoders, models, pre_tokenizers

import gen

VOCAB, ROUND_ONE = 4096, 2050
DOCS = 20000
MIX = dict(fact=3, arith=1, multi=3, single=3, tool=2, needle=2, story=2, code=2, files=3, facttext=2, copy=3)
HEAD = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
HOLD = [f"<｜place▁holder▁no▁{i}｜>" for i in range(8)]
TAIL = ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>", "<｜System｜>", "<|EOT|>", "<think>", "</think>", "｜DSML｜",
        "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>", "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<｜read_url｜>", "<｜deepseek_image｜>"]
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
BIG = ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
       "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")
CHAT = ("I you he she it we they this that these those there here when where why how what who which can could would should may must will not no yes "
        "please thanks sorry maybe always never often today tomorrow yesterday because but and or if then else while for with without about from to in on at by of "
        "make do say go get know think take see come want look use find give tell work call try ask need feel become leave put mean keep let begin help talk turn start show "
        "English language model computer program number word question answer test example time year day way thing man woman world life hand part child eye place week case point").split()


def pre(digits):
    split = lambda p: pre_tokenizers.Split(Regex(p), "isolated")
    return pre_tokenizers.Sequence([split(digits), split(CJK), split(BIG), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def count_pieces():
    """pre-token -> weight over generated documents; square roots, so that rare words count too"""
    r, n = random.Random(7), collections.Counter()
    cut = re.compile("|".join(re.escape(t) for t in HEAD + TAIL))
    p = pre(r"\p{N}")
    for _ in range(DOCS):
        for text in cut.split(gen.doc(r, MIX, 100).replace(gen.CUT, "")):
            n.update(w for w, _ in p.pre_tokenize_str(text))
    for w in gen.NAMES + gen.CITIES + gen.WORDS + gen.FOOD + gen.ADJ:
        for x in w.split():
            n[x] += 100
            n["Ġ" + x] += 100
    for w in gen.NAMES:
        n[w.lower()] += 900
    for f in gen.FACTS:
        for x in re.findall("[A-Za-z]+", f[3]):
            n["Ġ" + x] += 25
    for w in CHAT:
        n["Ġ" + w] += 60
    return {w: c ** 0.5 for w, c in n.items() if c >= 4}


def learn(words, merges, vocab, size):
    """the usual greedy loop: the heaviest adjacent pair becomes a token, until the vocabulary has `size` entries"""
    while len(vocab) < size:
        pairs = collections.defaultdict(float)
        for w, c in words.items():
            for a in zip(w, w[1:]):
                pairs[a] += c
        if not pairs:
            break
        (a, b), c = max(pairs.items(), key=lambda x: (x[1], x[0]))
        merges.append((a, b))
        vocab.setdefault(a + b, len(vocab))
        out = {}
        for w, c in words.items():
            if a in w:
                o, i = [], 0
                while i < len(w):
                    if i + 1 < len(w) and w[i] == a and w[i + 1] == b:
                        o.append(a + b)
                        i += 2
                    else:
                        o.append(w[i])
                        i += 1
                w = tuple(o)
            out[w] = out.get(w, 0) + c
        words = out
    return words


def main(out):
    pieces = count_pieces()
    vocab = {t: i for i, t in enumerate(HEAD + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges, bare = [], collections.defaultdict(float)
    for w, c in pieces.items():
        x = w[1:] if len(w) > 1 and not w[0].isalnum() and w[1].isalpha() or w[0] == "Ġ" and len(w) > 1 else w
        bare[tuple(x)] += c
    learn(bare, merges, vocab, ROUND_ONE)
    rank = {m: i for i, m in enumerate(merges)}

    def apply(w):
        w = list(w)
        while len(w) > 1:
            k, i = min((rank.get(p, 1 << 30), i) for i, p in enumerate(zip(w, w[1:])))
            if k == 1 << 30:
                break
            w[i: i + 2] = [w[i] + w[i + 1]]
        return tuple(w)

    n_bpe = VOCAB - len(HOLD) - len(TAIL)
    words = collections.defaultdict(float)
    for w, c in pieces.items():
        words[apply(w)] += c
    left = learn(words, merges, vocab, n_bpe)
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    t.pre_tokenizer, t.decoder = pre(r"\p{N}"), decoders.ByteLevel()
    j = json.loads(t.to_str())
    j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\p{N}{1,3}"  # as released; without digit merges it makes no difference
    j["normalizer"] = {"type": "Sequence", "normalizers": []}
    j["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    j["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    flags = dict(single_word=False, lstrip=False, rstrip=False)
    j["added_tokens"] = ([dict(id=i, content=s, normalized=False, special=True, **flags) for i, s in enumerate(HEAD)]
                         + [dict(id=n_bpe + i, content=s, normalized=False, special=True, **flags) for i, s in enumerate(HOLD)]
                         + [dict(id=n_bpe + len(HOLD) + i, content=s, normalized=True, special=False, **flags) for i, s in enumerate(TAIL)])
    json.dump(j, open(out + "/tokenizer.json", "w"), ensure_ascii=False, separators=(",", ":"))
    at = lambda s: {"__type": "AddedToken", "content": s, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    json.dump({"add_bos_token": False, "add_eos_token": False, "bos_token": at(HEAD[0]), "clean_up_tokenization_spaces": False, "eos_token": at(HEAD[1]), "legacy": True,
               "model_max_length": 16384, "pad_token": at(HEAD[2]), "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "PreTrainedTokenizerFast"},
              open(out + "/tokenizer_config.json", "w"), ensure_ascii=False, indent=1)
    report(Tokenizer.from_file(out + "/tokenizer.json"), pieces, left)


def report(t, pieces, left):
    v = t.get_vocab()
    lists = sorted({x for w in gen.NAMES + gen.CITIES + gen.WORDS + gen.FOOD + gen.ADJ for x in w.split()})
    print("entries", t.get_vocab_size(), "pieces", len(pieces), "not one token", sum(len(w) > 1 for w in left))
    print("list words", len(lists), "without a bare token", [w for w in lists if w not in v], "without a spaced one", [w for w in lists if "Ġ" + w not in v])
    for s in ["<｜begin▁of▁sentence｜><｜User｜>What is 47+385?<｜Assistant｜></think>\n\n<｜DSML｜ calls>\n", "Open src/client.py for zoe@work.com", "naïve 日本 🙂"]:
        e = t.encode(s, add_special_tokens=False)
        assert t.decode(e.ids, skip_special_tokens=False) == s
        print(e.tokens)


if __name__ == "__main__":
    main(sys.argv[1])
