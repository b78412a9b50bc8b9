/* Writes the values of jv.h as json.dumps(x, ensure_ascii=False) does. */
#include "jv.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t jv_escape(unsigned char c, char *out)
{
    static const char hex[] = "0123456789abcdef";
    static const char short_form[] = "\b\f\n\r\t\"\\", letter[] = "bfnrt\"\\";
    const char *s = c ? strchr(short_form, (char)c) : NULL;
    if (s) {
        out[0] = '\\';
        out[1] = letter[s - short_form];
        return 2;
    }
    if (c < 0x20) {
        memcpy(out, "\\u00", 4);
        out[4] = hex[c >> 4];
        out[5] = hex[c & 15];
        return 6;
    }
    out[0] = (char)c;
    return 1;
}

static bool plain(unsigned char c)
{
    return c >= 0x20 && c != '"' && c != '\\';
}

int jv_write_string(struct bytes *out, const char *text, size_t len, dsv4_err *err)
{
    TRY(bytes_add(out, "\"", 1, err));
    for (size_t i = 0, run; i < len; i = run + 1) {
        for (run = i; run < len && plain((unsigned char)text[run]); run++)
            ;
        TRY(bytes_add(out, text + i, run - i, err));
        if (run < len) {
            char escape[6];
            TRY(bytes_add(out, escape, jv_escape((unsigned char)text[run], escape), err));
        }
    }
    return bytes_add(out, "\"", 1, err);
}

/* ------------------------------------------------------------------ doubles */

/* v > 0 as n digits d.ddd and a decimal exponent, correctly rounded. */
static int scientific(double v, int n, char *digit)
{
    char text[40];
    snprintf(text, sizeof text, "%.*e", n - 1, v);
    const char *e = strchr(text, 'e');
    digit[0] = text[0];
    memcpy(digit + 1, e - (n - 1),
           (size_t)(n - 1)); /* behind the point, whatever that looks like */
    digit[n] = 0;
    return atoi(e + 1);
}

static double value_of(const char *digit, int exponent)
{
    char text[48];
    snprintf(text, sizeof text, "%se%d", digit, exponent - (int)strlen(digit) + 1);
    return strtod(text, NULL);
}

/* The next larger number of as many digits; false when a digit would have to be added. */
static bool next_up(char *digit)
{
    size_t i = strlen(digit);
    while (i > 0 && digit[i - 1] == '9')
        digit[--i] = '0';
    if (i == 0)
        return false;
    digit[i - 1]++;
    return true;
}

/* Fewest digits that read back as v > 0. Up to 15 digits survive a double in both directions, so
 * rounding to 15 and dropping zeros finds them; below the normal range that does not hold and every
 * count is tried. Just above a power of two the gap is wider than below: there the digits one up may
 * read back although the nearer ones do not. */
static int shortest(double v, char *digit)
{
    for (int n = v < 2.2250738585072014e-308 ? 1 : 15; n < 17; n++) {
        int exponent = scientific(v, n, digit);
        if (value_of(digit, exponent) == v)
            return exponent;
        if (next_up(digit) && value_of(digit, exponent) == v)
            return exponent;
    }
    return scientific(v, 17, digit);
}

/* Digits with a point: 0.001, 12.5, 1200.0 */
static void fixed_form(char *out, const char *digit, int exponent)
{
    int n = (int)strlen(digit);
    char *o = out;
    for (int i = exponent; i < 0; i++) {
        *o++ = '0';
        if (i == exponent)
            *o++ = '.';
    }
    for (int i = 0; i < n || i <= exponent; i++) {
        *o++ = i < n ? digit[i] : '0';
        if (i == exponent)
            *o++ = '.';
    }
    if (o[-1] == '.')
        *o++ = '0';
    *o = 0;
}

void jv_double(double v, char *out)
{
    if (isnan(v)) {
        memcpy(out, "NaN", 4);
        return;
    }
    if (signbit(v))
        *out++ = '-';
    v = fabs(v);
    if (isinf(v)) {
        memcpy(out, "Infinity", 9);
        return;
    }
    char digit[24] = "0";
    int exponent = v > 0 ? shortest(v, digit) : 0;
    for (size_t n = strlen(digit); n > 1 && digit[n - 1] == '0';)
        digit[--n] = 0;
    if (exponent >= -4 && exponent < 16) {
        fixed_form(out, digit, exponent);
        return;
    }
    *out++ = digit[0];
    if (digit[1])
        *out++ = '.';
    size_t rest = strlen(digit + 1);
    memcpy(out, digit + 1, rest);
    snprintf(out + rest, 6, "e%c%02u", exponent < 0 ? '-' : '+', (unsigned)abs(exponent) % 1000);
}

/* The double a JSON number stands for. The program may have set a locale with another decimal point. */
static double number(const char *text, size_t len)
{
    char copy[JV_MAX_DIGITS + 64];
    const char *point = localeconv()->decimal_point;
    size_t o = 0;
    for (size_t i = 0; i < len && o < JV_MAX_DIGITS + 32; i++) {
        if (text[i] != '.') {
            copy[o++] = text[i];
            continue;
        }
        for (const char *p = point; *p && o < JV_MAX_DIGITS + 32; p++)
            copy[o++] = *p;
    }
    copy[o] = 0;
    return strtod(copy, NULL);
}

static int write_number(struct bytes *out, const struct jv *v, dsv4_err *err)
{
    if (v->integer) {
        bool minus_zero = v->len == 2 && v->text[0] == '-' && v->text[1] == '0';
        return bytes_add(out, v->text + minus_zero, v->len - minus_zero, err);
    }
    char text[40];
    jv_double(number(v->text, v->len), text);
    return bytes_text(out, text, err);
}

/* ------------------------------------------------------------------ values */

static int write_one(struct bytes *out, const struct jv *v, dsv4_err *err)
{
    switch (v->type) {
    case JV_STRING: return jv_write_string(out, v->text, v->len, err);
    case JV_NUMBER: return write_number(out, v, err);
    case JV_LIST: return bytes_text(out, v->first ? "[" : "[]", err);
    case JV_OBJECT: return bytes_text(out, v->first ? "{" : "{}", err);
    case JV_NULL:
    case JV_TRUE:
    case JV_FALSE: break;
    }
    return bytes_add(out, v->text, v->len, err);
}

int jv_write(struct bytes *out, const struct jv *root, bool compact, dsv4_err *err)
{
    const struct jv *v = root;
    for (;;) {
        if (v != root && v->parent->type == JV_OBJECT) {
            TRY(jv_write_string(out, v->key, v->key_len, err));
            TRY(bytes_text(out, compact ? ":" : ": ", err));
        }
        TRY(write_one(out, v, err));
        if (v->first) {
            v = v->first;
            continue;
        }
        while (v != root && !v->next) {
            v = v->parent;
            TRY(bytes_text(out, v->type == JV_OBJECT ? "}" : "]", err));
        }
        if (v == root)
            return 0;
        TRY(bytes_text(out, compact ? "," : ", ", err));
        v = v->next;
    }
}
