/* Constrained decoding: GBNF, JSON Schema and calls of tools, each keyword with texts that fit and
 * texts that do not. Masks, limits and sampling: check_grammar.c. */
#include "grammar_case.h"

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

int main(void)
{
    Suite *s = suite_create("grammar texts");
    TCase *c = tcase_create("texts");
    tcase_set_timeout(c, 60);
    tcase_add_unchecked_fixture(c, open_nano, close_nano);
    tcase_add_test(c, gbnf);
    tcase_add_test(c, gbnf_of_json);
    tcase_add_test(c, gbnf_refused);
    tcase_add_test(c, schema);
    tcase_add_test(c, schema_refused);
    tcase_add_test(c, tools);
    tcase_add_test(c, tools_modes);
    suite_add_tcase(s, c);
    return run_suite(s);
}
