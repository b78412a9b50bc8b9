/* Tests of what happens to text before it is merged to tokens: UTF-8 and its repair, character classes,
 * the pieces of the pre-tokenizer. */
#include "suite.h"

#include "src/text/text.h"

#include <jansson.h>

static json_t *load(const char *path)
{
    json_error_t why;
    json_t *j = json_load_file(path, JSON_ALLOW_NUL, &why);
    ck_assert_msg(j != NULL, "%s: %s", path, why.text);
    return j;
}

/* A small generator, so that the tests are the same everywhere. */
static uint32_t seed = 1;

static uint32_t below(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

/* ------------------------------------------------------------------ UTF-8 */

/* The whole text in one push. */
static size_t show(const char *text, size_t len, char *out)
{
    dsv4_utf8 u = {0};
    size_t n = dsv4_utf8_push(&u, text, len, out);
    return n + dsv4_utf8_flush(&u, out + n);
}

START_TEST(ill_formed_text)
{
    /* table 3-8 of the Unicode standard and the ends of all ranges */
    static const struct {
        const char *in, *out;
    } c[] = {
        {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", "????????A"},
        {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", "????????A"},
        {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", "?????A??B"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", "????A"},
        {"\xf4\x8f\xbf\xbf\xf4\x90\x80\x80", "\xf4\x8f\xbf\xbf????"},
        {"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80",
         "\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80"},
        {"\xf0\x90\x80\x80\xf5\x80", "\xf0\x90\x80\x80??"},
        {"\xe2\x82", "?"},
        {"a\xf0\x9f\x98", "a?"},
        {"\xc3", "?"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        char want[100], got[100];
        size_t n = 0;
        for (const char *p = c[i].out; *p; p++)
            n += (size_t)(*p == '?' ? sprintf(want + n, "\xef\xbf\xbd")
                                    : sprintf(want + n, "%c", *p));
        ck_assert_uint_eq(show(c[i].in, strlen(c[i].in), got), n);
        ck_assert_mem_eq(got, want, n);
        struct bytes b = {0};
        dsv4_err err;
        OK(utf8_repair(&b, c[i].in, strlen(c[i].in), &err));
        ck_assert_uint_eq(b.len, n);
        ck_assert(n == 0 || memcmp(b.data, want, n) == 0);
        free(b.data);
    }
}
END_TEST

/* Any cuts give the text of one piece, and never a part of a character. */
START_TEST(any_pieces_show_the_same)
{
    static const char alphabet[] = "a\x80\xbf\xc2\xe0\xa0\xe2\x82\xac\xed\x9f\xf0\x90\xf4\x8f\xff";
    for (int round = 0; round < 20000; round++) {
        char text[12], whole[40], parts[60];
        size_t len = below(sizeof text + 1);
        for (size_t i = 0; i < len; i++)
            text[i] = alphabet[below(sizeof alphabet - 1)];
        size_t n = show(text, len, whole), m = 0;
        dsv4_utf8 u = {0};
        for (size_t at = 0, k; at < len; at += k) {
            k = 1 + below((uint32_t)(len - at));
            size_t written = dsv4_utf8_push(&u, text + at, k, parts + m);
            ck_assert_uint_le(written, 3 * k + 9);
            ck_assert(utf8_valid(parts + m, written));
            m += written;
        }
        m += dsv4_utf8_flush(&u, parts + m);
        ck_assert_uint_eq(m, n);
        ck_assert_mem_eq(parts, whole, n);
    }
}
END_TEST

/* ------------------------------------------------------------------ character classes, pieces */

START_TEST(classes_of_all_code_points)
{
    json_t *j = load(GOLDEN "tokenizer/char_classes.json"), *c, *r;
    unsigned char *want = calloc(0x110000, 1);
    ck_assert_ptr_nonnull(want);
    size_t i, k;
    json_array_foreach(json_object_get(j, "classes"), i, c)
    {
        static const char *const names[] = {"L", "M", "P", "S", "N", "space"};
        unsigned bit = 0;
        while (bit < 6 && strcmp(names[bit], json_string_value(json_object_get(c, "class"))) != 0)
            bit++;
        ck_assert_uint_lt(bit, 6);
        json_array_foreach(json_object_get(c, "ranges"), k, r)
        {
            json_int_t last = json_integer_value(json_array_get(r, 1));
            for (json_int_t x = json_integer_value(json_array_get(r, 0)); x <= last; x++)
                want[x] |= (unsigned char)(1u << bit);
        }
    }
    for (uint32_t x = 0; x < 0x110000; x++) {
        bool cjk = (x >= 0x4e00 && x <= 0x9fa5) || (x >= 0x3040 && x <= 0x30ff);
        unsigned more = (cjk ? CLASS_CJK : 0u) | (x == 10 || x == 13 ? CLASS_NEWLINE : 0u);
        ck_assert_msg(unicode_class_of(x) == (want[x] | more), "U+%04X", x);
    }
    free(want);
    json_decref(j);
}
END_TEST

/* The pieces do not depend on the vocabulary, so any tokenizer with the released patterns will do. */
START_TEST(golden_cuts)
{
    dsv4_tokenizer *t = NULL;
    dsv4_err err;
    OK(dsv4_tokenizer_open(&t, "models/nano/tokenizer.json", &err));
    json_t *j = load(GOLDEN "tokenizer/encode.json"), *c;
    size_t i;
    json_array_foreach(json_object_get(j, "cases"), i, c)
    {
        const char *name = json_string_value(json_object_get(c, "name"));
        json_t *text = json_object_get(c, "text"), *want = json_object_get(c, "cuts");
        size_t n, *cuts;
        OK(dsv4_pretokenize(t, json_string_value(text), json_string_length(text), &cuts, &n, &err));
        ck_assert_msg(n == json_array_size(want), "%s: %zu pieces", name, n);
        for (size_t k = 0; k < n; k++)
            ck_assert_msg(json_integer_value(json_array_get(want, k)) == (json_int_t)cuts[k],
                          "%s: piece %zu has %zu bytes", name, k, cuts[k]);
        free(cuts);
    }
    json_decref(j);
    dsv4_tokenizer_close(t);
}
END_TEST

/* One pass of the machine = its rules one after the other = the same patterns through PCRE2 on text
 * where all versions of Unicode agree. */
START_TEST(rules_alone_and_together)
{
    static const char *const released[] = {
        "\\p{N}{1,3}",
        "[\xe4\xb8\x80-\xe9\xbe\xa5\xe3\x81\x80-\xe3\x82\x9f\xe3\x82\xa0-\xe3\x83\xbf]+",
        "[!\"#$%&'()*+,\\-./"
        ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"};
    static const char *const chars[] = {"a",
                                        "Z",
                                        "1",
                                        " ",
                                        " ",
                                        "\t",
                                        "\n",
                                        "\r",
                                        ".",
                                        "$",
                                        "'",
                                        "\1",
                                        "\xcc\x81",
                                        "\xc2\xa0",
                                        "\xe3\x80\x80",
                                        "\xc2\xad",
                                        "\xef\xbb\xbf",
                                        "\xe4\xb8\xad",
                                        "\xe3\x81\x82",
                                        "\xe3\x83\xbb",
                                        "\xe3\x82\x99",
                                        "\xe3\x82\xa0",
                                        "\xc3\xa9",
                                        "\xf0\x9f\x98\x80",
                                        "\xd9\xa3",
                                        "\xe2\x85\xab",
                                        "\xe2\x80\xa8"};
    struct splitter one = {0}, single[3] = {{0}}, foreign = {0};
    dsv4_err err;
    for (int i = 0; i < 3; i++) {
        char other[400];
        OK(split_add(&one, released[i], strlen(released[i]), "test", &err));
        OK(split_add(&single[i], released[i], strlen(released[i]), "test", &err));
        ck_assert_uint_eq(single[i].step[0].rules, 1u << i);
        snprintf(other, sizeof other, "(?:%s)", released[i]);
#ifdef HAVE_PCRE2
        OK(split_add(&foreign, other, strlen(other), "test", &err));
#else
        ck_assert_int_eq(split_add(&foreign, other, strlen(other), "test", &err), DSV4_REFUSED);
#endif
    }
    ck_assert_uint_eq(one.n, 1);
    for (int round = 0; round < 20000; round++) {
        char text[100];
        size_t len = 0;
        for (uint32_t k = below(20); k > 0; k--)
            len += (size_t)sprintf(text + len, "%s", chars[below(sizeof chars / sizeof *chars)]);
        struct cuts a = {0}, b = {0}, c = {0}, d = {0}, e = {0};
        OK(split_all(&one, text, len, 7, &a, &err));
        OK(split_all(&single[0], text, len, 0, &b, &err));
        for (size_t i = 0, at = 0; i < b.n; at = b.end[i++])
            OK(split_all(&single[1], text + at, b.end[i] - at, at, &c, &err));
        for (size_t i = 0, at = 0; i < c.n; at = c.end[i++])
            OK(split_all(&single[2], text + at, c.end[i] - at, at + 7, &d, &err));
        ck_assert_uint_eq(a.n, d.n);
        ck_assert(a.n == 0 || memcmp(a.end, d.end, a.n * sizeof *a.end) == 0);
        if (foreign.n) {
            OK(split_all(&foreign, text, len, 7, &e, &err));
            ck_assert_msg(a.n == e.n &&
                              (a.n == 0 || memcmp(a.end, e.end, a.n * sizeof *a.end) == 0),
                          "\"%s\"", text);
        }
        free(a.end), free(b.end), free(c.end), free(d.end), free(e.end);
    }
    split_close(&one), split_close(&foreign);
    for (int i = 0; i < 3; i++)
        split_close(&single[i]);
}
END_TEST

#ifdef HAVE_PCRE2
START_TEST(foreign_patterns)
{
    struct splitter s = {0};
    struct cuts c = {0};
    dsv4_err err;
    ck_assert_int_eq(split_add(&s, "(", strlen("("), "file", &err), DSV4_REFUSED);
    ck_assert_int_eq(split_add(&s, "\\C", strlen("\\C"), "file", &err), DSV4_REFUSED);
    OK(split_add(&s, "x*", strlen("x*"), "file", &err)); /* empty matches cut */
    OK(split_all(&s, "axx\xc3\xa9", 5, 0, &c, &err));
    ck_assert_uint_eq(c.n, 3);
    ck_assert(c.end[0] == 1 && c.end[1] == 3 && c.end[2] == 5);
    split_close(&s);
    OK(split_add(&s, "(a+)+b", strlen("(a+)+b"), "file", &err)); /* needs ever so many steps */
    ck_assert_int_eq(
        split_all(&s, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaacb", 46, 0, &c, &err),
        DSV4_FAILED);
    split_close(&s);
    free(c.end);
}
END_TEST
#endif

int main(void)
{
    Suite *s = suite_create("pieces");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 300);
    tcase_add_test(t, ill_formed_text);
    tcase_add_test(t, any_pieces_show_the_same);
    tcase_add_test(t, classes_of_all_code_points);
    tcase_add_test(t, golden_cuts);
    tcase_add_test(t, rules_alone_and_together);
#ifdef HAVE_PCRE2
    tcase_add_test(t, foreign_patterns);
#endif
    suite_add_tcase(s, t);
    return run_suite(s);
}
