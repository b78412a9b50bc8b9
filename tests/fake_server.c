#include "fake_server.h"

#include "src/server/turn.h"

/* Tokens that depend on all before them, an end now and then. */
static size_t next_token(void *arg, const dsv4_seq *s)
{
    const struct server *v = arg;
    uint32_t h = 2166136261u;
    for (size_t i = s->n > 8 ? s->n - 8 : 0; i < s->n; i++)
        h = (h ^ (uint32_t)s->token[i]) * 16777619u;
    return h % 11 == 0 ? (size_t)v->eos : h >> 8;
}

void fake_server_options(struct fake_server *f, const dsv4_tokenizer *tok)
{
    struct server *s = &f->server;
    *f = (struct fake_server){.fake = {.vocab = dsv4_tokenizer_size(tok),
                                       .batch = 64,
                                       .next = next_token,
                                       .arg = s,
                                       .rewind = 64},
                              .opt = {.host = "127.0.0.1",
                                      .model_name = "nano",
                                      .max_body = 1 << 20,
                                      .max_messages = 50,
                                      .max_tools = 20,
                                      .max_choices = 4,
                                      .max_connections = 64,
                                      .idle_timeout = 60,
                                      .body_timeout = 60,
                                      .send_timeout = 60,
                                      .ping = 60,
                                      .max_tokens = 40,
                                      .block_limit = 64,
                                      .loop_limit = 64,
                                      .workers = 1,
                                      .sched = {.parallel = 4, .queue = 8, .cache_bytes = 4096}}};
    s->opt = &f->opt;
    s->backend = fake_backend(&f->fake);
    s->tok = tok;
    s->dialect = DSV4_V41; /* as that model */
    s->sampling = (dsv4_sampling){.temperature = 1, .top_p = 1, .repetition = 1};
    s->bos = dsv4_token_find(tok, "<｜begin▁of▁sentence｜>");
    s->eos = dsv4_token_find(tok, "<｜end▁of▁sentence｜>");
}

static void wake(void *arg)
{
    struct server *s = arg;
    http_said(s->http);
}

int fake_server_open(struct fake_server *f, bool http, dsv4_err *err)
{
    struct server *s = &f->server;
    json_watch();
    TRY(grammars_open(&s->grammars, s->tok, s->dialect, err));
    TRY(memory_open(&s->memory, err));
    if (http) {
        f->opt.sched.stepped = wake;
        f->opt.sched.arg = s;
        TRY(http_open(&s->http, s, err));
        TRY(work_open(&s->work, f->opt.workers, 16, err));
    }
    return sched_open(&s->sched, &s->backend, &f->opt.sched, &s->metrics, err);
}

void fake_server_close(struct fake_server *f)
{
    struct server *s = &f->server;
    work_close(s->work);
    sched_close(s->sched);
    http_close(s->http);
    grammars_close(s->grammars);
    memory_close(s->memory);
    *s = (struct server){0};
}
