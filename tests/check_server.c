/* The scheduler against a false engine, which remembers what it was asked: order, fairness,
 * cancelling,
 * deadlines, failing memory; the prefix cache; the gate; the table of parameters. */
#include "suite.h"

#include "src/server/sched.h"
#include "src/server/server.h"

#include <math.h>
#include <unistd.h>

/* ------------------------------------------------------------------ the false engine
 * Its logits prefer token (sum of the sequence's tokens) % VOCAB, so that an answer shows whether a
 * sequence held what it should. */

enum { VOCAB = 64, CTX = 4096, BATCH = 32, MOST = 64 };

struct dsv4_seq {
    int32_t token[CTX];
    size_t n;
    bool open;
};

static struct fake {
    pthread_mutex_t lock;
    struct dsv4_seq *seq[MOST];
    size_t open, steps, rows, most_rows, forks;
    int fail;      /* so many evals fail from now on */
    int fail_with; /* with this status */
    useconds_t delay;
    size_t longest_prompt; /* rows of one sequence in a step beside others */
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int fake_open(void *self, dsv4_seq **out, dsv4_err *err)
{
    (void)self;
    TRY(mem_alloc(out, 1, sizeof **out, "a false sequence", err));
    (*out)->open = true;
    pthread_mutex_lock(&fake.lock);
    fake.open++;
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

static void fake_close(void *self, dsv4_seq *s)
{
    (void)self;
    if (!s)
        return;
    ck_assert(s->open);
    free(s);
    pthread_mutex_lock(&fake.lock);
    fake.open--;
    pthread_mutex_unlock(&fake.lock);
}

static const int32_t *fake_tokens(void *self, const dsv4_seq *s, size_t *n)
{
    (void)self;
    *n = s->n;
    return s->token;
}

static void fill_logits(float *l, const dsv4_seq *s)
{
    size_t sum = 0;
    for (size_t i = 0; i < s->n; i++)
        sum += (size_t)s->token[i];
    for (size_t i = 0; i < VOCAB; i++)
        l[i] = i == sum % VOCAB ? 10 : 0;
}

static int fake_eval(void *self, const dsv4_row *rows, size_t n, float *logits, dsv4_err *err)
{
    (void)self;
    if (fake.fail > 0) {
        fake.fail--;
        return err_set(err, fake.fail_with, "made to fail");
    }
    if (fake.delay)
        usleep(fake.delay);
    size_t of_one = 0;
    for (size_t i = 0; i < n; i++) {
        dsv4_seq *s = rows[i].seq;
        ck_assert(s->n < CTX);
        s->token[s->n++] = rows[i].token;
        of_one = i > 0 && rows[i - 1].seq == s ? of_one + 1 : 1;
        if (rows[0].seq != s && of_one > fake.longest_prompt)
            fake.longest_prompt = of_one;
        if (rows[i].logits) {
            fill_logits(logits, s);
            logits += VOCAB;
        }
    }
    fake.steps++;
    fake.rows += n;
    fake.most_rows = n > fake.most_rows ? n : fake.most_rows;
    return 0;
}

static int fake_rewind(void *self, dsv4_seq *s, size_t len, dsv4_err *err)
{
    (void)self;
    (void)err;
    ck_assert(len <= s->n);
    s->n = len;
    return 0;
}

static size_t fake_reusable(void *self, const dsv4_seq *s, size_t len, bool fork)
{
    (void)self;
    (void)fork;
    return len < s->n ? len : s->n;
}

static int fake_fork(void *self, dsv4_seq **out, const dsv4_seq *s, size_t len, dsv4_err *err)
{
    TRY(fake_open(self, out, err));
    memcpy((*out)->token, s->token, len * sizeof *s->token);
    (*out)->n = len;
    fake.forks++;
    return 0;
}

static uint64_t fake_bytes(void *self, const dsv4_seq *s)
{
    (void)self;
    return s->n;
}

static struct backend fake_backend(void)
{
    pthread_mutex_lock(&fake.lock);
    fake.steps = fake.rows = fake.most_rows = fake.forks = fake.longest_prompt = 0;
    fake.fail = 0;
    fake.delay = 0;
    pthread_mutex_unlock(&fake.lock);
    return (struct backend){.vocab = VOCAB,
                            .ctx = CTX,
                            .batch = BATCH,
                            .open = fake_open,
                            .close = fake_close,
                            .tokens = fake_tokens,
                            .eval = fake_eval,
                            .rewind = fake_rewind,
                            .reusable = fake_reusable,
                            .fork = fake_fork,
                            .bytes = fake_bytes};
}

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
    w->cached = cached;
    w->total = total;
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
    struct backend b = fake_backend();
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
    size_t steps = fake.steps, tokens = talker.n[0];
    submit(s, new_job(&reader, 3000, 5, 1));
    wait_finished(&reader);
    steps = fake.steps - steps;
    tokens = talker.n[0] - tokens;
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
        before += greedy[i].finished;
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
    submit(s, new_job(&w[3], 10, 0, 1));
    atomic_store(&w[0].gone, true);
    wait_finished(&w[3]);
    ck_assert_uint_eq(w[3].n[0], 1);
    ck_assert(!sched_drain(s) || w[2].finished);
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
    while (reader.total == 0 && !reader.finished)
        usleep(100);
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

/* Tokens whose texts are "a" + id, markers above 60. */
static const char *letters(void *self, int32_t token, size_t *len, bool *marker)
{
    static const char *const text[] = {"a", "b", "ab", "<M>"};
    (void)self;
    *marker = token == 3;
    *len = token < 4 ? strlen(text[token]) : 0;
    return token < 4 ? text[token] : NULL;
}

START_TEST(test_match_as_text)
{
    struct backend b = fake_backend();
    b.text = letters;
    size_t from;
    /* 16 times "ab" as one token; then the marker; then "ab" again */
    int32_t prompt[19], other[40];
    char text[64];
    size_t len = 0, n = 0;
    for (size_t i = 0; i < 16; i++) {
        prompt[i] = other[n++] = 2;
        len += (size_t)sprintf(text + len, "ab");
    }
    prompt[16] = 2;
    len += (size_t)sprintf(text + len, "ab");
    dsv4_span span = {len, len + 3};
    prompt[17] = 3;
    len += (size_t)sprintf(text + len, "<M>");
    prompt[18] = 2;
    len += (size_t)sprintf(text + len, "ab");
    struct job j = {.prompt = prompt,
                    .n_prompt = 19,
                    .text = text,
                    .text_len = len,
                    .spans = &span,
                    .n_spans = 1};
    other[n++] = 0; /* generated as two tokens */
    other[n++] = 1;
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 18); /* up to the marker */
    ck_assert_uint_eq(from, 17);
    other[n++] = 3;
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 19);
    ck_assert_uint_eq(from, 18);
    other[n++] = 0; /* the text goes on, but there is no edge where both agree */
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 19);
    other[n++] = 1;
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 21);
    ck_assert_uint_eq(from, 19);
    /* the marker's text as ordinary text is not the marker */
    j.n_spans = 0;
    ck_assert_uint_eq(prefix_match(&b, &j, other, n, &from), 16);
    ck_assert_uint_eq(from, 16);
}
END_TEST

/* ------------------------------------------------------------------ gate and parameters */

static struct gate_header head(const char *name, const char *value)
{
    return (struct gate_header){name, value, strlen(name), strlen(value)};
}

START_TEST(test_gate)
{
    struct gate_header h[3] = {head("Host", "localhost")};
    ck_assert_ptr_null(gate_headers(h, 1, true));
    ck_assert_ptr_nonnull(gate_headers(h, 0, true));
    ck_assert_ptr_null(gate_headers(h, 0, false));
    h[1] = head("host", "localhost");
    ck_assert_ptr_nonnull(gate_headers(h, 2, true));
    h[1] = head("Content-Length", "12");
    ck_assert_ptr_null(gate_headers(h, 2, true));
    h[2] = head("content-length", "12");
    ck_assert_ptr_nonnull(gate_headers(h, 3, true));
    h[2] = head("Transfer-Encoding", "chunked");
    ck_assert_ptr_nonnull(gate_headers(h, 3, true));
    h[1] = head("X-A", "a\x01z");
    ck_assert_ptr_nonnull(gate_headers(h, 2, true));
    h[1] = head("X A", "a");
    ck_assert_ptr_nonnull(gate_headers(h, 2, true));
    static const char *const lengths[] = {
        "", "-1", "+1", "1 ", "0x1", "1,1", "9999999999999999999"};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        h[1] = head("Content-Length", lengths[i]);
        ck_assert_ptr_nonnull(gate_headers(h, 2, true));
    }
    static const char *const uris[] = {"",     "x",     "http://a/", "/a b",  "/%00",
                                       "/a%0", "/\x7f", "/a%zz",     "/\xc3", "*"};
    for (size_t i = 0; i < sizeof uris / sizeof *uris; i++)
        ck_assert_ptr_nonnull(gate_uri(uris[i]));
    ck_assert_ptr_null(gate_uri("/v1/models?x=%41"));
    ck_assert_ptr_null(gate_method("POST"));
    ck_assert_ptr_nonnull(gate_method("post"));
    ck_assert_ptr_nonnull(gate_method("TRACE"));
}
END_TEST

START_TEST(test_gate_names)
{
    const char *hosts[] = {"box.example"}, *origins[] = {"https://app.example"};
    struct server_options o = {
        .host = "127.0.0.1", .hosts = hosts, .n_hosts = 1, .origins = origins, .n_origins = 1};
    static const char *const good[] = {"localhost", "LOCALHOST:80",    "127.0.0.1:8090", "[::1]:1",
                                       "[::1]",     "box.example:443", "10.0.0.7"};
    static const char *const bad[] = {"",    "evil.example", "localhost.evil", "box.example.evil",
                                      "a:b", "[::1",         "localhost:80x",  "127.0.0.1.nip.io"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        ck_assert_msg(gate_host(&o, good[i]), "%s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(!gate_host(&o, bad[i]), "%s", bad[i]);
    ck_assert(gate_origin(&o, "http://localhost:80", "localhost:80"));
    ck_assert(gate_origin(&o, "https://app.example", "localhost"));
    ck_assert(!gate_origin(&o, "https://localhost", "localhost"));
    ck_assert(!gate_origin(&o, "http://evil", "localhost"));
    ck_assert(!gate_origin(&o, "null", "localhost"));
    struct key keys[2] = {{5, "alpha"}, {4, "beta"}};
    o.keys = keys;
    o.n_keys = 2;
    ck_assert_uint_eq(gate_key(&o, "alpha"), 1);
    ck_assert_uint_eq(gate_key(&o, "beta"), 2);
    ck_assert_uint_eq(gate_key(&o, "alph"), 0);
    ck_assert_uint_eq(gate_key(&o, "alphaa"), 0);
    ck_assert_uint_eq(gate_key(&o, ""), 0);
}
END_TEST

START_TEST(test_params)
{
    struct v {
        bool b;
        int64_t i;
        double d;
        const char *t;
        json_t *l;
    } v = {.i = 5};
    static const struct param table[] = {{"b", P_BOOL, 0, 0, offsetof(struct v, b)},
                                         {"i", P_INT, -3, 9, offsetof(struct v, i)},
                                         {"d", P_NUMBER, 0, 2, offsetof(struct v, d)},
                                         {"t", P_TEXT, 1, 4, offsetof(struct v, t)},
                                         {"l", P_LIST, 0, 2, offsetof(struct v, l)}};
    static const struct {
        const char *body, *param; /* param NULL: good */
    } cases[] = {{"{}", NULL},          {"{\"i\":null}", NULL},       {"{\"i\":9}", NULL},
                 {"{\"i\":3.0}", NULL}, {"{\"i\":10}", "i"},          {"{\"i\":-4}", "i"},
                 {"{\"i\":1.5}", "i"},  {"{\"i\":\"1\"}", "i"},       {"{\"i\":true}", "i"},
                 {"{\"i\":1e40}", "i"}, {"{\"b\":1}", "b"},           {"{\"d\":2.1}", "d"},
                 {"{\"d\":-0.1}", "d"}, {"{\"t\":\"\"}", "t"},        {"{\"t\":\"abcde\"}", "t"},
                 {"{\"t\":5}", "t"},    {"{\"l\":[1,2,3]}", "l"},     {"{\"l\":{}}", "l"},
                 {"{\"x\":1}", "x"},    {"{\"t\":\"a\\u0000\"}", "t"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct failure f = {0};
        json_t *body;
        dsv4_err err;
        OK(json_read(&body, cases[i].body, strlen(cases[i].body), &err));
        int rc = params_read(body, table, 5, &v, &f);
        ck_assert_msg((rc != 0) == (cases[i].param != NULL), "%s", cases[i].body);
        if (rc != 0) {
            ck_assert_str_eq(f.param, cases[i].param);
            ck_assert_int_eq(f.status, 400);
        }
        json_decref(body);
    }
}
END_TEST

START_TEST(test_out)
{
    struct out o = {0};
    out_string(&o, "a\"\\\n\x01\x7f\xc3\xa4", 8);
    ck_assert_str_eq(o.b.data, "\"a\\\"\\\\\\n\\u0001\\u007f\xc3\xa4\"");
    o.b.len = 0;
    out_number(&o, (double)INFINITY);
    out_text(&o, " ");
    out_number(&o, (double)NAN);
    ck_assert_str_eq(o.b.data, "1e+30 0");
    out_free(&o);
    json_t *v;
    dsv4_err err;
    static const char *const bad[] = {"", "{", "{\"a\":1,\"a\":2}", "{} {}", "\xff", "nul"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_int_eq(json_read(&v, bad[i], strlen(bad[i]), &err), DSV4_REFUSED);
    char deep[400];
    memset(deep, '[', 200);
    memset(deep + 200, ']', 200);
    ck_assert_int_eq(json_read(&v, deep, 400, &err), DSV4_REFUSED);
    OK(json_read(&v, deep + 100, 200, &err));
    json_decref(v);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("server");
    TCase *sched = tcase_create("scheduler"), *prefix = tcase_create("prefixes"),
          *gate = tcase_create("gate");
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
    tcase_add_test(prefix, test_match_as_text);
    tcase_add_test(gate, test_gate);
    tcase_add_test(gate, test_gate_names);
    tcase_add_test(gate, test_params);
    tcase_add_test(gate, test_out);
    suite_add_tcase(s, sched);
    suite_add_tcase(s, prefix);
    suite_add_tcase(s, gate);
    return run_suite(s);
}
