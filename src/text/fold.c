/* Engram's compressed vocabulary: tokens that differ only in case, accents, spacing or presentation
 * share one id, under which the tables of n-grams know them.
 *
 * The key of a token is its text folded: compatibility decomposition (NFKC and then NFD come to
 * NFKD), marks dropped, lower case code point by code point, runs of blanks made one space, white
 * space stripped at both ends (a text that is just a space stays one). No reordering of marks is
 * needed, as none is left. A token that is part of a character keeps the raw spelling of the
 * vocabulary, and so does, as it stands, a text of which folding leaves nothing.
 * Decompositions and case come from utf8proc; without it V4.1 models are refused. */
#include "text.h"

#include <stdlib.h>
#include <string.h>

#ifdef HAVE_UTF8PROC
#include <utf8proc.h>

static bool blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static char ascii_lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

/* NFKD, no marks, lower case of one character. */
static int fold_character(struct bytes *out, uint32_t c, dsv4_err *err)
{
    utf8proc_int32_t part[32]; /* U+FDFA, the longest, has 18 */
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, part, 32,
                                                 UTF8PROC_COMPAT | UTF8PROC_DECOMPOSE, &boundary);
    if (n < 0 || n > 32)
        return err_set(err, DSV4_FAILED, "utf8proc cannot decompose U+%04X", (unsigned)c);
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        utf8proc_category_t k = utf8proc_category(part[i]);
        if (k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC || k == UTF8PROC_CATEGORY_ME)
            continue;
        char utf8[4];
        size_t size = utf8_encode((uint32_t)utf8proc_tolower(part[i]), utf8);
        TRY(bytes_add(out, utf8, size, err));
    }
    return 0;
}

/* U+E000 in all its places -> a space. It keeps a lone space from being stripped in the original, which
 * folds texts with a real U+E000 the same way. */
static void restore_spaces(struct bytes *b, size_t from)
{
    size_t n = from;
    for (size_t i = from; i < b->len; i++) {
        if (b->len - i >= 3 && memcmp(b->data + i, "\xee\x80\x80", 3) == 0) {
            b->data[n++] = ' ';
            i += 2;
        } else {
            b->data[n++] = b->data[i];
        }
    }
    b->len = n;
}

/* Runs of blanks -> one space; then white space off both ends, unless one space is all there is. */
static void squeeze(struct bytes *b, size_t from)
{
    size_t n = from;
    for (size_t i = from; i < b->len; i++) {
        if (!blank(b->data[i]))
            b->data[n++] = b->data[i];
        else if (n == from || b->data[n - 1] != ' ')
            b->data[n++] = ' ';
    }
    b->len = n;
    if (n == from + 1 && b->data[from] == ' ')
        return;
    size_t begin = from, size;
    while (begin < b->len) {
        uint32_t c = utf8_decode((const unsigned char *)b->data + begin, &size);
        if (!(unicode_class_of(c) & CLASS_SPACE))
            break;
        begin += size;
    }
    size_t end = begin;
    for (size_t i = begin; i < b->len; i += size) {
        uint32_t c = utf8_decode((const unsigned char *)b->data + i, &size);
        if (!(unicode_class_of(c) & CLASS_SPACE))
            end = i + size;
    }
    memmove(b->data + from, b->data + begin, end - begin);
    b->len = from + (end - begin);
    restore_spaces(b, from);
}

int engram_normalize(struct bytes *out, const char *text, size_t len, dsv4_err *err)
{
    size_t from = out->len, size;
    for (size_t i = 0; i < len; i += size) {
        if ((unsigned char)text[i] < 0x80) {
            char c = ascii_lower(text[i]);
            size = 1;
            TRY(bytes_add(out, &c, 1, err));
        } else {
            uint32_t c = utf8_decode((const unsigned char *)text + i, &size);
            TRY(fold_character(out, c, err));
        }
    }
    if (out->len > from)
        squeeze(out, from);
    return 0;
}

/* The spelling in the vocabulary of a token that is not whole characters. */
static int add_raw(struct bytes *out, const dsv4_tokenizer *t, const struct token *k, dsv4_err *err)
{
    if (k->flags & TOKEN_ADDED)
        return bytes_add(out, t->text + k->at, k->len, err);
    for (uint32_t i = 0; i < k->len; i++) {
        char utf8[4];
        size_t size = utf8_encode(alphabet_of((unsigned char)t->text[k->at + i]), utf8);
        TRY(bytes_add(out, utf8, size, err));
    }
    return 0;
}

static int add_key(struct bytes *out, const dsv4_tokenizer *t, const struct token *k, dsv4_err *err)
{
    const char *text = t->text + k->at;
    size_t from = out->len;
    if (!utf8_valid(text, k->len) || memmem(text, k->len, "\xef\xbf\xbd", 3))
        return add_raw(out, t, k, err);
    TRY(engram_normalize(out, text, k->len, err));
    return out->len > from ? 0 : bytes_add(out, text, k->len, err);
}

/* A key. `head` is its first eight bytes, which settle most comparisons. */
struct key {
    uint64_t head;
    const char *text;
    uint32_t len;
    int32_t token;
};

static int compare_texts(const struct key *x, const struct key *y)
{
    if (x->head != y->head)
        return x->head < y->head ? -1 : 1;
    if (x->len != y->len)
        return x->len < y->len ? -1 : 1;
    return memcmp(x->text, y->text, x->len);
}

static int compare_keys(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    int c = compare_texts(x, y);
    return c ? c : (x->token > y->token) - (x->token < y->token);
}

/* Equal keys stand together, the lowest token first: give each token the first token of its group,
 * then number the groups in order of their first tokens. */
static uint32_t number_keys(const struct key *key, size_t n, int32_t *map)
{
    for (size_t i = 0; i < n; i++) {
        bool same = i > 0 && compare_texts(&key[i - 1], &key[i]) == 0;
        map[key[i].token] = same ? map[key[i - 1].token] : key[i].token;
    }
    uint32_t distinct = 0;
    for (size_t i = 0; i < n; i++)
        map[i] = map[i] == (int32_t)i ? (int32_t)distinct++ : map[map[i]];
    return distinct;
}

/* The texts of all keys, one after the other, and where each ends. */
static int all_keys(const dsv4_tokenizer *t, struct bytes *text, size_t *end, dsv4_err *err)
{
    for (uint32_t i = 0; i < t->n; i++) {
        TRY(add_key(text, t, &t->token[i], err));
        end[i] = text->len;
    }
    return 0;
}

int engram_map_build(const dsv4_tokenizer *t, int32_t **map, uint32_t *distinct, dsv4_err *err)
{
    struct bytes text = {0};
    struct key *key = NULL;
    size_t *end = NULL;
    int32_t *ids = NULL;
    int rc = mem_alloc(&key, t->n, sizeof *key, "the keys of the compressed vocabulary", err);
    if (rc == 0)
        rc = mem_alloc(&end, t->n, sizeof *end, "the keys of the compressed vocabulary", err);
    if (rc == 0)
        rc = mem_alloc(&ids, t->n, sizeof *ids, "the compressed vocabulary", err);
    if (rc == 0)
        rc = all_keys(t, &text, end, err);
    if (rc == 0) {
        for (uint32_t i = 0; i < t->n; i++) {
            size_t at = i ? end[i - 1] : 0, len = end[i] - at;
            key[i] =
                (struct key){.text = text.data + at, .len = (uint32_t)len, .token = (int32_t)i};
            memcpy(&key[i].head, key[i].text, len < 8 ? len : 8);
        }
        qsort(key, t->n, sizeof *key, compare_keys);
        *distinct = number_keys(key, t->n, ids);
        *map = ids;
        ids = NULL;
    }
    free(ids);
    free(end);
    free(key);
    free(text.data);
    return rc;
}

#else

int engram_normalize(struct bytes *out, const char *text, size_t len, dsv4_err *err)
{
    (void)out, (void)text, (void)len;
    return err_set(err, DSV4_REFUSED, "this build has no utf8proc, which Engram tables need");
}

int engram_map_build(const dsv4_tokenizer *t, int32_t **map, uint32_t *distinct, dsv4_err *err)
{
    (void)t, (void)map, (void)distinct;
    return err_set(err, DSV4_REFUSED, "this build has no utf8proc, which Engram tables need");
}

#endif
