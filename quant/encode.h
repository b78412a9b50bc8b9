/* encode.h - levels that numbers are rounded to, and the search for the scale of a group. Of quant/ alone. */
#ifndef DSV4_ENCODE_H
#define DSV4_ENCODE_H

#include "quant.h"

enum { MOST_VALUES = 16 };

void levels_of(struct grid *l, const struct wtype *t);

/* Number of the nearest level, counted from the lowest. */
uint8_t levels_code(const struct grid *l, float x);

static inline float levels_value(const struct grid *l, uint8_t code)
{
    return l->n == 0 ? l->low + (float)code : l->value[code];
}

/* One value of each of PANEL groups. */
struct side {
    float at[PANEL];
};

/* The scales [PANEL], as f16, for groups x [GROUP] with weights w [GROUP] of their squared errors. */
void group_scales(const struct kernels *k, uint16_t *scale, const struct grid *l,
                  const struct side *x, const struct side *w, enum effort effort);

/* Codes of one group x [GROUP], one a byte (counted from the lowest level), for its scale. */
void group_codes(uint8_t *code, const struct grid *l, const float *x, float scale);

/* Codes of a group, one a byte -> as they lie in a plain row, at the group's place. */
void group_store(uint8_t *codes, const struct wtype *t, size_t column, const uint8_t *code);

#endif
