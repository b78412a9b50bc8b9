/* tokenize and detokenize: the tokenizer alone, no model is loaded. */
#include "tools.h"

#include <stdlib.h>
#include <string.h>

static int show_pieces(struct program *p, const dsv4_tokenizer *t, const int32_t *ids, size_t n,
                       dsv4_err *err)
{
    struct stream *out = &p->term.out;
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *bytes = dsv4_token_bytes(t, ids[i], &len);
        stream_printf(out, "%d\t", (int)ids[i]);
        /* one line a token: newlines and the like are written out, broken characters as bytes */
        for (size_t k = 0; k < len; k++) {
            unsigned char c = (unsigned char)bytes[k];
            if (c < 0x20 || c == 0x7f || c == '\\')
                stream_printf(out, "\\x%02x", c);
            else
                stream_foreign(out, bytes + k, 1);
        }
        stream_foreign_end(out);
        stream_text(out, "\n");
        TRY(stream_flush(out, err));
    }
    return 0;
}

static int show_ids(struct program *p, const int32_t *ids, size_t n, dsv4_err *err)
{
    for (size_t i = 0; i < n; i++)
        stream_printf(&p->term.out, "%s%d", i ? " " : "", (int)ids[i]);
    stream_text(&p->term.out, "\n");
    return stream_flush(&p->term.out, err);
}

static json_t *tokens_json(const dsv4_tokenizer *t, const int32_t *ids, size_t n)
{
    json_t *list = json_array(), *pieces = json_array();
    bool ok = list && pieces;
    for (size_t i = 0; ok && i < n; i++) {
        size_t len, o;
        const char *bytes = dsv4_token_bytes(t, ids[i], &len);
        char *text = malloc(len * 3 + 18);
        dsv4_utf8 u = {0};
        ok = text != NULL;
        if (ok) {
            o = dsv4_utf8_push(&u, bytes, len, text);
            o += dsv4_utf8_flush(&u, text + o);
            ok = json_array_append_new(list, json_integer(ids[i])) == 0 &&
                 json_array_append_new(pieces, json_stringn(text, o)) == 0;
        }
        free(text);
    }
    if (!ok) {
        json_decref(list);
        json_decref(pieces);
        return NULL;
    }
    return json_pack("{s:I, s:o, s:o}", "n", (json_int_t)n, "ids", list, "pieces", pieces);
}

int cmd_tokenize(struct program *p, dsv4_err *err)
{
    char *text;
    size_t len, n = 0;
    int32_t *ids = NULL;
    dsv4_tokenizer *t = NULL;
    TRY(input_text(p, 0, &text, &len, err));
    int rc = tokenizer_open(p, &t, err);
    if (rc == 0)
        rc = dsv4_encode(t, text, len, p->a.markers, &ids, &n, err);
    free(text);
    if (rc == 0 && p->a.json)
        rc = json_print(p, tokens_json(t, ids, n), err);
    else if (rc == 0)
        rc = p->a.pieces ? show_pieces(p, t, ids, n, err) : show_ids(p, ids, n, err);
    dsv4_free(ids);
    dsv4_tokenizer_close(t);
    return rc;
}

/* The ids of the command line, of --ids-file, or of standard input. */
static int read_ids(struct program *p, size_t vocab, int32_t **ids, size_t *n, dsv4_err *err)
{
    if (p->argc == 0)
        return ids_read(p->a.ids_file ? p->a.ids_file : "-", vocab, ids, n, err);
    if (p->a.ids_file)
        return err_set(err, DSV4_USAGE, "ids and --ids-file; one of them is enough");
    struct bytes b = {0};
    int rc = 0;
    for (int i = 0; rc == 0 && i < p->argc; i++)
        rc = bytes_printf(&b, err, "%s ", p->argv[i]);
    if (rc == 0)
        rc = ids_parse(b.data, b.len, vocab, "the command line", ids, n, err);
    if (rc == DSV4_REFUSED)
        rc = err->status = DSV4_USAGE;
    free(b.data);
    return rc;
}

int cmd_detokenize(struct program *p, dsv4_err *err)
{
    struct stream *out = &p->term.out;
    dsv4_tokenizer *t;
    int32_t *ids = NULL;
    size_t n = 0, len;
    TRY(tokenizer_open(p, &t, err));
    int rc = read_ids(p, dsv4_tokenizer_size(t), &ids, &n, err);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const char *bytes = dsv4_token_bytes(t, ids[i], &len);
        stream_foreign(out, bytes, len);
        rc = out->rc;
    }
    stream_foreign_end(out);
    if (out->tty && !out->line_start)
        stream_text(out, "\n");
    dsv4_err later;
    int flushed = stream_flush(out, rc == 0 || out->rc != 0 ? err : &later);
    free(ids);
    dsv4_tokenizer_close(t);
    return rc != 0 ? rc : flushed;
}
