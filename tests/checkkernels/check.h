/* check.h - checkkernels: every kernel of every level this CPU has against the level's scalar twin,
 * in the manner of dav1d's checkasm. The scalar kernels themselves are held against reference.c.
 *
 * A check prepares operands in ordinary memory, lets the twin compute what is wanted, then runs
 * the kernel on copies that end (or begin) at an unreadable page, and compares: outputs, the
 * padding around them, and each row alone against the same row in company. It needs simd/ and
 * quant/ only, so that it can be built for any architecture and run in an emulator. */
#ifndef CHECK_H
#define CHECK_H

#include "simd/simd.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct check;

/* One line of the report: a kernel, and of kernels that know several formats one of them. */
struct line {
    const char *kernel; /* name of the entry in struct kernels */
    size_t entry;       /* its offset there */
    void (*run)(struct check *t);
    enum wformat format; /* matmul, matmul_fast, decode */
    bool panels;
    enum rformat rows;       /* rows, index */
    bool by_format, by_rows; /* which of these name the line */
};

/* A line being checked on one level. */
struct check {
    const struct line *line;
    const struct kernels *k;    /* under test */
    const struct kernels *twin; /* what it has to agree with */
    const char *level;
    bool quick;            /* fewer and smaller cases: sanitizers, emulators */
    uint64_t seed, random; /* of the run; state of the generator */
    size_t limit;          /* failures after which to stop */
    size_t cases, failures;
    double worst;         /* largest error as a share of its bound */
    char what[200];       /* the case at hand, for messages */
    char first[400];      /* the first failure */
    struct block *blocks; /* guard.c: memory of the case */
};

/* ------------------------------------------------------------------ cases (check.c) */

/* Begins a case: says what it is, for messages. */
void check_case(struct check *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void check_fail(struct check *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline bool check_done(const struct check *t)
{
    return t->failures >= t->limit;
}

/* Same bits, all NaN being equal. */
bool same_bits(float a, float b);

/* |got - want| <= bound, or both NaN, or the same infinity; keeps the worst share. */
bool check_close(struct check *t, double got, double want, double bound);

/* How far two sums of n products may lie apart: each is within n 2^-24 sum |a_i b_i| of the
 * exact one, and within n of the smallest float where products underflow. */
double rounding(size_t n, double magnitude);

/* got, width floats a row at distance ld, was filled with fill_floats before the kernel ran:
 * columns c0 .. c1 of `rows` rows may differ from that, all others may not, nor any of the
 * `total` floats. */
void fill_floats(float *x, size_t n);
bool check_padding(struct check *t, const char *name, const float *got, size_t total, size_t ld,
                   size_t rows, size_t c0, size_t c1);

/* ------------------------------------------------------------------ memory (guard.c) */

/* Where an operand lies: its last byte before an unreadable page, its first behind one, or at
 * any other address of its alignment. */
enum edge { EDGE_END, EDGE_BEGIN, EDGE_NONE, N_EDGES };

/* All memory lives until case_end, which reports bytes that were written outside. */
void *keep(struct check *t, size_t bytes); /* ordinary, zeroed */
/* A copy of what the kernel may only read. */
const void *guard_in(struct check *t, const char *name, const void *data, size_t bytes,
                     size_t align, enum edge e);
/* What the kernel may write; holds the bytes of data if that is given. */
void *guard_out(struct check *t, const char *name, const void *data, size_t bytes, size_t align,
                enum edge e);
void case_end(struct check *t);

/* Runs f(arg). A fault inside becomes a failure of the check that names the operand; false then. */
bool guard_call(struct check *t, void (*f)(void *), void *arg);
void guard_install(void);

/* ------------------------------------------------------------------ operands (data.c) */

uint64_t random_bits(struct check *t);
size_t random_below(struct check *t, size_t n); /* 0 .. n - 1 */
float random_float(struct check *t);            /* about normal, sigma 1 */

/* What the numbers of a case look like. ORDER KINDS: kind_name (data.c) */
enum kind {
    K_RANDOM,
    K_ONE_HOT, /* one nonzero activation a row: finds permutations */
    K_MAX,     /* largest codes, one sign: finds saturation */
    K_WIDE,    /* magnitudes 2^-40 .. 2^40 */
    K_TINY,    /* the smallest scales (e8m0 0), activations large */
    K_HUGE,    /* the largest scales (e8m0 254), activations small */
    K_NAN,     /* a NaN or an infinity in some rows */
    K_ZERO,    /* +0 and -0 */
    N_KINDS
};
const char *kind_name(enum kind k);
enum kind random_kind(struct check *t);

void random_rows(struct check *t, float *x, size_t ld, size_t rows, size_t cols, enum kind kind);
void random_bytes(struct check *t, void *p, size_t n);

struct weights {
    struct wmat w;
    size_t code_bytes, scale_bytes;
};
/* A matrix of the line's format and layout; nan: e4m3 codes may be NaN, f16 scales not finite. */
struct weights random_weights(struct check *t, size_t rows, size_t cols, enum kind kind, bool nan);
/* The same in panels, which the line need not ask for. */
struct weights weights_as_panels(struct check *t, const struct weights *plain);
struct wmat guard_weights(struct check *t, const struct weights *a, enum edge e);

/* n quantized rows; the sums fit the codes. */
struct qrows random_qrows(struct check *t, enum qkind q, size_t n, size_t cols, enum kind kind);
struct qrows guard_qrows(struct check *t, const struct qrows *q, size_t n, enum edge e);

/* n random rows of a cache, no NaN codes, moderate scales but for TINY and HUGE. */
uint8_t *random_cache(struct check *t, struct rshape s, size_t n, enum kind kind);

/* ------------------------------------------------------------------ the checks */

/* Kernels written once more from the definitions, in double where simd.h allows rounding. */
void kernels_init_reference(struct kernels *k);

void check_matmul(struct check *t);
void check_decode(struct check *t);
void check_quantize(struct check *t);
void check_fit(struct check *t);
void check_sums(struct check *t); /* sum_squares or dot */
void check_swiglu(struct check *t);
void check_hc_mix(struct check *t);
void check_hc_sum(struct check *t);
void check_block_dots(struct check *t);
void check_rows(struct check *t);
void check_attend(struct check *t);
void check_index(struct check *t);
void check_index_codes(struct check *t);
/* quant/panel.c, for every format: adds to the totals. */
void check_panels_line(uint64_t seed, size_t *passed, size_t *failed);

extern const struct line lines[];
extern const size_t n_lines;
void line_name(char *text, size_t size, const struct line *l);
/* Runs one line; the report is in *t. */
void run_line(struct check *t, const struct line *l);

/* Kernels broken on purpose: each must be found. Returns how many were not; adds to *found. */
int check_broken(uint64_t seed, size_t *found);

/* Times every kernel whose name contains `pattern` on all levels (or on one). */
int bench(const char *pattern, const char *level, uint64_t seed);

#endif
