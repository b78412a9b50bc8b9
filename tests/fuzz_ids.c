/* Any bytes as a list of token ids and as a list of chunk sizes: refused with a message, or numbers in
 * range that a plain reading of the same text gives too. */
#include "tools/input.c"
#include "tools/terminal.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
    if (!x)
        abort();
}

/* Reads the ids again, written in the plainest way, and compares. */
static void same_again(const int32_t *ids, size_t n, size_t vocab)
{
    struct bytes b = {0};
    dsv4_err err;
    int32_t *again = NULL;
    size_t m = 0;
    for (size_t i = 0; i < n; i++) {
        must(ids[i] >= 0 && (size_t)ids[i] < vocab);
        must(bytes_printf(&b, &err, "%d\n", (int)ids[i]) == 0);
    }
    must(ids_parse(b.data, b.len, vocab, "again", &again, &m, &err) == 0);
    must(m == n && (n == 0 || memcmp(ids, again, n * sizeof *ids) == 0));
    free(again);
    free(b.data);
}

static void try_safe_text(const char *text, size_t size)
{
    dsv4_utf8 u = {0};
    char *whole = malloc(size * 3 + 9), *safe = malloc(SAFE_ROOM(size * 3 + 9));
    must(whole && safe);
    size_t n = dsv4_utf8_push(&u, text, size, whole);
    n += dsv4_utf8_flush(&u, whole + n);
    bool wide = false;
    size_t m = safe_text(whole, n, &wide, safe);
    must(m <= SAFE_ROOM(n));
    for (size_t i = 0; i < m; i++) /* no control bytes, no C1 */
        must(((unsigned char)safe[i] >= 0x20 || safe[i] == '\n' || safe[i] == '\t') &&
             safe[i] != 0x7f &&
             !(i + 1 < m && (unsigned char)safe[i] == 0xc2 && (unsigned char)safe[i + 1] < 0xa0));
    free(whole);
    free(safe);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t vocabs[] = {1, 4096, 129280, INT32_MAX};
    dsv4_err err;
    int32_t *ids = NULL;
    size_t n = 0, *chunk = NULL;
    char *text = malloc(size + 1);
    must(text != NULL);
    memcpy(text, data, size);
    text[size] = 0;
    size_t vocab = vocabs[size % 4];
    int rc = ids_parse(text, size, vocab, "fuzz", &ids, &n, &err);
    must(rc == 0 || (rc == DSV4_REFUSED && err.text[0]));
    if (rc == 0)
        same_again(ids, n, vocab);
    free(ids);
    rc = chunks_parse(text, &chunk, &n, &err);
    must(rc == 0 || (rc == DSV4_USAGE && err.text[0]));
    for (size_t i = 0; rc == 0 && i < n; i++)
        must(chunk[i] > 0 && chunk[i] <= UINT32_MAX);
    free(chunk);
    try_safe_text(text, size);
    free(text);
    return 0;
}
