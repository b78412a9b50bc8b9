/* Index scores on fp4 codes: vpmaddubsw on 16 heads x 4 keys.
 *
 * The instruction takes one operand without sign: keys become code + 12 (0 .. 24). That adds 12
 * times the sum of the query's codes to every sum, which is the sum for a key of zeros and is
 * taken off again. A group of 32 columns adds 8 products of at most 576 into 16 bits: always
 * exact. */
#include "avx2.h"
#include "simd/codes.h"
#include "vec.h"

#include <string.h>

enum { KEYS = 4, ROOM = 8192, BLOCK = 64, OFFSET = 12 };

/* Sixteen bytes of a key -> its words 0 .. 7 of a group: low nibbles are the even words, high
 * nibbles the odd ones. */
INLINE void key_group(__m128i out[2], const uint8_t *key)
{
    const __m128i table =
        _mm_setr_epi8(OFFSET, OFFSET + 1, OFFSET + 2, OFFSET + 3, OFFSET + 4, OFFSET + 6,
                      OFFSET + 8, OFFSET + 12, OFFSET, OFFSET - 1, OFFSET - 2, OFFSET - 3,
                      OFFSET - 4, OFFSET - 6, OFFSET - 8, OFFSET - 12);
    const __m128i nibble = _mm_set1_epi8(15);
    __m128i x = _mm_loadu_si128((const __m128i *)key);
    __m128i lo = _mm_shuffle_epi8(table, _mm_and_si128(x, nibble));
    __m128i hi = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(x, 4), nibble));
    out[0] = _mm_unpacklo_epi32(lo, hi);
    out[1] = _mm_unpackhi_epi32(lo, hi);
}

/* Four keys word by word, [width/4][4][4 bytes], and their scales, [groups][4]. */
static void expand(uint8_t *out, float *scale, const uint8_t *const key[KEYS], size_t width)
{
    for (size_t g = 0; g < width / GROUP; g++, out += GROUP * KEYS) {
        __m128i w[KEYS][2];
        for (int k = 0; k < KEYS; k++) {
            key_group(w[k], key[k] + g * GROUP / 2);
            scale[g * KEYS + (size_t)k] = e8m0_value(key[k][width / 2 + g]);
        }
        for (int i = 0; i < 2; i++) {
            __m128i a = _mm_unpacklo_epi32(w[0][i], w[1][i]),
                    b = _mm_unpackhi_epi32(w[0][i], w[1][i]);
            __m128i c = _mm_unpacklo_epi32(w[2][i], w[3][i]),
                    d = _mm_unpackhi_epi32(w[2][i], w[3][i]);
            __m128i *to = (__m128i *)(void *)(out + GROUP / 2 * KEYS * i);
            _mm_store_si128(to, _mm_unpacklo_epi64(a, c));
            _mm_store_si128(to + 1, _mm_unpackhi_epi64(a, c));
            _mm_store_si128(to + 2, _mm_unpacklo_epi64(b, d));
            _mm_store_si128(to + 3, _mm_unpackhi_epi64(b, d));
        }
    }
}

INLINE __m256i word(const uint8_t *p)
{
    return _mm256_castps_si256(_mm256_broadcast_ss((const float *)(const void *)p));
}

INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* One panel of heads: codes and scales of its queries, their weights, and what sums start from:
 * minus those with a key of zeros. */
struct panel {
    const int8_t *code;
    const float *scale, *weight;
    __m256i start[INDEX_MAX_WIDTH / GROUP][2];
};

static void panel_open(struct panel *p, const struct index_query *q, size_t i)
{
    size_t groups = q->width / GROUP;
    p->code = q->code + i * q->width * PANEL;
    p->scale = q->scale + i * groups * PANEL;
    p->weight = q->weight + i * PANEL;
    for (size_t g = 0; g < groups; g++)
        for (size_t half = 0; half < 2; half++) {
            const int8_t *code = p->code + g * GROUP * PANEL + half * 32;
            __m256i s = _mm256_setzero_si256();
            for (size_t u = 0; u < GROUP / 4; u++, code += 4 * PANEL)
                s = _mm256_sub_epi16(s, _mm256_maddubs_epi16(_mm256_set1_epi8(OFFSET), load(code)));
            p->start[g][half] = s;
        }
}

/* In place: compilers would regroup the additions of a whole group and run out of registers. */
INLINE void add16(__m256i *s, __m256i x)
{
    __asm__("vpaddw %1, %0, %0" : "+x"(*s) : "x"(x));
}

/* Sums of one group for 16 heads and 4 keys as pairs of 16 bits. */
INLINE void group_sums(__m256i s[KEYS][2], const int8_t *q, const uint8_t *key)
{
#pragma GCC unroll 8
    for (size_t u = 0; u < GROUP / 4; u++) {
        __m256i a = load(q + u * 4 * PANEL), b = load(q + u * 4 * PANEL + 32);
#pragma GCC unroll 4
        for (size_t k = 0; k < KEYS; k++) {
            __m256i w = word(key + (u * KEYS + k) * 4);
            add16(&s[k][0], _mm256_maddubs_epi16(w, a));
            add16(&s[k][1], _mm256_maddubs_epi16(w, b));
        }
    }
}

/* t_k <- fma(weight, max(0, q . key_k), t_k) for the heads of a panel and four keys, t [4][16]. */
static void panel_keys(float *t, const struct panel *p, const uint8_t *key, const float *key_scale,
                       size_t groups)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256 a[KEYS][2];
    for (int k = 0; k < KEYS; k++)
        a[k][0] = a[k][1] = _mm256_setzero_ps();
    for (size_t g = 0; g < groups; g++) {
        __m256i s[KEYS][2];
        for (int k = 0; k < KEYS; k++) {
            s[k][0] = p->start[g][0];
            s[k][1] = p->start[g][1];
        }
        group_sums(s, p->code + g * GROUP * PANEL, key + g * GROUP * KEYS);
        for (int i = 0; i < 2; i++) {
            __m256 scale = _mm256_loadu_ps(p->scale + g * PANEL + (size_t)(8 * i));
            for (int k = 0; k < KEYS; k++) {
                __m256i sum = _mm256_madd_epi16(s[k][i], one);
                __m256 u = _mm256_mul_ps(scale, _mm256_broadcast_ss(key_scale + g * KEYS + k));
                a[k][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), u, a[k][i]);
            }
        }
    }
    for (int k = 0; k < KEYS; k++)
        for (int i = 0; i < 2; i++) {
            float *at = t + k * PANEL + 8 * i;
            __m256 positive = _mm256_max_ps(a[k][i], _mm256_setzero_ps());
            _mm256_store_ps(at, _mm256_fmadd_ps(_mm256_loadu_ps(p->weight + 8 * i), positive,
                                                _mm256_load_ps(at)));
        }
}

/* Keys are taken by the block, a block stays in the first-level cache for all panels. Of the
 * last four keys some may be there twice. */
static void index_codes(float *score, const struct index_query *q, const uint8_t *key, size_t n)
{
    _Alignas(32) uint8_t code[ROOM];
    _Alignas(32) float t[BLOCK * PANEL], scale[ROOM / GROUP];
    size_t groups = q->width / GROUP, bytes = q->width / 2 + groups;
    size_t block = ROOM / q->width < BLOCK ? ROOM / q->width : BLOCK;
    for (size_t at = 0; at < n; at += block) {
        size_t m = n - at < block ? n - at : block;
        for (size_t i = 0; i < m; i += KEYS) {
            const uint8_t *row[KEYS];
            for (size_t k = 0; k < KEYS; k++)
                row[k] = key + (at + (i + k < m ? i + k : m - 1)) * bytes;
            expand(code + i * q->width, scale + i * groups, row, q->width);
        }
        memset(t, 0, (m + KEYS - 1) / KEYS * KEYS * PANEL * sizeof *t);
        for (size_t i = 0; i < q->panels; i++) {
            struct panel p;
            panel_open(&p, q, i);
            for (size_t k = 0; k < m; k += KEYS)
                panel_keys(t + k * PANEL, &p, code + k * q->width, scale + k * groups, groups);
        }
        for (size_t i = 0; i < m; i++) {
            const float *s = t + i * PANEL;
            score[at + i] = sum8(_mm256_add_ps(_mm256_load_ps(s), _mm256_load_ps(s + 8)));
        }
    }
}

void init_avx2_index(struct kernels *k)
{
    k->index_codes = index_codes;
}
