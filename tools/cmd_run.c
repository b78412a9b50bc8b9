/* Commands that feed tokens as they are: run continues them, logits writes what the model thinks
 * behind each, perplexity measures a text. */
#include "tools.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ feeding */

/* Hands tokens to the engine in the pieces that --chunks asks for. */
struct feeder {
    struct program *p;
    dsv4_engine *engine;
    dsv4_seq *seq;
    size_t *chunk, n_chunks, at;
    size_t step; /* piece size when the list is over; 0: all the rest */
    dsv4_row *rows;
    size_t rows_cap;
    float *logits; /* NULL: not wanted */
    size_t logits_cap;
};

/* What is done with the logits of rows [first, first + n). */
typedef int (*rows_fn)(void *arg, size_t first, size_t n, const float *logits, dsv4_err *err);

static int feeder_open(struct feeder *f, struct program *p, dsv4_engine *e, dsv4_err *err)
{
    *f = (struct feeder){.p = p, .engine = e};
    TRY(chunks_parse(p->a.chunks, &f->chunk, &f->n_chunks, err));
    int rc = p->a.load ? dsv4_seq_load(&f->seq, e, p->a.load, err) : dsv4_seq_open(&f->seq, e, err);
    if (rc != 0) {
        free(f->chunk);
        f->chunk = NULL;
    }
    return rc;
}

static void feeder_close(struct feeder *f)
{
    dsv4_seq_close(f->seq);
    free(f->chunk);
    free(f->rows);
    free(f->logits);
    *f = (struct feeder){0};
}

static size_t next_chunk(struct feeder *f, size_t left)
{
    size_t n = f->at < f->n_chunks ? f->chunk[f->at++] : f->step ? f->step : left;
    return n < left ? n : left;
}

/* Evaluates n tokens in one call; their logits go to fn (NULL: none wanted). */
static int feed_chunk(struct feeder *f, const int32_t *ids, size_t first, size_t n, rows_fn fn,
                      void *arg, dsv4_err *err)
{
    size_t width = dsv4_engine_vocab(f->engine), want;
    TRY(mem_grow(&f->rows, &f->rows_cap, n, sizeof *f->rows, "rows", err));
    if (fn) {
        if (!size_mul(n, width, &want))
            return err_memory(err, UINT64_MAX, "logits");
        TRY(mem_grow(&f->logits, &f->logits_cap, want, sizeof *f->logits, "logits", err));
    }
    for (size_t i = 0; i < n; i++)
        f->rows[i] = (dsv4_row){.seq = f->seq, .token = ids[i], .logits = fn != NULL};
    TRY(dsv4_eval(f->engine, f->rows, n, fn ? f->logits : NULL, err));
    if (interrupted())
        return err_set(err, DSV4_INTERRUPTED, "interrupted");
    return fn ? fn(arg, first, n, f->logits, err) : 0;
}

static int feed(struct feeder *f, const int32_t *ids, size_t n, rows_fn fn, void *arg,
                dsv4_err *err)
{
    for (size_t done = 0, chunk; done < n; done += chunk) {
        chunk = next_chunk(f, n - done);
        TRY(feed_chunk(f, ids + done, done, chunk, fn, arg, err));
    }
    return 0;
}

/* Rows whose logits fit 32 MB, at least one. */
static size_t rows_in_memory(const dsv4_engine *e)
{
    size_t n = ((size_t)32 << 20) / sizeof(float) / dsv4_engine_vocab(e);
    return n < 1 ? 1 : n > 256 ? 256 : n;
}

static int fits(struct program *p, const dsv4_engine *e, size_t n, const char *what, dsv4_err *err)
{
    if (n > dsv4_engine_ctx(e))
        return err_set(err, DSV4_FAILED, "%s of %zu tokens and the context holds %zu%s", what, n,
                       dsv4_engine_ctx(e), p->a.ctx ? " (--ctx)" : "");
    return 0;
}

/* ------------------------------------------------------------------ run */

struct run {
    struct program *p;
    struct model_handle model;
    dsv4_sampling sampling;
    dsv4_bias *bias;
    dsv4_grammar *grammar; /* --grammar, --json-schema */
    struct feeder feeder;
    struct bytes text; /* --out, --json */
    int32_t *ids;
    size_t n_ids, ids_cap;
    json_t *logprobs;
    int rc;       /* of what went wrong inside a callback ... */
    dsv4_err why; /* ... and its message */
};

static int run_token(struct run *r, const dsv4_token *token)
{
    struct program *p = r->p;
    TRY(mem_grow(&r->ids, &r->ids_cap, r->n_ids + 1, sizeof *r->ids, "token ids", &r->why));
    r->ids[r->n_ids++] = token->chosen.token;
    if (r->logprobs) {
        json_t *l = logprob_json(dsv4_engine_tokenizer(r->model.engine), token, p->a.logprobs);
        if (json_array_append_new(r->logprobs, l) != 0)
            return json_made(NULL, &r->why);
    }
    if (p->a.json || p->a.out)
        return bytes_add(&r->text, token->text, token->len, &r->why);
    if (p->a.ids)
        stream_printf(&p->term.out, "%s%d", r->n_ids > 1 ? " " : "", (int)token->chosen.token);
    else
        stream_foreign(&p->term.out, token->text, token->len);
    status_clear(&p->term);
    return stream_flush(&p->term.out, &r->why);
}

static bool on_run_token(void *arg, const dsv4_token *token)
{
    struct run *r = arg;
    if (r->rc == 0)
        r->rc = run_token(r, token);
    return r->rc != 0 || interrupted();
}

static bool on_run_prefilled(void *arg, size_t done, size_t n)
{
    struct run *r = arg;
    if (n > 256)
        status_show(&r->p->term, "reading, %zu of %zu tokens", done, n);
    return interrupted();
}

/* Nothing is appended to what --load brought: its last token is computed once more, for its logits. */
static int run_again(struct run *r, int32_t **ids, size_t *n, dsv4_err *err)
{
    dsv4_seq *s = r->feeder.seq;
    size_t len = dsv4_seq_len(s);
    if (len == 0)
        return 0;
    TRY(mem_alloc(ids, 1, sizeof **ids, "token ids", err));
    **ids = dsv4_seq_tokens(s)[len - 1];
    *n = 1;
    return dsv4_seq_rewind(s, len - 1, err);
}

/* Ids of --ids-file, or of the text behind BOS, or behind what was loaded. */
static int run_input(struct run *r, int32_t **ids, size_t *n, dsv4_err *err)
{
    struct program *p = r->p;
    bool given = p->argc > 0 || p->a.files.n > 0 || p->a.ids_file;
    if (p->a.load && !given && isatty(STDIN_FILENO))
        return run_again(r, ids, n, err);
    const dsv4_engine *e = r->model.engine;
    if (p->a.ids_file)
        return ids_read(p->a.ids_file, dsv4_engine_vocab(e), ids, n, err);
    char *text;
    size_t len, count = 0;
    int32_t *plain = NULL, *all = NULL, bos = p->a.no_bos ? -1 : dsv4_engine_bos(e);
    TRY(input_text(p, 0, &text, &len, err));
    if (p->a.load && len == 0) {
        free(text);
        return run_again(r, ids, n, err);
    }
    if (dsv4_seq_len(r->feeder.seq) > 0)
        bos = -1;
    int rc = dsv4_encode(dsv4_engine_tokenizer(e), text, len, p->a.markers, &plain, &count, err);
    free(text);
    if (rc == 0 && bos < 0) {
        *ids = plain;
        *n = count;
        return 0;
    }
    if (rc == 0)
        rc = mem_alloc(&all, count + 1, sizeof *all, "token ids", err);
    if (rc == 0) {
        all[0] = bos;
        if (count)
            memcpy(all + 1, plain, count * sizeof *all);
        *ids = all;
        *n = count + 1;
    }
    dsv4_free(plain);
    return rc;
}

/* All of the prompt but its last piece is fed here, so that --chunks decides about every call. */
static int run_generate(struct run *r, const int32_t *ids, size_t n, dsv4_generated *g,
                        dsv4_err *err)
{
    struct args *a = &r->p->a;
    struct feeder *f = &r->feeder;
    size_t done = 0, chunk = next_chunk(f, n);
    double begin = clock_seconds();
    while (done + chunk < n) {
        TRY(feed_chunk(f, ids + done, done, chunk, NULL, NULL, err));
        done += chunk;
        chunk = next_chunk(f, n - done);
    }
    double before = clock_seconds() - begin;
    dsv4_generate_options opt = {.sampling = r->sampling,
                                 .max_tokens = a->max_tokens,
                                 .stops = a->stop.item,
                                 .n_stops = a->stop.n,
                                 .ignore_eos = a->ignore_eos,
                                 .grammar = r->grammar,
                                 .n_top = r->logprobs ? a->logprobs : 0,
                                 .prefilled = on_run_prefilled,
                                 .token = on_run_token,
                                 .arg = r};
    int rc = dsv4_generate(r->model.engine, f->seq, ids + done, chunk, &opt, g, err);
    if (r->rc != 0) { /* the reason, and not that the callback asked to stop */
        *err = r->why;
        return r->rc;
    }
    g->n_prompt += done;
    g->prompt_seconds += before;
    return rc;
}

static const char *stop_name(dsv4_stop s)
{
    static const char *const names[] = {"eos", "stop", "length", "context"}; /* ORDER dsv4_stop */
    return names[s];
}

static json_t *ids_json(const int32_t *ids, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < n; i++)
        if (json_array_append_new(list, json_integer(ids[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static int run_json(struct run *r, const dsv4_generated *g, json_t **out, dsv4_err *err)
{
    json_t *v =
        json_pack("{s:s, s:s%, s:o, s:s, s:I}", "model", r->model.name, "text",
                  r->text.data ? r->text.data : "", r->text.len, "ids", ids_json(r->ids, r->n_ids),
                  "stop", stop_name(g->stop), "seed", (json_int_t)r->sampling.seed);
    TRY(json_made(v, err));
    int rc = statistics_json(v, g, err);
    if (rc == 0 && r->logprobs && json_object_set(v, "logprobs", r->logprobs) != 0)
        rc = json_made(NULL, err);
    if (rc != 0)
        json_decref(v);
    else
        *out = v;
    return rc;
}

static int ids_text(const struct run *r, struct bytes *b, dsv4_err *err)
{
    for (size_t i = 0; i < r->n_ids; i++)
        TRY(bytes_printf(b, err, "%s%d", i ? " " : "", (int)r->ids[i]));
    return bytes_text(b, "\n", err);
}

static int run_output(struct run *r, const dsv4_generated *g, dsv4_err *err)
{
    struct program *p = r->p;
    struct stream *out = &p->term.out;
    json_t *v = NULL;
    if (p->a.json)
        TRY(run_json(r, g, &v, err));
    if (!p->a.out) {
        if (v)
            return json_print(p, v, err);
        stream_foreign_end(out);
        if (p->a.ids || (out->tty && !out->line_start))
            stream_text(out, "\n");
        return stream_flush(out, err);
    }
    struct bytes b = {0};
    int rc = 0;
    if (v) {
        char *text = json_text(v, JSON_COMPACT);
        rc = text ? bytes_printf(&b, err, "%s\n", text) : json_made(NULL, err);
        free(text);
    } else if (p->a.ids) {
        rc = ids_text(r, &b, err);
    }
    json_decref(v);
    bool plain = !p->a.json && !p->a.ids;
    if (rc == 0)
        rc = sink_file(p->a.out, plain ? r->text.data : b.data, plain ? r->text.len : b.len, err);
    free(b.data);
    return rc;
}

/* The last token was told and not computed: it belongs to what is saved, unless it ended the text. */
static int run_save(struct run *r, const dsv4_generated *g, dsv4_err *err)
{
    dsv4_seq *s = r->feeder.seq;
    if (g->stop == DSV4_STOP_LIMIT && r->n_ids > 0) {
        dsv4_row row = {.seq = s, .token = r->ids[r->n_ids - 1]};
        TRY(dsv4_eval(r->model.engine, &row, 1, NULL, err));
    }
    return dsv4_seq_save(s, r->p->a.save, err);
}

static int run_grammar(struct run *r, dsv4_err *err)
{
    const struct args *a = &r->p->a;
    const dsv4_tokenizer *t = dsv4_engine_tokenizer(r->model.engine);
    char *text;
    size_t len;
    if (!a->grammar && !a->json_schema)
        return 0;
    if (a->grammar && a->json_schema)
        return err_set(err, DSV4_USAGE, "--grammar and --json-schema; one of them is enough");
    TRY(file_read(a->grammar ? a->grammar : a->json_schema, (size_t)4 << 20, &text, &len, err));
    int rc = a->grammar ? dsv4_grammar_open(&r->grammar, t, text, len, err)
                        : dsv4_grammar_json_schema(&r->grammar, t, text, len, err);
    free(text);
    return rc;
}

static int run(struct run *r, dsv4_err *err)
{
    struct program *p = r->p;
    int32_t *ids = NULL;
    size_t n = 0;
    dsv4_generated g = {0};
    TRY(sampling_options(p, NULL, &r->sampling, &r->bias, err));
    free(r->bias);
    r->bias = NULL;
    TRY(open_model(p, &r->model, err));
    TRY(sampling_options(p, r->model.engine, &r->sampling, &r->bias, err));
    TRY(run_grammar(r, err));
    TRY(feeder_open(&r->feeder, p, r->model.engine, err));
    if (p->a.json && p->a.logprobs > 0)
        TRY(json_made(r->logprobs = json_array(), err));
    TRY(run_input(r, &ids, &n, err));
    int rc = n == 0 ? err_set(err, DSV4_USAGE, "nothing to continue: the text is empty")
                    : fits(p, r->model.engine, n, "a prompt", err);
    if (rc == 0)
        rc = run_generate(r, ids, n, &g, err);
    status_clear(&p->term);
    dsv4_free(ids);
    if (rc == 0)
        rc = run_output(r, &g, err);
    if (rc == 0 && p->a.save)
        rc = run_save(r, &g, err);
    if (rc == 0)
        statistics(p, &g);
    return rc;
}

int cmd_run(struct program *p, dsv4_err *err)
{
    if (p->a.ids_file && (p->argc > 0 || p->a.files.n > 0))
        return err_set(err, DSV4_USAGE, "--ids-file and a text; one of them is enough");
    struct run r = {.p = p};
    int rc = run(&r, err);
    feeder_close(&r.feeder);
    free(r.text.data);
    free(r.ids);
    free(r.bias);
    json_decref(r.logprobs);
    dsv4_grammar_close(r.grammar);
    close_model(&r.model);
    return rc;
}

/* ------------------------------------------------------------------ logits */

/* A NumPy header, version 1.0: float32 [n][width] in C order, padded to 64 bytes. */
static int npy_header(struct bytes *b, size_t n, size_t width, dsv4_err *err)
{
    static const char magic[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0};
    struct bytes d = {0};
    const union {
        uint16_t v;
        uint8_t b[2];
    } order = {.v = 1};
    int rc =
        bytes_printf(&d, err, "{'descr': '%cf4', 'fortran_order': False, 'shape': (%zu, %zu), }",
                     order.b[0] ? '<' : '>', n, width);
    while (rc == 0 && (sizeof magic + 2 + d.len + 1) % 64 != 0)
        rc = bytes_text(&d, " ", err);
    if (rc == 0)
        rc = bytes_text(&d, "\n", err);
    const uint8_t size[2] = {(uint8_t)(d.len & 255), (uint8_t)(d.len >> 8)};
    if (rc == 0)
        rc = bytes_add(b, magic, sizeof magic, err);
    if (rc == 0)
        rc = bytes_add(b, size, sizeof size, err);
    if (rc == 0)
        rc = bytes_add(b, d.data, d.len, err);
    free(d.data);
    return rc;
}

struct logits {
    struct sink sink;
    struct terminal *term;
    size_t n, width;
    bool started; /* the header is written with the first rows */
};

static int write_rows(void *arg, size_t first, size_t n, const float *logits, dsv4_err *err)
{
    struct logits *l = arg;
    if (!l->started) {
        struct bytes b = {0};
        int rc = npy_header(&b, l->n, l->width, err);
        if (rc == 0)
            rc = sink_write(&l->sink, b.data, b.len, err);
        free(b.data);
        TRY(rc);
        l->started = true;
    }
    status_show(l->term, "%zu of %zu tokens", first + n, l->n);
    return sink_write(&l->sink, logits, n * l->width * sizeof *logits, err);
}

static int write_logits(struct program *p, dsv4_engine *e, const int32_t *ids, size_t n,
                        dsv4_err *err)
{
    struct feeder f;
    struct logits l = {.term = &p->term, .n = n, .width = dsv4_engine_vocab(e)};
    double begin = clock_seconds();
    TRY(fits(p, e, n, "a list", err));
    TRY(feeder_open(&f, p, e, err));
    f.step = rows_in_memory(e);
    int rc = sink_open(&l.sink, p->a.out ? p->a.out : "-", err);
    if (rc == 0)
        rc = sink_close(&l.sink, feed(&f, ids, n, write_rows, &l, err), err);
    status_clear(&p->term);
    feeder_close(&f);
    if (rc == 0)
        statistics(p, &(dsv4_generated){.n_prompt = n, .prompt_seconds = clock_seconds() - begin});
    return rc;
}

int cmd_logits(struct program *p, dsv4_err *err)
{
    struct model_handle m;
    int32_t *ids = NULL;
    size_t n = 0;
    if (!p->a.ids_file)
        return err_set(err, DSV4_USAGE, "something is missing: dsv4 logits --ids-file FILE");
    if (p->term.out.tty && (!p->a.out || strcmp(p->a.out, "-") == 0))
        return err_set(err, DSV4_USAGE, "logits are binary; give --out FILE or a pipe");
    TRY(open_model(p, &m, err));
    int rc = ids_read(p->a.ids_file, dsv4_engine_vocab(m.engine), &ids, &n, err);
    if (rc == 0 && n == 0)
        rc = err_set(err, DSV4_REFUSED, "%s: no token ids", p->a.ids_file);
    if (rc == 0)
        rc = write_logits(p, m.engine, ids, n, err);
    free(ids);
    close_model(&m);
    return rc;
}

/* ------------------------------------------------------------------ perplexity */

struct measure {
    const int32_t *next; /* next[i] is what row i of this window should have said */
    size_t width;
    double nll;
};

static int add_nll(void *arg, size_t first, size_t n, const float *logits, dsv4_err *err)
{
    struct measure *m = arg;
    for (size_t i = 0; i < n; i++) {
        const float *row = logits + i * m->width;
        m->nll += row_scale(row, m->width) - (double)row[m->next[first + i]];
    }
    if (!isfinite(m->nll))
        return err_set(err, DSV4_FAILED, "the model's logits are not finite");
    return 0;
}

/* Windows of `body` tokens, each behind BOS. win has room for body + 1 ids. */
static int measure(struct program *p, struct feeder *f, const int32_t *ids, size_t n, int32_t *win,
                   size_t body, double *nll, dsv4_err *err)
{
    struct measure m = {.width = dsv4_engine_vocab(f->engine)};
    int32_t bos = dsv4_engine_bos(f->engine);
    for (size_t at = 0, k; at < n; at += k) {
        k = n - at < body ? n - at : body;
        win[0] = bos < 0 ? ids[at] : bos;
        memcpy(win + 1, ids + at, k * sizeof *win);
        TRY(dsv4_seq_rewind(f->seq, 0, err));
        f->at = 0;
        m.next = win + 1;
        TRY(feed(f, win, k, add_nll, &m, err));
        status_show(&p->term, "%zu of %zu tokens, perplexity %.4f", at + k, n,
                    exp(m.nll / (double)(at + k)));
    }
    *nll = m.nll;
    return 0;
}

static int report_perplexity(struct program *p, const struct model_handle *m, double nll, size_t n,
                             size_t body, dsv4_err *err)
{
    double ppl = exp(nll / (double)n);
    if (p->a.json)
        return json_print(p,
                          json_pack("{s:s, s:f, s:f, s:I, s:I}", "model", m->name, "perplexity",
                                    ppl, "nll", nll, "tokens", (json_int_t)n, "window",
                                    (json_int_t)body + 1),
                          err);
    stream_printf(&p->term.out, "perplexity %.6f (%zu tokens, windows of %zu behind BOS)\n", ppl, n,
                  body);
    return stream_flush(&p->term.out, err);
}

static int perplexity(struct program *p, const struct model_handle *m, const int32_t *ids, size_t n,
                      dsv4_err *err)
{
    size_t ctx = dsv4_engine_ctx(m->engine), window = p->a.window ? p->a.window : 512;
    if (window > ctx && p->a.window)
        return err_set(err, DSV4_USAGE, "--window %zu: the context holds %zu tokens", window, ctx);
    if (window > ctx)
        window = ctx;
    size_t body = window - 1;
    if (n == 0 || body == 0)
        return err_set(err, DSV4_USAGE, "no text to measure");
    if (body > n)
        body = n;
    struct feeder f;
    int32_t *win = NULL;
    double nll = 0, begin = clock_seconds();
    TRY(feeder_open(&f, p, m->engine, err));
    f.step = rows_in_memory(m->engine);
    int rc = mem_alloc(&win, body + 1, sizeof *win, "a window", err);
    if (rc == 0)
        rc = measure(p, &f, ids, n, win, body, &nll, err);
    status_clear(&p->term);
    free(win);
    feeder_close(&f);
    TRY(rc);
    TRY(report_perplexity(p, m, nll, n, body, err));
    statistics(p, &(dsv4_generated){.n_prompt = n, .prompt_seconds = clock_seconds() - begin});
    return 0;
}

int cmd_perplexity(struct program *p, dsv4_err *err)
{
    char *raw, *text = NULL;
    size_t raw_len, len = 0, n = 0;
    int32_t *ids = NULL;
    struct model_handle m = {0};
    TRY(file_read(p->argv[0], TEXT_LIMIT, &raw, &raw_len, err));
    int rc = text_repair(p, p->argv[0], raw, raw_len, &text, &len, err);
    free(raw);
    if (rc == 0)
        rc = open_model(p, &m, err);
    if (rc == 0)
        rc = dsv4_encode(dsv4_engine_tokenizer(m.engine), text, len, false, &ids, &n, err);
    free(text);
    if (rc == 0)
        rc = perplexity(p, &m, ids, n, err);
    dsv4_free(ids);
    close_model(&m);
    return rc;
}
