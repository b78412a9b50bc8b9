/* text.h - the inner side of the tokenizer: UTF-8, character classes, the pre-tokenizer, byte-level
 * BPE and Engram's compressed vocabulary. What programs may use is in dsv4.h; what chat encoding
 * keeps for itself is in chat_inner.h. */
#ifndef DSV4_TEXT_H
#define DSV4_TEXT_H

#include "../system/system.h"

/* ------------------------------------------------------------------ UTF-8 (utf8.c) */

enum utf8_kind {
    UTF8_WHOLE,  /* one character */
    UTF8_BROKEN, /* a maximal ill-formed subsequence */
    UTF8_OPEN,   /* the text ends inside a character */
};

/* What text[0..*size) is, len > 0. */
enum utf8_kind utf8_next(const char *text, size_t len, size_t *size);

bool utf8_valid(const char *text, size_t len);

/* Appends text with each maximal ill-formed subsequence as one U+FFFD. */
int utf8_repair(struct bytes *out, const char *text, size_t len, dsv4_err *err);

/* The code point of the well-formed character at p. */
static inline uint32_t utf8_decode(const unsigned char *p, size_t *size)
{
    if (p[0] < 0x80) {
        *size = 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *size = 2;
        return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    }
    if (p[0] < 0xf0) {
        *size = 3;
        return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    }
    *size = 4;
    return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

/* Writes the UTF-8 of a code point (at most 4 bytes), returns how many. */
size_t utf8_encode(uint32_t c, char *out);

/* ------------------------------------------------------------------ classes (unicode_table.c) */

/* ORDER UNICODE CLASSES (tools/make-unicode-table.py). CJK: the ranges of the second released
 * split pattern; NEWLINE: CR and LF, which are SPACE too. */
enum {
    CLASS_L = 1,
    CLASS_M = 2,
    CLASS_P = 4,
    CLASS_S = 8,
    CLASS_N = 16,
    CLASS_SPACE = 32,
    CLASS_CJK = 64,
    CLASS_NEWLINE = 128
};

extern const uint8_t unicode_group[];
extern const uint16_t unicode_block[];
extern const uint8_t unicode_class[]; /* the first 128 are ASCII's */

/* c <= U+10FFFF */
static inline unsigned unicode_class_of(uint32_t c)
{
    unsigned block = unicode_block[unicode_group[c >> 10] * 32u + (c >> 5 & 31)];
    return unicode_class[block * 32u + (c & 31)];
}

/* ------------------------------------------------------------------ pre-tokenizer (split.c) */

/* The released patterns, which a state machine runs; any others need PCRE2. */
enum { SPLIT_DIGITS = 1, SPLIT_CJK = 2, SPLIT_WORDS = 4 };

struct split_step {
    unsigned rules; /* SPLIT_ bits that one pass of the machine does together; 0: `code` */
    void *code;     /* a compiled PCRE2 pattern */
};

struct splitter {
    struct split_step *step; /* each cuts every piece that the one before left */
    size_t n, cap;
};

/* A growing list of places where pieces end. */
struct cuts {
    size_t *end;
    size_t n, cap;
};

/* The released patterns in their order; NULL past the last. */
const char *split_released(size_t i);
/* Adds the step that isolates the matches of `pattern`. DSV4_REFUSED for one that cannot be run. */
int split_add(struct splitter *s, const char *pattern, size_t len, const char *shown,
              dsv4_err *err);
void split_close(struct splitter *s);

/* Where the piece that begins at `at` < len ends under `rules`; text is well-formed UTF-8. */
size_t split_next(unsigned rules, const char *text, size_t len, size_t at);

/* Appends the ends of all pieces of the text, as offsets plus `base`. */
int split_all(const struct splitter *s, const char *text, size_t len, size_t base, struct cuts *out,
              dsv4_err *err);

/* ------------------------------------------------------------------ byte-pair encoding (bpe.c) */

/* A token: its bytes are text[at .. at+len) of the tokenizer. */
struct token {
    uint32_t at, len;
    uint32_t flags;
};

enum {
    TOKEN_ADDED = 1,   /* cut out of the text before anything else, never made by merging */
    TOKEN_SPECIAL = 2, /* left out when text is shown */
    TOKEN_WHOLE = 4,   /* its bytes as a piece encode to this one token */
    TOKEN_FOREIGN = 8, /* while reading: a word that is not written in the byte alphabet */
};

struct pair {
    int32_t left, right;
    uint32_t rank; /* UINT32_MAX: a free slot */
};

struct word {
    uint32_t tag; /* the upper half of the hash */
    int32_t id;   /* -1: a free slot */
};

struct bpe {
    const char *text;          /* bytes of all tokens */
    const struct token *token; /* [n] */
    struct pair *pair;         /* hash table (left, right) -> rank */
    size_t pair_mask;
    uint64_t *maybe; /* a bit for the hash of each pair: most others are told apart here */
    size_t maybe_mask;
    struct word *word; /* hash table bytes -> id of the tokens that merging can make */
    size_t word_mask;
    size_t longest; /* bytes of the longest of these */
    int32_t *made;  /* [n_merges] by rank */
    size_t n_merges;
    int32_t byte_id[256];
    uint32_t *byte_rank; /* [256][256] rank of two single bytes: the first look of every merge */
    bool ignore_merges;  /* a piece that is a token is that token, whatever the merges say */
};

struct ids {
    int32_t *v;
    size_t n, cap;
};

/* Scratch of one encode call. Zero-initialise. */
struct bpe_work {
    struct symbol *symbol;
    size_t symbol_cap;
    uint64_t *heap;
    size_t heap_cap;
};

/* Empty tables for so many words and merges. */
int bpe_init(struct bpe *b, size_t n_words, size_t n_merges, dsv4_err *err);
void bpe_close(struct bpe *b);
/* False: so many others share its hash that the table must have been made for that. */
bool bpe_add_word(struct bpe *b, int32_t id);
/* The id of a word; -1. */
int32_t bpe_word(const struct bpe *b, const char *text, size_t len);
/* Adds the next merge. False as above; *twice: the pair was there already. */
bool bpe_add_merge(struct bpe *b, int32_t left, int32_t right, int32_t made, bool *twice);
/* After the last merge: finds the words that are their own encoding (TOKEN_WHOLE). */
int bpe_finish(struct bpe *b, struct token *token, size_t n, dsv4_err *err);
/* Appends the ids of one piece. */
int bpe_encode(const struct bpe *b, struct bpe_work *w, const char *text, size_t len,
               struct ids *out, dsv4_err *err);
void bpe_work_close(struct bpe_work *w);

/* ------------------------------------------------------------------ tokenizer (tokenizer.c,
 * tokenizer_read.c) */

struct marker {
    const char *text;
    uint32_t len;
    int32_t id;
};

/* Added tokens sorted by their bytes. */
struct added {
    struct marker *marker;
    uint32_t n;
    uint32_t first[257]; /* those that begin with byte c: marker[first[c] .. first[c+1]) */
};

struct vocab;

struct dsv4_tokenizer {
    char *text; /* bytes of all tokens */
    struct token *token;
    uint32_t n;
    struct bpe bpe;
    struct added added[2]; /* "normalized": false, looked for first; then true */
    struct splitter split;
    _Atomic(struct vocab *) vocab; /* for constrained decoding; NULL until it is asked for */
};

void vocab_close(struct vocab *v); /* grammar_vocab.c */

/* Bytes of an added token at most: bounds the search for them. */
#define ADDED_LONGEST 256

/* Builds a tokenizer from the text of a tokenizer.json; `shown` names it in messages. */
int tokenizer_parse(dsv4_tokenizer **out, const char *json, size_t len, const char *shown,
                    dsv4_err *err);

/* The byte alphabet of vocabularies: the code point that stands for a byte. */
uint32_t alphabet_of(unsigned byte);

/* ------------------------------------------------------------------ Engram (fold.c) */

/* The compressed vocabulary: *map[id] for every token id (malloc'ed, dsv4_tokenizer_size of them),
 * *distinct ids in all. */
int engram_map_build(const dsv4_tokenizer *t, int32_t **map, uint32_t *distinct, dsv4_err *err);

/* The key of one token's text: see fold.c. Appends to out. */
int engram_normalize(struct bytes *out, const char *text, size_t len, dsv4_err *err);

#endif
