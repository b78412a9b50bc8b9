/* A folder as the beginning of a prompt: which of its files fit, the text they make, and what is told
 * about them. */
#include "repo.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ORDER enum repo_state */
static const char *const repo_why[N_REPO_STATES] = {
    "in",
    "over the budget",
    "larger than 4 MiB",
    "binary",
    "not UTF-8",
    "named with a backslash or control characters or not in UTF-8",
    "symbolic link",
    "no regular file",
    "not readable",
    "too deep",
};

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct repo_file *)a)->path, ((const struct repo_file *)b)->path);
}

static int by_size(const void *a, const void *b)
{
    const struct repo_file *x = a, *y = b;
    return x->bytes != y->bytes ? (x->bytes < y->bytes ? -1 : 1) : by_path(a, b);
}

/* ------------------------------------------------------------------ choosing */

/* A file that is gone, changed its kind or cannot be read is left out; only memory is an error. */
static int read_text(const struct repo *r, struct repo_file *f, char **text, size_t *len,
                     dsv4_err *err)
{
    struct stat st;
    dsv4_err why;
    int fd = openat(r->fd, f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    int rc = fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) ? DSV4_REFUSED : 0;
    if (rc == 0)
        rc = file_read_fd(fd, f->path, REPO_FILE_BYTES, text, len, &why);
    if (fd >= 0)
        close(fd);
    if (rc == DSV4_NO_MEMORY) {
        *err = why;
        return rc;
    }
    if (rc != 0)
        f->state = REPO_UNREADABLE;
    return 0;
}

bool repo_is_utf8(const char *text, size_t len)
{
    dsv4_utf8 u = {0};
    char out[3 * 4096 + 9];
    size_t same = 0;
    for (size_t at = 0, n; at < len; at += n) {
        n = len - at < 4096 ? len - at : 4096;
        size_t m = dsv4_utf8_push(&u, text + at, n, out);
        if (m > len - same || memcmp(out, text + same, m) != 0)
            return false;
        same += m;
    }
    return same == len;
}

/* The part of the prompt that a file is, and its tokens; or why it is none. */
static int take(const struct repo *r, struct repo_file *f, const dsv4_tokenizer *t, dsv4_err *err)
{
    char *text = NULL;
    size_t len = 0;
    int32_t *ids = NULL;
    TRY(read_text(r, f, &text, &len, err));
    if (f->state != REPO_IN)
        return 0;
    int rc = 0;
    if (memchr(text, 0, len)) {
        f->state = REPO_BINARY;
    } else if (!repo_is_utf8(text, len)) {
        f->state = REPO_NOT_UTF8;
    } else {
        rc = bytes_printf(&f->prompt, err, "File: %s\n", f->path);
        if (rc == 0)
            rc = bytes_add(&f->prompt, text, len, err);
        if (rc == 0)
            rc = bytes_text(&f->prompt, len > 0 && text[len - 1] != '\n' ? "\n\n" : "\n", err);
        if (rc == 0)
            rc = dsv4_encode(t, f->prompt.data, f->prompt.len, false, &ids, &f->tokens, err);
        dsv4_free(ids);
    }
    free(text);
    return rc;
}

static void put_back(struct repo_file *f)
{
    f->state = REPO_OVER;
    f->tokens = 0;
    free(f->prompt.data);
    f->prompt = (struct bytes){0};
}

int repo_choose(struct repo *r, struct program *p, const dsv4_tokenizer *t, size_t budget,
                dsv4_err *err)
{
    bool full = false;
    r->budget = budget;
    if (r->n > 0)
        qsort(r->file, r->n, sizeof *r->file, by_size);
    for (size_t i = 0; i < r->n; i++) {
        struct repo_file *f = &r->file[i];
        if (f->state != REPO_IN)
            continue;
        if (interrupted())
            return err_set(err, DSV4_INTERRUPTED, "interrupted");
        status_show(&p->term, "counting the tokens of file %zu of %zu", i + 1, r->n);
        if (!full)
            TRY(take(r, f, t, err));
        if (f->state != REPO_IN)
            continue;
        full = full || f->tokens > budget - r->tokens;
        if (full) {
            put_back(f);
        } else {
            r->tokens += f->tokens;
            r->n_in++;
        }
    }
    if (r->n > 0)
        qsort(r->file, r->n, sizeof *r->file, by_path);
    status_clear(&p->term);
    return 0;
}

int repo_prompt(const struct repo *r, struct bytes *to, dsv4_err *err)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->file[i].state == REPO_IN)
            TRY(bytes_add(to, r->file[i].prompt.data, r->file[i].prompt.len, err));
    return 0;
}

/* ------------------------------------------------------------------ telling */

static int by_tokens(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return x < y ? 1 : -(x > y);
}

/* The least number of tokens that is shown, if `rows` files are. */
static size_t least_shown(const struct repo *r, size_t rows)
{
    size_t *tokens, n = 0, least = 0;
    if (r->n_in <= rows || mem_alloc(&tokens, r->n_in, sizeof *tokens, "tokens", NULL) != 0)
        return 0;
    for (size_t i = 0; i < r->n; i++)
        if (r->file[i].state == REPO_IN)
            tokens[n++] = r->file[i].tokens;
    qsort(tokens, n, sizeof *tokens, by_tokens);
    least = tokens[rows - 1];
    free(tokens);
    return least;
}

/* A name of the folder's owner's choice on one line: control characters are shown as \xNN. */
static void put_path(struct stream *s, const char *path)
{
    for (; *path; path++)
        if ((unsigned char)*path < 0x20 || *path == 0x7f)
            stream_printf(s, "\\x%02x", (unsigned)*path);
        else
            stream_foreign(s, path, 1);
    stream_foreign_end(s);
}

/* "  left out, binary: a.png, b.png and 12 more" */
static void report_state(const struct repo *r, struct stream *s, enum repo_state state)
{
    enum { NAMED = 3 };
    size_t n = 0;
    for (size_t i = 0; i < r->n; i++) {
        if (r->file[i].state != state || ++n > NAMED)
            continue;
        if (n == 1)
            stream_printf(s, "  left out, %s: ", repo_why[state]);
        else
            stream_text(s, ", ");
        put_path(s, r->file[i].path);
    }
    if (n > NAMED)
        stream_printf(s, " and %zu more", n - NAMED);
    if (n > 0)
        stream_text(s, "\n");
}

void repo_report(const struct repo *r, struct stream *s, size_t rows)
{
    size_t least = least_shown(r, rows), shown = 0, tokens = 0;
    put_path(s, r->dir);
    stream_printf(s, ": %zu file%s, %zu of %zu tokens", r->n_in, r->n_in == 1 ? "" : "s", r->tokens,
                  r->budget);
    if (r->n_ignored > 0)
        stream_printf(s, "; %zu ignored", r->n_ignored);
    stream_text(s, "\n");
    for (size_t i = 0; i < r->n; i++) {
        const struct repo_file *f = &r->file[i];
        if (f->state != REPO_IN || f->tokens < least || shown == rows)
            continue;
        stream_printf(s, "  %8zu  ", f->tokens);
        put_path(s, f->path);
        stream_text(s, "\n");
        tokens += f->tokens;
        shown++;
    }
    if (shown < r->n_in)
        stream_printf(s, "  %8zu  in %zu smaller ones\n", r->tokens - tokens, r->n_in - shown);
    for (enum repo_state state = REPO_IN + 1; state < N_REPO_STATES; state++)
        report_state(r, s, state);
}

/* A path as JSON can hold it. */
static json_t *path_json(const char *path)
{
    size_t len = strlen(path);
    char *out = malloc(3 * len + 18);
    dsv4_utf8 u = {0};
    if (!out)
        return NULL;
    size_t n = dsv4_utf8_push(&u, path, len, out);
    n += dsv4_utf8_flush(&u, out + n);
    json_t *v = json_stringn(out, n);
    free(out);
    return v;
}

static json_t *file_json(const struct repo_file *f)
{
    if (f->state == REPO_IN)
        return json_pack("{s:o, s:I, s:I}", "path", path_json(f->path), "bytes",
                         (json_int_t)f->bytes, "tokens", (json_int_t)f->tokens);
    return json_pack("{s:o, s:I, s:s}", "path", path_json(f->path), "bytes", (json_int_t)f->bytes,
                     "why", repo_why[f->state]);
}

json_t *repo_json(const struct repo *r)
{
    json_t *in = json_array(), *out = json_array();
    bool ok = in && out;
    for (size_t i = 0; ok && i < r->n; i++) {
        const struct repo_file *f = &r->file[i];
        ok = json_array_append_new(f->state == REPO_IN ? in : out, file_json(f)) == 0;
    }
    if (!ok) {
        json_decref(in);
        json_decref(out);
        return NULL;
    }
    return json_pack("{s:o, s:I, s:I, s:o, s:o, s:I}", "directory", path_json(r->dir), "budget",
                     (json_int_t)r->budget, "tokens", (json_int_t)r->tokens, "files", in,
                     "left_out", out, "ignored", (json_int_t)r->n_ignored);
}

/* ------------------------------------------------------------------ in front of a message */

size_t repo_budget(const struct program *p, size_t ctx)
{
    return p->a.repo_budget ? p->a.repo_budget : ctx - ctx / 4;
}

int repo_in_front(struct repo *r, struct program *p, const dsv4_engine *e, struct bytes *message,
                  dsv4_err *err)
{
    enum { ROWS = 20 };
    struct bytes whole = {0};
    dsv4_err later;
    TRY(repo_choose(r, p, dsv4_engine_tokenizer(e), repo_budget(p, dsv4_engine_ctx(e)), err));
    if (!p->a.quiet) {
        repo_report(r, &p->term.err, ROWS);
        stream_flush(&p->term.err, &later);
    }
    if (r->n_in == 0)
        return err_set(err, DSV4_USAGE, "%s: no file of it can be sent (%zu found, %zu ignored)",
                       r->dir, r->n, r->n_ignored);
    int rc = repo_prompt(r, &whole, err);
    if (rc == 0)
        rc = bytes_add(&whole, message->data, message->len, err);
    if (rc != 0) {
        free(whole.data);
        return rc;
    }
    free(message->data);
    *message = whole;
    return 0;
}
