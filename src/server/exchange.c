/* One request and its reply. HTTP's thread fills in the request and takes the reply as it comes;
 * any other thread writes the reply. */
#include "server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int exchange_open(struct exchange **out, struct server *s, dsv4_err *err)
{
    struct exchange *x;
    *out = NULL;
    TRY(mem_alloc(&x, 1, sizeof *x, "a request", err));
    atomic_init(&x->refs, 1);
    x->server = s;
    x->number = atomic_fetch_add(&s->next_number, 1) + 1;
    x->begun = x->touched = clock_seconds();
    snprintf(x->id, sizeof x->id, "req_%016llx",
             (unsigned long long)(((uint64_t)s->created << 24) + x->number));
    pthread_mutex_init(&x->lock, NULL);
    *out = x;
    return 0;
}

struct exchange *exchange_ref(struct exchange *x)
{
    atomic_fetch_add(&x->refs, 1);
    return x;
}

void exchange_unref(struct exchange *x)
{
    if (!x || atomic_fetch_sub(&x->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&x->lock);
    free(x->path);
    free(x->body.data);
    out_free(&x->out);
    free(x);
}

static void begin(struct exchange *x, int status, const char *type)
{
    x->status = status;
    x->type = type;
    x->touched = clock_seconds();
}

static enum protocol protocol(const struct exchange *x)
{
    return x->route ? x->route->protocol : PROTOCOL_OPENAI;
}

void exchange_reply(struct exchange *x, int status, const char *type, struct out *o)
{
    pthread_mutex_lock(&x->lock);
    if (x->status == 0) {
        begin(x, o->failed ? 500 : status, type);
        struct out was = x->out;
        x->out = *o;
        *o = was;
        if (x->out.failed) {
            struct failure f;
            out_free(&x->out);
            x->type = "application/json";
            fail_set(&f, 500, NULL, "out of memory");
            failure_body(&x->out, protocol(x), &f, x->id); /* or the connection is closed */
        }
        x->complete = true;
    }
    pthread_mutex_unlock(&x->lock);
    out_free(o);
    http_wake(x->server->http);
}

void exchange_stream(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    if (x->status == 0) {
        begin(x, 200, "text/event-stream");
        x->sse = true;
    }
    pthread_mutex_unlock(&x->lock);
}

void exchange_push(struct exchange *x, struct out *o)
{
    pthread_mutex_lock(&x->lock);
    if (x->sse && !x->complete) {
        if (x->sent == x->out.b.len && !x->out.failed) {
            struct out was = x->out;
            was.b.len = 0;
            x->out = *o;
            *o = was;
            x->sent = 0;
        } else {
            out_add(&x->out, o->b.data, o->b.len);
            x->out.failed = x->out.failed || o->failed;
        }
        x->touched = clock_seconds();
    }
    pthread_mutex_unlock(&x->lock);
    o->b.len = 0;
    o->failed = false;
}

void exchange_end(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    x->complete = true;
    pthread_mutex_unlock(&x->lock);
    http_wake(x->server->http);
}

void exchange_fail(struct exchange *x, const struct failure *f)
{
    struct out o = {0};
    failure_body(&o, protocol(x), f, x->id);
    x->retry = f->retry;
    exchange_reply(x, f->status, "application/json", &o);
}
