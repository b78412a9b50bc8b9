/* The program dsv4-server: options, keys, log, signals. The server itself is src/server. */
#include "process.h"
#include "src/server/server.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------ options */

enum { LOG_TEXT, LOG_JSON, LOG_NONE };
enum { SCOPE_ALL, SCOPE_KEY };

struct values {
    bool help, version, check, quiet;
    const char *model;
    uint32_t ctx, batch, threads, parallel, queue;
    uint64_t max_memory;
    bool paged;
    const char *host;
    uint32_t port;
    struct opt_list alias, key, origin, allow_host;
    const char *key_file, *tls_cert, *tls_key;
    bool no_auth;
    uint64_t max_body, cache_ram, cache_disk;
    uint32_t max_messages, max_tools, max_choices, max_connections, max_tokens, block_limit,
        loop_limit, workers, cache_min;
    float timeout, idle_timeout, body_timeout, send_timeout, ping;
    int reasoning, scope, log;
    const char *cache_dir;
};

#define AT(field) offsetof(struct values, field)
static const char model_group[] = "Model";
static const char net_group[] = "Network";
static const char access_group[] = "Access";
static const char request_group[] = "Requests";
static const char cache_group[] = "Prefix cache";
static const char other_group[] = "Other";

static const struct opt rows[] = {
    {model_group, 'm', "model", OPT_TEXT, "DIR", 0, 0, 1, AT(model), "DSV4_MODEL",
     "$DSV4_MODEL, else the embedded model",
     "the model: a directory with config.json, tokenizer.json and safetensors files"},
    {model_group, 0, "alias", OPT_LIST, "NAME", 0, 0, 1, AT(alias), NULL, "the directory's name",
     "the model's name for clients; may be repeated: the first is shown, all are accepted, * is "
     "any"},
    {model_group, 0, "ctx", OPT_U32, "N", 1, UINT32_MAX, 1, AT(ctx), NULL,
     "the model's maximum, less if memory does not allow that", "tokens a sequence may hold"},
    {model_group, 't', "threads", OPT_U32, "N", 1, 4096, 1, AT(threads), "DSV4_THREADS",
     "$DSV4_THREADS, else one for each core", "threads that compute"},
    {model_group, 0, "batch", OPT_U32, "N", 32, 65536, 1, AT(batch), NULL, "256",
     "rows of one step: what a prompt can take of it when nobody else generates"},
    {model_group, 0, "max-memory", OPT_BYTES, "BYTES", 0, 0, 1, AT(max_memory), NULL,
     "what the machine has free", "plan with so much memory (512M, 24G, ...)"},
    {model_group, 0, "paged", OPT_FLAG, NULL, 0, 0, 1, AT(paged), NULL, NULL,
     "accept weights larger than memory: they are read from disk again and again"},

    {net_group, 0, "host", OPT_TEXT, "ADDRESS", 0, 0, 1, AT(host), NULL, "127.0.0.1",
     "listen on this address; any but this computer's own needs an API key or --no-auth"},
    {net_group, 'p', "port", OPT_U32, "N", 0, 65535, 1, AT(port), NULL, "8090",
     "listen on this port; 0: any free one"},
    {net_group, 0, "tls-cert", OPT_TEXT, "FILE", 0, 0, 1, AT(tls_cert), NULL, NULL,
     "serve HTTPS with this certificate (PEM)"},
    {net_group, 0, "tls-key", OPT_TEXT, "FILE", 0, 0, 1, AT(tls_key), NULL, NULL,
     "the certificate's key (PEM)"},
    {net_group, 0, "max-connections", OPT_U32, "N", 1, 1000000, 1, AT(max_connections), NULL,
     "12000", "more than so many: those that say nothing are closed, oldest first"},
    {net_group, 0, "idle-timeout", OPT_FLOAT, "S", 0.1, 1e6, 1, AT(idle_timeout), NULL, "75",
     "seconds a connection may take until a request's headers are there"},
    {net_group, 0, "body-timeout", OPT_FLOAT, "S", 0.1, 1e6, 1, AT(body_timeout), NULL, "120",
     "seconds a request's body may take"},
    {net_group, 0, "send-timeout", OPT_FLOAT, "S", 0.1, 1e6, 1, AT(send_timeout), NULL, "60",
     "seconds a client may not read what is there for it"},
    {net_group, 0, "ping", OPT_FLOAT, "S", 0.1, 1e6, 1, AT(ping), NULL, "1",
     "seconds of silence in a stream after which a comment is sent"},

    {access_group, 0, "api-key", OPT_LIST, "KEY", 0, 0, 1, AT(key), NULL, NULL,
     "let in who has this key; may be repeated. Other users see it in the list of processes: "
     "--api-key-file is better"},
    {access_group, 0, "api-key-file", OPT_TEXT, "FILE", 0, 0, 1, AT(key_file), "DSV4_API_KEY_FILE",
     "$DSV4_API_KEY_FILE", "keys, one a line; # begins a comment"},
    {access_group, 0, "no-auth", OPT_FLAG, NULL, 0, 0, 1, AT(no_auth), NULL, NULL,
     "serve other computers without a key"},
    {access_group, 0, "allow-host", OPT_LIST, "NAME", 0, 0, 1, AT(allow_host), NULL, NULL,
     "names in the Host header besides localhost and addresses; * for any; may be repeated"},
    {access_group, 0, "allow-origin", OPT_LIST, "ORIGIN", 0, 0, 1, AT(origin), NULL, NULL,
     "web pages of others that may ask (https://example.org); may be repeated"},

    {request_group, 0, "parallel", OPT_U32, "N", 1, 1024, 1, AT(parallel), NULL, "16",
     "answers that are generated at the same time"},
    {request_group, 0, "queue", OPT_U32, "N", 0, 1000000, 1, AT(queue), NULL, "256",
     "requests that may wait; more are refused with 429"},
    {request_group, 0, "timeout", OPT_FLOAT, "S", 0, 1e9, 1, AT(timeout), NULL, "0: none",
     "seconds a request may take in all"},
    {request_group, 0, "max-tokens", OPT_U32, "N", 0, UINT32_MAX, 1, AT(max_tokens), NULL,
     "0: until the context is full", "tokens of an answer, unless the request says"},
    {request_group, 0, "max-body", OPT_BYTES, "BYTES", 0, 0, 1, AT(max_body), NULL, "32M",
     "bytes of a request"},
    {request_group, 0, "max-messages", OPT_U32, "N", 1, 1000000, 1, AT(max_messages), NULL, "10000",
     "messages of a request"},
    {request_group, 0, "max-tools", OPT_U32, "N", 0, 100000, 1, AT(max_tools), NULL, "512",
     "tools of a request"},
    {request_group, 0, "max-choices", OPT_U32, "N", 1, 1024, 1, AT(max_choices), NULL,
     "as --parallel", "choices of a request (n)"},
    {request_group, 0, "reasoning", OPT_CHOICE, "shown|hidden", 0, 0, 1, AT(reasoning), NULL,
     "shown", "hand reasoning out, apart from the answer, or only count its tokens"},
    {request_group, 0, "block-limit", OPT_U32, "N", 0, UINT32_MAX, 1, AT(block_limit), NULL,
     "32768", "tokens of one block of tool calls; 0: no limit"},
    {request_group, 0, "loop-limit", OPT_U32, "N", 0, UINT32_MAX, 1, AT(loop_limit), NULL, "1024",
     "end an answer whose last N tokens only repeat themselves; 0: never"},
    {request_group, 0, "workers", OPT_U32, "N", 1, 64, 1, AT(workers), NULL, "2",
     "threads that decode requests"},

    {cache_group, 0, "cache-ram", OPT_BYTES, "BYTES", 0, 0, 1, AT(cache_ram), NULL, "2G",
     "memory for sequences of earlier requests; 0: none are kept"},
    {cache_group, 0, "cache-dir", OPT_TEXT, "DIR", 0, 0, 1, AT(cache_dir), NULL, NULL,
     "keep them on disk, too: they survive a restart"},
    {cache_group, 0, "cache-disk", OPT_BYTES, "BYTES", 0, 0, 1, AT(cache_disk), NULL, "16G",
     "bytes there"},
    {cache_group, 0, "cache-min", OPT_U32, "N", 1, UINT32_MAX, 1, AT(cache_min), NULL, "512",
     "tokens of a sequence that is worth a file"},
    {cache_group, 0, "cache-scope", OPT_CHOICE, "all|key", 0, 0, 1, AT(scope), NULL, "all",
     "who shares beginnings of prompts: all, or each key for itself (in memory only)"},

    {other_group, 0, "log", OPT_CHOICE, "text|json|none", 0, 0, 1, AT(log), NULL, "text",
     "one line a request on standard error"},
    {other_group, 'q', "quiet", OPT_FLAG, NULL, 0, 0, 1, AT(quiet), NULL, NULL,
     "nothing on standard error but errors and the log"},
    {other_group, 0, "check", OPT_FLAG, NULL, 0, 0, 1, AT(check), NULL, NULL,
     "look at options, keys and model, say what is wrong, and end"},
    {other_group, 0, "version", OPT_FLAG, NULL, 0, 0, 1, AT(version), NULL, NULL, "the version"},
    {other_group, 'h', "help", OPT_FLAG, NULL, 0, 0, 1, AT(help), NULL, NULL, "this help"},
};

static const char *const examples[] = {
    "dsv4-server",
    "the embedded model at http://127.0.0.1:8090/",
    "dsv4-server -m ~/models/DeepSeek-V4.1-Flash --cache-dir ~/.cache/dsv4",
    "a real model; conversations survive a restart",
    "dsv4-server --host 0.0.0.0 --api-key-file keys.txt",
    "for other computers",
    NULL};

static const struct opt_command commands[] = {
    {"dsv4-server", "", "serve a model over HTTP",
     "Serves a model with the protocols of OpenAI (/v1/chat/completions, /v1/completions, "
     "/v1/responses) and Anthropic (/v1/messages), and a chat page at /. SIGTERM lets requests "
     "finish; a second one ends at once.",
     examples, 0, 0}};

static const struct opt_note environment[] = {{"DSV4_MODEL", "the model's directory"},
                                              {"DSV4_API_KEY_FILE", "a file with keys"},
                                              {"DSV4_THREADS", "threads that compute"},
                                              {NULL, NULL}};
static const struct opt_note exits[] = {{"0", "stopped after a signal, requests finished"},
                                        {"1", "something failed"},
                                        {"2", "wrong arguments"},
                                        {"3", "the model is not acceptable"},
                                        {"4", "not enough memory"},
                                        {"143", "ended by a second signal"},
                                        {NULL, NULL}};

static const struct opt_set options = {
    .program = "dsv4-server",
    .version = DSV4_VERSION,
    .brief = "serve DeepSeek-V4 models over HTTP",
    .text = "",
    .command = commands,
    .n_commands = 1,
    .opt = rows,
    .n_opts = sizeof rows / sizeof *rows,
    .environment = environment,
    .files = NULL,
    .exits = exits,
};

static const struct values defaults = {.host = "127.0.0.1",
                                       .port = 8090,
                                       .batch = 256,
                                       .parallel = 16,
                                       .queue = 256,
                                       .max_body = 32 << 20,
                                       .max_messages = 10000,
                                       .max_tools = 512,
                                       .max_connections = 12000,
                                       .block_limit = 32768,
                                       .loop_limit = 1024,
                                       .workers = 2,
                                       .cache_ram = 2ull << 30,
                                       .cache_disk = 16ull << 30,
                                       .cache_min = 512,
                                       .idle_timeout = 75,
                                       .body_timeout = 120,
                                       .send_timeout = 60,
                                       .ping = 1};

/* ------------------------------------------------------------------ the process */

/* What a signal handler can reach. */
static struct server *volatile serving;
static volatile sig_atomic_t stops;

static void on_stop(int sig)
{
    (void)sig;
    struct server *s = serving;
    stops = stops + 1;
    if (stops > 1)
        _exit(143);
    if (s)
        server_stop(s);
}

bool interrupted(void)
{
    return stops != 0;
}

void interrupted_reset(int patience)
{
    (void)patience;
    stops = 0;
}

static void set_signals(void)
{
    struct sigaction a = {.sa_handler = on_stop, .sa_flags = SA_RESTART};
    sigemptyset(&a.sa_mask);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    a.sa_handler = SIG_IGN;
    sigaction(SIGHUP, &a, NULL);
}

/* ------------------------------------------------------------------ log */

static void put_line(const struct out *o)
{
    dsv4_err err;
    if (!o->failed)
        (void)file_write_all(STDERR_FILENO, "log", o->b.data, o->b.len, &err);
}

static void now_text(char to[40])
{
    struct timespec t;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    size_t n = strftime(to, 32, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(to + n, 40 - n, ".%03ldZ", t.tv_nsec / 1000000);
}

/* Paths and methods went through the gate: they hold no control bytes. */
static void log_access(void *arg, const struct exchange *x, double seconds)
{
    const struct values *v = arg;
    struct out o = {0};
    char when[40];
    const char *path = x->path ? x->path : "-";
    now_text(when);
    if (v->log == LOG_JSON) {
        out_printf(&o, "{\"time\":\"%s\",\"id\":\"%s\",\"peer\":\"%s\",\"method\":", when, x->id,
                   x->peer);
        out_cstring(&o, x->method);
        out_text(&o, ",\"path\":");
        out_cstring(&o, path);
        out_printf(&o,
                   ",\"status\":%d,\"body_bytes\":%zu,\"sent_bytes\":%llu,\"seconds\":%.6f,"
                   "\"gone\":%s}\n",
                   x->status, x->body.len, (unsigned long long)x->delivered, seconds,
                   x->gone ? "true" : "false");
    } else if (v->log == LOG_TEXT) {
        out_printf(&o, "%s %s %s %s %s %d %.3fs%s\n", when, x->id, x->peer, x->method, path,
                   x->status, seconds, x->gone ? " gone" : "");
    }
    if (o.b.len)
        put_line(&o);
    out_free(&o);
}

static void log_note(void *arg, const char *text)
{
    const struct values *v = arg;
    struct out o = {0};
    char when[40];
    now_text(when);
    if (v->log == LOG_JSON) {
        out_printf(&o, "{\"time\":\"%s\",\"note\":", when);
        out_cstring(&o, text);
        out_text(&o, "}\n");
    } else {
        out_printf(&o, "%s %s\n", when, text);
    }
    put_line(&o);
    out_free(&o);
}

/* ------------------------------------------------------------------ keys */

struct setup {
    struct values v;
    struct server_options opt;
    struct key *keys;
    size_t n_keys, cap_keys;
    char *cert, *cert_key;
    char *dir;
    const char *name;
};

static int add_key(struct setup *s, const char *text, size_t len, const char *where, dsv4_err *err)
{
    if (len < 8 || len >= sizeof s->keys->text)
        return err_set(err, DSV4_USAGE, "%s: an API key must have 8 to %zu characters", where,
                       sizeof s->keys->text - 1);
    for (size_t i = 0; i < len; i++)
        if (text[i] <= 0x20 || text[i] >= 0x7f)
            return err_set(err, DSV4_USAGE, "%s: an API key must be ASCII without blanks", where);
    TRY(mem_grow(&s->keys, &s->cap_keys, s->n_keys + 1, sizeof *s->keys, "API keys", err));
    struct key *k = &s->keys[s->n_keys++];
    *k = (struct key){.len = len};
    memcpy(k->text, text, len);
    return 0;
}

static int read_keys(struct setup *s, dsv4_err *err)
{
    char *text, *line, *next;
    size_t len;
    for (size_t i = 0; i < s->v.key.n; i++)
        TRY(add_key(s, s->v.key.item[i], strlen(s->v.key.item[i]), "--api-key", err));
    if (!s->v.key_file)
        return 0;
    dsv4_err why;
    if (file_read(s->v.key_file, 1 << 20, &text, &len, &why) != 0)
        return err_set(err, DSV4_USAGE, "--api-key-file: %s", why.text);
    int rc =
        strlen(text) == len ? 0 : err_set(err, DSV4_USAGE, "%s: not a text file", s->v.key_file);
    for (line = text; rc == 0 && *line; line = next) {
        size_t n = strcspn(line, "\n");
        next = line + n + (line[n] == '\n');
        while (n > 0 && (line[n - 1] == ' ' || line[n - 1] == '\r' || line[n - 1] == '\t'))
            n--;
        if (n > 0 && line[0] != '#')
            rc = add_key(s, line, n, s->v.key_file, err);
    }
    memset(text, 0, len);
    free(text);
    if (rc == 0 && s->n_keys == 0)
        rc = err_set(err, DSV4_USAGE, "%s: no key in it", s->v.key_file);
    return rc;
}

/* ------------------------------------------------------------------ setting up */

static bool is_local(const char *host)
{
    return strcmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 ||
           strcmp(host, "::1") == 0 || strcmp(host, "[::1]") == 0;
}

static int judge(struct setup *s, dsv4_err *err)
{
    const struct values *v = &s->v;
    if (!is_local(v->host) && s->n_keys == 0 && !v->no_auth)
        return err_set(err, DSV4_USAGE,
                       "--host %s lets other computers in: give --api-key-file, or --no-auth if "
                       "everybody may use this server",
                       v->host);
    if (v->no_auth && s->n_keys > 0)
        return err_set(err, DSV4_USAGE, "--no-auth and API keys exclude each other");
    if ((v->tls_cert == NULL) != (v->tls_key == NULL))
        return err_set(err, DSV4_USAGE, "--tls-cert and --tls-key go together");
    if (v->max_choices > v->parallel)
        return err_set(err, DSV4_USAGE, "--max-choices is %u; --parallel only %u", v->max_choices,
                       v->parallel);
    if (v->max_body < 1024 || v->max_body > 1ull << 30)
        return err_set(err, DSV4_USAGE, "--max-body must be between 1K and 1G");
    for (size_t i = 0; i < v->origin.n; i++)
        if (!strstr(v->origin.item[i], "://") || strcmp(v->origin.item[i], "*") == 0)
            return err_set(err, DSV4_USAGE,
                           "--allow-origin: \"%s\" is not like https://example.org",
                           v->origin.item[i]);
    return 0;
}

/* The first alias that is a name; "*" is none. */
static const char *shown_name(const struct setup *s)
{
    for (size_t i = 0; i < s->v.alias.n; i++)
        if (strcmp(s->v.alias.item[i], "*") != 0)
            return s->v.alias.item[i];
    return s->name;
}

static void take_options(struct setup *s)
{
    const struct values *v = &s->v;
    s->opt = (struct server_options){
        .host = v->host,
        .port = (uint16_t)v->port,
        .model_name = shown_name(s),
        .aliases = v->alias.item,
        .n_aliases = v->alias.n,
        .keys = s->keys,
        .n_keys = s->n_keys,
        .no_auth = v->no_auth,
        .origins = v->origin.item,
        .n_origins = v->origin.n,
        .hosts = v->allow_host.item,
        .n_hosts = v->allow_host.n,
        .max_body = (size_t)v->max_body,
        .max_messages = v->max_messages,
        .max_tools = v->max_tools,
        .max_choices = v->max_choices ? v->max_choices : v->parallel,
        .max_connections = v->max_connections,
        .idle_timeout = (double)v->idle_timeout,
        .body_timeout = (double)v->body_timeout,
        .send_timeout = (double)v->send_timeout,
        .request_timeout = (double)v->timeout,
        .ping = (double)v->ping,
        .max_tokens = v->max_tokens,
        .block_limit = v->block_limit,
        .loop_limit = v->loop_limit,
        .reasoning = v->reasoning ? REASONING_HIDDEN : REASONING_SHOWN,
        .cache_per_key = v->scope == SCOPE_KEY,
        .tls_cert = s->cert,
        .tls_key = s->cert_key,
        .workers = v->workers,
        .access = log_access,
        .note = log_note,
        .log_arg = &s->v,
        .sched = {.parallel = v->parallel,
                  .queue = v->queue,
                  .cache_bytes = v->cache_ram,
                  .cache_dir = v->cache_dir,
                  .disk_bytes = v->cache_disk,
                  .disk_min = v->cache_min},
    };
}

static int set_up(struct setup *s, struct program *p, dsv4_err *err)
{
    size_t len;
    bool embedded;
    TRY(read_keys(s, err));
    TRY(judge(s, err));
    if (s->v.tls_cert) {
        TRY(file_read(s->v.tls_cert, 1 << 20, &s->cert, &len, err));
        TRY(file_read(s->v.tls_key, 1 << 20, &s->cert_key, &len, err));
    }
    p->a.model = s->v.model;
    TRY(model_find(p, &s->dir, &embedded, err));
    size_t n = strlen(s->dir);
    while (n > 1 && s->dir[n - 1] == '/')
        s->dir[--n] = 0;
    const char *slash = strrchr(s->dir, '/');
    s->name = slash && slash[1] ? slash + 1 : s->dir;
    take_options(s);
    return 0;
}

static bool show_loading(void *arg, uint64_t done, uint64_t total)
{
    struct terminal *t = arg;
    if (total > 0)
        status_show(t, "loading %3.0f%% of %.1f GB", 100 * (double)done / (double)total,
                    (double)total * 1e-9);
    return interrupted();
}

static dsv4_options engine_of(const struct values *v, struct terminal *t)
{
    return (dsv4_options){.ctx = v->ctx,
                          .batch = v->batch,
                          .sequences = v->parallel,
                          .threads = v->threads,
                          .max_memory = v->max_memory,
                          .paged = v->paged,
                          .progress = show_loading,
                          .progress_arg = t};
}

static int check(struct setup *s, struct program *p, dsv4_err *err)
{
    char *plan;
    dsv4_options o = engine_of(&s->v, &p->term);
    TRY(dsv4_plan(s->dir, &o, &plan, err));
    dsv4_free(plan);
    stream_printf(&p->term.out, "the configuration is good: %s on %s port %u, %zu key%s\n", s->name,
                  s->v.host, s->v.port, s->n_keys, s->n_keys == 1 ? "" : "s");
    return 0;
}

struct opening {
    const char *dir;
    dsv4_options options;
    dsv4_engine *engine;
    dsv4_err *err;
    int rc;
};

static void *open_here(void *arg)
{
    struct opening *o = arg;
    o->rc = dsv4_open(&o->engine, o->dir, &o->options, o->err);
    return NULL;
}

/* On a thread that is gone afterwards. OpenMP keeps a team for every thread that has computed, and counts them: with
 * ours and the scheduler's there are more than CPUs, and it puts each of them to sleep between two steps. */
static int open_engine(struct setup *s, struct program *p, dsv4_engine **out, dsv4_err *err)
{
    struct opening o = {.dir = s->dir, .options = engine_of(&s->v, &p->term), .err = err};
    pthread_t thread;
    if (pthread_create(&thread, NULL, open_here, &o) == 0)
        pthread_join(thread, NULL);
    else
        open_here(&o);
    *out = o.engine;
    return o.rc;
}

static int serve(struct setup *s, struct program *p, dsv4_err *err)
{
    dsv4_engine *e;
    struct server *server;
    int rc = open_engine(s, p, &e, err);
    status_clear(&p->term);
    if (rc != 0)
        return rc;
    rc = server_open(&server, e, s->v.batch, &s->opt, err);
    if (rc == 0) {
        serving = server;
        if (stops)
            server_stop(server);
        if (!s->v.quiet) {
            bool v6 = strchr(s->v.host, ':') && s->v.host[0] != '[';
            stream_printf(&p->term.err,
                          "dsv4-server: %s, %zu tokens of context, %u at once\n"
                          "listening on %s://%s%s%s:%u/\n",
                          s->opt.model_name, dsv4_engine_ctx(e), s->v.parallel,
                          s->cert ? "https" : "http", v6 ? "[" : "", s->v.host, v6 ? "]" : "",
                          server_port(server));
            stream_flush(&p->term.err, err);
        }
        rc = server_run(server, err);
        serving = NULL;
        server_close(server);
    }
    dsv4_close(e);
    return rc;
}

static int run(struct setup *s, struct program *p, int argc, char **argv, dsv4_err *err)
{
    const struct process_options o = {&options, &s->v, &s->v.help, &s->v.version};
    struct process_parsed parsed;
    TRY(process_parse(&o, &p->term, argc, argv, &parsed, err));
    if (parsed.done)
        return 0;
    p->term.quiet = s->v.quiet;
    TRY(set_up(s, p, err));
    return s->v.check ? check(s, p, err) : serve(s, p, err);
}

/* Sequences, samplers and bodies come and go for as long as the server runs, in any order. Mapped one by
 * one they leave no holes behind; glibc would move its threshold up to 32 MiB as soon as the first of them
 * is freed, take the others from an arena, and the arena would grow from hole to hole. */
static void set_allocator(void)
{
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
#endif
}

int main(int argc, char **argv)
{
    static struct program p; /* its streams hold buffers */
    static struct setup s;
    dsv4_err err = {0};
    set_allocator();
    process_begin(&p.term, options.program);
    set_signals();
    s.v = defaults;
    int rc = run(&s, &p, argc, argv, &err);
    int code = process_end(&p.term, rc, &err);
    opt_release(&options, &s.v);
    free(s.keys);
    free(s.cert);
    free(s.cert_key);
    free(s.dir);
    return code;
}
