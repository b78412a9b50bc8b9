/* quantization_config of a converted directory: which matrices lie in it as panels, and in which format.
 * Names are exact or have "*" for a number; looked up by the name itself first. */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

enum {
    LAYOUT = 1,       /* what this version reads and writes */
    ENTRIES = 200000, /* a line for each of the largest release's matrices would be 140 thousand */
    NUMBERS = 4,      /* in a name: a layer, an expert, and some to spare */
    TYPES = 16,       /* different ones */
    TABLE_MOST = 16,
};

struct entry {
    const char *name;
    const struct wtype *type;
    uint32_t rows; /* 0: as many as the panels hold */
};

struct packing {
    struct wtype *type; /* one for each that is named, with the file's own table */
    size_t n_types;
    int8_t table[TYPES][TABLE_MOST];
    struct entry *entry; /* ascending by name, none twice */
    size_t n;
    char *names;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* ------------------------------------------------------------------ looking up */

/* Where numbers stand in a name as whole parts between dots. */
struct numbers {
    size_t at[NUMBERS], len[NUMBERS], n;
};

static void find_numbers(struct numbers *x, const char *name)
{
    x->n = 0;
    for (const char *p = name; *p && x->n < NUMBERS; p += strcspn(p, "."), p += *p == '.') {
        size_t len = strcspn(p, "."), digits = strspn(p, "0123456789");
        if (len == 0 || digits != len)
            continue;
        x->at[x->n] = (size_t)(p - name);
        x->len[x->n++] = len;
    }
}

/* The name with "*" for the numbers of which the bit is set. */
static void starred(char *out, const char *name, const struct numbers *x, unsigned stars)
{
    size_t from = 0;
    for (size_t i = 0; i < x->n; i++) {
        if (!(stars >> i & 1))
            continue;
        memcpy(out, name + from, x->at[i] - from);
        out += x->at[i] - from;
        *out++ = '*';
        from = x->at[i] + x->len[i];
    }
    strcpy(out, name + from);
}

static const struct entry *find(const struct packing *p, const char *name)
{
    char text[256];
    struct numbers x;
    if (strlen(name) >= sizeof text)
        return NULL;
    find_numbers(&x, name);
    for (unsigned count = 0; count <= x.n; count++)
        for (unsigned stars = 0; stars < 1u << x.n; stars++) {
            if ((unsigned)__builtin_popcount(stars) != count)
                continue;
            starred(text, name, &x, stars);
            const struct entry key = {.name = text};
            const struct entry *e = bsearch(&key, p->entry, p->n, sizeof key, by_name);
            if (e)
                return e;
        }
    return NULL;
}

const struct wtype *packing_type(const struct packing *p, const char *name)
{
    const struct entry *e = p ? find(p, name) : NULL;
    return e ? e->type : NULL;
}

uint32_t packing_rows(const struct packing *p, const char *name)
{
    const struct entry *e = p ? find(p, name) : NULL;
    return e ? e->rows : 0;
}

/* ------------------------------------------------------------------ reading */

/* The values of a format with a table, from the file. */
static int read_table(struct packing *p, const struct fields *tables, struct wtype *t,
                      dsv4_err *err)
{
    int8_t *to = p->table[t - p->type];
    size_t want = wformat_table(t->format), n;
    int64_t *v = NULL;
    if (want == 0)
        return 0;
    TRY(field_wholes(tables, t->name, want, want, -127, 127, &v, &n, err));
    if (!v)
        return field_refuse(tables, t->name, NULL, err, "a list of %zu whole numbers", want);
    for (size_t i = 0; i < n; i++)
        to[i] = (int8_t)v[i];
    free(v);
    t->table = to;
    return 0;
}

static int find_type(struct packing *p, const struct fields *types, const struct fields *tables,
                     const char *name, const json_t *v, const struct wtype **out, dsv4_err *err)
{
    const struct wtype *known = json_is_string(v) ? wtype_named(json_string_value(v)) : NULL;
    if (!known || known->format == W_F32 || known->format == W_F16)
        return field_refuse(types, name, v, err,
                            "the name of a packed type that this version knows");
    for (size_t i = 0; i < p->n_types; i++)
        if (strcmp(p->type[i].name, known->name) == 0) {
            *out = &p->type[i];
            return 0;
        }
    if (p->n_types == TYPES)
        return field_refuse(types, name, v, err, "at most %d different types", TYPES);
    struct wtype *t = &p->type[p->n_types];
    *t = *known;
    t->table = NULL;
    TRY(read_table(p, tables, t, err));
    p->n_types++;
    *out = t;
    return 0;
}

static int read_types(struct packing *p, const struct fields *types, const struct fields *tables,
                      const struct fields *rows, dsv4_err *err)
{
    size_t n = json_object_size(types->object), bytes = 0;
    const char *name;
    json_t *v;
    if (n > ENTRIES)
        return err_set(err, DSV4_REFUSED, "%s: %s has %zu members; expected at most %d",
                       types->where, types->prefix, n, ENTRIES);
    json_object_foreach((json_t *)(uintptr_t)types->object, name, v) bytes += strlen(name) + 1;
    TRY(mem_alloc(&p->entry, n, sizeof *p->entry, "types of matrices", err));
    TRY(mem_alloc(&p->names, bytes, 1, "types of matrices", err));
    char *at = p->names;
    json_object_foreach((json_t *)(uintptr_t)types->object, name, v)
    {
        struct entry *e = &p->entry[p->n];
        int64_t count = 0;
        TRY(find_type(p, types, tables, name, v, &e->type, err));
        if (rows->object)
            TRY(field_whole(rows, name, 1, UINT32_MAX, &count, NULL, err));
        e->rows = (uint32_t)count;
        e->name = at;
        at = stpcpy(at, name) + 1;
        p->n++;
    }
    qsort(p->entry, p->n, sizeof *p->entry, by_name);
    return 0;
}

/* Members that have one value in this layout. */
static int check_layout(const struct fields *f, dsv4_err *err)
{
    const struct {
        const char *name;
        int64_t value;
    } fixed[] = {{"layout", LAYOUT}, {"panel", PANEL}, {"group", GROUP}};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        const json_t *v = field_get(f, fixed[i].name);
        int64_t x;
        if (!v || !json_whole(v, &x) || x != fixed[i].value)
            return field_refuse(f, fixed[i].name, v, err, "%lld%s", (long long)fixed[i].value,
                                i == 0 ? " (other layouts need another version of dsv4)" : "");
    }
    return 0;
}

int packing_read(struct packing **out, const struct fields *f, dsv4_err *err)
{
    struct fields types = {.where = f->where, .prefix = "quantization_config.types."};
    struct fields tables = {.where = f->where, .prefix = "quantization_config.tables."};
    struct fields rows = {.where = f->where, .prefix = "quantization_config.rows."};
    struct packing *p;
    TRY(check_layout(f, err));
    TRY(field_object(f, "types", &types.object, err));
    TRY(field_object(f, "tables", &tables.object, err));
    TRY(field_object(f, "rows", &rows.object, err));
    if (!types.object)
        return field_refuse(f, "types", NULL, err, "an object: name of a matrix, its type");
    TRY(mem_alloc(&p, 1, sizeof *p, "types of matrices", err));
    *out = p; /* the config's, whatever follows */
    TRY(mem_alloc(&p->type, TYPES, sizeof *p->type, "types of matrices", err));
    return read_types(p, &types, &tables, &rows, err);
}

void packing_close(struct packing *p)
{
    if (!p)
        return;
    free(p->type);
    free(p->entry);
    free(p->names);
    free(p);
}
