/* The tokenizer, by the first byte of the data:
 *   1, 2   the rest is text for the tokenizer of v4-tiny or of the embedded model
 *   3      the rest is edits to a good tokenizer.json: place (2 bytes), bytes to drop (1), length of what
 *          goes there instead (1), that; so that what is tried is mostly JSON and mostly consistent
 *   else   everything is a tokenizer.json
 * Whatever opens must encode any text to ids that say this text again, byte for byte. */
#include "src/text/text.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
    if (!x)
        abort();
}

static void same(const char *a, size_t n, const char *b, size_t m)
{
    must(n == m && (n == 0 || memcmp(a, b, n) == 0));
}

/* The ids spell the text; added tokens only where `control` allows them. */
static void check_ids(const dsv4_tokenizer *t, int32_t *ids, size_t n, const struct bytes *text,
                      dsv4_span control)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *bytes = dsv4_token_bytes(t, ids[i], &len);
        must(bytes && len > 0 && len <= text->len - at && memcmp(bytes, text->data + at, len) == 0);
        if (t->token[ids[i]].flags & TOKEN_ADDED)
            must(at >= control.begin && at + len <= control.end);
        at += len;
    }
    must(at == text->len);
    free(ids);
}

static void check_cuts(const dsv4_tokenizer *t, const char *raw, size_t len,
                       const struct bytes *text)
{
    size_t *cuts, n, sum = 0;
    dsv4_err err;
    if (dsv4_pretokenize(t, raw, len, &cuts, &n, &err) != 0)
        return; /* a pattern of the file that needs too many steps */
    for (size_t i = 0; i < n; i++) {
        must(cuts[i] > 0 && cuts[i] <= text->len - sum);
        sum += cuts[i];
        must(sum == text->len || ((unsigned char)text->data[sum] & 0xc0) != 0x80);
    }
    must(sum == text->len);
    free(cuts);
}

/* In one piece, byte by byte, and in pieces of sizes that the text itself chooses. */
static void check_stream(const char *raw, size_t len, const struct bytes *text)
{
    char *out = malloc(3 * len + 9);
    must(out != NULL);
    for (int how = 0; how < 3; how++) {
        dsv4_utf8 u = {0};
        size_t n = 0;
        for (size_t at = 0, k; at < len; at += k) {
            k = how == 0 ? len : how == 1 ? 1 : 1 + (size_t)((unsigned char)raw[at] & 3);
            k = k < len - at ? k : len - at;
            size_t written = dsv4_utf8_push(&u, raw + at, k, out + n);
            must(utf8_valid(out + n, written));
            n += written;
        }
        n += dsv4_utf8_flush(&u, out + n);
        same(out, n, text->data, text->len);
    }
    free(out);
}

/* The middle of the text is ours, the rest is not. */
static void check_prompt(const dsv4_tokenizer *t, const struct bytes *text)
{
    dsv4_span span = {text->len / 4, text->len - text->len / 4};
    dsv4_prompt p = {.text = text->data, .len = text->len, .control = &span, .n_control = 1};
    int32_t *ids;
    size_t n;
    dsv4_err err;
    if (dsv4_encode_prompt(t, &p, &ids, &n, &err) == 0)
        check_ids(t, ids, n, text, span);
}

static void check_text(const dsv4_tokenizer *t, const char *raw, size_t len)
{
    struct bytes text = {0};
    dsv4_err err;
    int32_t *ids;
    size_t n;
    must(utf8_repair(&text, raw, len, &err) == 0 && utf8_valid(text.data, text.len));
    must(utf8_valid(raw, len) == (text.len == len && (len == 0 || !memcmp(text.data, raw, len))));
    check_stream(raw, len, &text);
    check_cuts(t, raw, len, &text);
    if (dsv4_encode(t, raw, len, false, &ids, &n, &err) == 0)
        check_ids(t, ids, n, &text, (dsv4_span){0, 0});
    if (dsv4_encode(t, raw, len, true, &ids, &n, &err) == 0)
        check_ids(t, ids, n, &text, (dsv4_span){0, text.len});
    check_prompt(t, &text);
    free(text.data);
}

static void check_file(const char *json, size_t len)
{
    static const char text[] =
        "The  heat <\xef\xbd\x9cUser\xef\xbd\x9c> 1234\r\n\xe4\xb8\xad\xff \t</think>";
    dsv4_tokenizer *t = NULL;
    dsv4_err err = {0};
    int rc = tokenizer_parse(&t, json, len, "fuzz", &err);
    if (rc != 0) {
        must(rc == DSV4_REFUSED && err.status == rc && err.text[0] && !t);
        return;
    }
    check_text(t, text, sizeof text - 1);
    check_text(t, json, len < 300 ? len : 300);
    int32_t *map;
    uint32_t distinct;
    if (engram_map_build(t, &map, &distinct, &err) == 0) {
        for (size_t i = 0; i < dsv4_tokenizer_size(t); i++)
            must(map[i] >= 0 && (uint32_t)map[i] < distinct && (size_t)map[i] <= i);
        free(map);
    }
    dsv4_tokenizer_close(t);
}

static void check_edits(const uint8_t *data, size_t size)
{
    static struct bytes good;
    dsv4_err err;
    if (!good.data)
        must(file_read("tests/golden/v4-pro/tokenizer.json", SIZE_MAX, &good.data, &good.len,
                       &err) == 0);
    struct bytes text = {0};
    size_t from = 0;
    while (size >= 4) { /* edits in the order of their places; earlier places are taken as here */
        size_t at = ((size_t)data[0] << 8 | data[1]) % (good.len + 1), drop = data[2], n = data[3];
        data += 4, size -= 4;
        n = n < size ? n : size;
        if (at > from) {
            must(bytes_add(&text, good.data + from, at - from, &err) == 0);
            from = at;
        }
        must(bytes_add(&text, data, n, &err) == 0);
        from = drop < good.len - from ? from + drop : good.len;
        data += n, size -= n;
    }
    must(bytes_add(&text, good.data + from, good.len - from, &err) == 0);
    check_file(text.data, text.len);
    free(text.data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const path[2] = {"tests/golden/v4-tiny/tokenizer.json",
                                        "models/nano/tokenizer.json"};
    static dsv4_tokenizer *known[2];
    dsv4_err err;
    if (size > 0 && (data[0] == 1 || data[0] == 2)) {
        dsv4_tokenizer **t = &known[data[0] - 1];
        if (!*t)
            must(dsv4_tokenizer_open(t, path[data[0] - 1], &err) == 0);
        check_text(*t, (const char *)data + 1, size - 1);
    } else if (size > 0 && data[0] == 3) {
        check_edits(data + 1, size - 1);
    } else {
        check_file((const char *)data, size);
    }
    return 0;
}
