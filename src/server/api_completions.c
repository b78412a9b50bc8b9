/* OpenAI: completions of plain text. */
#include "api.h"

#include <stddef.h>
#include <string.h>

struct params {
    struct openai_params o;
    const char *suffix;
    json_t *prompt;
    bool echo;
    int64_t best_of, max_tokens, logprobs;
};

#define AT(field)   offsetof(struct params, field)
#define AT_O(field) AT(o.field)
static const struct param table[] = {{"prompt", P_ANY, 0, 0, AT(prompt)},
                                     {"suffix", P_TEXT, 0, 0, AT(suffix)},
                                     {"echo", P_BOOL, 0, 0, AT(echo)},
                                     {"max_tokens", P_INT, 0, 1e9, AT(max_tokens)},
                                     {"best_of", P_INT, 1, 1e6, AT(best_of)},
                                     {"logprobs", P_INT, 0, 20, AT(logprobs)},
                                     OPENAI_PARAMS(AT_O)};

/* What a turn of this protocol remembers. */
struct own {
    bool echo;
    size_t n;
    struct {
        size_t logged, offset;
        bool begun;
    } sent[];
};

/* ------------------------------------------------------------------ writing */

static void write_logprobs(struct turn *t, const struct result *r, size_t from, size_t *offset)
{
    size_t at = *offset, len;
    if (!t->options.logprobs) {
        out_text(&t->out, "null");
        return;
    }
    out_text(&t->out, "{\"tokens\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        out_text(&t->out, i > from ? "," : "");
        out_token(&t->out, t->x->server->tok, r->logged[i].chosen.token);
    }
    out_text(&t->out, "],\"token_logprobs\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        out_text(&t->out, i > from ? "," : "");
        openai_logprob(t, &r->logged[i].chosen);
    }
    out_text(&t->out, "],\"text_offset\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        out_printf(&t->out, i > from ? ",%zu" : "%zu", at);
        dsv4_token_bytes(t->x->server->tok, r->logged[i].chosen.token, &len);
        at += len;
    }
    *offset = at;
    out_text(&t->out, "],\"top_logprobs\":[");
    for (size_t i = from; i < r->n_logged; i++) {
        const struct logged *l = &r->logged[i];
        out_text(&t->out, i > from ? ",{" : "{");
        for (size_t k = 0; k < t->options.n_top && l->top[k].token >= 0; k++) {
            /* tokens that are parts of characters look alike: the likeliest stands for them */
            out_text(&t->out, k ? "," : "");
            out_token(&t->out, t->x->server->tok, l->top[k].token);
            out_text(&t->out, ":");
            openai_logprob(t, &l->top[k]);
        }
        out_text(&t->out, "}");
    }
    out_text(&t->out, "]}");
}

static void write_usage(struct turn *t)
{
    size_t reasoning, n = turn_tokens(t, &reasoning);
    out_printf(&t->out,
               "{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%zu}}",
               t->prompt_tokens, n, t->prompt_tokens + n, t->cached_tokens);
}

/* The text of prompt number i. */
static void write_prompt(struct turn *t, struct out *o, size_t i)
{
    const json_t *p = json_object_get(t->body, "prompt"), *v = p;
    if (json_is_array(p) && !json_is_integer(json_array_get(p, 0)))
        v = json_array_get(p, i);
    if (json_is_string(v)) {
        out_add(o, json_string_value(v), json_string_length(v));
        return;
    }
    dsv4_utf8 u = {0};
    char clean[4096];
    for (size_t k = 0; k < json_array_size(v); k++) {
        size_t len;
        const char *text = dsv4_token_bytes(
            t->x->server->tok, (int32_t)json_integer_value(json_array_get(v, k)), &len);
        if (text && len < 1000)
            out_add(o, clean, dsv4_utf8_push(&u, text, len, clean));
    }
    out_add(o, clean, dsv4_utf8_flush(&u, clean));
}

static const char *finish_name(enum finish f)
{
    return f == FINISH_LENGTH ? "length" : "stop";
}

static void write_choice(struct turn *t, size_t choice, const char *text, size_t len,
                         const char *finish)
{
    struct own *own = t->own;
    const struct result *r = turn_result(t, choice);
    out_printf(&t->out, "{\"index\":%zu,\"text\":", choice);
    if (own->echo && !own->sent[choice].begun) {
        struct out o = {0};
        write_prompt(t, &o, choice / t->n_choices);
        out_add(&o, text, len);
        t->out.failed |= o.failed;
        out_string(&t->out, o.b.data, o.b.len);
        out_free(&o);
    } else {
        out_string(&t->out, text, len);
    }
    own->sent[choice].begun = true;
    out_text(&t->out, ",\"logprobs\":");
    write_logprobs(t, r, own->sent[choice].logged, &own->sent[choice].offset);
    own->sent[choice].logged = r->n_logged;
    if (finish)
        out_printf(&t->out, ",\"finish_reason\":\"%s\"}", finish);
    else
        out_text(&t->out, ",\"finish_reason\":null}");
}

static void on_begin(struct turn *t)
{
    (void)t;
}

static void on_piece(struct turn *t, unsigned choice, const struct piece *p)
{
    if (p->kind != PIECE_CONTENT)
        return;
    sse_begin(t, NULL);
    openai_head(t, "text_completion");
    write_choice(t, choice, p->text, p->len, NULL);
    out_text(&t->out, "]");
    openai_piece_end(t, write_usage);
}

static void on_finish(struct turn *t, unsigned choice)
{
    sse_begin(t, NULL);
    openai_head(t, "text_completion");
    write_choice(t, choice, "", 0, finish_name(turn_result(t, choice)->finish));
    out_text(&t->out, "]");
    openai_piece_end(t, write_usage);
}

static void on_end(struct turn *t)
{
    if (t->include_usage) {
        sse_begin(t, NULL);
        openai_head(t, "text_completion");
        out_text(&t->out, "],\"usage\":");
        write_usage(t);
        out_text(&t->out, "}");
        sse_end(t);
    }
    openai_done(t);
}

static void on_whole(struct turn *t)
{
    openai_head(t, "text_completion");
    for (size_t i = 0; i < t->n_prompts * t->n_choices; i++) {
        const struct result *r = turn_result(t, i);
        out_text(&t->out, i ? "," : "");
        write_choice(t, i, r->content.b.data ? r->content.b.data : "", r->content.b.len,
                     finish_name(r->finish));
    }
    out_text(&t->out, "],\"usage\":");
    write_usage(t);
    out_text(&t->out, "}");
}

static void on_release(struct turn *t)
{
    dsv4_free(t->own);
}

static const struct shape shape = {on_begin,    on_piece, on_finish, on_end,
                                   openai_fail, NULL,     on_whole,  on_release};

/* ------------------------------------------------------------------ the request */

static int add_prompts(struct turn *t, const json_t *p, const struct turn_sampling *sp,
                       struct failure *f)
{
    size_t n = json_array_size(p), max = t->x->server->opt->max_choices;
    if (json_is_string(p))
        return turn_text(t, json_string_value(p), json_string_length(p), sp, f);
    if (!json_is_array(p) || n == 0)
        return fail_set(f, 400, "prompt", "prompt must be a text, token ids, or a list of these");
    if (json_is_integer(json_array_get(p, 0)))
        return turn_ids(t, p, sp, f);
    if (n * t->n_choices > max)
        return fail_set(f, 400, "prompt", "%zu choices in all; at most %zu are made here",
                        n * t->n_choices, max);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(p, i);
        int rc =
            json_is_string(v)  ? turn_text(t, json_string_value(v), json_string_length(v), sp, f)
            : json_is_array(v) ? turn_ids(t, v, sp, f)
                               : fail_set(f, 400, "prompt",
                                          "prompt must be a text, token ids, or a list of these");
        if (rc != 0)
            return -1;
    }
    return 0;
}

static int judge(struct turn *t, const struct params *p, struct failure *f)
{
    size_t max = t->x->server->opt->max_choices;
    if (p->suffix && *p->suffix)
        return fail_set(f, 400, "suffix", "suffix is not supported here");
    if (p->best_of > 0 && p->best_of != p->o.n)
        return fail_set(f, 400, "best_of", "best_of other than n is not supported here");
    if (p->echo && p->logprobs >= 0)
        return fail_set(f, 400, "echo", "echo together with logprobs is not supported here");
    if (p->o.n > (int64_t)max)
        return fail_set(f, 400, "n", "n is %lld; at most %zu choices are made here",
                        (long long)p->o.n, max);
    if (!p->prompt)
        return fail_set(f, 400, "prompt", "prompt is needed");
    return api_model(t->x->server, p->o.model, f);
}

static int read_request(struct turn *t, struct failure *f)
{
    struct turn_sampling sp = api_sampling(t->x->server);
    struct params p = {.max_tokens = -1, .logprobs = -1};
    dsv4_err err;
    openai_defaults(&p.o, &sp);
    if (params_read(t->body, table, sizeof table / sizeof *table, &p, f) != 0 ||
        judge(t, &p, f) != 0 || openai_stream(t, &p.o, f) != 0)
        return -1;
    if (p.max_tokens == 0)
        return fail_set(f, 400, "max_tokens", "max_tokens must be at least 1");
    t->n_choices = (unsigned)p.o.n;
    t->options.raw = true;
    t->options.ignore_eos = p.o.ignore_eos;
    t->options.logprobs = p.logprobs >= 0;
    t->options.n_top = p.logprobs > 0 ? (size_t)p.logprobs : 0;
    openai_sampling(&p.o, &sp);
    sp.max_tokens = p.max_tokens > 0 ? (size_t)p.max_tokens : 16; /* OpenAI's default */
    struct grammar_want g = {.kind = GRAMMAR_GBNF, .text = p.o.grammar};
    g.len = p.o.grammar ? strlen(p.o.grammar) : 0;
    if (turn_stops(t, p.o.stop, "stop", 64, f) != 0 ||
        (p.o.grammar && turn_constrain(t, &g, "grammar", f) != 0) ||
        add_prompts(t, p.prompt, &sp, f) != 0)
        return -1;
    for (size_t i = 0; i < t->n_prompts; i++)
        t->jobs[i]->no_cache = !p.o.cache_prompt;
    struct own *own;
    size_t n = t->n_prompts * t->n_choices;
    if (mem_alloc(&own, 1, sizeof *own + n * sizeof *own->sent, "a request", &err) != 0)
        return fail_err(f, &err);
    own->echo = p.echo;
    own->n = n;
    t->own = own;
    return 0;
}

void api_completions(struct exchange *x)
{
    api_turn(x, &shape, "cmpl-", read_request);
}
