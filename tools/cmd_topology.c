/* The command topology: the machine as the placement of threads sees it, and what is made of it. */
#include "tools.h"

#include <stdlib.h>
#include <string.h>

/* What is shown, gathered before any of it is turned into JSON. */
struct view {
    struct topology t;
    struct placement p;
    uint64_t weights; /* bytes of the model that are cut by node; 0: no model */
    int *number;      /* [CPUs] scratch for lists */
};

/* Bytes of weights that lie in memory as rows of matrices. Tables of which single rows are looked
 * up, and the small vectors, are not cut. */
static int model_weights(struct program *p, uint64_t *bytes, dsv4_err *err)
{
    static const char *const whole[] = {"embedding", "norms and mHC", "Engram tables"};
    char *text;
    json_error_t je;
    size_t i;
    json_t *row;
    TRY(dsv4_info(p->a.model, &text, err));
    json_t *sheet = json_loads(text, 0, &je);
    dsv4_free(text);
    TRY(json_made(sheet, err));
    json_array_foreach(json_object_get(sheet, "tensors"), i, row)
    {
        const char *name = json_string_value(json_object_get(row, "class"));
        bool cut = json_is_true(json_object_get(row, "used"));
        for (size_t k = 0; k < sizeof whole / sizeof *whole; k++)
            cut = cut && strcmp(name, whole[k]) != 0;
        if (cut)
            *bytes += (uint64_t)json_integer_value(json_object_get(row, "bytes"));
    }
    json_decref(sheet);
    return 0;
}

static double share(const struct placement *p, int first, int n)
{
    return (double)(p->cut[first + n] - p->cut[first]) / (double)LANE_ONE;
}

/* CPUs of a node (-1: of all), and how many cores they are. */
static size_t cpus_of(const struct view *v, int node, bool allowed, size_t *cores)
{
    size_t n = 0;
    const struct cpu *before = NULL;
    *cores = 0;
    for (size_t i = 0; i < v->t.n_cpus; i++) {
        const struct cpu *c = &v->t.cpu[i];
        if ((node >= 0 && c->node != node) || (allowed && !c->allowed))
            continue;
        v->number[n++] = c->os;
        *cores += !before || before->core != c->core;
        before = c;
    }
    return n;
}

static json_t *list_text(const struct view *v, size_t n)
{
    char text[200];
    cpu_list_text(text, sizeof text, v->number, n);
    return json_string(n ? text : "none");
}

static const struct cpu *find_cpu(const struct view *v, int os)
{
    size_t i = 0;
    while (v->t.cpu[i].os != os)
        i++;
    return &v->t.cpu[i];
}

/* A node of the machine, with the threads that run there: with --numa off they have no node. */
static json_t *node_json(const struct view *v, int node)
{
    const struct numa_node *k = &v->t.node[node];
    int threads = 0;
    double part = 0;
    size_t cores, n;
    for (int i = 0; i < v->p.n_lanes; i++)
        if (find_cpu(v, v->p.lane[i].cpu)->node == node) {
            threads++;
            part += share(&v->p, i, 1);
        }
    n = cpus_of(v, node, false, &cores);
    json_t *cpus = list_text(v, n);
    json_t *memory = k->bytes ? json_integer((json_int_t)k->bytes) : json_null();
    json_t *j =
        json_pack("{s:i, s:o, s:I, s:o, s:i, s:f}", "node", k->os, "cpus", cpus, "cores",
                  (json_int_t)cores, "memory_bytes", memory, "threads", threads, "share", part);
    bool cut = v->p.n_nodes > 1 || v->p.node[0].os >= 0;
    if (j && v->weights && cut &&
        json_object_set_new(j, "weights_bytes",
                            json_integer((json_int_t)(part * (double)v->weights))) != 0) {
        json_decref(j);
        return NULL;
    }
    return j;
}

static json_t *lane_json(const struct view *v, int lane)
{
    const struct placed_lane *l = &v->p.lane[lane];
    const struct cpu *c = find_cpu(v, l->cpu);
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:f, s:f}", "thread", lane, "cpu", l->cpu, "core",
                     c->core, "package", c->package, "node", v->t.node[c->node].os, "speed",
                     (double)c->speed / SPEED_ONE, "share", share(&v->p, lane, 1));
}

/* ORDER enum bind */
static const char *const bindings[] = {"none", "to the CPUs of a node", "each thread to its CPU"};

static json_t *view_json(const struct view *v)
{
    size_t cores, all_cores;
    size_t all = cpus_of(v, -1, false, &all_cores), n = cpus_of(v, -1, true, &cores);
    json_t *allowed = list_text(v, n), *nodes = json_array(), *lanes = json_array();
    bool ok = nodes && lanes;
    for (int i = 0; ok && i < (int)v->t.n_nodes; i++)
        ok = json_array_append_new(nodes, node_json(v, i)) == 0;
    for (int i = 0; ok && i < v->p.n_lanes; i++)
        ok = json_array_append_new(lanes, lane_json(v, i)) == 0;
    json_t *quota = v->t.quota > 0 ? json_real(v->t.quota) : json_string("none");
    json_t *j =
        json_pack("{s:s, s:I, s:I, s:o, s:I, s:o, s:i, s:s, s:b}", "source", v->t.source, "cpus",
                  (json_int_t)all, "cores", (json_int_t)all_cores, "allowed_cpus", allowed,
                  "allowed_cores", (json_int_t)cores, "quota", quota, "threads", v->p.n_lanes,
                  "binding", bindings[v->p.bind], "crowded", (int)v->p.crowded);
    ok = ok && j;
    if (ok && v->weights)
        ok = json_object_set_new(j, "weights_bytes", json_integer((json_int_t)v->weights)) == 0;
    ok = ok && json_object_set(j, "nodes", nodes) == 0 && json_object_set(j, "lanes", lanes) == 0;
    json_decref(nodes);
    json_decref(lanes);
    if (ok)
        return j;
    json_decref(j);
    return NULL;
}

static int view_fill(struct view *v, struct program *p, dsv4_err *err)
{
    struct placement_options o = {
        .threads = (int)p->a.threads, .cpus = p->a.cpus, .numa = p->a.numa};
    TRY(p->a.synthetic ? topology_synthetic(&v->t, p->a.synthetic, err)
                       : topology_read(&v->t, err));
    TRY(placement_make(&v->p, &v->t, &o, err));
    TRY(mem_alloc(&v->number, v->t.n_cpus, sizeof *v->number, "a list of CPUs", err));
    return p->a.model ? model_weights(p, &v->weights, err) : 0;
}

int cmd_topology(struct program *p, dsv4_err *err)
{
    struct view v = {0};
    char *text = NULL;
    int rc = view_fill(&v, p, err);
    if (rc == 0) {
        json_t *j = view_json(&v);
        text = j ? json_text(j, JSON_INDENT(1)) : NULL;
        json_decref(j);
        rc = text ? show_json(p, text, err) : json_made(NULL, err);
    }
    free(v.number);
    placement_release(&v.p);
    topology_release(&v.t);
    return rc;
}
