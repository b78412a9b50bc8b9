/* jv.h - JSON as Python's json module reads and writes it, because the released prompt encoders are
 * Python and every byte of a prompt counts: integers keep all their digits, a repeated key keeps its
 * first place and its last value, NaN and Infinity are numbers. jansson can do none of these.
 *
 * The reader is total: any bytes give a value or an error. It does not recurse, takes time
 * proportional to the text (n log n for the keys of one object) and has the limits below. */
#ifndef DSV4_JV_H
#define DSV4_JV_H

#include "../system/system.h"

#define JV_MAX_DEPTH  512        /* nested lists and objects */
#define JV_MAX_DIGITS 4300       /* characters of one number; Python's own limit for integers */
#define JV_MAX_VALUES (4u << 20) /* values of one text */
#define JV_MAX_TEXT   ((size_t)1 << 30) /* bytes of one text */

enum jv_type { JV_NULL, JV_FALSE, JV_TRUE, JV_NUMBER, JV_STRING, JV_LIST, JV_OBJECT };

struct jv {
    enum jv_type type;
    bool integer;     /* a number without fraction and exponent */
    const char *text; /* string: its bytes (NULs included), well-formed UTF-8; number: as written */
    size_t len;       /* of text; list and object: number of members */
    const char *key;  /* of a member of an object */
    size_t key_len;
    struct jv *parent, *first, *last, *next;
};

struct jv_doc {
    struct jv *root;
    struct jv_block *blocks; /* owns every value and every decoded string */
};

/* Reads one value and nothing behind it but white space. `text` must outlive the document: strings
 * without escapes point into it. Half a surrogate pair becomes U+FFFD. DSV4_REFUSED: no JSON;
 * DSV4_FAILED: one of the limits above. `what` names the text in messages. */
int jv_parse(struct jv_doc *doc, const char *text, size_t len, const char *what, dsv4_err *err);
void jv_free(struct jv_doc *doc);

/* Member `key` of an object; NULL when there is none, when it is no object, or when v is NULL. */
const struct jv *jv_get(const struct jv *v, const char *key);

/* Python's truth: false for NULL, null, false, 0, "", [] and {}. */
bool jv_truth(const struct jv *v);

static inline bool jv_is(const struct jv *v, enum jv_type type)
{
    return v && v->type == type;
}

/* NULL and null are the same to most callers. */
static inline bool jv_none(const struct jv *v)
{
    return !v || v->type == JV_NULL;
}

bool jv_equals(const struct jv *v, const char *text);

/* Appends json.dumps(v, ensure_ascii=False); `compact` leaves out the blanks after , and : */
int jv_write(struct bytes *out, const struct jv *v, bool compact, dsv4_err *err);
int jv_write_string(struct bytes *out, const char *text, size_t len, dsv4_err *err);

/* The escape of one byte of a string: at most 6 bytes to out, returns how many. */
size_t jv_escape(unsigned char c, char *out);

/* repr() of a double: the shortest text that reads back as v. At most 32 bytes and a NUL. */
void jv_double(double v, char *out);

#endif
