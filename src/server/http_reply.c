/* Replies: headers, whole bodies, and streams that grow while they are sent. */
#include "http.h"

#include <stdio.h>
#include <string.h>

enum { STREAM_BLOCK = 32 << 10 };

static enum MHD_Result headers(struct MHD_Response *r, struct exchange *x, bool close_after)
{
    const struct server_options *opt = x->server->opt;
    const char *policy =
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    char retry[16];
    int ok = MHD_YES;
    if (x->type)
        ok &= (int)MHD_add_response_header(r, "Content-Type", x->type);
    ok &= (int)MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    ok &= (int)MHD_add_response_header(r, "Content-Security-Policy", policy);
    ok &= (int)MHD_add_response_header(r, "Referrer-Policy", "no-referrer");
    ok &= (int)MHD_add_response_header(r, "Cache-Control", "no-store");
    ok &= (int)MHD_add_response_header(r, "request-id", x->id);
    ok &= (int)MHD_add_response_header(r, "x-request-id", x->id);
    if (x->sse)
        ok &= (int)MHD_add_response_header(r, "X-Accel-Buffering", "no");
    if (x->allow)
        ok &= (int)MHD_add_response_header(r, "Allow", x->allow);
    if (x->status == 401)
        ok &= (int)MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    if (x->retry) {
        snprintf(retry, sizeof retry, "%u", x->retry);
        ok &= (int)MHD_add_response_header(r, "Retry-After", retry);
    }
    for (size_t i = 0; x->origin[0] && i < opt->n_origins; i++)
        if (strcmp(opt->origins[i], x->origin) == 0) {
            ok &= (int)MHD_add_response_header(r, "Access-Control-Allow-Origin", x->origin);
            ok &= (int)MHD_add_response_header(r, "Vary", "Origin");
            ok &= (int)MHD_add_response_header(r, "Access-Control-Expose-Headers", "request-id");
            if (strcmp(x->method, "OPTIONS") == 0) {
                ok &= (int)MHD_add_response_header(r, "Access-Control-Allow-Methods",
                                                   "GET, POST, OPTIONS");
                ok &= (int)MHD_add_response_header(
                    r, "Access-Control-Allow-Headers",
                    "Authorization, Content-Type, x-api-key, anthropic-version, anthropic-beta");
                ok &= (int)MHD_add_response_header(r, "Access-Control-Max-Age", "600");
            }
        }
    if (close_after)
        ok &= (int)MHD_add_response_header(r, "Connection", "close");
    return ok == MHD_YES ? MHD_YES : MHD_NO;
}

/* What of the stream can be sent now. */
static ssize_t read_stream(void *arg, uint64_t at, char *to, size_t max)
{
    struct exchange *x = arg;
    ssize_t n = 0;
    (void)at;
    pthread_mutex_lock(&x->lock);
    size_t left = x->out.b.len - x->sent;
    if (x->gone || x->out.failed)
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    else if (left > 0) {
        n = (ssize_t)(left < max ? left : max);
        memcpy(to, x->out.b.data + x->sent, (size_t)n);
        x->sent += (size_t)n;
        x->delivered += (uint64_t)n;
        if (x->sent == x->out.b.len)
            x->sent = x->out.b.len = 0;
        http_again(x->server->http);
    } else if (x->complete) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    }
    pthread_mutex_unlock(&x->lock);
    return n;
}

static void stream_done(void *arg)
{
    exchange_unref(arg);
}

enum MHD_Result http_answer(struct MHD_Connection *con, struct exchange *x, bool close_after)
{
    struct MHD_Response *r = NULL;
    bool stream = false;
    pthread_mutex_lock(&x->lock);
    unsigned status = (unsigned)x->status;
    if (status && x->sse) {
        stream = true;
    } else if (status && x->complete && !x->out.failed) {
        size_t len = x->out.b.len;
        r = MHD_create_response_from_buffer(len, x->out.b.data, MHD_RESPMEM_MUST_COPY);
    }
    pthread_mutex_unlock(&x->lock);
    if (stream) {
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream,
                                              exchange_ref(x), stream_done);
        if (!r)
            exchange_unref(x);
    } else if (!status) {
        return MHD_YES;
    }
    if (!r)
        return MHD_NO;
    enum MHD_Result ok = headers(r, x, close_after);
    if (ok == MHD_YES)
        ok = MHD_queue_response(con, status, r);
    MHD_destroy_response(r);
    http_again(x->server->http);
    return ok;
}
