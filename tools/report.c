/* A JSON value as a data sheet for people: one member a line, aligned; nested objects as headings;
 * lists of objects as tables. Bytes and parameters, told by the members' names, are written with
 * units. Knows no model: what the library tells is shown in the library's words. */
#include "tools.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLUMNS = 16, MAX_LEVEL = 6 };

static bool is_bytes(const char *key)
{
    return strstr(key, "bytes") || strcmp(key, "needed") == 0 || strcmp(key, "available") == 0;
}

static bool is_count(const char *key)
{
    return strstr(key, "parameters") || strcmp(key, "weights") == 0;
}

static int put_count(struct bytes *b, double n, dsv4_err *err)
{
    if (n >= 1e9)
        return bytes_printf(b, err, "%.4g billion", n * 1e-9);
    return bytes_printf(b, err, n >= 1e5 ? "%.4g million" : "%.0f", n >= 1e5 ? n * 1e-6 : n);
}

static int put_bytes(struct bytes *b, double n, dsv4_err *err)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    size_t u = 0;
    for (; n >= 1000 && u < 5; u++)
        n /= 1000;
    return bytes_printf(b, err, u ? "%.2f %s" : "%.0f %s", n, units[u]);
}

/* "n_layers" -> "n layers" */
static int put_key(struct bytes *b, const char *key, dsv4_err *err)
{
    for (; *key; key++)
        TRY(bytes_add(b, *key == '_' ? " " : key, 1, err));
    return 0;
}

static int put_scalar(struct bytes *b, const char *key, const json_t *v, dsv4_err *err)
{
    if (json_is_string(v))
        return bytes_add(b, json_string_value(v), json_string_length(v), err);
    if (json_is_true(v) || json_is_false(v))
        return bytes_text(b, json_is_true(v) ? "yes" : "no", err);
    if (json_is_number(v) && is_bytes(key))
        return put_bytes(b, json_number_value(v), err);
    if (json_is_number(v) && is_count(key))
        return put_count(b, json_number_value(v), err);
    if (json_is_integer(v))
        return bytes_printf(b, err, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    if (json_is_real(v))
        return bytes_printf(b, err, "%.6g", json_real_value(v));
    if (json_is_null(v) || !v)
        return bytes_text(b, "-", err);
    char *text = json_text(v, JSON_COMPACT | JSON_ENCODE_ANY); /* lists in lists */
    int rc = text ? bytes_text(b, text, err) : json_made(NULL, err);
    free(text);
    return rc;
}

/* An object in a cell: "BF16 1.05 MB, F32 12 B"; its members are what the cell's key says. */
static int put_pairs(struct bytes *b, const char *key, const json_t *v, dsv4_err *err)
{
    const char *name;
    json_t *member, *object = (json_t *)(uintptr_t)v;
    bool first = true;
    json_object_foreach(object, name, member)
    {
        TRY(bytes_printf(b, err, "%s%s ", first ? "" : ", ", name));
        TRY(put_scalar(b, key, member, err));
        first = false;
    }
    return 0;
}

static bool is_scalar(const json_t *v)
{
    return !json_is_object(v) && !json_is_array(v);
}

/* Scalars in one line, blanks between. */
static int put_list(struct bytes *b, const char *key, const json_t *v, dsv4_err *err)
{
    for (size_t i = 0; i < json_array_size(v); i++) {
        if (i)
            TRY(bytes_text(b, " ", err));
        TRY(put_scalar(b, key, json_array_get(v, i), err));
    }
    return bytes_text(b, json_array_size(v) ? "" : "-", err);
}

/* ------------------------------------------------------------------ tables */

struct table {
    const char *column[MAX_COLUMNS];
    size_t n, width[MAX_COLUMNS];
    bool number[MAX_COLUMNS];
};

/* Characters of UTF-8 text (each taken as one column wide). */
static size_t columns_of(const struct bytes *b)
{
    size_t n = 0;
    for (size_t i = 0; i < b->len; i++)
        n += ((unsigned char)b->data[i] & 0xc0) != 0x80;
    return n;
}

static int cell(struct bytes *b, const struct table *t, const json_t *row, size_t i, dsv4_err *err)
{
    b->len = 0;
    TRY(bytes_text(b, "", err));
    const json_t *v = json_object_get(row, t->column[i]);
    if (json_is_object(v))
        return put_pairs(b, t->column[i], v, err);
    return json_is_array(v) ? put_list(b, t->column[i], v, err)
                            : put_scalar(b, t->column[i], v, err);
}

/* Columns in the order in which the rows bring them. */
static void find_columns(struct table *t, const json_t *rows)
{
    *t = (struct table){0};
    for (size_t r = 0; r < json_array_size(rows); r++)
        for (void *it = json_object_iter(json_array_get(rows, r)); it;
             it = json_object_iter_next(json_array_get(rows, r), it)) {
            const char *key = json_object_iter_key(it);
            size_t i = 0;
            while (i < t->n && strcmp(t->column[i], key) != 0)
                i++;
            if (i == t->n && t->n < MAX_COLUMNS) {
                t->column[t->n] = key;
                t->number[t->n] = true;
                t->width[t->n++] = strlen(key);
            }
            if (i < t->n && !json_is_number(json_object_iter_value(it)))
                t->number[i] = false;
        }
}

static int put_cell(struct bytes *out, const struct table *t, size_t i, const struct bytes *text,
                    dsv4_err *err)
{
    int pad = (int)(t->width[i] - columns_of(text));
    if (t->number[i])
        return bytes_printf(out, err, "%*s%s  ", pad, "", text->data);
    return bytes_printf(out, err, "%s%*s  ", text->data, i + 1 < t->n ? pad : 0, "");
}

static int put_row(struct bytes *out, const struct table *t, const json_t *row, int indent,
                   struct bytes *scratch, dsv4_err *err)
{
    TRY(bytes_printf(out, err, "%*s", indent, ""));
    for (size_t i = 0; i < t->n; i++) {
        if (row) {
            TRY(cell(scratch, t, row, i, err));
        } else {
            scratch->len = 0;
            TRY(put_key(scratch, t->column[i], err));
        }
        TRY(put_cell(out, t, i, scratch, err));
    }
    while (out->len > 0 && out->data[out->len - 1] == ' ')
        out->len--;
    return bytes_text(out, "\n", err);
}

static int put_table(struct bytes *out, const json_t *rows, int indent, dsv4_err *err)
{
    struct table t;
    struct bytes scratch = {0};
    int rc = 0;
    find_columns(&t, rows);
    for (size_t r = 0; rc == 0 && r < json_array_size(rows); r++)
        for (size_t i = 0; rc == 0 && i < t.n; i++) {
            rc = cell(&scratch, &t, json_array_get(rows, r), i, err);
            size_t w = rc == 0 ? columns_of(&scratch) : 0;
            t.width[i] = w > t.width[i] ? w : t.width[i];
        }
    if (rc == 0)
        rc = put_row(out, &t, NULL, indent, &scratch, err);
    for (size_t r = 0; rc == 0 && r < json_array_size(rows); r++)
        rc = put_row(out, &t, json_array_get(rows, r), indent, &scratch, err);
    free(scratch.data);
    return rc;
}

/* ------------------------------------------------------------------ objects */

static bool is_table(const json_t *v)
{
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!json_is_object(json_array_get(v, i)))
            return false;
    return json_array_size(v) > 0;
}

static int put_object(struct bytes *out, const json_t *v, int level, dsv4_err *err);

static int put_member(struct bytes *out, const char *key, const json_t *v, int level, int width,
                      dsv4_err *err)
{
    int indent = 2 * level;
    size_t start = out->len;
    TRY(bytes_printf(out, err, "%*s", indent, ""));
    TRY(put_key(out, key, err));
    if (json_is_object(v) && level < MAX_LEVEL) {
        TRY(bytes_text(out, "\n", err));
        return put_object(out, v, level + 1, err);
    }
    if (is_table(v)) {
        TRY(bytes_text(out, "\n", err));
        return put_table(out, v, indent + 2, err);
    }
    TRY(bytes_printf(out, err, "%*s", (int)(indent + width + 2 - (int)(out->len - start)), ""));
    TRY(json_is_array(v) ? put_list(out, key, v, err) : put_scalar(out, key, v, err));
    return bytes_text(out, "\n", err);
}

static int put_object(struct bytes *out, const json_t *v, int level, dsv4_err *err)
{
    const char *key;
    json_t *member;
    int width = 0;
    json_object_foreach((json_t *)(uintptr_t)v, key, member)
    {
        int n = (int)strlen(key);
        if (n > width && (is_scalar(member) || (json_is_array(member) && !is_table(member))))
            width = n;
    }
    json_object_foreach((json_t *)(uintptr_t)v, key, member)
    {
        TRY(put_member(out, key, member, level, width, err));
    }
    return 0;
}

int report_text(const json_t *value, struct bytes *out, dsv4_err *err)
{
    TRY(bytes_text(out, "", err));
    return put_object(out, value, 0, err);
}

double real_of(const json_t *from, const char *key)
{
    return json_number_value(json_object_get(from, key));
}

const char *word_of(const json_t *from, const char *key)
{
    const char *s = json_string_value(json_object_get(from, key));
    return s ? s : "?";
}
