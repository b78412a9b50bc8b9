/* CPU features, asked of the processor on x86 and of the kernel on arm. */
#include "simd/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* State components that the operating system saves. */
static uint64_t saved_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux hands out the 8 KB of tile state on request, once a process. */
static int amx_granted(void)
{
#ifdef __linux__
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

#define BIT(word, n) ((word) >> (n)&1u)

uint32_t cpu_features(void)
{
    unsigned a, b, c, d, b7, c7, d7, a71 = 0, x;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !BIT(c, 27) ||
        !__get_cpuid_count(7, 0, &x, &b7, &c7, &d7))
        return 0;
    if (x >= 1 && !__get_cpuid_count(7, 1, &a71, &x, &x, &x))
        a71 = 0;
    uint64_t state = saved_state();
    uint32_t f = 0;
    if ((state & 0x6) == 0x6 && BIT(b7, 5) && BIT(c, 12) && BIT(c, 29))
        f |= CPU_AVX2;
    if (f && BIT(a71, 4))
        f |= CPU_AVXVNNI;
    if (f && (state & 0xe6) == 0xe6 && BIT(b7, 16) && BIT(b7, 17) && BIT(b7, 30) && BIT(b7, 31)) {
        f |= CPU_AVX512;
        if (BIT(c7, 11))
            f |= CPU_AVX512VNNI;
        if (BIT(a71, 5))
            f |= CPU_AVX512BF16;
        if (BIT(c7, 11) && (state & 0x60000) == 0x60000 && BIT(d7, 24) && BIT(d7, 25) &&
            BIT(d7, 22) && amx_granted())
            f |= CPU_AMX;
    }
    return f;
}

#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>

uint32_t cpu_features(void)
{
    enum { ASIMD = 1 << 1, ASIMDDP = 1 << 20, I8MM = 1 << 13 }; /* HWCAP, HWCAP, HWCAP2 */
    uint32_t f = 0;
    if (getauxval(AT_HWCAP) & ASIMD)
        f |= CPU_NEON;
    if (getauxval(AT_HWCAP) & ASIMDDP)
        f |= CPU_DOTPROD;
    if (f & CPU_DOTPROD && getauxval(AT_HWCAP2) & I8MM)
        f |= CPU_I8MM;
    return f;
}
#else
uint32_t cpu_features(void)
{
    return CPU_NEON | CPU_DOTPROD; /* every Apple core */
}
#endif

#else
uint32_t cpu_features(void)
{
    return 0;
}
#endif
