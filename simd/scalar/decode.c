/* One row of a matrix as floats, in plain C: every format, both layouts. */
#include "scalar.h"
#include "simd/codes.h"
#include "simd/simd.h"

#include <string.h>

/* The row's 4-byte word u: plain rows and rows of a panel differ in nothing else. */
struct cursor {
    const uint8_t *at;
    size_t step; /* bytes from word to word */
};

static struct cursor row_codes(const struct wmat *w, size_t r)
{
    if (w->panels)
        return (struct cursor){w->codes + r / PANEL * w->code_ld + r % PANEL * 4, PANEL * 4};
    return (struct cursor){w->codes + r * w->code_ld, 4};
}

/* Byte i of the row. */
static inline uint8_t byte_at(struct cursor c, size_t i)
{
    return c.at[i / 4 * c.step + i % 4];
}

static inline uint16_t half_at(struct cursor c, size_t i)
{
    uint16_t h;
    memcpy(&h, c.at + i / 2 * c.step + i % 2 * 2, sizeof h);
    return h;
}

float weight_scale(const struct wmat *w, size_t r, size_t c)
{
    uint16_t half;
    switch (w->format) {
    case W_E4M3:
        r /= w->panels ? PANEL : w->block_rows;
        return e8m0_value(w->scales[r * w->scale_ld + c / w->block_cols]);
    case W_E2M1:
        if (w->panels)
            return e8m0_value(w->scales[r / PANEL * w->scale_ld + c / GROUP * PANEL + r % PANEL]);
        return e8m0_value(w->scales[r / w->block_rows * w->scale_ld + c / w->block_cols]);
    default:
        if (!wformat_has_halves(w->format))
            return 1;
        memcpy(&half,
               w->panels ? w->scales + r / PANEL * w->scale_ld + (c / GROUP * PANEL + r % PANEL) * 2
                         : w->scales + r * w->scale_ld + c / GROUP * 2,
               sizeof half);
        return f16_value(half);
    }
}

/* Columns over which the scale stays the same. */
static size_t scale_block(const struct wmat *w)
{
    return wformat_has_halves(w->format) ? GROUP : w->format < W_E4M3 ? w->cols : w->block_cols;
}

/* The code of column c, formats of 2, 3 and 4 bits. */
static inline uint8_t small_code(struct cursor p, enum wformat f, size_t c)
{
    if (f != W_Q3 && f != W_Q2)
        return (uint8_t)(p.at[c / 8 * p.step + c % 8 / 2] >> c % 2 * 4 & 15);
    size_t place = octet_place(c % GROUP), u = place / 4, b = place % 4;
    const uint8_t *group = p.at + c / GROUP * (f == W_Q3 ? 3 : 2) * p.step + b;
    uint8_t low = (uint8_t)(group[u / 4 * p.step] >> u % 4 * 2 & 3);
    return f == W_Q2 ? low : (uint8_t)(low | (group[2 * p.step] >> u & 1) << 2);
}

static void decode_block(float *restrict out, const struct wmat *w, struct cursor p, size_t c,
                         size_t end, float s)
{
    switch (w->format) {
    case W_F32:
        for (; c < end; c++)
            memcpy(&out[c], p.at + c * p.step, sizeof *out);
        break;
    case W_F16:
        for (; c < end; c++)
            out[c] = f16_value(half_at(p, c));
        break;
    case W_BF16:
        for (; c < end; c++)
            out[c] = bf16_value(half_at(p, c));
        break;
    case W_E4M3:
        for (; c < end; c++)
            out[c] = e4m3_value[byte_at(p, c)] * s;
        break;
    case W_Q8:
        for (; c < end; c++)
            out[c] = (float)(int8_t)byte_at(p, octet_place(c)) * s;
        break;
    case W_E2M1:
        for (; c < end; c++)
            out[c] = e2m1_value[small_code(p, W_E2M1, c)] * s;
        break;
    case W_Q4:
    case W_Q3:
    case W_Q2:
        for (; c < end; c++)
            out[c] = (float)w->table[small_code(p, w->format, c)] * s;
        break;
    case N_WFORMATS: break;
    }
}

void decode_scalar(float *out, const struct wmat *w, size_t r)
{
    struct cursor p = row_codes(w, r);
    size_t block = scale_block(w);
    for (size_t c = 0; c < w->cols; c += block) {
        size_t end = block < w->cols - c ? c + block : w->cols;
        decode_block(out, w, p, c, end, weight_scale(w, r, c));
    }
}

/* The integer that stands for a weight in matmul_fast, columns c .. c + GROUP of row r. */
void decode_codes(int32_t *v, const struct wmat *w, size_t r, size_t c)
{
    struct cursor p = row_codes(w, r);
    for (size_t i = 0; i < GROUP; i++) {
        switch (w->format) {
        case W_E4M3: v[i] = (int32_t)lrintf(64 * e4m3_value[byte_at(p, c + i)]); break;
        case W_Q8: v[i] = (int8_t)byte_at(p, octet_place(c + i)); break;
        case W_E2M1: v[i] = (int32_t)(2 * e2m1_value[small_code(p, W_E2M1, c + i)]); break;
        default: v[i] = w->table[small_code(p, w->format, c + i)];
        }
    }
}
