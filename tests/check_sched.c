/* The scheduler and the prefix cache against a false engine: order, fairness, cancelling, deadlines,
 * failing memory, what is computed again and what is not. */
#include "fake_engine.h"
#include "suite.h"

#include "src/server/sched.h"

#include <unistd.h>

enum { VOCAB = 64, CTX = FAKE_CTX, BATCH = 32 };

/* The next token is the sum of all before, so that an answer shows whether a sequence held what it should. */
static size_t next_token(void *arg, const dsv4_seq *s)
{
    size_t sum = 0;
    (void)arg;
    for (size_t i = 0; i < s->n; i++)
        sum += (size_t)s->token[i];
    return sum;
}

static struct fake_engine fake;

/* ------------------------------------------------------------------ jobs that watch themselves */

struct watch {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int32_t token[8][CTX];
    size_t n[8];
    enum ended why[8];
    size_t ended, cached, total;
    bool failed, finished;
    atomic_bool gone;
    double finished_at, first_at;
    size_t stop_after; /* tokens; 0: never */
    int32_t force;     /* -1: nothing */
};

static void watch_init(struct watch *w)
{
    memset(w, 0, sizeof *w);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->force = -1;
}

static void on_progress(void *arg, size_t cached, size_t done, size_t total, double seconds)
{
    struct watch *w = arg;
    (void)seconds;
    ck_assert(done >= cached && done <= total);
    pthread_mutex_lock(&w->lock);
    w->cached = cached;
    w->total = total;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static bool on_forced(void *arg, unsigned choice, int32_t *token)
{
    struct watch *w = arg;
    *token = w->force;
    return w->force >= 0 && w->n[choice] == 1;
}

static bool on_token(void *arg, unsigned choice, dsv4_logprob chosen, const dsv4_logprob *top)
{
    struct watch *w = arg;
    (void)top;
    pthread_mutex_lock(&w->lock);
    if (w->first_at <= 0)
        w->first_at = clock_seconds();
    w->token[choice][w->n[choice]++] = chosen.token;
    pthread_cond_broadcast(&w->changed);
    bool stop = w->stop_after && w->n[choice] >= w->stop_after;
    pthread_mutex_unlock(&w->lock);
    return stop;
}

static void on_ended(void *arg, unsigned choice, enum ended why)
{
    struct watch *w = arg;
    w->why[choice] = why;
    w->ended++;
}

static void on_failed(void *arg, const dsv4_err *err)
{
    struct watch *w = arg;
    ck_assert(err->text[0]);
    w->failed = true;
}

static void on_finished(void *arg, const struct job_stats *stats)
{
    struct watch *w = arg;
    (void)stats;
    pthread_mutex_lock(&w->lock);
    ck_assert(!w->finished);
    w->finished = true;
    w->finished_at = clock_seconds();
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static const struct job_ops ops = {on_progress, NULL,      on_forced,  on_token,
                                   on_ended,    on_failed, on_finished};

static void wait_finished(struct watch *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->finished)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void wait_tokens(struct watch *w, size_t n)
{
    pthread_mutex_lock(&w->lock);
    while (w->n[0] < n && !w->finished)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void wait_begun(struct watch *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->total == 0 && !w->finished)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static size_t tokens_of(struct watch *w)
{
    pthread_mutex_lock(&w->lock);
    size_t n = w->n[0];
    pthread_mutex_unlock(&w->lock);
    return n;
}

static bool is_finished(struct watch *w)
{
    pthread_mutex_lock(&w->lock);
    bool yes = w->finished;
    pthread_mutex_unlock(&w->lock);
    return yes;
}

/* A prompt of n tokens: from, from + 1, ... */
static struct job *new_job(struct watch *w, size_t n, int from, size_t max_tokens)
{
    struct job *j;
    dsv4_err err;
    OK(mem_alloc(&j, 1, sizeof *j, "a job", &err));
    OK(mem_alloc(&j->prompt, n, sizeof *j->prompt, "a prompt", &err));
    for (size_t i = 0; i < n; i++)
        j->prompt[i] = (int32_t)((from + (int)i) % VOCAB);
    j->n_prompt = n;
    j->n_choices = 1;
    j->sampling = (dsv4_sampling){.top_p = 1, .repetition = 1};
    j->max_tokens = max_tokens;
    j->gone = &w->gone;
    j->ops = &ops;
    j->arg = w;
    return j;
}

static struct sched *open_sched(size_t parallel, size_t queue, uint64_t cache, struct metrics *m)
{
    fake = (struct fake_engine){.vocab = VOCAB, .batch = BATCH, .next = next_token};
    struct backend b = fake_backend(&fake);
    struct sched_options opt = {.parallel = parallel, .queue = queue, .cache_bytes = cache};
    struct sched *s;
    dsv4_err err;
    OK(sched_open(&s, &b, &opt, m, &err));
    return s;
}

static void submit(struct sched *s, struct job *j)
{
    dsv4_err err;
    unsigned retry;
    OK(sched_submit(s, j, &retry, &err));
}

/* What the false engine answers to new_job(n, from). */
static void check_tokens(const struct watch *w, unsigned choice, size_t n, int from)
{
    size_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (size_t)((from + (int)i) % VOCAB);
    for (size_t i = 0; i < w->n[choice]; i++) {
        ck_assert_int_eq(w->token[choice][i], (int)(sum % VOCAB));
        sum += sum % VOCAB;
    }
}

static struct metrics metrics;

/* ------------------------------------------------------------------ tests of the scheduler */

START_TEST(test_one)
{
    static struct watch w;
    watch_init(&w);
    struct sched *s = open_sched(4, 8, 0, &metrics);
    submit(s, new_job(&w, 100, 3, 20));
    wait_finished(&w);
    ck_assert_uint_eq(w.n[0], 20);
    ck_assert_int_eq(w.why[0], ENDED_LIMIT);
    check_tokens(&w, 0, 100, 3);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

START_TEST(test_many_share_steps)
{
    enum { N = 16 };
    static struct watch w[N];
    struct sched *s = open_sched(N, N, 0, &metrics);
    fake.delay = 1000;
    for (int i = 0; i < N; i++) {
        watch_init(&w[i]);
        submit(s, new_job(&w[i], 20, i, 100));
    }
    for (int i = 0; i < N; i++) {
        wait_finished(&w[i]);
        check_tokens(&w[i], 0, 20, i);
    }
    /* 1,600 tokens in little more than 100 steps */
    ck_assert_uint_lt(fake.steps, 180);
    ck_assert_uint_ge(fake.most_rows, N);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

START_TEST(test_choices)
{
    static struct watch w;
    watch_init(&w);
    struct sched *s = open_sched(4, 8, 1 << 20, &metrics);
    struct job *j = new_job(&w, 50, 1, 10);
    j->n_choices = 4;
    submit(s, j);
    wait_finished(&w);
    ck_assert_uint_eq(w.ended, 4);
    for (unsigned i = 0; i < 4; i++) {
        ck_assert_uint_eq(w.n[i], 10);
        check_tokens(&w, i, 50, 1);
    }
    ck_assert_uint_eq(fake.forks, 3);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

START_TEST(test_forced_token)
{
    static struct watch w;
    watch_init(&w);
    w.force = 7;
    struct sched *s = open_sched(1, 8, 0, &metrics);
    submit(s, new_job(&w, 5, 1, 3));
    wait_finished(&w);
    ck_assert_int_eq(w.token[0][1], 7);
    sched_close(s);
}
END_TEST

/* A long prompt beside one who generates: he gets a token in every step. */
START_TEST(test_long_prompt_stalls_nobody)
{
    static struct watch talker, reader;
    watch_init(&talker);
    watch_init(&reader);
    struct sched *s = open_sched(4, 8, 0, &metrics);
    fake.delay = 200;
    submit(s, new_job(&talker, 10, 0, 3000));
    wait_tokens(&talker, 10);
    size_t steps = fake.steps, tokens = tokens_of(&talker);
    submit(s, new_job(&reader, 3000, 5, 1));
    wait_finished(&reader);
    steps = fake.steps - steps;
    tokens = tokens_of(&talker) - tokens;
    ck_assert_uint_ge(tokens + 2, steps);
    ck_assert_uint_le(fake.longest_prompt, BATCH);
    atomic_store(&talker.gone, true);
    wait_finished(&talker);
    ck_assert_int_eq(talker.why[0], ENDED_GONE);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

/* One client with many requests does not keep another from its turn. */
START_TEST(test_fair)
{
    enum { N = 20 };
    static struct watch greedy[N], modest;
    struct sched *s = open_sched(2, 64, 0, &metrics);
    fake.delay = 300;
    for (int i = 0; i < N; i++) {
        watch_init(&greedy[i]);
        struct job *j = new_job(&greedy[i], 200, i, 50);
        j->client = 1;
        submit(s, j);
    }
    wait_tokens(&greedy[0], 1);
    watch_init(&modest);
    struct job *j = new_job(&modest, 20, 9, 10);
    j->client = 2;
    submit(s, j);
    wait_finished(&modest);
    size_t before = 0;
    for (int i = 0; i < N; i++)
        before += is_finished(&greedy[i]);
    ck_assert_uint_le(before, 4);
    for (int i = 0; i < N; i++)
        wait_finished(&greedy[i]);
    sched_close(s);
}
END_TEST

START_TEST(test_queue_bound)
{
    static struct watch w[4];
    struct sched *s = open_sched(1, 2, 0, &metrics);
    dsv4_err err;
    unsigned retry;
    fake.delay = 500;
    for (int i = 0; i < 4; i++)
        watch_init(&w[i]);
    submit(s, new_job(&w[0], 10, 0, 3000));
    wait_tokens(&w[0], 1);
    submit(s, new_job(&w[1], 10, 0, 1));
    submit(s, new_job(&w[2], 10, 0, 1));
    ck_assert_int_eq(sched_submit(s, new_job(&w[3], 10, 0, 1), &retry, &err), DSV4_FAILED);
    ck_assert_uint_ge(retry, 1);
    /* those who wait may give up, too */
    atomic_store(&w[1].gone, true);
    wait_finished(&w[1]);
    ck_assert_int_eq(w[1].why[0], ENDED_GONE);
    ck_assert_uint_eq(w[1].n[0], 0);
    while (sched_submit(s, new_job(&w[3], 10, 0, 1), &retry, &err) == DSV4_FAILED)
        usleep(1000); /* its place becomes free soon after */
    atomic_store(&w[0].gone, true);
    wait_finished(&w[3]);
    ck_assert_uint_eq(w[3].n[0], 1);
    ck_assert(!sched_drain(s) || is_finished(&w[2]));
    wait_finished(&w[2]);
    sched_close(s);
}
END_TEST

START_TEST(test_refused)
{
    static struct watch w;
    watch_init(&w);
    struct sched *s = open_sched(2, 2, 0, &metrics);
    dsv4_err err;
    unsigned retry;
    ck_assert_int_eq(sched_submit(s, new_job(&w, 0, 0, 1), &retry, &err), DSV4_USAGE);
    ck_assert_int_eq(sched_submit(s, new_job(&w, CTX, 0, 1), &retry, &err), DSV4_USAGE);
    struct job *j = new_job(&w, 5, 0, 1);
    j->n_choices = 3;
    ck_assert_int_eq(sched_submit(s, j, &retry, &err), DSV4_USAGE);
    j = new_job(&w, 5, 0, 1);
    j->prompt[2] = VOCAB;
    ck_assert_int_eq(sched_submit(s, j, &retry, &err), DSV4_USAGE);
    sched_drain(s);
    ck_assert_int_eq(sched_submit(s, new_job(&w, 5, 0, 1), &retry, &err), DSV4_INTERRUPTED);
    sched_close(s);
    ck_assert(!w.finished);
}
END_TEST

START_TEST(test_deadline)
{
    static struct watch w;
    watch_init(&w);
    struct sched *s = open_sched(1, 2, 0, &metrics);
    fake.delay = 1000;
    struct job *j = new_job(&w, 10, 0, 0);
    j->deadline = clock_seconds() + 0.2;
    submit(s, j);
    wait_finished(&w);
    ck_assert_int_eq(w.why[0], ENDED_DEADLINE);
    ck_assert_uint_gt(w.n[0], 0);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

START_TEST(test_context_full)
{
    static struct watch w;
    watch_init(&w);
    struct sched *s = open_sched(1, 2, 0, &metrics);
    submit(s, new_job(&w, CTX - 10, 0, 0));
    wait_finished(&w);
    ck_assert_int_eq(w.why[0], ENDED_CTX);
    ck_assert_uint_eq(w.n[0], 11);
    sched_close(s);
}
END_TEST

/* A step that fails takes the one with most to do with it; the others do not notice. */
START_TEST(test_step_fails)
{
    static struct watch talker, reader;
    watch_init(&talker);
    watch_init(&reader);
    struct sched *s = open_sched(4, 8, 1 << 20, &metrics);
    fake.delay = 500;
    submit(s, new_job(&talker, 10, 0, 400));
    wait_tokens(&talker, 5);
    fake.fail_with = DSV4_NO_MEMORY;
    submit(s, new_job(&reader, 3000, 5, 1));
    wait_begun(&reader);
    fake.fail = 1;
    wait_finished(&reader);
    ck_assert(reader.failed);
    ck_assert_int_eq(reader.why[0], ENDED_FAILED);
    wait_finished(&talker);
    ck_assert_uint_eq(talker.n[0], 400);
    check_tokens(&talker, 0, 10, 0);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

START_TEST(test_close_in_the_middle)
{
    static struct watch w[6];
    struct sched *s = open_sched(2, 8, 1 << 20, &metrics);
    fake.delay = 500;
    for (int i = 0; i < 6; i++) {
        watch_init(&w[i]);
        submit(s, new_job(&w[i], 500, i, 0));
    }
    wait_tokens(&w[0], 1);
    sched_close(s);
    for (int i = 0; i < 6; i++) {
        ck_assert(w[i].finished);
        ck_assert_int_eq(w[i].why[0], ENDED_GONE);
    }
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

/* ------------------------------------------------------------------ the prefix cache */

START_TEST(test_prefix_reused)
{
    static struct watch w[4];
    struct sched *s = open_sched(2, 8, 1 << 20, &metrics);
    for (int i = 0; i < 4; i++)
        watch_init(&w[i]);
    submit(s, new_job(&w[0], 500, 3, 5));
    wait_finished(&w[0]);
    ck_assert_uint_eq(w[0].cached, 0);
    size_t rows = fake.rows;
    submit(s, new_job(&w[1], 600, 3, 5)); /* begins the same */
    wait_finished(&w[1]);
    ck_assert_uint_eq(w[1].cached, 500);
    ck_assert_uint_eq(fake.rows - rows, 100 + 4);
    check_tokens(&w[1], 0, 600, 3);
    submit(s, new_job(&w[2], 600, 3, 5)); /* the same: one token is left to compute */
    wait_finished(&w[2]);
    ck_assert_uint_eq(w[2].cached, 599);
    check_tokens(&w[2], 0, 600, 3);
    struct job *j = new_job(&w[3], 600, 3, 5); /* of somebody else */
    j->scope = 8;
    submit(s, j);
    wait_finished(&w[3]);
    ck_assert_uint_eq(w[3].cached, 0);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

/* A sequence in use is forked, not taken. */
START_TEST(test_prefix_of_live)
{
    static struct watch a, b;
    watch_init(&a);
    watch_init(&b);
    struct sched *s = open_sched(2, 8, 1 << 20, &metrics);
    fake.delay = 300;
    submit(s, new_job(&a, 400, 3, 300));
    wait_tokens(&a, 3);
    submit(s, new_job(&b, 450, 3, 50));
    wait_finished(&b);
    ck_assert_uint_eq(b.cached, 400);
    check_tokens(&b, 0, 450, 3);
    wait_finished(&a);
    check_tokens(&a, 0, 400, 3);
    ck_assert_uint_ge(fake.forks, 1);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

/* What was computed of a prompt before its client hung up is not lost. */
START_TEST(test_prefix_of_cancelled)
{
    static struct watch a, b;
    watch_init(&a);
    watch_init(&b);
    struct sched *s = open_sched(2, 8, 1 << 20, &metrics);
    fake.delay = 2000;
    submit(s, new_job(&a, 3000, 3, 10));
    usleep(60000);
    atomic_store(&a.gone, true);
    wait_finished(&a);
    fake.delay = 0;
    submit(s, new_job(&b, 3000, 3, 10));
    wait_finished(&b);
    ck_assert_uint_gt(b.cached, 100);
    check_tokens(&b, 0, 3000, 3);
    sched_close(s);
}
END_TEST

START_TEST(test_prefix_bound)
{
    static struct watch w[10];
    struct sched *s = open_sched(1, 16, 1000, &metrics);
    struct sched_info info;
    for (int i = 0; i < 10; i++) {
        watch_init(&w[i]);
        submit(s, new_job(&w[i], 300, i, 5));
        wait_finished(&w[i]);
    }
    usleep(20000);
    sched_info(s, &info, NULL, 0);
    ck_assert_uint_eq(info.stored, 3);
    ck_assert_uint_le(info.stored_bytes, 1000);
    static struct watch again;
    watch_init(&again);
    submit(s, new_job(&again, 300, 9, 5));
    wait_finished(&again);
    ck_assert_uint_eq(again.cached, 299);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

/* A job whose prompt is `same` tokens that all have, then others. */
static struct job *branch_job(struct watch *w, size_t same, size_t n, int other, size_t max_tokens)
{
    struct job *j = new_job(w, n, 3, max_tokens);
    for (size_t i = same; i < n; i++)
        j->prompt[i] = (int32_t)((i * i + (size_t)other) % VOCAB);
    return j;
}

/* On an engine that can be left only at marks: a prompt whose answer is not in the next one is left before
 * its tail, one whose instructions are shared behind them, and what two had in common is marked for the
 * third. */
START_TEST(test_marks)
{
    static struct watch w[6];
    struct sched *s = open_sched(2, 8, 1 << 20, &metrics);
    fake.rewind = 64;
    for (int i = 0; i < 6; i++)
        watch_init(&w[i]);
    struct job *j = new_job(&w[0], 1000, 3, 200);
    j->tail = 2;
    submit(s, j);
    wait_finished(&w[0]);
    j = branch_job(&w[1], 998, 1300, 5, 1);
    j->tail = 2;
    submit(s, j);
    wait_finished(&w[1]);
    ck_assert_uint_eq(w[1].cached, 998);
    submit(s, branch_job(&w[2], 600, 1200, 6, 1)); /* nobody marked 600 */
    wait_finished(&w[2]);
    ck_assert_uint_eq(w[2].cached, 0);
    submit(s, branch_job(&w[3], 600, 900, 7, 1)); /* the one before did */
    wait_finished(&w[3]);
    ck_assert_uint_eq(w[3].cached, 600);
    j = branch_job(&w[4], 0, 1500, 11, 1);
    j->head = 400;
    submit(s, j);
    wait_finished(&w[4]);
    ck_assert_uint_eq(w[4].cached, 0);
    size_t rows = fake.rows;
    j = branch_job(&w[5], 0, 1500, 11, 1);
    for (size_t i = 400; i < 1500; i++)
        j->prompt[i] = (int32_t)(i % 7);
    submit(s, j);
    wait_finished(&w[5]);
    ck_assert_uint_eq(w[5].cached, 400);
    ck_assert_uint_eq(fake.rows - rows, 1100);
    sched_close(s);
    ck_assert_uint_eq(fake.open, 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("scheduler");
    TCase *sched = tcase_create("scheduler"), *prefix = tcase_create("prefixes");
    tcase_set_timeout(sched, 30);
    tcase_set_timeout(prefix, 30);
    tcase_add_test(sched, test_one);
    tcase_add_test(sched, test_many_share_steps);
    tcase_add_test(sched, test_choices);
    tcase_add_test(sched, test_forced_token);
    tcase_add_test(sched, test_long_prompt_stalls_nobody);
    tcase_add_test(sched, test_fair);
    tcase_add_test(sched, test_queue_bound);
    tcase_add_test(sched, test_refused);
    tcase_add_test(sched, test_deadline);
    tcase_add_test(sched, test_context_full);
    tcase_add_test(sched, test_step_fails);
    tcase_add_test(sched, test_close_in_the_middle);
    tcase_add_test(prefix, test_prefix_reused);
    tcase_add_test(prefix, test_prefix_of_live);
    tcase_add_test(prefix, test_prefix_of_cancelled);
    tcase_add_test(prefix, test_prefix_bound);
    tcase_add_test(prefix, test_marks);
    suite_add_tcase(s, sched);
    suite_add_tcase(s, prefix);
    return run_suite(s);
}
