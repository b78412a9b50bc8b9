/* Text to token ids and back. Encoding goes in three steps, each on what the one before leaves: added
 * tokens are cut out (only where the caller says that they may stand), the pre-tokenizer cuts the
 * rest into pieces (split.c), byte-pair encoding turns each piece into ids (bpe.c).
 * A tokenizer never changes once it is open; what an encoding needs lives in its call. */
#include "text.h"

#include <stdlib.h>
#include <string.h>

void dsv4_tokenizer_close(dsv4_tokenizer *t)
{
    if (!t)
        return;
    vocab_close(t->vocab);
    split_close(&t->split);
    bpe_close(&t->bpe);
    free(t->added[0].marker);
    free(t->added[1].marker);
    free(t->token);
    free(t->text);
    free(t);
}

size_t dsv4_tokenizer_size(const dsv4_tokenizer *t)
{
    return t->n;
}

const char *dsv4_token_bytes(const dsv4_tokenizer *t, int32_t id, size_t *len)
{
    *len = 0;
    if (id < 0 || (uint32_t)id >= t->n)
        return NULL;
    *len = t->token[id].len;
    return t->text + t->token[id].at;
}

bool dsv4_token_special(const dsv4_tokenizer *t, int32_t id)
{
    return id >= 0 && (uint32_t)id < t->n && t->token[id].flags & TOKEN_SPECIAL;
}

/* ------------------------------------------------------------------ added tokens */

/* The first of marker[lo..hi), which agree in their first `depth` bytes and are longer, whose next byte is
 * at least `byte`. */
static uint32_t narrow(const struct added *a, uint32_t lo, uint32_t hi, size_t depth, unsigned byte)
{
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)a->marker[mid].text[depth] < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest added token that text begins with; NULL. The sorted list serves as a trie: each byte
 * narrows the range of those that agree so far. */
static const struct marker *longest_added(const struct added *a, const char *text, size_t len)
{
    unsigned byte = (unsigned char)text[0];
    uint32_t lo = a->first[byte], hi = a->first[byte + 1];
    const struct marker *found = NULL;
    for (size_t depth = 1; lo < hi; depth++) {
        if (a->marker[lo].len == depth)
            found = &a->marker[lo++];
        if (depth == len)
            break;
        byte = (unsigned char)text[depth];
        lo = narrow(a, lo, hi, depth, byte);
        hi = narrow(a, lo, hi, depth, byte + 1);
    }
    return found;
}

int32_t dsv4_token_find(const dsv4_tokenizer *t, const char *text)
{
    size_t len = strlen(text);
    for (int k = 0; k < 2 && len > 0; k++) {
        const struct marker *m = longest_added(&t->added[k], text, len);
        if (m && m->len == len)
            return m->id;
    }
    return -1;
}

/* ------------------------------------------------------------------ encoding */

/* One call: text before `done` has been encoded. */
struct encoder {
    const dsv4_tokenizer *t;
    const char *text;
    size_t done;
    struct bpe_work work;
    struct ids ids;
    dsv4_err *err;
};

static int push_id(struct encoder *e, int32_t id)
{
    TRY(mem_grow(&e->ids.v, &e->ids.cap, e->ids.n + 1, sizeof id, "token ids", e->err));
    e->ids.v[e->ids.n++] = id;
    return 0;
}

/* Pieces that had to be collected, because several patterns or PCRE2 cut them. */
static int encode_cuts(struct encoder *e, const char *text, size_t len)
{
    struct cuts cuts = {0};
    int rc = split_all(&e->t->split, text, len, 0, &cuts, e->err);
    size_t at = 0;
    for (size_t i = 0; i < cuts.n && rc == 0; at = cuts.end[i++])
        rc = bpe_encode(&e->t->bpe, &e->work, text + at, cuts.end[i] - at, &e->ids, e->err);
    free(cuts.end);
    return rc;
}

/* Ordinary text up to `end`. */
static int encode_plain(struct encoder *e, size_t end)
{
    const char *text = e->text + e->done;
    size_t len = end - e->done;
    const struct splitter *s = &e->t->split;
    e->done = end;
    if (s->n != 1 || !s->step[0].rules)
        return encode_cuts(e, text, len);
    for (size_t at = 0, next; at < len; at = next) {
        next = split_next(s->step[0].rules, text, len, at);
        TRY(bpe_encode(&e->t->bpe, &e->work, text + at, next - at, &e->ids, e->err));
    }
    return 0;
}

/* Finds added tokens in text[begin..end), leftmost first and longest first at one place: those of the
 * first list, and between them those of the second. Each is encoded after what stands before it. */
static int encode_added(struct encoder *e, int list, size_t begin, size_t end)
{
    const struct added *a = &e->t->added[list];
    size_t from = begin;
    for (size_t at = begin; at < end; at++) {
        unsigned byte = (unsigned char)e->text[at];
        if (a->first[byte] == a->first[byte + 1])
            continue;
        const struct marker *m = longest_added(a, e->text + at, end - at);
        if (!m)
            continue;
        if (list == 0)
            TRY(encode_added(e, 1, from, at));
        TRY(encode_plain(e, at));
        TRY(push_id(e, m->id));
        from = e->done = at + m->len;
        at = from - 1;
    }
    return list == 0 ? encode_added(e, 1, from, end) : 0;
}

/* Hands the ids over, or frees them after a failure. */
static int encode_end(struct encoder *e, int rc, int32_t **ids, size_t *n)
{
    bpe_work_close(&e->work);
    if (rc == 0 && !e->ids.v) /* no text: still a block to free */
        rc = mem_grow(&e->ids.v, &e->ids.cap, 1, sizeof *e->ids.v, "token ids", e->err);
    if (rc != 0) {
        free(e->ids.v);
        return rc;
    }
    *ids = e->ids.v;
    *n = e->ids.n;
    return 0;
}

int dsv4_encode(const dsv4_tokenizer *t, const char *text, size_t len, bool markers, int32_t **ids,
                size_t *n, dsv4_err *err)
{
    struct bytes repaired = {0};
    struct encoder e = {.t = t, .text = text ? text : "", .err = err};
    int rc = 0;
    if (!utf8_valid(text, len)) {
        rc = utf8_repair(&repaired, text, len, err);
        e.text = repaired.data;
        len = repaired.len;
    }
    if (rc == 0 && markers)
        rc = encode_added(&e, 0, 0, len);
    if (rc == 0)
        rc = encode_plain(&e, len);
    free(repaired.data);
    return encode_end(&e, rc, ids, n);
}

/* Ordinary text goes on across the borders of spans; only a marker ends it. */
static int encode_spans(struct encoder *e, const dsv4_prompt *p)
{
    for (size_t i = 0; i < p->n_control; i++) {
        size_t begin = p->control[i].begin, end = p->control[i].end;
        if (begin > end || end > p->len || (i > 0 && begin < p->control[i - 1].end))
            return err_set(e->err, DSV4_USAGE,
                           "control span %zu of the prompt, [%zu, %zu), is out of order or range",
                           i, begin, end);
        while (i + 1 < p->n_control && p->control[i + 1].begin == end &&
               p->control[i + 1].end >= end && p->control[i + 1].end <= p->len)
            end = p->control[++i].end;
        TRY(encode_added(e, 0, begin, end));
    }
    return encode_plain(e, p->len);
}

int dsv4_encode_prompt(const dsv4_tokenizer *t, const dsv4_prompt *p, int32_t **ids, size_t *n,
                       dsv4_err *err)
{
    struct encoder e = {.t = t, .text = p->text ? p->text : "", .err = err};
    if (!utf8_valid(p->text, p->len))
        return err_set(err, DSV4_USAGE, "the prompt is not well-formed UTF-8");
    return encode_end(&e, encode_spans(&e, p), ids, n);
}

int dsv4_pretokenize(const dsv4_tokenizer *t, const char *text, size_t len, size_t **cuts,
                     size_t *n, dsv4_err *err)
{
    struct bytes repaired = {0};
    struct cuts c = {0};
    int rc = 0;
    if (!utf8_valid(text, len)) {
        rc = utf8_repair(&repaired, text, len, err);
        text = repaired.data;
        len = repaired.len;
    }
    if (rc == 0)
        rc = split_all(&t->split, text, len, 0, &c, err);
    if (rc == 0 && !c.end)
        rc = mem_grow(&c.end, &c.cap, 1, sizeof *c.end, "pieces of a text", err);
    free(repaired.data);
    if (rc != 0) {
        free(c.end);
        return rc;
    }
    for (size_t i = c.n; i-- > 1;) /* ends -> lengths */
        c.end[i] -= c.end[i - 1];
    *cuts = c.end;
    *n = c.n;
    return 0;
}
