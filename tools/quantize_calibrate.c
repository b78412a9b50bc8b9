/* dsv4-quantize --calibrate and --sensitivity: texts through the model, what was measured into a file. */
#include "quantize.h"

#include <stdlib.h>
#include <string.h>

static const size_t text_limit = (size_t)1 << 30;

struct ids {
    int32_t *id;
    size_t n, cap;
};

static int add_text(struct ids *all, const dsv4_engine *e, const char *path, dsv4_err *err)
{
    char *text;
    size_t len, n;
    int32_t *id;
    TRY(file_read(path, text_limit, &text, &len, err));
    int rc = len == 0 ? err_set(err, DSV4_USAGE, "%s is empty", path)
                      : dsv4_encode(dsv4_engine_tokenizer(e), text, len, false, &id, &n, err);
    free(text);
    TRY(rc);
    rc = mem_grow(&all->id, &all->cap, all->n + n, sizeof *all->id, "tokens", err);
    if (rc == 0) {
        memcpy(all->id + all->n, id, n * sizeof *id);
        all->n += n;
    }
    dsv4_free(id);
    return rc;
}

static bool show_tokens(void *arg, uint64_t done, uint64_t total)
{
    struct program *p = arg;
    status_show(&p->term, "[%s] %llu of %llu tokens", status_bar(done, total).text,
                (unsigned long long)done, (unsigned long long)total);
    return interrupted();
}

static int run_texts(struct program *p, dsv4_engine *e, const struct calibration *c, dsv4_err *err)
{
    struct ids all = {0};
    char *json = NULL;
    int rc = 0;
    for (size_t i = 0; i < c->texts->n && rc == 0; i++)
        rc = add_text(&all, e, c->texts->item[i], err);
    if (rc == 0) {
        dsv4_calibrate_options o = {c->covariance, show_tokens, p};
        dsv4_sensitivity_options s = {c->type, show_tokens, p};
        rc = c->sensitivity ? dsv4_sensitivity(e, all.id, all.n, c->file, &s, &json, err)
                            : dsv4_calibrate(e, all.id, all.n, c->file, &o, &json, err);
        status_clear(&p->term);
    }
    free(all.id);
    TRY(rc);
    if (p->a.json || !p->term.quiet)
        return show_json(p, json, err);
    dsv4_free(json);
    return 0;
}

int calibrate(struct program *p, const struct calibration *c, dsv4_err *err)
{
    dsv4_engine *e;
    dsv4_options o = {.ctx = 2048, .threads = c->threads, .exact = true};
    o.no_cache_quant = c->sensitivity; /* or errors of weights drown in those of caches */
    o.numa = c->sensitivity ? "off" : NULL;
    TRY(dsv4_open(&e, c->model, &o, err));
    int rc = run_texts(p, e, c, err);
    dsv4_close(e);
    return rc;
}
