/* The machine as hwloc tells it: where there is no /sys, and for made-up machines. Builds without
 * hwloc know neither. */
#include "system.h"

#include <stdlib.h>
#include <string.h>

#ifdef HAVE_HWLOC
#include <hwloc.h>

/* One class is as fast as another unless hwloc ranks them; then each is taken to have half the
 * speed of the next, as it says which is better and not by how much. */
static int class_speed(hwloc_topology_t h, hwloc_const_bitmap_t cpu)
{
    int kinds = hwloc_cpukinds_get_nr(h, 0), rank;
    int kind = hwloc_cpukinds_get_by_cpuset(h, cpu, 0);
    if (kinds < 2 || kind < 0 ||
        hwloc_cpukinds_get_info(h, (unsigned)kind, NULL, &rank, NULL, NULL, 0) != 0 || rank < 0)
        return SPEED_ONE;
    int below = kinds - 1 - rank;
    return below > 8 ? SPEED_ONE >> 8 : SPEED_ONE >> below;
}

/* The node of a CPU: of several (memory on the package beside the ordinary one) the first, which is
 * where Linux allocates by itself. */
static int node_of(const struct topology *t, hwloc_obj_t pu)
{
    int os = pu->nodeset ? hwloc_bitmap_first(pu->nodeset) : -1;
    for (size_t n = 0; n < t->n_nodes; n++)
        if (t->node[n].os == os)
            return (int)n;
    return 0;
}

static int take(struct topology *t, hwloc_topology_t h, const char *source, dsv4_err *err)
{
    int cpus = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_PU);
    int nodes = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_NUMANODE);
    if (cpus <= 0 || nodes <= 0)
        return err_set(err, DSV4_FAILED, "hwloc finds no CPUs");
    TRY(topology_room(t, (size_t)cpus, (size_t)nodes, err));
    t->source = source;
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_NUMANODE, o));)
        t->node[t->n_nodes++] =
            (struct numa_node){.os = (int)o->os_index, .bytes = o->attr->numanode.local_memory};
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_PU, o));) {
        hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(h, HWLOC_OBJ_CORE, o);
        hwloc_obj_t package = hwloc_get_ancestor_obj_by_type(h, HWLOC_OBJ_PACKAGE, o);
        t->cpu[t->n_cpus++] =
            (struct cpu){.os = (int)o->os_index,
                         .core = (int)(core ? core->logical_index : o->logical_index),
                         .node = node_of(t, o),
                         .package = package ? (int)package->os_index : 0,
                         .speed = class_speed(h, o->cpuset),
                         .allowed = true};
    }
    topology_settle(t);
    return 0;
}

/* CPUs, cores, packages, nodes (whose CPUs may be a group); no caches, no devices. */
static bool wanted_only(hwloc_topology_t h)
{
    return hwloc_topology_set_all_types_filter(h, HWLOC_TYPE_FILTER_KEEP_NONE) == 0 &&
           hwloc_topology_set_type_filter(h, HWLOC_OBJ_GROUP, HWLOC_TYPE_FILTER_KEEP_STRUCTURE) ==
               0 &&
           hwloc_topology_set_type_filter(h, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL) == 0 &&
           hwloc_topology_set_type_filter(h, HWLOC_OBJ_PACKAGE, HWLOC_TYPE_FILTER_KEEP_ALL) == 0;
}

int topology_hwloc(struct topology *t, dsv4_err *err)
{
    hwloc_topology_t h;
    if (hwloc_topology_init(&h) != 0)
        return err_set(err, DSV4_FAILED, "hwloc does not start");
    int rc;
    if (!wanted_only(h) ||
        hwloc_topology_set_flags(h, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED) != 0 ||
        hwloc_topology_load(h) != 0)
        rc = err_set(err, DSV4_FAILED, "hwloc cannot tell what this machine is");
    else
        rc = take(t, h, "hwloc", err);
    hwloc_topology_destroy(h);
    return rc;
}

/* ------------------------------------------------------------------ made-up machines */

/* Splits "TEXT word:VALUE" at the last place where ` word:` stands; NULL when it does not. */
static char *cut_word(char *text, const char *word)
{
    char *at = strstr(text, word);
    if (!at)
        return NULL;
    *at = 0;
    return at + strlen(word);
}

/* Two classes: the listed cores and the others. */
static bool register_slow(hwloc_topology_t h, const char *slow)
{
    hwloc_bitmap_t low = hwloc_bitmap_alloc();
    hwloc_bitmap_t high = low ? hwloc_bitmap_dup(hwloc_topology_get_topology_cpuset(h)) : NULL;
    bool ok = high != NULL && hwloc_bitmap_list_sscanf(low, slow) == 0;
    ok = ok && hwloc_bitmap_isincluded(low, high) && !hwloc_bitmap_iszero(low);
    ok = ok && hwloc_bitmap_andnot(high, high, low) == 0 && !hwloc_bitmap_iszero(high);
    ok = ok && hwloc_cpukinds_register(h, low, 0, 0, NULL, 0) == 0 &&
         hwloc_cpukinds_register(h, high, 1, 0, NULL, 0) == 0;
    hwloc_bitmap_free(low);
    hwloc_bitmap_free(high);
    return ok;
}

static bool parse_quota(const char *text, double *quota)
{
    char *end;
    *quota = strtod(text, &end);
    return end != text && *end == 0 && *quota > 0 && *quota <= 1e6;
}

static int synthetic(struct topology *t, char *text, const char *shown, dsv4_err *err)
{
    double quota = 0;
    char *quota_text = cut_word(text, " quota:"), *slow = cut_word(text, " slow:");
    hwloc_topology_t h;
    if (quota_text && !parse_quota(quota_text, &quota))
        return err_set(err, DSV4_USAGE, "%s: quota:%s is no number of CPUs", shown, quota_text);
    if (hwloc_topology_init(&h) != 0)
        return err_set(err, DSV4_FAILED, "hwloc does not start");
    int rc;
    if (hwloc_topology_set_synthetic(h, text) != 0 || !wanted_only(h) ||
        hwloc_topology_load(h) != 0)
        rc = err_set(
            err, DSV4_USAGE,
            "\"%s\" is no machine in hwloc's synthetic syntax (\"package:2 core:32 pu:2\")", text);
    else if (slow && !register_slow(h, slow))
        rc = err_set(err, DSV4_USAGE, "%s: slow:%s has to be some of its CPUs, not all", shown,
                     slow);
    else
        rc = take(t, h, "synthetic", err);
    hwloc_topology_destroy(h);
    if (rc != 0)
        return rc;
    t->quota = quota;
    for (size_t n = 0; n < t->n_nodes; n++) /* hwloc makes up a size */
        t->node[n].bytes = 0;
    return 0;
}

int topology_synthetic(struct topology *t, const char *text, dsv4_err *err)
{
    char *copy = strdup(text);
    if (!copy)
        return err_memory(err, strlen(text) + 1, "a description");
    int rc = synthetic(t, copy, text, err);
    free(copy);
    return rc;
}

#else

int topology_hwloc(struct topology *t, dsv4_err *err)
{
    (void)t;
    return err_set(err, DSV4_FAILED, "built without hwloc");
}

int topology_synthetic(struct topology *t, const char *text, dsv4_err *err)
{
    (void)t;
    return err_set(err, DSV4_FAILED, "%s: made-up machines need a build with hwloc", text);
}

#endif
