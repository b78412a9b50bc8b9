/* Which kernels this CPU gets, and the few facts about formats that every level shares. */
#include "simd/codes.h"
#include "simd/simd.h"

const float e2m1_value[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                              -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/* sign 1, exponent 4 (bias 7), mantissa 3; exponent 0 counts in steps of 2^-9. */
#define E4M3(s, e, m)                    \
    ((e) == 15 && (m) == 7               \
         ? NAN                           \
         : (s) * ((e) == 0 ? (m)*0x1p-9f \
                           : (8 + (m)) * 0x1p-10f * (float)(1u << ((e) == 0 ? 0 : (e)))))
#define E4M3_ROW(s, e)                                                                        \
    E4M3(s, e, 0), E4M3(s, e, 1), E4M3(s, e, 2), E4M3(s, e, 3), E4M3(s, e, 4), E4M3(s, e, 5), \
        E4M3(s, e, 6), E4M3(s, e, 7)
#define E4M3_HALF(s)                                                                         \
    E4M3_ROW(s, 0), E4M3_ROW(s, 1), E4M3_ROW(s, 2), E4M3_ROW(s, 3), E4M3_ROW(s, 4),          \
        E4M3_ROW(s, 5), E4M3_ROW(s, 6), E4M3_ROW(s, 7), E4M3_ROW(s, 8), E4M3_ROW(s, 9),      \
        E4M3_ROW(s, 10), E4M3_ROW(s, 11), E4M3_ROW(s, 12), E4M3_ROW(s, 13), E4M3_ROW(s, 14), \
        E4M3_ROW(s, 15)

const float e4m3_value[256] = {E4M3_HALF(1.0f), E4M3_HALF(-1.0f)};

/* ORDER FORMATS */
const char *wformat_name(enum wformat f)
{
    static const char *const name[N_WFORMATS] = {"f32", "f16", "bf16", "e4m3", "e2m1"};
    return f < N_WFORMATS ? name[f] : "?";
}

/* ORDER ROWS */
size_t row_bytes(struct rshape s)
{
    size_t w = s.width, flat = w - s.rope;
    switch (s.format) {
    case R_F32: return 4 * w;
    case R_E4M3_64B: return flat + flat / 64 + 2 * s.rope;
    case R_E4M3_32: return w + w / 32;
    case R_E2M1_16: return w / 2 + w / 16;
    case R_E2M1_32: return w / 2 + w / 32;
    case N_RFORMATS: break;
    }
    return 0;
}

void kernels_init(struct kernels *k)
{
    kernels_init_scalar(k);
}
