/* The routes, and how failures look in each protocol. */
#include "api.h"

#include <string.h>

static const struct route routes[] = {
    {"POST", "/v1/chat/completions", false, PROTOCOL_OPENAI, api_chat_completions},
    {"POST", "/v1/completions", false, PROTOCOL_OPENAI, api_completions},
    {"POST", "/v1/responses", false, PROTOCOL_OPENAI, api_responses},
    {"POST", "/v1/messages", false, PROTOCOL_ANTHROPIC, api_messages},
    {"POST", "/v1/messages/count_tokens", false, PROTOCOL_ANTHROPIC, api_count_tokens},
    {"GET", "/v1/models", false, PROTOCOL_OPENAI, api_models},
    {"POST", "/tokenize", false, PROTOCOL_OPENAI, api_tokenize},
    {"POST", "/detokenize", false, PROTOCOL_OPENAI, api_detokenize},
    {"GET", "/health", true, PROTOCOL_OPENAI, api_health},
    {"GET", "/metrics", false, PROTOCOL_OPENAI, api_metrics},
    {"GET", "/props", false, PROTOCOL_OPENAI, api_props},
    {"GET", "/slots", false, PROTOCOL_OPENAI, api_slots},
    {"GET", "/openapi.json", false, PROTOCOL_OPENAI, api_openapi},
    {"GET", "/", true, PROTOCOL_OPENAI, api_page},
    {"GET", "/chat.js", true, PROTOCOL_OPENAI, api_page},
    {"GET", "/markdown.js", true, PROTOCOL_OPENAI, api_page},
    {"GET", "/repo.js", true, PROTOCOL_OPENAI, api_page},
    {"GET", "/chat.css", true, PROTOCOL_OPENAI, api_page},
};

/* /v1/models/NAME is one route for all names. */
static const struct route one_model = {"GET", "/v1/models/{model}", false, PROTOCOL_OPENAI,
                                       api_models};

const struct route *route_at(size_t i)
{
    size_t n = sizeof routes / sizeof *routes;
    return i < n ? &routes[i] : i == n ? &one_model : NULL;
}

static bool fits(const struct route *r, const char *path)
{
    static const char models[] = "/v1/models/";
    if (r == &one_model)
        return strncmp(path, models, sizeof models - 1) == 0 && path[sizeof models - 1];
    return strcmp(r->path, path) == 0;
}

const struct route *route_find(const char *method, const char *path, const char **allow)
{
    const struct route *r;
    *allow = NULL;
    for (size_t i = 0; (r = route_at(i)) != NULL; i++) {
        if (!fits(r, path))
            continue;
        *allow = strcmp(r->method, "GET") == 0 ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
        if (strcmp(r->method, method) == 0 ||
            (strcmp(r->method, "GET") == 0 && strcmp(method, "HEAD") == 0))
            return r;
    }
    return NULL;
}

static void nullable(struct out *o, const char *text)
{
    if (text && *text)
        out_cstring(o, text);
    else
        out_text(o, "null");
}

void failure_body(struct out *o, enum protocol p, const struct failure *f, const char *id)
{
    if (p == PROTOCOL_ANTHROPIC) {
        const char *type = f->status == 529 || f->status == 503   ? "overloaded_error"
                           : f->status >= 500                     ? "api_error"
                           : f->status == 405 || f->status == 415 ? "invalid_request_error"
                                                                  : f->type;
        out_text(o, "{\"type\":\"error\",\"error\":{\"type\":");
        out_cstring(o, type);
        out_text(o, ",\"message\":");
        out_cstring(o, f->message);
        out_text(o, "},\"request_id\":");
        out_cstring(o, id);
        out_text(o, "}");
        return;
    }
    out_text(o, "{\"error\":{\"message\":");
    out_cstring(o, f->message);
    out_text(o, ",\"type\":");
    out_cstring(o, f->type);
    out_text(o, ",\"param\":");
    nullable(o, f->param);
    out_text(o, ",\"code\":");
    nullable(o, f->code);
    out_text(o, "}}");
}
