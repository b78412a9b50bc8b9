/* Fuzz target: grammars, schemas and lists of tools. Byte 0 says which, byte 1 seeds the choice of
 * tokens, the rest is the text. What is not refused gives masks whose tokens are accepted and no
 * others, from a clone too, as far as 24 tokens. */
#include "src/text/grammar.h"

#include <stdlib.h>
#include <string.h>

static dsv4_tokenizer *tok;

static void must(bool good)
{
    if (!good)
        abort();
}

static uint32_t seed;

static uint32_t below(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

static int compile(const uint8_t *data, size_t size, dsv4_grammar **g, dsv4_err *err)
{
    const char *text = (const char *)data + 2;
    unsigned kind = data[0] % 8;
    size_t len = size - 2;
    if (kind < 2)
        return dsv4_grammar_open(g, tok, text, len, err);
    if (kind < 5)
        return dsv4_grammar_json_schema(g, tok, text, len, err);
    return dsv4_grammar_tools(g, tok, (dsv4_dialect)(data[0] / 8 % 3), text, len,
                              (dsv4_tool_mode)(kind - 5), "a", data[0] & 128, err);
}

/* One token of the mask, or an end; another one must be accepted or not as the mask says. */
static bool one_token(dsv4_matcher *m, uint32_t *bits, size_t n)
{
    dsv4_err err;
    dsv4_matcher *copy;
    int rc = dsv4_matcher_mask(m, bits, n, &err);
    must(rc == 0 || rc == DSV4_FAILED);
    if (rc != 0)
        return false;
    uint32_t any = below((uint32_t)n), id = below((uint32_t)n);
    must(dsv4_matcher_clone(&copy, m, &err) == 0);
    rc = dsv4_matcher_accept(copy, (int32_t)any, &err);
    must(rc == DSV4_FAILED || (rc == 0) == (bits[any / 32] >> any % 32 & 1));
    dsv4_matcher_close(copy);
    while (!(bits[id / 32] >> id % 32 & 1))
        id = (id + 1) % (uint32_t)n;
    rc = dsv4_matcher_accept(m, (int32_t)id, &err);
    must(rc == 0 || rc == DSV4_FAILED);
    return rc == 0 && !dsv4_matcher_done(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dsv4_err err;
    dsv4_grammar *g;
    dsv4_matcher *m;
    static uint32_t bits[256];
    if (size < 2)
        return 0;
    if (!tok)
        must(dsv4_tokenizer_open(&tok, "models/nano/tokenizer.json", &err) == 0);
    size_t n = dsv4_tokenizer_size(tok);
    must(n <= 32 * 256);
    seed = data[1];
    int rc = compile(data, size, &g, &err);
    must(rc == 0 || ((rc == DSV4_REFUSED || rc == DSV4_FAILED) && !g && err.text[0]));
    if (rc != 0)
        return 0;
    rc = dsv4_matcher_open(&m, g, &err);
    must(rc == 0 || rc == DSV4_FAILED);
    for (int i = 0; i < 24 && rc == 0; i++)
        if (!one_token(m, bits, n))
            break;
    if (rc == 0)
        dsv4_matcher_close(m);
    dsv4_grammar_close(g);
    return 0;
}
