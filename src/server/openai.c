/* What OpenAI's chat completions and completions have in common: parameters of sampling and streams, the
 * head of what is written, tokens as text. */
#include "api.h"

#include <math.h>

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
        bool usage, obfuscation;
    } o = {false, false};
    static const struct param options[] = {{"include_usage", P_BOOL, 0, 0, 0},
                                           {"include_obfuscation", P_BOOL, 0, 0, 1}};
    t->stream = p->stream;
    t->return_progress = p->return_progress;
    if (!p->stream_options)
        return 0;
    if (!p->stream)
        return fail_set(f, 400, "stream_options", "stream_options goes with stream: true");
    if (params_read(p->stream_options, options, 2, &o, f) != 0)
        return -1;
    t->include_usage = o.usage;
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

void openai_token(struct turn *t, int32_t id)
{
    char clean[1024];
    size_t len, n = 0;
    const char *text = dsv4_token_bytes(t->x->server->tok, id, &len);
    dsv4_utf8 u = {0};
    if (text)
        n = dsv4_utf8_push(&u, text, len < 300 ? len : 300, clean);
    n += dsv4_utf8_flush(&u, clean + n);
    out_string(&t->out, clean, n);
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
