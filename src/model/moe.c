/* Mixture of experts (spec: architecture, section 7).
 *
 *   s = score(W_gate x / temp); the k best of s + bias (or the token's own experts in hash layers)
 *   y = sum_e w_e w2_e(silu(min(w1_e x, L)) * clamp(w3_e x, -L, L)) + shared(x)
 *
 * Rows are gathered by expert, so that every expert's weights are read once a step; every lane
 * computes a slice of the rows of each matrix. */
#include "model.h"

#include <math.h>
#include <string.h>

static float softplus(float z)
{
    return z > 20 ? z : log1pf(expf(z));
}

static void score(const struct config *c, float *z)
{
    float top = -INFINITY, sum = 0;
    switch (c->score) {
    case SCORE_SQRTSOFTPLUS:
        for (size_t e = 0; e < c->n_experts; e++)
            z[e] = sqrtf(softplus(z[e]));
        break;
    case SCORE_SIGMOID:
        for (size_t e = 0; e < c->n_experts; e++)
            z[e] = 1.0f / (1.0f + expf(-z[e]));
        break;
    case SCORE_SOFTMAX:
        for (size_t e = 0; e < c->n_experts; e++)
            top = z[e] > top ? z[e] : top;
        for (size_t e = 0; e < c->n_experts; e++)
            sum += z[e] = expf(z[e] - top);
        for (size_t e = 0; e < c->n_experts; e++)
            z[e] /= sum;
        break;
    }
}

/* Sums over experts run in ascending order everywhere. */
static void sort_experts(uint32_t *chosen, size_t k)
{
    for (size_t i = 1; i < k; i++)
        for (size_t j = i; j > 0 && chosen[j] < chosen[j - 1]; j--) {
            uint32_t t = chosen[j];
            chosen[j] = chosen[j - 1];
            chosen[j - 1] = t;
        }
}

/* The k best of s + bias, ties to the lower number, into ascending order. NaN scores rank last, so
 * that k different experts come out whatever the weights are. */
static void best_experts(const struct config *c, const float *s, const float *bias,
                         uint32_t *chosen)
{
    size_t k = c->top_k, n = 0;
    for (uint32_t e = 0; e < c->n_experts; e++) {
        float v = s[e] + bias[e];
        size_t at = n;
        while (at > 0 &&
               (v > s[chosen[at - 1]] + bias[chosen[at - 1]] ||
                isnan(s[chosen[at - 1]] + bias[chosen[at - 1]])) &&
               !isnan(v))
            at--;
        if (at == k)
            continue;
        n = n < k ? n + 1 : n;
        memmove(chosen + at + 1, chosen + at, (n - 1 - at) * sizeof *chosen);
        chosen[at] = e;
    }
    sort_experts(chosen, k);
}

void route(const struct config *c, float *z, const float *bias, uint32_t *chosen, float *weight)
{
    if (c->family == FAMILY_V41)
        for (size_t e = 0; e < c->n_experts; e++)
            z[e] /= c->gate_temp;
    score(c, z);
    if (bias)
        best_experts(c, z, bias, chosen);
    float sum = 0;
    for (size_t j = 0; j < c->top_k; j++)
        sum += weight[j] = z[chosen[j]];
    bool v41 = c->family == FAMILY_V41;
    if (v41 ? c->norm_topk && c->top_k > 1 : c->score != SCORE_SOFTMAX)
        for (size_t j = 0; j < c->top_k; j++)
            weight[j] /= v41 ? sum + 1e-20f : sum;
    for (size_t j = 0; j < c->top_k; j++)
        weight[j] *= c->routed_scale;
}

static void experts_of_token(const struct batch *b, const struct layer *L, size_t row,
                             uint32_t *chosen)
{
    size_t k = b->m->cfg->top_k;
    for (size_t j = 0; j < k; j++) {
        const uint8_t *p = L->moe.tid2eid + ((size_t)b->token[row] * k + j) * L->moe.tid_bytes;
        memcpy(&chosen[j], p, sizeof chosen[j]); /* little endian, checked to be below E */
    }
    sort_experts(chosen, k);
}

/* Counting sort of (row, choice) by expert. */
static void gather(struct batch *b)
{
    const struct config *c = b->m->cfg;
    size_t k = c->top_k, n = b->n * k;
    memset(b->expert_at, 0, (c->n_experts + 1) * sizeof *b->expert_at);
    for (size_t i = 0; i < n; i++)
        b->expert_at[b->pick[i] + 1]++;
    for (size_t e = 0; e < c->n_experts; e++)
        b->expert_at[e + 1] += b->expert_at[e];
    for (size_t i = 0; i < n; i++) {
        uint32_t at = b->expert_at[b->pick[i]]++;
        b->expert_row[at] = (uint32_t)(i / k);
        b->expert_w[at] = b->pick_w[i];
        b->expert_slot[i] = at;
    }
    for (size_t e = c->n_experts; e > 0; e--)
        b->expert_at[e] = b->expert_at[e - 1];
    b->expert_at[0] = 0;
}

enum { FEW = 17 }; /* rows that one lane routes faster than all can meet */

/* Routes rows r0 .. r1. */
static void route_rows(struct batch *b, const struct layer *L, size_t r0, size_t r1)
{
    const struct config *c = b->m->cfg;
    size_t k = c->top_k;
    for (size_t r = r0; r < r1; r++) {
        if (L->hashed)
            experts_of_token(b, L, r, b->pick + r * k);
        route(c, b->router + r * c->n_experts, L->moe.bias, b->pick + r * k, b->pick_w + r * k);
    }
}

/* x -> the rows of every expert, with their weights. */
static void choose_experts(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    size_t r0, r1;
    linear_act(l, b, b->router, c->n_experts, ACT_X, b->n, &L->moe.gate);
    lane_barrier(l);
    lane_split(l, b->n, 1, &r0, &r1);
    if (b->n > FEW) {
        route_rows(b, L, r0, r1);
        lane_barrier(l);
    } else if (l->id == 0) {
        route_rows(b, L, 0, b->n);
    }
    if (l->id == 0)
        gather(b);
    lane_barrier(l);
    TAP(l, b, (int)L->id, "router", b->router, b->n, c->n_experts);
    TAP(l, b, (int)L->id, "expert_w", b->pick_w, b->n, c->top_k);
    TAP(l, b, (int)L->id, "experts", NULL, b->n, 0);
}

/* y <- weight * silu(w1 x) * w3 x for m rows of the activation `out`, the first of which is row `at`:
 * this lane's slice of the expert's width. */
static void expert_up(const struct lane *l, struct batch *b, const struct expert *e, enum act out,
                      size_t at, const uint32_t *pick, const float *weight, size_t m, float *y,
                      float *gate)
{
    const struct config *c = b->m->cfg;
    size_t ff = e->w1.rows, f0, f1;
    lane_split(l, ff, ROW_UNIT, &f0, &f1);
    if (f0 == f1)
        return;
    product(l, b, gate, ff, ACT_X, pick, m, &e->w1, f0, f1);
    product(l, b, y, ff, ACT_X, pick, m, &e->w3, f0, f1);
    for (size_t i = 0; i < m; i++) {
        b->m->k.swiglu(y + i * ff + f0, gate + i * ff + f0, f1 - f0, c->swiglu_limit,
                       weight ? weight[i] : 1);
        act_ready(b, out, at + i, f0, f1);
    }
}

/* y <- sum over the row's experts, in ascending order, and the shared one. */
static void experts_down(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    size_t k = c->top_k, d = c->d, d0, d1;
    lane_split(l, d, DOT_BLOCK, &d0, &d1);
    if (d0 == d1)
        return;
    for (size_t e = 0; e < c->n_experts; e++) {
        size_t at = b->expert_at[e], m = b->expert_at[e + 1] - at;
        if (m > 0)
            product(l, b, b->down + at * d, d, ACT_UP, b->identity + at, m, &L->moe.expert[e].w2,
                    d0, d1);
    }
    product(l, b, b->y, d, ACT_SHARED, NULL, b->n, &L->moe.shared.w2, d0, d1);
    for (size_t r = 0; r < b->n; r++)
        for (size_t j = 0; j < k; j++) {
            const float *part = b->down + (size_t)b->expert_slot[r * k + j] * d;
            for (size_t i = d0; i < d1; i++)
                b->y[r * d + i] += part[i];
        }
}

void moe(const struct lane *l, struct batch *b, const struct layer *L)
{
    const struct config *c = b->m->cfg;
    size_t ff = c->d_ff, routed = b->n * c->top_k * ff;
    choose_experts(l, b, L);
    lap(l, b, (int)L->id, OP_ROUTER);
    for (size_t e = 0; e < c->n_experts; e++) {
        size_t at = b->expert_at[e], m = b->expert_at[e + 1] - at;
        if (m > 0)
            expert_up(l, b, &L->moe.expert[e], ACT_UP, at, b->expert_row + at, b->expert_w + at, m,
                      b->up + at * ff, b->gate + at * ff);
    }
    expert_up(l, b, &L->moe.shared, ACT_SHARED, 0, NULL, NULL, b->n, b->shared, b->gate + routed);
    lane_barrier(l);
    lap(l, b, (int)L->id, OP_UP);
    experts_down(l, b, L);
    if (b->observer) {
        lane_barrier(l);
        if (l->id == 0)
            b->observer->experts(b->observer->arg, b, L);
    }
    lap(l, b, (int)L->id, OP_DOWN);
}
