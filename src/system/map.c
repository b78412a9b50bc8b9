/* Memory in mappings of its own: aligned for large pages and in the memory of a NUMA node. */
#include "system.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#endif

enum { LARGE_PAGE = 2 << 20, NODE_BITS = 1024, WORD = 8 * sizeof(unsigned long) };

/* Whole pages, at least one. */
static bool whole_pages(size_t bytes, size_t *out)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!size_add(bytes ? bytes : 1, page - 1, out))
        return false;
    *out &= ~(page - 1);
    return true;
}

/* Preferred, not forced: a full node shall not kill the process while another has room. Without a
 * policy (containers, kernels without NUMA) the first touch decides. */
static void prefer_node(void *p, size_t bytes, int node)
{
#ifdef __linux__
    unsigned long mask[NODE_BITS / WORD] = {0};
    if (node < 0 || node >= NODE_BITS)
        return;
    mask[(size_t)node / WORD] = 1ul << (size_t)node % WORD;
    syscall(SYS_mbind, p, bytes, MPOL_PREFERRED, mask, (unsigned long)NODE_BITS + 1, 0u);
#else
    (void)p;
    (void)bytes;
    (void)node;
#endif
}

int mem_map(void *out_pointer, size_t bytes, int node_os, const char *what, dsv4_err *err)
{
    size_t len, all;
    if (!whole_pages(bytes, &len) || !size_add(len, LARGE_PAGE, &all))
        return err_memory(err, bytes, what);
    bool large = len >= LARGE_PAGE;
    if (!large)
        all = len;
    char *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return err_memory(err, bytes, what);
    if (large) { /* what is over on both sides goes back */
        size_t before = -(uintptr_t)p & (LARGE_PAGE - 1), behind = all - len - before;
        if (before)
            munmap(p, before);
        if (behind)
            munmap(p + before + len, behind);
        p += before;
#ifdef MADV_HUGEPAGE
        madvise(p, len, MADV_HUGEPAGE);
#endif
    }
    prefer_node(p, len, node_os);
    memcpy(out_pointer, &p, sizeof p);
    return 0;
}

void mem_unmap(void *p, size_t bytes)
{
    size_t len;
    if (p && whole_pages(bytes, &len))
        munmap(p, len);
}
