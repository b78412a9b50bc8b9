/* The server as a whole: what belongs together is opened and closed here. */
#include "turn.h"

#include <stdlib.h>
#include <time.h>

static void stepped(void *arg)
{
    struct server *s = arg;
    http_said(s->http);
}

static void note(void *arg, const char *text)
{
    struct server *s = arg;
    if (s->opt->note)
        s->opt->note(s->opt->log_arg, text);
}

static int open_all(struct server *s, dsv4_err *err)
{
    struct sched_options so = s->opt->sched;
    so.log = note;
    so.stepped = stepped;
    so.arg = s;
    json_watch();
    TRY(grammars_open(&s->grammars, s->tok, s->dialect, err));
    TRY(memory_open(&s->memory, err));
    TRY(http_open(&s->http, s, err));
    TRY(sched_open(&s->sched, &s->backend, &so, &s->metrics, err));
    return work_open(&s->work, s->opt->workers, 256, err);
}

int server_open(struct server **out, dsv4_engine *e, size_t batch, const struct server_options *opt,
                dsv4_err *err)
{
    struct server *s;
    *out = NULL;
    TRY(mem_alloc(&s, 1, sizeof *s, "the server", err));
    s->opt = opt;
    s->backend = backend_engine(e, batch);
    s->tok = dsv4_engine_tokenizer(e);
    s->dialect = dsv4_engine_dialect(e);
    s->sampling = dsv4_engine_sampling(e);
    s->bos = dsv4_engine_bos(e);
    s->eos = dsv4_engine_eos(e);
    s->memory_planned = dsv4_engine_memory(e);
    s->created = (int64_t)time(NULL);
    s->metrics.started = clock_seconds();
    int rc = open_all(s, err);
    if (rc != 0) {
        server_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

int server_run(struct server *s, dsv4_err *err)
{
    return http_run(s->http, err);
}

void server_stop(struct server *s)
{
    http_stop(s->http);
}

uint16_t server_port(const struct server *s)
{
    return http_port(s->http);
}

/* Those who use others go first: the threads that submit, the scheduler that replies, then HTTP. */
void server_close(struct server *s)
{
    if (!s)
        return;
    work_close(s->work);
    sched_close(s->sched);
    http_close(s->http);
    grammars_close(s->grammars);
    memory_close(s->memory);
    free(s);
}
