/* grammar_match.h - one timeline of constrained decoding: what grammar_sets.c, grammar_mask.c and
 * grammar_match.c share.
 *
 * Where a text stands in its grammar is a set of stacks, as it may have been read in several ways.
 * A stack's top is a state of a rule, below it are the states to which calls return. Equal sets are
 * one: a set is a sorted list of tops, each with the set of what may lie below it, and every set has
 * a number. So "set after a byte" is a table, filled as it is used, and text that goes on in the same
 * manner (inside a string) stays in one set. */
#ifndef DSV4_GRAMMAR_MATCH_H
#define DSV4_GRAMMAR_MATCH_H

#include "grammar.h"

#define SET_NONE  0u /* no stack: the byte does not fit */
#define SET_END   1u /* the empty stack: the text may end */
#define STATE_END UINT32_MAX
#define UNKNOWN   UINT32_MAX

/* A state; repetitions of its counted rule that must and may follow the one at hand; the set
 * below. */
struct mnode {
    uint32_t state, lo, hi, below;
};

struct mset {
    uint32_t first, n; /* nodes */
    uint32_t depth;    /* of its deepest stack */
    uint32_t row;      /* of the table of steps; UNKNOWN: none yet */
    uint32_t popped;   /* the set when a rule called from here has ended; UNKNOWN */
    bool end;          /* the empty stack is one of its stacks */
};

struct set_pair {
    uint32_t x, y, both;
};

struct sets {
    const dsv4_grammar *g;
    struct mnode *node;
    struct mset *set;
    struct slots slots; /* of the sets */
    uint32_t *row;      /* [n_rows][classes] */
    size_t n_nodes, n_sets, n_rows, cap_nodes, cap_sets, cap_rows;
    struct mnode *todo, *found, *merge; /* scratch of a step */
    size_t n_todo, n_found, n_merge, cap_todo, cap_found, cap_merge;
    struct mnode *seen; /* hash table of nodes met in this step */
    uint32_t *seen_at;  /* the step that an entry is of */
    size_t n_seen_slots, n_seen;
    uint32_t step;
    struct set_pair
        *united; /* unions made lately: sets share so much that they recur all the time */
    int rc;      /* the first failure */
    dsv4_err *err;
};

int sets_open(struct sets *s, const dsv4_grammar *g, dsv4_err *err);
void sets_close(struct sets *s);
/* The set with which a text begins. */
uint32_t sets_start(struct sets *s);
/* The stack of one state alone. */
uint32_t sets_single(struct sets *s, struct mnode n);
uint32_t sets_compute(struct sets *s, uint32_t set, unsigned class);
uint32_t sets_token(struct sets *s, uint32_t set, int32_t token);
uint32_t sets_popped(struct sets *s, uint32_t set);
uint32_t sets_union(struct sets *s, uint32_t x, uint32_t y);
/* A copy of one set of `from` in `to`, which is open. */
uint32_t sets_copy(struct sets *to, const struct sets *from, uint32_t set);

/* The set after one more byte of a class. */
static inline uint32_t sets_step(struct sets *s, uint32_t set, unsigned class)
{
    uint32_t row = s->set[set].row;
    if (row != UNKNOWN) {
        uint32_t next = s->row[(size_t)row * s->g->n_classes + class];
        if (next != UNKNOWN)
            return next;
    }
    return sets_compute(s, set, class);
}

enum { KEPT_MASKS = 6 };

struct dsv4_matcher {
    const dsv4_grammar *g;
    struct sets s;
    uint32_t now;
    bool ended;     /* EOS was accepted */
    uint32_t *path; /* [vocab depth + 1] sets on the way down the trie */
    struct {
        uint32_t set, *bits;
    } kept[KEPT_MASKS]; /* masks computed last */
    unsigned next_kept;
    uint32_t *esc; /* scratch */
    size_t n_esc, cap_esc;
};

/* The mask of m->now, of g->vocab->n_words words; NULL and s.rc after a failure. */
const uint32_t *matcher_mask(struct dsv4_matcher *m);

#endif
