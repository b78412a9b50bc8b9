/* grammar_schema.h - what the files that read JSON Schema share. A value is described by a list of
 * schemas that all hold (a schema, what it refers to, the members of allOf); alternatives (anyOf,
 * oneOf) are taken apart into several such lists. Each list is one rule, made once, so that
 * recursion ends. */
#ifndef DSV4_GRAMMAR_SCHEMA_H
#define DSV4_GRAMMAR_SCHEMA_H

#include "grammar.h"

/* A schema object; the lowest bits tell which of its alternatives were chosen already. */
struct element {
    uintptr_t v;
};

enum { CHOSEN_ANY = 1, CHOSEN_ONE = 2 };

static inline const struct jv *element_schema(struct element e)
{
    return (const struct jv *)(e.v & ~(uintptr_t)3);
}

enum {
    T_NULL = 1,
    T_BOOL = 2,
    T_INTEGER = 4,
    T_FRACTION = 8, /* numbers that are no integers */
    T_STRING = 16,
    T_LIST = 32,
    T_OBJECT = 64,
    T_ALL = 127
};

/* How a value is written: as JSON; a string as it is, as the parameter of a call; an object as all
 * parameters of a call. */
enum written { AS_JSON, AS_TEXT, AS_PARAMETERS };

struct elements {
    struct element *v;
    size_t n, cap;
    bool never; /* `false` is one of them */
};

/* A rule that was asked for. */
struct shape {
    uint32_t types, rule;
    enum written written;
    size_t at, n; /* elements in the pool */
};

struct schema {
    struct gbuild *b;
    const struct jv *root;
    const char *what;              /* names it in messages */
    const struct dialect *dialect; /* of calls; NULL: plain JSON */
    struct shape *shape;
    struct element *pool;
    struct slots slots; /* of the shapes */
    size_t n_shapes, n_pool, cap_shapes, cap_pool;
    size_t done;          /* shapes whose rule has its body */
    int depth;            /* of references being followed */
    const struct jv *own; /* the enum whose constants are looked at: it need not be searched */
    /* parts used everywhere; 0: not made yet */
    uint32_t space, character, string, text, value, dsml;
};

/* "schema: minimum at #/properties/a ..." about a keyword's value. */
int schema_refuse(const struct schema *s, const struct jv *keyword, const char *why);
bool schema_is(const struct jv *member, const char *key);
/* "schema: #/properties/a" to out. */
void schema_place(const struct schema *s, const struct jv *v, char *out, size_t size);

/* The rule for values that fit all elements; `false` among them gives 0. */
uint32_t schema_rule(struct schema *s, const struct elements *e, uint32_t types, enum written w);
/* Adds a schema, what it refers to and what its allOf holds. */
int schema_add(struct schema *s, struct elements *e, const struct jv *schema);
/* Makes the bodies of all rules that were asked for. */
int schema_finish(struct schema *s);
void schema_free(struct schema *s);

/* A number of one of the types. A whole number that must not be negative or a default. */
uint32_t schema_number(struct schema *s, const struct element *e, size_t n, bool integer);
int schema_count(struct schema *s, const struct jv *v, uint32_t *out);

/* grammar_string.c */
uint32_t schema_string(struct schema *s, const struct element *e, size_t n, enum written w);
/* The automaton of the string itself; *plain: nothing is asked of it and none was made. */
int schema_string_fa(struct schema *s, const struct element *e, size_t n, bool *plain,
                     struct fa *out);
uint32_t schema_any_string(struct schema *s);
uint32_t schema_space(struct schema *s);
/* The marker of a dialect's tags: its token, or its text where there is none. */
uint32_t schema_marker(struct schema *s);
/* A string as the tree of its JSON text. */
uint32_t schema_quoted(struct schema *s, const char *text, size_t len);

/* grammar_object.c */
uint32_t schema_object(struct schema *s, const struct element *e, size_t n, enum written w);
uint32_t schema_list(struct schema *s, const struct element *e, size_t n);

/* grammar_fits.c: whether a constant of a schema fits another one. */
bool schema_fits(struct schema *s, const struct jv *value, const struct jv *schema, int depth);
bool schema_equal(struct schema *s, const struct jv *x, const struct jv *y);
/* The target of a $ref; NULL (and a failure) when there is none. */
const struct jv *schema_target(struct schema *s, const struct jv *ref);

#endif
