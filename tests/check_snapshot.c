/* Sequences that share, go back and are saved: forks, savepoints, snapshot files. Whatever way a
 * sequence came to its tokens, what follows has the bits of one that was computed in one go. */
#undef _FORTIFY_SOURCE /* its inline open() and read() would get in the way of ours */
#include "suite.h"

#include "faults.h"
#include "src/session/snapshot.h"

#include <signal.h>
#include <sys/resource.h>
#ifdef HAVE_XXHASH
#include <xxhash.h>
#endif

#define NANO "models/nano"

static const char *const models[] = {GOLDEN "v4-tiny",  GOLDEN "v4-pro",    GOLDEN "v4-mixed",
                                     GOLDEN "v41-tiny", GOLDEN "v41-quant", NANO};
enum { N_MODELS = sizeof models / sizeof *models, MORE = 6, MAX_VOCAB = 4096 };

/* Sanitizers are slow, and the largest model is: some of the many lengths will do there. */
static size_t stride(const char *model, size_t few)
{
    bool slow = getenv("CHECK_QUICK"), large = strcmp(model, NANO) == 0;
    return slow && large ? 3 * few : slow || large ? few : 1;
}

static dsv4_engine *open_model(const char *dir, uint32_t ctx, uint32_t batch, uint32_t rewind)
{
    dsv4_err err;
    dsv4_engine *e;
    dsv4_options o = {.ctx = ctx, .batch = batch, .threads = 1, .rewind = rewind};
    OK(dsv4_open(&e, dir, &o, &err));
    ck_assert_uint_le(dsv4_engine_vocab(e), MAX_VOCAB);
    return e;
}

/* Some text, always the same; another one for every `way`. */
static int32_t token(size_t i, size_t way)
{
    return (int32_t)((i * 7919 + i * i % 31 + way * 101 + 13) % 200);
}

/* Appends tokens [dsv4_seq_len, to), at most `step` at a time; digest of all logits. */
static uint64_t append(dsv4_engine *e, dsv4_seq *s, size_t to, size_t step, size_t way)
{
    static float logits[17 * MAX_VOCAB];
    dsv4_row rows[17];
    dsv4_err err;
    uint64_t digest = 1;
    size_t vocab = dsv4_engine_vocab(e);
    while (dsv4_seq_len(s) < to) {
        size_t at = dsv4_seq_len(s), n = to - at < step ? to - at : step;
        for (size_t i = 0; i < n; i++)
            rows[i] = (dsv4_row){s, token(at + i, way), true};
        OK(dsv4_eval(e, rows, n, logits, &err));
        const unsigned char *p = (const unsigned char *)logits;
        for (size_t i = 0; i < n * vocab * sizeof *logits; i++)
            digest = (digest ^ p[i]) * 0x100000001b3u;
    }
    return digest;
}

static dsv4_seq *fresh(dsv4_engine *e)
{
    dsv4_err err;
    dsv4_seq *s;
    OK(dsv4_seq_open(&s, e, &err));
    return s;
}

static dsv4_seq *fork_at(const dsv4_seq *s, size_t len)
{
    dsv4_err err;
    dsv4_seq *f;
    OK(dsv4_seq_fork(&f, s, len, &err));
    ck_assert_uint_eq(dsv4_seq_len(f), len);
    ck_assert(len == 0 ||
              memcmp(dsv4_seq_tokens(f), dsv4_seq_tokens(s), len * sizeof(int32_t)) == 0);
    return f;
}

/* What a sequence that was never shared or saved says to MORE tokens of `way` behind [0, len). */
static uint64_t wanted(dsv4_engine *e, size_t len, size_t way)
{
    dsv4_seq *s = fresh(e);
    append(e, s, len, 17, 0);
    uint64_t digest = append(e, s, len + MORE, MORE, way);
    dsv4_seq_close(s);
    return digest;
}

/* ------------------------------------------------------------------ forks */

START_TEST(forks_at_every_length)
{
    dsv4_engine *e = open_model(models[_i], 256, 16, 0);
    enum { LEN = 61 };
    dsv4_seq *s = fresh(e);
    append(e, s, LEN, 17, 0);
    size_t every = stride(models[_i], 7);
    for (size_t len = 0; len <= LEN; len += every) {
        ck_assert_uint_eq(dsv4_seq_reusable(s, len), len);
        dsv4_seq *f = fork_at(s, len), *g = fork_at(s, len);
        ck_assert_msg(append(e, f, len + MORE, 1, 3) == wanted(e, len, 3), "%s, %zu", models[_i],
                      len);
        ck_assert_msg(append(e, g, len + MORE, 4, 0) == wanted(e, len, 0), "%s, %zu", models[_i],
                      len);
        dsv4_seq *h = fork_at(f, len + 2); /* a fork of a fork, where they differ already */
        append(e, h, len + MORE, 4, 9);
        dsv4_err err;
        OK(dsv4_seq_rewind(f, len, &err));
        ck_assert(append(e, f, len + MORE, 1, 3) == wanted(e, len, 3));
        dsv4_seq_close(len % 2 ? f : g);
        dsv4_seq_close(len % 2 ? g : f);
        dsv4_seq_close(h);
    }
    ck_assert(append(e, s, LEN + MORE, 1, 5) == wanted(e, LEN, 5)); /* nobody wrote into it */
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

/* Where a chunk of rows is full, nearly full and just begun: rows at ratio 1 and 2. */
START_TEST(forks_around_the_end_of_a_chunk)
{
    static const size_t at[] = {1023, 1024, 1025, 2050};
    dsv4_err err;
    dsv4_engine *e = open_model(GOLDEN "v41-quant", 2200, 17, 64);
    bool slow = getenv("CHECK_QUICK");
    for (size_t i = slow; i < (slow ? 2 : sizeof at / sizeof *at); i++) {
        dsv4_seq *s = fresh(e);
        append(e, s, at[i], 17, 0);
        dsv4_seq *f = fork_at(s, at[i]), *g = fork_at(s, at[i] - 3);
        uint64_t want = wanted(e, at[i], 2);
        ck_assert(append(e, f, at[i] + MORE, MORE, 2) == want);
        append(e, g, at[i] + MORE, 5, 8);
        ck_assert(append(e, s, at[i] + MORE, 2, 2) == want);
        OK(dsv4_seq_rewind(s, at[i], &err));
        ck_assert(append(e, s, at[i] + MORE, MORE, 2) == want);
        dsv4_seq_close(s);
        dsv4_seq_close(f);
        dsv4_seq_close(g);
    }
    dsv4_close(e);
}
END_TEST

/* Three generations, closed in all six orders; the others go on in between. */
START_TEST(closing_in_any_order)
{
    static const int order[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                    {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    dsv4_engine *e = open_model(GOLDEN "v41-tiny", 256, 16, 0);
    uint64_t want = wanted(e, 30, 1);
    for (int i = 0; i < 6; i++) {
        faults_begin(FAULT_MEMORY, 0, false);
        dsv4_seq *s[3] = {fresh(e), NULL, NULL};
        append(e, s[0], 40, 17, 0);
        s[1] = fork_at(s[0], 35);
        s[2] = fork_at(s[1], 30);
        for (int k = 0; k < 3; k++) {
            dsv4_seq_close(s[order[i][k]]);
            s[order[i][k]] = NULL;
            for (int j = 0; j < 3; j++) {
                if (!s[j])
                    continue;
                dsv4_seq *f = fork_at(s[j], 30);
                ck_assert(append(e, f, 30 + MORE, 3, 1) == want);
                dsv4_seq_close(f);
                append(e, s[j], dsv4_seq_len(s[j]) + 3, 1, (size_t)j);
            }
        }
        faults_end();
        ck_assert_uint_eq(faults.n_live, 0);
    }
    dsv4_close(e);
}
END_TEST

/* Bytes that the heap has given out; 0 where a sanitizer keeps that to itself. */
static uint64_t heap(void)
{
    struct mallinfo2 m = mallinfo2();
    return (uint64_t)m.uordblks + (uint64_t)m.hblkhd;
}

START_TEST(memory_is_shared)
{
    enum { MOST = 4100, FORKS = 10 };
    size_t len = getenv("CHECK_QUICK") ? 1100 : MOST;
    dsv4_engine *e = open_model(NANO, 16384, 256, 64);
    static dsv4_row rows[MOST];
    dsv4_err err;
    dsv4_seq *s = fresh(e), *f[FORKS];
    uint64_t empty = dsv4_seq_bytes(s), before = heap();
    for (size_t i = 0; i < len; i++)
        rows[i] = (dsv4_row){s, token(i, 0), false};
    OK(dsv4_eval(e, rows, len, NULL, &err));
    uint64_t alone = dsv4_seq_bytes(s), grown = heap() - before;
    if (before) /* what is counted is what is taken */
        ck_assert_msg(grown < (alone - empty) * 101 / 100 + 8192 &&
                          grown > (alone - empty) * 99 / 100,
                      "%ju bytes counted, %ju taken", (uintmax_t)(alone - empty), (uintmax_t)grown);
    before = heap();
    for (size_t i = 0; i < FORKS; i++)
        f[i] = fork_at(s, len);
    uint64_t sum = dsv4_seq_bytes(s), taken = heap() - before;
    for (size_t i = 0; i < FORKS; i++)
        sum += dsv4_seq_bytes(f[i]);
    uint64_t each = (sum - alone) / FORKS, ids = len * 2 * sizeof(int32_t) * 2;
    ck_assert_msg(each < empty + ids + 8192, "a fork takes %ju bytes, an empty sequence %ju",
                  (uintmax_t)each, (uintmax_t)empty);
    if (before)
        ck_assert_uint_lt(taken, FORKS * (empty + ids + 8192));
    printf("   nano, %zu tokens: alone %ju bytes, a fork %ju more, of which an empty one has %ju\n",
           len, (uintmax_t)alone, (uintmax_t)each, (uintmax_t)empty);
    uint64_t was = dsv4_seq_bytes(f[0]);
    append(e, f[0], len + 2, 1, 7);
    ck_assert_uint_gt(dsv4_seq_bytes(f[0]), was); /* the last chunks are its own now */
    uint64_t more = 2 * 1024 * 6 * 64;            /* at most two a list, of three layers */
    ck_assert_uint_lt(dsv4_seq_bytes(f[0]), was + more);
    for (size_t i = 0; i < FORKS; i++)
        dsv4_seq_close(f[i]);
    ck_assert_uint_le(dsv4_seq_bytes(s), alone);
    ck_assert_uint_ge(dsv4_seq_bytes(s) + 8, alone);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

/* ------------------------------------------------------------------ savepoints */

START_TEST(savepoints_cost_little)
{
    dsv4_engine *e = open_model(models[_i], 256, 16, 0);
    const struct model *m = e->cp.m;
    uint64_t step = savepoint_step(m), at = step < 1u << 30 ? step : 0;
    if (at > 0) {
        double rows =
            (double)(snapshot_body_bytes(m, 64 * at, 64 * at) - tail_bytes(m, 64 * at, 64 * at)) /
            64;
        double cost = (double)(tail_bytes(m, at, at) + sizeof(struct savepoint));
        ck_assert_msg(cost <= 0.03 * rows + 1, "%s: %g bytes in %g", models[_i], cost, rows);
        printf("   %-34s a savepoint every %ju tokens: %.2f %% of the rows\n", models[_i],
               (uintmax_t)step, 100 * cost / rows);
    }
    dsv4_close(e);
}
END_TEST

enum { STEP = 16, SHORT = 8 };

/* As a long sequence is, only shorter: a savepoint every 16 tokens, rings that reach back 8. */
static dsv4_seq *marked(dsv4_engine *e)
{
    dsv4_seq *s = fresh(e);
    s->cache->save_step = STEP;
    return s;
}

START_TEST(savepoints_are_returned_to)
{
    enum { LEN = 150 };
    dsv4_err err;
    dsv4_engine *e = open_model(models[_i], 256, 17, SHORT);
    dsv4_seq *s = marked(e);
    append(e, s, 100, 17, 0);
    OK(dsv4_seq_mark(s, &err));
    OK(dsv4_seq_mark(s, &err)); /* there already */
    append(e, s, LEN, 13, 0);
    ck_assert_uint_eq(dsv4_seq_rewind_floor(s), LEN - SHORT);
    for (size_t len = 0; len <= LEN; len += stride(models[_i], 4)) {
        size_t near = len >= LEN - SHORT ? len : len / STEP * STEP;
        if (near < 100 && len >= 100)
            near = 100;
        ck_assert_uint_eq(dsv4_seq_reusable(s, len), near);
        dsv4_seq *f = (dsv4_seq *)&err;
        if (near == len) {
            f = fork_at(s, len);
            uint64_t want = wanted(e, len, 4);
            ck_assert_msg(append(e, f, len + MORE, 3, 4) == want, "%s, %zu", models[_i], len);
            OK(dsv4_seq_rewind(f, len, &err)); /* still a place to return to */
            ck_assert_msg(append(e, f, len + MORE, MORE, 4) == want, "%s, %zu", models[_i], len);
            dsv4_seq_close(f);
        } else {
            ck_assert_int_eq(dsv4_seq_fork(&f, s, len, &err), DSV4_FAILED);
            ck_assert_ptr_null(f);
            char again[64];
            snprintf(again, sizeof again, "%zu tokens have to be computed again", len - near);
            ck_assert_ptr_nonnull(strstr(err.text, again));
            ck_assert_int_eq(dsv4_seq_rewind(s, len, &err), DSV4_FAILED);
            ck_assert_uint_eq(dsv4_seq_len(s), LEN);
        }
    }
    ck_assert_uint_eq(dsv4_seq_reusable(s, LEN + 1), LEN);
    ck_assert_int_eq(dsv4_seq_rewind(s, LEN + 1, &err), DSV4_USAGE);
    dsv4_seq *f = fork_at(s, 144);
    OK(dsv4_seq_rewind(s, 64, &err)); /* those above are gone, those below are not ... */
    ck_assert_uint_eq(dsv4_seq_reusable(s, 63), 48);
    ck_assert(append(e, s, 64 + MORE, MORE, 4) == wanted(e, 64, 4));
    dsv4_seq *g = fork_at(s, 64 + MORE); /* its rings begin at the savepoint, too */
    ck_assert_uint_eq(dsv4_seq_rewind_floor(g), 64);
    ck_assert_uint_eq(dsv4_seq_reusable(g, 63), 48);
    dsv4_seq_close(g);
    append(e, s, 120, 17, 6);
    ck_assert_uint_eq(dsv4_seq_reusable(s, 101), 96); /* ... and new ones come */
    OK(dsv4_seq_rewind(s, 96, &err));
    OK(dsv4_seq_rewind(s, 48, &err));
    ck_assert(append(e, s, 48 + MORE, MORE, 1) == wanted(e, 48, 1));
    OK(dsv4_seq_rewind(s, 0, &err));
    ck_assert_uint_eq(dsv4_seq_reusable(s, 0), 0);
    ck_assert(append(e, s, MORE, MORE, 1) == wanted(e, 0, 1));
    dsv4_seq_close(s);
    ck_assert_uint_eq(dsv4_seq_reusable(f, 101), 100); /* the fork has kept all of them */
    OK(dsv4_seq_rewind(f, 100, &err));
    ck_assert(append(e, f, 100 + MORE, MORE, 2) == wanted(e, 100, 2));
    dsv4_seq_close(f);
    dsv4_close(e);
}
END_TEST

/* Sequences of one call reach their savepoints at different rows of it. */
START_TEST(calls_are_cut_at_savepoints)
{
    enum { SEQS = 3, EACH = 70 };
    dsv4_err err;
    dsv4_engine *e = open_model(GOLDEN "v41-tiny", 256, 256, SHORT);
    dsv4_seq *s[SEQS];
    static dsv4_row rows[SEQS * EACH];
    size_t n = 0;
    for (size_t k = 0; k < SEQS; k++) {
        s[k] = marked(e);
        append(e, s[k], k * 5, 17, 0);
    }
    for (size_t i = 0; i < EACH; i++)
        for (size_t k = 0; k < SEQS; k++)
            rows[n++] = (dsv4_row){s[k], token(k * 5 + i, 0), false};
    OK(dsv4_eval(e, rows, n, NULL, &err));
    for (size_t k = 0; k < SEQS; k++) {
        ck_assert_uint_eq(dsv4_seq_len(s[k]), k * 5 + EACH);
        for (size_t at = STEP; at + SHORT <= k * 5 + EACH; at += STEP)
            ck_assert_uint_eq(dsv4_seq_reusable(s[k], at + 1),
                              at + 1 >= dsv4_seq_rewind_floor(s[k]) ? at + 1 : at);
        dsv4_seq_close(s[k]);
    }
    dsv4_close(e);
}
END_TEST

#ifdef HAVE_XXHASH

/* ------------------------------------------------------------------ files */

static char dir[] = "/tmp/dsv4-snapshot.XXXXXX";
static char file[64], other_file[64];

static void begin_files(void)
{
    strcpy(dir + sizeof dir - 7, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/a", dir);
    snprintf(other_file, sizeof other_file, "%s/b", dir);
}

static size_t count_files(void)
{
    size_t n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *x; d && (x = readdir(d));)
        n += x->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

static void end_files(void)
{
    unlink(file);
    unlink(other_file);
    ck_assert_uint_eq(count_files(), 0);
    rmdir(dir);
}

static void check_tokens(const char *path, const dsv4_seq *s)
{
    dsv4_err err;
    int32_t *ids;
    size_t n;
    OK(dsv4_snapshot_tokens(path, &ids, &n, &err));
    ck_assert_uint_eq(n, dsv4_seq_len(s));
    ck_assert(n == 0 || memcmp(ids, dsv4_seq_tokens(s), n * sizeof *ids) == 0);
    dsv4_free(ids);
}

START_TEST(loaded_sequences_go_on)
{
    dsv4_err err;
    dsv4_engine *e = open_model(models[_i], 256, 17, SHORT), *o = open_model(models[_i], 180, 5, 3);
    dsv4_seq *s = marked(e);
    for (size_t len = 0; len < 170; len += len < 40 ? stride(models[_i], 13) : 13) {
        append(e, s, len, 17, 0);
        OK(dsv4_seq_save(s, file, &err));
        check_tokens(file, s);
        dsv4_seq *f, *g;
        OK(dsv4_seq_load(&f, e, file, &err));
        OK(dsv4_seq_load(&g, o, file, &err)); /* other rings */
        for (size_t at = 0; at <= len; at++)
            ck_assert_uint_eq(dsv4_seq_reusable(f, at), dsv4_seq_reusable(s, at));
        uint64_t want = wanted(e, len, 2);
        ck_assert_msg(append(e, f, len + MORE, MORE, 2) == want, "%s, %zu", models[_i], len);
        OK(dsv4_seq_save(g, other_file, &err)); /* from the shorter rings back into the longer */
        ck_assert_msg(append(o, g, len + MORE, MORE, 2) == want, "%s, %zu", models[_i], len);
        dsv4_seq_close(g);
        OK(dsv4_seq_load(&g, e, other_file, &err));
        ck_assert_uint_eq(dsv4_seq_rewind_floor(g), len > 3 ? len - 3 : 0);
        ck_assert_msg(append(e, g, len + MORE, MORE, 2) == want, "%s, %zu", models[_i], len);
        dsv4_seq_close(g);
        size_t low = dsv4_seq_reusable(s, len > 5 ? len - 5 : 0);
        OK(dsv4_seq_load(&g, e, file, &err));
        OK(dsv4_seq_rewind(g, low, &err));
        ck_assert(append(e, g, low + MORE, MORE, 1) == wanted(e, low, 1));
        OK(dsv4_seq_save(g, other_file, &err)); /* one that was loaded, forked and went on */
        dsv4_seq_close(g);
        OK(dsv4_seq_load(&g, e, other_file, &err));
        dsv4_seq *h = fork_at(g, low + MORE);
        append(e, f, low + MORE + 4, 1, 2);
        OK(dsv4_seq_rewind(h, low + MORE, &err));
        append(e, h, low + MORE + 4, 1, 2);
        dsv4_seq_close(f);
        dsv4_seq_close(h);
        dsv4_seq_close(g);
    }
    dsv4_seq *f = fork_at(s, 32);
    OK(dsv4_seq_save(f, file, &err));
    dsv4_seq_close(f);
    OK(dsv4_seq_load(&f, e, file, &err));
    ck_assert(append(e, f, 32 + MORE, MORE, 2) == wanted(e, 32, 2));
    OK(dsv4_seq_rewind(f, 16, &err)); /* its savepoints came along */
    ck_assert(append(e, f, 16 + MORE, MORE, 2) == wanted(e, 16, 2));
    dsv4_seq_close(f);
    dsv4_seq_close(s);
    dsv4_close(e);
    dsv4_close(o);
}
END_TEST

static void refused(dsv4_engine *e, const char *path, int status, const char *why)
{
    dsv4_err err;
    dsv4_seq *s = (dsv4_seq *)&err;
    int rc = dsv4_seq_load(&s, e, path, &err);
    ck_assert_msg(rc == status, "%s: %d %s", path, rc, err.text);
    ck_assert_ptr_null(s);
    ck_assert_msg(strstr(err.text, why) != NULL, "\"%s\" has no \"%s\"", err.text, why);
    ck_assert_msg(strstr(err.text, path) != NULL, "\"%s\"", err.text);
}

/* The checkpoint with the lowest bit of every fourth byte of its weights cleared, which makes no NaN
 * of any code or scale. */
static void change_weights(const char *from, const char *to)
{
    static const char *const part[] = {"config.json", "tokenizer.json", "model.safetensors"};
    dsv4_err err;
    for (size_t i = 0; i < 3; i++) {
        char path[256], *text;
        size_t len;
        snprintf(path, sizeof path, "%s/%s", from, part[i]);
        OK(file_read(path, 1u << 28, &text, &len, &err));
        uint64_t head = 0;
        if (i == 2) {
            memcpy(&head, text, sizeof head);
            for (size_t k = (size_t)head + 8; k + 4 <= len; k += 4)
                text[k] = (char)(text[k] & ~1);
        }
        snprintf(path, sizeof path, "%s/%s", to, part[i]);
        OK(file_write_atomic(path, text, len, &err));
        free(text);
    }
}

START_TEST(files_of_others_are_refused)
{
    dsv4_err err;
    dsv4_engine *e = open_model(GOLDEN "v41-tiny", 256, 16, 0);
    dsv4_seq *s = fresh(e);
    append(e, s, 50, 17, 0);
    OK(dsv4_seq_save(s, file, &err));
    dsv4_engine *x = open_model(GOLDEN "v4-tiny", 256, 16, 0);
    refused(x, file, DSV4_REFUSED, "another model");
    dsv4_close(x);
    dsv4_options o = {.ctx = 256, .threads = 1, .no_cache_quant = true};
    OK(dsv4_open(&x, GOLDEN "v41-tiny", &o, &err));
    refused(x, file, DSV4_REFUSED, "another model");
    dsv4_close(x);
    x = open_model(GOLDEN "v41-tiny", 49, 16, 0);
    refused(x, file, DSV4_FAILED, "50 tokens; the context holds 49");
    dsv4_close(x);
    char changed[80];
    snprintf(changed, sizeof changed, "%s/m", dir);
    ck_assert_int_eq(mkdir(changed, 0700), 0);
    change_weights(GOLDEN "v41-tiny", changed);
    x = open_model(changed, 256, 16, 0);
    refused(x, file, DSV4_REFUSED, "another model");
    dsv4_close(x);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", changed);
    ck_assert_int_eq(system(command), 0);

    refused(e, dir, DSV4_REFUSED, "not a regular file");
    refused(e, "/nowhere/x", DSV4_REFUSED, "No such file");
    refused(e, GOLDEN "v41-tiny/config.json", DSV4_REFUSED, "not a snapshot");
    OK(file_write_atomic(other_file, "", 0, &err));
    refused(e, other_file, DSV4_REFUSED, "not a snapshot");
    unlink(other_file);
    ck_assert_int_eq(mkfifo(other_file, 0600), 0);
    refused(e, other_file, DSV4_REFUSED, "not a regular file");
    ck_assert_int_eq(dsv4_seq_save(s, "/nowhere/x", &err), DSV4_FAILED);
    ck_assert_int_eq(dsv4_seq_save(s, dir, &err), DSV4_FAILED);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

static void rewrite(const char *data, size_t len)
{
    FILE *f = fopen(other_file, "wb");
    ck_assert(f && fwrite(data, 1, len, f) == len && fclose(f) == 0);
}

START_TEST(damage_is_seen)
{
    dsv4_err err;
    dsv4_engine *e = open_model(GOLDEN "v41-quant", 256, 16, 4);
    dsv4_seq *s = marked(e);
    char *data;
    size_t len;
    append(e, s, 45, 17, 0);
    OK(dsv4_seq_save(s, file, &err));
    OK(file_read(file, 1u << 28, &data, &len, &err));
    size_t head = sizeof(struct snapshot_head), index = head + 45 * 4 + 2 * 8, tried = 0;
    for (size_t i = 0; i < len;
         i += i < index + 64 || i + 16 > len ? 1 : 1 + len / (getenv("CHECK_QUICK") ? 97 : 997)) {
        for (int bit = 0; bit < 8; bit += i < head ? 1 : 5) {
            data[i] = (char)(data[i] ^ 1 << bit);
            rewrite(data, len);
            refused(e, other_file, DSV4_REFUSED, "");
            int32_t *ids;
            size_t n;
            int rc = dsv4_snapshot_tokens(other_file, &ids, &n, &err);
            ck_assert_int_eq(rc, i < index ? DSV4_REFUSED : 0);
            ck_assert(rc == 0 ? n == 45 : !ids && n == 0);
            dsv4_free(ids);
            data[i] = (char)(data[i] ^ 1 << bit);
            tried++;
        }
    }
    for (size_t i = 0; i < len; i += i < index + 8 ? 1 : 1 + len / 499) {
        rewrite(data, i);
        refused(e, other_file, DSV4_REFUSED, "");
        tried++;
    }
    data = realloc(data, len + 1);
    data[len] = 0;
    rewrite(data, len + 1);
    refused(e, other_file, DSV4_REFUSED, "its head says");
    rewrite(data, len);
    dsv4_seq *f;
    OK(dsv4_seq_load(&f, e, other_file, &err)); /* as it was, it is good */
    dsv4_seq_close(f);
    printf("   %zu damaged files refused\n", tried);
    free(data);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

/* Right checksums over wrong numbers. */
START_TEST(lies_are_refused)
{
    dsv4_err err;
    dsv4_engine *e = open_model(GOLDEN "v41-quant", 256, 16, 4);
    dsv4_seq *s = marked(e);
    char *data;
    size_t len;
    append(e, s, 45, 17, 0);
    OK(dsv4_seq_save(s, file, &err));
    OK(file_read(file, 1u << 28, &data, &len, &err));
    struct snapshot_head good, h;
    memcpy(&good, data, sizeof good);
    ck_assert_uint_eq(good.hash, snapshot_head_hash(&good));
    static const uint64_t number[] = {0,          1,          44,
                                      46,         200,        255,
                                      256,        257,        1u << 20,
                                      UINT32_MAX, 1ull << 62, (1ull << 62) + 45,
                                      INT64_MAX,  UINT64_MAX, UINT64_MAX - 44};
    for (size_t i = 0; i < sizeof number / sizeof *number; i++)
        for (int field = 0; field < 4; field++) {
            h = good;
            uint64_t *at[] = {&h.len, &h.low, &h.n_saved, &h.bytes};
            *at[field] = number[i];
            h.hash = snapshot_head_hash(&h);
            memcpy(data, &h, sizeof h);
            rewrite(data, len);
            dsv4_seq *f;
            int rc = dsv4_seq_load(&f, e, other_file, &err);
            ck_assert_msg(rc == DSV4_REFUSED || (rc == DSV4_FAILED && field == 0),
                          "field %d %ju: %d", field, (uintmax_t)number[i], rc);
            ck_assert_ptr_null(f);
        }
    static const struct {
        uint32_t order, version;
        const char *why;
    } head[] = {{0x04030201, 1, "byte order"}, {SNAPSHOT_ORDER, 2, "layout 2"}};
    for (size_t i = 0; i < 2; i++) {
        h = good;
        h.order = head[i].order;
        h.version = head[i].version;
        h.hash = snapshot_head_hash(&h);
        memcpy(data, &h, sizeof h);
        rewrite(data, len);
        refused(e, other_file, DSV4_REFUSED, head[i].why);
    }
    const size_t first = sizeof good, saved = first + 45 * sizeof(int32_t), end = saved + 16;
    static const struct {
        uint64_t pos[2]; /* of the savepoints; those of the file are 16 and 32 */
        int32_t id;      /* of the first token */
        const char *why;
    } index[] = {{{16, 32}, -1, "token 0 is -1"},       {{16, 32}, 1 << 20, "token 0 is"},
                 {{32, 16}, 5, "out of order"},         {{32, 32}, 5, "out of order"},
                 {{0, 32}, 5, "savepoint 0 at 0"},      {{16, 46}, 5, "savepoint 1 at 46"},
                 {{16, UINT64_MAX}, 5, "out of order"}, {{1, 32}, 5, "what it holds needs only"}};
    for (size_t i = 0; i < sizeof index / sizeof *index; i++) {
        h = good;
        memcpy(data + first, &index[i].id, sizeof index[i].id);
        memcpy(data + saved, index[i].pos, sizeof index[i].pos);
        h.index = XXH3_64bits(data + first, end - first);
        h.hash = snapshot_head_hash(&h);
        memcpy(data, &h, sizeof h);
        rewrite(data, len);
        refused(e, other_file, DSV4_REFUSED, index[i].why);
    }
    free(data);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

/* A disk that is full, as the limit on file sizes: the old file stays, nothing else is left. */
START_TEST(a_full_disk_leaves_the_old_file)
{
    dsv4_err err;
    dsv4_engine *e = open_model(GOLDEN "v41-tiny", 256, 16, 0);
    dsv4_seq *s = fresh(e), *f;
    append(e, s, 20, 17, 0);
    OK(dsv4_seq_save(s, file, &err));
    append(e, s, 90, 17, 0);
    signal(SIGXFSZ, SIG_IGN);
    static const rlim_t limit[] = {0, 1, 200, 5000, 20000};
    for (size_t i = 0; i < sizeof limit / sizeof *limit; i++) {
        struct rlimit was, now;
        getrlimit(RLIMIT_FSIZE, &was);
        now = was;
        now.rlim_cur = limit[i];
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &now), 0);
        int rc = dsv4_seq_save(s, file, &err);
        setrlimit(RLIMIT_FSIZE, &was);
        ck_assert_int_eq(rc, DSV4_FAILED);
        ck_assert_ptr_nonnull(strstr(err.text, "cannot write"));
        ck_assert_uint_eq(count_files(), 1);
        OK(dsv4_seq_load(&f, e, file, &err));
        ck_assert_uint_eq(dsv4_seq_len(f), 20);
        dsv4_seq_close(f);
    }
    ck_assert(append(e, s, 90 + MORE, MORE, 3) == wanted(e, 90, 3));
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

/* ------------------------------------------------------------------ failures on the way */

/* Forks, writes apart, marks, saves, loads; the first failure is returned, sequences are closed.
 * *good says whether failures and results went together (Check itself needs memory to say so). */
static int all_of_it(dsv4_engine *e, const dsv4_seq *s, bool *good, dsv4_err *err)
{
    static float logits[MAX_VOCAB];
    dsv4_seq *f = NULL, *g = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    int rc = dsv4_seq_fork(&f, s, 50, err);
    *good = (rc == 0) == (f != NULL);
    dsv4_row row = {f, 3, true};
    for (int i = 0; i < 4 && rc == 0; i++) {
        rc = dsv4_eval(e, &row, 1, logits, err);
        *good = *good && dsv4_seq_len(f) == 50 + (size_t)i + (rc == 0);
    }
    if (rc == 0)
        rc = dsv4_seq_mark(f, err);
    if (rc == 0)
        rc = dsv4_seq_save(f, file, err);
    if (rc == 0) {
        rc = dsv4_seq_load(&g, e, file, err);
        *good = *good && (rc == 0) == (g != NULL);
    }
    if (rc == 0) {
        rc = dsv4_snapshot_tokens(file, &ids, &n, err);
        *good = *good && (rc == 0) == (ids != NULL) && n == (rc == 0 ? 54 : 0);
    }
    dsv4_free(ids);
    dsv4_seq_close(f);
    dsv4_seq_close(g);
    return rc;
}

START_TEST(every_call_fails_once)
{
    static const char *const name[] = {GOLDEN "v4-tiny", GOLDEN "v41-tiny"};
    dsv4_engine *e = open_model(name[_i], 256, 16, SHORT);
    dsv4_seq *s = marked(e);
    append(e, s, 50, 17, 0);
    uint64_t was = dsv4_seq_bytes(s), want = wanted(e, 50, 3);
    dsv4_err err;
    bool good;
    OK(all_of_it(e, s, &good, &err));
    for (enum fault kind = 0; kind < N_FAULTS; kind++) {
        if (kind != FAULT_MEMORY && kind != FAULT_FILE)
            continue;
        uint64_t n = 0, failed = 0, every = getenv("CHECK_QUICK") ? 2 : 1;
        do {
            size_t open_before = faults_descriptors();
            faults_begin(kind, n += every, false);
            int rc = all_of_it(e, s, &good, &err);
            faults_end();
            if (faults.n_live > 0)
                faults_show();
            ck_assert_msg(good, "kind %d, call %ju", (int)kind, (uintmax_t)n);
            ck_assert_msg(faults.n_live == 0, "kind %d, call %ju: %zu blocks are left", (int)kind,
                          (uintmax_t)n, faults.n_live);
            ck_assert_uint_eq(faults_descriptors(), open_before);
            ck_assert_uint_le(count_files(), 1);
            ck_assert_uint_eq(dsv4_seq_bytes(s), was);
            failed += rc != 0;
            ck_assert(rc == 0 || (err.status == rc && err.text[0]));
            ck_assert(kind != FAULT_MEMORY || rc == 0 || rc == DSV4_NO_MEMORY);
        } while (faults.fired > 0);
        ck_assert_uint_gt(failed, 3);
        printf("   %s, kind %d: %ju calls, %ju refused\n", name[_i], (int)kind,
               (uintmax_t)faults.calls, (uintmax_t)failed);
    }
    faults.trickle = true; /* reads and writes that are short and interrupted */
    faults_begin(FAULT_FILE, 0, false);
    int rc = all_of_it(e, s, &good, &err);
    faults_end();
    faults.trickle = false;
    ck_assert_msg(rc == 0 && good, "%s", err.text);
    ck_assert(append(e, s, 50 + MORE, MORE, 3) == want);
    dsv4_seq_close(s);
    dsv4_close(e);
}
END_TEST

#endif

int main(void)
{
    Suite *s = suite_create("snapshot");
    TCase *t = tcase_create("sharing");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, forks_at_every_length, 0, N_MODELS);
    tcase_add_test(t, forks_around_the_end_of_a_chunk);
    tcase_add_test(t, closing_in_any_order);
    tcase_add_test(t, memory_is_shared);
    tcase_add_loop_test(t, savepoints_cost_little, 0, N_MODELS);
    tcase_add_loop_test(t, savepoints_are_returned_to, 0, N_MODELS);
    tcase_add_test(t, calls_are_cut_at_savepoints);
    suite_add_tcase(s, t);
#ifdef HAVE_XXHASH
    TCase *f = tcase_create("files");
    tcase_set_timeout(f, 120);
    tcase_add_checked_fixture(f, begin_files, end_files);
    tcase_add_loop_test(f, loaded_sequences_go_on, 0, N_MODELS);
    tcase_add_test(f, files_of_others_are_refused);
    tcase_add_test(f, damage_is_seen);
    tcase_add_test(f, lies_are_refused);
    tcase_add_test(f, a_full_disk_leaves_the_old_file);
    tcase_add_loop_test(f, every_call_fails_once, 0, 2);
    suite_add_tcase(s, f);
#else
    puts("   without xxHash: nothing of snapshot files");
#endif
    return run_suite(s);
}
