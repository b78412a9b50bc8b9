/* What OpenAI's chat completions and completions have in common: parameters of sampling and streams, the
 * head of what is written, tokens as text; and messages of chats. */
#include "api.h"

#include <math.h>
#include <string.h>

void openai_defaults(struct openai_params *p, const struct turn_sampling *s)
{
    *p = (struct openai_params){.n = 1,
                                .cache_prompt = true,
                                .temperature = (double)s->sampling.temperature,
                                .top_p = (double)s->sampling.top_p,
                                .min_p = (double)s->sampling.min_p,
                                .top_k = s->sampling.top_k,
                                .repetition = 1,
                                .seed = INT64_MIN};
}

int openai_stream(struct turn *t, const struct openai_params *p, struct failure *f)
{
    struct {
        bool usage, obfuscation, running;
    } o = {false, false, false};
    static const struct param options[] = {{"include_usage", P_BOOL, 0, 0, 0},
                                           {"include_obfuscation", P_BOOL, 0, 0, 1},
                                           {"continuous_usage_stats", P_BOOL, 0, 0, 2}};
    t->stream = p->stream;
    t->return_progress = p->return_progress;
    if (!p->stream_options)
        return 0;
    if (!p->stream)
        return fail_set(f, 400, "stream_options", "stream_options goes with stream: true");
    if (params_read(p->stream_options, options, 3, &o, f) != 0)
        return -1;
    if (o.running && !o.usage)
        return fail_set(f, 400, "stream_options",
                        "stream_options.continuous_usage_stats goes with include_usage: true");
    t->include_usage = o.usage;
    t->running_usage = o.running;
    return 0;
}

void openai_sampling(const struct openai_params *p, struct turn_sampling *s)
{
    s->sampling.temperature = (float)p->temperature;
    s->sampling.top_p = (float)p->top_p;
    s->sampling.min_p = (float)p->min_p;
    s->sampling.top_k = (int)p->top_k;
    s->sampling.frequency = (float)p->frequency;
    s->sampling.presence = (float)p->presence;
    s->sampling.repetition = (float)p->repetition;
    if (p->seed != INT64_MIN)
        s->sampling.seed = (uint64_t)p->seed;
    s->logit_bias = p->bias;
    s->user = p->user;
    s->timeout = p->timeout;
}

void openai_head(struct turn *t, const char *object)
{
    out_text(&t->out, "{\"id\":");
    out_cstring(&t->out, t->id);
    out_printf(&t->out, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object,
               (long long)t->created);
    out_cstring(&t->out, t->x->server->opt->model_name);
    out_text(&t->out, ",\"system_fingerprint\":\"dsv4-" DSV4_VERSION "\",\"choices\":[");
}

void openai_piece_end(struct turn *t, void (*usage)(struct turn *t))
{
    if (t->include_usage) {
        out_text(&t->out, ",\"usage\":");
        if (t->running_usage)
            usage(t);
        else
            out_text(&t->out, "null");
    }
    out_text(&t->out, "}");
    sse_end(t);
}

void openai_logprob(struct turn *t, const dsv4_logprob *l)
{
    out_number(&t->out, fmax(-9999, (double)l->logprob)); /* JSON has no infinity */
}

void openai_done(struct turn *t)
{
    out_text(&t->out, "data: [DONE]\n\n");
}

void openai_fail(struct turn *t, const struct failure *f)
{
    sse_begin(t, NULL);
    failure_body(&t->out, PROTOCOL_OPENAI, f, t->x->id);
    sse_end(t);
    openai_done(t);
}

/* ------------------------------------------------------------------ messages */

static int check_parts(const json_t *content, struct failure *f)
{
    size_t i;
    json_t *part;
    if (!json_is_array(content))
        return 0;
    json_array_foreach(content, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!type || (strcmp(type, "text") != 0 && strcmp(type, "refusal") != 0))
            return fail_set(f, 400, "messages",
                            "messages: a content part of type %.40s; only text is understood here",
                            type ? type : "(none)");
    }
    return 0;
}

/* {"type": "refusal", "refusal": TEXT} is text that the model wrote. */
static int plain_parts(json_t *content)
{
    size_t i;
    json_t *part;
    json_array_foreach(content, i, part)
    {
        json_t *text = json_object_get(part, "refusal");
        if (api_is(part, "type", "refusal") && json_is_string(text) &&
            (api_set(part, "type", json_string("text")) != 0 ||
             json_object_set(part, "text", text) != 0))
            return -1;
    }
    return 0;
}

/* The names that others have for the same things. */
static int rename_message(json_t *m, struct failure *f)
{
    static const char *const known[] = {
        "role",      "content",      "name",   "tool_calls", "refusal",     "reasoning_content",
        "reasoning", "tool_call_id", "prefix", "audio",      "annotations", "function_call"};
    const char *key;
    json_t *v;
    if (!json_is_object(m))
        return fail_set(f, 400, "messages", "a message must be an object");
    json_object_foreach(m, key, v)
    {
        size_t i = 0;
        while (i < sizeof known / sizeof *known && strcmp(known[i], key) != 0)
            i++;
        if (i == sizeof known / sizeof *known)
            return fail_set(f, 400, "messages", "messages: unknown member %.60s", key);
        if ((strcmp(key, "audio") == 0 || strcmp(key, "function_call") == 0) && !json_is_null(v))
            return fail_set(f, 400, "messages", "messages: %s is not supported here", key);
    }
    if (api_is(m, "role", "developer") && api_set(m, "role", json_string("system")) != 0)
        return fail_set(f, 503, NULL, "out of memory");
    json_t *reasoning = json_object_get(m, "reasoning"), *content = json_object_get(m, "content");
    if (json_is_string(reasoning) && !json_object_get(m, "reasoning_content") &&
        json_object_set(m, "reasoning_content", reasoning) != 0)
        return fail_set(f, 503, NULL, "out of memory");
    if (json_is_null(content) && json_is_string(json_object_get(m, "refusal")) &&
        json_object_set(m, "content", json_object_get(m, "refusal")) != 0)
        return fail_set(f, 503, NULL, "out of memory");
    if (check_parts(content, f) != 0)
        return -1;
    return plain_parts(content) == 0 ? 0 : fail_set(f, 503, NULL, "out of memory");
}

int openai_messages(const struct server *s, json_t *messages, struct failure *f)
{
    size_t i, n = json_array_size(messages);
    json_t *m;
    if (n > s->opt->max_messages)
        return fail_set(f, 400, "messages", "%zu messages; at most %zu are taken", n,
                        s->opt->max_messages);
    json_array_foreach(messages, i, m)
    {
        if (rename_message(m, f) != 0)
            return -1;
    }
    return 0;
}
