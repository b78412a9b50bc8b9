/* Tests of the tokenizer that need no network: golden data on the tokenizers that are in the tree, a
 * plain second implementation. What it does before merging is tested in check_pieces.c, what it refuses to
 * read in check_tokenizer_file.c. With `--serve FILE` the program answers requests on standard input instead (serve()
 * below): tests/test_tokenizer.py compares us so with the reference implementation and with the
 * released vocabulary. `--bench FILE TEXT` measures. */
#include "suite.h"

#include "src/text/text.h"

#include <jansson.h>
#include <time.h>
#include <unistd.h>

#define NANO "models/nano/tokenizer.json"

static json_t *load(const char *path)
{
    json_error_t why;
    json_t *j = json_load_file(path, JSON_ALLOW_NUL, &why);
    ck_assert_msg(j != NULL, "%s: %s", path, why.text);
    return j;
}

static dsv4_tokenizer *open_tokenizer(const char *path)
{
    dsv4_tokenizer *t = NULL;
    dsv4_err err = {0};
    OK(dsv4_tokenizer_open(&t, path, &err));
    return t;
}

static const char *string(json_t *object, const char *key, size_t *len)
{
    json_t *v = json_object_get(object, key);
    *len = json_string_length(v);
    return json_string_value(v);
}

static void same_ids(json_t *want, const int32_t *ids, size_t n, const char *name)
{
    ck_assert_msg(json_array_size(want) == n, "%s: %zu ids, expected %zu", name, n,
                  json_array_size(want));
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(json_integer_value(json_array_get(want, i)) == ids[i],
                      "%s: id %zu is %d, expected %lld", name, i, ids[i],
                      (long long)json_integer_value(json_array_get(want, i)));
}

/* A small generator, so that the tests are the same everywhere. */
static uint32_t seed = 1;

static uint32_t below(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

/* ------------------------------------------------------------------ encoding */

/* Every prompt of the embedded model's evaluation has its ids with it. */
START_TEST(prompts_of_the_embedded_model)
{
    static const char *const files[] = {
        "arithmetic_chat", "arithmetic_thinking", "code",        "code_raw",
        "facts",           "facts_thinking",      "files",       "listing",
        "memory",          "needle_128",          "needle_256",  "needle_512",
        "repeat",          "smalltalk",           "story_cloze", "tools_answer",
        "tools_call",      "tools_none"};
    dsv4_tokenizer *t = open_tokenizer(NANO);
    size_t compared = 0;
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        char path[100];
        snprintf(path, sizeof path, "models/nano/eval/%s.jsonl", files[f]);
        FILE *in = fopen(path, "r");
        ck_assert_msg(in != NULL, "%s", path);
        json_t *j;
        while ((j = json_loadf(in, JSON_DISABLE_EOF_CHECK, NULL)) != NULL) {
            static const char *const text[] = {"prompt", "greedy_text"}, *const ids[] = {
                                                                             "prompt_ids",
                                                                             "greedy_ids"};
            for (int k = 0; k < 2; k++) {
                size_t len, n;
                int32_t *v;
                const char *s = string(j, text[k], &len);
                json_t *want = json_object_get(j, ids[k]);
                dsv4_err err;
                if (!s || !json_is_array(want))
                    continue;
                if (k == 0) {
                    OK(dsv4_encode(t, s, len, true, &v, &n, &err));
                    same_ids(want, v, n, json_string_value(json_object_get(j, "id")));
                    free(v);
                } else { /* generated ids need not be the encoding of their text */
                    struct bytes b = {0};
                    for (size_t i = 0; i < json_array_size(want); i++) {
                        size_t m;
                        json_int_t id = json_integer_value(json_array_get(want, i));
                        const char *p = dsv4_token_bytes(t, (int32_t)id, &m);
                        OK(bytes_add(&b, p, m, &err));
                    }
                    ck_assert_uint_eq(b.len, len);
                    ck_assert_mem_eq(b.data, s, len);
                    free(b.data);
                }
                compared++;
            }
            json_decref(j);
        }
        fclose(in);
    }
    ck_assert_uint_ge(compared, 1500);
    dsv4_tokenizer_close(t);
}
END_TEST

/* Byte-pair encoding by its definition, from the merges of the file ("left right" -> rank). */
static size_t plain_encode(json_t *merges, const char *text, size_t len, char word[][256])
{
    size_t n = len;
    for (size_t i = 0; i < len; i++)
        word[i][utf8_encode(alphabet_of((unsigned char)text[i]), word[i])] = 0;
    for (;;) {
        json_int_t best = INT64_MAX;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            char key[513];
            snprintf(key, sizeof key, "%.255s %.255s", word[i], word[i + 1]);
            json_t *r = json_object_get(merges, key);
            if (r && json_integer_value(r) < best) {
                best = json_integer_value(r);
                at = i;
            }
        }
        if (best == INT64_MAX)
            return n;
        size_t half = strlen(word[at]);
        ck_assert_uint_lt(half + strlen(word[at + 1]), 256);
        memcpy(word[at] + half, word[at + 1], 256 - half);
        n--;
        memmove(word[at + 1], word[at + 2], (n - at - 1) * sizeof *word);
    }
}

START_TEST(merges_by_their_definition)
{
    dsv4_tokenizer *t = open_tokenizer(NANO);
    json_t *root = load(NANO), *merges = json_object(), *v;
    json_t *model = json_object_get(root, "model");
    size_t i;
    json_array_foreach(json_object_get(model, "merges"), i, v)
    {
        char key[200];
        snprintf(key, sizeof key, "%s %s", json_string_value(json_array_get(v, 0)),
                 json_string_value(json_array_get(v, 1)));
        json_object_set_new(merges, key, json_integer((json_int_t)i));
    }
    ck_assert_uint_gt(json_object_size(merges), 3000);
    static char word[401][256];
    struct bpe_work work = {0};
    dsv4_err err;
    for (int round = 0; round < 1500; round++) {
        /* words of the vocabulary put together, so that merges compete; short and long pieces */
        char text[400];
        size_t len = 0, limit = 1 + below(round % 10 ? 60 : 300);
        while (len < limit) {
            size_t m;
            const char *b = dsv4_token_bytes(t, (int32_t)below(4000) + 3, &m);
            size_t from = below((uint32_t)m), k = m - from < limit - len ? m - from : limit - len;
            memcpy(text + len, b + from, k);
            len += k;
        }
        struct ids ids = {0};
        OK(bpe_encode(&t->bpe, &work, text, len, &ids, &err));
        size_t n = plain_encode(merges, text, len, word);
        ck_assert_uint_eq(ids.n, n);
        for (size_t k = 0; k < n; k++)
            ck_assert_int_eq(
                json_integer_value(json_object_get(json_object_get(model, "vocab"), word[k])),
                ids.v[k]);
        free(ids.v);
    }
    bpe_work_close(&work);
    json_decref(root);
    json_decref(merges);
    dsv4_tokenizer_close(t);
}
END_TEST

static double cpu_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

/* Times are generous: they only have to tell n log n from n * n, which takes minutes here. */
START_TEST(long_words_stay_fast)
{
    dsv4_tokenizer *t = open_tokenizer(NANO);
    size_t len = 1 << 20;
    char *text = malloc(len);
    ck_assert_ptr_nonnull(text);
    static const char *const units[] = {"a",
                                        "ab",
                                        "the",
                                        "<",
                                        "<|",
                                        "\xef\xbd\x9c",
                                        " ",
                                        "\n ",
                                        "\xe4\xb8\xad",
                                        "\x01",
                                        "\xff",
                                        "9",
                                        ("<\xef\xbd\x9c"
                                         "Use")};
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t m = strlen(units[u]), n;
        for (size_t i = 0; i < len; i++)
            text[i] = units[u][i % m];
        int32_t *ids;
        dsv4_err err;
        double start = cpu_seconds();
        OK(dsv4_encode(t, text, len, true, &ids, &n, &err));
        ck_assert_msg(cpu_seconds() - start < 20, "\"%s\"", units[u]);
        ck_assert_uint_gt(n, 0);
        free(ids);
    }
    free(text);
    dsv4_tokenizer_close(t);
}
END_TEST

static void encode_all(const dsv4_tokenizer *t, const char *text, bool markers, int32_t **ids,
                       size_t *n)
{
    dsv4_err err;
    OK(dsv4_encode(t, text, strlen(text), markers, ids, n, &err));
}

START_TEST(markers_only_where_allowed)
{
    dsv4_tokenizer *t = open_tokenizer(NANO);
    size_t n, m;
    int32_t *ids;
    for (int32_t id = 0; (size_t)id < dsv4_tokenizer_size(t); id++) {
        if (!(t->token[id].flags & TOKEN_ADDED))
            continue;
        const char *s = dsv4_token_bytes(t, id, &m);
        char text[300];
        snprintf(text, sizeof text, "a %.*s%.*s b", (int)m, s, (int)m, s);
        encode_all(t, text, true, &ids, &n);
        ck_assert(n >= 4 && ids[n - 2] == id && ids[n - 3] == id);
        free(ids);
        encode_all(t, text, false, &ids, &n);
        for (size_t i = 0; i < n; i++)
            ck_assert(!(t->token[ids[i]].flags & TOKEN_ADDED));
        free(ids);
        snprintf(text, sizeof text, "%.*s", (int)m, s);
        ck_assert_int_eq(dsv4_token_find(t, text), id);
        text[m - 1] = 0;
        ck_assert_int_ne(dsv4_token_find(t, text), id);
    }
    ck_assert_int_eq(dsv4_token_find(t, "the"), -1);
    ck_assert_int_eq(dsv4_token_find(t, ""), -1);
    ck_assert(dsv4_token_special(t, 0));
    ck_assert(!dsv4_token_special(t, dsv4_token_find(t, "<\xef\xbd\x9cUser\xef\xbd\x9c>")));
    ck_assert(!dsv4_token_special(t, -1) && !dsv4_token_special(t, INT32_MAX));
    ck_assert_ptr_null(dsv4_token_bytes(t, -1, &m));
    ck_assert_ptr_null(dsv4_token_bytes(t, (int32_t)dsv4_tokenizer_size(t), &m));
    encode_all(t, "", true, &ids, &n);
    ck_assert_ptr_nonnull(ids);
    ck_assert_uint_eq(n, 0);
    free(ids);
    dsv4_tokenizer_close(t);
}
END_TEST

#define USER "<\xef\xbd\x9cUser\xef\xbd\x9c>"

static void prompt_is(const dsv4_tokenizer *t, const char *text, const dsv4_span *span,
                      size_t n_span, const char *const *part)
{
    dsv4_prompt p = {.text = (char *)(uintptr_t)text,
                     .len = strlen(text),
                     .control = (dsv4_span *)(uintptr_t)span,
                     .n_control = n_span};
    int32_t *got, *want;
    size_t n, m, at = 0;
    dsv4_err err;
    OK(dsv4_encode_prompt(t, &p, &got, &n, &err));
    for (; *part; part++) { /* parts that begin with + may hold markers */
        bool markers = **part == '+';
        encode_all(t, *part + 1, markers, &want, &m);
        ck_assert_uint_le(at + m, n);
        ck_assert(m == 0 || memcmp(got + at, want, m * sizeof *want) == 0);
        at += m;
        free(want);
    }
    ck_assert_uint_eq(at, n);
    free(got);
}

START_TEST(prompts_of_segments)
{
    dsv4_tokenizer *t = open_tokenizer(NANO);
    const char *text = "Be kind." USER "say " USER "now" USER "the";
    size_t u = strlen(USER);
    /* the first is ours with the words before it, the second is the user's own, the third is ours;
     * ordinary text goes on across the border of a span ("Be ki" + "nd.") */
    dsv4_span spans[] = {{0, 5}, {8, 8 + u}, {8 + u + 4 + u + 3, 8 + u + 4 + u + 3 + u}};
    const char *parts[] = {"-Be kind.", "+" USER, "-say " USER "now", "+" USER, "-the", NULL};
    prompt_is(t, text, spans, 3, parts);
    /* a marker across touching spans is ours; one that reaches into a message is not */
    dsv4_span touching[] = {{8, 11}, {11, 8 + u}};
    const char *parts2[] = {"-Be kind.", "+" USER, "-say " USER "now" USER "the", NULL};
    prompt_is(t, text, touching, 2, parts2);
    dsv4_span half[] = {{0, 8 + u - 1}};
    const char *parts3[] = {"-Be kind." USER "say " USER "now" USER "the", NULL};
    prompt_is(t, text, half, 1, parts3);
    prompt_is(t, text, NULL, 0, parts3);
    static const dsv4_span bad[][2] = {
        {{3, 2}, {4, 5}}, {{0, 5}, {4, 6}}, {{0, 1}, {2, 999}}, {{5, 6}, {0, 1}}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dsv4_prompt p = {.text = (char *)(uintptr_t)text,
                         .len = strlen(text),
                         .control = (dsv4_span *)(uintptr_t)bad[i],
                         .n_control = 2};
        int32_t *ids;
        size_t n;
        dsv4_err err;
        ck_assert_int_eq(dsv4_encode_prompt(t, &p, &ids, &n, &err), DSV4_USAGE);
    }
    dsv4_tokenizer_close(t);
}
END_TEST

/* A piece that is a token goes as it is, although no merge makes it. */
START_TEST(ignore_merges)
{
    json_t *root = load(GOLDEN "v4-pro/tokenizer.json"), *model = json_object_get(root, "model");
    json_object_set_new(json_object_get(model, "vocab"), "qxj", json_integer(272));
    for (int on = 0; on < 2; on++) {
        json_object_set_new(model, "ignore_merges", json_boolean(on));
        char *json = json_dumps(root, JSON_COMPACT);
        dsv4_tokenizer *t;
        dsv4_err err;
        int32_t *ids;
        size_t n;
        OK(tokenizer_parse(&t, json, strlen(json), "edited", &err));
        encode_all(t, "qxj", true, &ids, &n);
        ck_assert_uint_eq(n, on ? 1 : 3);
        ck_assert(!on || ids[0] == 272);
        free(ids);
        dsv4_tokenizer_close(t);
        free(json);
    }
    json_decref(root);
}
END_TEST

/* ------------------------------------------------------------------ Engram */

#ifdef HAVE_UTF8PROC
START_TEST(engram_texts)
{
    json_t *j = load(GOLDEN "ops/engram_normalize.json"), *pair;
    size_t i;
    json_array_foreach(j, i, pair)
    {
        json_t *in = json_array_get(pair, 0), *out = json_array_get(pair, 1);
        struct bytes b = {0};
        dsv4_err err;
        OK(engram_normalize(&b, json_string_value(in), json_string_length(in), &err));
        ck_assert_msg(b.len == json_string_length(out) &&
                          (b.len == 0 || memcmp(b.data, json_string_value(out), b.len) == 0),
                      "\"%s\" -> \"%s\"", json_string_value(in), b.data);
        free(b.data);
    }
    ck_assert_uint_ge(i, 50);
    json_decref(j);
}
END_TEST

START_TEST(engram_counts)
{
    static const char *const dirs[] = {"models/nano", GOLDEN "v41-tiny", GOLDEN "v41-long",
                                       GOLDEN "v41-quant"};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        char path[100];
        snprintf(path, sizeof path, "%s/config.json", dirs[i]);
        json_t *config = load(path);
        snprintf(path, sizeof path, "%s/tokenizer.json", dirs[i]);
        dsv4_tokenizer *t = open_tokenizer(path);
        int32_t *map;
        uint32_t distinct, next = 0;
        dsv4_err err;
        OK(engram_map_build(t, &map, &distinct, &err));
        ck_assert_int_eq(distinct,
                         json_integer_value(json_object_get(json_object_get(config, "text_config"),
                                                            "engram_compressed_vocab_size")));
        for (size_t k = 0; k < dsv4_tokenizer_size(t); k++) { /* in order of first appearance */
            ck_assert_uint_le((uint32_t)map[k], next);
            next += (uint32_t)map[k] == next;
        }
        ck_assert_uint_eq(next, distinct);
        free(map);
        dsv4_tokenizer_close(t);
        json_decref(config);
    }
}
END_TEST
#endif

/* ------------------------------------------------------------------ requests from test_tokenizer.py */

static bool get(void *p, size_t n)
{
    return fread(p, 1, n, stdin) == n;
}

static void put(const void *p, size_t n)
{
    if (fwrite(p, 1, n, stdout) != n)
        exit(1);
}

static void put_list(const int32_t *v, size_t n)
{
    uint32_t n32 = (uint32_t)n;
    put(&n32, 4);
    if (n)
        put(v, n * sizeof *v);
}

static void must(int rc, const dsv4_err *err)
{
    if (rc == 0)
        return;
    fprintf(stderr, "check_tokenizer: %s\n", err->text);
    exit(1);
}

static void answer_cuts(const dsv4_tokenizer *t, const char *text, size_t len)
{
    size_t *cuts, n;
    dsv4_err err;
    must(dsv4_pretokenize(t, text, len, &cuts, &n, &err), &err);
    for (size_t i = 0; i < n; i++) {
        int32_t v = (int32_t)cuts[i];
        memcpy((char *)cuts + i * sizeof v, &v, sizeof v);
    }
    put_list((int32_t *)(void *)cuts, n);
    free(cuts);
}

/* n spans, then the text. */
static void answer_prompt(const dsv4_tokenizer *t, char *body, size_t len)
{
    uint32_t n_span, at;
    memcpy(&n_span, body, 4);
    dsv4_span *span = calloc(n_span + 1, sizeof *span);
    if (!span)
        exit(1);
    for (size_t i = 0; i < 2 * (size_t)n_span; i++) {
        memcpy(&at, body + 4 + 4 * i, 4);
        *(i % 2 ? &span[i / 2].end : &span[i / 2].begin) = at;
    }
    size_t head = 4 + 8 * (size_t)n_span, n;
    dsv4_prompt p = {.text = body + head, .len = len - head, .control = span, .n_control = n_span};
    int32_t *ids;
    dsv4_err err;
    must(dsv4_encode_prompt(t, &p, &ids, &n, &err), &err);
    put_list(ids, n);
    free(ids);
    free(span);
}

/* Ids -> the text to show after each, and at the end. */
static void answer_decode(const dsv4_tokenizer *t, const char *body, size_t len)
{
    dsv4_utf8 u = {0};
    char out[3 * 65536 + 9];
    for (size_t i = 0; i <= len / 4; i++) {
        size_t n, m = 0;
        if (i < len / 4) {
            int32_t id;
            memcpy(&id, body + 4 * i, 4);
            const char *bytes = dsv4_token_bytes(t, id, &m);
            n = dsv4_utf8_push(&u, bytes, m, out);
        } else {
            n = dsv4_utf8_flush(&u, out);
        }
        uint32_t n32 = (uint32_t)n;
        put(&n32, 4);
        put(out, n);
    }
}

static void answer_tokens(const dsv4_tokenizer *t)
{
    uint32_t n = (uint32_t)dsv4_tokenizer_size(t);
    put(&n, 4);
    for (uint32_t i = 0; i < n; i++) {
        size_t len;
        const char *bytes = dsv4_token_bytes(t, (int32_t)i, &len);
        uint32_t head[2] = {(uint32_t)len, dsv4_token_special(t, (int32_t)i)};
        put(head, sizeof head);
        put(bytes, len);
    }
}

/* Nothing when this build cannot make the map. */
static void answer_engram(const dsv4_tokenizer *t)
{
    int32_t *map = NULL;
    uint32_t distinct = 0;
    dsv4_err err;
    int rc = engram_map_build(t, &map, &distinct, &err);
    put_list(map, rc == 0 ? dsv4_tokenizer_size(t) : 0);
    put(&distinct, 4);
    free(map);
}

/* Texts, each behind its length, are encoded plain: one list of ids for each. */
static void answer_many(const dsv4_tokenizer *t, const char *body, size_t len)
{
    for (size_t at = 0; at + 4 <= len;) {
        uint32_t text_len;
        int32_t *ids;
        size_t n;
        dsv4_err err;
        memcpy(&text_len, body + at, 4);
        at += 4;
        if (text_len > len - at)
            exit(1);
        must(dsv4_encode(t, body + at, text_len, false, &ids, &n, &err), &err);
        put_list(ids, n);
        free(ids);
        at += text_len;
    }
}

/* A request: one letter, the length of the body (u32 of this machine), the body. An answer: a count and
 * so many int32, or what the letter's function says. */
static int serve(const char *path)
{
    dsv4_tokenizer *t;
    dsv4_err err;
    must(dsv4_tokenizer_open(&t, path, &err), &err);
    char what;
    while (get(&what, 1)) {
        uint32_t len;
        if (!get(&len, 4))
            return 1;
        char *body = malloc((size_t)len + 1);
        if (!body || !get(body, len))
            return 1;
        int32_t *ids;
        size_t n;
        switch (what) {
        case 'm': /* encode with markers */
        case 'p': /* plain */
            must(dsv4_encode(t, body, len, what == 'm', &ids, &n, &err), &err);
            put_list(ids, n);
            free(ids);
            break;
        case 'P': answer_many(t, body, len); break;
        case 'c': answer_cuts(t, body, len); break;
        case 'q': answer_prompt(t, body, len); break;
        case 'd': answer_decode(t, body, len); break;
        case 't': answer_tokens(t); break;
        case 'e': answer_engram(t); break;
        default: return 1;
        }
        free(body);
        fflush(stdout);
    }
    dsv4_tokenizer_close(t);
    return 0;
}

/* --bench FILE TEXT: the best of several runs, in processor time. */
static int bench(const char *path, const char *text_path)
{
    enum { OPEN, ENCODE, PLAIN, ENGRAM, KINDS };
    double best[KINDS] = {1e9, 1e9, 1e9, 1e9};
    dsv4_err err;
    char *text;
    size_t len, n = 0;
    must(file_read(text_path, (size_t)1 << 30, &text, &len, &err), &err);
    for (int i = 0; i < 5; i++) {
        dsv4_tokenizer *t;
        double at[KINDS + 1] = {cpu_seconds()};
        int32_t *ids, *plain, *map = NULL;
        uint32_t distinct;
        must(dsv4_tokenizer_open(&t, path, &err), &err);
        at[1] = cpu_seconds();
        must(dsv4_encode(t, text, len, true, &ids, &n, &err), &err);
        at[2] = cpu_seconds();
        must(dsv4_encode(t, text, len, false, &plain, &n, &err), &err);
        at[3] = cpu_seconds();
        must(engram_map_build(t, &map, &distinct, &err), &err);
        at[4] = cpu_seconds();
        for (int k = 0; k < KINDS; k++)
            best[k] = at[k + 1] - at[k] < best[k] ? at[k + 1] - at[k] : best[k];
        free(ids), free(plain), free(map);
        dsv4_tokenizer_close(t);
    }
    printf("open %.1f ms; %zu bytes -> %zu ids at %.1f MB/s, plain %.1f MB/s; Engram map %.1f ms\n",
           best[OPEN] * 1e3, len, n, (double)len / best[ENCODE] / 1e6,
           (double)len / best[PLAIN] / 1e6, best[ENGRAM] * 1e3);
    free(text);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--serve") == 0)
        return serve(argv[2]);
    if (argc == 4 && strcmp(argv[1], "--bench") == 0)
        return bench(argv[2], argv[3]);
    Suite *s = suite_create("tokenizer");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 300);
    tcase_add_test(t, prompts_of_the_embedded_model);
    tcase_add_test(t, merges_by_their_definition);
    tcase_add_test(t, long_words_stay_fast);
    tcase_add_test(t, markers_only_where_allowed);
    tcase_add_test(t, prompts_of_segments);
    tcase_add_test(t, ignore_merges);
#ifdef HAVE_UTF8PROC
    tcase_add_test(t, engram_texts);
    tcase_add_test(t, engram_counts);
#endif
    suite_add_tcase(s, t);
    return run_suite(s);
}
