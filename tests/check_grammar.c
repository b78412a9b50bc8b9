/* Constrained decoding: GBNF, JSON Schema and calls of tools, each keyword with texts that fit and
 * texts that do not; masks against trying every token; random texts under the mask. With `--walk
 * FILE SCHEMA N` the program prints N random JSON texts for a schema instead: tests/test_grammar.py
 * gives them to another validator. `--bench FILE` measures on a tokenizer. */
#include "suite.h"

#include "src/text/grammar.h"

#include <math.h>
#include <time.h>

#define NANO "models/nano/tokenizer.json"

/* Helpers serve --walk and --bench too, where Check's own assertions cannot. */
static bool testing = true;

static void need(bool good, const char *what, const char *message)
{
    if (good)
        return;
    if (testing)
        ck_abort_msg("%s: %s", what, message);
    fprintf(stderr, "%s: %s\n", what, message);
    exit(1);
}

#undef OK
#define OK(call)   need((call) == 0, #call, err.text)
#define NEED(good) need(good, #good, "false")

static dsv4_tokenizer *tok;

static void open_nano(void)
{
    dsv4_err err;
    OK(dsv4_tokenizer_open(&tok, NANO, &err));
}

static void close_nano(void)
{
    dsv4_tokenizer_close(tok);
}

enum verdict { REFUSED, UNFINISHED, FITS };

static enum verdict verdict_of(const dsv4_grammar *g, const int32_t *ids, size_t n)
{
    dsv4_err err;
    dsv4_matcher *m;
    int rc = 0;
    OK(dsv4_matcher_open(&m, g, &err));
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = dsv4_matcher_accept(m, ids[i], &err);
    ck_assert(rc == 0 || rc == DSV4_REFUSED);
    enum verdict v = rc != 0 ? REFUSED : dsv4_matcher_may_end(m) ? FITS : UNFINISHED;
    if (rc == 0 && dsv4_matcher_done(m))
        ck_assert_int_eq(v, FITS);
    dsv4_matcher_close(m);
    return v;
}

/* The same whether the text comes in the tokenizer's tokens or byte by byte. Control tokens
 * count. */
static enum verdict try_text(const dsv4_grammar *g, const char *text)
{
    dsv4_err err;
    int32_t *ids, *bytes;
    size_t n, n_bytes = 0;
    OK(dsv4_encode(tok, text, strlen(text), true, &ids, &n, &err));
    enum verdict v = verdict_of(g, ids, n);
    OK(mem_alloc(&bytes, strlen(text) + n, sizeof *bytes, "ids", &err));
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *p = dsv4_token_bytes(tok, ids[i], &len);
        if (tok->token[ids[i]].flags & TOKEN_ADDED)
            bytes[n_bytes++] = ids[i];
        else
            for (size_t k = 0; k < len; k++)
                bytes[n_bytes++] = tok->bpe.byte_id[(unsigned char)p[k]];
    }
    ck_assert_msg(verdict_of(g, bytes, n_bytes) == v, "%s: byte by byte it is another", text);
    free(bytes);
    free(ids);
    return v;
}

/* A list of texts; in a list of both, a text behind "!" must not fit. */
static void try_all(const dsv4_grammar *g, const char *what, const char *const *texts)
{
    for (; *texts; texts++) {
        bool bad = **texts == '!';
        enum verdict v = try_text(g, *texts + bad);
        ck_assert_msg(bad == (v != FITS), "%s: %s %s", what, *texts + bad,
                      v == FITS      ? "fits"
                      : v == REFUSED ? "is refused"
                                     : "is not finished");
    }
}

/* ------------------------------------------------------------------ GBNF */

static const char *const json_gbnf =
    "root   ::= object\n"
    "value  ::= object | array | string | number | (\"true\" | \"false\" | \"null\") ws\n"
    "object ::=\n  \"{\" ws (\n   string \":\" ws value\n  (\",\" ws string \":\" ws value)*\n"
    "  )? \"}\" ws  # a comment\n"
    "array  ::= \"[\" ws ( value (\",\" ws value)* )? \"]\" ws\n"
    "string ::= \"\\\"\" ( [^\"\\\\\\x7F\\x00-\\x1F] | \"\\\\\" ([\"\\\\bfnrt] | \"u\" "
    "[0-9a-fA-F]{4}) )* \"\\\"\" ws\n"
    "number ::= (\"-\"? ([0-9] | [1-9] [0-9]{0,15})) (\".\" [0-9]+)? ([eE] [-+]? [0-9] "
    "[1-9]{0,15})? ws\n"
    "ws ::= | \" \" | \"\\n\" [ \\t]{0,20}\n";

START_TEST(gbnf)
{
    static const struct {
        const char *grammar, *texts[12];
    } cases[] = {
        {"root ::= \"yes\" | \"no\"", {"yes", "no", "!", "!ye", "!yess", "!yesno"}},
        {"root ::= \"a\"*", {"", "a", "aaaaaaaaaaaaa", "!b", "!aab"}},
        {"root ::= \"a\"+ \"b\"?", {"a", "ab", "aaab", "!", "!b", "!abb"}},
        {"root ::= [0-9]{3}", {"123", "!12", "!1234"}},
        {"root ::= [0-9]{2,}", {"12", "123456789012345678901234567890", "!1"}},
        {"root ::= [a-c]{,2}", {"", "ab", "!abc"}},
        {"root ::= (\"ab\" | \"c\"){2,400} \"!\"", {"abc!", "ccabcc!", "!c!", "!ab!", "!abcx!"}},
        {"root ::= [^a-c]", {"d", "ä", "語", "\n", "!a", "!dd"}},
        {"root ::= [äöü語]+", {"ä", "öü語", "!o", "!Ã"}},
        {"root ::= [\\u00e4-\\u00fc] \"\\x41\" \"\\U0001F600\"", {"öA😀", "!oA😀"}},
        {"root ::= . .", {"ab", "語\n", "!a", "!abc"}},
        {"root ::= a b\na ::= \"x\" a?\nb ::= \"y\"", {"xy", "xxxxy", "!x", "!y"}},
        {"root ::= \"(\" root \")\" |\n \"z\"", {"z", "((((z))))", "!(z", "!((z)"}},
        {"root ::= \"a\"\n  | \"b\"\n# c\n\n  | \"c\"\nx ::= \"y\"", {"a", "b", "c", "!y"}},
        {"root ::= (\"x\" (\"y\" | \"\")\n \"z\"\n)+", {"xz", "xyzxz", "!xy"}},
        {"root ::= \"\\\"\\\\\\n\\t\" [\\]\\[\\-^]", {"\"\\\n\t]", "\"\\\n\t-", "\"\\\n\t^"}},
        {"root ::= <think> \"a\" </think>", {"<think>a</think>", "!a", "!<think>a"}},
        {"root ::= <[4085]> [a-z]*", {"<think>", "<think>abc", "!abc"}},
        {"root ::= \"<think>\"", {"!<think>"}}, /* text is no control token */
        {"root ::= [a-z]{1,3} \" \" [a-z]{1,3}", {"a b", "abc def", "!abcd e", "!abc defg"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv4_err err;
        dsv4_grammar *g;
        const char *text = cases[i].grammar;
        OK(dsv4_grammar_open(&g, tok, text, strlen(text), &err));
        try_all(g, text, cases[i].texts);
        dsv4_grammar_close(g);
    }
}
END_TEST

START_TEST(gbnf_of_json)
{
    static const char *const texts[] = {
        "{}",
        "{\"a\": [1, -2.5e+1, {\"b\": null}], \"c\\n\\u00e4\": \"xäy\"}",
        "{\n    \"a\": true\n}",
        "!{\"a\" 1}",
        "![]",
        "!{\"a\": 01}",
        "!{\"a\": 1",
        "!{\"a\": \"\n\"}",
        NULL};
    dsv4_err err;
    dsv4_grammar *g;
    OK(dsv4_grammar_open(&g, tok, json_gbnf, strlen(json_gbnf), &err));
    try_all(g, "JSON", texts);
    dsv4_grammar_close(g);
}
END_TEST

START_TEST(gbnf_refused)
{
    static const struct {
        const char *grammar, *message;
    } cases[] = {
        {"", "no rule root"},
        {"x ::= \"a\"", "no rule root"},
        {"root ::= x", "no rule x"},
        {"root ::= \"a", "line 1: a literal"},
        {"root ::= [a", "line 1: a literal or class"},
        {"root ::= \"a\"\nroot ::= \"b\"", "line 2: a rule of this name"},
        {"root ::= (\"a\"", ") is expected"},
        {"root ::= \"a\")", "belongs to no rule"},
        {"root = \"a\"", "::= is expected"},
        {"root ::= [z-a]", "ends before it begins"},
        {"root ::= \"a\"{3,2}", "ends before it begins"},
        {"root ::= \"a\"{x}", "a number"},
        {"root ::= \"a\"{99999999}", "a number"},
        {"root ::= \"\\q\"", "unknown escape"},
        {"root ::= \"\\uD800\"", "no character"},
        {"root ::= \"\\x4\"", "hexadecimal"},
        {"root ::= <no such token>", "no token"},
        {"root ::= <[999999]>", "no token"},
        {"root ::= <think", "without an end"},
        {"root ::= root \"a\" | \"b\"", "rule root begins with itself"},
        {"root ::= e x \"a\" | \"b\"\nx ::= root\ne ::= \"\"", "begins with itself"},
        {"root ::= \"a\" root", "no text fits"},
        {"root ::= []", "no text fits"},
        {"root ::= ([a-z]? root2){1,1000}\nroot2 ::= [a-z]? [a-z]?", "may be empty"},
        {"root ::= ([ab]* \"a\" [ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab] "
         "[ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab] [ab])",
         "too large"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv4_err err;
        dsv4_grammar *g = (dsv4_grammar *)1;
        const char *text = cases[i].grammar;
        ck_assert_msg(dsv4_grammar_open(&g, tok, text, strlen(text), &err) == DSV4_REFUSED, "%s",
                      text);
        ck_assert_msg(strstr(err.text, cases[i].message), "%s: %s", text, err.text);
        ck_assert_ptr_null(g);
    }
    dsv4_err err;
    dsv4_grammar *g;
    ck_assert_int_eq(dsv4_grammar_open(&g, tok, "root ::= \"\xff\"", 12, &err), DSV4_REFUSED);
    ck_assert_int_eq(dsv4_grammar_open(&g, tok, "root ::= \"a\0\"", 13, &err), DSV4_REFUSED);
}
END_TEST

/* ------------------------------------------------------------------ JSON Schema */

static dsv4_grammar *open_schema(const char *schema)
{
    dsv4_err err;
    dsv4_grammar *g;
    int rc = dsv4_grammar_json_schema(&g, tok, schema, strlen(schema), &err);
    ck_assert_msg(rc == 0, "%s: %s", schema, err.text);
    return g;
}

START_TEST(schema)
{
    static const struct {
        const char *schema, *texts[16];
    } cases[] = {
        {"", {"{}", "{\"a\":[1,{\"b\":null}]}", "![]", "!1", "!{\"a\"}", "!{,}", "!{} "}},
        {"true", {"{}", "1", "[[],{}]", "\"a\"", "-0.5e-3", "null", "!nul", "!01", "!\"a"}},
        {"{\"type\":\"null\"}", {"null", "!true"}},
        {"{\"type\":\"boolean\"}", {"true", "false", "!null", "!True"}},
        {"{\"type\":[\"boolean\",\"null\"]}", {"true", "null", "!1"}},
        {"{\"type\":\"integer\"}", {"0", "-1", "12345678901234567", "!1.5", "!01", "!-", "!1e3"}},
        {"{\"type\":\"number\"}", {"0", "-1.5", "2e10", "1.25E-7", "!.5", "!1.", "!+1"}},
        {"{\"type\":\"integer\",\"minimum\":0}", {"0", "7", "1000000", "!-1"}},
        {"{\"type\":\"integer\",\"minimum\":-12,\"maximum\":130}",
         {"-12", "-1", "0", "9", "130", "99", "!-13", "!131", "!-20", "!999", "!-0"}},
        {"{\"type\":\"integer\",\"exclusiveMinimum\":5,\"exclusiveMaximum\":1e1}",
         {"6", "9", "!5", "!10", "!0", "!60"}},
        {"{\"type\":\"integer\",\"minimum\":1.5,\"maximum\":3.5}", {"2", "3", "!1", "!4"}},
        {"{\"type\":\"integer\",\"minimum\":999,\"maximum\":10001}",
         {"999", "1000", "9999", "10001", "!998", "!10002", "!99"}},
        {"{\"type\":\"integer\",\"maximum\":-5}", {"-5", "-6", "-100", "!-4", "!0", "!5"}},
        {"{\"type\":\"number\",\"minimum\":-1.5,\"maximum\":2.25}",
         {"-1.5", "-1.49", "0", "2.25", "2.2", "0.001", "2.250", "-1.500", "!-1.51", "!2.26",
          "!3"}},
        {"{\"type\":\"number\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":1}",
         {"0.5", "0.001", "0.99", "!0", "!0.0", "!1", "!1.0", "!-0.5"}},
        {"{\"type\":\"number\",\"exclusiveMaximum\":-2.5}",
         {"-2.51", "-3", "!-2.5", "!-2.50", "!-2"}},
        {"{\"type\":\"integer\",\"multipleOf\":7}", {"0", "7", "-14", "700", "!1", "!71"}},
        {"{\"type\":\"integer\",\"multipleOf\":4,\"minimum\":10,\"maximum\":21}",
         {"12", "16", "20", "!8", "!24", "!14"}},
        {"{\"type\":\"number\",\"multipleOf\":0.01}", {"1", "1.5", "1.25", "!1.255"}},
        {"{\"type\":\"string\"}",
         {"\"\"", "\"aä語😀\"", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\u00e4\\uD83D\\uDE00\"",
          "!\"\\u12\"", "!\"\\x\"", "!\"\\uD83D\"", "!\"\n\"", "!a"}},
        {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":4}",
         {"\"ab\"", "\"ä語😀x\"", "\"\\n\\u00e4\"", "!\"a\"", "!\"abcde\"", "!\"\""}},
        {"{\"type\":\"string\",\"minLength\":300}", {"!\"abc\""}},
        {"{\"pattern\":\"^[a-c]+$\"}", {"\"abc\"", "!\"\"", "!\"abd\""}},
        {"{\"pattern\":\"b\"}", {"\"b\"", "\"abc\"", "\"\\n\\\"b\"", "!\"ac\""}},
        {"{\"pattern\":\"^\\\\d{3}-\\\\w+\\\\s?$|^x$\"}",
         {"\"123-a_1\"", "\"123-a \"", "\"x\"", "!\"12-a\"", "!\"xx\""}},
        {"{\"pattern\":\"^(?:a|(?<n>b))*?[^\\\\n\\\"]\\\\u00e4\\\\x41\\\\.$\"}",
         {"\"abxäA.\"", "!\"ab\\näA.\"", "!\"abxäAx\""}},
        {"{\"pattern\":\"(^a$|^b$)\"}", {"\"a\"", "\"b\"", "!\"ab\""}},
        {"{\"pattern\":\"^\\\\p{L}\\\\P{L}$\"}", {"\"ä1\"", "\"語 \"", "!\"aa\""}},
        {"{\"pattern\":\"^a.b$\",\"maxLength\":3}",
         {"\"axb\"", "\"a\\tb\"", "!\"a\\nb\"", "!\"ab\""}},
        {"{\"pattern\":\"^[ab]*$\",\"minLength\":2,\"maxLength\":3}",
         {"\"ab\"", "\"bbb\"", "!\"a\"", "!\"abab\"", "!\"cc\""}},
        {"{\"allOf\":[{\"pattern\":\"^a\"},{\"pattern\":\"b$\"}]}",
         {"\"ab\"", "\"axxb\"", "!\"a\""}},
        {"{\"format\":\"date\"}",
         {"\"2024-02-29\"", "\"1999-12-31\"", "!\"2023-02-29\"", "!\"1900-02-29\"",
          "!\"2024-04-31\"", "!\"2024-13-01\""}},
        {"{\"format\":\"time\"}", {"\"23:59:59Z\"", "\"01:02:03.5+02:00\"", "!\"24:00:00Z\""}},
        {"{\"format\":\"date-time\"}", {"\"2024-02-29T10:00:00Z\"", "!\"2024-02-29 10:00:00Z\""}},
        {"{\"format\":\"duration\"}", {"\"P1Y2M3D\"", "\"PT5M\"", "\"P2W\"", "!\"P\"", "!\"5M\""}},
        {"{\"format\":\"uuid\"}", {"\"123e4567-e89b-12d3-a456-426614174000\"", "!\"123e4567\""}},
        {"{\"format\":\"email\"}", {"\"a.b+c@example.com\"", "!\"a\"", "!\"a@\"", "!\"@b\""}},
        {"{\"format\":\"ipv4\"}", {"\"192.168.0.255\"", "!\"1.2.3\"", "!\"256.1.1.1\""}},
        {"{\"format\":\"ipv6\"}", {"\"2001:db8::1\"", "\"::\"", "\"1:2:3:4:5:6:7:8\"", "!\"1:2\""}},
        {"{\"format\":\"hostname\"}", {"\"example.com\"", "!\"-a\"", "!\"a..b\""}},
        {"{\"format\":\"uri\"}",
         {"\"https://a.b/c?d=e#f\"", "\"mailto:a@b\"", "!\"a b\"", "!\"x\""}},
        {"{\"type\":\"string\",\"format\":\"color\"}", {"\"anything\""}}, /* only an annotation */
        {"{\"enum\":[\"a\",1,null,{\"x\":[1,2]},\"ä\\n\"]}",
         {"\"a\"", "1", "null", "{\"x\": [1, 2]}", "\"ä\\n\"", "!\"b\"", "!{\"x\":[1,2]}"}},
        {"{\"const\":-1.50}", {"-1.5", "!-1.6"}},
        {"{\"type\":\"string\",\"enum\":[\"a\",1,\"abc\"],\"maxLength\":2}",
         {"\"a\"", "!1", "!\"abc\""}},
        {"{\"enum\":[1,2,3,4,5],\"minimum\":2,\"exclusiveMaximum\":4}", {"2", "3", "!1", "!4"}},
        {"{\"enum\":[[1],[1,\"a\"],[]],\"items\":{\"type\":\"integer\"},\"minItems\":1}",
         {"[1]", "![]", "![1, \"a\"]"}},
        {"{\"enum\":[{\"a\":1},{\"b\":1},{\"a\":\"x\"}],\"required\":[\"a\"],\"properties\":{\"a\":"
         "{"
         "\"type\":\"integer\"}}}",
         {"{\"a\": 1}", "!{\"b\": 1}", "!{\"a\": \"x\"}"}},
        {"{\"type\":\"array\"}",
         {"[]", "[1, \"a\", [null]]", "[\n    1,\n    2\n]", "![1,]", "![,1]"}},
        {"{\"items\":{\"type\":\"boolean\"},\"minItems\":1,\"maxItems\":3}",
         {"[true]", "[true,false, true]", "![]", "![true,true,true,true]", "![1]"}},
        {"{\"items\":{\"type\":\"integer\"},\"maxItems\":0}", {"[]", "![1]"}},
        {"{\"items\":{\"enum\":[7]},\"minItems\":2,\"maxItems\":1000}",
         {"[7,7]", "[7,7,7]", "![7]"}},
        {"{\"prefixItems\":[{\"type\":\"string\"},{\"type\":\"integer\"}],\"items\":false}",
         {"[]", "[\"a\"]", "[\"a\", 1]", "![1]", "![\"a\", 1, 2]"}},
        {"{\"prefixItems\":[{\"type\":\"string\"}],\"items\":{\"type\":\"null\"},\"minItems\":2}",
         {"[\"a\",null]", "[\"a\",null,null]", "![\"a\"]", "![null,null]"}},
        {"{\"prefixItems\":[{\"const\":1}],\"maxItems\":2}", {"[1]", "[1,\"x\"]", "![1,1,1]"}},
        {"{\"type\":\"object\"}", {"{}", "{\"a\":1}", "!{\"a\":}"}},
        {"{\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"string\"},\"c\":{"
         "\"type\":"
         "\"null\"}},\"required\":[\"b\"]}",
         {"{\"b\":\"x\"}", "{\"a\":1,\"b\":\"x\"}", "{\"a\": 1, \"b\": \"x\", \"c\": null}",
          "{\"b\":\"x\",\"c\":null}", "!{}", "!{\"a\":1}", "!{\"b\":\"x\",\"a\":1}", "!{\"b\":1}",
          "!{\"b\":\"x\",\"d\":1}", "!{\"a\":1,,\"b\":\"x\"}", "!{\"b\":\"x\",}"}},
        {"{\"properties\":{},\"additionalProperties\":false}", {"{}", "!{\"a\":1}"}},
        {"{\"properties\":{\"a\":{\"const\":1}},\"additionalProperties\":{\"type\":\"boolean\"}}",
         {"{}", "{\"a\":1}", "{\"x\":true}", "{\"a\":1,\"x\":true,\"y\":false}", "!{\"x\":1}",
          "!{\"a\":true}", "!{\"x\":true,\"a\":1}", "!{\"\\u0061\":true}"}},
        {"{\"additionalProperties\":{\"type\":\"integer\"},\"minProperties\":1,\"maxProperties\":"
         "2}",
         {"{\"a\":1}", "{\"a\":1,\"b\":2}", "!{}", "!{\"a\":1,\"b\":2,\"c\":3}"}},
        {"{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}},"
         "\"minProperties\":2}",
         {"{\"a\":1,\"b\":2}", "{\"b\":2,\"c\":3}", "{\"a\":1,\"b\":2,\"c\":3}", "!{\"a\":1}",
          "!{}"}},
        {"{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}},"
         "\"maxProperties\":1}",
         {"{\"a\":1}", "{\"c\":3}", "{}", "!{\"a\":1,\"b\":2}"}},
        {"{\"required\":[\"x\"]}", {"{\"x\":[1]}", "!{}"}},
        {"{\"properties\":{\"a\":false,\"b\":true}}", {"{\"b\":1}", "{}", "!{\"a\":1}"}},
        {"{\"patternProperties\":{\"^x_\":{\"type\":\"integer\"},\"^y_\":{\"type\":\"null\"}},"
         "\"additionalProperties\":false}",
         {"{}", "{\"x_1\":1}", "{\"x_1\":1,\"y_\":null}", "!{\"x_1\":null}", "!{\"z\":1}"}},
        {"{\"properties\":{\"x_a\":{\"minimum\":3}},\"patternProperties\":{\"^x_\":{\"type\":"
         "\"integer\"}}}",
         {"{\"x_a\":3}", "{\"x_b\":1}", "!{\"x_a\":1}", "!{\"x_a\":3.5}"}},
        {"{\"propertyNames\":{\"pattern\":\"^[a-z]{1,3}$\"},\"additionalProperties\":{\"const\":1}"
         "}",
         {"{\"abc\":1}", "!{\"abcd\":1}", "!{\"A\":1}"}},
        {"{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"string\",\"maxLength\":1}]}",
         {"1", "\"a\"", "!\"ab\"", "!null"}},
        {"{\"oneOf\":[{\"const\":1},{\"const\":2}]}", {"1", "2", "!3"}},
        {"{\"type\":\"object\",\"properties\":{\"k\":{\"type\":\"string\"}},\"required\":[\"k\"],"
         "\"anyOf\":[{\"properties\":{\"k\":{\"const\":\"a\"},\"v\":{\"type\":\"integer\"}},"
         "\"required\":"
         "[\"v\"]},{\"properties\":{\"k\":{\"const\":\"b\"}}}]}",
         {"{\"k\":\"a\",\"v\":1}", "{\"k\":\"b\"}", "!{\"k\":\"a\"}", "!{\"k\":\"c\"}"}},
        {"{\"allOf\":[{\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]},"
         "{\"properties\":{\"a\":{\"minimum\":5},\"b\":{\"const\":1}}}]}",
         {"{\"a\":5}", "{\"a\":7,\"b\":1}", "!{\"a\":4}", "!{\"b\":1}"}},
        {"{\"allOf\":[{\"properties\":{\"a\":true}},{\"properties\":{\"b\":true}}],"
         "\"unevaluatedProperties\":false}",
         {"{\"a\":1,\"b\":2}", "!{\"c\":1}"}},
        {"{\"$ref\":\"#/$defs/"
         "n\",\"$defs\":{\"n\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":"
         "\"integer\"},\"next\":{\"anyOf\":[{\"$ref\":\"#/$defs/n\"},{\"type\":\"null\"}]}},"
         "\"required\":[\"v\",\"next\"]}}}",
         {"{\"v\":1,\"next\":null}", "{\"v\":1,\"next\":{\"v\":2,\"next\":null}}", "!{\"v\":1}",
          "!{\"v\":1,\"next\":{}}"}},
        {"{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}", {"[]", "[[],[[]]]", "![1]"}},
        {"{\"definitions\":{\"a/b~c\":{\"const\":4}},\"$ref\":\"#/definitions/a~1b~0c\"}",
         {"4", "!5"}},
        {"{\"$ref\":\"#/$defs/"
         "a\",\"maximum\":3,\"$defs\":{\"a\":{\"type\":\"integer\",\"minimum\":2}}}",
         {"2", "3", "!1", "!4"}},
        {"{\"type\":\"string\",\"nullable\":true}", {"null", "\"a\"", "!1"}},
        {"{\"title\":\"t\",\"description\":\"d\",\"default\":1,\"examples\":[1],\"x-y\":1,\"type\":"
         "\"null\"}",
         {"null"}},
        {"{\"type\":\"array\",\"uniqueItems\":true,\"maxItems\":1,\"items\":{\"const\":1}}",
         {"[1]", "[]"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv4_grammar *g = open_schema(cases[i].schema);
        try_all(g, cases[i].schema, cases[i].texts);
        dsv4_grammar_close(g);
    }
}
END_TEST

START_TEST(schema_refused)
{
    static const struct {
        const char *schema, *message;
    } cases[] = {
        {"{", "schema"},
        {"[]", "must be a schema"},
        {"false", "no value fits"},
        {"{\"type\":\"int\"}", "#/type is no type"},
        {"{\"not\":{}}", "#/not cannot be enforced"},
        {"{\"properties\":{\"a\":{\"if\":true}}}", "#/properties/a/if cannot"},
        {"{\"items\":{\"contains\":true}}", "#/items/contains cannot"},
        {"{\"type\":\"array\",\"uniqueItems\":true}", "#/uniqueItems cannot"},
        {"{\"dependentRequired\":{}}", "#/dependentRequired cannot"},
        {"{\"$dynamicRef\":\"#a\"}", "cannot be enforced"},
        {"{\"unevaluatedItems\":false}", "cannot be enforced"},
        {"{\"$ref\":\"http://example.com/\"}", "#/$ref must point into"},
        {"{\"$ref\":\"#/nowhere\"}", "#/$ref points to nothing"},
        {"{\"pattern\":\"a(?=b)\"}", "#/pattern"},
        {"{\"pattern\":\"(a)\\\\1\"}", "cannot be enforced"},
        {"{\"pattern\":\"\\\\bword\"}", "cannot be enforced"},
        {"{\"pattern\":\"a^b\"}", "anchor"},
        {"{\"pattern\":\"(a\"}", "without an end"},
        {"{\"pattern\":\"[a\"}", "without an end"},
        {"{\"pattern\":\"a)\"}", "without a group"},
        {"{\"pattern\":\"*a\"}", "nothing to repeat"},
        {"{\"pattern\":1}", "must be a string"},
        {"{\"minLength\":-1}", "#/minLength must be a whole number"},
        {"{\"minimum\":\"1\"}", "#/minimum must be a number"},
        {"{\"multipleOf\":0.3}", "#/multipleOf cannot"},
        {"{\"enum\":1}", "#/enum must be a list"},
        {"{\"anyOf\":[]}", "#/anyOf must be a list"},
        {"{\"allOf\":{}}", "#/allOf must be a list"},
        {"{\"properties\":[]}", "#/properties must be an object"},
        {"{\"required\":\"a\"}", "#/required must be a list"},
        {"{\"properties\":{\"a\":1}}", "#/properties/a must be a schema"},
        {"{\"minLength\":3,\"maxLength\":2}", "no text fits"},
        {"{\"minimum\":3,\"maximum\":2}", "no text fits"},
        {"{\"type\":\"integer\",\"enum\":[\"a\"]}", "no text fits"},
        {"{\"properties\":{\"a\":false},\"required\":[\"a\"]}", "no text fits"},
        {"{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", "no text fits"},
        {"{\"additionalProperties\":true,\"minProperties\":3}", "cannot be enforced"},
        {"{\"pattern\":\"^(a|b)*a(a|b){24}$\"}", "too large"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv4_err err;
        dsv4_grammar *g = (dsv4_grammar *)1;
        const char *text = cases[i].schema;
        int rc = dsv4_grammar_json_schema(&g, tok, text, strlen(text), &err);
        ck_assert_msg(rc == DSV4_REFUSED, "%s: %d", text, rc);
        ck_assert_msg(strstr(err.text, cases[i].message), "%s: %s", text, err.text);
        ck_assert_ptr_null(g);
    }
}
END_TEST

/* ------------------------------------------------------------------ tools */

static const char tools_json[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"weather\",\"parameters\":{\"type\":"
    "\"object\","
    "\"properties\":{\"city\":{\"type\":\"string\"},\"unit\":{\"enum\":[\"c\",\"f\",1]},\"days\":{"
    "\"type\":[\"integer\",\"string\"],\"maximum\":14,\"maxLength\":3}},\"required\":[\"city\"]}}},"
    "{\"name\":\"search\",\"parameters\":{\"type\":\"object\",\"properties\":{\"q\":{\"type\":"
    "\"array\",\"items\":{\"type\":\"string\"}}},\"required\":[\"q\"]}},{\"name\":\"now\"}]";

static dsv4_grammar *open_tools(dsv4_dialect d, dsv4_tool_mode mode, const char *name,
                                bool parallel)
{
    dsv4_err err;
    dsv4_grammar *g;
    OK(dsv4_grammar_tools(&g, tok, d, tools_json, strlen(tools_json), mode, name, parallel, &err));
    return g;
}

/* Writes $B, $I, $P as the dialect's tags. */
static const char *tagged(dsv4_dialect d, const char *text)
{
    static char out[4096];
    char *o = out;
    for (; *text; text++) {
        const char *tag = text[0] != '$'   ? NULL
                          : text[1] == 'B' ? chat_dialects[d].tag[0]
                          : text[1] == 'I' ? chat_dialects[d].tag[1]
                                           : chat_dialects[d].tag[2];
        if (!tag) {
            *o++ = *text;
            continue;
        }
        o += sprintf(o, M_DSML "%s", tag);
        text++;
    }
    *o = 0;
    return out;
}

START_TEST(tools)
{
    static const char *const inside[] = {
        "<$I name=\"weather\">\n<$P name=\"city\" string=\"true\">Köln \"<b>\"</$P>\n</$I>\n</$B>",
        "<$I name=\"weather\">\n<$P name=\"city\" string=\"true\"></$P>\n<$P name=\"unit\" "
        "string=\"true\">c</$P>\n<$P name=\"days\" string=\"false\">14</$P>\n</$I>\n</$B>",
        "<$I name=\"weather\">\n<$P name=\"city\" string=\"true\">a</$P>\n<$P name=\"unit\" "
        "string=\"false\">1</$P>\n<$P name=\"days\" string=\"true\">abc</$P>\n</$I>\n</$B>",
        "<$I name=\"search\">\n<$P name=\"q\" string=\"false\">[\"a\", "
        "\"</b>\"]</$P>\n</$I>\n</$B>",
        "<$I name=\"now\">\n\n</$I>\n</$B>",
        "<$I name=\"now\">\n</$I>\n</$B>",
        "!<$I name=\"never\">\n</$I>\n</$B>",
        "!<$I name=\"weather\">\n</$I>\n</$B>",
        "!<$I name=\"weather\">\n<$P name=\"city\" string=\"false\">\"a\"</$P>\n</$I>\n</$B>",
        "!<$I name=\"weather\">\n<$P name=\"city\" string=\"true\">a</$P>\n<$P name=\"unit\" "
        "string=\"true\">k</$P>\n</$I>\n</$B>",
        "!<$I name=\"search\">\n<$P name=\"q\" string=\"true\">a</$P>\n</$I>\n</$B>",
        "!<$I name=\"now\">\n</$I>\n</$B> and text",
        "!hello",
    };
    for (int d = 0; d < 3; d++) {
        dsv4_grammar *must = open_tools((dsv4_dialect)d, DSV4_TOOLS_REQUIRED, NULL, true),
                     *may = open_tools((dsv4_dialect)d, DSV4_TOOLS_AUTO, NULL, true);
        for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) {
            bool bad = *inside[i] == '!';
            const char *block = tagged((dsv4_dialect)d, inside[i] + bad);
            char text[8192];
            ck_assert_msg((try_text(must, block) == FITS) == !bad, "%s", block);
            snprintf(text, sizeof text, "\n\n%s", tagged((dsv4_dialect)d, "<$B>\n"));
            strcat(text, tagged((dsv4_dialect)d, inside[i] + bad));
            ck_assert_msg((try_text(must, text) == FITS) == !bad, "%s", text);
            ck_assert_msg((try_text(may, text) == FITS) == !bad ||
                              i + 1 == sizeof inside / sizeof *inside,
                          "%s", text);
        }
        ck_assert_int_eq(try_text(may, "Just <b>text</b> ｜ and </think> more."), FITS);
        ck_assert_int_eq(try_text(may, "a</think>b</think>"), REFUSED);
        ck_assert_int_eq(try_text(must, "Text"), REFUSED);
        dsv4_grammar_close(must);
        dsv4_grammar_close(may);
    }
}
END_TEST

START_TEST(tools_modes)
{
    static const char now[] = "<$I name=\"now\">\n</$I>\n",
                      two[] = "<$I name=\"now\">\n</$I>\n<$I name=\"now\">\n</$I>\n</$B>";
    dsv4_grammar *named = open_tools(DSV4_V41, DSV4_TOOLS_NAMED, "now", false),
                 *many = open_tools(DSV4_V41, DSV4_TOOLS_NAMED, "now", true);
    char one[8192];
    snprintf(one, sizeof one, "%s</" M_DSML " calls>", tagged(DSV4_V41, now));
    ck_assert_int_eq(try_text(named, one), FITS);
    ck_assert_int_eq(try_text(named, tagged(DSV4_V41, two)), REFUSED);
    ck_assert_int_eq(try_text(many, tagged(DSV4_V41, two)), FITS);
    ck_assert_int_eq(try_text(named, tagged(DSV4_V41, "<$I name=\"search\">")), REFUSED);
    dsv4_grammar_close(named);
    dsv4_grammar_close(many);

    /* The tag that opens a block, spelled in ordinary tokens, is no text. */
    dsv4_err err;
    dsv4_matcher *m;
    dsv4_grammar *may = open_tools(DSV4_V41, DSV4_TOOLS_AUTO, NULL, true);
    int32_t *ids;
    size_t n;
    OK(dsv4_encode(tok, "<" M_DSML, strlen("<" M_DSML), false, &ids, &n, &err));
    OK(dsv4_matcher_open(&m, may, &err));
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = dsv4_matcher_accept(m, ids[i], &err);
    ck_assert_int_eq(rc, DSV4_REFUSED);
    dsv4_free(ids);
    dsv4_matcher_close(m);
    dsv4_grammar_close(may);

    static const struct {
        const char *tools, *message;
    } bad[] = {{"{}", "a list"},
               {"[]", "empty"},
               {"[{\"name\":\"a\\\"b\"}]", "no proper name"},
               {"[{\"name\":\"a\",\"parameters\":{\"not\":{}}}]", "cannot be enforced"},
               {"[{\"name\":\"a\",\"parameters\":{\"properties\":{\"a\\\"\":{}}}}]", "quotation"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dsv4_grammar *g;
        ck_assert_int_eq(dsv4_grammar_tools(&g, tok, DSV4_V41, bad[i].tools, strlen(bad[i].tools),
                                            DSV4_TOOLS_AUTO, NULL, true, &err),
                         DSV4_REFUSED);
        ck_assert_msg(strstr(err.text, bad[i].message), "%s", err.text);
    }
    dsv4_grammar *g;
    ck_assert_int_eq(dsv4_grammar_tools(&g, tok, DSV4_V41, tools_json, strlen(tools_json),
                                        DSV4_TOOLS_NAMED, "x", true, &err),
                     DSV4_REFUSED);
}
END_TEST

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
    tcase_add_test(c, gbnf);
    tcase_add_test(c, gbnf_of_json);
    tcase_add_test(c, gbnf_refused);
    tcase_add_test(c, schema);
    tcase_add_test(c, schema_refused);
    tcase_add_test(c, tools);
    tcase_add_test(c, tools_modes);
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
