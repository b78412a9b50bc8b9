/* Reading tokenizer.json. The whole file is judged before anything is used: what we do not do exactly
 * as the `tokenizers` package does is refused with a message that says what was found, and so are
 * tables that contradict themselves. What comes out needs no checks later. */
#include "jv.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Larger files are refused; it also keeps every offset in 32 bits. The largest known has 33 MB. */
#define FILE_LARGEST ((size_t)256 << 20)
/* Bytes of a word of the vocabulary, as written; 128 are known. */
#define WORD_LONGEST 16384

struct reader {
    const char *shown;
    dsv4_err *err;
    dsv4_tokenizer *t;
    size_t text_len, text_cap; /* of t->text */
    size_t limit;              /* ids must be below */
    char *plain;               /* room for two words */
    char shown_type[120];
};

/* Its value is a constant, so that compilers see that a refusal returns. */
#define REFUSE(r, ...) (refuse_at((r)->err, (r)->shown, __VA_ARGS__), DSV4_REFUSED)

static void refuse_at(dsv4_err *err, const char *shown, const char *format, ...) PRINTF_LIKE(3, 4);

static void refuse_at(dsv4_err *err, const char *shown, const char *format, ...)
{
    char text[700];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    err_set(err, DSV4_REFUSED, "%s: %s", shown, text);
}

/* ------------------------------------------------------------------ the byte alphabet */

uint32_t alphabet_of(unsigned byte)
{
    if ((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae)
        return byte;
    if (byte <= 0x20)
        return 0x100 + byte;
    return byte <= 0xa0 ? 0x121 + (byte - 0x7f) : 0x143;
}

/* The byte that a character of the alphabet stands for; -1. */
static int alphabet_byte(uint32_t c)
{
    if (c >= 0x100 && c <= 0x120)
        return (int)(c - 0x100);
    if (c >= 0x121 && c <= 0x142)
        return (int)(c - 0x121 + 0x7f);
    if (c == 0x143)
        return 0xad;
    return c < 0x100 && alphabet_of(c) == c ? (int)c : -1;
}

/* Well-formed text in the alphabet -> bytes (no longer than the text). False: other characters. */
static bool alphabet_decode(const char *text, size_t len, char *out, size_t *n)
{
    *n = 0;
    for (size_t at = 0, size; at < len; at += size) {
        int byte = alphabet_byte(utf8_decode((const unsigned char *)text + at, &size));
        if (byte < 0)
            return false;
        out[(*n)++] = (char)byte;
    }
    return true;
}

/* ------------------------------------------------------------------ JSON values */

static const char *kind_of(const struct jv *v)
{
    static const char *const name[] = {"null",     "false",  "true",     "a number",
                                       "a string", "a list", "an object"};
    return v ? name[v->type] : "missing";
}

/* The beginning of a string, for messages. */
#define SHOWN(text, len) (int)((len) < 100 ? (len) : 100), (text)

/* Every key of the object is one of `known` (which ends with NULL). */
static int known_keys(struct reader *r, const struct jv *object, const char *what,
                      const char *const *known)
{
    if (!jv_is(object, JV_OBJECT))
        return REFUSE(r, "%s is %s; expected an object", what, kind_of(object));
    for (const struct jv *v = object->first; v; v = v->next) {
        const char *const *k = known;
        while (*k && (strlen(*k) != v->key_len || memcmp(*k, v->key, v->key_len) != 0))
            k++;
        if (!*k)
            return REFUSE(r, "%s has the unknown key \"%.*s\"", what, SHOWN(v->key, v->key_len));
    }
    return 0;
}

/* The key is absent, null, false or "": the feature is not used. */
static int unused(struct reader *r, const struct jv *object, const char *what, const char *key)
{
    const struct jv *v = jv_get(object, key);
    if (jv_none(v) || v->type == JV_FALSE || (v->type == JV_STRING && v->len == 0))
        return 0;
    if (v->type == JV_STRING)
        return REFUSE(r, "%s.%s is \"%.*s\", which is not supported (null is)", what, key,
                      SHOWN(v->text, v->len));
    return REFUSE(r, "%s.%s is %s, which is not supported (null or false is)", what, key,
                  kind_of(v));
}

static int flag(struct reader *r, const struct jv *object, const char *what, const char *key,
                bool *out)
{
    const struct jv *v = jv_get(object, key);
    if (v && v->type != JV_TRUE && v->type != JV_FALSE)
        return REFUSE(r, "%s.%s is %s; expected true or false", what, key, kind_of(v));
    *out = jv_is(v, JV_TRUE);
    return 0;
}

static bool of_type(const struct jv *object, const char *type)
{
    return jv_equals(jv_get(object, "type"), type);
}

/* "of type X", or what there is instead. */
static const char *type_of(struct reader *r, const struct jv *object)
{
    const struct jv *type = jv_get(object, "type");
    if (jv_is(type, JV_STRING))
        snprintf(r->shown_type, sizeof r->shown_type, "of type \"%.*s\"",
                 SHOWN(type->text, type->len));
    else
        snprintf(r->shown_type, sizeof r->shown_type, "%s",
                 jv_is(object, JV_OBJECT) ? "of no type" : kind_of(object));
    return r->shown_type;
}

/* Ids are 0 .. limit-1; so many tokens the file has at most. */
static int token_id(struct reader *r, const struct jv *v, const char *text, size_t len, int32_t *id)
{
    if (!jv_is(v, JV_NUMBER) || !v->integer)
        return REFUSE(r, "the id of token \"%.*s\" is %s; expected a whole number",
                      SHOWN(text, len), kind_of(v));
    uint64_t n = 0;
    for (size_t i = 0; i < v->len && n <= INT32_MAX; i++)
        n = v->text[i] >= '0' && v->text[i] <= '9' ? n * 10 + (uint64_t)(v->text[i] - '0')
                                                   : UINT64_MAX;
    if (n >= r->limit)
        return REFUSE(r,
                      "token \"%.*s\" has id %.*s; with the %zu tokens of the file, ids must be 0, "
                      "1, ... without a gap",
                      SHOWN(text, len), SHOWN(v->text, v->len), r->limit);
    *id = (int32_t)n;
    return 0;
}

/* ------------------------------------------------------------------ tokens */

/* Appends bytes as the token's text. */
static int set_token(struct reader *r, int32_t id, const char *bytes, size_t len, uint32_t flags)
{
    size_t want;
    if (!size_add(r->text_len, len, &want))
        return err_memory(r->err, UINT64_MAX, "token texts");
    TRY(mem_grow(&r->t->text, &r->text_cap, want, 1, "token texts", r->err));
    memcpy(r->t->text + r->text_len, bytes, len);
    r->t->token[id] =
        (struct token){.at = (uint32_t)r->text_len, .len = (uint32_t)len, .flags = flags};
    r->text_len = want;
    return 0;
}

/* A word outside the byte alphabet is marked: an added token must explain it. */
static int read_word(struct reader *r, const struct jv *v)
{
    int32_t id;
    size_t n;
    TRY(token_id(r, v, v->key, v->key_len, &id));
    if (v->key_len == 0 || v->key_len > WORD_LONGEST)
        return REFUSE(r, "token %d of the vocabulary %s; 1 to %d bytes are supported", (int)id,
                      v->key_len ? "is too long" : "is empty", WORD_LONGEST);
    if (r->t->token[id].len)
        return REFUSE(r, "id %d belongs to two tokens, one of them \"%.*s\"", (int)id,
                      SHOWN(v->key, v->key_len));
    if (!alphabet_decode(v->key, v->key_len, r->plain, &n))
        return set_token(r, id, v->key, v->key_len, TOKEN_FOREIGN);
    return set_token(r, id, r->plain, n, 0);
}

/* The added token is the word that the vocabulary has under its id. */
static bool same_word(struct reader *r, const struct token *t, const char *text, size_t len)
{
    size_t n = len;
    const char *plain = text;
    if (!(t->flags & TOKEN_FOREIGN)) {
        if (!alphabet_decode(text, len, r->plain, &n))
            return false;
        plain = r->plain;
    }
    return t->len == n && memcmp(r->t->text + t->at, plain, n) == 0;
}

static int read_added(struct reader *r, const struct jv *v, size_t i)
{
    static const char *const known[] = {"id",     "content",    "single_word", "lstrip",
                                        "rstrip", "normalized", "special",     NULL};
    char what[40];
    snprintf(what, sizeof what, "added_tokens[%zu]", i);
    TRY(known_keys(r, v, what, known));
    const struct jv *content = jv_get(v, "content");
    if (!jv_is(content, JV_STRING))
        return REFUSE(r, "%s.content is %s; expected a string", what, kind_of(content));
    const char *text = content->text;
    size_t len = content->len;
    if (len == 0 || len > ADDED_LONGEST)
        return REFUSE(r, "%s.content has %zu bytes; 1 to %d are supported", what, len,
                      ADDED_LONGEST);
    int32_t id;
    TRY(token_id(r, jv_get(v, "id"), text, len, &id));
    TRY(unused(r, v, what, "single_word"));
    TRY(unused(r, v, what, "lstrip"));
    TRY(unused(r, v, what, "rstrip"));
    bool special, normalized;
    TRY(flag(r, v, what, "special", &special));
    TRY(flag(r, v, what, "normalized", &normalized));
    const struct token *t = &r->t->token[id];
    if (t->flags & TOKEN_ADDED || (t->len && !same_word(r, t, text, len)))
        return REFUSE(r, "id %d belongs to two tokens, one of them \"%.*s\"", (int)id,
                      SHOWN(text, len));
    TRY(set_token(r, id, text, len, TOKEN_ADDED | (special ? TOKEN_SPECIAL : 0u)));
    struct added *a = &r->t->added[normalized];
    a->marker[a->n++].id = id; /* its text when all texts are in place: sort_added */
    return 0;
}

/* Ids without a gap, and no word left that is not in the byte alphabet. */
static int check_tokens(struct reader *r)
{
    dsv4_tokenizer *t = r->t;
    size_t n = 0;
    for (size_t i = 0; i < r->limit; i++)
        if (t->token[i].len)
            n = i + 1;
    for (size_t i = 0; i < n; i++) {
        const struct token *k = &t->token[i];
        if (!k->len)
            return REFUSE(r, "no token has id %zu; ids must be without a gap up to %zu", i, n - 1);
        if (k->flags & TOKEN_FOREIGN)
            return REFUSE(r, "token %zu, \"%.*s\", is not written in the byte alphabet", i,
                          SHOWN(t->text + k->at, k->len));
    }
    t->n = (uint32_t)n;
    return 0;
}

static int read_tokens(struct reader *r, const struct jv *vocab, const struct jv *added)
{
    dsv4_tokenizer *t = r->t;
    size_t n_added = jv_none(added) ? 0 : added->len, i = 0;
    r->limit = vocab->len + n_added;
    if (r->limit > INT32_MAX)
        return REFUSE(r, "the file has %zu tokens", r->limit);
    TRY(mem_alloc(&t->token, r->limit, sizeof *t->token, "tokens", r->err));
    for (int k = 0; k < 2; k++)
        TRY(mem_alloc(&t->added[k].marker, n_added, sizeof(struct marker), "added tokens", r->err));
    for (const struct jv *v = vocab->first; v; v = v->next)
        TRY(read_word(r, v));
    for (const struct jv *v = n_added ? added->first : NULL; v; v = v->next)
        TRY(read_added(r, v, i++));
    return check_tokens(r);
}

/* The table of words holds what merging may make: all but the added tokens. */
static int index_words(struct reader *r, size_t n_merges)
{
    dsv4_tokenizer *t = r->t;
    struct bpe *b = &t->bpe;
    b->text = t->text;
    b->token = t->token;
    TRY(bpe_init(b, t->n, n_merges, r->err));
    for (uint32_t i = 0; i < t->n; i++)
        if (!(t->token[i].flags & TOKEN_ADDED) && !bpe_add_word(b, (int32_t)i))
            return REFUSE(r, "the vocabulary is made to collide in a hash table");
    for (unsigned i = 0; i < 256; i++) {
        char byte = (char)i;
        b->byte_id[i] = bpe_word(b, &byte, 1);
        if (b->byte_id[i] < 0)
            return REFUSE(r, "the vocabulary has no token for the single byte 0x%02x", i);
    }
    return 0;
}

/* ------------------------------------------------------------------ merges */

struct part {
    const char *text;
    size_t len;
};

/* "left right" or ["left", "right"]. */
static bool merge_parts(const struct jv *v, struct part *left, struct part *right)
{
    if (v->type == JV_LIST && v->len == 2) {
        const struct jv *a = v->first, *b = a->next;
        *left = (struct part){a->text, a->len};
        *right = (struct part){b->text, b->len};
        return a->type == JV_STRING && b->type == JV_STRING;
    }
    const char *space = v->type == JV_STRING ? memchr(v->text, ' ', v->len) : NULL;
    if (!space)
        return false;
    *left = (struct part){v->text, (size_t)(space - v->text)};
    *right = (struct part){space + 1, v->len - left->len - 1};
    return true;
}

static int read_merge(struct reader *r, const struct jv *v, size_t i)
{
    struct part left, right;
    if (!merge_parts(v, &left, &right))
        return REFUSE(r, "model.merges[%zu] is neither \"left right\" nor a pair of strings", i);
    struct bpe *b = &r->t->bpe;
    char *p = r->plain;
    size_t n = 0, m = 0;
    int32_t a = -1, c = -1, made = -1;
    if (left.len <= WORD_LONGEST && alphabet_decode(left.text, left.len, p, &n))
        a = bpe_word(b, p, n);
    if (right.len <= WORD_LONGEST && alphabet_decode(right.text, right.len, p + n, &m))
        c = bpe_word(b, p + n, m);
    if (a >= 0 && c >= 0)
        made = bpe_word(b, p, n + m);
    if (made < 0)
        return REFUSE(r,
                      "model.merges[%zu] joins \"%.*s\" and \"%.*s\", but %s is no token of the "
                      "vocabulary that merging may use",
                      i, SHOWN(left.text, left.len), SHOWN(right.text, right.len),
                      a < 0   ? "the left one"
                      : c < 0 ? "the right one"
                              : "the result");
    bool twice;
    if (!bpe_add_merge(b, a, c, made, &twice))
        return REFUSE(r, "the merges are made to collide in a hash table");
    if (twice)
        return REFUSE(r, "model.merges[%zu] repeats an earlier one", i);
    return 0;
}

static int read_merges(struct reader *r, const struct jv *merges)
{
    size_t i = 0;
    for (const struct jv *v = merges->first; v; v = v->next)
        TRY(read_merge(r, v, i++));
    return bpe_finish(&r->t->bpe, r->t->token, r->t->n, r->err);
}

/* ------------------------------------------------------------------ added tokens, sorted */

static int compare_markers(const void *a, const void *b)
{
    const struct marker *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    return c ? c : (x->len > y->len) - (x->len < y->len);
}

static int sort_added(struct reader *r, struct added *a)
{
    size_t n;
    for (uint32_t i = 0; i < a->n; i++) {
        struct marker *m = &a->marker[i];
        const struct token *t = &r->t->token[m->id];
        m->text = r->t->text + t->at;
        m->len = t->len;
        int32_t word =
            alphabet_decode(m->text, m->len, r->plain, &n) ? bpe_word(&r->t->bpe, r->plain, n) : -1;
        if (word >= 0)
            return REFUSE(r, "token \"%.*s\" has id %d in the vocabulary and %d in added_tokens",
                          SHOWN(m->text, m->len), (int)word, (int)m->id);
    }
    if (a->n)
        qsort(a->marker, a->n, sizeof *a->marker, compare_markers);
    for (uint32_t i = 0; i < a->n; i++) {
        const struct marker *m = &a->marker[i];
        if (i > 0 && compare_markers(m - 1, m) == 0)
            return REFUSE(r, "added tokens %d and %d have the same text", (int)m[-1].id,
                          (int)m->id);
        a->first[(unsigned char)m->text[0] + 1] = i + 1;
    }
    for (int c = 1; c <= 256; c++)
        if (a->first[c] < a->first[c - 1])
            a->first[c] = a->first[c - 1];
    return 0;
}

/* No text in both lists. */
static int compare_added(struct reader *r)
{
    const struct added *a = &r->t->added[0], *b = &r->t->added[1];
    for (uint32_t i = 0; i < a->n && b->n; i++) {
        const struct marker *m = &a->marker[i], *same;
        same = bsearch(m, b->marker, b->n, sizeof *m, compare_markers);
        if (same)
            return REFUSE(r, "added tokens %d and %d have the same text", (int)m->id,
                          (int)same->id);
    }
    return 0;
}

/* ------------------------------------------------------------------ the parts of the file */

static int read_model(struct reader *r, const struct jv *model, const struct jv *added)
{
    static const char *const known[] = {"type",
                                        "dropout",
                                        "unk_token",
                                        "continuing_subword_prefix",
                                        "end_of_word_suffix",
                                        "fuse_unk",
                                        "byte_fallback",
                                        "ignore_merges",
                                        "vocab",
                                        "merges",
                                        NULL};
    TRY(known_keys(r, model, "model", known));
    if (!of_type(model, "BPE"))
        return REFUSE(r, "the model is %s; only \"BPE\" is supported", type_of(r, model));
    for (size_t i = 1; i <= 6; i++)
        TRY(unused(r, model, "model", known[i]));
    TRY(flag(r, model, "model", "ignore_merges", &r->t->bpe.ignore_merges));
    const struct jv *vocab = jv_get(model, "vocab"), *merges = jv_get(model, "merges");
    if (!jv_is(vocab, JV_OBJECT))
        return REFUSE(r, "model.vocab is %s; expected an object", kind_of(vocab));
    if (!jv_is(merges, JV_LIST))
        return REFUSE(r, "model.merges is %s; expected a list", kind_of(merges));
    TRY(read_tokens(r, vocab, added));
    TRY(index_words(r, merges->len));
    TRY(read_merges(r, merges));
    TRY(sort_added(r, &r->t->added[0]));
    TRY(sort_added(r, &r->t->added[1]));
    return compare_added(r);
}

static int read_split(struct reader *r, const struct jv *v, const char *what)
{
    static const char *const known[] = {"type", "pattern", "behavior", "invert", NULL};
    TRY(known_keys(r, v, what, known));
    const struct jv *pattern = jv_get(v, "pattern"), *how = jv_get(v, "behavior");
    const struct jv *regex = jv_get(pattern, "Regex");
    if (!jv_is(regex, JV_STRING) || pattern->len != 1)
        return REFUSE(r, "%s.pattern is not {\"Regex\": ...}", what);
    if (!jv_is(how, JV_STRING))
        return REFUSE(r, "%s.behavior is %s; expected \"Isolated\"", what, kind_of(how));
    if (!jv_equals(how, "Isolated"))
        return REFUSE(r, "%s.behavior is \"%.*s\"; only \"Isolated\" is supported", what,
                      SHOWN(how->text, how->len));
    TRY(unused(r, v, what, "invert"));
    return split_add(&r->t->split, regex->text, regex->len, r->shown, r->err);
}

static int read_byte_level(struct reader *r, const struct jv *v, const char *what)
{
    static const char *const known[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                        NULL};
    TRY(known_keys(r, v, what, known));
    if (!jv_is(jv_get(v, "add_prefix_space"), JV_FALSE)) /* absent means true, for both */
        return REFUSE(r, "%s.add_prefix_space is not false, which is not supported", what);
    if (jv_is(jv_get(v, "use_regex"), JV_FALSE))
        return 0;
    /* GPT-2's own pattern, the one that use_regex stands for. */
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                               "|\\s+(?!\\S)|\\s+";
    return split_add(&r->t->split, gpt2, sizeof gpt2 - 1, r->shown, r->err);
}

/* Splits, then the byte alphabet; the latter may stand alone. */
static int read_pre_tokenizer(struct reader *r, const struct jv *v)
{
    static const char *const known[] = {"type", "pretokenizers", NULL};
    if (of_type(v, "ByteLevel"))
        return read_byte_level(r, v, "pre_tokenizer");
    const struct jv *list = jv_get(v, "pretokenizers");
    if (!of_type(v, "Sequence") || !jv_is(list, JV_LIST))
        return REFUSE(r, "the pre_tokenizer is %s; expected a Sequence of Split and ByteLevel",
                      type_of(r, v));
    TRY(known_keys(r, v, "pre_tokenizer", known));
    if (!list->first)
        return REFUSE(r, "the pre_tokenizer is empty; its last part must be ByteLevel");
    size_t i = 0;
    for (const struct jv *part = list->first; part; part = part->next, i++) {
        char what[60];
        snprintf(what, sizeof what, "pre_tokenizer.pretokenizers[%zu]", i);
        const char *want = part->next ? "Split" : "ByteLevel";
        if (!of_type(part, want))
            return REFUSE(r, "%s is %s; expected %s there", what, type_of(r, part), want);
        TRY((part->next ? read_split : read_byte_level)(r, part, what));
    }
    return 0;
}

/* What could change ids but is not there in the released files: nothing else is accepted. */
static int check_rest(struct reader *r, const struct jv *root)
{
    static const char *const known[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    TRY(known_keys(r, root, "the file", known));
    TRY(unused(r, root, "the file", "truncation"));
    TRY(unused(r, root, "the file", "padding"));
    const struct jv *normalizer = jv_get(root, "normalizer");
    const struct jv *list = jv_get(normalizer, "normalizers");
    if (!jv_none(normalizer) &&
        !(of_type(normalizer, "Sequence") && jv_is(list, JV_LIST) && !list->first))
        return REFUSE(r, "the normalizer is %s; only none is supported",
                      type_of(r, list && list->first ? list->first : normalizer));
    const struct jv *post = jv_get(root, "post_processor");
    if (!jv_none(post) && !of_type(post, "ByteLevel"))
        return REFUSE(r, "the post_processor is %s; only ByteLevel or null is supported",
                      type_of(r, post));
    const struct jv *decoder = jv_get(root, "decoder");
    if (!of_type(decoder, "ByteLevel"))
        return REFUSE(r, "the decoder is %s; only ByteLevel is supported", type_of(r, decoder));
    return 0;
}

static int read_root(struct reader *r, const struct jv *root)
{
    TRY(check_rest(r, root));
    TRY(read_pre_tokenizer(r, jv_get(root, "pre_tokenizer")));
    const struct jv *added = jv_get(root, "added_tokens");
    if (!jv_none(added) && added->type != JV_LIST)
        return REFUSE(r, "\"added_tokens\" is %s; expected a list", kind_of(added));
    return read_model(r, jv_get(root, "model"), added);
}

int tokenizer_parse(dsv4_tokenizer **out, const char *json, size_t len, const char *shown,
                    dsv4_err *err)
{
    struct reader r = {.shown = shown, .err = err};
    struct jv_doc doc = {0};
    int rc = jv_parse(&doc, json, len, shown, err);
    if (rc == DSV4_FAILED) /* one of its limits */
        rc = err->status = DSV4_REFUSED;
    if (rc == 0)
        rc = mem_alloc(&r.t, 1, sizeof *r.t, "a tokenizer", err);
    if (rc == 0)
        rc = mem_alloc(&r.plain, 2, WORD_LONGEST, "a tokenizer", err);
    if (rc == 0)
        rc = read_root(&r, doc.root);
    free(r.plain);
    jv_free(&doc);
    if (rc != 0) {
        dsv4_tokenizer_close(r.t);
        return rc;
    }
    *out = r.t;
    return 0;
}

int dsv4_tokenizer_open(dsv4_tokenizer **out, const char *file, dsv4_err *err)
{
    char *text;
    size_t len;
    TRY(file_read(file, FILE_LARGEST, &text, &len, err));
    int rc = tokenizer_parse(out, text, len, file, err);
    free(text);
    return rc;
}
