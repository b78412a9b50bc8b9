/* What a model takes of memory beside its weights, as the engine itself would plan it. */
#include "convert.h"

#include "src/session/session.h"

enum { CONTEXT = 32768 };

int memory_beside(struct memory_beside *out, const struct source *s, const dsv4_convert_options *o,
                  dsv4_err *err)
{
    struct checkpoint cp;
    struct placement place;
    struct memory_plan p;
    uint32_t longest = s->cfg->max_ctx;
    dsv4_options eo = {.ctx = o->ctx              ? o->ctx
                              : longest < CONTEXT ? longest
                                                  : CONTEXT,
                       .threads = o->threads};
    TRY(plan_threads(&place, &eo, err));
    int rc = checkpoint_shapes(&cp, s->config.text, s->config.len, err);
    if (rc == 0) {
        rc = plan_make(&p, &cp, &eo, &place, true, err);
        checkpoint_close(&cp);
    }
    placement_release(&place);
    TRY(rc);
    *out = (struct memory_beside){
        .ctx = p.ctx, .caches = p.caches, .buffers = p.scratch, .other = p.other};
    return 0;
}
