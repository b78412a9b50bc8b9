/* Times of the kernels on the dimensions of the real models, all levels side by side: one
 * thread, interleaved repetitions, minimum, median and maximum. Weights lie in a matrix larger
 * than the last cache and are walked through, as a model walks through its own. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Outputs of matmuls that times are given for, and the most that are asked for in one call:
 * kernels may keep blocks of a large batch in a cache. */
enum { REPS = 9, MAX_LEVELS = 16, STEP = 64, MOST_STEP = 256 };

/* Operands of one measurement; what is not used stays zero. */
struct work {
    struct wmat w;
    size_t m, n, c, heads, hc;
    float *x, *y, *tmp, *sum;
    struct qrows q;
    struct index_query codes;
    struct rshape s;
    uint8_t *rows;
    size_t at, step;   /* next row of the matrix, rows a call; step 0: not a matrix */
    double bytes, ops; /* of one call: what has to be read, additions and multiplications */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* what others use of a busy machine is not in it */
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static size_t last_cache(void)
{
#ifdef _SC_LEVEL3_CACHE_SIZE
    long n = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (n > 0)
        return (size_t)n;
#endif
    return (size_t)32 << 20;
}

/* ------------------------------------------------------------------ one call of each kernel */

/* The next rows of the matrix, as a matrix of its own. */
static struct wmat next(struct work *j)
{
    struct wmat w = j->w;
    size_t at = j->at;
    j->at = at + j->step + MOST_STEP <= w.rows ? at + j->step : 0;
    size_t unit = w.panels ? PANEL : 1;
    w.codes += at / unit * w.code_ld;
    if (w.scales) /* plain blocks of rows begin at multiples of 128: at / 128 counts them */
        w.scales += (w.panels ? at / PANEL : at / w.block_rows) * w.scale_ld;
    w.rows = (uint32_t)j->step;
    return w;
}

static void run_matmul(const struct kernels *k, struct work *j)
{
    struct wmat w = next(j);
    k->matmul(j->y, MOST_STEP, j->x, w.cols, NULL, j->m, &w, 0, j->step, j->tmp);
}

static void run_fast(const struct kernels *k, struct work *j)
{
    struct wmat w = next(j);
    k->matmul_fast(j->y, MOST_STEP, &j->q, NULL, j->m, &w, 0, j->step, j->tmp);
}

static void run_decode(const struct kernels *k, struct work *j)
{
    struct wmat w = next(j);
    for (size_t r = 0; r < j->step; r++)
        k->decode(j->y, &w, r);
}

static void run_quantize(const struct kernels *k, struct work *j)
{
    k->quantize(&j->q, 0, j->x, 0, j->q.cols);
}

static void run_fit(const struct kernels *k, struct work *j)
{
    static const struct grid even = {.low = -8, .high = 7};
    static const struct grid uneven = {
        .n = 16,
        .low = -120,
        .high = 120,
        .value = {-120, -104, -88, -72, -56, -40, -24, -8, 8, 24, 40, 56, 72, 88, 104, 120},
        .middle = {-112, -96, -80, -64, -48, -32, -16, 0, 16, 32, 48, 64, 80, 96, 112}};
    k->fit(j->y, j->y + PANEL, j->x, j->tmp, j->tmp, j->n ? &uneven : &even);
}

static void run_squares(const struct kernels *k, struct work *j)
{
    *j->y = k->sum_squares(j->x, j->n);
}

static void run_dot(const struct kernels *k, struct work *j)
{
    *j->y = k->dot(j->x, j->tmp, j->n);
}

static void run_swiglu(const struct kernels *k, struct work *j)
{
    memcpy(j->y, j->tmp,
           j->n * sizeof *j->y); /* or the values would run away; one of three passes */
    k->swiglu(j->y, j->x, j->n, 10, 0.5f);
}

static void run_hc_mix(const struct kernels *k, struct work *j)
{
    k->hc_mix(j->y, j->n, j->x, j->tmp, j->tmp + 16, j->hc, j->n);
}

static void run_hc_sum(const struct kernels *k, struct work *j)
{
    k->hc_sum(j->y, j->x, j->n, j->tmp, j->hc, j->n);
}

static void run_rows(const struct kernels *k, struct work *j)
{
    k->rows(j->y, j->rows, j->n, j->s);
}

static void run_attend(const struct kernels *k, struct work *j)
{
    float *max = j->sum, *sum = j->sum + j->heads;
    for (size_t h = 0; h < j->heads; h++) {
        max[h] = 0;
        sum[h] = 1;
    }
    for (size_t i = 0; i < j->n; i += ATTEND_TILE)
        k->attend(j->y, max, sum, j->x, j->heads, j->tmp + i * j->c, ATTEND_TILE, j->c, 0.04f);
}

static void run_index(const struct kernels *k, struct work *j)
{
    k->index(j->y, j->x, j->tmp, j->heads, j->rows, j->n, j->s);
}

static void run_index_codes(const struct kernels *k, struct work *j)
{
    k->index_codes(j->y, &j->codes, j->rows, j->n);
}

/* ------------------------------------------------------------------ operands */

static float *floats(struct check *t, size_t n)
{
    float *x = keep(t, n * sizeof *x);
    random_rows(t, x, n, 1, n, K_RANDOM);
    return x;
}

/* Formats as kernels meet them: evenly spaced tables have a way of their own. */
struct stream {
    enum wformat format;
    const char *name;
    const int8_t *table;
};

static const int8_t even[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
static const int8_t uneven[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
static const struct stream streams[] = {
    {W_E2M1, "e2m1", NULL},
    {W_E4M3, "e4m3", NULL},
    {W_Q8, "q8", NULL},
    {W_Q4, "q4", even},
    {W_Q4, "q4 uneven", uneven},
    {W_Q3, "q3", even + 4},
    {W_Q3, "q3 uneven", uneven + 4},
    {W_Q2, "q2", even + 6},
    {W_Q2, "q2 uneven", uneven + 6},
    {W_BF16, "bf16", NULL},
};

/* cols columns and so many rows that the codes are twice the last cache, in panels (or plain).
 * Scales and codes are random; values do not matter but for NaN and infinities, which the
 * formats cannot give. */
static void matrix(struct check *t, struct work *j, const struct stream *s, bool panels,
                   size_t cols)
{
    enum wformat f = s->format;
    size_t row = wformat_row_bytes(f, cols), rows = (2 * last_cache() / row + 127) / 128 * 128;
    size_t unit = panels ? PANEL : 1;
    struct wmat *w = &j->w;
    *w = (struct wmat){
        .format = f, .panels = panels, .rows = (uint32_t)rows, .cols = (uint32_t)cols};
    w->code_ld = row * unit;
    w->table = s->table;
    uint8_t *code = keep(t, rows * row), *scale;
    random_bytes(t, code, rows * row);
    if (f == W_BF16)
        for (size_t i = 1; i < rows * row; i += 2)
            code[i] = (code[i] & 0x80) | 0x3f;
    else if (f == W_E4M3)
        for (size_t i = 0; i < rows * row; i++)
            code[i] = (code[i] & 0x7f) == 0x7f ? 0 : code[i];
    w->codes = code;
    w->block_rows = f == W_E4M3 ? 128 : 1;
    w->block_cols = f == W_E4M3 ? 128 : GROUP;
    size_t groups = cols / w->block_cols, size = f < W_Q8 ? 1 : 2;
    if (f >= W_E4M3) {
        w->scale_ld = groups * size * (f == W_E4M3 ? 1 : unit);
        size_t n = rows / unit * w->scale_ld;
        w->scales = scale = keep(t, n);
        for (size_t i = 0; i < n; i++) /* 2^-7 .. 2^0, or f16 near 2^-8 */
            scale[i] = (uint8_t)(f < W_Q8 ? 120 + random_below(t, 8) : 0x1c + i % 2);
    }
    double per_row =
        (double)row + (double)w->scale_ld / (double)(f == W_E4M3 && !panels ? 128 : unit);
    j->bytes = STEP * per_row;
    j->step = STEP;
}

static const size_t some_m[] = {1, 4, 12, 512, 2048};

/* ------------------------------------------------------------------ measuring */

struct levels {
    size_t n;
    struct kernels k[MAX_LEVELS];
    uint64_t seed;
    const char *pattern;
    bool any;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef void runner(const struct kernels *, struct work *);

/* Rows a call: few for plain C on a large batch, or it would take minutes. */
static void set_step(struct work *j, const struct kernels *k)
{
    if (j->step > 0)
        j->step = j->m <= 16 ? STEP : strcmp(k->level, "scalar") == 0 ? PANEL : MOST_STEP;
}

/* Calls that take about 5 ms. */
static size_t calls_for(runner *run, const struct kernels *k, struct work *j)
{
    set_step(j, k);
    for (size_t n = 1;; n *= 2) {
        double begin = now();
        for (size_t i = 0; i < n; i++)
            run(k, j);
        double took = now() - begin;
        if (took > 2.5e6)
            return took > 5e6 ? n : 2 * n;
    }
}

/* Levels whose entry is the one below's are left out: it was measured. */
static void measure(struct levels *l, const char *name, size_t entry, runner *run, struct work *j)
{
    double ns[MAX_LEVELS][REPS], below = 0;
    size_t calls[MAX_LEVELS], of[MAX_LEVELS], n = 0;
    for (size_t i = 0; i < l->n; i++)
        if (i == 0 || memcmp((char *)&l->k[i] + entry, (char *)&l->k[of[n - 1]] + entry,
                             sizeof(void (*)(void))) != 0)
            of[n++] = i;
    for (size_t i = 0; i < n; i++)
        calls[i] = calls_for(run, &l->k[of[i]], j);
    for (size_t r = 0; r < REPS; r++)
        for (size_t i = 0; i < n; i++) {
            set_step(j, &l->k[of[i]]);
            double begin = now();
            for (size_t c = 0; c < calls[i]; c++)
                run(&l->k[of[i]], j);
            ns[i][r] = (now() - begin) / (double)calls[i];
            if (j->step > 0)
                ns[i][r] *= (double)STEP / (double)j->step;
        }
    for (size_t i = 0; i < n; i++) {
        qsort(ns[i], REPS, sizeof(double), by_value);
        double mid = ns[i][REPS / 2];
        printf("%-44s %-11s %11.0f ns (%.0f .. %.0f) %8.2f GB/s", i == 0 ? name : "",
               l->k[of[i]].level, mid, ns[i][0], ns[i][REPS - 1], j->bytes / mid);
        if (j->ops > 0)
            printf(" %8.1f Gop/s", j->ops / mid);
        if (i > 0)
            printf("  %5.2f x", below / mid);
        printf("\n");
        below = mid;
    }
    fflush(stdout);
}

static bool chosen(struct levels *l, const char *name)
{
    bool yes = !l->pattern || strstr(name, l->pattern);
    l->any = l->any || yes;
    return yes;
}

/* A matrix once for all its lines. */
static void bench_matrix(struct levels *l, const struct stream *s, size_t cols)
{
    char name[80];
    struct check t = {.random = l->seed};
    struct work j = {0};
    bool made = false;
    for (int fast = 0; fast < 2; fast++)
        for (size_t i = 0; i < sizeof some_m / sizeof *some_m; i++) {
            enum qkind q = l->k[0].fast[s->format];
            j.m = some_m[i];
            snprintf(name, sizeof name, "%s %s panels, cols %zu, m %zu",
                     fast ? "matmul_fast" : "matmul", s->name, cols, j.m);
            if ((fast && q == Q_NONE) || !chosen(l, name))
                continue;
            if (!made)
                matrix(&t, &j, s, true, cols);
            made = true;
            j.ops = 2.0 * STEP * (double)cols * (double)j.m;
            j.x = floats(&t, j.m * cols);
            j.y = keep(&t, j.m * MOST_STEP * sizeof *j.y);
            j.tmp = keep(&t, fast ? FAST_TMP : cols * sizeof *j.tmp);
            if (fast)
                j.q = random_qrows(&t, q, j.m, cols, K_RANDOM);
            measure(l, name,
                    fast ? offsetof(struct kernels, matmul_fast) : offsetof(struct kernels, matmul),
                    fast ? run_fast : run_matmul, &j);
        }
    case_end(&t);
}

static void bench_plain(struct levels *l)
{
    static const struct stream formats[] = {
        {W_BF16, "bf16", NULL}, {W_F32, "f32", NULL}, {W_E4M3, "e4m3", NULL}};
    for (size_t i = 0; i < 3; i++) {
        char name[80];
        struct check t = {.random = l->seed};
        struct work j = {.m = 1};
        snprintf(name, sizeof name, "matmul %s plain, cols 4096, m 1", formats[i].name);
        bool one = chosen(l, name);
        char other[80];
        snprintf(other, sizeof other, "decode %s plain, cols 4096", formats[i].name);
        bool two = chosen(l, other);
        if (!one && !two)
            continue;
        matrix(&t, &j, &formats[i], false, 4096);
        if (formats[i].format == W_F32)
            random_rows(&t, (float *)(uintptr_t)j.w.codes, 4096, j.w.rows, 4096, K_RANDOM);
        j.x = floats(&t, 4096);
        j.y = keep(&t, 4096 * sizeof *j.y);
        j.tmp = keep(&t, 4096 * sizeof *j.tmp);
        j.ops = 2.0 * STEP * 4096;
        if (one)
            measure(l, name, offsetof(struct kernels, matmul), run_matmul, &j);
        j.ops = 0;
        if (two)
            measure(l, other, offsetof(struct kernels, decode), run_decode, &j);
        case_end(&t);
    }
}

#define ONE(text, entry, run, ...)                                      \
    do {                                                                \
        if (chosen(l, text)) {                                          \
            struct work j = {__VA_ARGS__};                              \
            measure(l, text, offsetof(struct kernels, entry), run, &j); \
            case_end(t);                                                \
        }                                                               \
    } while (0)

/* On rows that a cache holds. */
static void bench_rows(struct levels *l, struct check *t)
{
    enum { D = 4096, FF = 2048, HC = 4 };
    const size_t size = sizeof(float);
    ONE("quantize, 4096 to int8", quantize, run_quantize, .x = floats(t, D),
        .q = random_qrows(t, Q_8, 1, D, K_RANDOM), .bytes = D * 4);
    ONE("quantize, 4096 to int16", quantize, run_quantize, .x = floats(t, D),
        .q = random_qrows(t, Q_16, 1, D, K_RANDOM), .bytes = D * 4);
    ONE("fit, 512 weights, whole numbers", fit, run_fit, .x = floats(t, 512), .tmp = floats(t, 512),
        .y = keep(t, 32 * size), .bytes = 512 * 8);
    ONE("fit, 512 weights, 16 values", fit, run_fit, .n = 16, .x = floats(t, 512),
        .tmp = floats(t, 512), .y = keep(t, 32 * size), .bytes = 512 * 8);
    ONE("sum_squares, 4096", sum_squares, run_squares, .n = D, .x = floats(t, D),
        .y = keep(t, size), .bytes = D * 4, .ops = 2 * D);
    ONE("dot, 4096", dot, run_dot, .n = D, .x = floats(t, D), .tmp = floats(t, D),
        .y = keep(t, size), .bytes = D * 8, .ops = 2 * D);
    ONE("swiglu, 2048", swiglu, run_swiglu, .n = FF, .x = floats(t, FF), .tmp = floats(t, FF),
        .y = floats(t, FF), .bytes = FF * 8);
    ONE("hc_sum, 4 streams of 4096", hc_sum, run_hc_sum, .n = D, .hc = HC, .x = floats(t, HC * D),
        .tmp = floats(t, 32), .y = keep(t, D * size), .bytes = D * 4 * HC, .ops = 2.0 * HC * D);
    if (chosen(l, "hc_mix, 4 streams of 4096")) {
        /* Doubly stochastic, so that the streams stay where they are; y is zero. */
        struct work j = {.n = D, .hc = HC, .x = keep(t, D * size), .tmp = keep(t, 512 * size)};
        for (size_t i = 0; i < HC * HC; i++)
            j.tmp[16 + i] = 1.0f / HC;
        j.y = floats(t, HC * D);
        j.bytes = D * 4 * (2 * HC + 1);
        j.ops = 2.0 * HC * (HC + 1) * D;
        measure(l, "hc_mix, 4 streams of 4096", offsetof(struct kernels, hc_mix), run_hc_mix, &j);
        case_end(t);
    }
}

/* Caches: V4 entries, V4.1 window and entries, index keys. */
static void bench_caches(struct levels *l, struct check *t)
{
    enum { ROWS = 640, C = 512, HEADS = 64, KEYS = 4096, WIDTH = 128 };
    static const struct rshape shape[] = {
        {R_E4M3_64B, C, 64}, {R_E4M3_32, C, 0}, {R_E2M1_16, C, 0}, {R_E2M1_32, WIDTH, 0}};
    static const char *const name[] = {"rows e4m3/64+bf16, 640 of 512", "rows e4m3/32, 640 of 512",
                                       "rows e2m1/16, 640 of 512", "rows e2m1/32, 640 of 128"};
    for (size_t i = 0; i < 4; i++)
        ONE(name[i], rows, run_rows, .n = ROWS, .s = shape[i],
            .rows = random_cache(t, shape[i], ROWS, K_RANDOM),
            .y = keep(t, (size_t)ROWS * C * sizeof(float)),
            .bytes = (double)(ROWS * row_bytes(shape[i])));
    ONE("attend, 64 heads of 512, 128 + 512 rows", attend, run_attend, .n = ROWS, .c = C,
        .heads = HEADS, .x = floats(t, (size_t)HEADS * C), .tmp = floats(t, (size_t)ROWS * C),
        .y = floats(t, (size_t)HEADS * C), .sum = floats(t, 2 * HEADS),
        .bytes = (double)ROWS * C * 4, .ops = 4.0 * HEADS * ROWS * C);
    ONE("index e2m1/32, 64 heads of 128, 512 keys", index, run_index, .n = 512, .heads = HEADS,
        .s = shape[3], .x = floats(t, (size_t)HEADS * WIDTH), .tmp = floats(t, HEADS),
        .rows = random_cache(t, shape[3], 512, K_RANDOM), .y = keep(t, 512 * sizeof(float)),
        .bytes = (double)(512 * row_bytes(shape[3])), .ops = 2.0 * 512 * HEADS * WIDTH);
    if (!chosen(l, "index_codes, 64 heads of 128, 4096 keys"))
        return;
    struct work j = {.n = KEYS, .s = shape[3]};
    int8_t *code = keep(t, HEADS * WIDTH);
    for (size_t i = 0; i < HEADS * WIDTH; i++)
        code[i] = (int8_t)((int)random_below(t, 25) - 12);
    j.codes = (struct index_query){HEADS / PANEL, WIDTH, code, floats(t, HEADS * WIDTH / 32),
                                   floats(t, HEADS)};
    j.rows = random_cache(t, shape[3], KEYS, K_RANDOM);
    j.y = keep(t, KEYS * sizeof(float));
    j.bytes = (double)(KEYS * row_bytes(shape[3]));
    j.ops = 2.0 * KEYS * HEADS * WIDTH;
    measure(l, "index_codes, 64 heads of 128, 4096 keys", offsetof(struct kernels, index_codes),
            run_index_codes, &j);
    case_end(t);
}

int bench(const char *pattern, const char *level, uint64_t seed)
{
    struct levels l = {.seed = seed, .pattern = pattern};
    struct check t = {.random = seed};
    bool available;
    const char *name;
    for (size_t i = 0; (name = kernels_level(i, &available)) && l.n < MAX_LEVELS; i++)
        if (available && (!level || strcmp(level, name) == 0))
            l.n += kernels_init(&l.k[l.n], name);
    printf("one thread, %d repetitions, median (min .. max) of a call (matrices: of %d outputs a "
           "row); "
           "last column: faster than the line above\n",
           REPS, STEP);
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        bench_matrix(&l, &streams[i], 4096);
        if (streams[i].format == W_E4M3)
            bench_matrix(&l, &streams[i], 1024);
    }
    bench_plain(&l);
    bench_rows(&l, &t);
    bench_caches(&l, &t);
    if (!l.any)
        fprintf(stderr, "checkkernels: nothing to measure is called %s\n", pattern);
    return l.any ? 0 : 2;
}
