/* Fuzz target: any bytes as the body of a request, or as the head of one. Byte 0 says which: '0' to '6' the
 * routes that take a body, '7' the gate, the rest is the text. Requests go all the way (fake_server.h). Every one gets one whole reply: 200, or a failure in the shape of its protocol that is
 * neither empty nor our fault; JSON, or events that are JSON. */
#include "fake_server.h"
#include "src/server/api.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
    if (!x)
        abort();
}

/* Opened once and used by all inputs. */
static struct fixture {
    struct fake_server f;
    pthread_mutex_t lock;
    pthread_cond_t more;
    size_t steps;
} fix = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

/* The scheduler has done something: a reply may be complete. */
static void on_step(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&fix.lock);
    fix.steps++;
    pthread_cond_broadcast(&fix.more);
    pthread_mutex_unlock(&fix.lock);
}

static void open_server(void)
{
    dsv4_tokenizer *tok;
    dsv4_err err;
    if (fix.f.server.sched)
        return;
    must(dsv4_tokenizer_open(&tok, "models/nano/tokenizer.json", &err) == 0);
    fake_server_options(&fix.f, tok);
    fix.f.opt.sched.stepped = on_step;
    must(fake_server_open(&fix.f, false, &err) == 0);
}

static void wait_complete(const struct exchange *x)
{
    pthread_mutex_lock(&fix.lock);
    while (!x->complete) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_sec++; /* the last call of a job may come behind its last step */
        pthread_cond_timedwait(&fix.more, &fix.lock, &t);
    }
    pthread_mutex_unlock(&fix.lock);
}

/* ------------------------------------------------------------------ replies */

static json_t *must_be_json(const char *text, size_t len)
{
    json_t *v;
    dsv4_err err;
    must(json_read(&v, text, len, &err) == 0);
    return v;
}

static void check_failure(const struct exchange *x)
{
    json_t *v = must_be_json(x->out.b.data, x->out.b.len), *e = json_object_get(v, "error");
    must(json_string_length(json_object_get(e, "message")) > 0);
    must(json_string_length(json_object_get(e, "type")) > 0);
    must(x->route->protocol == PROTOCOL_OPENAI
             ? json_object_get(e, "param") && json_object_get(e, "code")
             : json_string_length(json_object_get(v, "request_id")) > 0);
    json_decref(v);
}

/* Blocks of "event: NAME", "data: JSON", each ended by an empty line. */
static void check_events(const char *text, size_t len)
{
    static const char data[] = "data: ", event[] = "event: ", done[] = "[DONE]";
    const char *end = text + len;
    bool finished = false;
    must(len > 2 && memcmp(end - 2, "\n\n", 2) == 0);
    while (text < end) {
        must(!finished);
        if (memcmp(text, event, sizeof event - 1) == 0)
            text = (const char *)memchr(text, '\n', (size_t)(end - text)) + 1;
        must((size_t)(end - text) > sizeof data && memcmp(text, data, sizeof data - 1) == 0);
        text += sizeof data - 1;
        const char *line = memchr(text, '\n', (size_t)(end - text));
        must(line && line + 1 < end && line[1] == '\n');
        finished =
            (size_t)(line - text) == sizeof done - 1 && memcmp(text, done, sizeof done - 1) == 0;
        if (!finished)
            json_decref(must_be_json(text, (size_t)(line - text)));
        text = line + 2;
    }
}

static void try_body(const struct route *r, const char *body, size_t len)
{
    struct exchange *x;
    dsv4_err err;
    must(exchange_open(&x, &fix.f.server, &err) == 0);
    x->route = r;
    x->path = strdup(r->path);
    must(x->path && bytes_add(&x->body, body, len, &err) == 0);
    r->handle(x);
    wait_complete(x);
    int status = x->status;
    must(status == 200 || status == 400 || status == 404 || status == 429 ||
         (status == 503 && x->retry > 0)); /* its time was up before its turn */
    if (status != 200)
        check_failure(x);
    else if (x->sse)
        check_events(x->out.b.data, x->out.b.len);
    else
        json_decref(must_be_json(x->out.b.data, x->out.b.len));
    exchange_unref(x);
}

/* ------------------------------------------------------------------ the gate */

/* What was let through has one reading. */
static void check_headers(const struct gate_header *h, size_t n)
{
    size_t hosts = 0, frames = 0;
    if (gate_headers(h, n, true))
        return;
    for (size_t i = 0; i < n; i++) {
        bool length = h[i].name_len == 14 && strncasecmp(h[i].name, "Content-Length", 14) == 0;
        hosts += h[i].name_len == 4 && strncasecmp(h[i].name, "Host", 4) == 0;
        frames +=
            length || (h[i].name_len == 17 && strncasecmp(h[i].name, "Transfer-Encoding", 17) == 0);
        for (size_t k = 0; length && k < h[i].value_len; k++)
            must(h[i].value[k] >= '0' && h[i].value[k] <= '9');
        for (size_t k = 0; k < h[i].value_len; k++)
            must(h[i].value[k] == '\t' ||
                 ((unsigned char)h[i].value[k] >= ' ' && h[i].value[k] != 0x7f));
    }
    must(hosts == 1 && frames <= 1);
}

/* "URI\nNAME:VALUE\nNAME:VALUE..." */
static void try_head(char *text, size_t len)
{
    struct gate_header h[32];
    size_t n = 0;
    text[len] = 0;
    char *line = strchr(text, '\n'), *rest = line ? line + 1 : text + len;
    if (line)
        *line = 0;
    if (!gate_uri(text))
        for (const char *p = text; *p; p++)
            must(text[0] == '/' && *p > ' ' && *p != 0x7f && strncmp(p, "%00", 3) != 0);
    (void)gate_method(text);
    (void)gate_host(&fix.f.opt, text);
    (void)gate_origin(&fix.f.opt, text, rest);
    for (char *end = text + len; rest < end && n < sizeof h / sizeof *h;) {
        char *next = memchr(rest, '\n', (size_t)(end - rest)), *stop = next ? next : end;
        char *colon = memchr(rest, ':', (size_t)(stop - rest));
        if (colon)
            h[n++] = (struct gate_header){rest, colon + 1, (size_t)(colon - rest),
                                          (size_t)(stop - colon - 1)};
        *stop = 0;
        if (colon)
            *colon = 0;
        rest = stop + 1;
    }
    check_headers(h, n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const paths[] = {"/v1/chat/completions",
                                        "/v1/completions",
                                        "/v1/responses",
                                        "/v1/messages",
                                        "/tokenize",
                                        "/detokenize",
                                        "/v1/messages/count_tokens"};
    enum { N = sizeof paths / sizeof *paths };
    const char *allow;
    if (size < 1 || data[0] < '0' || data[0] > '0' + N)
        return 0;
    open_server();
    char *text = malloc(size);
    must(text != NULL);
    memcpy(text, data + 1, size - 1);
    if (data[0] == '0' + N)
        try_head(text, size - 1);
    else
        try_body(route_find("POST", paths[data[0] - '0'], &allow), text, size - 1);
    free(text);
    return 0;
}
