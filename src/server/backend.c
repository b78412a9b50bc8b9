/* The engine as the scheduler sees it: dsv4.h behind functions that tests can replace. */
#include "server.h"

static int seq_open(void *self, dsv4_seq **out, dsv4_err *err)
{
    return dsv4_seq_open(out, self, err);
}

static void seq_close(void *self, dsv4_seq *s)
{
    (void)self;
    dsv4_seq_close(s);
}

static const int32_t *seq_tokens(void *self, const dsv4_seq *s, size_t *n)
{
    (void)self;
    *n = dsv4_seq_len(s);
    return dsv4_seq_tokens(s);
}

static int eval(void *self, const dsv4_row *rows, size_t n, float *logits, dsv4_err *err)
{
    return dsv4_eval(self, rows, n, logits, err);
}

static int seq_rewind(void *self, dsv4_seq *s, size_t len, dsv4_err *err)
{
    (void)self;
    return dsv4_seq_rewind(s, len, err);
}

static size_t reusable(void *self, const dsv4_seq *s, size_t len, bool fork)
{
    (void)self;
    (void)fork; /* one answer for both */
    return dsv4_seq_reusable(s, len);
}

static int seq_fork(void *self, dsv4_seq **out, const dsv4_seq *s, size_t len, dsv4_err *err)
{
    (void)self;
    return dsv4_seq_fork(out, s, len, err);
}

static uint64_t seq_bytes(void *self, const dsv4_seq *s)
{
    (void)self;
    return dsv4_seq_bytes(s);
}

static int mark(void *self, dsv4_seq *s, dsv4_err *err)
{
    (void)self;
    return dsv4_seq_mark(s, err);
}

static int save(void *self, const dsv4_seq *s, const char *file, dsv4_err *err)
{
    (void)self;
    return dsv4_seq_save(s, file, err);
}

static int load(void *self, dsv4_seq **out, const char *file, dsv4_err *err)
{
    return dsv4_seq_load(out, self, file, err);
}

static int peek(void *self, const char *file, int32_t **ids, size_t *n, dsv4_err *err)
{
    (void)self;
    return dsv4_snapshot_tokens(file, ids, n, err);
}

/* Added tokens are those that encoding finds as one marker and not otherwise. */
static const char *token_text(void *self, int32_t token, size_t *len, bool *marker)
{
    const dsv4_tokenizer *t = dsv4_engine_tokenizer(self);
    const char *bytes = dsv4_token_bytes(t, token, len);
    char name[260];
    *marker = dsv4_token_special(t, token);
    if (!*marker && bytes && *len > 2 && *len < sizeof name &&
        (bytes[0] == '<' || (unsigned char)bytes[0] == 0xEF)) {
        for (size_t i = 0; i < *len; i++)
            name[i] = bytes[i];
        name[*len] = 0;
        *marker = dsv4_token_find(t, name) == token;
    }
    return bytes;
}

struct backend backend_engine(dsv4_engine *e, size_t batch)
{
    return (struct backend){.self = e,
                            .vocab = dsv4_engine_vocab(e),
                            .ctx = dsv4_engine_ctx(e),
                            .batch = batch,
                            .open = seq_open,
                            .close = seq_close,
                            .tokens = seq_tokens,
                            .eval = eval,
                            .rewind = seq_rewind,
                            .reusable = reusable,
                            .fork = seq_fork,
                            .bytes = seq_bytes,
                            .mark = mark,
                            .save = save,
                            .load = load,
                            .peek = peek,
                            .text = token_text};
}
