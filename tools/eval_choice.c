/* Multiple choice: which continuation of a context the model finds most likely. A unit is a question. All
 * choices of a question are forks of one sequence that holds the context; what the next question's context
 * has in common with it is kept. */
#include "eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Forks take little beside the context they share: memory for one more sequence is plenty. */
enum { MAX_CHOICES = 64, SEQUENCES = 2, REWIND = 1024 };

/* A choice as tokens: ids[from..n) are judged, behind what all choices have in common. */
struct choice {
    int32_t *ids;
    size_t n;
    size_t bytes; /* of its text */
    dsv4_seq *seq;
    double logp;
};

/* A line of the file. */
struct question {
    json_t *json; /* checked */
    size_t line;
};

struct exam {
    struct eval *e;
    struct question *question;
    size_t n_questions, cap_questions;
    struct eval_state state;
    struct eval_progress progress;
    uint64_t hash;
    /* of the model that runs */
    struct model_handle m;
    size_t vocab, rows;
    float *logits, *first; /* [rows][vocab]; [vocab] behind the context */
    dsv4_row *row;
    struct asked { /* whose choice a row belongs to, and what comes next there */
        struct choice *choice;
        int32_t next;
    } * asked;
    dsv4_seq *base;
    size_t bulk; /* tokens of base whose logits were not wanted: these can be used again */
    struct choice choice[MAX_CHOICES];
    size_t n_choices, from;
    size_t computed; /* rows */
};

/* ------------------------------------------------------------------ the file */

static const char *wrong_question(const json_t *j)
{
    const json_t *choices = json_object_get(j, "choices"), *c;
    const json_t *answer = json_object_get(j, "answer"), *markers = json_object_get(j, "markers");
    size_t n = json_array_size(choices), i;
    if (!json_is_object(j))
        return "not an object";
    if (!json_is_string(json_object_get(j, "context")))
        return "\"context\" is not a text";
    if (!json_is_array(choices) || n < 2 || n > MAX_CHOICES)
        return "\"choices\" is not a list of 2 to 64 texts";
    json_array_foreach(
        choices, i,
        c) if (json_string_length(c) ==
               0) return "\"choices\" has something that is not a text, or an empty one";
    if (!json_is_integer(answer) || json_integer_value(answer) < 0 ||
        json_integer_value(answer) >= (json_int_t)n)
        return "\"answer\" is not the number of a choice (the first is 0)";
    if (markers && !json_is_boolean(markers))
        return "\"markers\" is neither true nor false";
    return NULL;
}

static int read_question(struct exam *x, const char *path, size_t line, const char *text,
                         size_t len, dsv4_err *err)
{
    json_error_t je;
    json_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    if (!j)
        return err_set(err, DSV4_REFUSED, "%s, line %zu: %s", path, line, je.text);
    const char *wrong = wrong_question(j);
    int rc = wrong ? err_set(err, DSV4_REFUSED, "%s, line %zu: %s", path, line, wrong)
                   : mem_grow(&x->question, &x->cap_questions, x->n_questions + 1,
                              sizeof *x->question, "questions", err);
    if (rc != 0) {
        json_decref(j);
        return rc;
    }
    x->question[x->n_questions++] = (struct question){j, line};
    return 0;
}

static int read_questions(struct exam *x, const char *path, dsv4_err *err)
{
    char *text;
    size_t len, line = 0;
    TRY(file_read(path, TEXT_LIMIT, &text, &len, err));
    int rc = 0;
    for (size_t at = 0, n; rc == 0 && at < len; at += n + 1) {
        const char *end = memchr(text + at, '\n', len - at);
        n = end ? (size_t)(end - text) - at : len - at;
        line++;
        if (strspn(text + at, " \t\r") < n)
            rc = read_question(x, path, line, text + at, n, err);
    }
    x->hash = eval_hash(EVAL_HASH_START, text, len);
    free(text);
    if (rc == 0 && x->n_questions == 0)
        rc = err_set(err, DSV4_REFUSED, "%s: no question in it", path);
    return rc;
}

/* ------------------------------------------------------------------ tokens of a question */

static void release_choices(struct exam *x)
{
    for (size_t i = 0; i < x->n_choices; i++) {
        free(x->choice[i].ids);
        dsv4_seq_close(x->choice[i].seq);
    }
    x->n_choices = 0;
}

/* BOS and the ids of a text that may bring it along. */
static int encode(const struct exam *x, const char *text, size_t len, bool markers, int32_t **ids,
                  size_t *n, dsv4_err *err)
{
    int32_t *plain, bos = dsv4_engine_bos(x->m.engine);
    size_t k;
    TRY(dsv4_encode(dsv4_engine_tokenizer(x->m.engine), text, len, markers, &plain, &k, err));
    bool add = bos >= 0 && (k == 0 || plain[0] != bos);
    int rc = mem_alloc(ids, k + 1, sizeof **ids, "token ids", err);
    if (rc == 0 && add)
        (*ids)[0] = bos;
    if (rc == 0 && k > 0)
        memcpy(*ids + add, plain, k * sizeof *plain);
    *n = k + add;
    dsv4_free(plain);
    return rc;
}

static size_t common(const int32_t *a, size_t na, const int32_t *b, size_t nb)
{
    size_t n = 0;
    while (n < na && n < nb && a[n] == b[n])
        n++;
    return n;
}

static int encode_choice(struct exam *x, const json_t *context, const json_t *choice, bool markers,
                         dsv4_err *err)
{
    struct bytes b = {0};
    struct choice *c = &x->choice[x->n_choices];
    *c = (struct choice){.bytes = json_string_length(choice)};
    int rc = bytes_add(&b, json_string_value(context), json_string_length(context), err);
    if (rc == 0)
        rc = bytes_add(&b, json_string_value(choice), json_string_length(choice), err);
    if (rc == 0)
        rc = encode(x, b.data, b.len, markers, &c->ids, &c->n, err);
    free(b.data);
    if (rc == 0)
        x->n_choices++;
    return rc;
}

/* Context and choice are encoded together, as they would be read. Where a choice's first letters become one
 * token with the context's last ones, judging begins there, for all choices alike: each is the probability of
 * a text behind the same tokens. */
static int encode_question(struct exam *x, const struct question *q, dsv4_err *err)
{
    const json_t *context = json_object_get(q->json, "context"), *c;
    bool markers = json_is_true(json_object_get(q->json, "markers"));
    int32_t *ids = NULL;
    size_t n, i;
    TRY(encode(x, json_string_value(context), json_string_length(context), markers, &ids, &n, err));
    int rc = 0;
    json_array_foreach(json_object_get(q->json, "choices"), i, c)
    {
        if (rc == 0)
            rc = encode_choice(x, context, c, markers, err);
    }
    x->from = n;
    for (i = 0; rc == 0 && i < x->n_choices; i++) {
        const struct choice *k = &x->choice[i];
        size_t same = common(ids, n, k->ids, k->n - 1); /* at least one token is judged */
        x->from = same < x->from ? same : x->from;
    }
    free(ids);
    if (rc == 0 && x->from == 0)
        rc = err_set(err, DSV4_REFUSED,
                     "%s, line %zu: nothing stands before the choices, and the model has no "
                     "beginning-of-sentence token",
                     x->e->p.argv[0], q->line);
    for (i = 0; rc == 0 && i < x->n_choices; i++)
        if (x->choice[i].n > dsv4_engine_ctx(x->m.engine))
            rc = err_set(err, DSV4_USAGE, "%s, line %zu: %zu tokens; --context is %zu",
                         x->e->p.argv[0], q->line, x->choice[i].n, dsv4_engine_ctx(x->m.engine));
    return rc;
}

/* ------------------------------------------------------------------ likelihood */

static int logp_of(const struct exam *x, const float *logits, int32_t token, double *logp,
                   dsv4_err *err)
{
    double p = (double)logits[token] - row_scale(logits, x->vocab);
    if (!isfinite(p))
        return err_set(err, DSV4_FAILED, "the model's logits are not finite");
    *logp += p;
    return 0;
}

/* What is there of the context is kept, but no row whose logits were wanted: those are computed more exactly,
 * and a question's result must not depend on the one before it. */
static int compute_context(struct exam *x, dsv4_err *err)
{
    const int32_t *ids = x->choice[0].ids;
    size_t keep = common(dsv4_seq_tokens(x->base), x->bulk, ids, x->from - 1), n;
    keep = dsv4_seq_reusable(x->base, keep);
    TRY(dsv4_seq_rewind(x->base, keep, err));
    x->bulk = keep;
    for (size_t at = keep; at < x->from; at += n) {
        n = x->from - at < x->rows ? x->from - at : x->rows;
        for (size_t i = 0; i < n; i++)
            x->row[i] = (dsv4_row){x->base, ids[at + i], at + i + 1 == x->from};
        TRY(dsv4_eval(x->m.engine, x->row, n, x->first, err));
        TRY(eval_stopped(x->e, err));
        x->computed += n;
    }
    x->bulk = x->from - 1;
    return 0;
}

static int flush_rows(struct exam *x, size_t n, dsv4_err *err)
{
    if (n == 0)
        return 0;
    TRY(dsv4_eval(x->m.engine, x->row, n, x->logits, err));
    TRY(eval_stopped(x->e, err));
    x->computed += n;
    for (size_t i = 0; i < n; i++)
        TRY(logp_of(x, x->logits + i * x->vocab, x->asked[i].next, &x->asked[i].choice->logp, err));
    return 0;
}

/* The rows of all choices together, as many in a call as there is room for. */
static int compute_choices(struct exam *x, dsv4_err *err)
{
    size_t n = 0;
    for (size_t k = 0; k < x->n_choices; k++) {
        struct choice *c = &x->choice[k];
        TRY(logp_of(x, x->first, c->ids[x->from], &c->logp, err));
        if (c->n > x->from + 1)
            TRY(dsv4_seq_fork(&c->seq, x->base, x->from, err));
        for (size_t i = x->from; i + 1 < c->n; i++) {
            x->row[n] = (dsv4_row){c->seq, c->ids[i], true};
            x->asked[n++] = (struct asked){c, c->ids[i + 1]};
            if (n == x->rows) {
                TRY(flush_rows(x, n, err));
                n = 0;
            }
        }
    }
    return flush_rows(x, n, err);
}

/* ------------------------------------------------------------------ a question */

static size_t best_choice(const struct exam *x, bool by_length)
{
    size_t best = 0;
    double most = -INFINITY;
    for (size_t i = 0; i < x->n_choices; i++) {
        const struct choice *c = &x->choice[i];
        double score = by_length ? c->logp / (double)c->bytes : c->logp;
        if (score > most) {
            most = score;
            best = i;
        }
    }
    return best;
}

static int make_unit(struct exam *x, const struct question *q, double seconds, dsv4_err *err)
{
    size_t right = (size_t)json_integer_value(json_object_get(q->json, "answer"));
    size_t sum = best_choice(x, false), mean = best_choice(x, true);
    json_t *scores = json_array(), *id = json_object_get(q->json, "id");
    for (size_t i = 0; scores && i < x->n_choices; i++)
        if (json_array_append_new(scores, json_real(x->choice[i].logp)) != 0) {
            json_decref(scores);
            scores = NULL;
        }
    json_t *j =
        json_pack("{s:I, s:O, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o}", "line", (json_int_t)q->line,
                  "id", id ? id : json_null(), "answer", (json_int_t)right, "best", (json_int_t)sum,
                  "best_per_byte", (json_int_t)mean, "correct", (json_int_t)(sum == right),
                  "correct_per_byte", (json_int_t)(mean == right), "rows", (json_int_t)x->computed,
                  "seconds", seconds, "log_likelihoods", scores);
    return eval_state_add(&x->state, j, err);
}

static int answer(struct exam *x, const struct question *q, dsv4_err *err)
{
    double begin = clock_seconds();
    x->computed = 0;
    int rc = encode_question(x, q, err);
    if (rc == 0)
        rc = compute_context(x, err);
    if (rc == 0)
        rc = compute_choices(x, err);
    if (rc == 0)
        rc = make_unit(x, q, clock_seconds() - begin, err);
    release_choices(x);
    return rc;
}

/* ------------------------------------------------------------------ a model */

static int answer_all(struct exam *x, bool other, dsv4_err *err)
{
    size_t first = other ? x->n_questions : 0, n;
    for (size_t i = 0; i < x->n_questions; i++) {
        if ((n = json_array_size(x->state.units)) > first + i)
            continue;
        TRY(eval_stopped(x->e, err));
        TRY(answer(x, &x->question[i], err));
        eval_progress_show(&x->progress, n + 1, "%zu of %zu questions", i + 1, x->n_questions);
    }
    return 0;
}

static int open_exam(struct exam *x, bool other, dsv4_err *err)
{
    size_t n;
    x->e->v.a.rewind = REWIND; /* questions often share a long beginning */
    TRY(eval_open(x->e, other, x->e->v.context, SEQUENCES, &x->m, err));
    x->vocab = dsv4_engine_vocab(x->m.engine);
    x->rows = eval_rows(x->e, x->m.engine);
    x->bulk = 0;
    if (!size_mul(x->rows, x->vocab, &n))
        return err_memory(err, UINT64_MAX, "logits");
    TRY(mem_alloc(&x->logits, n, sizeof *x->logits, "logits", err));
    TRY(mem_alloc(&x->first, x->vocab, sizeof *x->first, "logits", err));
    TRY(mem_alloc(&x->row, x->rows, sizeof *x->row, "rows", err));
    TRY(mem_alloc(&x->asked, x->rows, sizeof *x->asked, "rows", err));
    return dsv4_seq_open(&x->base, x->m.engine, err);
}

static void close_exam(struct exam *x)
{
    dsv4_seq_close(x->base);
    close_model(&x->m);
    free(x->logits);
    free(x->first);
    free(x->row);
    free(x->asked);
    x->base = NULL;
    x->logits = x->first = NULL;
    x->row = NULL;
    x->asked = NULL;
}

static int run_model(struct exam *x, bool other, dsv4_err *err)
{
    if (json_array_size(x->state.units) >= x->n_questions * (other ? 2 : 1))
        return 0;
    int rc = open_exam(x, other, err);
    if (rc == 0)
        rc = answer_all(x, other, err);
    close_exam(x);
    return rc;
}

/* ------------------------------------------------------------------ the result */

static int put_model_result(struct exam *x, json_t *list, bool other, dsv4_err *err)
{
    double n = (double)x->n_questions;
    size_t first = other ? x->n_questions : 0;
    json_t *own = json_array();
    for (size_t i = first; own && i < first + x->n_questions; i++)
        if (json_array_append(own, json_array_get(x->state.units, i)) != 0) {
            json_decref(own);
            own = NULL;
        }
    TRY(json_made(own, err));
    double part = eval_sum(own, "correct") / n, seconds = eval_sum(own, "seconds");
    double per_byte = eval_sum(own, "correct_per_byte") / n;
    json_t *j = json_pack("{s:O, s:f, s:f, s:f, s:f, s:f}", "model",
                          json_object_get(x->e->task, other ? "against" : "model"), "accuracy",
                          part, "accuracy_per_byte", per_byte, "accuracy_per_byte_error",
                          sqrt(per_byte * (1 - per_byte) / n), "tokens_per_second",
                          seconds > 0 ? eval_sum(own, "rows") / seconds : 0, "seconds", seconds);
    json_decref(own);
    return json_array_append_new(list, j) == 0 ? 0 : json_made(NULL, err);
}

/* Questions to which both models give the same answer. */
static double agreement(const struct exam *x)
{
    size_t same = 0;
    for (size_t i = 0; i < x->n_questions; i++)
        same += real_of(json_array_get(x->state.units, i), "best_per_byte") ==
                real_of(json_array_get(x->state.units, x->n_questions + i), "best_per_byte");
    return (double)same / (double)x->n_questions;
}

static int put_result(struct exam *x, dsv4_err *err)
{
    json_t *r = x->e->result, *models = json_array();
    TRY(eval_put(r, "questions", json_integer((json_int_t)x->n_questions), err));
    TRY(eval_put(r, "models", models, err));
    TRY(put_model_result(x, models, false, err));
    if (eval_has_other(&x->e->v)) {
        TRY(put_model_result(x, models, true, err));
        TRY(eval_put(r, "same_answer", json_real(agreement(x)), err));
    }
    return eval_put(r, "answers", json_incref(x->state.units), err);
}

/* ------------------------------------------------------------------ all of it */

static int set_up(struct exam *x, dsv4_err *err)
{
    struct eval *e = x->e;
    TRY(read_questions(x, e->p.argv[0], err));
    size_t total = x->n_questions * (eval_has_other(&e->v) ? 2 : 1);
    TRY(eval_put(e->task, "questions", json_string(e->p.argv[0]), err));
    TRY(eval_put(e->task, "text", eval_hash_json(x->hash), err));
    TRY(eval_state_open(&x->state, e->v.state, e->task, err));
    if (json_array_size(x->state.units) > total)
        return err_set(err, DSV4_REFUSED, "%s: more answers than there are questions", e->v.state);
    x->progress = (struct eval_progress){&e->p.term, "choice", clock_seconds(),
                                         json_array_size(x->state.units), total};
    return 0;
}

int eval_choice(struct eval *e, dsv4_err *err)
{
    struct exam x = {.e = e, .state = {.fd = -1}};
    int rc = set_up(&x, err);
    if (rc == 0)
        rc = run_model(&x, false, err);
    if (rc == 0 && eval_has_other(&e->v))
        rc = run_model(&x, true, err);
    if (rc == 0)
        rc = put_result(&x, err);
    for (size_t i = 0; i < x.n_questions; i++)
        json_decref(x.question[i].json);
    free(x.question);
    eval_state_close(&x.state);
    return rc;
}
