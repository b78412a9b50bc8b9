/* What reaches the user: standard output and error as buffered streams, foreign text made safe for a
 * terminal, one status line (counter, progress) that comes and goes. Knows nothing about models. */
#include "tools.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ safe text */

/* Characters that are invisible or change the order of others: formats, fillers, tags, line and
 * paragraph separators. Ascending; last included. The emoji variation selectors (U+FE0E, U+FE0F)
 * are not among them, joiners are judged by what stands before. */
static const struct {
    uint32_t first, last;
} hidden[] = {
    {0x80, 0x9f},     {0xad, 0xad},       {0x34f, 0x34f},     {0x61c, 0x61c},     {0x115f, 0x1160},
    {0x17b4, 0x17b5}, {0x180b, 0x180f},   {0x200b, 0x200b},   {0x200e, 0x200f},   {0x2028, 0x202e},
    {0x2060, 0x206f}, {0x3164, 0x3164},   {0xfe00, 0xfe0d},   {0xfeff, 0xfeff},   {0xffa0, 0xffa0},
    {0xfff0, 0xfffb}, {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0000, 0xe0fff},
};

static bool is_hidden(uint32_t c)
{
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (c >= hidden[i].first && c <= hidden[i].last)
            return true;
    return false;
}

static uint32_t decode(const unsigned char *p, size_t left, size_t *size)
{
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    uint32_t c = n == 1 ? p[0] : p[0] & (0xffu >> (n + 1));
    if (n > left) { /* callers hand in whole characters; never read behind the end all the same */
        *size = left;
        return 0xfeff;
    }
    for (size_t i = 1; i < n; i++)
        c = c << 6 | (p[i] & 0x3fu);
    *size = n;
    return c;
}

size_t safe_text(const char *text, size_t len, bool *wide, char *out)
{
    size_t o = 0;
    for (size_t i = 0, size; i < len; i += size) {
        uint32_t c = decode((const unsigned char *)text + i, len - i, &size);
        bool joiner = c == 0x200c || c == 0x200d;
        char shown[16];
        int n = 0;
        if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            n = snprintf(shown, sizeof shown, "\\x%02x", c);
        else if (is_hidden(c) || (joiner && !*wide))
            n = snprintf(shown, sizeof shown, "<U+%04X>", c);
        *wide = n == 0 && c >= 0x80 && !joiner;
        if (n > 0)
            memcpy(out + o, shown, (size_t)n);
        else
            memcpy(out + o, text + i, size);
        o += n > 0 ? (size_t)n : size;
    }
    return o;
}

/* ------------------------------------------------------------------ streams */

static void stream_open(struct stream *s, int fd, const char *shown)
{
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    *s = (struct stream){.fd = fd, .shown = shown, .tty = isatty(fd), .line_start = true};
    s->colour = s->tty && term && *term && strcmp(term, "dumb") != 0 && !(no_color && *no_color);
}

void terminal_open(struct terminal *t, const char *program)
{
    *t = (struct terminal){.program = program};
    stream_open(&t->out, STDOUT_FILENO, "standard output");
    stream_open(&t->err, STDERR_FILENO, "standard error");
}

static void drain(struct stream *s)
{
    if (s->rc == 0 && s->n > 0)
        s->rc = file_write_all(s->fd, s->shown, s->buffer, s->n, &s->err);
    s->n = 0;
}

int stream_flush(struct stream *s, dsv4_err *err)
{
    drain(s);
    if (s->rc != 0)
        *err = s->err;
    return s->rc;
}

void stream_bytes(struct stream *s, const char *data, size_t len)
{
    if (len > 0)
        s->line_start = data[len - 1] == '\n';
    while (len > 0) {
        size_t room = sizeof s->buffer - s->n, n = len < room ? len : room;
        memcpy(s->buffer + s->n, data, n);
        s->n += n;
        data += n;
        len -= n;
        if (s->n == sizeof s->buffer)
            drain(s);
    }
}

void stream_text(struct stream *s, const char *text)
{
    stream_bytes(s, text, strlen(text));
}

void stream_printf(struct stream *s, const char *format, ...)
{
    char text[4096];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    if (n > 0)
        stream_bytes(s, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

void stream_foreign(struct stream *s, const char *text, size_t len)
{
    if (!s->tty) {
        stream_bytes(s, text, len);
        return;
    }
    enum { PART = 256 };
    char whole[3 * PART + 9], safe[SAFE_ROOM(sizeof whole)];
    while (len > 0) {
        size_t n = len < PART ? len : PART;
        size_t w = dsv4_utf8_push(&s->utf8, text, n, whole);
        stream_bytes(s, safe, safe_text(whole, w, &s->wide, safe));
        text += n;
        len -= n;
    }
}

void stream_foreign_end(struct stream *s)
{
    char whole[9], safe[SAFE_ROOM(sizeof whole)];
    if (s->tty)
        stream_bytes(s, safe, safe_text(whole, dsv4_utf8_flush(&s->utf8, whole), &s->wide, safe));
    s->wide = false;
}

void stream_dim(struct stream *s, bool on)
{
    bool start = s->line_start;
    if (s->colour)
        stream_text(s, on ? "\x1b[2m" : "\x1b[0m");
    s->line_start = start;
}

/* ------------------------------------------------------------------ the status line */

void status_show(struct terminal *t, const char *format, ...)
{
    double now = clock_seconds();
    if (t->quiet || !t->err.colour || (t->status_on && now - t->status_at < 0.05))
        return;
    char text[256];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    drain(&t->out);
    stream_printf(&t->err, "\r\x1b[K\x1b[2m%s\x1b[0m", text);
    drain(&t->err);
    t->status_on = true;
    t->status_at = now;
}

struct bar status_bar(uint64_t done, uint64_t total)
{
    struct bar b = {0};
    const size_t width = sizeof b.text - 1;
    size_t full = total > 0 ? (size_t)((double)done / (double)total * (double)width) : width;
    for (size_t i = 0; i < width; i++)
        b.text[i] = i < full ? '#' : '.';
    return b;
}

void status_clear(struct terminal *t)
{
    if (!t->status_on)
        return;
    stream_text(&t->err, "\r\x1b[K");
    t->err.line_start = true;
    drain(&t->err);
    t->status_on = false;
}

void complain(struct terminal *t, const char *format, ...)
{
    dsv4_err line; /* makes control characters visible */
    char text[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    err_set(&line, DSV4_FAILED, "%s", text);
    status_clear(t);
    drain(&t->out);
    bool shared = t->out.tty && t->err.tty; /* one screen */
    if (!t->err.line_start || (shared && !t->out.line_start))
        stream_text(&t->err, "\n");
    stream_text(&t->err, t->program);
    stream_text(&t->err, ": ");
    stream_foreign(&t->err, line.text, strlen(line.text));
    stream_foreign_end(&t->err);
    stream_text(&t->err, "\n");
    drain(&t->err);
    if (shared)
        t->out.line_start = true;
}
