/* Single operators against tests/golden/ops: codecs and quantizers bit for bit, the others to 1e-6
 * relative (Sinkhorn 5e-6). */
#include "suite.h"

#include "quant/quant.h"
#include "simd/codes.h"
#include "src/model/model.h"

#include <jansson.h>
#include <math.h>

static struct store *ops;
static struct kernels kernels;

static void open_ops(const char *name)
{
    dsv4_err err;
    char path[256];
    snprintf(path, sizeof path, GOLDEN "ops/%s.safetensors", name);
    OK(store_open_file(&ops, path, &err));
    kernels_init(&kernels, NULL);
}

static const struct tensor *tensor(const char *name)
{
    const struct tensor *t = store_find(ops, name);
    ck_assert_msg(t != NULL, "no tensor %s", name);
    return t;
}

/* The tensors of these files are aligned for their type only by luck: copy. */
static float *floats(const char *name, size_t *n)
{
    const struct tensor *t = tensor(name);
    ck_assert(t->dtype == DTYPE_F32);
    float *x = malloc(t->bytes + 4);
    memcpy(x, t->data, t->bytes);
    if (n)
        *n = t->bytes / 4;
    return x;
}

static int64_t *ints(const char *name)
{
    const struct tensor *t = tensor(name);
    ck_assert(t->dtype == DTYPE_I64);
    int64_t *x = malloc(t->bytes + 8);
    memcpy(x, t->data, t->bytes);
    return x;
}

static void near(const char *what, const float *got, const float *want, size_t n, double tol)
{
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)got[i] - want[i]) / (1 + fabs((double)want[i]));
        ck_assert_msg(got[i] == want[i] || e <= tol, "%s[%zu]: %.9g, expected %.9g", what, i,
                      (double)got[i], (double)want[i]);
    }
}

static void same_bits(const char *what, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(bits_of_float(got[i]) == bits_of_float(want[i]),
                      "%s[%zu]: %.9g, expected %.9g", what, i, (double)got[i], (double)want[i]);
}

START_TEST(codecs)
{
    open_ops("codecs");
    size_t n;
    float *v = floats("e4m3.value", &n);
    for (size_t i = 0; i < n; i++)
        ck_assert(isnan(v[i]) ? isnan(e4m3_value[i])
                              : bits_of_float(v[i]) == bits_of_float(e4m3_value[i]));
    free(v);
    v = floats("e2m1.value", &n);
    same_bits("e2m1", e2m1_value, v, n);
    free(v);
    for (int i = 0; i < 256; i++) {
        double want;
        memcpy(&want, tensor("e8m0.value_f64")->data + 8 * i, sizeof want);
        ck_assert(isnan(want) ? isnan(e8m0_value((uint8_t)i))
                              : want == (double)e8m0_value((uint8_t)i));
    }
    v = floats("e4m3.in", &n);
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(e4m3_code(v[i]) == tensor("e4m3.code")->data[i], "e4m3 of %.9g",
                      (double)v[i]);
    free(v);
    v = floats("e2m1.in", &n);
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(e2m1_code(v[i]) == tensor("e2m1.code")->data[i], "e2m1 of %.9g",
                      (double)v[i]);
    free(v);
    v = floats("bf16.in", &n);
    for (size_t i = 0; i < n; i++) {
        uint16_t want;
        memcpy(&want, tensor("bf16.bits")->data + 2 * i, sizeof want);
        ck_assert_msg(bf16_code(v[i]) == want, "bf16 of %.9g", (double)v[i]);
    }
    free(v);
    store_close(ops);
}
END_TEST

/* Block maximum -> scale, as row_encode writes it. */
START_TEST(scales)
{
    open_ops("codecs");
    size_t n;
    float *amax = floats("amax", &n), x[64] = {0};
    float *e4 = floats("scale.e4m3_ue8m0", NULL), *e2 = floats("scale.e2m1_ue8m0", NULL);
    float *e16 = floats("scale.e2m1_e4m3", NULL);
    uint8_t row[512];
    for (size_t i = 0; i < n; i++) {
        x[5] = -amax[i];
        row_encode(row, x, (struct rshape){R_E4M3_32, 32, 0});
        ck_assert_msg(e8m0_value(row[32]) == e4[i], "amax %.9g", (double)amax[i]);
        row_encode(row, x, (struct rshape){R_E2M1_32, 32, 0});
        ck_assert_msg(e8m0_value(row[16]) == e2[i], "amax %.9g", (double)amax[i]);
        row_encode(row, x, (struct rshape){R_E2M1_16, 16, 0});
        ck_assert_msg(e4m3_value[row[8]] == e16[i], "amax %.9g", (double)amax[i]);
    }
    free(amax);
    free(e4);
    free(e2);
    free(e16);
    store_close(ops);
}
END_TEST

START_TEST(quantizers)
{
    open_ops("quantizers");
    const struct {
        const char *name;
        struct rshape s;
        size_t hadamard;
    } q[] = {{"e4m3_b32", {R_E4M3_32, 128, 0}, 0},
             {"e4m3_b64", {R_E4M3_64B, 128, 0}, 0},
             {"v4_window_r64", {R_E4M3_64B, 128, 64}, 0},
             {"e2m1_b32", {R_E2M1_32, 128, 0}, 0},
             {"e2m1_e4m3_b16", {R_E2M1_16, 128, 0}, 0},
             {"hadamard_32_then_e2m1_b32", {R_E2M1_32, 32, 0}, 32},
             {"hadamard_64_then_e2m1_b32", {R_E2M1_32, 64, 0}, 64},
             {"hadamard_128_then_e2m1_b32", {R_E2M1_32, 128, 0}, 128}};
    float *x = floats("x", NULL), row[128];
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) {
        float *want = floats(q[i].name, NULL), *turned = NULL;
        char name[32];
        snprintf(name, sizeof name, "hadamard_%zu", q[i].hadamard);
        if (q[i].hadamard)
            turned = floats(name, NULL);
        for (size_t r = 0; r < 24; r++) {
            memcpy(row, x + r * 128, sizeof row);
            if (q[i].hadamard) /* of the golden's own transform: sums that cancel are rounding */
                memcpy(row, turned + r * q[i].hadamard, q[i].hadamard * sizeof *row);
            row_round(&kernels, row, q[i].s);
            same_bits(q[i].name, row, want + r * q[i].s.width, q[i].s.width);
        }
        free(turned);
        free(want);
    }
    for (size_t n = 32; n <= 128; n *= 2) {
        char name[32];
        snprintf(name, sizeof name, "hadamard_%zu", n);
        float *want = floats(name, NULL);
        for (size_t r = 0; r < 24; r++) {
            memcpy(row, x + r * 128, sizeof row);
            hadamard(row, n);
            float most = 1;
            for (size_t i = 0; i < n; i++) /* sums of values of very different size */
                most = fmaxf(most, fabsf(x[r * 128 + i]));
            near(name, row, want + r * n, n, 1e-6 * (double)most);
        }
        free(want);
    }
    free(x);
    store_close(ops);
}
END_TEST

START_TEST(no_row_format_lets_nan_or_infinity_through)
{
    kernels_init(&kernels, NULL);
    for (int f = 0; f < N_RFORMATS; f++) {
        struct rshape s = {(enum rformat)f, 128, f == R_E4M3_64B ? 64 : 0};
        float x[128], y[128];
        uint8_t row[1024];
        for (int i = 0; i < 128; i++)
            x[i] = (float)i - 60;
        ck_assert(row_encode(row, x, s));
        x[3] = NAN;
        x[40] = INFINITY;
        x[100] = -INFINITY;
        ck_assert(!row_encode(row, x, s));
        kernels.rows(y, row, 1, s);
        for (int i = 0; i < 128 && f != R_F32; i++)
            ck_assert(isfinite(y[i]));
    }
}
END_TEST

static void check_sites(size_t n)
{
    char name[32];
#define NAME(suffix) (snprintf(name, sizeof name, "n%zu." suffix, n), name)
    float *m = floats(NAME("m"), NULL), *scale = floats(NAME("scale"), NULL);
    float *base = floats(NAME("base"), NULL), *comb = floats(NAME("comb"), NULL);
    float *pre = floats(NAME("pre"), NULL), *post = floats(NAME("post"), NULL);
    for (size_t r = 0; r < 40; r++) {
        float a[4], b[4], c[16];
        sinkhorn(a, b, c, m + r * (2 + n) * n, scale, base, n, 20, 1e-6f);
        near("pre", a, pre + r * n, n, 5e-6);
        near("post", b, post + r * n, n, 5e-6);
        near("comb", c, comb + r * n * n, n * n, 5e-6);
    }
#undef NAME
    free(m);
    free(scale);
    free(base);
    free(comb);
    free(pre);
    free(post);
}

/* A whole site through the operators of the model: a batch of 6 rows with a model of our own. */
static void check_whole_site(size_t n)
{
    enum { D = 32, ROWS = 6 };
    char name[32];
    dsv4_err err;
#define NAME(suffix) (snprintf(name, sizeof name, "site%zu." suffix, n), name)
    struct config c = {.family = FAMILY_V4,
                       .d = D,
                       .hc_mult = (uint32_t)n,
                       .hc_iters = 20,
                       .hc_eps = 1e-6f,
                       .eps = 1e-6f};
    struct model m = {.cfg = &c, .k = kernels};
    float *fn = floats(NAME("fn"), NULL), *h = floats(NAME("h"), NULL),
          *o = floats(NAME("o"), NULL);
    float *want_x = floats(NAME("collapsed"), NULL), *want_h = floats(NAME("expanded"), NULL);
    snprintf(name, sizeof name, "n%zu.base", n);
    float *base = floats(name, NULL);
    snprintf(name, sizeof name, "n%zu.scale", n);
    float *scale = floats(name, NULL);
    struct wmat plain = {.format = W_F32,
                         .rows = (uint32_t)((2 + n) * n),
                         .cols = (uint32_t)(n * D),
                         .codes = (const uint8_t *)fn,
                         .code_ld = 4 * n * D};
    struct hc_site site = {.fn = {.rows = plain.rows, .cols = plain.cols, .stored = plain},
                           .base = base,
                           .scale = scale};
    float x[ROWS * D], mix[ROWS * 24], pre[ROWS * 4], post[ROWS * 4], comb[ROWS * 16];
    float carried[ROWS * 4], scratch[512], ones[D], part[ROWS * 25];
    ck_assert_uint_le(hc_part_floats(&c), 25);
    for (size_t i = 0; i < D; i++)
        ones[i] = 1;
    struct batch b = {.m = &m,
                      .n = ROWS,
                      .h = h,
                      .x = x,
                      .y = o,
                      .hc_part = part,
                      .mix = mix,
                      .pre = pre,
                      .post = post,
                      .comb = comb,
                      .carried = carried,
                      .scratch = scratch};
    struct pool *pool;
    OK(pool_open_threads(&pool, 1, &err));
    struct lane l = lane_alone(pool);
    hc_start(&l, &b, &site);
    hc_pre(&l, &b, &site, ones, 0, false);
    for (size_t r = 0; r < ROWS; r++) { /* undo nothing: the norm of the collapsed row is known */
        float y[D];
        rms(&kernels, y, want_x + r * D, NULL, D, c.eps);
        near("collapsed", x + r * D, y, D, 5e-6);
    }
    hc_post(&l, &b, NULL, 0, false);
    near("expanded", h, want_h, ROWS * n * D, 5e-6);
    pool_close(pool);
#undef NAME
    free(fn);
    free(h);
    free(o);
    free(want_x);
    free(want_h);
    free(base);
    free(scale);
}

START_TEST(mhc)
{
    open_ops("mhc");
    for (size_t n = 2; n <= 4; n++) {
        check_sites(n);
        check_whole_site(n);
    }
    store_close(ops);
}
END_TEST

START_TEST(ropes)
{
    open_ops("rope");
    const struct {
        const char *name;
        uint32_t r, original;
        size_t c;
        double theta, factor;
    } p[] = {{"main_10000", 64, 0, 96, 10000, 1},
             {"compress_160000_yarn16_65536", 64, 65536, 96, 160000, 16},
             {"small_160000_yarn4_128_r32", 32, 128, 64, 160000, 4},
             {"small_40000_yarn8_64_r16", 16, 64, 48, 40000, 8}};
    int64_t *pos = ints("pos");
    for (size_t i = 0; i < sizeof p / sizeof *p; i++) {
        char name[64];
#define NAME(suffix) (snprintf(name, sizeof name, "%s." suffix, p[i].name), name)
        float *freq = floats(NAME("freq_f32"), NULL), *x = floats(NAME("x"), NULL);
        float *y = floats(NAME("y"), NULL), *back = floats(NAME("y_inverse"), NULL);
#undef NAME
        float f[64], cs[64], v[96];
        rope_frequencies(f, p[i].r, p[i].theta, p[i].factor, p[i].original, 32, 1);
        for (size_t j = 0; j < p[i].r / 2; j++) {
            int64_t ulp = (int64_t)bits_of_float(f[j]) - (int64_t)bits_of_float(freq[j]);
            ck_assert_msg(ulp >= -2 && ulp <= 2, "%s: frequency %zu is %.9g, expected %.9g",
                          p[i].name, j, (double)f[j], (double)freq[j]);
        }
        for (size_t t = 0; t < 11; t++)
            for (size_t h = 0; h < 2; h++) {
                size_t at = (t * 2 + h) * p[i].c;
                rope_pairs(cs, freq, p[i].r, (size_t)pos[t]);
                memcpy(v, x + at, p[i].c * sizeof *v);
                rope(v, p[i].c, p[i].r, cs, false);
                near(p[i].name, v, y + at, p[i].c, 1e-6);
                memcpy(v, x + at, p[i].c * sizeof *v);
                rope(v, p[i].c, p[i].r, cs, true);
                near(p[i].name, v, back + at, p[i].c, 1e-6);
            }
        free(freq);
        free(x);
        free(y);
        free(back);
    }
    free(pos);
    store_close(ops);
}
END_TEST

static void check_router(enum score_func func, const char *kind, float temp)
{
    char name[64];
    float *z = floats("z", NULL), *bias = floats("bias", NULL), none[12] = {0};
    int64_t *hash = ints("hash_ids");
#define NAME(suffix) \
    (snprintf(name, sizeof name, "%s.temp%s." suffix, kind, temp == 1 ? "1.0" : "1.25"), name)
    float *score = floats(NAME("score"), NULL), *w4 = floats(NAME("w_v4"), NULL);
    float *w41 = floats(NAME("w_v41"), NULL), *wh = floats(NAME("w_v4_hash"), NULL);
    int64_t *ids = ints(NAME("ids"));
#undef NAME
    if (func == SCORE_SOFTMAX)
        for (int e = 0; e < 12; e++)
            bias[e] *= 0.1f;
    for (int v41 = 0; v41 < 2; v41++)
        for (size_t r = 0; r < 32; r++) {
            struct config c = {.family = v41 ? FAMILY_V41 : FAMILY_V4,
                               .score = func,
                               .top_k = 3,
                               .n_experts = 12,
                               .norm_topk = true,
                               .routed_scale = 1.5f,
                               .gate_temp = temp};
            uint32_t chosen[3];
            float s[12], w[3], div = v41 ? 1 : temp; /* V4 knows no temperature */
            for (int e = 0; e < 12; e++)
                s[e] = z[r * 12 + (size_t)e] / div;
            route(&c, s, r == 2 || r == 3 ? none : bias, chosen, w);
            near("score", s, score + r * 12, 12, 1e-6);
            for (int j = 0; j < 3; j++)
                ck_assert_msg(chosen[j] == ids[r * 3 + (size_t)j] || r == 2 || r == 3, "%s row %zu",
                              kind, r);
            near("weights", w, (v41 ? w41 : w4) + r * 3, 3, 1e-6);
            if (v41)
                continue;
            for (int e = 0; e < 12; e++)
                s[e] = z[r * 12 + (size_t)e] / div;
            for (int j = 0; j < 3; j++)
                chosen[j] = (uint32_t)hash[r * 3 + (size_t)j];
            route(&c, s, NULL, chosen, w);
            near("hash weights", w, wh + r * 3, 3, 1e-6);
        }
    free(z);
    free(bias);
    free(hash);
    free(score);
    free(w4);
    free(w41);
    free(wh);
    free(ids);
}

START_TEST(router)
{
    open_ops("router");
    for (int t = 0; t < 2; t++) {
        check_router(SCORE_SQRTSOFTPLUS, "sqrtsoftplus", t ? 1.25f : 1);
        check_router(SCORE_SIGMOID, "sigmoid", t ? 1.25f : 1);
        check_router(SCORE_SOFTMAX, "softmax", t ? 1.25f : 1);
    }
    const char *name[] = {"swiglu.limit0.0", "swiglu.limit1.5", "swiglu.limit10.0"};
    const float limit[] = {0, 1.5f, 10};
    size_t n;
    float *g = floats("swiglu.gate", &n), *u = floats("swiglu.up", NULL);
    for (int i = 0; i < 3; i++) {
        float *want = floats(name[i], NULL);
        for (size_t j = 0; j < n; j++) {
            float y = u[j];
            kernels.swiglu(&y, &g[j], 1, limit[i], 1);
            near(name[i], &y, &want[j], 1, 1e-6);
        }
        free(want);
    }
    free(g);
    free(u);
    store_close(ops);
}
END_TEST

START_TEST(sink_attention)
{
    open_ops("attention");
    float *q = floats("q", NULL), *kv = floats("kv", NULL), *sink = floats("sink", NULL);
    float *out = floats("out", NULL), rows[40 * 64];
    const uint8_t *mask = tensor("mask")->data;
    for (size_t r = 0; r < 5; r++) {
        float o[3 * 64] = {0}, max[3], sum[3] = {1, 1, 1};
        size_t n = 0;
        memcpy(max, sink, sizeof max);
        for (size_t j = 0; j < 40; j++)
            if (mask[r * 40 + j])
                memcpy(rows + n++ * 64, kv + j * 64, 64 * sizeof *kv);
        for (size_t j = 0; j < n; j += ATTEND_TILE)
            kernels.attend(o, max, sum, q + r * 3 * 64, 3, rows + j * 64,
                           n - j < ATTEND_TILE ? n - j : ATTEND_TILE, 64, 0.125f);
        for (size_t h = 0; h < 3; h++)
            for (size_t i = 0; i < 64; i++)
                o[h * 64 + i] /= sum[h];
        near("attention", o, out + r * 3 * 64, 3 * 64, 2e-6);
    }
    free(q);
    free(kv);
    free(sink);
    free(out);
    store_close(ops);
}
END_TEST

START_TEST(index_scores_and_top)
{
    open_ops("attention");
    float *q = floats("idx.q", NULL), *k = floats("idx.k", NULL),
          *score = floats("idx.score", NULL);
    float *proj = floats("idx.weights_proj_out", NULL);
    int64_t *visible = ints("idx.visible"), *top = ints("cand.top6");
    const uint8_t *blocks = tensor("cand.blocks")->data;
    for (size_t r = 0; r < 45; r++) {
        float w[8], got[45], best[12];
        uint32_t words[1024];
        ck_assert_uint_le(best_words(6), 1024);
        for (int h = 0; h < 8; h++)
            w[h] = proj[r * 8 + (size_t)h] / (sqrtf(32) * sqrtf(8));
        kernels.index(got, q + r * 8 * 32, w, 8, (const uint8_t *)k, 45,
                      (struct rshape){R_F32, 32, 0});
        near("score", got, score + r * 45, 45, 2e-6);
        /* best 3 of the blocks of 4, the newest visible always among them; then the best 6 inside */
        size_t n = (size_t)visible[r], n_blocks = (n + 3) / 4;
        for (size_t i = 0; i < n_blocks; i++) {
            best[i] = -INFINITY;
            for (size_t j = 4 * i; j < 4 * i + 4 && j < n; j++)
                best[i] = fmaxf(best[i], got[j]);
        }
        if (n_blocks)
            best[n_blocks - 1] = INFINITY;
        uint32_t kept[3], chosen[6];
        size_t n_kept = select_top(kept, best, n_blocks, 3, words);
        for (size_t i = 0, at = 0; i < 12; i++) {
            bool in = at < n_kept && kept[at] == i;
            ck_assert_int_eq(blocks[r * 12 + i], in);
            at += in;
        }
        for (size_t j = 0; j < n; j++)
            if (!blocks[r * 12 + j / 4])
                got[j] = -INFINITY;
        size_t n_top = select_top(chosen, got, n, 6, words);
        for (size_t j = 0; j < 6; j++)
            ck_assert_int_eq(top[r * 6 + j], j < n_top ? (int64_t)chosen[j] : -1);
    }
    free(q);
    free(k);
    free(score);
    free(proj);
    free(visible);
    free(top);
    store_close(ops);
}
END_TEST

static int by_score(const void *a, const void *b)
{
    const float *x = a, *y = b;
    return x[0] != y[0] ? (x[0] < y[0] ? 1 : -1) : (x[1] > y[1]) - (x[1] < y[1]);
}

/* Against sorting: random scores with many ties, or ascending or descending ones, few or more than there is
 * room for. -inf and NaN are never chosen. */
static void top_k_round(int round, unsigned *seed)
{
    enum { MOST = 4000 };
    static float score[MOST], pair[MOST][2];
    static uint32_t got[MOST], words[4 * MOST];
    static bool in[MOST];
    size_t n = round % 50 ? (size_t)(round % 64) + 1 : MOST - (size_t)round;
    size_t k = (size_t)(round / 7 % 40) * (round % 50 ? 1 : 17);
    int order = round / 50 % 3;
    ck_assert_uint_le(best_words(k), 4 * MOST);
    for (size_t i = 0; i < n; i++) {
        *seed = *seed * 1664525u + 1013904223u;
        unsigned dice = *seed >> 28;
        score[i] = dice == 0   ? -INFINITY
                   : dice == 1 ? NAN
                   : order     ? (float)(order == 1 ? i : n - i) / 3
                               : (float)(*seed >> 29) - 4;
        score[i] = dice == 2 ? -0.0f : score[i];
        pair[i][0] = isnan(score[i]) ? -INFINITY : score[i];
        pair[i][1] = (float)i;
    }
    qsort(pair, n, sizeof *pair, by_score);
    size_t want = 0;
    memset(in, 0, sizeof in);
    for (size_t i = 0; i < n && i < k && pair[i][0] > -INFINITY; i++, want++)
        in[(size_t)pair[i][1]] = true;
    size_t found = select_top(got, score, n, k, words);
    ck_assert_uint_eq(found, want);
    for (size_t i = 0; i < found; i++)
        ck_assert(in[got[i]] && (i == 0 || got[i] > got[i - 1]));
}

START_TEST(top_k_with_ties)
{
    unsigned seed = 1;
    for (int round = 0; round < 2000; round++)
        top_k_round(round, &seed);
}
END_TEST

START_TEST(gate_of_the_memory)
{
    open_ops("engram_gate");
    float *h = floats("h", NULL), *key = floats("key", NULL), *value = floats("value", NULL);
    float *qw = floats("q_weight", NULL), *kw = floats("k_weight", NULL);
    float *dot = floats("dot", NULL), *gate = floats("gate", NULL), *out = floats("out", NULL);
    for (size_t i = 0; i < 4 * 32; i++)
        qw[i] *= kw[i];
    for (size_t r = 0; r < 6; r++) {
        float kv[5 * 32], d[4], g[4];
        memcpy(kv, key + r * 4 * 32, 4 * 32 * sizeof *kv);
        memcpy(kv + 4 * 32, value + r * 32, 32 * sizeof *kv);
        engram_gate(&kernels, h + r * 4 * 32, kv, qw, 4, 32, 1e-6f, d, g);
        near("dot", d, dot + r * 4, 4, 1e-6);
        near("gate", g, gate + r * 4, 4, 1e-6);
        near("out", h + r * 4 * 32, out + r * 4 * 32, 4 * 32, 1e-6);
    }
    free(h);
    free(key);
    free(value);
    free(qw);
    free(kw);
    free(dot);
    free(gate);
    free(out);
    store_close(ops);
}
END_TEST

static uint64_t big(const json_t *j)
{
    return json_is_string(j) ? strtoull(json_string_value(j), NULL, 10)
                             : (uint64_t)json_integer_value(j);
}

static void check_sequence(const json_t *s)
{
    uint64_t prime[64], offset[64], multiplier[8], row[64];
    uint32_t ngram = (uint32_t)big(json_object_get(s, "N")),
             heads = (uint32_t)big(json_object_get(s, "heads"));
    struct engram e = {.prime = prime, .offset = offset, .multiplier = multiplier};
    json_t *ids = json_object_get(s, "compressed_ids"), *rows = json_object_get(s, "rows");
    int32_t pad = (int32_t)big(json_object_get(s, "compressed_pad")), history[256];
    for (size_t l = 0; l < json_array_size(json_object_get(s, "layers")); l++) {
        uint64_t total = 0;
        for (uint32_t i = 0; i < ngram; i++)
            multiplier[i] =
                big(json_array_get(json_array_get(json_object_get(s, "multipliers"), l), i));
        for (uint32_t i = 0; i < (ngram - 1) * heads; i++) {
            json_t *sizes =
                json_array_get(json_array_get(json_object_get(s, "primes"), l), i / heads);
            prime[i] = big(json_array_get(sizes, i % heads));
            offset[i] = total;
            total += prime[i];
        }
        uint32_t have = 0;
        for (size_t t = 0; t < json_array_size(ids); t++) {
            json_t *id = json_array_get(ids, t);
            have = json_is_null(id) ? 0 : have + 1;
            history[t] = json_is_null(id) ? 0 : (int32_t)json_integer_value(id);
            engram_rows(row, &e, ngram, heads, history + t, have, pad);
            json_t *want = json_array_get(json_array_get(rows, t), l);
            for (uint32_t i = 0; i < (ngram - 1) * heads; i++)
                ck_assert_uint_eq(row[i], big(json_array_get(want, i)));
        }
    }
}

START_TEST(addresses_of_the_memory)
{
    json_error_t je;
    json_t *j = json_load_file(GOLDEN "ops/engram.json", 0, &je),
           *r = json_object_get(j, "released");
    ck_assert_msg(j != NULL, "%s", je.text);
    uint64_t p = 0, m[8];
    for (size_t l = 0; l < 2; l++) {
        uint64_t total = 0;
        for (size_t s = 0; s < 3; s++)
            for (size_t h = 0; h < 8; h++) {
                p = next_prime(p ? p : big(json_object_get(r, "V0")) - 1);
                json_t *want = json_array_get(json_object_get(r, "primes"), l);
                ck_assert_uint_eq(p, big(json_array_get(json_array_get(want, s), h)));
                total += p;
            }
        ck_assert_uint_eq(total, big(json_array_get(json_object_get(r, "num_embeddings"), l)));
        engram_multipliers(m, 4, big(json_array_get(json_object_get(r, "layers"), l)),
                           engram_bound((uint32_t)big(json_object_get(r, "compressed_vocab"))));
        for (size_t i = 0; i < 4; i++)
            ck_assert_uint_eq(
                m[i], big(json_array_get(json_array_get(json_object_get(r, "multipliers"), l), i)));
    }
    size_t at;
    json_t *d;
    json_array_foreach(json_object_get(j, "bounded_draws"), at, d)
    {
        uint64_t seed = big(json_object_get(d, "seed"));
        if (seed % 10007 != 0)
            continue;
        engram_multipliers(m, 8, seed / 10007, big(json_object_get(d, "bound")));
        for (size_t i = 0; i < 8; i++)
            ck_assert_uint_eq(m[i], 2 * big(json_array_get(json_object_get(d, "draws"), i)) + 1);
    }
    json_array_foreach(json_object_get(j, "sequences"), at, d) check_sequence(d);
    json_decref(j);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ops");
    TCase *t = tcase_create("golden");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, codecs);
    tcase_add_test(t, scales);
    tcase_add_test(t, quantizers);
    tcase_add_test(t, no_row_format_lets_nan_or_infinity_through);
    tcase_add_test(t, mhc);
    tcase_add_test(t, ropes);
    tcase_add_test(t, router);
    tcase_add_test(t, sink_attention);
    tcase_add_test(t, index_scores_and_top);
    tcase_add_test(t, top_k_with_ties);
    tcase_add_test(t, gate_of_the_memory);
    tcase_add_test(t, addresses_of_the_memory);
    suite_add_tcase(s, t);
    return run_suite(s);
}
