/* V4, one step over b->n rows (sequence, position, token) in any mix.
 * b->h is [n][hc][d], the parallel residual streams. */
#include "model.h"

void forward_v4(const struct lane *l, struct batch *b)
{
    const struct model *m = b->m;
    uint32_t n = m->cfg->n_layers;
    embed(l, b);
    hc_start(l, b, &m->layer[0].hc_attn);
    for (uint32_t i = 0; i < n; i++) {
        const struct layer *L = &m->layer[i];
        const struct hc_site *next = i + 1 < n ? &m->layer[i + 1].hc_attn : &m->hc_head;

        hc_pre(l, b, &L->hc_attn, L->attn_norm, (int)i, false); /* streams -> x, normed */
        attention(l, b, L);                                     /* x -> y */
        hc_post(l, b, &L->hc_ffn, (int)i, false); /* h_j <- post_j y + sum_i C_ij h_i */

        hc_pre(l, b, &L->hc_ffn, L->ffn_norm, (int)i, true);
        moe(l, b, L);
        hc_post(l, b, next, (int)i, true);
    }
    hc_head(l, b);
    head(l, b);
}
