"""Batches of training text: documents drawn, packed into rows, and what of them is learned."""
import random
from collections import namedtuple

import numpy as np

import gen

MICRO = 2048           # tokens of a microbatch
PROBE = 5              # tokens of a file's name that the probe reads
LISTED = 2             # tokens of a listed function that carry its file: the last of its name, and what follows

# weight of a document by row length (a document longer than its row is drawn again), and words of needle filler
MIX = dict(
    base={256: (dict(fact=3.0, facttext=0.4, arith=2.6, multi=0.7, repeat=1.1, copy=3.2, needle=0.6, files=0.8, story=0.1, code=0.8, calls=0.5), 100),
          512: (dict(calls=1.0, tool=1.4, needle=0.67, files=0.4, multi=0.8, arith=0.66, fact=1.4), 280),
          1024: (dict(tool=0.8, needle=0.65, files=0.2, multi=1.0, fact=1.8), 780)},
    chat={256: (dict(fact=4.5, facttext=0.8, arith=12.0, multi=2.0, single=0.8, repeat=0.6, copy=0.6, needle=0.5, files=1.4, index=0.6, lists=0.6, story=0.5, code=1.8, calls=0.8), 100),
          512: (dict(calls=0.6, tool=4.0, needle=0.67, files=0.8, multi=1.0, arith=2.0, fact=1.4), 280),
          1024: (dict(tool=1.6, needle=0.65, files=0.2, multi=1.0, fact=1.8), 780),
          2048: (dict(needle=1.0, tool=0.1), 1500)})
MIX["far"] = {L: MIX["chat"][L] for L in (512, 1024, 2048)}
LENGTHS = dict(base={256: 0.58, 512: 0.31, 1024: 0.11}, chat={256: 0.48, 512: 0.34, 1024: 0.13, 2048: 0.05}, far={512: 0.25, 1024: 0.4, 2048: 0.35})

# arrays of rows x length: ids, positions, document numbers; want: 2 = the next token is an answer or raw text, 1 = a prompt, 0 = nothing
# lists: spans (kind, row, first, end of want), listed (row, position, file), named (row, position, file, positions to look at),
# told (row, position, [position to look at]); see Data.files
Batch = namedtuple("Batch", "ids pos seg want spans listed named told")


class Data:
    """rows of packed documents: ids, positions, document numbers, and for each token what its successor is"""

    def __init__(self, tok, seed, mix):
        self.tok, self.r, self.mix = tok, random.Random(seed), MIX[mix]
        self.pool = {L: [] for L in self.mix}
        self.A, self.E, self.dsml = tok.token_to_id("<｜Assistant｜>"), tok.token_to_id("<｜end▁of▁sentence｜>"), tok.token_to_id("｜DSML｜")

    def spans(self, ids):
        """answers as [first, end) token ranges, the end-of-sentence token included"""
        out, at = [], None
        for t, x in enumerate(ids):
            if x == self.A:
                at = t + 2  # the token after it opens or closes thinking
            elif x == self.E and at is not None:
                out.append((at, t + 1))
                at = None
        return out

    def fill(self, L):
        """draw documents: (kind, ids, target ranges, chat or raw text)"""
        mix, words = self.mix[L]
        kinds = self.r.choices(list(mix), list(mix.values()), k=64)
        texts = [gen.doc_of(self.r, k, words).split(gen.CUT) for k in kinds]
        enc = iter(self.tok.encode_batch([x for t in texts for x in t], add_special_tokens=False))
        for k, t in zip(kinds, texts):
            encs = [next(enc) for _ in t]
            parts = [e.ids for e in encs]
            ids = sum(parts, [])
            if len(ids) <= L:
                chat, ends = self.A in ids, np.cumsum([len(p) for p in parts]).tolist()
                cut = list(zip(ends[0::2], ends[1::2]))  # every other part is a target
                self.pool[L].append((k, ids, self.spans(ids) if chat else cut or [(1, len(ids))], cut if chat else [], self.files(t, encs) if k in ("files", "index") else ([], [], [])))

    def files(self, texts, encs):
        """listed: [(a token of a listed function, first PROBE tokens of its file's name)]; named: [(the last token of a function's name
        before an answer tells its file, the file's tokens, the function's tokens in the listing)]; told: [(a token before one of the
        file's name in the answer, the last token of the function's name)]"""
        first, last, at, n = {}, {}, 0, 0  # characters where tokens begin and end
        for t, e in zip(texts, encs):
            first.update({at + lo: n + i for i, (lo, _) in enumerate(e.offsets)})
            last.update({at + hi: n + i for i, (_, hi) in enumerate(e.offsets)})
            at, n = at + len(t), n + len(e.ids)
        tokens = lambda f: (self.tok.encode(" " + f, add_special_tokens=False).ids + [self.E] * PROBE)[:PROBE]
        under, answers = gen.under("".join(texts))
        listed = [(last[x] + i, tokens(f)) for x, f in under if x in last for i in range(LISTED) if last[x] + i < n]
        named, told = [], []
        for x, f, y, lo, hi in answers:
            if x in last and y in last and last[y] + LISTED <= last[x]:
                named.append((last[x], tokens(f), [last[y] + i for i in range(LISTED)]))
                if lo in first and hi in last:
                    told += [(t, [last[x]]) for t in range(first[lo] - 1, last[hi])]
        return listed, named, told

    def batch(self, L):
        B, pool, r = MICRO // L, self.pool[L], self.r
        while len(pool) < 96:
            self.fill(L)
        ids, pos = np.full((B, L), 2, dtype=np.int64), np.zeros((B, L), dtype=np.int64)
        seg, want, spans = np.full((B, L), -1, dtype=np.int64), np.zeros((B, L), dtype=np.int8), []
        listed, named, told = [], [], []
        for b in range(B):
            at, k = 0, 0
            while L - at >= 24 and len(pool) >= 8:
                i = next((i for i, d in enumerate(pool) if len(d[1]) + at <= L), None)
                if i is None:
                    break
                kind, d, targets, noted, files = pool.pop(i)
                listed += [(b, at + t, f) for t, f in files[0]]
                named += [(b, at + t, f, [at + x for x in to]) for t, f, to in files[1]]
                told += [(b, at + t, [at + x for x in to]) for t, to in files[2]]
                n = len(d)
                ne = min(L - at, n + (n & 1))  # documents start at even offsets
                ids[b, at: at + n] = d
                pos[b, at: at + ne] = np.arange(ne)
                if n > 200 and r.random() < 0.2:  # a jump in positions: distances longer than the rows
                    j = r.randrange(60, n - 100) & ~1
                    pos[b, at + j: at + ne] += 2 * r.randrange(2048)
                seg[b, at: at + ne] = k
                want[b, at: at + n - 1] = 1
                for lo, hi in targets + noted:
                    want[b, at + lo - 1: at + hi - 1] = 2
                    if self.A not in d:
                        continue
                    what = kind + " noted" if (lo, hi) in noted else "tool call" if self.dsml in d[lo:hi] else "tool answer" if kind in ("tool", "calls") else kind
                    spans.append((what, b, at + lo - 1, at + hi - 1))
                at += ne
                k += 1
            pos[b, at:] = np.arange(L - at)
        return Batch(ids, pos, seg, want, spans, listed, named, told)
