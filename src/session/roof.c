/* Roofs of a machine, measured: how fast its threads read and copy memory and meet, and how many
 * multiply-adds they do from registers. Threads and their places are those that an engine with the same options has. */
#include "session.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 64, LEAST = 256 << 20, CACHES = 8, CHUNK = 64 << 10, ROUNDS = 2000 };

typedef uint64_t words __attribute__((vector_size(32)));

/* Distances at which lines are asked for ahead; which is best depends on the machine, 0 on none so far. */
static const size_t ahead[] = {0, 1024, 2048, 4096};
enum { N_AHEAD = sizeof ahead / sizeof *ahead };

struct measuring {
    struct kernels k;
    uint8_t *at;
    size_t bytes;
    size_t ahead;
    uint64_t (*peak)(uint64_t rounds);
    uint64_t rounds;
    _Atomic uint64_t done, sink;
};

/* n is a multiple of two lines. */
static uint64_t read_lines(const uint8_t *p, size_t n, size_t ahead_bytes)
{
    const words *w = (const words *)(const void *)p;
    words a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i < n / sizeof *w; i += 4) {
        __builtin_prefetch(p + i * sizeof *w + ahead_bytes);
        __builtin_prefetch(p + i * sizeof *w + ahead_bytes + LINE);
        a ^= w[i];
        b ^= w[i + 1];
        c ^= w[i + 2];
        d ^= w[i + 3];
    }
    a ^= b ^ c ^ d;
    return a[0] ^ a[1] ^ a[2] ^ a[3];
}

static void share(const struct lane *l, const struct measuring *s, size_t *from, size_t *to)
{
    lane_split(l, s->bytes, CHUNK, from, to);
}

static void lane_touch(const struct lane *l, void *arg)
{
    struct measuring *s = arg;
    size_t from, to;
    share(l, s, &from, &to);
    memset(s->at + from, l->id + 1, to - from);
}

static void lane_read(const struct lane *l, void *arg)
{
    struct measuring *s = arg;
    size_t from, to;
    share(l, s, &from, &to);
    atomic_fetch_add(&s->sink, read_lines(s->at + from, to - from, s->ahead));
}

/* The first half of this lane's part to the second. */
static void lane_copy(const struct lane *l, void *arg)
{
    struct measuring *s = arg;
    size_t from, to;
    share(l, s, &from, &to);
    size_t half = (to - from) / 2;
    memcpy(s->at + from + half, s->at + from, half);
    atomic_fetch_add(&s->done, half);
}

static void lane_peak(const struct lane *l, void *arg)
{
    struct measuring *s = arg;
    (void)l;
    atomic_fetch_add(&s->done, s->peak(s->rounds));
}

static void lane_meet(const struct lane *l, void *arg)
{
    struct measuring *s = arg;
    for (int i = 0; i < ROUNDS; i++)
        lane_barrier(l);
    if (l->id == 0)
        atomic_store(&s->done, ROUNDS);
}

/* The best of the passes that fit into `seconds`, at least one of each distance. */
static double read_speed(struct measuring *s, struct pool *pool, double seconds, uint64_t *bytes)
{
    double begin = clock_seconds(), best = 0;
    for (int i = 0; i < N_AHEAD || clock_seconds() - begin < seconds; i++) {
        s->ahead = ahead[i % N_AHEAD];
        double t = clock_seconds();
        pool_run(pool, lane_read, s);
        t = clock_seconds() - t;
        best = (double)s->bytes / t > best ? (double)s->bytes / t : best;
        *bytes += s->bytes;
    }
    return best;
}

/* The best rate of what fn adds to s->done. */
static double rate(struct measuring *s, struct pool *pool, double seconds,
                   void (*fn)(const struct lane *l, void *arg))
{
    double begin = clock_seconds(), best = 0;
    do {
        atomic_store(&s->done, 0);
        double t = clock_seconds();
        pool_run(pool, fn, s);
        t = clock_seconds() - t;
        double now = t > 0 ? (double)atomic_load(&s->done) / t : 0;
        best = now > best ? now : best;
    } while (clock_seconds() - begin < seconds);
    return best;
}

static double peak_speed(struct measuring *s, struct pool *pool, double seconds,
                         uint64_t (*peak)(uint64_t rounds))
{
    if (!peak)
        return 0;
    s->peak = peak;
    s->rounds = ROUNDS;
    double t = 0;
    while (t < seconds / 8) { /* long against the start of a region */
        s->rounds *= 2;
        double begin = clock_seconds();
        pool_run(pool, lane_peak, s);
        t = clock_seconds() - begin;
    }
    return rate(s, pool, seconds, lane_peak);
}

/* Memory that no cache holds, as long as that leaves most of what is free. */
static size_t room(int lanes)
{
    uint64_t cache = 0, want, most = mem_available() / 4;
#ifdef _SC_LEVEL3_CACHE_SIZE
    long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    cache = l3 > 0 ? (uint64_t)l3 : 0;
#endif
    want = CACHES * cache; /* of one of them: several belong to more threads than share one */
    if (want < (uint64_t)lanes * (LEAST / 4))
        want = (uint64_t)lanes * (LEAST / 4);
    want = want < LEAST ? LEAST : want;
    want = want > most ? most : want;
    return (size_t)want / CHUNK * CHUNK;
}

static int measure(struct measuring *s, struct pool *pool, double seconds, dsv4_roof *out,
                   dsv4_err *err)
{
    s->bytes = room(pool_threads(pool));
    TRY(mem_map(&s->at, s->bytes, -1, "measuring", err));
    pool_run(pool, lane_touch, s);
    out->read = read_speed(s, pool, seconds / 2, &out->bytes);
    out->copy = rate(s, pool, seconds / 6, lane_copy);
    mem_unmap(s->at, s->bytes);
    out->barrier = pool_threads(pool) > 1 ? 1 / rate(s, pool, seconds / 12, lane_meet) : 0;
    out->int8 = peak_speed(s, pool, seconds / 6, s->k.peak_int8);
    out->f32 = peak_speed(s, pool, seconds / 6, s->k.peak_f32);
    return 0;
}

int dsv4_roofs(const dsv4_options *opt, double seconds, dsv4_roof *out, dsv4_err *err)
{
    static const dsv4_options defaults;
    struct measuring *s;
    struct placement place;
    struct pool *pool;
    dsv4_roof roof = {0};
    TRY(plan_threads(&place, opt ? opt : &defaults, err));
    int rc = pool_open(&pool, &place, err);
    if (rc == 0) {
        rc = mem_alloc(&s, 1, sizeof *s, "measuring", err);
        if (rc == 0)
            rc = model_kernels(&s->k, err);
        if (rc == 0)
            rc = measure(s, pool, seconds, &roof, err);
        if (rc == 0)
            *out = roof;
        free(s);
        pool_close(pool);
    }
    placement_release(&place);
    return rc;
}
