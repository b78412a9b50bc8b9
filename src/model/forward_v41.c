/* V4.1, one step over b->n rows: as V4, but every site uses the pre-mix of the site before
 * (b->carried, one-hot at first), some layers read the engram, and layers share compressed
 * caches and selections with the source before them (struct layer says which). */
#include "model.h"

void forward_v41(const struct lane *l, struct batch *b)
{
    const struct model *m = b->m;
    uint32_t n = m->cfg->n_layers;
    embed(l, b);
    hc_start(l, b, &m->layer[0].hc_attn);
    for (uint32_t i = 0; i < n; i++) {
        const struct layer *L = &m->layer[i];
        const struct layer *after = i + 1 < n ? L + 1 : NULL;
        if (L->engram) {
            engram(l, b, L);
            hc_start(l, b, &L->hc_attn);
        }

        hc_pre(l, b, &L->hc_attn, L->attn_norm, (int)i, false);
        attention(l, b, L);
        hc_post(l, b, &L->hc_ffn, (int)i, false);

        hc_pre(l, b, &L->hc_ffn, L->ffn_norm, (int)i, true);
        moe(l, b, L);
        hc_post(l, b, after && !after->engram ? &after->hc_attn : NULL, (int)i, true);
    }
    hc_head(l, b);
    head(l, b);
}
