/* Lists of CPUs and nodes as people and Linux write them, "0-7,16", and whether what the user asked
 * for is there. */
#include "system.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ reading */

static int list_number(const char **at)
{
    int n = 0;
    if (**at < '0' || **at > '9')
        return -1;
    for (; **at >= '0' && **at <= '9'; ++*at)
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, **at - '0', &n))
            return -1;
    return n;
}

int cpu_list_next(const char **at, int *first, int *last)
{
    if (**at == 0 || strcmp(*at, "\n") == 0)
        return 0;
    if ((*first = *last = list_number(at)) < 0)
        return -1;
    if (**at == '-') {
        ++*at;
        if ((*last = list_number(at)) < *first)
            return -1;
    }
    if (**at == ',')
        ++*at;
    else if (**at != 0 && **at != '\n')
        return -1;
    return 1;
}

bool cpu_list_has(const char *list, int cpu)
{
    int a, b;
    while (cpu_list_next(&list, &a, &b) == 1)
        if (cpu >= a && cpu <= b)
            return true;
    return false;
}

/* ------------------------------------------------------------------ writing */

static int by_number(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

void cpu_list_text(char *out, size_t room, int *number, size_t n)
{
    enum { LONGEST = 32 }; /* ",N-M" or ",..." */
    size_t len = 0;
    out[0] = 0;
    qsort(number, n, sizeof *number, by_number);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && number[end] == number[end - 1] + 1;)
            end++;
        const char *comma = len ? "," : "";
        if (len + LONGEST > room) {
            snprintf(out + len, room - len, "%s...", comma);
            return;
        }
        int put = end - i == 1 ? snprintf(out + len, room - len, "%s%d", comma, number[i])
                               : snprintf(out + len, room - len, "%s%d-%d", comma, number[i],
                                          number[end - 1]);
        len += (size_t)put;
    }
}

/* ------------------------------------------------------------------ what was asked for */

enum { SHOWN = 160 };

/* The numbers of all CPUs, or only of the allowed ones. */
static int list_cpus(char shown[SHOWN], const struct topology *t, bool allowed, dsv4_err *err)
{
    size_t n = 0;
    int *os;
    TRY(mem_alloc(&os, t->n_cpus, sizeof *os, "a list of CPUs", err));
    for (size_t i = 0; i < t->n_cpus; i++)
        if (t->cpu[i].allowed || !allowed)
            os[n++] = t->cpu[i].os;
    cpu_list_text(shown, SHOWN, os, n);
    free(os);
    return 0;
}

static int list_nodes(char shown[SHOWN], const struct topology *t, dsv4_err *err)
{
    int *os;
    TRY(mem_alloc(&os, t->n_nodes, sizeof *os, "a list of NUMA nodes", err));
    for (size_t i = 0; i < t->n_nodes; i++)
        os[i] = t->node[i].os;
    cpu_list_text(shown, SHOWN, os, t->n_nodes);
    free(os);
    return 0;
}

static int check_cpus(const struct topology *t, const char *list, dsv4_err *err)
{
    char shown[SHOWN];
    const char *at = list;
    int a, b, got;
    while ((got = cpu_list_next(&at, &a, &b)) == 1) {
        size_t here = 0, allowed = 0, want = (size_t)(b - a) + 1;
        for (size_t i = 0; i < t->n_cpus; i++)
            if (t->cpu[i].os >= a && t->cpu[i].os <= b) {
                here++;
                allowed += t->cpu[i].allowed;
            }
        if (allowed == want)
            continue;
        TRY(list_cpus(shown, t, here == want, err));
        return err_set(err, DSV4_USAGE,
                       here == want ? "--cpus %s: this process may only use cpus %s"
                                    : "--cpus %s: this machine has cpus %s",
                       list, shown);
    }
    if (got < 0 || !*list)
        return err_set(err, DSV4_USAGE, "--cpus \"%s\" is no list like 0-7,16", list);
    return 0;
}

bool numa_is_word(const char *numa)
{
    return !numa || strcmp(numa, "auto") == 0 || strcmp(numa, "off") == 0;
}

static int check_nodes(const struct topology *t, const char *list, dsv4_err *err)
{
    char shown[SHOWN];
    const char *at = list;
    int a, b, got;
    while ((got = cpu_list_next(&at, &a, &b)) == 1) {
        size_t here = 0;
        for (size_t i = 0; i < t->n_nodes; i++)
            here += t->node[i].os >= a && t->node[i].os <= b;
        if (here == (size_t)(b - a) + 1)
            continue;
        TRY(list_nodes(shown, t, err));
        return err_set(err, DSV4_USAGE, "--numa %s: this machine has NUMA node%s %s", list,
                       t->n_nodes == 1 ? "" : "s", shown);
    }
    if (got < 0 || !*list)
        return err_set(err, DSV4_USAGE, "--numa \"%s\" is none of auto, off, 0, 0-1", list);
    return 0;
}

int placement_check(const struct topology *t, const struct placement_options *o, dsv4_err *err)
{
    if (o->threads < 0 || o->threads > MAX_LANES)
        return err_set(err, DSV4_USAGE, "%d threads asked for; 1 to %d are possible", o->threads,
                       MAX_LANES);
    if (o->cpus)
        TRY(check_cpus(t, o->cpus, err));
    return numa_is_word(o->numa) ? 0 : check_nodes(t, o->numa, err);
}
