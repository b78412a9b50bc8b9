/* What comes in and goes out as files: prompts as UTF-8, token ids, chunk lists; outputs written
 * aside and renamed. */
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ text */

int text_repair(struct program *p, const char *what, const char *text, size_t len, char **out,
                size_t *n, dsv4_err *err)
{
    size_t room;
    char *to = NULL;
    if (!size_mul(len, 3, &room) || !size_add(room, 16, &room))
        return err_memory(err, len, what);
    TRY(mem_alloc(&to, room, 1, what, err));
    dsv4_utf8 u = {0};
    size_t o = dsv4_utf8_push(&u, text, len, to);
    o += dsv4_utf8_flush(&u, to + o);
    to[o] = 0;
    if (o != len || memcmp(to, text, len) != 0)
        complain(&p->term, "%s is not UTF-8; the broken parts count as U+FFFD", what);
    *out = to;
    *n = o;
    return 0;
}

static int join_words(struct program *p, int first, struct bytes *b, dsv4_err *err)
{
    for (int i = first; i < p->argc; i++) {
        if (i > first)
            TRY(bytes_text(b, " ", err));
        TRY(bytes_text(b, p->argv[i], err));
    }
    return bytes_add(b, "", 0, err);
}

static int read_files(struct program *p, struct bytes *b, dsv4_err *err)
{
    for (size_t i = 0; i < p->a.files.n; i++) {
        char *text;
        size_t len;
        TRY(file_read(p->a.files.item[i], TEXT_LIMIT, &text, &len, err));
        int rc = bytes_add(b, text, len, err);
        free(text);
        TRY(rc);
    }
    return bytes_add(b, "", 0, err);
}

int input_text(struct program *p, int first, char **text, size_t *len, dsv4_err *err)
{
    struct bytes b = {0};
    int rc;
    const char *what = "the text";
    if (p->argc > first && p->a.files.n > 0)
        return err_set(err, DSV4_USAGE, "a text and --file; one of them is enough");
    if (p->argc > first) {
        rc = join_words(p, first, &b, err);
    } else if (p->a.files.n > 0) {
        rc = read_files(p, &b, err);
        what = p->a.files.item[0];
    } else if (isatty(STDIN_FILENO)) {
        return err_set(err, DSV4_USAGE,
                       "no text: give it on the command line, with --file, or "
                       "through a pipe");
    } else {
        rc = file_read("-", TEXT_LIMIT, &b.data, &b.len, err);
        what = "standard input";
    }
    if (rc == 0)
        rc = text_repair(p, what, b.data, b.len, text, len, err);
    free(b.data);
    return rc;
}

/* ------------------------------------------------------------------ numbers */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The word at text[*at), for messages: its first bytes. */
static const char *shown_word(const char *text, size_t len, size_t at, char out[24])
{
    size_t n = 0;
    while (n < 20 && at + n < len && !is_space(text[at + n]) && text[at + n] != 0) {
        out[n] = text[at + n];
        n++;
    }
    out[n] = 0;
    return out;
}

int ids_parse(const char *text, size_t len, size_t vocab, const char *where, int32_t **ids,
              size_t *n, dsv4_err *err)
{
    int32_t *v = NULL;
    size_t cap = 0, count = 0;
    char word[24];
    for (size_t i = 0; i < len;) {
        if (is_space(text[i])) {
            i++;
            continue;
        }
        size_t begin = i;
        uint64_t id = 0;
        while (i < len && text[i] >= '0' && text[i] <= '9' && id <= INT32_MAX)
            id = id * 10 + (uint64_t)(text[i++] - '0');
        int rc = 0;
        if (i == begin || (i < len && !is_space(text[i]) && id <= INT32_MAX))
            rc = err_set(err, DSV4_REFUSED, "%s: \"%s\" (number %zu) is no token id", where,
                         shown_word(text, len, begin, word), count + 1);
        else if (id >= vocab)
            rc = err_set(err, DSV4_REFUSED,
                         "%s: id %s (number %zu) is out of range, ids are 0 to %zu", where,
                         shown_word(text, len, begin, word), count + 1, vocab - 1);
        else
            rc = mem_grow(&v, &cap, count + 1, sizeof *v, "token ids", err);
        if (rc != 0) {
            free(v);
            return rc;
        }
        v[count++] = (int32_t)id;
    }
    *ids = v;
    *n = count;
    return 0;
}

int ids_read(const char *path, size_t vocab, int32_t **ids, size_t *n, dsv4_err *err)
{
    char *text;
    size_t len;
    TRY(file_read(path, TEXT_LIMIT, &text, &len, err));
    int rc =
        ids_parse(text, len, vocab, strcmp(path, "-") == 0 ? "standard input" : path, ids, n, err);
    free(text);
    return rc;
}

int chunks_parse(const char *text, size_t **chunk, size_t *n, dsv4_err *err)
{
    size_t *v = NULL, cap = 0, count = 0;
    for (const char *p = text; p && *p;) {
        char word[16];
        size_t len = strcspn(p, ",");
        uint64_t u = 0;
        bool ok = len > 0 && len < sizeof word;
        if (ok) {
            memcpy(word, p, len);
            word[len] = 0;
            ok =
                opt_number_u64(word, &u) && u > 0 && u <= UINT32_MAX && (p[len] == 0 || p[len + 1]);
        }
        int rc = ok ? mem_grow(&v, &cap, count + 1, sizeof *v, "a list of chunks", err)
                    : err_set(err, DSV4_USAGE, "--chunks: \"%s\" is no list like 3,1,17", text);
        if (rc != 0) {
            free(v);
            return rc;
        }
        v[count++] = (size_t)u;
        p += len + (p[len] == ',');
    }
    *chunk = v;
    *n = count;
    return 0;
}

/* ------------------------------------------------------------------ outputs */

/* The file a link leads to, so that a rename does not replace the link itself. */
static int resolve(const char *path, char **out, dsv4_err *err)
{
    char *real = realpath(path, NULL);
    if (!real)
        real = strdup(path);
    if (!real)
        return err_memory(err, strlen(path) + 1, "a path");
    *out = real;
    return 0;
}

/* Written aside it is private at first; an output is as public as the one before it, or as the user's mask says. */
static int open_aside(struct sink *s, const char *path, dsv4_err *err)
{
    TRY(file_aside_open(&s->file, path, err));
    mode_t mask = umask(0);
    umask(mask);
    struct stat st;
    mode_t mode = stat(path, &st) == 0 ? st.st_mode & 0777 : 0666 & ~mask;
    (void)!fchmod(s->file.fd, mode);
    return 0;
}

/* `real`: where links lead to. A device and the like gets its bytes as they come. */
static int open_output(struct sink *s, const char *real, const char *path, dsv4_err *err)
{
    struct stat st;
    if (stat(real, &st) != 0 || S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))
        return open_aside(s, real, err);
    if (!(s->file.path = strdup(path)))
        return err_memory(err, strlen(path) + 1, "a path");
    if ((s->file.fd = open(real, O_WRONLY | O_CLOEXEC | O_NOCTTY)) >= 0)
        return 0;
    int rc = err_errno(err, DSV4_FAILED, path, "open");
    free(s->file.path);
    return rc;
}

int sink_open(struct sink *s, const char *path, dsv4_err *err)
{
    *s = (struct sink){.file.fd = -1};
    char *real = NULL;
    if (!*path)
        return err_set(err, DSV4_USAGE, "the name of the file to write is empty");
    if (strcmp(path, "-") == 0) {
        s->file.fd = STDOUT_FILENO;
        s->file.path = strdup("standard output");
        return s->file.path ? 0 : err_memory(err, 16, "a path");
    }
    TRY(resolve(path, &real, err));
    int rc = open_output(s, real, path, err);
    free(real);
    return rc;
}

int sink_write(struct sink *s, const void *data, size_t len, dsv4_err *err)
{
    return file_write_all(s->file.fd, s->file.path, data, len, err);
}

int sink_close(struct sink *s, int rc, dsv4_err *err)
{
    if (s->file.aside)
        return file_aside_close(&s->file, rc, err);
    if (s->file.fd != STDOUT_FILENO && close(s->file.fd) != 0 && rc == 0)
        rc = err_errno(err, DSV4_FAILED, s->file.path, "close");
    free(s->file.path);
    return rc;
}

int sink_file(const char *path, const void *data, size_t len, dsv4_err *err)
{
    struct sink s;
    TRY(sink_open(&s, path, err));
    return sink_close(&s, sink_write(&s, data, len, err), err);
}

/* ------------------------------------------------------------------ JSON */

int json_made(json_t *value, dsv4_err *err)
{
    return value ? 0 : err_set(err, DSV4_NO_MEMORY, "out of memory: JSON");
}

char *json_text(const json_t *value, size_t flags)
{
    size_t len = json_dumpb(value, NULL, 0, flags);
    char *text = len ? malloc(len + 1) : NULL;
    if (!text || json_dumpb(value, text, len, flags) != len) {
        free(text);
        return NULL;
    }
    text[len] = 0;
    return text;
}

int json_print(struct program *p, json_t *value, dsv4_err *err)
{
    TRY(json_made(value, err));
    char *text = json_text(value, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(value);
    if (!text)
        return err_set(err, DSV4_NO_MEMORY, "out of memory: JSON");
    stream_foreign(&p->term.out, text, strlen(text));
    stream_foreign_end(&p->term.out);
    stream_text(&p->term.out, "\n");
    free(text);
    return stream_flush(&p->term.out, err);
}
