/* encode.h - levels that numbers are rounded to, and the search for the scale of a group. Of quant/ alone. */
#ifndef DSV4_ENCODE_H
#define DSV4_ENCODE_H

#include "quant.h"

enum { MAX_LEVELS = 16 };

/* The values a code can stand for, times the scale of its group. */
struct levels {
    bool even;                /* the whole numbers low .. high */
    float low, high;          /* the first and the last */
    int n;                    /* uneven: how many */
    float value[MAX_LEVELS];  /* ascending */
    float middle[MAX_LEVELS]; /* between value[i] and value[i + 1] */
};

void levels_of(struct levels *l, const struct wtype *t);

/* Pointers below are to the GROUP values of a group.
 *
 * The nearest levels to x * inverse: their values, and their numbers counted from the lowest. */
void levels_round(float *value, const struct levels *l, const float *x, float inverse);
uint8_t levels_code(const struct levels *l, float x);

static inline float levels_value(const struct levels *l, uint8_t code)
{
    return l->even ? l->low + (float)code : l->value[code];
}

/* The scale, as f16, for a group of floats with weights w of their squared errors. */
uint16_t group_scale(const struct levels *l, const float *x, const float *w, enum effort effort);

/* Codes of a group, one a byte (counted from the lowest level), for its scale. */
void group_codes(uint8_t *code, const struct levels *l, const float *x, float scale);

/* Codes of a group, one a byte -> as they lie in a plain row, at the group's place. */
void group_store(uint8_t *codes, const struct wtype *t, size_t column, const uint8_t *code);

#endif
