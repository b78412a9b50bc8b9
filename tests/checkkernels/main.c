/* checkkernels: the program. One line of report a kernel and level. */
#include "check.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ENTRY(name, function) \
    .kernel = #name, .entry = offsetof(struct kernels, name), .run = function
#define MATRIX(name, function, f, p)                                       \
    {                                                                      \
        ENTRY(name, function), .format = f, .panels = p, .by_format = true \
    }
#define CACHE(name, function, f)                          \
    {                                                     \
        ENTRY(name, function), .rows = f, .by_rows = true \
    }

/* F32 matrices stay plain. */
#define EACH_MATRIX(name, function)                                                   \
    MATRIX(name, function, W_F32, false), MATRIX(name, function, W_F16, false),       \
        MATRIX(name, function, W_BF16, false), MATRIX(name, function, W_E4M3, false), \
        MATRIX(name, function, W_E2M1, false), MATRIX(name, function, W_Q8, false),   \
        MATRIX(name, function, W_Q4, false), MATRIX(name, function, W_Q3, false),     \
        MATRIX(name, function, W_Q2, false), MATRIX(name, function, W_BF16, true),    \
        MATRIX(name, function, W_E4M3, true), MATRIX(name, function, W_E2M1, true),   \
        MATRIX(name, function, W_Q8, true), MATRIX(name, function, W_Q4, true),       \
        MATRIX(name, function, W_Q3, true), MATRIX(name, function, W_Q2, true)
#define EACH_CACHE(name, function)                                          \
    CACHE(name, function, R_F32), CACHE(name, function, R_E4M3_64B),        \
        CACHE(name, function, R_E4M3_32), CACHE(name, function, R_E2M1_16), \
        CACHE(name, function, R_E2M1_32)

const struct line lines[] = {
    EACH_MATRIX(decode, check_decode),
    EACH_MATRIX(matmul, check_matmul),
    MATRIX(matmul_fast, check_matmul, W_E4M3, true),
    MATRIX(matmul_fast, check_matmul, W_E2M1, true),
    MATRIX(matmul_fast, check_matmul, W_Q8, true),
    MATRIX(matmul_fast, check_matmul, W_Q4, true),
    MATRIX(matmul_fast, check_matmul, W_Q3, true),
    MATRIX(matmul_fast, check_matmul, W_Q2, true),
    {ENTRY(quantize, check_quantize)},
    {ENTRY(fit, check_fit)},
    {ENTRY(sum_squares, check_sums)},
    {ENTRY(dot, check_sums)},
    {ENTRY(swiglu, check_swiglu)},
    {ENTRY(hc_mix, check_hc_mix)},
    {ENTRY(hc_sum, check_hc_sum)},
    {ENTRY(block_dots, check_block_dots)},
    EACH_CACHE(rows, check_rows),
    {ENTRY(attend, check_attend)},
    EACH_CACHE(index, check_index),
    {ENTRY(index_codes, check_index_codes)},
};
const size_t n_lines = sizeof lines / sizeof *lines;

/* All levels of all architectures, with the bits of cpu.h that they want: those not run are
 * named. */
static const struct {
    const char *name, *arch, *needs;
} every_level[] = {
#define ISA(level, arch, flags, needs) {#level, #arch, #needs},
#include "simd/isa.def"
#undef ISA
    {NULL, NULL, NULL},
};

struct options {
    const char *level, *kernel, *best;
    uint64_t seed;
    bool quick, bench, list, broken_only;
};

struct totals {
    size_t passed, failed, skipped;
};

static bool wanted(const char *pattern, const char *text)
{
    return !pattern || strstr(text, pattern) != NULL;
}

/* Whether the level below has the same kernel: then it has been checked already. */
static bool inherited(const struct kernels *k, const struct kernels *below, const struct line *l)
{
    size_t size = sizeof(void (*)(void));
    return memcmp((const char *)k + l->entry, (const char *)below + l->entry, size) == 0 &&
           (strcmp(l->kernel, "matmul_fast") != 0 || k->fast[l->format] == below->fast[l->format]);
}

static void report(const struct check *t, const char *name, struct totals *sum)
{
    if (t->failures > 0) {
        printf("%-11s %-26s FAILED %zu of %zu cases, first:\n    %s\n", t->level, name, t->failures,
               t->cases, t->first);
        sum->failed++;
    } else if (t->cases == 0) {
        printf("%-11s %-26s no fast kernel for this format\n", t->level, name);
    } else {
        if (t->worst > 0)
            printf("%-11s %-26s ok (%zu cases, worst %.2g of the bound)\n", t->level, name,
                   t->cases, t->worst);
        else
            printf("%-11s %-26s ok (%zu cases, same bits)\n", t->level, name, t->cases);
        sum->passed++;
    }
    fflush(stdout);
}

static void check_level(const struct options *o, const struct kernels *k,
                        const struct kernels *below, struct totals *sum)
{
    struct kernels scalar, reference;
    kernels_init_scalar(&scalar);
    kernels_init_reference(&reference);
    size_t inheriting = 0;
    for (size_t i = 0; i < n_lines; i++) {
        char name[64];
        line_name(name, sizeof name, &lines[i]);
        if (!wanted(o->kernel, name))
            continue;
        if (below && inherited(k, below, &lines[i])) {
            inheriting++;
            continue;
        }
        struct check t = {.k = k, .twin = below ? &scalar : &reference, .level = k->level};
        t.quick = o->quick;
        t.seed = o->seed;
        t.limit = 5;
        run_line(&t, &lines[i]);
        report(&t, name, sum);
    }
    if (inheriting > 0)
        printf("%-11s (%zu kernels are those of the level below)\n", k->level, inheriting);
}

static void check_levels(const struct options *o, struct totals *sum)
{
    struct kernels k, below;
    bool available, any = false;
    const char *name;
    for (size_t i = 0; (name = kernels_level(i, &available)); i++) {
        if (!available || !kernels_init(&k, name))
            continue;
        if (!o->level || strcmp(o->level, name) == 0)
            check_level(o, &k, any ? &below : NULL, sum);
        below = k;
        any = true;
    }
}

/* A level of the table by its name in isa.def; make emulated adds a suffix. */
static bool is_level(const char *level, const char *name)
{
    size_t n = strlen(name);
    return strncmp(level, name, n) == 0 &&
           (level[n] == '\0' || strcmp(level + n, "-emulated") == 0);
}

/* What this run leaves unchecked. */
static void name_missing(const struct options *o, struct totals *sum)
{
    for (size_t j = 0; every_level[j].name; j++) {
        bool built = false, available = false, has;
        const char *name;
        for (size_t i = 0; (name = kernels_level(i, &has)); i++)
            if (is_level(name, every_level[j].name))
                built = true, available = has;
        if (available || (o->level && !is_level(o->level, every_level[j].name)))
            continue;
        if (built)
            printf("SKIP %-11s NOT RUN: this CPU has no %s\n", every_level[j].name,
                   every_level[j].needs);
        else
            printf("SKIP %-11s NOT RUN: it is for %s\n", every_level[j].name, every_level[j].arch);
        sum->skipped++;
    }
}

static void list(void)
{
    bool available;
    const char *name;
    for (size_t i = 0; (name = kernels_level(i, &available)); i++)
        printf("level %-11s %s\n", name, available ? "this CPU has it" : "not on this CPU");
    for (size_t i = 0; i < n_lines; i++) {
        char text[64];
        line_name(text, sizeof text, &lines[i]);
        printf("%s\n", text);
    }
}

static void usage(FILE *to)
{
    fputs("usage: checkkernels [OPTION]...\n"
          "Checks the kernels of every level this CPU has.\n"
          "  --level NAME      only this level\n"
          "  --kernel PATTERN  only lines that contain PATTERN\n"
          "  --seed N          of the random operands; each run prints its own\n"
          "  --quick           fewer and smaller cases (also by CHECK_QUICK=1)\n"
          "  --best NAME       fail unless NAME is the level that would be chosen here\n"
          "  --bench           measure instead: ns, GB/s or Gop/s for all levels side by side\n"
          "  --list            names of levels and kernels\n",
          to);
}

static void parse(struct options *o, int argc, char **argv)
{
    static const struct option known[] = {
        {"level", required_argument, NULL, 'l'},
        {"kernel", required_argument, NULL, 'k'},
        {"seed", required_argument, NULL, 's'},
        {"quick", no_argument, NULL, 'q'},
        {"best", required_argument, NULL, 'b'},
        {"bench", no_argument, NULL, 'B'},
        {"list", no_argument, NULL, 'L'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;)
        switch (c) {
        case 'l': o->level = optarg; break;
        case 'k': o->kernel = optarg; break;
        case 's': o->seed = strtoull(optarg, NULL, 0); break;
        case 'q': o->quick = true; break;
        case 'b': o->best = optarg; break;
        case 'B': o->bench = true; break;
        case 'L': o->list = true; break;
        case 'h': usage(stdout); exit(0);
        default: usage(stderr); exit(2);
        }
    if (optind < argc) {
        usage(stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    const char *quick = getenv("CHECK_QUICK");
    struct options o = {.seed = (uint64_t)time(NULL), .quick = quick && *quick};
    struct totals sum = {0};
    struct kernels k;
    parse(&o, argc, argv);
    if (o.list) {
        list();
        return 0;
    }
    if (o.level && !kernels_init(&k, o.level)) {
        fprintf(stderr, "checkkernels: this CPU has no level %s\n", o.level);
        return 2;
    }
    if (o.bench)
        return bench(o.kernel, o.level, o.seed);
    kernels_init(&k, NULL);
    printf("seed %llu; best level here: %s\n", (unsigned long long)o.seed, k.level);
    if (o.best) {
        bool right = strcmp(o.best, k.level) == 0;
        *(right ? &sum.passed : &sum.failed) += 1;
        if (!right)
            printf("FAILED: %s is chosen, not %s\n", k.level, o.best);
    }
    guard_install();
    if (!o.level && !o.kernel)
        sum.failed += (size_t)check_broken(o.seed, &sum.passed);
    if (wanted(o.kernel, "panels"))
        check_panels_line(o.seed, &sum.passed, &sum.failed);
    check_levels(&o, &sum);
    name_missing(&o, &sum);
    printf("%zu passed, %zu failed, %zu skipped\n", sum.passed, sum.failed, sum.skipped);
    return sum.failed == 0 && sum.passed > 0 ? 0 : 1;
}
