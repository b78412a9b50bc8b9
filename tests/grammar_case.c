/* What the tests of constrained decoding share: the embedded model's tokenizer, grammars of schemas and
 * tools, and whether a text fits. */
#include "grammar_case.h"

#define NANO "models/nano/tokenizer.json"

bool testing = true;

void need(bool good, const char *what, const char *message)
{
    if (good)
        return;
    if (testing)
        ck_abort_msg("%s: %s", what, message);
    fprintf(stderr, "%s: %s\n", what, message);
    exit(1);
}

dsv4_tokenizer *tok;

void open_nano(void)
{
    dsv4_err err;
    OK(dsv4_tokenizer_open(&tok, NANO, &err));
}

void close_nano(void)
{
    dsv4_tokenizer_close(tok);
}

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

enum verdict try_text(const dsv4_grammar *g, const char *text)
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

void try_all(const dsv4_grammar *g, const char *what, const char *const *texts)
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

dsv4_grammar *open_schema(const char *schema)
{
    dsv4_err err;
    dsv4_grammar *g;
    int rc = dsv4_grammar_json_schema(&g, tok, schema, strlen(schema), &err);
    ck_assert_msg(rc == 0, "%s: %s", schema, err.text);
    return g;
}

const char tools_json[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"weather\",\"parameters\":{\"type\":"
    "\"object\","
    "\"properties\":{\"city\":{\"type\":\"string\"},\"unit\":{\"enum\":[\"c\",\"f\",1]},\"days\":{"
    "\"type\":[\"integer\",\"string\"],\"maximum\":14,\"maxLength\":3}},\"required\":[\"city\"]}}},"
    "{\"name\":\"search\",\"parameters\":{\"type\":\"object\",\"properties\":{\"q\":{\"type\":"
    "\"array\",\"items\":{\"type\":\"string\"}}},\"required\":[\"q\"]}},{\"name\":\"now\"}]";

dsv4_grammar *open_tools(dsv4_dialect d, dsv4_tool_mode mode, const char *name, bool parallel)
{
    dsv4_err err;
    dsv4_grammar *g;
    OK(dsv4_grammar_tools(&g, tok, d, tools_json, strlen(tools_json), mode, name, parallel, &err));
    return g;
}

const char *tagged(dsv4_dialect d, const char *text)
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
