/* What is let through, decided on what a request says of itself before anything is done for it.
 * libmicrohttpd 0.9.75 takes repeated and contradictory headers, which two programs in a row may
 * read in two ways (request smuggling): here each of them is refused. */
#include "server.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

const char *gate_uri(const char *uri)
{
    size_t n = strlen(uri);
    if (n == 0 || uri[0] != '/')
        return "the request target must be a path";
    if (n > 8192)
        return "the request target is too long";
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)uri[i];
        if (c <= 0x20 || c >= 0x7f)
            return "the request target contains a byte that must be escaped";
        if (c == '%' &&
            (!isxdigit((unsigned char)uri[i + 1]) || !isxdigit((unsigned char)uri[i + 2])))
            return "the request target contains a broken escape";
        if (c == '%' && strncmp(uri + i, "%00", 3) == 0)
            return "the request target contains %00";
    }
    return NULL;
}

const char *gate_method(const char *method)
{
    static const char *const known[] = {"GET",    "HEAD",  "POST",  "OPTIONS", "PUT",
                                        "DELETE", "PATCH", "TRACE", "QUERY"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(method, known[i]) == 0)
            return NULL;
    return "unknown method";
}

static bool is(const struct gate_header *h, const char *name)
{
    return strlen(name) == h->name_len && strncasecmp(h->name, name, h->name_len) == 0;
}

static bool token_char(unsigned char c)
{
    return isalnum(c) || (c && strchr("!#$%&'*+-.^_`|~", c));
}

static const char *check_header(const struct gate_header *h)
{
    if (h->name_len == 0)
        return "a header without a name";
    for (size_t i = 0; i < h->name_len; i++)
        if (!token_char((unsigned char)h->name[i]))
            return "the name of a header contains a byte that must not be there";
    for (size_t i = 0; i < h->value_len; i++) {
        unsigned char c = (unsigned char)h->value[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return "the value of a header contains a control byte";
    }
    return NULL;
}

static const char *check_length(const struct gate_header *h)
{
    if (h->value_len == 0 || h->value_len > 18)
        return "Content-Length must be a number";
    for (size_t i = 0; i < h->value_len; i++)
        if (h->value[i] < '0' || h->value[i] > '9')
            return "Content-Length must be a number";
    return NULL;
}

const char *gate_headers(const struct gate_header *h, size_t n, bool http11)
{
    size_t hosts = 0, lengths = 0, encodings = 0, keys = 0, types = 0, origins = 0;
    for (size_t i = 0; i < n; i++) {
        const char *bad = check_header(&h[i]);
        if (bad)
            return bad;
        hosts += is(&h[i], "Host");
        types += is(&h[i], "Content-Type");
        origins += is(&h[i], "Origin");
        keys += is(&h[i], "Authorization") || is(&h[i], "x-api-key");
        if (is(&h[i], "Content-Length")) {
            lengths++;
            if ((bad = check_length(&h[i])) != NULL)
                return bad;
        }
        if (is(&h[i], "Transfer-Encoding")) {
            encodings++;
            if (h[i].value_len != 7 || strncasecmp(h[i].value, "chunked", 7) != 0)
                return "Transfer-Encoding must be chunked";
        }
    }
    if (hosts > 1 || (hosts == 0 && http11))
        return "exactly one Host header is needed";
    if (lengths > 1 || encodings > 1)
        return "Content-Length or Transfer-Encoding is there more than once";
    if (lengths && encodings)
        return "Content-Length and Transfer-Encoding exclude each other";
    if (encodings && !http11)
        return "HTTP/1.0 has no Transfer-Encoding";
    if (keys > 2 || types > 1 || origins > 1)
        return "a header is there more than once";
    keys = 0;
    for (size_t i = 0; i < n; i++)
        keys += is(&h[i], "Authorization");
    return keys > 1 ? "Authorization is there more than once" : NULL;
}

/* ------------------------------------------------------------------ names */

/* "name:port", "[v6]:port" -> the name. */
static size_t host_name(const char *host, char out[256])
{
    size_t n = strlen(host);
    const char *end = host[0] == '[' ? strchr(host, ']') : strchr(host, ':');
    if (host[0] == '[' && !end)
        return 0;
    if (host[0] == '[')
        end++;
    size_t len = end ? (size_t)(end - host) : n;
    if (len == 0 || len > 255)
        return 0;
    for (const char *p = host + len; *p; p++)
        if (p == host + len ? *p != ':' : *p < '0' || *p > '9')
            return 0;
    for (size_t i = 0; i < len; i++)
        out[i] = (char)tolower((unsigned char)host[i]);
    if (out[len - 1] == '.')
        len--;
    out[len] = 0;
    return len;
}

static bool is_address(const char *name)
{
    return name[0] == '[' || name[strspn(name, "0123456789.")] == 0;
}

/* A page of an attacker may be given our address by his name server; its requests still carry his
 * name. */
bool gate_host(const struct server_options *opt, const char *host)
{
    char name[256];
    if (host_name(host, name) == 0)
        return false;
    if (strcmp(name, "localhost") == 0 || is_address(name) || strcasecmp(name, opt->host) == 0)
        return true;
    for (size_t i = 0; i < opt->n_hosts; i++)
        if (strcasecmp(opt->hosts[i], name) == 0 || strcmp(opt->hosts[i], "*") == 0)
            return true;
    return false;
}

bool gate_origin(const struct server_options *opt, const char *origin, const char *host)
{
    const char *scheme = opt->tls_cert ? "https://" : "http://";
    size_t n = strlen(scheme);
    if (strncmp(origin, scheme, n) == 0 && strcasecmp(origin + n, host) == 0)
        return true;
    for (size_t i = 0; i < opt->n_origins; i++)
        if (strcmp(opt->origins[i], origin) == 0)
            return true;
    return false;
}

size_t gate_key(const struct server_options *opt, const char *given)
{
    struct key k = {.len = strlen(given)};
    size_t found = 0;
    memcpy(k.text, given, k.len < sizeof k.text ? k.len : sizeof k.text);
    for (size_t i = 0; i < opt->n_keys; i++) {
        volatile unsigned char differ = k.len != opt->keys[i].len;
        for (size_t b = 0; b < sizeof k.text; b++)
            differ = (unsigned char)(differ | (k.text[b] ^ opt->keys[i].text[b]));
        found = differ ? found : i + 1;
    }
    return found;
}
