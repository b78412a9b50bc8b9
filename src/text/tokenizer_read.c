/* Reading tokenizer.json. The whole file is judged before anything is used: what we do not do exactly
 * as the `tokenizers` package does is refused with a message that says what was found, and so are
 * tables that contradict themselves. What comes out needs no checks later. */
#include "text.h"

#include <jansson.h>
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
    size_t text_len, text_cap;
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

static const char *kind_of(const json_t *v)
{
    static const char *const name[] = {"an object", "a list", "a string", "a number",
                                       "a number",  "true",   "false",    "null"};
    return v ? name[json_typeof(v)] : "missing";
}

/* Every key of the object is one of `known` (which ends with NULL). */
static int known_keys(struct reader *r, json_t *object, const char *what, const char *const *known)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, key) != 0)
            k++;
        if (!*k)
            return REFUSE(r, "%s has the unknown key \"%.100s\"", what, key);
    }
    return 0;
}

/* The key is absent, null, false or "": the feature is not used. */
static int unused(struct reader *r, json_t *object, const char *what, const char *key)
{
    json_t *v = json_object_get(object, key);
    if (!v || json_is_null(v) || json_is_false(v) ||
        (json_is_string(v) && json_string_length(v) == 0))
        return 0;
    if (json_is_string(v))
        return REFUSE(r, "%s.%s is \"%.100s\", which is not supported (null is)", what, key,
                      json_string_value(v));
    return REFUSE(r, "%s.%s is %s, which is not supported (null or false is)", what, key,
                  kind_of(v));
}

static int flag(struct reader *r, json_t *object, const char *what, const char *key, bool *out)
{
    json_t *v = json_object_get(object, key);
    if (v && !json_is_boolean(v))
        return REFUSE(r, "%s.%s is %s; expected true or false", what, key, kind_of(v));
    *out = json_is_true(v);
    return 0;
}

static const char *type_of(json_t *object)
{
    json_t *type = json_object_get(object, "type");
    return json_is_string(type) ? json_string_value(type) : "";
}

static int token_id(struct reader *r, json_t *v, const char *text, int32_t *id)
{
    if (!json_is_integer(v))
        return REFUSE(r, "the id of token \"%.100s\" is %s; expected a number", text, kind_of(v));
    json_int_t n = json_integer_value(v);
    if (n < 0 || n >= (json_int_t)r->t->n)
        return REFUSE(r,
                      "token \"%.100s\" has id %lld; the file has %u tokens, whose ids must be "
                      "0..%u without a gap",
                      text, (long long)n, (unsigned)r->t->n, (unsigned)r->t->n - 1);
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

/* Words of the vocabulary; those outside the byte alphabet wait for an added token to explain them. */
static int read_vocab(struct reader *r, json_t *vocab, int32_t *foreign, size_t *n_foreign)
{
    const char *key;
    json_t *value;
    struct bytes plain = {0};
    int rc = 0;
    json_object_foreach(vocab, key, value)
    {
        size_t len = strlen(key), n = 0;
        int32_t id;
        if ((rc = token_id(r, value, key, &id)) != 0)
            break;
        if (len == 0) {
            rc = REFUSE(r, "token %d of the vocabulary is empty", (int)id);
            break;
        }
        if (len > WORD_LONGEST) {
            rc = REFUSE(r, "token %d has %zu bytes; at most %d are supported", (int)id, len,
                        WORD_LONGEST);
            break;
        }
        if (r->t->token[id].len) {
            rc = REFUSE(r, "id %d belongs to two tokens, one of them \"%.100s\"", (int)id, key);
            break;
        }
        if ((rc = mem_grow(&plain.data, &plain.cap, len, 1, "a token", r->err)) != 0)
            break;
        bool ours = alphabet_decode(key, len, plain.data, &n);
        if (!ours)
            foreign[(*n_foreign)++] = id;
        if ((rc = set_token(r, id, ours ? plain.data : key, ours ? n : len, 0)) != 0)
            break;
    }
    free(plain.data);
    return rc;
}

static int read_added(struct reader *r, json_t *v, size_t i, json_t *vocab)
{
    static const char *const known[] = {"id",     "content",    "single_word", "lstrip",
                                        "rstrip", "normalized", "special",     NULL};
    char what[40];
    snprintf(what, sizeof what, "added_tokens[%zu]", i);
    TRY(known_keys(r, v, what, known));
    const char *text = json_string_value(json_object_get(v, "content"));
    size_t len = json_string_length(json_object_get(v, "content"));
    int32_t id;
    TRY(token_id(r, json_object_get(v, "id"), text, &id));
    if (len == 0 || len > ADDED_LONGEST)
        return REFUSE(r, "%s.content has %zu bytes; 1 to %d are supported", what, len,
                      ADDED_LONGEST);
    TRY(unused(r, v, what, "single_word"));
    TRY(unused(r, v, what, "lstrip"));
    TRY(unused(r, v, what, "rstrip"));
    bool special, normalized;
    TRY(flag(r, v, what, "special", &special));
    TRY(flag(r, v, what, "normalized", &normalized));
    json_t *in_vocab = json_object_get(vocab, text);
    struct token *t = &r->t->token[id];
    if (t->flags & TOKEN_ADDED || (t->len && !in_vocab))
        return REFUSE(r, "id %d belongs to two tokens, one of them \"%.100s\"", (int)id, text);
    if (in_vocab && json_integer_value(in_vocab) != id)
        return REFUSE(r, "token \"%.100s\" has id %lld in the vocabulary and %d in added_tokens",
                      text, (long long)json_integer_value(in_vocab), (int)id);
    TRY(set_token(r, id, text, len, TOKEN_ADDED | (special ? TOKEN_SPECIAL : 0u)));
    struct added *a = &r->t->added[normalized];
    a->marker[a->n++].id = id; /* its text when all texts are in place: sort_added */
    return 0;
}

/* Added tokens are checked for their form before anything is counted: how many ids there are. */
static int count_tokens(struct reader *r, json_t *vocab, json_t *added)
{
    size_t n = json_object_size(vocab), i;
    json_t *v;
    json_array_foreach(added, i, v)
    {
        json_t *content = json_object_get(v, "content");
        if (!json_is_string(content))
            return REFUSE(r, "added_tokens[%zu].content is %s; expected a string", i,
                          kind_of(content));
        if (!json_object_get(vocab, json_string_value(content)))
            n++;
    }
    if (n == 0 || n > INT32_MAX)
        return REFUSE(r, "the file has %zu tokens", n);
    r->t->n = (uint32_t)n;
    return 0;
}

static int read_tokens(struct reader *r, json_t *vocab, json_t *added)
{
    dsv4_tokenizer *t = r->t;
    TRY(count_tokens(r, vocab, added));
    TRY(mem_alloc(&t->token, t->n, sizeof *t->token, "tokens", r->err));
    for (int k = 0; k < 2; k++)
        TRY(mem_alloc(&t->added[k].marker, json_array_size(added), sizeof(struct marker),
                      "added tokens", r->err));
    int32_t *foreign;
    size_t n_foreign = 0, i;
    TRY(mem_alloc(&foreign, json_object_size(vocab), sizeof *foreign, "tokens", r->err));
    int rc = read_vocab(r, vocab, foreign, &n_foreign);
    json_t *v;
    json_array_foreach(added, i, v)
    {
        if (rc == 0)
            rc = read_added(r, v, i, vocab);
    }
    for (i = 0; i < n_foreign && rc == 0; i++) {
        const struct token *f = &t->token[foreign[i]];
        if (!(f->flags & TOKEN_ADDED))
            rc = REFUSE(r, "token %d, \"%.*s\", is not written in the byte alphabet", foreign[i],
                        (int)(f->len < 100 ? f->len : 100), t->text + f->at);
    }
    free(foreign);
    return rc;
}

/* Every id has its token: n of them were set, none twice, so none is missing. The table of words holds
 * what merging may make: all but the added tokens. */
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

/* "left right" or ["left", "right"]. */
static bool merge_parts(json_t *v, const char **left, size_t *n_left, const char **right,
                        size_t *n_right)
{
    if (json_is_array(v) && json_array_size(v) == 2) {
        json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);
        *left = json_string_value(a), *n_left = json_string_length(a);
        *right = json_string_value(b), *n_right = json_string_length(b);
        return *left && *right;
    }
    if (!json_is_string(v))
        return false;
    *left = json_string_value(v);
    const char *space = strchr(*left, ' ');
    if (!space)
        return false;
    *n_left = (size_t)(space - *left);
    *right = space + 1;
    *n_right = json_string_length(v) - *n_left - 1;
    return true;
}

static int read_merge(struct reader *r, json_t *v, size_t i, struct bytes *plain)
{
    const char *left, *right;
    size_t n_left, n_right, a, c;
    if (!merge_parts(v, &left, &n_left, &right, &n_right))
        return REFUSE(r, "model.merges[%zu] is neither \"left right\" nor a pair of strings", i);
    TRY(mem_grow(&plain->data, &plain->cap, n_left + n_right, 1, "a merge", r->err));
    char *p = plain->data;
    struct bpe *b = &r->t->bpe;
    bool written =
        alphabet_decode(left, n_left, p, &a) && alphabet_decode(right, n_right, p + a, &c);
    int32_t l = written ? bpe_word(b, p, a) : -1, rt = written ? bpe_word(b, p + a, c) : -1;
    int32_t made = written ? bpe_word(b, p, a + c) : -1;
    if (l < 0 || rt < 0 || made < 0)
        return REFUSE(r,
                      "model.merges[%zu] joins \"%.*s\" and \"%.*s\", but %s is no token of the "
                      "vocabulary that merging may use",
                      i, (int)(n_left < 100 ? n_left : 100), left,
                      (int)(n_right < 100 ? n_right : 100), right,
                      l < 0    ? "the left one"
                      : rt < 0 ? "the right one"
                               : "the result");
    bool twice;
    if (!bpe_add_merge(b, l, rt, made, &twice))
        return REFUSE(r, "the merges are made to collide in a hash table");
    if (twice)
        return REFUSE(r, "model.merges[%zu] repeats an earlier one", i);
    return 0;
}

static int read_merges(struct reader *r, json_t *merges)
{
    struct bytes plain = {0};
    size_t i;
    json_t *v;
    int rc = 0;
    json_array_foreach(merges, i, v)
    {
        if ((rc = read_merge(r, v, i, &plain)) != 0)
            break;
    }
    free(plain.data);
    return rc;
}

/* Finds the words that are their own encoding, by encoding them all once. */
static int mark_whole(struct reader *r)
{
    dsv4_tokenizer *t = r->t;
    struct bpe_work work = {0};
    struct ids ids = {0};
    int rc = 0;
    for (uint32_t i = 0; i < t->n && rc == 0; i++) {
        struct token *k = &t->token[i];
        if (k->flags & TOKEN_ADDED)
            continue;
        ids.n = 0;
        rc = bpe_encode(&t->bpe, &work, t->text + k->at, k->len, &ids, r->err);
        if (rc == 0 && ids.n == 1 && ids.v[0] == (int32_t)i)
            k->flags |= TOKEN_WHOLE;
    }
    bpe_work_close(&work);
    free(ids.v);
    return rc;
}

/* ------------------------------------------------------------------ the parts of the file */

static int read_model(struct reader *r, json_t *model, json_t *added)
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
    if (!json_is_object(model))
        return REFUSE(r, "\"model\" is %s; expected an object", kind_of(model));
    if (strcmp(type_of(model), "BPE") != 0)
        return REFUSE(r, "model.type is \"%.60s\"; only \"BPE\" is supported", type_of(model));
    TRY(known_keys(r, model, "model", known));
    for (size_t i = 1; i <= 6; i++)
        TRY(unused(r, model, "model", known[i]));
    bool ignore_merges;
    TRY(flag(r, model, "model", "ignore_merges", &ignore_merges));
    json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    if (!json_is_object(vocab))
        return REFUSE(r, "model.vocab is %s; expected an object", kind_of(vocab));
    if (!json_is_array(merges))
        return REFUSE(r, "model.merges is %s; expected a list", kind_of(merges));
    TRY(read_tokens(r, vocab, added));
    TRY(index_words(r, json_array_size(merges)));
    TRY(read_merges(r, merges));
    TRY(mark_whole(r));
    r->t->bpe.ignore_merges = ignore_merges;
    return 0;
}

static int read_split(struct reader *r, json_t *v, const char *what)
{
    static const char *const known[] = {"type", "pattern", "behavior", "invert", NULL};
    TRY(known_keys(r, v, what, known));
    json_t *pattern = json_object_get(v, "pattern"), *how = json_object_get(v, "behavior");
    json_t *regex = json_object_get(pattern, "Regex");
    if (!json_is_string(regex) || json_object_size(pattern) != 1)
        return REFUSE(r, "%s.pattern is not {\"Regex\": ...}", what);
    if (!json_is_string(how) || strcmp(json_string_value(how), "Isolated") != 0)
        return REFUSE(r, "%s.behavior is %s%.60s; only \"Isolated\" is supported", what,
                      json_is_string(how) ? "" : kind_of(how),
                      json_is_string(how) ? json_string_value(how) : "");
    TRY(unused(r, v, what, "invert"));
    return split_add(&r->t->split, json_string_value(regex), r->shown, r->err);
}

/* Splits, then the byte alphabet; the latter may stand alone. */
static int read_pre_tokenizer(struct reader *r, json_t *v)
{
    static const char *const sequence[] = {"type", "pretokenizers", NULL};
    static const char *const bytes[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                        NULL};
    json_t *list = json_object_get(v, "pretokenizers");
    bool alone = strcmp(type_of(v), "ByteLevel") == 0;
    if (!alone && (strcmp(type_of(v), "Sequence") != 0 || !json_is_array(list)))
        return REFUSE(r, "the pre_tokenizer is %s%.60s; expected a Sequence of Split and ByteLevel",
                      json_is_object(v) ? "of type " : kind_of(v), type_of(v));
    if (!alone)
        TRY(known_keys(r, v, "pre_tokenizer", sequence));
    size_t n = alone ? 1 : json_array_size(list);
    if (n == 0)
        return REFUSE(r, "the pre_tokenizer is empty; its last part must be ByteLevel");
    for (size_t i = 0; i < n; i++) {
        json_t *part = alone ? v : json_array_get(list, i);
        char what[60];
        snprintf(what, sizeof what, "pre_tokenizer.pretokenizers[%zu]", i);
        bool last = i + 1 == n;
        const char *want = last ? "ByteLevel" : "Split";
        if (strcmp(type_of(part), want) != 0)
            return REFUSE(r, "%s is of type \"%.60s\"; expected %s there", what, type_of(part),
                          want);
        if (!last) {
            TRY(read_split(r, part, what));
            continue;
        }
        TRY(known_keys(r, part, what, bytes));
        TRY(unused(r, part, what, "add_prefix_space"));
        if (!json_is_false(json_object_get(part, "use_regex")))
            return REFUSE(r, "%s.use_regex is not false, which is not supported", what);
        if (!json_object_get(part, "add_prefix_space"))
            return REFUSE(r, "%s.add_prefix_space is missing", what);
    }
    return 0;
}

/* What could change ids but is not there in the released files: nothing else is accepted. */
static int check_rest(struct reader *r, json_t *root)
{
    static const char *const known[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    TRY(known_keys(r, root, "the file", known));
    TRY(unused(r, root, "the file", "truncation"));
    TRY(unused(r, root, "the file", "padding"));
    json_t *normalizer = json_object_get(root, "normalizer");
    json_t *list = json_object_get(normalizer, "normalizers");
    if (normalizer && !json_is_null(normalizer) &&
        !(strcmp(type_of(normalizer), "Sequence") == 0 && json_is_array(list) &&
          json_array_size(list) == 0))
        return REFUSE(r, "the normalizer is of type \"%.60s\"; only none is supported",
                      type_of(json_array_size(list) ? json_array_get(list, 0) : normalizer));
    json_t *post = json_object_get(root, "post_processor");
    if (post && !json_is_null(post) && strcmp(type_of(post), "ByteLevel") != 0)
        return REFUSE(r,
                      "the post_processor is of type \"%.60s\"; only ByteLevel or null is "
                      "supported",
                      type_of(post));
    json_t *decoder = json_object_get(root, "decoder");
    if (strcmp(type_of(decoder), "ByteLevel") != 0)
        return REFUSE(r, "the decoder is of type \"%.60s\"; only ByteLevel is supported",
                      type_of(decoder));
    return 0;
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
    for (uint32_t i = 0; i < a->n; i++) {
        const struct token *t = &r->t->token[a->marker[i].id];
        a->marker[i].text = r->t->text + t->at;
        a->marker[i].len = t->len;
    }
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

static int read_root(struct reader *r, json_t *root)
{
    if (!json_is_object(root))
        return REFUSE(r, "the file is %s; expected an object", kind_of(root));
    TRY(check_rest(r, root));
    TRY(read_pre_tokenizer(r, json_object_get(root, "pre_tokenizer")));
    json_t *added = json_object_get(root, "added_tokens");
    if (added && !json_is_null(added) && !json_is_array(added))
        return REFUSE(r, "\"added_tokens\" is %s; expected a list", kind_of(added));
    TRY(read_model(r, json_object_get(root, "model"), added));
    TRY(sort_added(r, &r->t->added[0]));
    return sort_added(r, &r->t->added[1]);
}

int tokenizer_parse(dsv4_tokenizer **out, const char *json, size_t len, const char *shown,
                    dsv4_err *err)
{
    struct reader r = {.shown = shown, .err = err};
    json_error_t why;
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &why);
    if (!root && json_error_code(&why) == json_error_out_of_memory)
        return err_memory(err, len, shown);
    if (!root)
        return err_set(err, DSV4_REFUSED, "%s: not valid JSON: %s (line %d, byte %d)", shown,
                       why.text, why.line, why.position);
    int rc = mem_alloc(&r.t, 1, sizeof *r.t, "a tokenizer", err);
    if (rc == 0)
        rc = read_root(&r, root);
    json_decref(root);
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
