/* Rows of matrices and of caches as floats: bit for bit what the formats say. */
#include "neon.h"
#include "simd/scalar/scalar.h"

#include <string.h>

/* 16 codes; NaN codes are NaN here. 2^8 and the scale are two multiplications, the first one
 * exact. */
INLINE void e4m3_16(float *out, const uint8_t *code, float scale)
{
    const int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(code)), most = vdupq_n_s8(0x7f);
    const int8x16_t nan = vreinterpretq_s8_u8(vceqq_s8(vandq_s8(b, most), most));
    const uint16x8_t exponent = vdupq_n_u16(0x7c00);
    const uint16x8_t n0 = vreinterpretq_u16_s16(vmovl_s8(vget_low_s8(nan)));
    const uint16x8_t n1 = vreinterpretq_u16_s16(vmovl_high_s8(nan));
    uint16x8_t h0 = vreinterpretq_u16_f16(e4m3_halves(vget_low_s8(b)));
    uint16x8_t h1 = vreinterpretq_u16_f16(e4m3_halves(vget_high_s8(b)));
    h0 = vorrq_u16(h0, vandq_u16(n0, exponent));
    h1 = vorrq_u16(h1, vandq_u16(n1, exponent));
    const float16x8_t a = vreinterpretq_f16_u16(h0), c = vreinterpretq_f16_u16(h1);
    vst1q_f32(out, vmulq_n_f32(vmulq_n_f32(low_floats(a), 256), scale));
    vst1q_f32(out + 4, vmulq_n_f32(vmulq_n_f32(high_floats(a), 256), scale));
    vst1q_f32(out + 8, vmulq_n_f32(vmulq_n_f32(low_floats(c), 256), scale));
    vst1q_f32(out + 12, vmulq_n_f32(vmulq_n_f32(high_floats(c), 256), scale));
}

INLINE void store_scaled(float *out, float32x4x4_t v, float scale)
{
    FOR_LANE (i, 4)
        vst1q_f32(out + 4 * i, vmulq_n_f32(v.val[i], scale));
}

/* 16 codes in 8 bytes, even columns in the low nibbles. */
INLINE void nibbles_16(float *out, const uint8_t *code, struct lut16 t, float scale)
{
    const uint8x8_t b = vld1_u8(code), even = vand_u8(b, vdup_n_u8(15)), odd = vshr_n_u8(b, 4);
    store_scaled(out, lut16_floats(t, vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd))),
                 scale);
}

/* Within every 8 codes the order 0,2,4,6,1,3,5,7. */
INLINE void int8_16(float *out, const uint8_t *code, float scale)
{
    const int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(code));
    const int32x4_t w = vreinterpretq_s32_s8(b);
    const int8x16_t even = vreinterpretq_s8_s32(vuzp1q_s32(w, w));
    const int8x16_t odd = vreinterpretq_s8_s32(vuzp2q_s32(w, w));
    store_scaled(out, int8_floats(vzip1q_s8(even, odd)), scale);
}

INLINE void store_f16(float *out, const uint8_t *code)
{
    const float16x8_t h = vreinterpretq_f16_u8(vld1q_u8(code));
    vst1q_f32(out, low_floats(h));
    vst1q_f32(out + 4, high_floats(h));
}

INLINE void store_bf16(float *out, const uint8_t *code)
{
    const uint16x8_t h = vreinterpretq_u16_u8(vld1q_u8(code));
    vst1q_f32(out, low_bf16(h));
    vst1q_f32(out + 4, high_bf16(h));
}

/* 16 columns of any format but F32, their codes in one piece. */
INLINE void decode_16(float *out, const uint8_t *code, enum wformat f, struct lut16 t, float scale)
{
    switch (f) {
    case W_F16:
        store_f16(out, code);
        store_f16(out + 8, code + 16);
        break;
    case W_BF16:
        store_bf16(out, code);
        store_bf16(out + 8, code + 16);
        break;
    case W_E4M3: e4m3_16(out, code, scale); break;
    case W_Q8: int8_16(out, code, scale); break;
    default: nibbles_16(out, code, t, scale);
    }
}

INLINE void decode_blocks(float *out, const struct wmat *w, size_t r, enum wformat f,
                          struct lut16 t)
{
    uint8_t piece[GROUP * 2];
    const size_t bytes = wformat_row_bytes(f, GROUP), words = bytes / 4;
    const uint8_t *plain = w->codes + r * w->code_ld;
    const uint8_t *word = w->codes + r / PANEL * w->code_ld + r % PANEL * 4;
    for (size_t c = 0; c < w->cols; c += GROUP, plain += bytes) {
        if (w->panels)
            for (size_t i = 0; i < words; i++, word += PANEL * 4)
                memcpy(piece + 4 * i, word, 4);
        const uint8_t *code = w->panels ? piece : plain;
        const float scale = weight_scale(w, r, c);
        decode_16(out + c, code, f, t, scale);
        decode_16(out + c + 16, code + bytes / 2, f, t, scale);
    }
}

/* Groups of 32 columns of one scale; what is cut otherwise (and F32) goes the plain way. */
void decode_neon(float *out, const struct wmat *w, size_t r)
{
    const bool tiled = w->format == W_E4M3 || w->format == W_E2M1;
    if (w->format == W_F32 || w->format > W_Q4 || w->cols % GROUP != 0 ||
        (tiled && w->block_cols % GROUP != 0)) {
        decode_scalar(out, w, r);
        return;
    }
    switch (w->format) {
    case W_F16: decode_blocks(out, w, r, W_F16, lut16_e2m1()); break;
    case W_BF16: decode_blocks(out, w, r, W_BF16, lut16_e2m1()); break;
    case W_E4M3: decode_blocks(out, w, r, W_E4M3, lut16_e2m1()); break;
    case W_E2M1: decode_blocks(out, w, r, W_E2M1, lut16_e2m1()); break;
    case W_Q8: decode_blocks(out, w, r, W_Q8, lut16_e2m1()); break;
    default: decode_blocks(out, w, r, W_Q4, lut16_of(w->table));
    }
}

/* ------------------------------------------------------------------ caches */

static void e4m3_row(float *out, const uint8_t *code, const uint8_t *scale, size_t n, size_t block)
{
    for (size_t c = 0; c < n; c += 16)
        e4m3_16(out + c, code + c, e8m0_value(scale[c / block]));
}

static void bf16_row(float *out, const uint8_t *code, size_t n)
{
    size_t c = 0;
    for (; c + 4 <= n; c += 4)
        vst1q_f32(out + c, vreinterpretq_f32_u32(
                               vshll_n_u16(vreinterpret_u16_u8(vld1_u8(code + 2 * c)), 16)));
    for (; c < n; c++) {
        uint16_t h;
        memcpy(&h, code + 2 * c, sizeof h);
        out[c] = bf16_value(h);
    }
}

void cache_row_neon(float *out, const uint8_t *row, struct rshape s)
{
    const struct lut16 t = lut16_e2m1();
    const size_t w = s.width, flat = w - s.rope;
    switch (s.format) {
    case R_F32: memcpy(out, row, w * sizeof *out); break;
    case R_E4M3_64B:
        e4m3_row(out, row, row + flat, flat, 64);
        bf16_row(out + flat, row + flat + flat / 64, s.rope);
        break;
    case R_E4M3_32: e4m3_row(out, row, row + w, w, 32); break;
    case R_E2M1_16:
        for (size_t c = 0; c < w; c += 16)
            nibbles_16(out + c, row + c / 2, t, e4m3_value[row[w / 2 + c / 16]]);
        break;
    case R_E2M1_32:
        for (size_t c = 0; c < w; c += 16)
            nibbles_16(out + c, row + c / 2, t, e8m0_value(row[w / 2 + c / 32]));
        break;
    case N_RFORMATS: break;
    }
}

static void rows_neon(float *out, const uint8_t *row, size_t n, struct rshape s)
{
    const size_t bytes = row_bytes(s);
    for (size_t i = 0; i < n; i++)
        cache_row_neon(out + i * s.width, row + i * bytes, s);
}

void init_neon_decode(struct kernels *k)
{
    k->decode = decode_neon;
    k->rows = rows_neon;
}
