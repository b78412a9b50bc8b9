/* V4.1, one step over b->n rows: as V4, but every site uses the pre-mix of the site before
 * (b->carried, one-hot at first), some layers read the engram, and layers share compressed
 * caches and selections with the source before them (struct layer says which). */
#include "model.h"

void forward_v41(const struct lane *l, struct batch *b)
{
    const struct model *m = b->m;
    embed(l, b);
    for (uint32_t i = 0; i < m->cfg->n_layers; i++) {
        const struct layer *L = &m->layer[i];
        if (L->engram)
            engram(l, b, L);

        hc_pre(l, b, &L->hc_attn, L->attn_norm, (int)i, false);
        attention(l, b, L);
        hc_post(l, b, (int)i, false);

        hc_pre(l, b, &L->hc_ffn, L->ffn_norm, (int)i, true);
        moe(l, b, L);
        hc_post(l, b, (int)i, true);
    }
    hc_head(l, b);
    head(l, b);
}
