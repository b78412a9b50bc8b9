/* Prompt in, tokens out: prefill in steps, sampling, text that becomes certain, stop strings that may lie
 * across tokens. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

/* Text on its way out. `text` holds what is not delivered yet: it may still become a stop string. */
struct outlet {
    const dsv4_generate_options *opt;
    dsv4_utf8 utf8;
    struct bytes text;
    size_t ready; /* bytes of text that are certain */
    bool stopped; /* a stop string stands at `ready` */
};

/* The longest end of text[from..) that begins a stop string. */
static size_t held_back(const struct outlet *o, size_t from)
{
    const char *p = o->text.data;
    for (size_t at = from; at < o->text.len; at++)
        for (size_t i = 0; i < o->opt->n_stops; i++) {
            size_t rest = o->text.len - at;
            if (rest < strlen(o->opt->stops[i]) && memcmp(p + at, o->opt->stops[i], rest) == 0)
                return rest;
        }
    return 0;
}

static void find_stop(struct outlet *o)
{
    const char *p = o->text.data;
    for (size_t at = 0; at < o->text.len; at++)
        for (size_t i = 0; i < o->opt->n_stops; i++) {
            size_t n = strlen(o->opt->stops[i]);
            if (n > 0 && n <= o->text.len - at && memcmp(p + at, o->opt->stops[i], n) == 0) {
                o->ready = at;
                o->stopped = true;
                return;
            }
        }
    o->ready = o->text.len - held_back(o, 0);
}

/* Takes the bytes of one more token (or, at the end, what was waiting). */
static int outlet_add(struct outlet *o, const char *bytes, size_t len, bool end, dsv4_err *err)
{
    memmove(o->text.data, o->text.data + o->ready, o->text.len - o->ready);
    o->text.len -= o->ready;
    o->ready = 0;
    TRY(mem_grow(&o->text.data, &o->text.cap, o->text.len + 3 * len + 32, 1, "text", err));
    char *to = o->text.data + o->text.len;
    o->text.len += end ? dsv4_utf8_flush(&o->utf8, to) : dsv4_utf8_push(&o->utf8, bytes, len, to);
    find_stop(o);
    if (end && !o->stopped)
        o->ready = o->text.len;
    return 0;
}

struct generation {
    dsv4_engine *e;
    dsv4_seq *s;
    const dsv4_generate_options *opt;
    dsv4_generated *out;
    dsv4_sampler *sampler;
    dsv4_matcher *matcher; /* NULL: no grammar, or not yet */
    uint32_t *allow;       /* the tokens that it lets through */
    float *logits;
    dsv4_logprob *top;
    struct outlet outlet;
};

static int interrupted(dsv4_err *err)
{
    return err_set(err, DSV4_INTERRUPTED, "interrupted");
}

static int prefill(struct generation *g, const int32_t *ids, size_t n, dsv4_err *err)
{
    size_t step = g->e->plan.batch, mark = g->opt->mark;
    dsv4_row *rows;
    TRY(mem_alloc(&rows, step, sizeof *rows, "rows of a prompt", err));
    int rc = 0;
    for (size_t at = 0, m; at < n && rc == 0; at += m) {
        m = n - at < step ? n - at : step;
        if (at < mark && mark - at < m)
            m = mark - at;
        for (size_t i = 0; i < m; i++)
            rows[i] = (dsv4_row){g->s, ids[at + i], at + i + 1 == n};
        rc = dsv4_eval(g->e, rows, m, g->logits, err);
        if (rc == 0)
            g->out->n_prompt += m;
        if (rc == 0 && at + m == mark)
            rc = dsv4_seq_mark(g->s, err);
        if (rc == 0 && g->opt->prefilled && g->opt->prefilled(g->opt->arg, at + m, n))
            rc = interrupted(err);
    }
    free(rows);
    return rc;
}

static int report(struct generation *g, dsv4_logprob chosen, dsv4_err *err)
{
    dsv4_token t = {
        .chosen = chosen, .top = g->top, .text = g->outlet.text.data, .len = g->outlet.ready};
    if (g->opt->token && g->opt->token(g->opt->arg, &t))
        return interrupted(err);
    return 0;
}

/* The next token. When the grammar lets only the end follow, that is EOS, however the tokenizer names
 * its own. */
static int choose(struct generation *g, dsv4_logprob *out, dsv4_err *err)
{
    const dsv4_generate_options *opt = g->opt;
    size_t vocab = g->e->cp.cfg->vocab;
    int32_t eos = g->e->cp.cfg->eos;
    if (g->matcher) {
        bool end = dsv4_matcher_may_end(g->matcher) && eos >= 0 && (size_t)eos < vocab;
        memset(g->allow, 0, (vocab + 31) / 32 * sizeof *g->allow);
        if (!end || !dsv4_matcher_done(g->matcher))
            TRY(dsv4_matcher_mask(g->matcher, g->allow, vocab, err));
        if (end)
            g->allow[eos / 32] |= (uint32_t)1 << eos % 32;
    }
    *out =
        dsv4_sample_masked(g->sampler, g->logits, g->matcher ? g->allow : NULL, g->top, opt->n_top);
    if (g->matcher && out->token != eos)
        return dsv4_matcher_accept(g->matcher, out->token, err);
    if (!g->matcher && opt->grammar && out->token == opt->grammar_after)
        return dsv4_matcher_open(&g->matcher, opt->grammar, err);
    return 0;
}

/* One token: chosen, told, and, unless it was the last, computed. */
static int one_token(struct generation *g, bool *done, dsv4_err *err)
{
    const dsv4_generate_options *opt = g->opt;
    dsv4_logprob chosen;
    TRY(choose(g, &chosen, err));
    dsv4_sampler_accept(g->sampler, chosen.token);
    size_t len = 0;
    const char *text = dsv4_token_bytes(g->e->tok, chosen.token, &len);
    bool eos = chosen.token == g->e->cp.cfg->eos && (!opt->ignore_eos || g->matcher);
    if (eos || dsv4_token_special(g->e->tok, chosen.token))
        len = 0;
    TRY(outlet_add(&g->outlet, text, len, eos, err));
    g->out->n_tokens++;
    *done = true;
    bool limit = opt->max_tokens > 0 && g->out->n_tokens >= opt->max_tokens;
    bool full = g->s->cache->len + 1 > g->e->plan.ctx;
    if (eos)
        g->out->stop = DSV4_STOP_EOS;
    else if (g->outlet.stopped)
        g->out->stop = DSV4_STOP_STRING;
    else if (limit || full)
        g->out->stop = limit ? DSV4_STOP_LIMIT : DSV4_STOP_CTX;
    else
        *done = false;
    if (*done && !eos && !g->outlet.stopped) { /* nothing follows: what was held back is text */
        g->outlet.ready = 0;
        TRY(outlet_add(&g->outlet, NULL, 0, true, err));
    }
    TRY(report(g, chosen, err));
    if (*done)
        return 0;
    dsv4_row row = {g->s, chosen.token, true};
    return dsv4_eval(g->e, &row, 1, g->logits, err);
}

static int run(struct generation *g, const int32_t *ids, size_t n, dsv4_err *err)
{
    const dsv4_generate_options *opt = g->opt;
    size_t have = g->s->cache->len, ctx = g->e->plan.ctx;
    if (n == 0)
        return err_set(err, DSV4_USAGE, "an empty prompt: at least one token is needed");
    if (n > ctx - have)
        return err_set(err, DSV4_FAILED,
                       "the prompt has %zu tokens after %zu in the sequence; the context holds %zu",
                       n, have, ctx);
    size_t vocab = g->e->cp.cfg->vocab;
    TRY(dsv4_sampler_open(&g->sampler, &opt->sampling, vocab, err));
    TRY(mem_alloc(&g->logits, vocab, sizeof *g->logits, "logits", err));
    TRY(mem_alloc(&g->allow, (vocab + 31) / 32, sizeof *g->allow, "a mask", err));
    if (opt->grammar && opt->grammar_after == 0)
        TRY(dsv4_matcher_open(&g->matcher, opt->grammar, err));
    TRY(mem_alloc(&g->top, opt->n_top, sizeof *g->top, "log-probabilities", err));
    TRY(mem_grow(&g->outlet.text.data, &g->outlet.text.cap, 64, 1, "text", err));
    for (size_t i = 0; i < have; i++)
        dsv4_sampler_accept(g->sampler, g->s->cache->token[i]);
    for (size_t i = 0; i < n; i++)
        dsv4_sampler_accept(g->sampler, ids[i]);

    double start = clock_seconds();
    int rc = prefill(g, ids, n, err);
    double middle = clock_seconds();
    g->out->prompt_seconds = middle - start;
    for (bool done = false; rc == 0 && !done;)
        rc = one_token(g, &done, err);
    g->out->token_seconds = clock_seconds() - middle;
    return rc;
}

int dsv4_generate(dsv4_engine *e, dsv4_seq *s, const int32_t *ids, size_t n,
                  const dsv4_generate_options *opt, dsv4_generated *out, dsv4_err *err)
{
    dsv4_generated unused;
    struct generation g = {
        .e = e, .s = s, .opt = opt, .out = out ? out : &unused, .outlet = {.opt = opt}};
    *g.out = (dsv4_generated){0};
    if (!e->tok)
        return err_set(err, DSV4_USAGE,
                       "a synthetic engine has no tokenizer to generate text with");
    int rc = run(&g, ids, n, err);
    dsv4_sampler_close(g.sampler);
    dsv4_matcher_close(g.matcher);
    free(g.allow);
    free(g.logits);
    free(g.top);
    free(g.outlet.text.data);
    return rc;
}
