/* Which kernels this CPU gets, and the few facts about formats that every level shares. */
#include "simd/codes.h"
#include "simd/cpu.h"
#include "simd/simd.h"

#include <string.h>

const float e2m1_value[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                              -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
const int8_t e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

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
    static const char *const name[N_WFORMATS] = {"f32", "f16", "bf16", "e4m3", "e2m1",
                                                 "q8",  "q4",  "q3",   "q2"};
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

/* ------------------------------------------------------------------ levels */

struct level {
    const char *name;
    uint32_t needs;
    void (*init)(struct kernels *);
};

#if defined(__x86_64__)
#define ARCH_x86_64(...) __VA_ARGS__
#define ARCH_aarch64(...)
#elif defined(__aarch64__)
#define ARCH_x86_64(...)
#define ARCH_aarch64(...) __VA_ARGS__
#else
#define ARCH_x86_64(...)
#define ARCH_aarch64(...)
#endif

#define ISA(level, arch, flags, needs) ARCH_##arch(void init_##level(struct kernels *);)
#include "simd/isa.def"
#undef ISA

/* Tests run levels that few machines have through an emulation of their instructions (make emulated). */
#ifdef DSV4_EMULATE
enum { EMULATED = CPU_AVXVNNI | CPU_AVX512 | CPU_AVX512VNNI | CPU_AMX };
#define LEVEL_NAME(level, needs) ((needs)&EMULATED ? level "-emulated" : level)
#else
enum { EMULATED = 0 };
#define LEVEL_NAME(level, needs) level
#endif

static const struct level levels[] = {
    {"scalar", 0, kernels_init_scalar},
#define ISA(level, arch, flags, needs) \
    ARCH_##arch({LEVEL_NAME(#level, needs), (needs) & ~(unsigned)EMULATED, init_##level}, )
#include "simd/isa.def"
#undef ISA
};

enum { N_LEVELS = sizeof levels / sizeof *levels };

static bool has(uint32_t features, uint32_t needs)
{
    return (features & needs) == needs;
}

const char *kernels_level(size_t i, bool *available)
{
    if (i >= N_LEVELS)
        return NULL;
    *available = has(cpu_features(), levels[i].needs);
    return levels[i].name;
}

bool kernels_init(struct kernels *k, const char *level)
{
    uint32_t features = cpu_features();
    size_t top = N_LEVELS;
    if (level && *level) {
        size_t i = 0;
        while (i < N_LEVELS && strcmp(level, levels[i].name) != 0)
            i++;
        if (i == N_LEVELS || !has(features, levels[i].needs))
            return false;
        top = i + 1;
    }
    for (size_t i = 0; i < top; i++)
        if (has(features, levels[i].needs)) {
            levels[i].init(k);
            k->level = levels[i].name;
        }
    return true;
}
