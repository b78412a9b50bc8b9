/* Everything that can be said of a request before its body is there: framing, who asks from where, the
 * route, the body's kind and length. */
#include "http.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEADERS = 128 };

struct header_list {
    struct gate_header h[MAX_HEADERS];
    size_t n;
    bool more;
};

static enum MHD_Result take_header(void *arg, enum MHD_ValueKind kind, const char *name,
                                   size_t name_len, const char *value, size_t value_len)
{
    struct header_list *l = arg;
    (void)kind;
    if (l->n == MAX_HEADERS) {
        l->more = true;
        return MHD_NO;
    }
    l->h[l->n++] = (struct gate_header){name, value ? value : "", name_len, value_len};
    return MHD_YES;
}

const char *http_header(struct MHD_Connection *con, const char *name)
{
    const char *v = MHD_lookup_connection_value(con, MHD_HEADER_KIND, name);
    return v ? v : "";
}

static uint64_t hash(const char *text, uint64_t h)
{
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

/* Who asks: index of the key plus one; 0: nobody we know. */
static size_t who(const struct server_options *opt, struct MHD_Connection *con)
{
    const char *a = http_header(con, "Authorization"), *k = http_header(con, "x-api-key");
    if (*k)
        return gate_key(opt, k);
    if (strncasecmp(a, "Bearer ", 7) == 0)
        return gate_key(opt, a + 7);
    return 0;
}

static int judge_sender(struct MHD_Connection *con, struct exchange *x, struct failure *f)
{
    const struct server_options *opt = x->server->opt;
    const char *host = http_header(con, "Host"), *origin = http_header(con, "Origin");
    if (*host && !gate_host(opt, host))
        return fail_set(f, 403, NULL, "this Host is not served here (see --allow-host)");
    if (*origin && !gate_origin(opt, origin, host))
        return fail_set(f, 403, NULL, "pages of this Origin may not ask here (see --allow-origin)");
    snprintf(x->origin, sizeof x->origin, "%s", origin);
    return 0;
}

static int judge_key(struct MHD_Connection *con, struct exchange *x, struct failure *f)
{
    const struct server_options *opt = x->server->opt;
    size_t key = opt->n_keys ? who(opt, con) : 0;
    bool open = x->route && x->route->open;
    if (opt->n_keys && !key && !open)
        return fail_set(f, 401, NULL, "an API key is needed: Authorization: Bearer KEY");
    x->client = key ? key : hash(x->peer, 0xcbf29ce484222325u) | 1ull << 63;
    x->scope = opt->cache_per_key ? key : 0;
    return 0;
}

static int judge_body(struct MHD_Connection *con, struct exchange *x, struct failure *f)
{
    const struct server_options *opt = x->server->opt;
    const char *length = http_header(con, "Content-Length"),
               *type = http_header(con, "Content-Type");
    if (strtoull(length, NULL, 10) > opt->max_body)
        return fail_set(f, 413, NULL, "the body has %s bytes; at most %zu are taken", length,
                        opt->max_body);
    size_t n = strcspn(type, "; \t");
    if (strcmp(x->method, "POST") == 0 &&
        (n != strlen("application/json") || strncasecmp(type, "application/json", n) != 0))
        return fail_set(f, 415, NULL, "Content-Type must be application/json");
    if (strcmp(http_header(con, "Content-Encoding"), "") != 0 &&
        strcasecmp(http_header(con, "Content-Encoding"), "identity") != 0)
        return fail_set(f, 415, NULL, "Content-Encoding is not understood here");
    return 0;
}

int http_judge(struct MHD_Connection *con, struct exchange *x, const char *url, const char *method,
               const char *version, struct failure *f)
{
    struct header_list l = {.n = 0};
    bool http11 = strcmp(version, "HTTP/1.1") == 0;
    MHD_get_connection_values_n(con, MHD_HEADER_KIND, take_header, &l);
    const char *bad = x->path ? NULL : "the request target is not acceptable";
    if (!bad && !http11 && strcmp(version, "HTTP/1.0") != 0)
        bad = "the version must be HTTP/1.1 or HTTP/1.0";
    if (!bad && l.more)
        bad = "too many headers";
    if (!bad)
        bad = gate_headers(l.h, l.n, http11);
    if (!bad)
        bad = gate_method(method);
    if (bad)
        return fail_set(f, 400, NULL, "%s", bad);
    x->framed = true;
    snprintf(x->method, sizeof x->method, "%s", method);
    x->route = route_find(method, url, &x->allow);
    const char *allow = x->allow;
    x->allow = NULL;
    if (judge_sender(con, x, f) != 0)
        return -1;
    if (strcmp(method, "OPTIONS") == 0 && allow && x->origin[0])
        return 0; /* browsers ask without a key */
    if (judge_key(con, x, f) != 0)
        return -1;
    if (!x->route && !allow)
        return fail_set(f, 404, NULL, "there is nothing at this path");
    if (!x->route) {
        x->allow = allow;
        return fail_set(f, 405, NULL, "the method here must be one of: %s", allow);
    }
    return judge_body(con, x, f);
}

bool http_has_body(struct MHD_Connection *con)
{
    return strcmp(http_header(con, "Transfer-Encoding"), "") != 0 ||
           strtoull(http_header(con, "Content-Length"), NULL, 10) > 0;
}
