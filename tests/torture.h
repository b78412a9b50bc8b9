/* torture.h - scenarios in which the n-th allocation, mapping, file operation or thread creation fails, for n = 1, 2,
 * 3, ..., once or for ever: every call then says so with a status and a message, nothing is left behind, and
 * the same call works as soon as there is enough again, to the same bits. Every way through the program that
 * leads to such a call is tried once, or a sample of these (CHECK_QUICK: a third); CHECK_LONG=1 tries thousands more. How things
 * are made to fail: faults.h. For one .c file of a program, behind `#undef _FORTIFY_SOURCE`, whose inline open()
 * and read() would get in the way of ours. */
#ifndef TESTS_TORTURE_H
#define TESTS_TORTURE_H

#include "suite.h"

#include "src/system/system.h"

#include "faults.h"

#ifndef NO_FAULTS

/* ------------------------------------------------------------------ runs */

/* One run of a scenario: what it gave, and what was wrong. Check's own macros allocate, so nothing is
 * asserted before the run is over. */
struct run {
    uint64_t digest;
    const char *wrong;
};

struct scenario {
    const char *name;
    unsigned kinds; /* bits of enum fault */
    int (*run)(struct run *r, dsv4_err *err);
    void (*begin)(void); /* what is not to fail; may be NULL, as end */
    void (*end)(void);
};

#define MEMORY (1u << FAULT_MEMORY)
#define MAP    (1u << FAULT_MAP)
#define FILES  (1u << FAULT_FILE)
#define THREAD (1u << FAULT_THREAD)

static const char *const kind_name[N_FAULTS] = {"memory", "mapping", "file", "thread"};

/* Where each scenario is, in memory that outlives its process: for the message after a crash. */
struct place {
    bool busy;
    enum fault kind;
    uint64_t n;
    bool forever;
};

static struct place *place;

static void digest(struct run *r, const void *data, size_t len)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < len; i++)
        r->digest = (r->digest ^ p[i]) * 0x100000001b3u;
}

static void expect(struct run *r, bool ok, const char *what)
{
    if (!ok && !r->wrong)
        r->wrong = what;
}

/* The statuses that a failure of this kind may have. */
static bool fits(enum fault kind, int status)
{
    switch (kind) {
    case FAULT_MEMORY:
    case FAULT_MAP: return status == DSV4_NO_MEMORY;
    case FAULT_THREAD: return status == DSV4_FAILED;
    default: return status == DSV4_FAILED || status == DSV4_REFUSED || status == DSV4_NO_MEMORY;
    }
}

#define EXPECT(ok, ...)                \
    do {                               \
        if (!(ok)) {                   \
            faults_show();             \
            ck_abort_msg(__VA_ARGS__); \
        }                              \
    } while (0)

/* One run with the n-th call failing; `base` is what a run without failures gives. Returns the status. */
static int one(const struct scenario *s, enum fault kind, uint64_t n, bool forever, uint64_t base)
{
    struct run r = {0};
    dsv4_err err = {0};
    size_t open_before = faults_descriptors();
    place->kind = kind;
    place->n = n;
    place->forever = forever;
    faults_begin(kind, n, forever);
    int rc = s->run(&r, &err);
    faults_end();
    char where[160];
    snprintf(where, sizeof where, "%s: %s %llu of %llu%s failed, status %d \"%.60s\"", s->name,
             kind_name[kind], (unsigned long long)n, (unsigned long long)faults.calls,
             forever ? " and all after it" : "", rc, err.text);
    EXPECT(!r.wrong, "%s: %s", where, r.wrong);
    EXPECT(faults.n_live == 0, "%s: %zu blocks are left", where, faults.n_live);
    EXPECT(faults.n_maps == 0, "%s: %zu mappings are left", where, faults.n_maps);
    EXPECT(faults_descriptors() == open_before, "%s: open descriptors are left", where);
    if (rc != 0) {
        EXPECT(faults.fired > 0, "%s: it failed by itself", where);
        EXPECT(fits(kind, rc) && err.status == rc, "%s: err says %d", where, err.status);
        EXPECT(err.text[0] != 0, "%s: no message", where);
    } else if (base != 0) {
        EXPECT(r.digest == base, "%s: the result has changed", where);
    } else {
        place->n = r.digest; /* the first run: hands its digest back */
    }
    return rc;
}

static uint64_t base_of(const struct scenario *s, enum fault kind)
{
    ck_assert_int_eq(one(s, kind, 0, false, 0), 0);
    uint64_t base = place->n;
    ck_assert_uint_ne(base, 0);
    return base;
}

/* With CHECK_LONG so many calls at least, which is every one where there are not too many. */
enum { MANY = 2000 };

static size_t sample; /* ways of each kind of a scenario that are tried without CHECK_LONG */

/* The calls that are to fail, ascending; returns how many. */
static size_t choose_calls(uint64_t calls, uint64_t *out, size_t room)
{
    size_t n = 0, ways = faults.n_first;
    if (!getenv("CHECK_LONG")) {
        size_t take = sample < ways ? sample : ways;
        take = getenv("CHECK_QUICK") ? (take + 2) / 3 : take;
        for (; n < take; n++)
            out[n] = faults.first[n * ways / take];
        return n;
    }
    uint64_t step = 1 + calls / MANY;
    for (uint64_t call = 1, next = 0; call <= calls && n < room; call++) {
        bool new = next < ways &&faults.first[next] == call;
        next += new;
        if (new || call % step == 0)
            out[n++] = call;
    }
    return n;
}

static void torture_kind(const struct scenario *s, enum fault kind)
{
    static uint64_t call[FAULTS_SITES + MANY];
    ck_assert_int_eq(one(s, kind, 0, false, 0), 0); /* warms up what is made once in a process */
    faults_survey(true);
    uint64_t base = base_of(s, kind), calls = faults.calls, tried = 0, failed = 0;
    faults_survey(false);
    ck_assert_msg(calls > 0, "%s: nothing of kind %s", s->name, kind_name[kind]);
    size_t n = choose_calls(calls, call, sizeof call / sizeof *call);
    for (size_t i = 0; i < n; i++) {
        failed += one(s, kind, call[i], false, base) != 0;
        failed += one(s, kind, call[i], true, base) != 0;
        tried += 2;
        if (tried % 64 == 0)
            ck_assert_int_eq(one(s, kind, 0, false, base), 0);
    }
    ck_assert_int_eq(one(s, kind, 0, false, base), 0);
    ck_assert_uint_gt(failed, 0);
    printf("   %-22s %-8s %6llu calls, %5llu runs, %5llu refused\n", s->name, kind_name[kind],
           (unsigned long long)calls, (unsigned long long)tried, (unsigned long long)failed);
    fflush(stdout);
}

static void torture(const struct scenario *s)
{
    place->busy = true;
    if (s->begin)
        s->begin();
    for (enum fault kind = 0; kind < N_FAULTS; kind++)
        if (s->kinds & 1u << kind)
            torture_kind(s, kind);
    if (s->end)
        s->end();
    place->busy = false;
}

static const struct scenario *scenarios; /* of the program */
static size_t n_scenarios;
static struct place *places;

START_TEST(everything_fails_once_and_for_ever)
{
    place = &places[_i];
    torture(&scenarios[_i]);
}
END_TEST

/* Reads and writes that are interrupted and short change nothing. */
START_TEST(short_and_interrupted_transfers)
{
    const struct scenario *s = &scenarios[_i];
    place = &places[n_scenarios];
    if (!(s->kinds & FILES))
        return;
    if (s->begin)
        s->begin();
    uint64_t base = base_of(s, FAULT_FILE);
    faults.trickle = true;
    ck_assert_int_eq(one(s, FAULT_FILE, 0, false, base), 0);
    if (s->end)
        s->end();
}
END_TEST

/* The instrument itself: it fails what it should, and sees what is left. */
START_TEST(faults_are_seen)
{
    void *(*volatile get)(size_t) = malloc; /* or a compiler may see that nobody uses the blocks */
    char *(*volatile copy)(const char *) = strdup;
    faults_begin(FAULT_MEMORY, 2, false);
    char *a = get(1), *b = get(1), *c = copy("c");
    free(c);
    faults_end();
    ck_assert(a && !b && c);
    ck_assert_uint_eq(faults.calls, 3);
    ck_assert_uint_eq(faults.fired, 1);
    ck_assert_uint_eq(faults.n_live, 1);
    free(a);
    faults_begin(FAULT_FILE, 1, true);
    bool opened = open("/dev/null", O_RDONLY) >= 0 || fopen("/dev/null", "r");
    faults_end();
    ck_assert(!opened);
}
END_TEST

/* The main() of a program. */
static int run_scenarios(const char *name, const struct scenario *all, size_t n, size_t ways)
{
    sample = ways;
    scenarios = all;
    n_scenarios = n;
    places = mmap(NULL, sizeof *places * (n + 1), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (places == MAP_FAILED)
        return 1;
    Suite *s = suite_create(name);
    TCase *t = tcase_create(name);
    tcase_set_timeout(t, 3600);
    tcase_add_test(t, faults_are_seen);
    tcase_add_loop_test(t, everything_fails_once_and_for_ever, 0, (int)n);
    tcase_add_loop_test(t, short_and_interrupted_transfers, 0, (int)n);
    suite_add_tcase(s, t);
    int rc = run_suite(s);
    for (size_t i = 0; i < n; i++)
        if (places[i].busy)
            printf("%s ended at %s %llu%s\n", scenarios[i].name, kind_name[places[i].kind],
                   (unsigned long long)places[i].n, places[i].forever ? " and all after it" : "");
    return rc;
}

#endif
#endif
