/* UTF-8: what is well-formed, what an ill-formed sequence becomes (one U+FFFD for each maximal
 * subpart, as Unicode recommends and WHATWG decoders do), and the display of bytes as they stream. */
#include "text.h"

#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd"

/* How many bytes the character that begins with b has, and the range of its second byte; 0: none
 * begins so. */
static unsigned lead(unsigned char b, unsigned char *low, unsigned char *high)
{
    *low = 0x80;
    *high = 0xbf;
    if (b < 0x80)
        return 1;
    if (b < 0xc2)
        return 0;
    if (b < 0xe0)
        return 2;
    if (b < 0xf0) {
        if (b == 0xe0)
            *low = 0xa0; /* shorter forms exist */
        if (b == 0xed)
            *high = 0x9f; /* surrogates */
        return 3;
    }
    if (b > 0xf4)
        return 0;
    if (b == 0xf0)
        *low = 0x90;
    if (b == 0xf4)
        *high = 0x8f; /* above U+10FFFF */
    return 4;
}

enum utf8_kind utf8_next(const char *text, size_t len, size_t *size)
{
    const unsigned char *p = (const unsigned char *)text;
    unsigned char low, high;
    unsigned n = lead(p[0], &low, &high);
    *size = 1;
    if (n == 0)
        return UTF8_BROKEN;
    for (unsigned i = 1; i < n; i++) {
        if (i == len)
            return UTF8_OPEN;
        if (p[i] < low || p[i] > high)
            return UTF8_BROKEN;
        low = 0x80;
        high = 0xbf;
        *size = i + 1;
    }
    return UTF8_WHOLE;
}

/* Bytes of the well-formed text at the beginning. */
static size_t well_formed(const char *text, size_t len)
{
    size_t at = 0, size;
    while (at < len) {
        uint64_t eight;
        while (len - at >= 8) {
            memcpy(&eight, text + at, 8);
            if (eight & 0x8080808080808080u)
                break;
            at += 8;
        }
        if (at == len || utf8_next(text + at, len - at, &size) != UTF8_WHOLE)
            break;
        at += size;
    }
    return at;
}

bool utf8_valid(const char *text, size_t len)
{
    return well_formed(text, len) == len;
}

int utf8_repair(struct bytes *out, const char *text, size_t len, dsv4_err *err)
{
    while (len > 0) {
        size_t good = well_formed(text, len), bad;
        TRY(bytes_add(out, text, good, err));
        text += good;
        len -= good;
        if (len == 0)
            break;
        utf8_next(text, len, &bad); /* broken or open: one replacement either way */
        TRY(bytes_text(out, REPLACEMENT, err));
        text += bad;
        len -= bad;
    }
    return 0;
}

size_t utf8_encode(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* ------------------------------------------------------------------ display of a stream */

static size_t put(char *out, const void *bytes, size_t n)
{
    memcpy(out, bytes, n);
    return n;
}

/* Half a surrogate is broken as soon as its second byte is there. The reference's decoder holds these
 * two bytes back all the same until another one comes, and so do we. */
static bool half_surrogate(const char *text, size_t len)
{
    return len == 2 && (unsigned char)text[0] == 0xed && (unsigned char)text[1] >= 0xa0 &&
           (unsigned char)text[1] <= 0xbf;
}

/* The held bytes will not become a character. */
static size_t give_up_held(dsv4_utf8 *u, char *out)
{
    size_t n = put(out, REPLACEMENT, 3);
    if (half_surrogate((const char *)u->held, u->n_held))
        n += put(out + n, REPLACEMENT, 3);
    u->n_held = 0;
    return n;
}

/* Takes bytes until the held beginning of a character is whole or proved broken; returns how many it
 * took. The byte that proves it broken is left for the caller: it may begin a character itself. */
static size_t finish_held(dsv4_utf8 *u, const char *bytes, size_t len, char *out, size_t *written)
{
    size_t taken = 0, size;
    const char *held = (const char *)u->held;
    while (u->n_held > 0 && taken < len) {
        u->held[u->n_held] = (unsigned char)bytes[taken];
        enum utf8_kind kind = utf8_next(held, u->n_held + 1, &size);
        if (kind == UTF8_BROKEN && !(half_surrogate(held, u->n_held + 1) && taken + 1 == len)) {
            *written += give_up_held(u, out + *written);
            break;
        }
        taken++;
        u->n_held++;
        if (kind == UTF8_WHOLE) {
            *written += put(out + *written, held, size);
            u->n_held = 0;
        }
    }
    return taken;
}

size_t dsv4_utf8_push(dsv4_utf8 *u, const char *bytes, size_t len, char *out)
{
    size_t written = 0;
    size_t at = finish_held(u, bytes, len, out, &written);
    while (at < len) {
        size_t good = well_formed(bytes + at, len - at), size;
        written += put(out + written, bytes + at, good);
        at += good;
        if (at == len)
            break;
        if (utf8_next(bytes + at, len - at, &size) == UTF8_OPEN ||
            half_surrogate(bytes + at, len - at)) {
            u->n_held = (unsigned)(len - at);
            memcpy(u->held, bytes + at, len - at);
            break;
        }
        written += put(out + written, REPLACEMENT, 3);
        at += size;
    }
    return written;
}

size_t dsv4_utf8_flush(dsv4_utf8 *u, char *out)
{
    return u->n_held ? give_up_held(u, out) : 0;
}
