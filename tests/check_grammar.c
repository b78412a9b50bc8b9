/* Constrained decoding: masks against trying every token; random texts under the mask; limits; sampling and
 * generation (texts for each keyword: check_grammar_texts.c). With `--walk FILE SCHEMA N` the program prints
 * N random JSON texts for a schema instead: tests/test_grammar.py gives them to another validator. `--bench
 * FILE` measures on a tokenizer. */
#include "grammar_case.h"

#include <math.h>
#include <time.h>

/* ------------------------------------------------------------------ masks */

static uint32_t seed = 1;

static uint32_t below(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

/* The mask against trying every token. */
static void check_mask(const dsv4_matcher *m, const uint32_t *bits, size_t n)
{
    dsv4_err err;
    for (size_t id = 0; id < n; id++) {
        dsv4_matcher *copy;
        OK(dsv4_matcher_clone(&copy, m, &err));
        int rc = dsv4_matcher_accept(copy, (int32_t)id, &err);
        ck_assert_msg((rc == 0) == (bits[id / 32] >> id % 32 & 1), "token %zu: %d", id, rc);
        dsv4_matcher_close(copy);
    }
}

/* A token of the mask; short ones more often, as they end things. */
static int32_t draw(const uint32_t *bits, size_t n)
{
    int32_t best = -1;
    size_t shortest = SIZE_MAX, tries = 1 + below(3) * 8;
    for (size_t k = 0; k < tries; k++) {
        size_t at = below((uint32_t)n), len;
        while (!(bits[at / 32] >> at % 32 & 1))
            at = (at + 1) % n;
        dsv4_token_bytes(tok, (int32_t)at, &len);
        if (len < shortest) {
            shortest = len;
            best = (int32_t)at;
        }
    }
    return best;
}

/* A random text under the mask; NULL when it did not end within `most` tokens. */
static char *random_text(const dsv4_grammar *g, size_t most, bool check, size_t *len)
{
    dsv4_err err;
    dsv4_matcher *m;
    struct bytes text = {0};
    size_t n = dsv4_tokenizer_size(tok), i = 0;
    uint32_t *bits = calloc((n + 31) / 32, 4);
    int32_t eos = dsv4_token_find(tok, M_EOS);
    OK(dsv4_matcher_open(&m, g, &err));
    OK(bytes_add(&text, "", 0, &err));
    for (; i < most; i++) {
        size_t size;
        OK(dsv4_matcher_mask(m, bits, n, &err));
        NEED(dsv4_matcher_may_end(m) == (bits[eos / 32] >> eos % 32 & 1));
        if (check && below(8) == 0)
            check_mask(m, bits, n);
        int32_t id = dsv4_matcher_may_end(m) && below(4) == 0 ? eos : draw(bits, n);
        OK(dsv4_matcher_accept(m, id, &err));
        if (id == eos)
            break;
        const char *p = dsv4_token_bytes(tok, id, &size);
        OK(bytes_add(&text, p, size, &err));
    }
    if (i < most) {
        NEED(dsv4_matcher_done(m));
        NEED(dsv4_matcher_mask(m, bits, n, &err) == DSV4_USAGE);
        NEED(dsv4_matcher_accept(m, eos, &err) == DSV4_REFUSED);
    }
    dsv4_matcher_close(m);
    free(bits);
    *len = text.len;
    if (i < most)
        return text.data;
    free(text.data);
    return NULL;
}

static const char *const walked[] = {
    "",
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"minLength\":1,"
    "\"maxLength\":12}"
    ",\"n\":{\"type\":\"number\",\"minimum\":-3.5,\"exclusiveMaximum\":1000},\"tags\":{\"type\":"
    "\"array\",\"items\":{\"enum\":[\"a\",\"b\",null]},\"maxItems\":3},\"when\":{\"format\":"
    "\"date-time\"},\"id\":{\"pattern\":\"^[A-Z]{2}-[0-9]{1,4}$\"}},\"required\":[\"name\",\"id\"]"
    "}",
    "{\"anyOf\":[{\"type\":\"integer\",\"minimum\":10,\"maximum\":99},{\"type\":\"array\","
    "\"items\":{"
    "\"$ref\":\"#\"},\"maxItems\":2}]}",
};

START_TEST(masks_are_exact)
{
    for (size_t i = 0; i < sizeof walked / sizeof *walked; i++) {
        dsv4_grammar *g = open_schema(walked[i]);
        for (int r = 0; r < 4; r++) {
            size_t len;
            free(random_text(g, 60, true, &len));
        }
        dsv4_grammar_close(g);
    }
    static const char *const text[] = {
        "root ::= word (\" \" word)*\nword ::= [a-z]{1,5} | [A-Z] word2\nword2 ::= [a-z]* \"!\"",
        "root ::= x\nx ::= a x \"x\" | b x \"y\" | \"z\"\na ::= \"a\" c\nb ::= \"a\" c\nc ::= \"\" "
        "| c2\n"
        "c2 ::= \"c\" c2 \"d\" | \"e\"",
        "root ::= ([a-z ]{2,4} \"-\"?){1,600} \".\"",
    };
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        dsv4_err err;
        dsv4_grammar *g;
        OK(dsv4_grammar_open(&g, tok, text[i], strlen(text[i]), &err));
        for (int r = 0; r < 4; r++) {
            size_t len;
            free(random_text(g, 40, true, &len));
        }
        dsv4_grammar_close(g);
    }
    for (int mode = 0; mode < 2; mode++) {
        dsv4_grammar *g = open_tools(DSV4_V41, (dsv4_tool_mode)mode, NULL, true);
        for (int r = 0; r < 4; r++) {
            size_t len;
            free(random_text(g, 60, true, &len));
        }
        dsv4_grammar_close(g);
    }
}
END_TEST

/* Random texts are JSON, and fit what jv_parse can tell. */
START_TEST(random_json)
{
    size_t ended = 0;
    for (size_t i = 0; i < sizeof walked / sizeof *walked; i++) {
        dsv4_grammar *g = open_schema(walked[i]);
        for (int r = 0; r < 100; r++) {
            size_t len;
            char *text = random_text(g, 400, false, &len);
            dsv4_err err;
            struct jv_doc doc;
            if (!text)
                continue;
            ended++;
            ck_assert_msg(jv_parse(&doc, text, len, "text", &err) == 0, "%s: %s", text, err.text);
            if (i == 1) {
                const struct jv *name = jv_get(doc.root, "name"), *id = jv_get(doc.root, "id");
                ck_assert(jv_is(name, JV_STRING) && name->len > 0);
                ck_assert(jv_is(id, JV_STRING) && id->len >= 4 && id->len <= 7 &&
                          id->text[2] == '-');
            }
            jv_free(&doc);
            free(text);
        }
        dsv4_grammar_close(g);
    }
    ck_assert_uint_ge(ended, 60);
}
END_TEST

/* What a model writes under the grammar, the release's own parser accepts. */
START_TEST(random_calls)
{
    size_t ended = 0;
    for (int d = 0; d < 3; d++) {
        dsv4_grammar *g = open_tools((dsv4_dialect)d, DSV4_TOOLS_REQUIRED, NULL, true);
        for (int r = 0; r < 60; r++) {
            size_t len;
            dsv4_err err;
            struct bytes all = {0};
            char *text = random_text(g, 300, false, &len), *json;
            if (!text)
                continue;
            ended++;
            bool opened = strncmp(text, "\n\n", 2) == 0;
            if (strncmp(text, tagged((dsv4_dialect)d, "<$B"),
                        strlen(tagged((dsv4_dialect)d, "<$B"))))
                OK(bytes_text(&all, opened ? "" : tagged((dsv4_dialect)d, "\n\n<$B>\n"), &err));
            else
                OK(bytes_text(&all, "\n\n", &err));
            OK(bytes_add(&all, text, len, &err));
            OK(bytes_text(&all, M_EOS, &err));
            ck_assert_msg(
                dsv4_parse_strict((dsv4_dialect)d, all.data, all.len, false, &json, &err) == 0,
                "%s: %s", all.data, err.text);
            ck_assert_ptr_nonnull(strstr(json, "\"arguments\""));
            dsv4_free(json);
            free(all.data);
            free(text);
        }
        dsv4_grammar_close(g);
    }
    ck_assert_uint_ge(ended, 20);
}
END_TEST

/* ------------------------------------------------------------------ limits */

/* `head`, then n times `part`, then `tail` as single bytes. */
static enum verdict long_text(const dsv4_grammar *g, const char *part, size_t n, const char *tail)
{
    struct bytes b = {0};
    dsv4_err err;
    for (size_t i = 0; i < n; i++)
        OK(bytes_text(&b, part, &err));
    OK(bytes_text(&b, tail, &err));
    enum verdict v = try_text(g, b.data);
    free(b.data);
    return v;
}

START_TEST(long_and_deep)
{
    dsv4_err err;
    dsv4_grammar *g = open_schema("true");
    ck_assert_int_eq(long_text(g, "[", 300, ""), UNFINISHED);
    ck_assert_int_eq(long_text(g, "[", 200000, ""),
                     REFUSED); /* too deep, and no memory lost to it */
    ck_assert_int_eq(long_text(g, "\"", 1, ""), UNFINISHED);
    dsv4_grammar_close(g);

    g = open_schema("{\"type\":\"string\",\"minLength\":4000,\"maxLength\":200000}");
    ck_assert_int_eq(long_text(g, "\"", 1, "abc\""), REFUSED);
    dsv4_grammar_close(g);

    /* A text that can be read in exponentially many ways. */
    const char *many =
        "root ::= x\nx ::= a x x | b x x | \"z\" | \"\"\na ::= \"a\" y\nb ::= \"a\" y\n"
        "y ::= \"\" | \"(\" y \")\"";
    OK(dsv4_grammar_open(&g, tok, many, strlen(many), &err));
    enum verdict v = long_text(g, "a", 300, "zz");
    ck_assert_int_eq(v, FITS);
    dsv4_grammar_close(g);

    /* Lists by recursion at the end do not grow the stack. */
    const char *list = "root ::= \"a\" root | \"b\"";
    OK(dsv4_grammar_open(&g, tok, list, strlen(list), &err));
    ck_assert_int_eq(long_text(g, "a", 100000, "b"), FITS);
    dsv4_grammar_close(g);
}
END_TEST

START_TEST(large_schemas)
{
    struct bytes b = {0};
    dsv4_err err;
    OK(bytes_text(&b, "{\"properties\":{", &err));
    for (int i = 0; i < 94; i++)
        OK(bytes_printf(&b, &err, "%s\"parameter_%d\":{\"type\":\"string\"}", i ? "," : "", i));
    OK(bytes_text(&b, "}}", &err));
    dsv4_grammar *g = open_schema(b.data);
    ck_assert_int_eq(try_text(g, "{\"parameter_3\":\"x\",\"parameter_93\":\"\"}"), FITS);
    ck_assert_int_eq(try_text(g, "{\"parameter_93\":\"x\",\"parameter_3\":\"\"}"), REFUSED);
    dsv4_grammar_close(g);
    b.len = 0;
    OK(bytes_text(&b, "{\"enum\":[", &err));
    for (int i = 0; i < 10000; i++)
        OK(bytes_printf(&b, &err, "%s\"value %d\"", i ? "," : "", i));
    OK(bytes_text(&b, "]}", &err));
    g = open_schema(b.data);
    ck_assert_int_eq(try_text(g, "\"value 9999\""), FITS);
    ck_assert_int_eq(try_text(g, "\"value 10000\""), REFUSED);
    dsv4_grammar_close(g);
    free(b.data);
}
END_TEST

START_TEST(interface)
{
    dsv4_err err;
    dsv4_matcher *m, *copy;
    dsv4_grammar *g;
    uint32_t bits[200], wide[200];
    size_t n = dsv4_tokenizer_size(tok);
    OK(dsv4_grammar_open(&g, tok, "root ::= \"ab\" \"c\"?", 18, &err));
    OK(dsv4_matcher_open(&m, g, &err));
    ck_assert(!dsv4_matcher_may_end(m) && !dsv4_matcher_done(m));
    ck_assert_int_eq(dsv4_matcher_accept(m, -1, &err), DSV4_USAGE);
    ck_assert_int_eq(dsv4_matcher_accept(m, (int32_t)n, &err), DSV4_USAGE);
    ck_assert_int_eq(dsv4_matcher_accept(m, tok->bpe.byte_id['b'], &err), DSV4_REFUSED);
    OK(dsv4_matcher_accept(m, tok->bpe.byte_id['a'], &err)); /* a refusal changes nothing */
    OK(dsv4_matcher_accept(m, tok->bpe.byte_id['b'], &err));
    ck_assert(dsv4_matcher_may_end(m) && !dsv4_matcher_done(m));
    OK(dsv4_matcher_clone(&copy, m, &err));
    OK(dsv4_matcher_accept(copy, tok->bpe.byte_id['c'], &err));
    ck_assert(dsv4_matcher_done(copy) && !dsv4_matcher_done(m));

    /* Rows of logits may be wider or narrower than the vocabulary. */
    memset(wide, 0xFF, sizeof wide);
    OK(dsv4_matcher_mask(m, bits, n, &err));
    OK(dsv4_matcher_mask(m, wide, 32 * 200, &err));
    for (size_t id = 0; id < 32 * 200; id++)
        ck_assert((wide[id / 32] >> id % 32 & 1) == (id < n && (bits[id / 32] >> id % 32 & 1)));
    memset(wide, 0xFF, sizeof wide);
    OK(dsv4_matcher_mask(m, wide, 70, &err));
    ck_assert_uint_eq(wide[3], UINT32_MAX);
    ck_assert_uint_eq(wide[2] >> 6, 0);
    dsv4_matcher_close(copy);
    dsv4_matcher_close(m);
    dsv4_grammar_close(g);
    dsv4_grammar_close(NULL);
    dsv4_matcher_close(NULL);
}
END_TEST

/* ------------------------------------------------------------------ sampling and generation */

START_TEST(sampling)
{
    enum { N = 70 };
    dsv4_err err;
    dsv4_sampler *s;
    float logits[N];
    uint32_t allow[3] = {0};
    for (int i = 0; i < N; i++)
        logits[i] = (float)(i % 7);
    const int some[] = {3, 31, 32, 40, 69};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++)
        allow[some[i] / 32] |= (uint32_t)1 << some[i] % 32;
    const dsv4_bias never[] = {
        {3, -INFINITY}, {31, -INFINITY}, {32, -INFINITY}, {40, -INFINITY}, {69, -INFINITY}};
    for (int kind = 0; kind < 4; kind++) {
        dsv4_sampling p = {
            .temperature = kind == 0 ? 0 : 2, .top_p = 1, .repetition = 1, .seed = 7};
        p.top_k = kind == 2 ? 3 : 0;
        p.bias = never;
        p.n_bias = kind == 3 ? 5 : 0;
        OK(dsv4_sampler_open(&s, &p, N, &err));
        unsigned seen[N] = {0};
        for (int i = 0; i < 500; i++) {
            dsv4_logprob top, got = dsv4_sample_masked(s, logits, allow, &top, 1);
            ck_assert(allow[got.token / 32] >> got.token % 32 & 1);
            ck_assert_int_eq(top.token, 6); /* probabilities are the whole distribution's */
            seen[got.token]++;
        }
        if (kind == 0)
            ck_assert_uint_eq(seen[69], 500); /* 69 % 7 is 6 */
        if (kind == 1)
            ck_assert(seen[3] && seen[31] && seen[32] && seen[40] && seen[69] > seen[3]);
        if (kind == 3)
            ck_assert_uint_eq(seen[3], 500); /* none has a chance: the first */
        dsv4_sampler_close(s);
    }
}
END_TEST

static bool add_token(void *arg, const dsv4_token *t)
{
    dsv4_err err;
    return bytes_add(arg, t->text, t->len, &err) != 0;
}

/* Reasoning is free; behind </think>, which bias makes come at once, only what fits may stand. */
START_TEST(generation)
{
    dsv4_err err;
    dsv4_engine *e;
    dsv4_seq *q;
    dsv4_grammar *g;
    dsv4_generated out;
    int32_t *ids;
    size_t n;
    const dsv4_options o = {.ctx = 256, .threads = 1};
    const char *text = M_BOS M_USER "Is it?" M_ASSISTANT M_THINK,
               *yes_no = "root ::= \"yes\" | \"no!\"";
    OK(dsv4_open(&e, "models/nano", &o, &err));
    const dsv4_tokenizer *t = dsv4_engine_tokenizer(e);
    int32_t end = dsv4_token_find(t, M_END_THINK);
    OK(dsv4_grammar_open(&g, t, yes_no, strlen(yes_no), &err));
    OK(dsv4_encode(t, text, strlen(text), true, &ids, &n, &err));
    for (int after = 0; after < 2; after++) {
        struct bytes b = {0};
        const dsv4_bias bias = {end, 1000};
        dsv4_generate_options opt = {.sampling = dsv4_engine_sampling(e),
                                     .max_tokens = 50,
                                     .ignore_eos = true,
                                     .grammar = g,
                                     .grammar_after = after ? end : 0,
                                     .token = add_token,
                                     .arg = &b};
        opt.sampling.bias = &bias;
        opt.sampling.n_bias = 1;
        OK(dsv4_seq_open(&q, e, &err));
        OK(dsv4_generate(e, q, ids, n, &opt, &out, &err));
        const char *answer = b.data + (after ? strlen(M_END_THINK) : 0);
        ck_assert_msg(strcmp(answer, "yes") == 0 || strcmp(answer, "no!") == 0, "%s", b.data);
        ck_assert(!after || strncmp(b.data, M_END_THINK, strlen(M_END_THINK)) == 0);
        ck_assert_int_eq(out.stop, DSV4_STOP_EOS);
        dsv4_seq_close(q);
        free(b.data);
    }
    dsv4_free(ids);
    dsv4_grammar_close(g);
    dsv4_close(e);
}
END_TEST

/* ------------------------------------------------------------------ other uses */

static double microseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench_walks(const char *name, const dsv4_grammar *g, double compiled)
{
    enum { MOST = 40000 };
    static double time[MOST];
    size_t n = 0, vocab = dsv4_tokenizer_size(tok);
    uint32_t *bits = calloc((vocab + 31) / 32, 4);
    int32_t eos = dsv4_token_find(tok, M_EOS);
    dsv4_err err;
    for (int r = 0; r < 40; r++) {
        dsv4_matcher *m;
        OK(dsv4_matcher_open(&m, g, &err));
        for (int i = 0; i < 300 && n < MOST; i++) {
            double begin = microseconds();
            OK(dsv4_matcher_mask(m, bits, vocab, &err));
            time[n++] = microseconds() - begin;
            int32_t id = draw(bits, vocab);
            if (dsv4_matcher_may_end(m) && (id == eos || i > 200))
                break;
            OK(dsv4_matcher_accept(m, id, &err));
        }
        dsv4_matcher_close(m);
    }
    qsort(time, n, sizeof *time, by_value);
    printf(
        "%-12s compiled in %7.0f us, %6u states; %5zu masks: median %5.1f, p99 %6.1f, max %7.1f us"
        "; %zu KiB kept\n",
        name, compiled, g->n, n, time[n / 2], time[n * 99 / 100], time[n - 1],
        (size_t)g->cache_bytes >> 10);
    free(bits);
}

static const char c_gbnf[] =
    "root ::= declaration*\n"
    "declaration ::= type identifier \"(\" parameter? \")\" \"{\" statement* \"}\"\n"
    "type ::= \"int\" ws | \"float\" ws | \"char\" ws\n"
    "identifier ::= [a-zA-Z_] [a-zA-Z_0-9]*\n"
    "parameter ::= type identifier\n"
    "statement ::= type identifier ws \"=\" ws expression \";\" | identifier ws \"=\" ws "
    "expression "
    "\";\" | identifier ws \"(\" arguments? \")\" \";\" | \"return\" ws expression \";\" |\n"
    " \"while\" \"(\" condition \")\" \"{\" statement* \"}\" | \"if\" \"(\" condition \")\" \"{\" "
    "statement* \"}\" (\"else\" \"{\" statement* \"}\")? | \"//\" [^\\n]* \"\\n\" |\n"
    " \"/*\" ( [^*] | (\"*\" [^/]) )* \"*/\"\n"
    "condition ::= expression (\"<=\" | \"<\" | \"==\" | \"!=\" | \">=\" | \">\") expression\n"
    "expression ::= term ((\"+\" | \"-\") term)*\n"
    "term ::= factor ((\"*\" | \"/\") factor)*\n"
    "factor ::= identifier | [0-9]+ | \"-\" factor | identifier \"(\" arguments? \")\" | \"(\" ws "
    "expression ws \")\"\n"
    "arguments ::= expression (\",\" ws expression)*\n"
    "ws ::= [ \\t\\n]+\n";

/* A schema of 30 properties of ten kinds, every second one required. */
static void wide_schema(struct bytes *b)
{
    static const char *const kind[] = {
        "{\"type\":\"string\"}",
        "{\"type\":\"integer\"}",
        "{\"type\":\"number\",\"minimum\":0}",
        "{\"type\":\"boolean\"}",
        "{\"type\":\"array\",\"items\":{\"type\":\"string\"}}",
        "{\"enum\":[\"low\",\"mid\",\"high\"]}",
        "{\"type\":\"string\",\"maxLength\":60}",
        "{\"type\":[\"string\",\"null\"]}",
        "{\"properties\":{\"x\":{\"type\":\"number\"},\"y\":{}},\"required\":[\"x\"]}",
        "{\"format\":\"date-time\"}"};
    dsv4_err err;
    OK(bytes_text(b, "{\"type\":\"object\",\"properties\":{", &err));
    for (int i = 0; i < 30; i++)
        OK(bytes_printf(b, &err, "%s\"property_%d\":%s", i ? "," : "", i, kind[i % 10]));
    OK(bytes_text(b, "},\"required\":[\"property_0\"", &err));
    for (int i = 2; i < 30; i += 2)
        OK(bytes_printf(b, &err, ",\"property_%d\"", i));
    OK(bytes_text(b, "]}", &err));
}

static int bench(const char *path)
{
    dsv4_err err;
    struct bytes wide = {0};
    const struct vocab *v;
    OK(dsv4_tokenizer_open(&tok, path, &err));
    double begin = microseconds();
    OK(vocab_of(tok, &v, &err));
    printf("vocabulary   %u tokens, %zu nodes, made in %.0f us\n", v->n_tokens, v->n_nodes,
           microseconds() - begin);
    wide_schema(&wide);
    for (int i = 0; i < 5; i++) {
        static const char *const name[] = {"JSON object", "30 keys", "tools", "tools auto", "C"};
        dsv4_grammar *g;
        begin = microseconds();
        if (i < 2)
            OK(dsv4_grammar_json_schema(&g, tok, i ? wide.data : "", i ? wide.len : 0, &err));
        else if (i < 4)
            g = open_tools(DSV4_V41, i == 2 ? DSV4_TOOLS_REQUIRED : DSV4_TOOLS_AUTO, NULL, true);
        else
            OK(dsv4_grammar_open(&g, tok, c_gbnf, strlen(c_gbnf), &err));
        bench_walks(name[i], g, microseconds() - begin);
        dsv4_grammar_close(g);
    }
    free(wide.data);
    dsv4_tokenizer_close(tok);
    return 0;
}

/* One text a line: its length, then its bytes. */
static int walk(const char *path, const char *file, const char *count)
{
    dsv4_err err;
    dsv4_grammar *g;
    char *json;
    size_t n;
    OK(dsv4_tokenizer_open(&tok, path, &err));
    OK(file_read(file, (size_t)4 << 20, &json, &n, &err));
    if (dsv4_grammar_json_schema(&g, tok, json, n, &err) != 0) {
        printf("refused: %s\n", err.text);
        return 3;
    }
    for (long left = strtol(count, NULL, 10), tries = 20 * left; left > 0 && tries > 0; tries--) {
        size_t len;
        char *text = random_text(g, 500, false, &len);
        if (!text)
            continue;
        printf("%zu\n", len);
        fwrite(text, 1, len, stdout);
        printf("\n");
        free(text);
        left--;
    }
    dsv4_grammar_close(g);
    free(json);
    dsv4_tokenizer_close(tok);
    return 0;
}

int main(int argc, char **argv)
{
    testing = argc == 1;
    if (argc == 3 && strcmp(argv[1], "--bench") == 0)
        return bench(argv[2]);
    if (argc == 5 && strcmp(argv[1], "--walk") == 0)
        return walk(argv[2], argv[3], argv[4]);
    Suite *s = suite_create("grammar");
    TCase *c = tcase_create("grammar");
    tcase_set_timeout(c, 60);
    tcase_add_unchecked_fixture(c, open_nano, close_nano);
    tcase_add_test(c, masks_are_exact);
    tcase_add_test(c, random_json);
    tcase_add_test(c, random_calls);
    tcase_add_test(c, long_and_deep);
    tcase_add_test(c, large_schemas);
    tcase_add_test(c, interface);
    tcase_add_test(c, sampling);
    tcase_add_test(c, generation);
    suite_add_tcase(s, c);
    return run_suite(s);
}
