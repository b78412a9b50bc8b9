/* Perplexity of texts, and how far the model's distributions are from those of another: one that runs beside
 * it, or one whose rows were kept in a file. A unit is a window of text. */
#include "eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ texts */

/* A window: BOS (or the text's first token, where a model has none) and the tokens to be predicted. */
struct window {
    size_t at, n; /* in texts.ids; n are predicted */
    size_t file;
};

struct texts {
    int32_t *ids;
    size_t n_ids, cap_ids;
    struct window *window;
    size_t n_windows, cap_windows;
    uint64_t hash; /* of ids and of where windows begin */
    uint64_t rows; /* that are counted */
};

static void texts_release(struct texts *t)
{
    free(t->ids);
    free(t->window);
    *t = (struct texts){0};
}

static uint64_t counted(const struct eval *e, size_t n)
{
    return n > e->v.skip ? n - e->v.skip : 0;
}

static int cut_windows(struct eval *e, struct texts *t, size_t file, size_t from, dsv4_err *err)
{
    size_t body = e->v.context - 1;
    for (size_t at = from, n; at < t->n_ids; at += n) {
        n = t->n_ids - at < body ? t->n_ids - at : body;
        TRY(mem_grow(&t->window, &t->cap_windows, t->n_windows + 1, sizeof *t->window, "windows",
                     err));
        t->window[t->n_windows++] = (struct window){at, n, file};
        t->hash = eval_hash(t->hash, &(uint64_t){n}, sizeof(uint64_t));
        t->rows += counted(e, n);
    }
    return 0;
}

static int add_text(struct eval *e, struct texts *t, const dsv4_tokenizer *tok, size_t file,
                    dsv4_err *err)
{
    char *raw, *text = NULL;
    const char *path = e->p.argv[file];
    size_t raw_len, len = 0, n = 0, from = t->n_ids;
    int32_t *ids = NULL;
    TRY(file_read(path, TEXT_LIMIT, &raw, &raw_len, err));
    int rc = text_repair(&e->p, path, raw, raw_len, &text, &len, err);
    free(raw);
    if (rc == 0)
        rc = dsv4_encode(tok, text, len, false, &ids, &n, err);
    free(text);
    if (rc == 0)
        rc = mem_grow(&t->ids, &t->cap_ids, t->n_ids + n, sizeof *t->ids, "token ids", err);
    if (rc == 0 && n > 0) {
        memcpy(t->ids + from, ids, n * sizeof *ids);
        t->hash = eval_hash(t->hash, ids, n * sizeof *ids);
        t->n_ids += n;
        rc = cut_windows(e, t, file, from, err);
    }
    dsv4_free(ids);
    return rc;
}

static int read_texts(struct eval *e, struct texts *t, const dsv4_tokenizer *tok, dsv4_err *err)
{
    *t = (struct texts){.hash = EVAL_HASH_START};
    for (int i = 0; i < e->p.argc; i++)
        TRY(add_text(e, t, tok, (size_t)i, err));
    if (t->rows == 0)
        return err_set(err, DSV4_USAGE, "no text to measure%s",
                       e->v.skip ? " behind what --skip leaves out" : "");
    if (t->n_windows > UINT32_MAX)
        return err_set(err, DSV4_USAGE, "%zu windows are too many", t->n_windows);
    return 0;
}

/* ------------------------------------------------------------------ a run */

/* One of the two models. */
struct side {
    struct model_handle m;
    dsv4_seq *seq;
    float *logits; /* [rows][vocab] */
    double seconds;
};

/* What a window adds up to. */
struct sums {
    double nll, nll_squared, other_nll, low, variance;
    size_t same, counted;
    json_t *kl; /* one a row; NULL: there is nothing to compare with */
};

struct measure {
    struct eval *e;
    struct texts texts;
    struct side side[2]; /* the model; the one it is compared with */
    size_t vocab, rows;  /* of one call */
    dsv4_row *row;
    struct kept_row kept;
    struct logits_file save, reference;
    bool saving, comparing; /* with files */
    struct eval_state state;
};

static int open_side(struct measure *x, bool other, dsv4_err *err)
{
    struct side *s = &x->side[other];
    size_t n;
    TRY(eval_open(x->e, other, x->e->v.context, 1, &s->m, err));
    x->vocab = dsv4_engine_vocab(s->m.engine);
    x->rows = eval_rows(x->e, s->m.engine);
    if (!size_mul(x->rows, x->vocab, &n))
        return err_memory(err, UINT64_MAX, "logits");
    TRY(mem_alloc(&s->logits, n, sizeof *s->logits, "logits", err));
    return dsv4_seq_open(&s->seq, s->m.engine, err);
}

/* Rows of two models can be compared when a row means the same in both. */
static int same_tokens(struct measure *x, dsv4_err *err)
{
    const dsv4_engine *a = x->side[0].m.engine, *b = x->side[1].m.engine;
    if (dsv4_engine_vocab(a) == dsv4_engine_vocab(b) &&
        eval_hash_tokenizer(dsv4_engine_tokenizer(a)) ==
            eval_hash_tokenizer(dsv4_engine_tokenizer(b)))
        return 0;
    return err_set(err, DSV4_REFUSED, "%s has another tokenizer than %s (vocabulary %zu and %zu)",
                   x->side[1].m.dir, x->side[0].m.dir, dsv4_engine_vocab(b), dsv4_engine_vocab(a));
}

static struct logits_head head_of(const struct measure *x)
{
    const struct eval_values *v = &x->e->v;
    return (struct logits_head){.vocab = (uint32_t)x->vocab,
                                .context = v->context,
                                .skip = v->skip,
                                .top = v->top,
                                .windows = (uint32_t)x->texts.n_windows,
                                .rows = x->texts.rows,
                                .tokenizer =
                                    eval_hash_tokenizer(dsv4_engine_tokenizer(x->side[0].m.engine)),
                                .ids = x->texts.hash};
}

static int put_task(struct measure *x, dsv4_err *err)
{
    struct eval *e = x->e;
    struct logits_head h = head_of(x);
    json_t *files = json_array();
    for (int i = 0; files && i < e->p.argc; i++)
        if (json_array_append_new(files, json_string(e->p.argv[i])) != 0) {
            json_decref(files);
            files = NULL;
        }
    TRY(eval_put(e->task, "texts", files, err));
    TRY(eval_put(e->task, "context", json_integer(h.context), err));
    TRY(eval_put(e->task, "skip", json_integer(h.skip), err));
    TRY(eval_put(e->task, "tokenizer", eval_hash_json(h.tokenizer), err));
    TRY(eval_put(e->task, "text", eval_hash_json(h.ids), err));
    if (e->v.save_logits) {
        TRY(eval_put(e->task, "save_logits", json_string(e->v.save_logits), err));
        TRY(eval_put(e->task, "top", json_integer(h.top), err));
    }
    return e->v.reference ? eval_put(e->task, "reference", json_string(e->v.reference), err) : 0;
}

/* The reference is looked at before a model is loaded; here it meets the text. */
static int open_files(struct measure *x, dsv4_err *err)
{
    struct logits_head h = head_of(x);
    uint32_t done = (uint32_t)json_array_size(x->state.units);
    uint32_t top = h.top;
    if (done > h.windows)
        return err_set(err, DSV4_REFUSED, "%s: more windows than the text has", x->state.path);
    if (x->comparing) {
        TRY(logits_fits(&x->reference, &h, err));
        top = x->reference.head.top > top ? x->reference.head.top : top;
    }
    TRY(mem_alloc(&x->kept.top, top, sizeof *x->kept.top, "kept logits", err));
    if (!x->e->v.save_logits)
        return 0;
    TRY(logits_create(&x->save, x->e->v.save_logits, &h, done, err));
    x->saving = true;
    return 0;
}

/* ------------------------------------------------------------------ a window */

static int add_kl(struct sums *s, double kl, dsv4_err *err)
{
    if (!isfinite(kl))
        return err_set(err, DSV4_FAILED, "the divergence is not finite");
    return json_array_append_new(s->kl, json_real(kl)) == 0 ? 0 : json_made(NULL, err);
}

static int add_compared(struct measure *x, struct sums *s, const float *q, const float *p,
                        int32_t next, dsv4_err *err)
{
    if (p) {
        double kl = row_kl(p, q, x->vocab);
        s->same += row_best(p, x->vocab) == row_best(q, x->vocab);
        s->other_nll += row_scale(p, x->vocab) - (double)p[next];
        s->low += kl;
        return add_kl(s, kl, err);
    }
    TRY(logits_next(&x->reference, &x->kept, err));
    struct kl_estimate k = row_kl_kept(&x->kept, q, x->vocab);
    s->same += x->kept.n_top > 0 && x->kept.top[0].id == row_best(q, x->vocab);
    s->other_nll += (double)x->kept.nll;
    s->low += k.low;
    s->variance += k.variance;
    return add_kl(s, k.kl, err);
}

/* Row i of the window: its logits say what token i of the text is. */
static int add_row(struct measure *x, struct sums *s, const struct window *w, size_t i,
                   const float *q, const float *p, dsv4_err *err)
{
    int32_t next = x->texts.ids[w->at + i];
    double nll = row_scale(q, x->vocab) - (double)q[next];
    if (!isfinite(nll))
        return err_set(err, DSV4_FAILED, "the model's logits are not finite");
    s->nll += nll;
    s->nll_squared += nll * nll;
    s->counted++;
    if (s->kl)
        TRY(add_compared(x, s, q, p, next, err));
    if (x->saving) {
        row_keep(&x->kept, q, x->vocab, next, x->e->v.top, w->at + i);
        TRY(logits_add(&x->save, &x->kept, err));
    }
    return 0;
}

static int compute(struct measure *x, struct side *s, size_t n, dsv4_err *err)
{
    double begin = clock_seconds();
    for (size_t i = 0; i < n; i++)
        x->row[i].seq = s->seq;
    TRY(dsv4_eval(s->m.engine, x->row, n, s->logits, err));
    s->seconds += clock_seconds() - begin;
    return 0;
}

/* Every row's logits are wanted, those that --skip leaves out too: what a row is worth must not depend on
 * what is counted. */
static int run_window(struct measure *x, const struct window *w, struct sums *s, dsv4_err *err)
{
    int32_t bos = dsv4_engine_bos(x->side[0].m.engine);
    bool other = x->side[1].seq != NULL;
    for (int k = 0; k <= other; k++) {
        TRY(dsv4_seq_rewind(x->side[k].seq, 0, err));
        x->side[k].seconds = 0;
    }
    for (size_t at = 0, n; at < w->n; at += n) {
        n = w->n - at < x->rows ? w->n - at : x->rows;
        for (size_t i = 0; i < n; i++) {
            int32_t first = bos < 0 ? x->texts.ids[w->at] : bos;
            x->row[i] = (dsv4_row){.token = at + i == 0 ? first : x->texts.ids[w->at + at + i - 1],
                                   .logits = true};
        }
        for (int k = 0; k <= other; k++)
            TRY(compute(x, &x->side[k], n, err));
        for (size_t i = 0; i < n; i++)
            if (at + i >= x->e->v.skip)
                TRY(add_row(x, s, w, at + i, x->side[0].logits + i * x->vocab,
                            other ? x->side[1].logits + i * x->vocab : NULL, err));
        TRY(eval_stopped(x->e, err));
    }
    return 0;
}

static json_t *unit_of(const struct measure *x, const struct window *w, const struct sums *s)
{
    json_t *j = json_pack("{s:I, s:I, s:I, s:f, s:f, s:f}", "file", (json_int_t)w->file, "rows",
                          (json_int_t)w->n, "counted", (json_int_t)s->counted, "nll", s->nll,
                          "nll_squared", s->nll_squared, "seconds", x->side[0].seconds);
    if (!j || !s->kl)
        return j;
    json_t *more =
        json_pack("{s:f, s:f, s:f, s:I, s:f, s:O}", "reference_nll", s->other_nll, "kl_low", s->low,
                  "kl_variance", s->variance, "same", (json_int_t)s->same, "reference_seconds",
                  x->side[1].seconds, "kl", s->kl);
    int rc = more ? json_object_update(j, more) : -1;
    json_decref(more);
    if (rc == 0)
        return j;
    json_decref(j);
    return NULL;
}

static int measure_window(struct measure *x, size_t i, dsv4_err *err)
{
    const struct window *w = &x->texts.window[i];
    struct sums s = {0};
    if (x->side[1].seq || x->comparing)
        TRY(json_made(s.kl = json_array(), err));
    int rc = x->comparing ? logits_window(&x->reference, (uint32_t)i, err) : 0;
    if (rc == 0)
        rc = run_window(x, w, &s, err);
    if (rc == 0 && x->saving)
        rc = logits_end_window(&x->save, err);
    if (rc == 0)
        rc = eval_state_add(&x->state, unit_of(x, w, &s), err);
    json_decref(s.kl);
    return rc;
}

static int measure_all(struct measure *x, dsv4_err *err)
{
    const json_t *units = x->state.units;
    struct eval_progress g = {&x->e->p.term, "perplexity", clock_seconds(), 0, x->texts.n_ids};
    for (size_t i = 0; i < json_array_size(units); i++)
        g.before += x->texts.window[i].n;
    uint64_t done = g.before;
    for (size_t i = json_array_size(units); i < x->texts.n_windows; i++) {
        TRY(measure_window(x, i, err));
        done += x->texts.window[i].n;
        eval_progress_show(&g, done, "%llu tokens, perplexity %.4f", (unsigned long long)done,
                           exp(eval_sum(units, "nll") / eval_sum(units, "counted")));
    }
    return 0;
}

/* ------------------------------------------------------------------ the result */

static double rate(const json_t *units, const char *seconds)
{
    double s = eval_sum(units, seconds);
    return s > 0 ? eval_sum(units, "rows") / s : 0;
}

static int put_perplexity(json_t *to, const json_t *units, dsv4_err *err)
{
    double n = eval_sum(units, "counted"), mean = eval_sum(units, "nll") / n;
    double spread = eval_sum(units, "nll_squared") / n - mean * mean;
    /* of the mean of n values, carried over to its exponential */
    double error = n > 1 ? exp(mean) * sqrt(fmax(spread, 0) / (n - 1)) : 0;
    TRY(eval_put(to, "tokens", json_integer((json_int_t)n), err));
    TRY(eval_put(to, "nll", json_real(eval_sum(units, "nll")), err));
    TRY(eval_put(to, "perplexity", json_real(exp(mean)), err));
    TRY(eval_put(to, "perplexity_error", json_real(error), err));
    TRY(eval_put(to, "seconds", json_real(eval_sum(units, "seconds")), err));
    return eval_put(to, "tokens_per_second", json_real(rate(units, "seconds")), err);
}

static int put_kl(json_t *to, const json_t *units, dsv4_err *err)
{
    double n = eval_sum(units, "counted"), sum = 0, *all = NULL;
    size_t count = 0, i, k;
    const json_t *u, *v;
    TRY(mem_alloc(&all, (size_t)n, sizeof *all, "divergences", err));
    json_array_foreach(units, i, u) json_array_foreach(json_object_get(u, "kl"), k, v)
    {
        if (count < (size_t)n)
            all[count++] = json_number_value(v);
    }
    for (i = 0; i < count; i++)
        sum += all[i];
    double half = quantile(all, count, 0.5), most = quantile(all, count, 0.99);
    json_t *j = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "mean", sum / n, "mean_error",
                          sqrt(eval_sum(units, "kl_variance")) / n, "mean_at_least",
                          eval_sum(units, "kl_low") / n, "median", half, "p99", most, "max",
                          all[count - 1]);
    free(all);
    TRY(eval_put(to, "kl", j, err));
    TRY(eval_put(to, "same_top", json_real(eval_sum(units, "same") / n), err));
    return eval_put(to, "reference_perplexity",
                    json_real(exp(eval_sum(units, "reference_nll") / n)), err);
}

/* The windows of one file. */
static int put_file(struct measure *x, json_t *list, size_t file, dsv4_err *err)
{
    json_t *own = json_array(), *j = json_object();
    size_t i;
    json_t *u;
    int rc = own && j ? 0 : json_made(NULL, err);
    json_array_foreach(x->state.units, i, u)
    {
        if (rc == 0 && (size_t)real_of(u, "file") == file && json_array_append(own, u) != 0)
            rc = json_made(NULL, err);
    }
    if (rc == 0)
        rc = eval_put(j, "path", json_string(x->e->p.argv[file]), err);
    if (rc == 0 && eval_sum(own, "counted") > 0)
        rc = put_perplexity(j, own, err);
    if (rc == 0 && json_array_append(list, j) != 0)
        rc = json_made(NULL, err);
    json_decref(own);
    json_decref(j);
    return rc;
}

static int put_result(struct measure *x, dsv4_err *err)
{
    json_t *r = x->e->result, *units = x->state.units, *list;
    bool compared = x->side[1].seq || x->comparing;
    size_t i;
    json_t *u;
    json_array_foreach(units, i, u)
    {
        uint64_t wanted = counted(x->e, x->texts.window[i].n);
        if ((uint64_t)json_integer_value(json_object_get(u, "counted")) != wanted ||
            (compared && json_array_size(json_object_get(u, "kl")) != wanted))
            return err_set(err, DSV4_REFUSED, "%s: unit %zu is not complete",
                           x->state.path ? x->state.path : "the state", i + 1);
    }
    TRY(put_perplexity(r, units, err));
    if (compared)
        TRY(put_kl(r, units, err));
    if (x->side[1].seq)
        TRY(eval_put(r, "reference_tokens_per_second", json_real(rate(units, "reference_seconds")),
                     err));
    TRY(eval_put(r, "files", list = json_array(), err));
    for (int f = 0; f < x->e->p.argc; f++)
        TRY(put_file(x, list, (size_t)f, err));
    return 0;
}

/* ------------------------------------------------------------------ all of it */

static int set_up(struct measure *x, dsv4_err *err)
{
    struct eval *e = x->e;
    if (e->v.reference) {
        TRY(logits_open(&x->reference, e->v.reference, err));
        x->comparing = true;
    }
    TRY(open_side(x, false, err));
    if (eval_has_other(&e->v)) {
        TRY(open_side(x, true, err));
        TRY(same_tokens(x, err));
    }
    TRY(read_texts(e, &x->texts, dsv4_engine_tokenizer(x->side[0].m.engine), err));
    TRY(put_task(x, err));
    TRY(eval_state_open(&x->state, e->v.state, e->task, err));
    TRY(mem_alloc(&x->row, x->rows, sizeof *x->row, "rows", err));
    return open_files(x, err);
}

int eval_perplexity(struct eval *e, dsv4_err *err)
{
    struct measure x = {.e = e, .save = {.fd = -1}, .reference = {.fd = -1}, .state = {.fd = -1}};
    dsv4_err later;
    int rc = set_up(&x, err);
    if (rc == 0)
        rc = measure_all(&x, err);
    if (x.saving) {
        int closed = logits_finish(&x.save, rc == 0, e->v.state != NULL, rc == 0 ? err : &later);
        rc = rc != 0 ? rc : closed;
    }
    if (rc == 0)
        rc = put_result(&x, err);
    for (int k = 0; k < 2; k++) {
        dsv4_seq_close(x.side[k].seq);
        close_model(&x.side[k].m);
        free(x.side[k].logits);
    }
    logits_close(&x.reference);
    eval_state_close(&x.state);
    texts_release(&x.texts);
    free(x.row);
    free(x.kept.top);
    return rc;
}
