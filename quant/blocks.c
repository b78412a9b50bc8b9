/* Rows of GGUF files: blocks of 32 or 256 columns, each with its scales among its codes. They are read, never
 * computed with: as floats, or as rows of a format that kernels know, bit for bit where one has the same
 * numbers (MXFP4, Q8_0, Q4_0). Rows of those formats become blocks, too. */
#include "encode.h"

#include "simd/codes.h"

#include <math.h>
#include <string.h>

enum { SUPER = 256, SPAN = 256 };

static const uint16_t f16_nan = 0x7e00;

static float half_at(const uint8_t *p)
{
    return f16_value((uint16_t)(p[0] | p[1] << 8));
}

/* ------------------------------------------------------------------ 32 columns, one scale */

/* Column c < 16 is the low nibble of byte c, column c + 16 the high one. */
static unsigned nibble_of(const uint8_t *q, size_t c)
{
    return c < GROUP / 2 ? q[c] & 15 : q[c - GROUP / 2] >> 4;
}

static void decode_q8_0(float *y, const uint8_t *b)
{
    float d = half_at(b);
    for (size_t c = 0; c < GROUP; c++)
        y[c] = d * (float)(int8_t)b[2 + c];
}

static void decode_q4_0(float *y, const uint8_t *b)
{
    float d = half_at(b);
    for (size_t c = 0; c < GROUP; c++)
        y[c] = d * (float)((int)nibble_of(b + 2, c) - 8);
}

static void decode_mxfp4(float *y, const uint8_t *b)
{
    float d = e8m0_value(b[0]);
    for (size_t c = 0; c < GROUP; c++)
        y[c] = d * e2m1_value[nibble_of(b + 1, c)];
}

/* ORDER Q8: column order[c] stands at c of every 8 */
static const uint8_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

/* Codes two a byte, the even column in the low nibble. */
static void recode_nibbles(uint8_t *codes, const uint8_t *q)
{
    for (size_t c = 0; c < GROUP; c += 2)
        codes[c / 2] = (uint8_t)(nibble_of(q, c) | nibble_of(q, c + 1) << 4);
}

static void recode_q8_0(uint8_t *codes, uint8_t *scale, const uint8_t *b)
{
    memcpy(scale, b, 2);
    for (size_t c = 0; c < GROUP; c++)
        codes[c] = b[2 + c / 8 * 8 + order[c % 8]];
}

static void recode_q4_0(uint8_t *codes, uint8_t *scale, const uint8_t *b)
{
    memcpy(scale, b, 2);
    recode_nibbles(codes, b + 2);
}

static void recode_mxfp4(uint8_t *codes, uint8_t *scale, const uint8_t *b)
{
    scale[0] = b[0];
    recode_nibbles(codes, b + 1);
}

static void pack_q8_0(uint8_t *b, const uint8_t *codes, const uint8_t *scale)
{
    memcpy(b, scale, 2);
    for (size_t c = 0; c < GROUP; c++)
        b[2 + c / 8 * 8 + order[c % 8]] = codes[c];
}

static void pack_nibbles(uint8_t *q, const uint8_t *codes)
{
    for (size_t c = 0; c < GROUP / 2; c++) {
        uint8_t low = codes[c / 2] >> c % 2 * 4 & 15;
        uint8_t high = codes[(c + GROUP / 2) / 2] >> c % 2 * 4 & 15;
        q[c] = (uint8_t)(low | high << 4);
    }
}

static void pack_q4_0(uint8_t *b, const uint8_t *codes, const uint8_t *scale)
{
    memcpy(b, scale, 2);
    pack_nibbles(b + 2, codes);
}

static void pack_mxfp4(uint8_t *b, const uint8_t *codes, const uint8_t *scale)
{
    b[0] = scale[0];
    pack_nibbles(b + 1, codes);
}

/* ------------------------------------------------------------------ 256 columns in parts of 16 or 32 */

/* Two bits a column: byte 32 h + c holds columns 128 h + c + 32 s at bit 2 s. */
static int two_bits(const uint8_t *q, size_t c)
{
    return q[c / 128 * 32 + c % 32] >> (c % 128 / 32 * 2) & 3;
}

/* scales[16] (scale low, minimum high), codes[64], d, dmin: d s q - dmin m */
static void decode_q2_k(float *y, const uint8_t *b)
{
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (size_t c = 0; c < SUPER; c++) {
        uint8_t s = b[c / 16];
        y[c] = d * (float)(s & 15) * (float)two_bits(b + 16, c) - dmin * (float)(s >> 4);
    }
}

/* high[32] (bit k: columns 32 k + ...), low[64], scales[12] of 6 bits, d: d (s - 32) (q - 4) */
static void decode_q3_k(float *y, const uint8_t *b)
{
    float d = half_at(b + 108);
    const uint8_t *s = b + 96;
    for (size_t c = 0; c < SUPER; c++) {
        size_t i = c / 16;
        int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
        int scale = (low | (s[8 + i % 4] >> (i / 4 * 2) & 3) << 4) - 32;
        int q = two_bits(b + 32, c) + (b[c % 32] >> (c / 32) & 1) * 4 - 4;
        y[c] = d * (float)scale * (float)q;
    }
}

/* Scale and minimum of part i of Q4_K and Q5_K: 6 bits each in 12 bytes. */
static void scale_and_min(const uint8_t *s, size_t i, float *scale, float *min)
{
    if (i < 4) {
        *scale = (float)(s[i] & 63);
        *min = (float)(s[i + 4] & 63);
    } else {
        *scale = (float)((s[i + 4] & 15) | s[i - 4] >> 6 << 4);
        *min = (float)(s[i + 4] >> 4 | s[i] >> 6 << 4);
    }
}

/* d, dmin, scales[12], [high[32],] codes[128]: d s q - dmin m; byte 32 p + c holds columns 64 p + c and + 32. */
static void decode_k(float *y, const uint8_t *b, const uint8_t *high, const uint8_t *q)
{
    float d = half_at(b), dmin = half_at(b + 2), scale, min;
    for (size_t c = 0; c < SUPER; c++) {
        size_t i = c / 32;
        scale_and_min(b + 4, i, &scale, &min);
        int code = q[c / 64 * 32 + c % 32] >> (i % 2 * 4) & 15;
        if (high)
            code += (high[c % 32] >> i & 1) * 16;
        y[c] = d * scale * (float)code - dmin * min;
    }
}

static void decode_q4_k(float *y, const uint8_t *b)
{
    decode_k(y, b, NULL, b + 16);
}

static void decode_q5_k(float *y, const uint8_t *b)
{
    decode_k(y, b, b + 16, b + 48);
}

/* low[128], high[64], int8 scales[16], d: d s (q - 32) */
static void decode_q6_k(float *y, const uint8_t *b)
{
    float d = half_at(b + 208);
    for (size_t c = 0; c < SUPER; c++) {
        size_t half = c / 128, part = c % 128 / 32;
        int low = b[half * 64 + part % 2 * 32 + c % 32] >> (part / 2 * 4) & 15;
        int high = b[128 + half * 32 + c % 32] >> (part * 2) & 3;
        y[c] = d * (float)(int8_t)b[192 + c / 16] * (float)((low | high << 4) - 32);
    }
}

/* Eight magnitudes a number, two bits each, the first column lowest: 0, 1, 2 stand for 8, 25, 43. A constant of the
 * format (ggml: iq2xxs_grid in ggml-common.h, there a byte each). */
static const uint16_t iq2_grid[256] = {
    0x0000, 0x0002, 0x0005, 0x0008, 0x000a, 0x0011, 0x0014, 0x0020, 0x0022, 0x0028, 0x002a, 0x0041,
    0x0044, 0x0050, 0x0058, 0x0061, 0x0064, 0x0080, 0x0082, 0x008a, 0x00a2, 0x0101, 0x0104, 0x0110,
    0x0115, 0x0140, 0x0184, 0x0198, 0x0200, 0x0202, 0x0222, 0x0282, 0x0401, 0x0404, 0x0410, 0x0421,
    0x0424, 0x0440, 0x0442, 0x0448, 0x0460, 0x0481, 0x0484, 0x0490, 0x04a4, 0x0500, 0x0502, 0x0508,
    0x0520, 0x0546, 0x0569, 0x0580, 0x0591, 0x0609, 0x0610, 0x0640, 0x0684, 0x06a4, 0x0800, 0x0805,
    0x0808, 0x0814, 0x0828, 0x0841, 0x0844, 0x0850, 0x0852, 0x0888, 0x0904, 0x0940, 0x0a02, 0x0a14,
    0x1001, 0x1004, 0x1010, 0x1021, 0x1040, 0x1060, 0x1084, 0x1090, 0x1095, 0x1100, 0x1108, 0x1120,
    0x1150, 0x115a, 0x1180, 0x1224, 0x1245, 0x1400, 0x1408, 0x1420, 0x1425, 0x1449, 0x1480, 0x1518,
    0x1562, 0x1600, 0x1616, 0x1801, 0x1804, 0x1810, 0x1840, 0x1881, 0x1900, 0x1905, 0x19a0, 0x1a51,
    0x2000, 0x2002, 0x200a, 0x2044, 0x2061, 0x2080, 0x2082, 0x2129, 0x2148, 0x2200, 0x2202, 0x2401,
    0x2404, 0x2410, 0x2440, 0x2456, 0x2500, 0x2541, 0x2564, 0x2690, 0x2808, 0x2820, 0x2894, 0x2a44,
    0x4001, 0x4004, 0x4010, 0x4018, 0x4021, 0x4024, 0x4040, 0x4048, 0x4056, 0x4060, 0x4081, 0x4084,
    0x4090, 0x4100, 0x4120, 0x4161, 0x4180, 0x4185, 0x4201, 0x4210, 0x4248, 0x4256, 0x4268, 0x4400,
    0x4408, 0x4420, 0x4480, 0x4499, 0x4512, 0x4524, 0x4600, 0x4801, 0x4804, 0x4810, 0x4840, 0x4845,
    0x4900, 0x4958, 0x4961, 0x4982, 0x4a45, 0x4a90, 0x5000, 0x5008, 0x5011, 0x5019, 0x5020, 0x5080,
    0x5088, 0x5104, 0x5142, 0x51a4, 0x5291, 0x5490, 0x5492, 0x550a, 0x5601, 0x5654, 0x5800, 0x5811,
    0x5819, 0x5864, 0x5940, 0x5a08, 0x6004, 0x6010, 0x6040, 0x6068, 0x6100, 0x6155, 0x6218, 0x6260,
    0x6400, 0x6405, 0x6510, 0x6512, 0x6584, 0x6842, 0x8000, 0x8002, 0x800a, 0x8041, 0x8082, 0x8104,
    0x8118, 0x8140, 0x8211, 0x8401, 0x8404, 0x8410, 0x8415, 0x8440, 0x8460, 0x8500, 0x8546, 0x8594,
    0x8609, 0x8640, 0x8660, 0x8802, 0x8904, 0x8a11, 0x9004, 0x9010, 0x9024, 0x9040, 0x90a1, 0x9116,
    0x9180, 0x9245, 0x9400, 0x9422, 0x9444, 0x9551, 0x9881, 0x9920, 0xa002, 0xa050, 0xa085, 0xa109,
    0xa200, 0xa418, 0xa850, 0xa904,
};

/* d, then for every 32 columns four numbers of the grid and 32 bits: seven bits for the signs of each eight columns, of
 * which the eighth makes the minuses even, and four for the scale: d (s + 1/2) / 4 */
static void decode_iq2_xxs(float *y, const uint8_t *b)
{
    static const float magnitude[4] = {8, 25, 43, 0};
    float d = half_at(b);
    b += 2;
    for (size_t c = 0; c < SUPER; c += 32, b += 8, y += 32) {
        uint32_t bits = b[4] | (uint32_t)b[5] << 8 | (uint32_t)b[6] << 16 | (uint32_t)b[7] << 24;
        float scale = d * (0.5f + (float)(bits >> 28)) * 0.25f;
        for (size_t i = 0; i < 32; i++) {
            unsigned sign = bits >> i / 8 * 7 & 127;
            sign |= (unsigned)__builtin_parity(sign) << 7;
            float v = scale * magnitude[iq2_grid[b[i / 8]] >> i % 8 * 2 & 3];
            y[i] = sign >> i % 8 & 1 ? -v : v;
        }
    }
}

/* ------------------------------------------------------------------ the types */

struct block_type {
    uint32_t id; /* in GGUF files */
    const char *name;
    uint16_t cols, bytes;
    const char *as; /* the type that kernels get */
    void (*decode)(float *y, const uint8_t *block);
    /* 32 columns -> the same numbers as plain codes and their scale; NULL: there is no such type */
    void (*recode)(uint8_t *codes, uint8_t *scale, const uint8_t *block);
    void (*pack)(uint8_t *block, const uint8_t *codes, const uint8_t *scale); /* its inverse */
};

static const struct block_type types[] = {
    {2, "Q4_0", 32, 18, "q4", decode_q4_0, recode_q4_0, pack_q4_0},
    {8, "Q8_0", 32, 34, "q8", decode_q8_0, recode_q8_0, pack_q8_0},
    {10, "Q2_K", 256, 84, "q8", decode_q2_k, NULL, NULL},
    {11, "Q3_K", 256, 110, "q8", decode_q3_k, NULL, NULL},
    {12, "Q4_K", 256, 144, "q8", decode_q4_k, NULL, NULL},
    {13, "Q5_K", 256, 176, "q8", decode_q5_k, NULL, NULL},
    {14, "Q6_K", 256, 210, "q8", decode_q6_k, NULL, NULL},
    {16, "IQ2_XXS", 256, 66, "q8", decode_iq2_xxs, NULL, NULL},
    {39, "MXFP4", 32, 17, "e2m1", decode_mxfp4, recode_mxfp4, pack_mxfp4},
};

const struct block_type *block_type_of(uint32_t id)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].id == id)
            return &types[i];
    return NULL;
}

const struct block_type *block_type_as(const struct wtype *type)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].pack && wtype_named(types[i].as) == type)
            return &types[i];
    return NULL;
}

uint32_t block_id(const struct block_type *t)
{
    return t->id;
}

const char *block_name(const struct block_type *t)
{
    return t->name;
}

uint32_t block_cols(const struct block_type *t)
{
    return t->cols;
}

uint64_t block_row_bytes(const struct block_type *t, uint32_t cols)
{
    return (uint64_t)(cols / t->cols) * t->bytes;
}

bool block_exact(const struct block_type *t)
{
    return t->recode != NULL;
}

struct wmat block_matrix(const struct block_type *t, const uint8_t *data, uint32_t rows,
                         uint32_t cols)
{
    const struct wtype *as = wtype_named(t->as);
    return (struct wmat){.format = as->format,
                         .table = as->table,
                         .rows = rows,
                         .cols = cols,
                         .block_rows = 1,
                         .block_cols = GROUP,
                         .codes = data,
                         .code_ld = (size_t)block_row_bytes(t, cols),
                         .blocks = t};
}

void block_decode(const struct block_type *t, float *out, const uint8_t *row, size_t cols)
{
    for (size_t c = 0; c < cols; c += t->cols, row += t->bytes)
        t->decode(out + c, row);
}

void row_floats(const struct kernels *k, float *out, const struct wmat *w, size_t r)
{
    if (w->blocks)
        block_decode(w->blocks, out, w->codes + r * w->code_ld, w->cols);
    else
        k->decode(out, w, r);
}

/* Groups with a NaN or an infinity, a bit each, become zeros: encoding takes no such numbers. */
static unsigned take_bad_groups(float *x, size_t cols)
{
    unsigned bad = 0;
    for (size_t c = 0; c < cols; c++)
        if (!isfinite(x[c]))
            bad |= 1u << c / GROUP;
    for (size_t c = 0; bad && c < cols; c++)
        if (bad >> c / GROUP & 1)
            x[c] = 0;
    return bad;
}

void block_encode_span(uint8_t *codes, uint8_t *scales, const struct wmat *w, size_t row, size_t at,
                       size_t cols)
{
    const struct block_type *t = w->blocks;
    const uint8_t *b = w->codes + row * w->code_ld + at / t->cols * t->bytes;
    size_t unit = wformat_has_halves(w->format) ? 2 : 1;
    if (!t->recode) {
        float x[SPAN];
        block_decode(t, x, b, cols);
        unsigned bad = take_bad_groups(x, cols);
        encode_row(NULL, codes, scales, wtype_of(w), x, cols, NULL, EFFORT_ABSMAX);
        for (size_t g = 0; g < cols / GROUP; g++)
            if (bad >> g & 1)
                memcpy(scales + g * unit, &f16_nan, unit);
        return;
    }
    for (size_t c = 0; c < cols; c += GROUP, b += t->bytes) {
        t->recode(codes, scales, b);
        codes += wformat_row_bytes(w->format, GROUP);
        scales += unit;
    }
}

void block_row(const struct block_type *t, uint8_t *out, const uint8_t *codes,
               const uint8_t *scales, size_t cols)
{
    enum wformat f = wtype_named(t->as)->format;
    size_t unit = wformat_has_halves(f) ? 2 : 1;
    for (size_t c = 0; c < cols; c += GROUP, out += t->bytes) {
        t->pack(out, codes, scales);
        codes += wformat_row_bytes(f, GROUP);
        scales += unit;
    }
}
