/* repo: the prompt that --repo makes, without asking anybody. */
#include "repo.h"

#include <stdlib.h>

/* The context that the model would have here. */
static int planned_ctx(struct program *p, size_t *ctx, dsv4_err *err)
{
    char *dir, *json = NULL;
    bool embedded;
    TRY(model_find(p, &dir, &embedded, err));
    dsv4_options opt = engine_options(p);
    int rc = dsv4_plan(dir, &opt, &json, err);
    free(dir);
    TRY(rc);
    json_t *plan = json_loads(json, 0, NULL);
    dsv4_free(json);
    *ctx = (size_t)json_integer_value(json_object_get(plan, "ctx"));
    rc = json_made(plan, err);
    json_decref(plan);
    return rc;
}

static int show(struct program *p, const struct repo *r, dsv4_err *err)
{
    char *question = NULL;
    size_t len = 0;
    struct bytes prompt = {0};
    if (p->a.json)
        return json_print(p, repo_json(r), err);
    if (!p->a.quiet) {
        repo_report(r, &p->term.err, r->n);
        TRY(stream_flush(&p->term.err, err));
    }
    int rc = repo_prompt(r, &prompt, err);
    if (rc == 0 && p->argc > 1)
        rc = input_text(p, 1, &question, &len, err);
    if (rc == 0) {
        stream_foreign(&p->term.out, prompt.data, prompt.len);
        stream_foreign(&p->term.out, question, len);
        stream_foreign_end(&p->term.out);
        rc = stream_flush(&p->term.out, err);
    }
    free(question);
    free(prompt.data);
    return rc;
}

int cmd_repo(struct program *p, dsv4_err *err)
{
    struct repo r;
    dsv4_tokenizer *t = NULL;
    size_t ctx = 0;
    int rc = repo_scan(&r, p->argv[0], err);
    if (rc == 0 && p->a.repo_budget == 0)
        rc = planned_ctx(p, &ctx, err);
    if (rc == 0)
        rc = tokenizer_open(p, &t, err);
    if (rc == 0)
        rc = repo_choose(&r, p, t, repo_budget(p, ctx), err);
    if (rc == 0)
        rc = show(p, &r, err);
    dsv4_tokenizer_close(t);
    repo_close(&r);
    return rc;
}
