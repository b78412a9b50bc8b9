/* What happens to engines, sequences, texts and grammars when the n-th allocation, mapping, file operation or thread
 * creation fails (torture.h). */
#undef _FORTIFY_SOURCE

#include "torture.h"

#ifdef NO_FAULTS

SKIP_FAULTS("faults")

#else

/* ------------------------------------------------------------------ sequences and logits */

enum { MAX_VOCAB = 512, PROMPT = 12, STEPS = 6 };

static dsv4_engine *engine;

/* One thread for what follows opening: lanes allocate nothing, and waiting for each other is slow on a
 * crowded machine. */
static const dsv4_options options = {.ctx = 600, .batch = 8, .sequences = 2, .threads = 1};

static int32_t token(size_t i)
{
    return (int32_t)(3 + i * i % 200);
}

/* Appends rows. When it fails nothing has changed, and the same call works afterwards. */
static int eval(struct run *r, dsv4_engine *e, const dsv4_row *rows, size_t n, float *logits,
                dsv4_err *err)
{
    size_t before = dsv4_seq_len(rows[0].seq), other = dsv4_seq_len(rows[n - 1].seq);
    int rc = dsv4_eval(e, rows, n, logits, err);
    if (rc != 0) {
        expect(r, dsv4_seq_len(rows[0].seq) == before && dsv4_seq_len(rows[n - 1].seq) == other,
               "a failed dsv4_eval has changed a sequence");
        faults_relent();
        dsv4_err later;
        expect(r, dsv4_eval(e, rows, n, logits, &later) == 0, "dsv4_eval does not recover");
    }
    for (size_t i = 0, row = 0; i < n; i++)
        if (rows[i].logits)
            digest(r, logits + row++ * dsv4_engine_vocab(e), dsv4_engine_vocab(e) * sizeof *logits);
    return rc;
}

/* Two sequences in one call, then single tokens. The first failure is returned, the work goes on. */
static int sequences_with(struct run *r, dsv4_engine *e, dsv4_err *err)
{
    static float logits[PROMPT * 2 * MAX_VOCAB];
    dsv4_row rows[PROMPT * 2];
    dsv4_seq *a = NULL, *b = NULL;
    dsv4_err later;
    int first = dsv4_seq_open(&a, e, err);
    expect(r, first == 0 || !a, "dsv4_seq_open failed and left a sequence");
    if (first == 0)
        first = dsv4_seq_open(&b, e, err);
    if (first != 0)
        faults_relent();
    if ((!a && dsv4_seq_open(&a, e, &later) != 0) || (!b && dsv4_seq_open(&b, e, &later) != 0))
        expect(r, false, "dsv4_seq_open does not recover");
    for (size_t i = 0; i < PROMPT * 2; i++)
        rows[i] = (dsv4_row){i % 2 ? b : a, token(i), i % 5 == 4};
    int rc = eval(r, e, rows, PROMPT * 2, logits, first ? &later : err);
    first = first ? first : rc;
    for (size_t i = 0; i < STEPS; i++) {
        dsv4_row row = {a, token(i), true};
        rc = eval(r, e, &row, 1, logits, first ? &later : err);
        first = first ? first : rc;
    }
    dsv4_seq_close(a);
    dsv4_seq_close(b);
    return first;
}

static int run_sequences(struct run *r, dsv4_err *err)
{
    return sequences_with(r, engine, err);
}

/* ------------------------------------------------------------------ generation */

static bool take_token(void *arg, const dsv4_token *t)
{
    struct run *r = arg;
    digest(r, &t->chosen.token, sizeof t->chosen.token);
    digest(r, &t->chosen.logprob, sizeof t->chosen.logprob);
    for (size_t i = 0; i < 3; i++)
        digest(r, &t->top[i].token, sizeof t->top[i].token);
    digest(r, t->text, t->len);
    return false;
}

static int run_generate(struct run *r, dsv4_err *err)
{
    static const char *const stops[] = {"never to be seen", "\xff\xfe"};
    static const dsv4_bias bias[] = {{5, -1}, {7, 2}};
    dsv4_sampling sampling = dsv4_engine_sampling(engine);
    sampling.temperature = 0.9f;
    sampling.top_p = 0.9f;
    sampling.seed = 7;
    sampling.repetition = 1.1f;
    sampling.bias = bias;
    sampling.n_bias = 2;
    dsv4_generate_options o = {.sampling = sampling,
                               .max_tokens = 24,
                               .stops = stops,
                               .n_stops = 2,
                               .ignore_eos = true,
                               .n_top = 3,
                               .token = take_token,
                               .arg = r};
    int32_t ids[20];
    for (size_t i = 0; i < 20; i++)
        ids[i] = token(i);
    dsv4_seq *s;
    dsv4_generated g;
    int rc = dsv4_seq_open(&s, engine, err);
    if (rc != 0)
        return rc;
    rc = dsv4_generate(engine, s, ids, 20, &o, &g, err);
    if (rc != 0) { /* the sequence may have come some way, and can be used again */
        dsv4_err later;
        faults_relent();
        r->digest = 0;
        expect(r, dsv4_seq_rewind(s, 0, &later) == 0, "the sequence cannot be rewound");
        expect(r, dsv4_generate(engine, s, ids, 20, &o, &g, &later) == 0,
               "dsv4_generate does not recover");
        expect(r, g.n_tokens == 24, "a second dsv4_generate is shorter");
    }
    dsv4_seq_close(s);
    return rc;
}

/* ------------------------------------------------------------------ opening */

static const char *model_dir;

static int run_open(struct run *r, dsv4_err *err)
{
    dsv4_engine *e = NULL;
    int rc = dsv4_open(&e, model_dir, &options, err);
    expect(r, (rc == 0) == (e != NULL), "an engine and a failure, or none of both");
    if (rc != 0)
        return rc;
    dsv4_err later;
    faults_relent();
    expect(r, sequences_with(r, e, &later) == 0, "an opened engine does not work");
    dsv4_close(e);
    return 0;
}

/* With threads, only opened. */
static int run_open_threads(struct run *r, dsv4_err *err)
{
    dsv4_engine *e = NULL;
    dsv4_options o = options;
    o.threads = 4;
    int rc = dsv4_open(&e, model_dir, &o, err);
    expect(r, (rc == 0) == (e != NULL), "an engine and a failure, or none of both");
    if (rc == 0)
        r->digest = dsv4_engine_threads(e);
    dsv4_close(e);
    return rc;
}

static void use_v41(void)
{
    model_dir = GOLDEN "v41-tiny";
}

static void use_v4(void)
{
    model_dir = GOLDEN "v4-tiny";
}

static void use_shards(void)
{
    model_dir = GOLDEN "v4-pro";
}

static void open_v41(void)
{
    dsv4_err err;
    use_v41();
    OK(dsv4_open(&engine, model_dir, &options, &err));
}

static void open_v4(void)
{
    dsv4_err err;
    use_v4();
    OK(dsv4_open(&engine, model_dir, &options, &err));
}

static void close_engine(void)
{
    dsv4_close(engine);
    engine = NULL;
}

/* ------------------------------------------------------------------ descriptions */

static int describe(struct run *r, int rc, char *json, bool stable)
{
    expect(r, (rc == 0) == (json != NULL), "a text and a failure, or none of both");
    if (rc == 0)
        digest(r, json, stable ? strlen(json) : 1); /* or it tells of this machine */
    dsv4_free(json);
    return rc;
}

static int run_describe(struct run *r, dsv4_err *err)
{
    dsv4_options o = options;
    o.max_memory = 1 << 20; /* does not fit, and is described all the same */
    char *json = NULL;
    int rc = dsv4_info(model_dir, &json, err);
    TRY(describe(r, rc, json, true));
    json = NULL;
    rc = dsv4_plan(model_dir, &o, &json, err);
    TRY(describe(r, rc, json, true));
    json = NULL;
    rc = dsv4_about(&json, err);
    return describe(r, rc, json, false);
}

/* ------------------------------------------------------------------ text */

static int render(struct run *r, dsv4_dialect dialect, const char *json, dsv4_err *err)
{
    dsv4_prompt *p = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    int rc = dsv4_render(dialect, json, strlen(json), &p, err);
    expect(r, (rc == 0) == (p != NULL), "a prompt and a failure, or none of both");
    if (rc == 0) {
        digest(r, p->text, p->len);
        rc = dsv4_encode_prompt(dsv4_engine_tokenizer(engine), p, &ids, &n, err);
        expect(r, (rc == 0) == (ids != NULL), "ids and a failure, or none of both");
        digest(r, ids, n * sizeof *ids);
    }
    dsv4_free(ids);
    dsv4_prompt_close(p);
    return rc;
}

static int run_render(struct run *r, dsv4_err *err)
{
    static const char calls[] =
        "{\"options\":{\"thinking_mode\":\"thinking\",\"drop_thinking\":false},\"messages\":["
        "{\"role\":\"system\",\"content\":\"s\",\"tools\":[{\"type\":\"function\",\"function\":{"
        "\"name\":\"now\",\"description\":\"\\u20ac\",\"parameters\":{\"type\":\"object\","
        "\"properties\":{\"x\":{\"type\":\"string\",\"default\":-385.97}}}}}],"
        "\"response_format\":{\"type\":\"object\"}},"
        "{\"role\":\"user\",\"content\":\"q <think>\"},{\"role\":\"assistant\",\"content\":\"c\","
        "\"reasoning_content\":\"r\",\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\","
        "\"function\":{\"name\":\"now\",\"arguments\":\"{\\\"a\\\": \\\"b\\\", \\\"n\\\": 3}\"}}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"result\"}]}";
    static const char image[] =
        "{\"options\":{\"thinking_mode\":\"chat\"},\"messages\":[{\"role\":\"user\",\"content\":["
        "{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"image_url\",\"image_url\":{\"url\":\"s.png\"}}]}]}";
    TRY(render(r, DSV4_V4_PREVIEW, calls, err));
    TRY(render(r, DSV4_V4_0731, calls, err));
    TRY(render(r, DSV4_V41, calls, err));
    return render(r, DSV4_V41, image, err);
}

static const char some_text[] = "Hello, world! 12345 \xe4\xbd\xa0\xe5\xa5\xbd <think>\n\n  x\xff y "
                                "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";

static int tokenize(struct run *r, const dsv4_tokenizer *t, dsv4_err *err)
{
    for (int markers = 0; markers < 2; markers++) {
        int32_t *ids = NULL;
        size_t n = 0;
        int rc = dsv4_encode(t, some_text, sizeof some_text - 1, markers, &ids, &n, err);
        expect(r, (rc == 0) == (ids != NULL), "ids and a failure, or none of both");
        digest(r, ids, n * sizeof *ids);
        dsv4_free(ids);
        TRY(rc);
    }
    size_t *cuts = NULL, n = 0;
    int rc = dsv4_pretokenize(t, some_text, sizeof some_text - 1, &cuts, &n, err);
    expect(r, (rc == 0) == (cuts != NULL), "cuts and a failure, or none of both");
    digest(r, cuts, n * sizeof *cuts);
    dsv4_free(cuts);
    return rc;
}

static int run_tokenize(struct run *r, dsv4_err *err)
{
    return tokenize(r, dsv4_engine_tokenizer(engine), err);
}

#ifdef HAVE_PCRE2
/* A tokenizer with a split pattern that only PCRE2 can run. */
static char odd_tokenizer[] = "/tmp/dsv4-faults.XXXXXX";

static void write_odd_tokenizer(void)
{
    char *text, *at;
    size_t len;
    dsv4_err err;
    OK(file_read(GOLDEN "v4-tiny/tokenizer.json", 1 << 20, &text, &len, &err));
    ck_assert_ptr_nonnull(at = strstr(text, "{1,3}"));
    at[3] = '4';
    strcpy(odd_tokenizer + sizeof odd_tokenizer - 7, "XXXXXX");
    int fd = mkstemp(odd_tokenizer);
    ck_assert_int_ge(fd, 0);
    OK(file_write_all(fd, odd_tokenizer, text, len, &err));
    close(fd);
    free(text);
}

static void remove_odd_tokenizer(void)
{
    unlink(odd_tokenizer);
}

static int run_odd_tokenizer(struct run *r, dsv4_err *err)
{
    dsv4_tokenizer *t = NULL;
    int rc = dsv4_tokenizer_open(&t, odd_tokenizer, err);
    expect(r, (rc == 0) == (t != NULL), "a tokenizer and a failure, or none of both");
    if (rc == 0)
        rc = tokenize(r, t, err);
    dsv4_tokenizer_close(t);
    return rc;
}
#endif

/* ------------------------------------------------------------------ model output */

/* How text is cut into events is the parser's choice; what they add up to is not. */
struct heard {
    struct run *r;
    dsv4_event_kind kind;
};

static void hear(void *arg, const dsv4_event *e)
{
    struct heard *h = arg;
    if (e->kind != h->kind)
        digest(h->r, &e->kind, sizeof e->kind);
    h->kind = e->kind;
    digest(h->r, e->text, e->len);
}

static int run_parser(struct run *r, dsv4_err *err)
{
    static const char answer[] =
        "need data</think>\n\n<\xef\xbd\x9c"
        "DSML\xef\xbd\x9c calls>\n<\xef\xbd\x9c"
        "DSML\xef\xbd\x9c invoke name=\"get_weather\">\n<\xef\xbd\x9c"
        "DSML\xef\xbd\x9c parameter name=\"city\" string=\"true\">a \"city\" of a rather long name"
        "</\xef\xbd\x9c"
        "DSML\xef\xbd\x9c parameter>\n<\xef\xbd\x9c"
        "DSML\xef\xbd\x9c parameter name=\"days\" string=\"false\">3</\xef\xbd\x9c"
        "DSML\xef\xbd\x9c parameter>\n</\xef\xbd\x9c"
        "DSML\xef\xbd\x9c invoke>\n</\xef\xbd\x9c"
        "DSML\xef\xbd\x9c calls><\xef\xbd\x9c"
        "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>";
    char *json = NULL;
    int rc = dsv4_parse_strict(DSV4_V41, answer, sizeof answer - 1, true, &json, err);
    expect(r, (rc == 0) == (json != NULL), "a text and a failure, or none of both");
    if (rc == 0)
        digest(r, json, strlen(json));
    dsv4_free(json);
    TRY(rc);
    struct heard h = {.r = r};
    dsv4_parser *p = NULL;
    TRY(dsv4_parser_open(&p, true, true, hear, &h, err));
    dsv4_err later;
    int first = 0;
    for (size_t at = 0; at < sizeof answer - 1; at += 11) {
        size_t n = sizeof answer - 1 - at < 11 ? sizeof answer - 1 - at : 11;
        if ((rc = dsv4_parser_feed(p, answer + at, n, first ? &later : err)) == 0)
            continue;
        first = rc;
        faults_relent();
        expect(r, dsv4_parser_feed(p, answer + at, n, &later) == 0,
               "dsv4_parser_feed does not recover");
    }
    if ((rc = dsv4_parser_end(p, false, first ? &later : err)) != 0) {
        first = rc;
        faults_relent();
        expect(r, dsv4_parser_end(p, false, &later) == 0, "dsv4_parser_end does not recover");
    }
    dsv4_parser_close(p);
    return first;
}

/* ------------------------------------------------------------------ saving */

static char save_dir[] = "/tmp/dsv4-faults.XXXXXX";
static char save_path[64];

static void begin_save(void)
{
    dsv4_err err;
    strcpy(save_dir + sizeof save_dir - 7, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(save_dir));
    snprintf(save_path, sizeof save_path, "%s/x", save_dir);
    OK(file_write_atomic(save_path, "old", 3, &err));
}

static void end_save(void)
{
    unlink(save_path);
    rmdir(save_dir);
}

/* Afterwards the old or the new content is there, and no other file. */
static int run_save(struct run *r, dsv4_err *err)
{
    static char content[5000];
    dsv4_err later;
    char *text = NULL;
    size_t len = 0, files = 0;
    memset(content, 'n', sizeof content);
    int rc = file_write_atomic(save_path, content, sizeof content, err);
    faults_relent();
    expect(r, file_read(save_path, 1 << 20, &text, &len, &later) == 0, "the file is gone");
    bool old = text && len == 3 && memcmp(text, "old", 3) == 0;
    bool new = text &&len == sizeof content &&memcmp(text, content, len) == 0;
    free(text);
    expect(r, rc == 0 ? new : old, "neither the old nor the new content is there");
    DIR *d = opendir(save_dir);
    while (d && readdir(d))
        files++;
    if (d)
        closedir(d);
    expect(r, files == 3, "a file is left beside the saved one"); /* with . and .. */
    expect(r, file_write_atomic(save_path, "old", 3, &later) == 0, "the next save fails");
    r->digest = 1;
    return rc;
}

/* ------------------------------------------------------------------ the suite */

/* ------------------------------------------------------------------ constrained decoding */

/* Masks along a text; the tokens are the first ones that fit. */
static int match(struct run *r, const dsv4_grammar *g, size_t vocab, dsv4_err *err)
{
    uint32_t bits[64];
    dsv4_matcher *m = NULL, *copy = NULL;
    int rc = vocab > 32 * 64 ? DSV4_FAILED : dsv4_matcher_open(&m, g, err);
    for (int i = 0; i < 12 && rc == 0 && !dsv4_matcher_done(m); i++) {
        rc = dsv4_matcher_mask(m, bits, vocab, err);
        int32_t id = 0;
        while (rc == 0 && !(bits[id / 32] >> id % 32 & 1))
            id++;
        if (rc == 0)
            digest(r, bits, (vocab + 31) / 32 * sizeof *bits);
        if (rc == 0)
            rc = dsv4_matcher_clone(&copy, m, err);
        if (rc == 0)
            rc = dsv4_matcher_accept(m, id, err);
        if (rc == 0)
            rc = dsv4_matcher_accept(copy, id, err);
        dsv4_matcher_close(copy);
        copy = NULL;
    }
    dsv4_matcher_close(m);
    return rc;
}

static int run_grammar(struct run *r, dsv4_err *err)
{
    static const char
        gbnf[] = "root ::= x{2,700} y\ny ::= (\"a\" | x y?) [^b-d\u00e4]*\nx ::= [a-z]",
        schema[] = "{\"properties\":{\"a\":{\"pattern\":\"^[a-z]+$\",\"maxLength\":5},\"b\":{"
                   "\"anyOf\":[{\"$ref\":\"#\"},{\"minimum\":3}]},\"c\":{\"enum\":[1,\"a\"]}},"
                   "\"additionalProperties\":true,\"required\":[\"a\"]}",
        tools[] = "[{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":"
                  "[\"string\",\"array\"]}},\"required\":[\"a\"]}}]";
    dsv4_tokenizer *t = NULL; /* of its own: what it keeps for grammars is made anew */
    dsv4_grammar *g = NULL;
    int rc = dsv4_tokenizer_open(&t, GOLDEN "v4-tiny/tokenizer.json", err);
    for (int i = 0; i < 3 && rc == 0; i++) {
        rc = i == 0   ? dsv4_grammar_open(&g, t, gbnf, sizeof gbnf - 1, err)
             : i == 1 ? dsv4_grammar_json_schema(&g, t, schema, sizeof schema - 1, err)
                      : dsv4_grammar_tools(&g, t, DSV4_V41, tools, sizeof tools - 1,
                                           DSV4_TOOLS_AUTO, NULL, true, err);
        expect(r, (rc == 0) == (g != NULL), "a grammar and a failure, or none of both");
        if (rc == 0)
            rc = match(r, g, dsv4_tokenizer_size(t), err);
        dsv4_grammar_close(g);
        g = NULL;
    }
    dsv4_tokenizer_close(t);
    return rc;
}

static const struct scenario all[] = {
    {"open v41", MEMORY | MAP | FILES, run_open, use_v41, NULL},
    {"open v4", MEMORY | MAP | FILES, run_open, use_v4, NULL},
    {"open v4 in shards", MEMORY | MAP | FILES, run_open, use_shards, NULL},
    {"open with threads", THREAD, run_open_threads, use_v4, NULL},
    {"describe", MEMORY | MAP | FILES, run_describe, use_v41, NULL},
    {"sequences v41", MEMORY, run_sequences, open_v41, close_engine},
    {"sequences v4", MEMORY, run_sequences, open_v4, close_engine},
    {"generate v41", MEMORY, run_generate, open_v41, close_engine},
    {"generate v4", MEMORY, run_generate, open_v4, close_engine},
    {"render", MEMORY, run_render, open_v4, close_engine},
    {"tokenize", MEMORY, run_tokenize, open_v4, close_engine},
#ifdef HAVE_PCRE2
    {"tokenize with PCRE2", MEMORY | FILES, run_odd_tokenizer, write_odd_tokenizer,
     remove_odd_tokenizer},
#endif
    {"parse", MEMORY, run_parser, NULL, NULL},
    {"grammar", MEMORY, run_grammar, NULL, NULL},
    {"save", MEMORY | FILES, run_save, begin_save, end_save},
};

int main(void)
{
    return run_scenarios("faults", all, sizeof all / sizeof *all, FAULTS_SITES);
}

#endif
