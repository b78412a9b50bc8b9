/* A conversation: keeps the messages as the JSON that dsv4_render takes, renders the whole list for
 * every turn, and computes only what the sequence does not hold yet. Shows the answer while it is
 * generated: reasoning counted or dim, content, tool calls as text. Used by ask and chat. */
#include "tools.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ messages */

static int append(struct talk *t, json_t *message, dsv4_err *err)
{
    TRY(json_made(message, err));
    if (json_array_append_new(t->messages, message) != 0)
        return json_made(NULL, err);
    return 0;
}

static bool is_role(const json_t *message, const char *role)
{
    const char *r = json_string_value(json_object_get(message, "role"));
    return r && strcmp(r, role) == 0;
}

int talk_system(struct talk *t, const char *text, dsv4_err *err)
{
    bool had = is_role(json_array_get(t->messages, 0), "system");
    bool want = (text && *text) || t->tools;
    json_t *m = NULL;
    if (want) {
        m = json_pack("{s:s, s:s}", "role", "system", "content", text ? text : "");
        TRY(json_made(m, err));
        if (t->tools && json_object_set(m, "tools", t->tools) != 0) {
            json_decref(m);
            return json_made(NULL, err);
        }
    }
    int bad = 0;
    if (had && want)
        bad = json_array_set_new(t->messages, 0, m);
    else if (want)
        bad = json_array_insert_new(t->messages, 0, m);
    else if (had)
        bad = json_array_remove(t->messages, 0);
    return bad ? json_made(NULL, err) : 0;
}

int talk_add_user(struct talk *t, const char *text, size_t len, dsv4_err *err)
{
    return append(t, json_pack("{s:s, s:s%}", "role", "user", "content", text, len), err);
}

/* Takes the last message back. */
static void take_back(struct talk *t)
{
    size_t n = json_array_size(t->messages);
    if (n > 0)
        json_array_remove(t->messages, n - 1);
}

int talk_clear(struct talk *t, dsv4_err *err)
{
    while (json_array_size(t->messages) > is_role(json_array_get(t->messages, 0), "system"))
        take_back(t);
    return dsv4_seq_rewind(t->seq, 0, err);
}

int talk_think(struct talk *t, const char *mode, dsv4_err *err)
{
    static const char *const names[] = {"off", "on", "low", "high", "max"};
    uint64_t n;
    bool ok = opt_number_u64(mode, &n) && n >= 1 && n <= 100 && mode[0] != '0';
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        ok = ok || strcmp(mode, names[i]) == 0;
    if (!ok)
        return err_set(err, DSV4_USAGE,
                       "thinking \"%s\" is none of off, on, low, high, max, 1 to 100", mode);
    char *copy = strdup(mode);
    if (!copy)
        return err_memory(err, strlen(mode) + 1, "a mode");
    free(t->think);
    t->think = copy;
    return 0;
}

static bool thinking(const struct talk *t)
{
    return strcmp(t->think, "off") != 0;
}

static json_t *render_options(const struct talk *t)
{
    uint64_t n;
    if (!thinking(t))
        return json_pack("{s:s}", "thinking_mode", "chat");
    if (strcmp(t->think, "on") == 0)
        return json_pack("{s:s}", "thinking_mode", "thinking");
    if (opt_number_u64(t->think, &n))
        return json_pack("{s:s, s:i}", "thinking_mode", "thinking", "reasoning_effort", (int)n);
    return json_pack("{s:s, s:s}", "thinking_mode", "thinking", "reasoning_effort", t->think);
}

/* The prompt that the messages make. */
static int render(struct talk *t, dsv4_prompt **out, dsv4_err *err)
{
    json_t *whole = json_pack("{s:O, s:o}", "messages", t->messages, "options", render_options(t));
    TRY(json_made(whole, err));
    char *text = json_text(whole, JSON_COMPACT);
    json_decref(whole);
    if (!text)
        return json_made(NULL, err);
    int rc = dsv4_render(t->dialect, text, strlen(text), out, err);
    free(text);
    /* what cannot be written down was asked for by the user; no file is at fault */
    if (rc == DSV4_REFUSED)
        rc = err->status = DSV4_USAGE;
    return rc;
}

int talk_check(struct talk *t, dsv4_err *err)
{
    dsv4_prompt *prompt;
    TRY(render(t, &prompt, err));
    dsv4_prompt_close(prompt);
    return 0;
}

/* ------------------------------------------------------------------ opening */

static int read_tools(struct talk *t, const char *path, dsv4_err *err)
{
    char *text;
    size_t len;
    TRY(file_read(path, TEXT_LIMIT, &text, &len, err));
    json_error_t je;
    t->tools = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    free(text);
    if (!t->tools)
        return err_set(err, DSV4_REFUSED, "%s: line %d: %s", path, je.line, je.text);
    if (!json_is_array(t->tools) || json_array_size(t->tools) == 0)
        return err_set(err, DSV4_REFUSED, "%s: not a list of tools", path);
    return 0;
}

static int choose_dialect(struct talk *t, dsv4_err *err)
{
    t->dialect = dsv4_engine_dialect(t->model.engine);
    if (t->p->a.revision == REVISION_AUTO)
        return 0;
    if (t->dialect == DSV4_V41)
        return err_set(err, DSV4_USAGE, "--revision is for V4; %s is a V4.1 model", t->model.name);
    t->dialect = t->p->a.revision == REVISION_PREVIEW ? DSV4_V4_PREVIEW : DSV4_V4_0731;
    return 0;
}

static int fill(struct talk *t, dsv4_err *err)
{
    struct program *p = t->p;
    TRY(json_made(t->messages = json_array(), err));
    TRY(talk_think(t, p->a.think ? p->a.think : "off", err));
    if (p->a.tools)
        TRY(read_tools(t, p->a.tools, err));
    if (p->a.system || t->tools) {
        char *text = NULL;
        size_t n;
        const char *given = p->a.system ? p->a.system : "";
        TRY(text_repair(p, "the system message", given, strlen(given), &text, &n, err));
        int rc = talk_system(t, text, err);
        free(text);
        TRY(rc);
    }
    /* wrong values are told before a big model is loaded */
    TRY(sampling_options(p, NULL, &t->sampling, &t->bias, err));
    free(t->bias);
    t->bias = NULL;
    TRY(open_model(p, &t->model, err));
    TRY(choose_dialect(t, err));
    TRY(sampling_options(p, t->model.engine, &t->sampling, &t->bias, err));
    return dsv4_seq_open(&t->seq, t->model.engine, err);
}

int talk_open(struct talk *t, struct program *p, dsv4_err *err)
{
    *t = (struct talk){.p = p};
    int rc = fill(t, err);
    if (rc != 0)
        talk_close(t);
    return rc;
}

void talk_close(struct talk *t)
{
    dsv4_seq_close(t->seq);
    close_model(&t->model);
    json_decref(t->messages);
    json_decref(t->tools);
    free(t->think);
    free(t->bias);
    *t = (struct talk){0};
}

/* ------------------------------------------------------------------ what is computed already */

/* Takes the sequence back to where it agrees with ids[0..n): the rest is left to be fed, at least
 * one token. */
static int keep_prefix(struct talk *t, const int32_t *ids, size_t n, size_t *from, dsv4_err *err)
{
    size_t have = dsv4_seq_len(t->seq), same = 0;
    const int32_t *old = dsv4_seq_tokens(t->seq);
    while (same < have && same < n - 1 && old[same] == ids[same])
        same++;
    same = dsv4_seq_reusable(t->seq, same);
    if (same < have)
        TRY(dsv4_seq_rewind(t->seq, same, err));
    *from = same;
    return 0;
}

/* Where the prompt of n tokens differs from the next one: this one ends with <think>, the next has the
 * answer without its reasoning there. A savepoint is kept at that place; those of some turns more, for
 * messages that are taken back. Returns how many of the ids from `from` on stand before it, 0: no need. */
static size_t mark_prompt(struct talk *t, size_t from, size_t n)
{
    enum { KEPT = sizeof t->mark / sizeof *t->mark };
    if (!t->p->chatting || !thinking(t) || n - 1 <= from)
        return 0;
    size_t *oldest = &t->mark[t->n_marks++ % KEPT];
    if (*oldest < n - 1)
        dsv4_seq_unmark(t->seq, *oldest);
    *oldest = n - 1;
    return n - 1 - from;
}

/* ------------------------------------------------------------------ showing */

struct show {
    struct talk *talk;
    struct answer *a;
    dsv4_parser *parser;
    dsv4_err *err; /* the caller's */
    int rc;        /* of what went wrong inside a callback ... */
    dsv4_err why;  /* ... and its message: the caller's then says that a callback asked to stop */
    size_t n_tokens;
    bool visible; /* not --json */
    bool reasoning_shown, in_call;
    struct bytes arguments; /* of the call that runs */
};

static void show_reasoning(struct show *s, const dsv4_event *e)
{
    struct terminal *t = &s->talk->p->term;
    if (s->rc == 0)
        s->rc = bytes_add(&s->a->reasoning, e->text, e->len, &s->why);
    if (!s->visible || !s->talk->p->a.show_thinking)
        return;
    stream_dim(&t->err, true);
    stream_foreign(&t->err, e->text, e->len);
    stream_dim(&t->err, false);
    s->reasoning_shown = true;
}

/* The answer begins, or goes on: nothing else is in its way. */
static void clear_for_answer(struct show *s)
{
    struct terminal *t = &s->talk->p->term;
    status_clear(t);
    if (!s->reasoning_shown)
        return;
    stream_foreign_end(&t->err);
    if (!t->err.line_start)
        stream_text(&t->err, "\n");
    dsv4_err ignored;
    stream_flush(&t->err, &ignored);
    s->reasoning_shown = false;
}

static void show_content(struct show *s, const dsv4_event *e)
{
    if (s->rc == 0)
        s->rc = bytes_add(&s->a->content, e->text, e->len, &s->why);
    if (!s->visible)
        return;
    clear_for_answer(s);
    stream_foreign(&s->talk->p->term.out, e->text, e->len);
}

/* The call that runs is complete: its arguments go into the list. */
static void end_call(struct show *s)
{
    struct stream *out = &s->talk->p->term.out;
    json_t *calls = s->a->calls, *text;
    if (!s->in_call)
        return;
    s->in_call = false;
    text = json_stringn(s->arguments.data ? s->arguments.data : "", s->arguments.len);
    s->arguments.len = 0;
    json_t *call = json_array_get(calls, json_array_size(calls) - 1);
    if (json_object_set_new(call, "arguments", text) != 0 && s->rc == 0)
        s->rc = json_made(NULL, &s->why);
    if (!s->visible)
        return;
    stream_foreign_end(out);
    stream_text(out, ")\n");
}

static void show_call(struct show *s, const dsv4_event *e)
{
    struct stream *out = &s->talk->p->term.out;
    end_call(s);
    json_t *call = json_pack("{s:s%, s:s}", "name", e->text, e->len, "arguments", "");
    if (json_array_append_new(s->a->calls, call) != 0) {
        s->rc = s->rc ? s->rc : json_made(NULL, &s->why);
        return;
    }
    s->in_call = true;
    if (!s->visible)
        return;
    clear_for_answer(s);
    stream_foreign_end(out);
    if (!out->line_start)
        stream_text(out, "\n");
    stream_text(out, "call ");
    stream_foreign(out, e->text, e->len);
    stream_foreign_end(out);
    stream_text(out, "(");
}

static void show_arguments(struct show *s, const dsv4_event *e)
{
    if (!s->in_call)
        return;
    if (s->rc == 0)
        s->rc = bytes_add(&s->arguments, e->text, e->len, &s->why);
    if (s->visible)
        stream_foreign(&s->talk->p->term.out, e->text, e->len);
}

static void on_event(void *arg, const dsv4_event *e)
{
    struct show *s = arg;
    switch (e->kind) {
    case DSV4_REASONING: show_reasoning(s, e); break;
    case DSV4_CONTENT: show_content(s, e); break;
    case DSV4_CALL: show_call(s, e); break;
    case DSV4_ARGUMENTS: show_arguments(s, e); break;
    case DSV4_FINISH: {
        size_t n = e->len < sizeof s->a->finish ? e->len : sizeof s->a->finish - 1;
        memcpy(s->a->finish, e->text, n);
        s->a->finish[n] = 0;
        end_call(s);
        break;
    }
    }
}

static int show_token(struct show *s, const dsv4_token *token)
{
    struct program *p = s->talk->p;
    TRY(dsv4_parser_feed(s->parser, token->text, token->len, &s->why));
    TRY(s->rc);
    if (s->a->logprobs) {
        json_t *l =
            logprob_json(dsv4_engine_tokenizer(s->talk->model.engine), token, p->a.logprobs);
        if (json_array_append_new(s->a->logprobs, l) != 0)
            return json_made(NULL, &s->why);
    }
    s->n_tokens++;
    bool answering = s->a->content.len > 0 || json_array_size(s->a->calls) > 0;
    if (thinking(s->talk) && !answering && !p->a.show_thinking)
        status_show(&p->term, "thinking, %zu tokens", s->n_tokens);
    else if (!answering)
        status_clear(&p->term);
    if (s->visible) {
        TRY(stream_flush(&p->term.out, &s->why));
        TRY(stream_flush(&p->term.err, &s->why));
    }
    return 0;
}

static bool on_token(void *arg, const dsv4_token *token)
{
    struct show *s = arg;
    if (s->rc == 0)
        s->rc = show_token(s, token);
    return s->rc != 0 || interrupted();
}

static bool on_prefilled(void *arg, size_t done, size_t n)
{
    struct show *s = arg;
    if (n > 256)
        status_show(&s->talk->p->term, "reading, %zu of %zu tokens", done, n);
    return interrupted();
}

/* ------------------------------------------------------------------ answering */

static int generate(struct show *s, const int32_t *ids, size_t n)
{
    struct talk *t = s->talk;
    struct args *a = &t->p->a;
    size_t ctx = dsv4_engine_ctx(t->model.engine), from;
    if (n >= ctx)
        return err_set(s->err, DSV4_FAILED,
                       "the prompt is %zu tokens long and the context holds %zu%s", n, ctx,
                       a->ctx ? " (--ctx)" : "");
    TRY(keep_prefix(t, ids, n, &from, s->err));
    dsv4_generate_options opt = {.sampling = t->sampling,
                                 .max_tokens = a->max_tokens,
                                 .stops = a->stop.item,
                                 .n_stops = a->stop.n,
                                 .ignore_eos = a->ignore_eos,
                                 .n_top = s->a->logprobs ? a->logprobs : 0,
                                 .mark = mark_prompt(t, from, n),
                                 .prefilled = on_prefilled,
                                 .token = on_token,
                                 .arg = s};
    int rc = dsv4_generate(t->model.engine, t->seq, ids + from, n - from, &opt, &s->a->generated,
                           s->err);
    status_clear(&t->p->term);
    if (s->rc != 0) {
        *s->err = s->why;
        return s->rc;
    }
    bool cut =
        rc != 0 || s->a->generated.stop == DSV4_STOP_LIMIT || s->a->generated.stop == DSV4_STOP_CTX;
    dsv4_err later;
    int ended = dsv4_parser_end(s->parser, cut, rc == 0 ? s->err : &later);
    if (rc == 0 && s->rc != 0)
        *s->err = s->why;
    return rc != 0 ? rc : ended != 0 ? ended : s->rc;
}

/* Encodes the prompt and answers it. */
static int answer_prompt(struct show *s)
{
    struct talk *t = s->talk;
    dsv4_prompt *prompt;
    TRY(render(t, &prompt, s->err));
    int32_t *ids = NULL;
    size_t n = 0;
    int rc = dsv4_encode_prompt(dsv4_engine_tokenizer(t->model.engine), prompt, &ids, &n, s->err);
    dsv4_prompt_close(prompt);
    TRY(rc);
    s->a->n_context = n;
    if (n == 0)
        rc = err_set(s->err, DSV4_USAGE, "the prompt is empty");
    if (rc == 0)
        rc = dsv4_parser_open(&s->parser, thinking(t), t->tools != NULL, on_event, s, s->err);
    if (rc == 0)
        rc = generate(s, ids, n);
    dsv4_parser_close(s->parser);
    dsv4_free(ids);
    return rc;
}

/* The calls as messages carry them. */
static json_t *history_calls(const json_t *calls)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < json_array_size(calls); i++) {
        json_t *one =
            json_pack("{s:s, s:O}", "type", "function", "function", json_array_get(calls, i));
        if (json_array_append_new(list, one) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static int remember_answer(struct talk *t, const struct answer *a, dsv4_err *err)
{
    json_t *m = json_pack("{s:s, s:s%}", "role", "assistant", "content",
                          a->content.data ? a->content.data : "", a->content.len);
    TRY(json_made(m, err));
    int bad = 0;
    if (a->reasoning.len > 0)
        bad |= json_object_set_new(m, "reasoning_content",
                                   json_stringn(a->reasoning.data, a->reasoning.len));
    if (json_array_size(a->calls) > 0)
        bad |= json_object_set_new(m, "tool_calls", history_calls(a->calls));
    if (bad) {
        json_decref(m);
        return json_made(NULL, err);
    }
    return append(t, m, err);
}

static void end_line(struct show *s)
{
    struct terminal *t = &s->talk->p->term;
    clear_for_answer(s);
    stream_foreign_end(&t->out);
    if (s->visible && !t->out.line_start)
        stream_text(&t->out, "\n");
}

int talk_answer(struct talk *t, struct answer *a, dsv4_err *err)
{
    *a = (struct answer){0};
    struct show s = {.talk = t, .a = a, .err = err, .visible = !t->p->a.json};
    a->calls = json_array();
    if (t->p->a.json && t->p->a.logprobs > 0)
        a->logprobs = json_array();
    int rc = a->calls ? 0 : json_made(NULL, err);
    if (rc == 0)
        rc = answer_prompt(&s);
    end_call(&s);
    free(s.arguments.data);
    end_line(&s);
    dsv4_err flush;
    int flushed = stream_flush(&t->p->term.out, &flush);
    if (rc == 0 && flushed != 0) {
        *err = flush;
        rc = flushed;
    }
    bool something = a->content.len > 0 || json_array_size(a->calls) > 0;
    dsv4_err later;
    if (rc == 0 || (rc == DSV4_INTERRUPTED && something)) {
        int kept = remember_answer(t, a, rc == 0 ? err : &later);
        return rc == 0 ? kept : rc;
    }
    take_back(t);
    return rc;
}

void answer_release(struct answer *a)
{
    free(a->content.data);
    free(a->reasoning.data);
    json_decref(a->calls);
    json_decref(a->logprobs);
    *a = (struct answer){0};
}

json_t *answer_json(const struct talk *t, const struct answer *a)
{
    json_t *v =
        json_pack("{s:s, s:s%, s:s%, s:O, s:s, s:I, s:I}", "model", t->model.name, "content",
                  a->content.data ? a->content.data : "", a->content.len, "reasoning_content",
                  a->reasoning.data ? a->reasoning.data : "", a->reasoning.len, "tool_calls",
                  a->calls, "finish_reason", a->finish, "context_tokens", (json_int_t)a->n_context,
                  "seed", (json_int_t)t->sampling.seed);
    dsv4_err err;
    if (v && ((a->logprobs && json_object_set(v, "logprobs", a->logprobs) != 0) ||
              statistics_json(v, &a->generated, &err) != 0)) {
        json_decref(v);
        return NULL;
    }
    return v;
}
