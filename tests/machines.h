/* machines.h - made-up machines for the tests of topology and placement, and what holds for every
 * placement. The checks inside fail the running test. */
#ifndef TESTS_MACHINES_H
#define TESTS_MACHINES_H

#include "src/system/system.h"

/* nodes x cores x pu, numbered as PCs are: first CPUs of all cores, then second ones. Of each
 * node's cores the last `slow` have the given speed. */
struct topology machine(int nodes, int cores, int pu, int slow, int speed);

/* placement_make() that has to succeed; released by the caller. */
struct placement place(const struct topology *t, int threads, const char *cpus, const char *numa);

/* The CPU with the system's number `os`. */
const struct cpu *cpu_at(const struct topology *t, int os);

/* What every placement keeps: usable CPUs, lanes by node, shares by speed, rows cut without gap. */
void check_all(const struct topology *t, const struct placement *p);

/* Places, checks what always holds, and tells what came out. */
struct placement placed(const struct topology *t, int threads, const char *cpus, const char *numa,
                        int lanes, int nodes, enum bind bind);

/* Different cores that have lanes. */
int cores_used(const struct placement *p);

#endif
