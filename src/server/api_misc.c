/* What is told about the server, and tokens as such. */
#include "api.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void reply(struct exchange *x, struct out *o)
{
    exchange_reply(x, 200, "application/json", o);
}

/* ------------------------------------------------------------------ models */

static void write_model(struct server *s, struct out *o)
{
    out_text(o, "{\"id\":");
    out_cstring(o, s->opt->model_name);
    out_printf(o,
               ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"local\",\"type\":\"model\","
               "\"display_name\":",
               (long long)s->created);
    out_cstring(o, s->opt->model_name);
    char when[32] = "";
    time_t t = (time_t)s->created;
    struct tm tm;
    if (gmtime_r(&t, &tm))
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    out_printf(o, ",\"created_at\":\"%s\",\"context_length\":%zu,\"max_model_len\":%zu}", when,
               s->backend.ctx, s->backend.ctx);
}

void api_models(struct exchange *x)
{
    static const char models[] = "/v1/models";
    struct server *s = x->server;
    struct out o = {0};
    struct failure f;
    const char *name = x->path + sizeof models - 1;
    char plain[300];
    size_t n = strcspn(name, "?");
    if (n > 1) {
        snprintf(plain, sizeof plain, "%.*s", (int)(n - 1 < 256 ? n - 1 : 256), name + 1);
        if (api_model(s, plain, &f) != 0) {
            exchange_fail(x, &f);
            return;
        }
        write_model(s, &o);
    } else {
        out_text(&o, "{\"object\":\"list\",\"data\":[");
        write_model(s, &o);
        out_text(&o, "],\"has_more\":false,\"first_id\":");
        out_cstring(&o, s->opt->model_name);
        out_text(&o, ",\"last_id\":");
        out_cstring(&o, s->opt->model_name);
        out_text(&o, "}");
    }
    reply(x, &o);
}

/* ------------------------------------------------------------------ tokens */

static void write_ids(struct out *o, const int32_t *ids, size_t n)
{
    out_text(o, "[");
    for (size_t i = 0; i < n; i++)
        out_printf(o, i ? ",%d" : "%d", (int)ids[i]);
    out_text(o, "]");
}

struct tokenize_params {
    const char *content, *prompt, *model;
    json_t *messages, *tools, *tool_choice, *thinking, *format;
    const char *effort;
    bool add_special, with_pieces;
};

#define AT(field) offsetof(struct tokenize_params, field)
static const struct param tokenize_table[] = {
    {"model", P_TEXT, 0, 256, AT(model)},
    {"content", P_TEXT, 0, 0, AT(content)},
    {"prompt", P_TEXT, 0, 0, AT(prompt)},
    {"messages", P_LIST, 1, 100000, AT(messages)},
    {"tools", P_LIST, 0, 0, AT(tools)},
    {"tool_choice", P_ANY, 0, 0, AT(tool_choice)},
    {"thinking", P_OBJECT, 0, 0, AT(thinking)},
    {"response_format", P_OBJECT, 0, 0, AT(format)},
    {"reasoning_effort", P_TEXT, 0, 32, AT(effort)},
    {"add_special", P_BOOL, 0, 0, AT(add_special)},
    {"with_pieces", P_BOOL, 0, 0, AT(with_pieces)},
};

static void write_pieces(struct server *s, struct out *o, const int32_t *ids, size_t n)
{
    out_text(o, "[");
    for (size_t i = 0; i < n; i++) {
        out_printf(o, "%s{\"id\":%d,\"piece\":", i ? "," : "", (int)ids[i]);
        out_token(o, s->tok, ids[i]);
        out_text(o, "}");
    }
    out_text(o, "]");
}

static int tokenize(struct exchange *x, json_t *body, struct rendered *r, bool *pieces,
                    struct failure *f)
{
    struct server *s = x->server;
    struct tokenize_params p = {0};
    dsv4_err err;
    if (params_read(body, tokenize_table, sizeof tokenize_table / sizeof *tokenize_table, &p, f) !=
        0)
        return -1;
    *pieces = p.with_pieces;
    if (p.messages)
        return openai_messages(s, p.messages, f) == 0 ? turn_render(s, body, r, f) : -1;
    const char *text = p.content ? p.content : p.prompt;
    if (!text)
        return fail_set(f, 400, "content", "content, prompt or messages is needed");
    int32_t *ids;
    size_t n;
    if (dsv4_encode(s->tok, text, strlen(text), false, &ids, &n, &err) != 0)
        return fail_err(f, &err);
    size_t bos = p.add_special && s->bos >= 0;
    if (mem_alloc(&r->ids, n + 1, sizeof *r->ids, "token ids", &err) != 0) {
        dsv4_free(ids);
        return fail_err(f, &err);
    }
    if (bos)
        r->ids[0] = s->bos;
    if (n)
        memcpy(r->ids + bos, ids, n * sizeof *ids);
    r->n = n + bos;
    dsv4_free(ids);
    return 0;
}

void api_tokenize(struct exchange *x)
{
    json_t *body = api_body(x);
    struct rendered r = {0};
    struct out o = {0};
    struct failure f = {0};
    bool pieces = false;
    if (!body)
        return;
    if (api_settled(tokenize(x, body, &r, &pieces, &f), &f) != 0) {
        exchange_fail(x, &f);
    } else {
        out_printf(&o, "{\"count\":%zu,\"max_model_len\":%zu,\"tokens\":", r.n,
                   x->server->backend.ctx);
        if (pieces)
            write_pieces(x->server, &o, r.ids, r.n);
        else
            write_ids(&o, r.ids, r.n);
        out_text(&o, "}");
        reply(x, &o);
    }
    dsv4_free(r.ids);
    dsv4_prompt_close(r.prompt);
    json_decref(body);
}

struct detokenize_params {
    const char *model;
    json_t *tokens;
};

void api_detokenize(struct exchange *x)
{
    static const struct param table[] = {
        {"model", P_TEXT, 0, 256, offsetof(struct detokenize_params, model)},
        {"tokens", P_LIST, 0, 0, offsetof(struct detokenize_params, tokens)}};
    json_t *body = api_body(x), *v;
    struct detokenize_params p = {0};
    struct out text = {0}, o = {0};
    struct failure f = {0};
    dsv4_utf8 u = {0};
    size_t i;
    if (!body)
        return;
    int rc = params_read(body, table, 2, &p, &f);
    if (rc == 0 && !p.tokens)
        rc = fail_set(&f, 400, "tokens", "tokens is needed");
    json_array_foreach(p.tokens, i, v)
    {
        size_t len = 0;
        json_int_t id = json_integer_value(v);
        const char *bytes = rc == 0 && json_is_integer(v) && id >= 0 && id <= INT32_MAX
                                ? dsv4_token_bytes(x->server->tok, (int32_t)id, &len)
                                : NULL;
        if (rc == 0 && !bytes)
            rc = fail_set(&f, 400, "tokens", "tokens must be ids from 0 to %zu",
                          dsv4_tokenizer_size(x->server->tok) - 1);
        char *clean = rc == 0 ? malloc(3 * len + 16) : NULL;
        if (clean)
            out_add(&text, clean, dsv4_utf8_push(&u, bytes, len, clean));
        free(clean);
    }
    if (rc != 0) {
        exchange_fail(x, &f);
    } else {
        char rest[16];
        out_add(&text, rest, dsv4_utf8_flush(&u, rest));
        out_text(&o, "{\"content\":");
        out_string(&o, text.b.data, text.b.len);
        out_text(&o, ",\"prompt\":");
        out_string(&o, text.b.data, text.b.len);
        out_text(&o, "}");
        o.failed |= text.failed;
        reply(x, &o);
    }
    out_free(&text);
    json_decref(body);
}

/* ------------------------------------------------------------------ state */

void api_health(struct exchange *x)
{
    struct sched_info i;
    struct out o = {0};
    sched_info(x->server->sched, &i, NULL, 0);
    out_printf(&o, "{\"status\":\"%s\"}", i.draining ? "stopping" : "ok");
    exchange_reply(x, i.draining ? 503 : 200, "application/json", &o);
}

static void gauge(struct out *o, const char *name, const char *help, double value)
{
    out_printf(o, "# HELP dsv4_%s %s\n# TYPE dsv4_%s gauge\ndsv4_%s %.15g\n", name, help, name,
               name, value);
}

/* Resident bytes now. */
static double resident(void)
{
    unsigned long long pages = 0, unused;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%llu %llu", &unused, &pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

void api_metrics(struct exchange *x)
{
    struct server *s = x->server;
    struct sched_info i;
    struct out o = {0};
    sched_info(s->sched, &i, NULL, 0);
    metrics_write(&s->metrics, &o);
    gauge(&o, "requests_running", "Requests in work", (double)i.live);
    gauge(&o, "requests_queued", "Requests that wait", (double)i.queued);
    gauge(&o, "cache_sequences", "Sequences kept in memory", (double)i.stored);
    gauge(&o, "cache_bytes", "Their bytes", (double)i.stored_bytes);
    gauge(&o, "disk_sequences", "Snapshots in the cache directory", (double)i.stored_disk);
    gauge(&o, "disk_bytes", "Their bytes", (double)i.stored_disk_bytes);
    gauge(&o, "connections", "Open connections", (double)http_connections(s->http));
    gauge(&o, "memory_planned_bytes", "Bytes the engine planned with", (double)s->memory_planned);
    gauge(&o, "memory_resident_bytes", "Resident bytes of the process", resident());
    gauge(&o, "memory_peak_bytes", "The most of them so far", (double)mem_peak());
    gauge(&o, "uptime_seconds", "Since the start", clock_seconds() - s->metrics.started);
    exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &o);
}

void api_props(struct exchange *x)
{
    struct server *s = x->server;
    const struct server_options *opt = s->opt;
    static const char *const dialects[] = {"v4-preview", "v4-0731", "v41"}; /* ORDER dsv4_dialect */
    struct out o = {0};
    out_text(&o, "{\"version\":\"" DSV4_VERSION "\",\"model\":");
    out_cstring(&o, opt->model_name);
    out_printf(&o, ",\"dialect\":\"%s\",\"context_length\":%zu,\"vocab_size\":%zu",
               dialects[s->dialect], s->backend.ctx, s->backend.vocab);
    out_printf(&o, ",\"parallel\":%zu,\"queue\":%zu,\"batch\":%zu", opt->sched.parallel,
               opt->sched.queue, s->backend.batch);
    out_printf(&o, ",\"reasoning\":\"%s\"",
               opt->reasoning == REASONING_HIDDEN ? "hidden" : "shown");
    out_printf(&o,
               ",\"limits\":{\"body_bytes\":%zu,\"messages\":%zu,\"tools\":%zu,\"choices\":%zu,"
               "\"max_tokens\":%zu}",
               opt->max_body, opt->max_messages, opt->max_tools, opt->max_choices, opt->max_tokens);
    out_text(&o, ",\"sampling\":{\"temperature\":");
    out_number(&o, (double)s->sampling.temperature);
    out_text(&o, ",\"top_p\":");
    out_number(&o, (double)s->sampling.top_p);
    out_printf(&o, "},\"auth\":%s}", opt->n_keys ? "true" : "false");
    reply(x, &o);
}

void api_slots(struct exchange *x)
{
    enum { MOST = 256 };
    static const char *const states[] = {"queued", "prompt", "generating"}; /* ORDER slot_state */
    struct sched_info i;
    struct slot_info *v;
    struct out o = {0};
    struct failure f;
    dsv4_err err;
    if (mem_alloc(&v, MOST, sizeof *v, "slots", &err) != 0) {
        fail_err(&f, &err);
        exchange_fail(x, &f);
        return;
    }
    sched_info(x->server->sched, &i, v, MOST);
    out_printf(&o,
               "{\"parallel\":%zu,\"running\":%zu,\"queued\":%zu,\"cached_sequences\":%zu,"
               "\"cached_bytes\":%llu,\"slots\":[",
               i.parallel, i.live, i.queued, i.stored, (unsigned long long)i.stored_bytes);
    for (size_t k = 0; k < i.n_slots; k++) {
        double left = v[k].rate > 0 ? (double)(v[k].n_prompt - v[k].n_done) / v[k].rate : 0;
        out_printf(&o,
                   "%s{\"id\":%llu,\"state\":\"%s\",\"choices\":%zu,\"prompt_tokens\":%zu,"
                   "\"prompt_done\":%zu,\"prompt_cached\":%zu,\"prompt_tokens_per_second\":%.1f,"
                   "\"prompt_eta_seconds\":%.1f,\"tokens\":%zu,\"seconds\":%.3f}",
                   k ? "," : "", (unsigned long long)v[k].job, states[v[k].state], v[k].n_choices,
                   v[k].n_prompt, v[k].n_done, v[k].n_cached, v[k].rate, left, v[k].n_tokens,
                   v[k].seconds);
    }
    out_text(&o, "]}");
    free(v);
    reply(x, &o);
}

/* ------------------------------------------------------------------ files */

/* Made from src/server/page by the Makefile. */
#define PAGE(name)                            \
    extern const unsigned char page_##name[]; \
    extern const size_t page_##name##_len
PAGE(chat_html);
PAGE(chat_js);
PAGE(chat_css);
PAGE(markdown_js);
PAGE(repo_js);
PAGE(openapi_json);

static void file(struct exchange *x, const char *type, const unsigned char *data, size_t len)
{
    struct out o = {0};
    out_add(&o, (const char *)data, len);
    exchange_reply(x, 200, type, &o);
}

void api_page(struct exchange *x)
{
    static const char html[] = "text/html; charset=utf-8", css[] = "text/css; charset=utf-8",
                      js[] = "text/javascript; charset=utf-8";
    const struct {
        const char *path, *type;
        const unsigned char *data;
        size_t len;
    } files[] = {{"/", html, page_chat_html, page_chat_html_len},
                 {"/chat.js", js, page_chat_js, page_chat_js_len},
                 {"/markdown.js", js, page_markdown_js, page_markdown_js_len},
                 {"/repo.js", js, page_repo_js, page_repo_js_len},
                 {"/chat.css", css, page_chat_css, page_chat_css_len}};
    size_t i = 0;
    while (strcmp(x->route->path, files[i].path) != 0)
        i++; /* each route that leads here is in the table */
    file(x, files[i].type, files[i].data, files[i].len);
}

void api_openapi(struct exchange *x)
{
    file(x, "application/json", page_openapi_json, page_openapi_json_len);
}
