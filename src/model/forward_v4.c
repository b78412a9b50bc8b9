/* V4, one step over b->n rows (sequence, position, token) in any mix.
 * b->h is [n][hc][d], the parallel residual streams. */
#include "model.h"

void forward_v4(const struct lane *l, struct batch *b)
{
    const struct model *m = b->m;
    embed(l, b);
    for (uint32_t i = 0; i < m->cfg->n_layers; i++) {
        const struct layer *L = &m->layer[i];

        hc_pre(l, b, &L->hc_attn, L->attn_norm, (int)i, false); /* streams -> x, normed */
        attention(l, b, L);                                     /* x -> y */
        hc_post(l, b, (int)i, false); /* h_j <- post_j y + sum_i C_ij h_i */

        hc_pre(l, b, &L->hc_ffn, L->ffn_norm, (int)i, true);
        moe(l, b, L);
        hc_post(l, b, (int)i, true);
    }
    hc_head(l, b);
    head(l, b);
}
