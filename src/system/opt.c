/* Command lines, read through one table: GNU habits (--name=value, -nVALUE, options and words mixed,
 * "--"), no abbreviations, every value checked, messages that name the nearest thing that exists.
 * Owns nothing but the lists it fills. Help, man page and completions: opt_doc.c. */
#include "opt.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ nearest names */

enum { NAME_MAX_LEN = 32 };

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Insertions, deletions, replacements and swaps of neighbours that make b of a; names longer than
 * NAME_MAX_LEN are infinitely far. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t n = strnlen(a, NAME_MAX_LEN + 1), m = strnlen(b, NAME_MAX_LEN + 1);
    if (n > NAME_MAX_LEN || m > NAME_MAX_LEN)
        return SIZE_MAX;
    size_t d[NAME_MAX_LEN + 1][NAME_MAX_LEN + 1];
    for (size_t i = 0; i <= n; i++)
        d[i][0] = i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = j;
    for (size_t i = 1; i <= n; i++)
        for (size_t j = 1; j <= m; j++) {
            size_t best = least(d[i - 1][j], d[i][j - 1]) + 1;
            best = least(best, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = least(best, d[i - 2][j - 2] + 1);
            d[i][j] = best;
        }
    return d[n][m];
}

const char *opt_nearest_command(const struct opt_set *s, const char *word, size_t distance)
{
    const char *best = NULL;
    for (size_t i = 0; i < s->n_commands; i++) {
        size_t d = edit_distance(word, s->command[i].name);
        if (d <= distance) {
            best = s->command[i].name;
            distance = d - (d > 0);
        }
    }
    return best;
}

const char *opt_nearest_option(const struct opt_set *s, unsigned command, const char *word)
{
    const char *best = NULL;
    size_t limit = least(3, strnlen(word, NAME_MAX_LEN) / 3 + 1), best_d = limit + 1;
    for (size_t i = 0; i < s->n_opts; i++) {
        const struct opt *o = &s->opt[i];
        if (!opt_takes(o, command))
            continue;
        size_t d = edit_distance(word, o->name);
        if (d < best_d) {
            best = o->name;
            best_d = d;
        }
    }
    return best;
}

/* ------------------------------------------------------------------ look-up */

int opt_command_find(const struct opt_set *s, const char *name)
{
    for (size_t i = 0; i < s->n_commands; i++)
        if (strcmp(s->command[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* The row of a long name (len bytes of it) or of a letter (name NULL) among the commands in `mask`. */
static const struct opt *find(const struct opt_set *s, unsigned mask, const char *name, size_t len,
                              char letter)
{
    for (size_t i = 0; i < s->n_opts; i++) {
        const struct opt *o = &s->opt[i];
        if (!(o->commands & mask))
            continue;
        if (name ? strlen(o->name) == len && memcmp(o->name, name, len) == 0 : o->letter == letter)
            return o;
    }
    return NULL;
}

int opt_first_word(const struct opt_set *s, int argc, char *const *argv)
{
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        if (a[0] != '-' || a[1] == 0)
            return i;
        if (strcmp(a, "--") == 0)
            return -1;
        if (a[1] == '-') {
            const char *name = a + 2;
            size_t len = strcspn(name, "=");
            const struct opt *o = find(s, ~0u, name, len, 0);
            if (o && o->kind != OPT_FLAG && name[len] == 0)
                i++;
            continue;
        }
        for (const char *p = a + 1; *p; p++) {
            const struct opt *o = find(s, ~0u, NULL, 0, *p);
            if (o && o->kind != OPT_FLAG) {
                i += p[1] == 0;
                break;
            }
        }
    }
    return -1;
}

/* ------------------------------------------------------------------ values */

bool opt_number_u64(const char *text, uint64_t *out)
{
    uint64_t v = 0;
    if (!*text)
        return false;
    for (const char *p = text; *p; p++) {
        if (*p < '0' || *p > '9' || __builtin_mul_overflow(v, (uint64_t)10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
            return false;
    }
    *out = v;
    return true;
}

bool opt_number_double(const char *text, double *out)
{
    if (!*text || text[strspn(text, "0123456789+-.eE")] != 0)
        return false;
    char *end;
    double v = strtod(text, &end);
    if (*end || !isfinite(v))
        return false;
    *out = v;
    return true;
}

static bool number_bytes(const char *text, uint64_t *out)
{
    char digits[24];
    size_t n = strspn(text, "0123456789");
    if (n == 0 || n >= sizeof digits)
        return false;
    memcpy(digits, text, n);
    digits[n] = 0;
    static const char units[] = "KMGT";
    unsigned shift = 0;
    if (text[n]) {
        char c = text[n] >= 'a' ? (char)(text[n] - 32) : text[n];
        const char *u = strchr(units, c);
        const char *rest = text + n + 1;
        if (!u || (*rest && strcmp(rest, "B") != 0 && strcmp(rest, "iB") != 0))
            return false;
        shift = 10 * (unsigned)(u - units + 1);
    }
    return opt_number_u64(digits, out) &&
           !__builtin_mul_overflow(*out, (uint64_t)1 << shift, out) && *out > 0;
}

static bool number_choice(const char *words, const char *text, int *out)
{
    size_t len = strlen(text);
    int i = 0;
    for (const char *w = words; len > 0; i++) {
        size_t n = strcspn(w, "|");
        if (n == len && memcmp(w, text, n) == 0) {
            *out = i;
            return true;
        }
        if (!w[n])
            break;
        w += n + 1;
    }
    return false;
}

static int list_add(struct opt_list *l, const char *text, dsv4_err *err)
{
    TRY(mem_grow(&l->item, &l->cap, l->n + 1, sizeof *l->item, "an option's values", err));
    l->item[l->n++] = text;
    return 0;
}

static int not_a_number(const struct opt *o, const char *text, dsv4_err *err)
{
    return err_set(err, DSV4_USAGE, "--%s: \"%s\" is not a number from %.10g to %.10g", o->name,
                   text, o->min, o->max);
}

static int store(const struct opt *o, const char *text, void *values, dsv4_err *err)
{
    void *at = (char *)values + o->offset;
    uint64_t u;
    double d;
    switch (o->kind) {
    case OPT_FLAG: *(bool *)at = true; return 0;
    case OPT_TEXT: *(const char **)at = text; return 0;
    case OPT_LIST: return list_add(at, text, err);
    case OPT_CHOICE:
        if (!number_choice(o->arg, text, at))
            return err_set(err, DSV4_USAGE, "--%s: \"%s\" is none of %s", o->name, text, o->arg);
        return 0;
    case OPT_U32:
        if (!opt_number_u64(text, &u) || (double)u < o->min || (double)u > o->max)
            return not_a_number(o, text, err);
        *(uint32_t *)at = (uint32_t)u;
        return 0;
    case OPT_FLOAT:
        if (!opt_number_double(text, &d) || d < o->min || d > o->max)
            return not_a_number(o, text, err);
        *(float *)at = (float)d;
        return 0;
    case OPT_BYTES:
        if (!number_bytes(text, at))
            return err_set(err, DSV4_USAGE,
                           "--%s: \"%s\" is no number of bytes (like 4096, 512M or 24G)", o->name,
                           text);
        return 0;
    }
    return err_set(err, DSV4_FAILED, "--%s: an option of no kind", o->name);
}

/* ------------------------------------------------------------------ parsing */

/* "unknown option", with what may have been meant. */
static int unknown(const struct opt_set *s, unsigned command, const char *name, size_t len,
                   char letter, dsv4_err *err)
{
    const struct opt *other = find(s, ~0u, name, len, letter);
    const char *cmd = s->command[command].name;
    /* A program with one command has it by its own name. */
    bool alone = strcmp(cmd, s->program) == 0;
    const char *gap = alone ? "" : " ";
    cmd = alone ? "" : cmd;
    if (other)
        return err_set(err, DSV4_USAGE, "--%s is no option of %s%s%s (see %s%s%s --help)",
                       other->name, s->program, gap, cmd, s->program, gap, cmd);
    if (!name)
        return err_set(err, DSV4_USAGE, "unknown option -%c (see %s%s%s --help)", letter,
                       s->program, gap, cmd);
    char word[NAME_MAX_LEN + 2];
    size_t n = least(len, sizeof word - 1);
    memcpy(word, name, n);
    word[n] = 0;
    const char *near = opt_nearest_option(s, command, word);
    if (near)
        return err_set(err, DSV4_USAGE, "unknown option --%s; did you mean --%s?", word, near);
    return err_set(err, DSV4_USAGE, "unknown option --%s (see %s%s%s --help)", word, s->program,
                   gap, cmd);
}

struct reader {
    const struct opt_set *set;
    unsigned command;
    int argc, at;
    char **argv;
    void *values;
};

static int value_of(struct reader *r, const struct opt *o, const char *attached, const char **text,
                    dsv4_err *err)
{
    if (attached)
        *text = attached;
    else if (r->at + 1 < r->argc)
        *text = r->argv[++r->at];
    else
        return err_set(err, DSV4_USAGE, "--%s needs a value: --%s %s", o->name, o->name, o->arg);
    return 0;
}

static int read_long(struct reader *r, const char *name, dsv4_err *err)
{
    size_t len = strcspn(name, "=");
    const struct opt *o = find(r->set, 1u << r->command, name, len, 0);
    if (!o)
        return unknown(r->set, r->command, name, len, 0, err);
    const char *text = NULL, *attached = name[len] ? name + len + 1 : NULL;
    if (o->kind == OPT_FLAG && attached)
        return err_set(err, DSV4_USAGE, "--%s takes no value", o->name);
    if (o->kind != OPT_FLAG)
        TRY(value_of(r, o, attached, &text, err));
    return store(o, text, r->values, err);
}

static int read_letters(struct reader *r, const char *p, dsv4_err *err)
{
    for (; *p; p++) {
        const struct opt *o = find(r->set, 1u << r->command, NULL, 0, *p);
        if (!o)
            return unknown(r->set, r->command, NULL, 0, *p, err);
        if (o->kind == OPT_FLAG) {
            TRY(store(o, NULL, r->values, err));
            continue;
        }
        const char *text = NULL;
        TRY(value_of(r, o, p[1] ? p + 1 : NULL, &text, err));
        return store(o, text, r->values, err);
    }
    return 0;
}

int opt_count_args(const struct opt_set *s, unsigned command, int n, char *const *argv,
                   dsv4_err *err)
{
    const struct opt_command *c = &s->command[command];
    const char *space = *c->args ? " " : "";
    if (n < c->min_args)
        return err_set(err, DSV4_USAGE, "something is missing: %s %s%s%s", s->program, c->name,
                       space, c->args);
    if (c->max_args >= 0 && n > c->max_args)
        return err_set(err, DSV4_USAGE, "\"%s\" is too much: %s %s%s%s", argv[c->max_args],
                       s->program, c->name, space, c->args);
    return 0;
}

/* Variables stand in for options that are not given, so they are read first. */
static int from_environment(const struct opt_set *s, unsigned command, void *values, dsv4_err *err)
{
    for (size_t i = 0; i < s->n_opts; i++) {
        const struct opt *o = &s->opt[i];
        const char *text = o->env && opt_takes(o, command) ? getenv(o->env) : NULL;
        if (!text || !*text)
            continue;
        dsv4_err why;
        int rc = store(o, text, values, &why);
        if (rc != 0)
            return err_set(err, rc, "%s (from the variable %s)", why.text, o->env);
    }
    return 0;
}

int opt_parse(const struct opt_set *s, unsigned command, int argc, char **argv, void *values,
              int *n_args, dsv4_err *err)
{
    struct reader r = {.set = s, .command = command, .argc = argc, .argv = argv, .values = values};
    int n = 0;
    bool only_words = false;
    TRY(from_environment(s, command, values, err));
    for (; r.at < argc; r.at++) {
        char *a = argv[r.at];
        if (only_words || a[0] != '-' || a[1] == 0)
            argv[n++] = a;
        else if (strcmp(a, "--") == 0)
            only_words = true;
        else if (a[1] == '-')
            TRY(read_long(&r, a + 2, err));
        else
            TRY(read_letters(&r, a + 1, err));
    }
    *n_args = n;
    return 0;
}

void opt_release(const struct opt_set *s, void *values)
{
    for (size_t i = 0; i < s->n_opts; i++)
        if (s->opt[i].kind == OPT_LIST) {
            struct opt_list *l = (struct opt_list *)(void *)((char *)values + s->opt[i].offset);
            free(l->item);
            *l = (struct opt_list){0};
        }
}
