/* A needle in a haystack: is a sentence that stood at some depth of a long text still known at its end? A
 * unit is one text. Texts of a seed differ only in where the needle sits and where they end, so all of them
 * are forks of one sequence that holds the hay. */
#include "eval_needle.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_LENGTHS = 64, MAX_DEPTHS = 101, MIN_LENGTH = 32, MAX_LENGTH = 1 << 24 };

/* Ids that grow. */
struct ids {
    int32_t *id;
    size_t n, cap;
};

struct cell {
    uint32_t length, depth; /* tokens, percent */
    size_t put, end;        /* in hay: the needle goes before `put`, the text ends before `end` */
};

struct grid {
    struct eval *e;
    uint32_t length[MAX_LENGTHS], depth[MAX_DEPTHS];
    size_t n_lengths, n_depths, n_cells;
    struct eval_state state;
    struct eval_progress progress;
    /* of the model that runs */
    struct model_handle m;
    struct ids head, tail; /* before the hay; behind the question */
    /* of the seed that runs */
    uint64_t seed;
    struct needle needle;
    struct ids hay, statement, question;
    size_t *sentence, n_sentences,
        cap_sentences; /* where sentences begin in hay; the last: its end */
    struct cell *cell; /* [n_cells], by `put` */
    dsv4_seq *base;    /* head and the beginning of hay */
};

/* ------------------------------------------------------------------ lists of the command line */

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int read_list(const char *option, const char *text, uint32_t least, uint32_t most,
                     uint32_t *out, size_t room, size_t *n, dsv4_err *err)
{
    *n = 0;
    for (const char *p = text;;) {
        char word[16] = "";
        uint64_t u = 0;
        size_t len = strcspn(p, ",");
        if (len < sizeof word)
            memcpy(word, p, len);
        if (!opt_number_u64(word, &u) || u < least || u > most)
            return err_set(err, DSV4_USAGE, "%s: \"%s\" is no list of numbers from %u to %u",
                           option, text, least, most);
        if (*n == room)
            return err_set(err, DSV4_USAGE, "%s: more than %zu numbers", option, room);
        out[(*n)++] = (uint32_t)u;
        if (!p[len])
            break;
        p += len + 1;
    }
    qsort(out, *n, sizeof *out, by_number);
    for (size_t i = 1; i < *n; i++)
        if (out[i] == out[i - 1])
            return err_set(err, DSV4_USAGE, "%s: %u stands there twice", option, out[i]);
    return 0;
}

/* ------------------------------------------------------------------ ids */

static int ids_add(struct ids *to, const int32_t *id, size_t n, dsv4_err *err)
{
    TRY(mem_grow(&to->id, &to->cap, to->n + n, sizeof *id, "token ids", err));
    if (n > 0)
        memcpy(to->id + to->n, id, n * sizeof *id);
    to->n += n;
    return 0;
}

static int ids_text(struct ids *to, const struct grid *g, const char *text, dsv4_err *err)
{
    int32_t *id;
    size_t n;
    TRY(dsv4_encode(dsv4_engine_tokenizer(g->m.engine), text, strlen(text), false, &id, &n, err));
    int rc = ids_add(to, id, n, err);
    dsv4_free(id);
    return rc;
}

static int ids_prompt(struct ids *to, const struct grid *g, const dsv4_prompt *p, dsv4_err *err)
{
    int32_t *id;
    size_t n;
    TRY(dsv4_encode_prompt(dsv4_engine_tokenizer(g->m.engine), p, &id, &n, err));
    int rc = ids_add(to, id, n, err);
    dsv4_free(id);
    return rc;
}

/* What the chat format writes before and behind a user's message. */
static int chat_ends(struct grid *g, dsv4_err *err)
{
    static const char message[] = "HAYSTACK";
    static const char json[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"HAYSTACK\"}], "
                               "\"options\": {\"thinking_mode\": \"chat\"}}";
    dsv4_prompt *p;
    TRY(dsv4_render(dsv4_engine_dialect(g->m.engine), json, sizeof json - 1, &p, err));
    char *at = strstr(p->text, message);
    size_t here = at ? (size_t)(at - p->text) : 0, behind = here + sizeof message - 1, i = 0;
    int rc = at ? 0 : err_set(err, DSV4_FAILED, "the chat format changes messages");
    while (i < p->n_control && p->control[i].end <= here)
        i++;
    dsv4_prompt head = {.text = p->text, .len = here, .control = p->control, .n_control = i};
    dsv4_prompt tail = {.text = p->text + behind,
                        .len = p->len - behind,
                        .control = p->control + i,
                        .n_control = p->n_control - i};
    if (rc == 0)
        rc = ids_prompt(&g->head, g, &head, err);
    for (; rc == 0 && i < p->n_control; i++) {
        p->control[i].begin -= behind;
        p->control[i].end -= behind;
    }
    if (rc == 0)
        rc = ids_prompt(&g->tail, g, &tail, err);
    dsv4_prompt_close(p);
    return rc;
}

static int make_ends(struct grid *g, dsv4_err *err)
{
    int32_t bos = dsv4_engine_bos(g->m.engine);
    g->head.n = g->tail.n = 0;
    if (!g->e->v.raw)
        TRY(chat_ends(g, err));
    else if (bos >= 0)
        TRY(ids_add(&g->head, &bos, 1, err));
    TRY(ids_text(&g->head, g, "Read this text and answer the question.\n\nHere it is.", err));
    return g->e->v.raw ? ids_text(&g->tail, g, "\nAnswer:", err) : 0;
}

/* ------------------------------------------------------------------ the texts of a seed */

static int make_hay(struct grid *g, dsv4_err *err)
{
    uint64_t random = g->seed;
    uint32_t longest = g->length[g->n_lengths - 1];
    struct bytes b = {0};
    int rc = 0;
    g->hay.n = g->n_sentences = 0;
    while (rc == 0 && g->hay.n < longest) {
        rc = mem_grow(&g->sentence, &g->cap_sentences, g->n_sentences + 2, sizeof *g->sentence,
                      "sentences", err);
        if (rc == 0) {
            g->sentence[g->n_sentences++] = g->hay.n;
            b.len = 0;
            rc = filler_sentence(&b, &random, err);
        }
        if (rc == 0)
            rc = ids_text(&g->hay, g, b.data, err);
    }
    free(b.data);
    if (rc == 0)
        g->sentence[g->n_sentences] = g->hay.n;
    return rc;
}

/* The last place between sentences at or before `at`. */
static size_t boundary(const struct grid *g, size_t at)
{
    size_t low = 0, high = g->n_sentences;
    while (low < high) {
        size_t mid = (low + high + 1) / 2;
        if (g->sentence[mid] <= at)
            low = mid;
        else
            high = mid - 1;
    }
    return g->sentence[low];
}

static int by_put(const void *a, const void *b)
{
    const struct cell *x = a, *y = b;
    if (x->put != y->put)
        return x->put < y->put ? -1 : 1;
    if (x->length != y->length)
        return x->length < y->length ? -1 : 1;
    return (x->depth > y->depth) - (x->depth < y->depth);
}

static int make_cells(struct grid *g, dsv4_err *err)
{
    size_t other = g->head.n + g->statement.n + g->question.n + g->tail.n, n = 0;
    for (size_t l = 0; l < g->n_lengths; l++)
        for (size_t d = 0; d < g->n_depths; d++) {
            if (g->length[l] < other)
                return err_set(err, DSV4_USAGE,
                               "--lengths: %u is too short: needle, question and chat format alone "
                               "take %zu tokens of %s",
                               g->length[l], other, g->m.name);
            size_t end = boundary(g, g->length[l] - other);
            size_t put = boundary(g, (size_t)((double)end * g->depth[d] / 100));
            g->cell[n++] = (struct cell){g->length[l], g->depth[d], put, end};
        }
    qsort(g->cell, n, sizeof *g->cell, by_put);
    return 0;
}

static int begin_seed(struct grid *g, uint64_t seed, dsv4_err *err)
{
    g->seed = seed;
    filler_needle(&g->needle, seed);
    g->statement.n = g->question.n = 0;
    TRY(ids_text(&g->statement, g, g->needle.statement, err));
    TRY(ids_text(&g->question, g, g->needle.question, err));
    TRY(make_hay(g, err));
    TRY(make_cells(g, err));
    return dsv4_seq_rewind(g->base, 0, err);
}

/* ------------------------------------------------------------------ asking */

/* Appends hay to the base until the needle's place. Seconds are added. */
static int extend_base(struct grid *g, size_t put, double *seconds, dsv4_err *err)
{
    size_t step = g->e->v.a.batch ? g->e->v.a.batch : 256, want = g->head.n + put;
    double begin = clock_seconds();
    dsv4_row *row;
    TRY(mem_alloc(&row, step, sizeof *row, "rows", err));
    int rc = 0;
    for (size_t at, n = 0; rc == 0 && (at = dsv4_seq_len(g->base)) < want;) {
        for (n = 0; n < step && at + n < want; n++) {
            size_t i = at + n;
            int32_t id = i < g->head.n ? g->head.id[i] : g->hay.id[i - g->head.n];
            row[n] = (dsv4_row){.seq = g->base, .token = id};
        }
        rc = dsv4_eval(g->m.engine, row, n, NULL, err);
        if (rc == 0)
            rc = eval_stopped(g->e, err);
    }
    free(row);
    *seconds += clock_seconds() - begin;
    return rc;
}

static bool stop_prefill(void *arg, size_t done, size_t n)
{
    (void)arg, (void)done, (void)n;
    return interrupted();
}

struct heard {
    struct bytes text;
    dsv4_err *err;
    int rc;
};

static bool hear(void *arg, const dsv4_token *t)
{
    struct heard *h = arg;
    h->rc = bytes_add(&h->text, t->text, t->len, h->err);
    return h->rc != 0 || interrupted();
}

static int generate(struct grid *g, dsv4_seq *s, const struct ids *rest, struct heard *h,
                    dsv4_generated *done, dsv4_err *err)
{
    dsv4_generate_options o = {.sampling = dsv4_engine_sampling(g->m.engine),
                               .max_tokens = g->e->v.answer_tokens,
                               .prefilled = stop_prefill,
                               .token = hear,
                               .arg = h};
    o.sampling.temperature = 0;
    h->err = err;
    int rc = dsv4_generate(g->m.engine, s, rest->id, rest->n, &o, done, err);
    if (h->rc != 0)
        return h->rc;
    if (rc == DSV4_INTERRUPTED)
        return eval_stopped(g->e, err);
    return rc != 0 ? rc : bytes_add(&h->text, "", 0, err);
}

static int make_unit(struct grid *g, const struct cell *c, const struct ids *rest,
                     const struct heard *h, const dsv4_generated *done, size_t before,
                     double seconds, dsv4_err *err)
{
    size_t prompt = g->head.n + c->put + rest->n;
    bool found = strstr(h->text.data, g->needle.answer) != NULL;
    json_t *j = json_pack("{s:I, s:I, s:I, s:I, s:b, s:s, s:s, s:I, s:I, s:f, s:I, s:f}", "seed",
                          (json_int_t)g->seed, "length", (json_int_t)c->length, "depth",
                          (json_int_t)c->depth, "tokens", (json_int_t)prompt, "found", (int)found,
                          "wanted", g->needle.answer, "answer", h->text.data, "correct",
                          (json_int_t)found, "rows", (json_int_t)(prompt - before), "seconds",
                          seconds + done->prompt_seconds, "generated", (json_int_t)done->n_tokens,
                          "generated_seconds", done->token_seconds);
    return eval_state_add(&g->state, j, err);
}

static int ask(struct grid *g, const struct cell *c, dsv4_err *err)
{
    struct ids rest = {0};
    struct heard h = {0};
    dsv4_seq *s = NULL;
    dsv4_generated done = {0};
    double seconds = 0;
    size_t before = dsv4_seq_len(g->base);
    int rc = extend_base(g, c->put, &seconds, err);
    if (rc == 0)
        rc = ids_add(&rest, g->statement.id, g->statement.n, err);
    if (rc == 0)
        rc = ids_add(&rest, g->hay.id + c->put, c->end - c->put, err);
    if (rc == 0)
        rc = ids_add(&rest, g->question.id, g->question.n, err);
    if (rc == 0)
        rc = ids_add(&rest, g->tail.id, g->tail.n, err);
    if (rc == 0)
        rc = dsv4_seq_fork(&s, g->base, g->head.n + c->put, err);
    if (rc == 0)
        rc = generate(g, s, &rest, &h, &done, err);
    if (rc == 0)
        rc = make_unit(g, c, &rest, &h, &done, before, seconds, err);
    dsv4_seq_close(s);
    free(h.text.data);
    free(rest.id);
    return rc;
}

/* ------------------------------------------------------------------ a model */

static size_t per_model(const struct grid *g)
{
    return g->n_cells * g->e->v.seeds;
}

static int ask_all(struct grid *g, bool other, dsv4_err *err)
{
    size_t first = other ? per_model(g) : 0, n;
    TRY(make_ends(g, err));
    TRY(dsv4_seq_open(&g->base, g->m.engine, err));
    for (size_t seed = 0; seed < g->e->v.seeds; seed++) {
        if (json_array_size(g->state.units) >= first + (seed + 1) * g->n_cells)
            continue;
        TRY(begin_seed(g, g->e->v.first_seed + seed, err));
        for (size_t i = 0; i < g->n_cells; i++) {
            if ((n = json_array_size(g->state.units)) > first + seed * g->n_cells + i)
                continue;
            TRY(eval_stopped(g->e, err));
            eval_progress_show(&g->progress, n, "%u tokens, needle at %u %%", g->cell[i].length,
                               g->cell[i].depth);
            TRY(ask(g, &g->cell[i], err));
        }
    }
    return 0;
}

static int run_model(struct grid *g, bool other, dsv4_err *err)
{
    uint32_t ctx = g->length[g->n_lengths - 1] + g->e->v.answer_tokens;
    if (json_array_size(g->state.units) >= per_model(g) * (other ? 2 : 1))
        return 0;
    TRY(eval_open(g->e, other, ctx, 2, &g->m, err));
    int rc = ask_all(g, other, err);
    dsv4_seq_close(g->base);
    g->base = NULL;
    close_model(&g->m);
    return rc;
}

/* ------------------------------------------------------------------ the result */

/* Units first .. first + n of one model; those of one cell are counted together. */
static double cell_share(const struct grid *g, size_t first, uint32_t length, uint32_t depth)
{
    double found = 0;
    for (size_t i = first; i < first + per_model(g); i++) {
        const json_t *u = json_array_get(g->state.units, i);
        if (real_of(u, "length") == length && real_of(u, "depth") == depth)
            found += real_of(u, "correct");
    }
    return found / g->e->v.seeds;
}

static json_t *share_grid(const struct grid *g, size_t first)
{
    json_t *rows = json_array();
    for (size_t l = 0; rows && l < g->n_lengths; l++) {
        json_t *row = json_array();
        bool ok = row != NULL;
        for (size_t d = 0; ok && d < g->n_depths; d++)
            ok = json_array_append_new(
                     row, json_real(cell_share(g, first, g->length[l], g->depth[d]))) == 0;
        if (!ok || json_array_append(rows, row) != 0) {
            json_decref(rows);
            rows = NULL;
        }
        json_decref(row);
    }
    return rows;
}

static int put_model_result(struct grid *g, json_t *list, bool other, dsv4_err *err)
{
    size_t first = other ? per_model(g) : 0;
    json_t *own = json_array();
    for (size_t i = first; own && i < first + per_model(g); i++)
        if (json_array_append(own, json_array_get(g->state.units, i)) != 0) {
            json_decref(own);
            own = NULL;
        }
    TRY(json_made(own, err));
    double seconds = eval_sum(own, "seconds"), generating = eval_sum(own, "generated_seconds");
    json_t *j = json_pack(
        "{s:O, s:f, s:o, s:f, s:f, s:f}", "model",
        json_object_get(g->e->task, other ? "against" : "model"), "found",
        eval_sum(own, "correct") / (double)per_model(g), "grid", share_grid(g, first),
        "prompt_tokens_per_second", seconds > 0 ? eval_sum(own, "rows") / seconds : 0,
        "generated_tokens_per_second", generating > 0 ? eval_sum(own, "generated") / generating : 0,
        "seconds", seconds + generating);
    json_decref(own);
    return json_array_append_new(list, j) == 0 ? 0 : json_made(NULL, err);
}

static json_t *number_list(const uint32_t *x, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < n; i++)
        if (json_array_append_new(list, json_integer(x[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static int put_result(struct grid *g, dsv4_err *err)
{
    json_t *r = g->e->result, *models = json_array();
    TRY(eval_put(r, "lengths", number_list(g->length, g->n_lengths), err));
    TRY(eval_put(r, "depths", number_list(g->depth, g->n_depths), err));
    TRY(eval_put(r, "seeds", json_integer(g->e->v.seeds), err));
    TRY(eval_put(r, "models", models, err));
    TRY(put_model_result(g, models, false, err));
    if (eval_has_other(&g->e->v))
        TRY(put_model_result(g, models, true, err));
    return eval_put(r, "texts", json_incref(g->state.units), err);
}

/* ------------------------------------------------------------------ all of it */

static int set_up(struct grid *g, dsv4_err *err)
{
    const struct eval_values *v = &g->e->v;
    size_t total;
    TRY(read_list("--lengths", v->lengths, MIN_LENGTH, MAX_LENGTH, g->length, MAX_LENGTHS,
                  &g->n_lengths, err));
    TRY(read_list("--depths", v->depths, 0, 100, g->depth, MAX_DEPTHS, &g->n_depths, err));
    g->n_cells = g->n_lengths * g->n_depths;
    TRY(mem_alloc(&g->cell, g->n_cells, sizeof *g->cell, "the grid", err));
    TRY(eval_put(g->e->task, "lengths", number_list(g->length, g->n_lengths), err));
    TRY(eval_put(g->e->task, "depths", number_list(g->depth, g->n_depths), err));
    TRY(eval_put(g->e->task, "seeds", json_integer(v->seeds), err));
    TRY(eval_put(g->e->task, "seed", json_integer(v->first_seed), err));
    TRY(eval_put(g->e->task, "answer_tokens", json_integer(v->answer_tokens), err));
    TRY(eval_put(g->e->task, "raw", json_boolean(v->raw), err));
    TRY(eval_state_open(&g->state, v->state, g->e->task, err));
    total = per_model(g) * (eval_has_other(v) ? 2 : 1);
    if (json_array_size(g->state.units) > total)
        return err_set(err, DSV4_REFUSED, "%s: more texts than this run has", v->state);
    g->progress = (struct eval_progress){&g->e->p.term, "needle", clock_seconds(),
                                         json_array_size(g->state.units), total};
    return 0;
}

int eval_needle(struct eval *e, dsv4_err *err)
{
    struct grid g = {.e = e, .state = {.fd = -1}};
    int rc = set_up(&g, err);
    if (rc == 0)
        rc = run_model(&g, false, err);
    if (rc == 0 && eval_has_other(&e->v))
        rc = run_model(&g, true, err);
    if (rc == 0)
        rc = put_result(&g, err);
    if (rc == 0 && e->v.svg)
        rc = needle_svg(e->v.svg, e->result, err);
    eval_state_close(&g.state);
    free(g.head.id);
    free(g.tail.id);
    free(g.hay.id);
    free(g.statement.id);
    free(g.question.id);
    free(g.sentence);
    free(g.cell);
    return rc;
}
