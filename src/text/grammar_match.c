/* A timeline of constrained decoding, as programs use it: mask, accept, and no more memory than a
 * text needs. */
#include "grammar_match.h"

#include <stdlib.h>
#include <string.h>

/* Sets that are kept for steps to come; above, only the one at hand is. */
enum { KEEP_SETS = 1 << 15, KEEP_ROWS = (8 << 20) / 4 };

void dsv4_matcher_close(dsv4_matcher *m)
{
    if (!m)
        return;
    sets_close(&m->s);
    for (int i = 0; i < KEPT_MASKS; i++)
        free(m->kept[i].bits);
    free(m->path);
    free(m->esc);
    free(m);
}

static int open_empty(dsv4_matcher **out, const dsv4_grammar *g, dsv4_err *err)
{
    dsv4_matcher *m;
    *out = NULL;
    TRY(mem_alloc(&m, 1, sizeof *m, "a matcher", err));
    m->g = g;
    int rc = sets_open(&m->s, g, err);
    if (rc == 0)
        rc = mem_alloc(&m->path, g->vocab->depth + 1u, sizeof *m->path, "a matcher", err);
    if (rc != 0) {
        dsv4_matcher_close(m);
        return rc;
    }
    *out = m;
    return 0;
}

int dsv4_matcher_open(dsv4_matcher **out, const dsv4_grammar *g, dsv4_err *err)
{
    TRY(open_empty(out, g, err));
    (*out)->now = sets_start(&(*out)->s);
    int rc = (*out)->s.rc;
    if (rc != 0) {
        dsv4_matcher_close(*out);
        *out = NULL;
    }
    return rc;
}

int dsv4_matcher_clone(dsv4_matcher **out, const dsv4_matcher *m, dsv4_err *err)
{
    TRY(open_empty(out, m->g, err));
    (*out)->ended = m->ended;
    (*out)->now = sets_copy(&(*out)->s, &m->s, m->now);
    int rc = (*out)->s.rc;
    if (rc != 0) {
        dsv4_matcher_close(*out);
        *out = NULL;
    }
    return rc;
}

/* Before a step: an earlier failure (of memory) does not last, and tables that have grown large
 * go. */
static int begin(dsv4_matcher *m, dsv4_err *err)
{
    m->s.rc = 0;
    m->s.err = err;
    m->s.n_merge = 0;
    if (m->s.n_sets < KEEP_SETS && m->s.n_rows * m->g->n_classes < KEEP_ROWS)
        return 0;
    struct sets fresh;
    TRY(sets_open(&fresh, m->g, err));
    uint32_t now = sets_copy(&fresh, &m->s, m->now);
    if (fresh.rc != 0) {
        int rc = fresh.rc;
        sets_close(&fresh);
        return rc;
    }
    sets_close(&m->s);
    m->s = fresh;
    m->now = now;
    for (int i = 0; i < KEPT_MASKS; i++)
        m->kept[i].set = SET_NONE;
    return 0;
}

int dsv4_matcher_mask(dsv4_matcher *m, uint32_t *bits, size_t vocab, dsv4_err *err)
{
    if (m->ended)
        return err_set(err, DSV4_USAGE, "grammar: the text has ended");
    TRY(begin(m, err));
    const uint32_t *mask = matcher_mask(m);
    if (!mask)
        return m->s.rc;
    size_t n = (vocab + 31) / 32, have = m->g->vocab->n_words;
    size_t common = n < have ? n : have;
    memcpy(bits, mask, common * sizeof *bits);
    memset(bits + common, 0, (n - common) * sizeof *bits);
    if (vocab % 32 && n <= have)
        bits[n - 1] &= ((uint32_t)1 << vocab % 32) - 1;
    uint32_t any = 0;
    for (size_t i = 0; i < common; i++)
        any |= bits[i];
    return any ? 0 : err_set(err, DSV4_FAILED, "grammar: no token of the vocabulary fits here");
}

/* The set behind a token's bytes. */
static uint32_t spelled(dsv4_matcher *m, const struct token *t)
{
    const char *text = m->g->t->text + t->at;
    uint32_t set = t->len ? m->now : SET_NONE;
    for (uint32_t i = 0; i < t->len && set != SET_NONE; i++)
        set = sets_step(&m->s, set, m->g->class[(unsigned char)text[i]]);
    return set;
}

int dsv4_matcher_accept(dsv4_matcher *m, int32_t token, dsv4_err *err)
{
    const dsv4_tokenizer *t = m->g->t;
    if (token < 0 || (uint32_t)token >= t->n)
        return err_set(err, DSV4_USAGE, "grammar: there is no token %d", token);
    if (m->ended)
        return err_set(err, DSV4_REFUSED, "grammar: token %d behind the end of the text", token);
    TRY(begin(m, err));
    if (token == m->g->vocab->eos && m->s.set[m->now].end) {
        m->ended = true;
        return 0;
    }
    uint32_t next = sets_token(&m->s, m->now, token);
    if (!(t->token[token].flags & TOKEN_ADDED))
        next = sets_union(&m->s, next, spelled(m, &t->token[token]));
    if (m->s.rc != 0)
        return m->s.rc;
    if (next == SET_NONE)
        return err_set(err, DSV4_REFUSED, "grammar: token %d does not fit here", token);
    m->now = next;
    return 0;
}

bool dsv4_matcher_may_end(const dsv4_matcher *m)
{
    return m->ended || m->s.set[m->now].end;
}

bool dsv4_matcher_done(const dsv4_matcher *m)
{
    return m->ended || m->now == SET_END;
}
