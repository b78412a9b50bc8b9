/* Errors are values: a status and one message. Messages may quote names from hostile files, so
 * control bytes are written visibly before they reach anybody's terminal. */
#include "system.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Copies `raw` to err->text; control bytes become \xNN, ill-formed UTF-8 is left to the writer of
 * the text (a terminal program shows it safely), a cut at the end never splits a character. */
static void store_text(dsv4_err *err, const char *raw)
{
    static const char hex[] = "0123456789abcdef";
    size_t o = 0, room = sizeof err->text - 1;
    for (const unsigned char *p = (const unsigned char *)raw; *p; p++) {
        bool control = *p < 0x20 || *p == 0x7f;
        size_t need = control ? 4 : 1;
        if (o + need > room)
            break;
        if (control) {
            err->text[o++] = '\\';
            err->text[o++] = 'x';
            err->text[o++] = hex[*p >> 4];
            err->text[o++] = hex[*p & 15];
        } else {
            err->text[o++] = (char)*p;
        }
    }
    /* A cut may have split the last character: its lead byte says how long it should be. */
    size_t lead = o;
    while (lead > 0 && o - lead < 3 && ((unsigned char)err->text[lead - 1] & 0xC0) == 0x80)
        lead--;
    if (lead > 0 && ((unsigned char)err->text[lead - 1] & 0xC0) == 0xC0) {
        unsigned char c = (unsigned char)err->text[lead - 1];
        size_t len = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
        if (lead - 1 + len > o)
            o = lead - 1;
    }
    err->text[o] = 0;
}

int err_set(dsv4_err *err, int status, const char *format, ...)
{
    if (!err)
        return status;
    char raw[sizeof err->text];
    va_list ap;
    va_start(ap, format);
    vsnprintf(raw, sizeof raw, format, ap);
    va_end(ap);
    err->status = status;
    store_text(err, raw);
    return status;
}

int err_errno(dsv4_err *err, int status, const char *path, const char *what)
{
    int e = errno;
    char reason[128];
#if defined(__GLIBC__) && defined(_GNU_SOURCE)
    const char *text = strerror_r(e, reason, sizeof reason);
#else
    const char *text = strerror_r(e, reason, sizeof reason) == 0 ? reason : "unknown error";
#endif
    return err_set(err, e == ENOMEM ? DSV4_NO_MEMORY : status, "%s: cannot %s: %s", path, what,
                   text);
}

int err_memory(dsv4_err *err, uint64_t bytes, const char *what)
{
    return err_set(err, DSV4_NO_MEMORY, "out of memory: %llu bytes for %s",
                   (unsigned long long)bytes, what);
}
