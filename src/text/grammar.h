/* grammar.h - the inner side of constrained decoding (docs/grammar.md). The way of a grammar:
 *   grammar_gbnf.c, grammar_schema*.c, grammar_tools.c  notation -> rules, trees of nodes
 *   grammar_tree.c     the trees: made node by node, owned by one builder
 *   grammar_regex.c    patterns and formats of JSON Schema -> nodes
 *   grammar_fa.c       a tree -> a deterministic automaton over bytes, calls of rules and tokens
 *   grammar_dfa.c      what patterns and lengths need of automata over bytes alone
 *   grammar_link.c     the automata of all rules -> one immutable dsv4_grammar
 *   grammar_vocab.c    a tokenizer's vocabulary as a trie, once a tokenizer
 *   grammar_match.c    one timeline; grammar_sets.c its sets of stacks
 *   grammar_mask.c     the tokens that may follow */
#ifndef DSV4_GRAMMAR_H
#define DSV4_GRAMMAR_H

#include "chat_inner.h"
#include "text.h"

/* ------------------------------------------------------------------ hash tables (grammar_slots.c)
 * From hashes to the numbers of things that lie elsewhere; open addressing, at most half full. free(slot).
 *
 *   TRY(slots_room(&t, "a schema", err));
 *   for (at = SLOTS_BEGIN; (i = slots_next(&t, hash, &at)) != SLOTS_NONE;)
 *       if (thing i is meant)
 *           return i;
 *   slots_put(&t, at, hash, n);              the loop has left `at` at a free place */

struct slots {
    struct {
        uint32_t hash, number; /* number + 1; 0: free */
    } * slot;
    size_t n_slots, n;
};

#define SLOTS_BEGIN SIZE_MAX
#define SLOTS_NONE  UINT32_MAX

/* Room for one more. */
int slots_room(struct slots *t, const char *what, dsv4_err *err);

static inline uint64_t bytes_hash(const char *text, size_t len)
{
    uint64_t h = len;
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return h;
}

static inline uint32_t slots_fold(uint64_t hash)
{
    return (uint32_t)(hash ^ hash >> 32);
}

/* The next number that was put with this hash. */
static inline uint32_t slots_next(const struct slots *t, uint64_t hash, size_t *at)
{
    uint32_t h = slots_fold(hash);
    size_t i = *at == SLOTS_BEGIN ? h : *at + 1;
    while (t->slot[i &= t->n_slots - 1].number && t->slot[i].hash != h)
        i++;
    *at = i;
    return t->slot[i].number - 1; /* SLOTS_NONE */
}

static inline void slots_put(struct slots *t, size_t at, uint64_t hash, uint32_t number)
{
    t->slot[at].hash = slots_fold(hash);
    t->slot[at].number = number + 1;
    t->n++;
}

/* ------------------------------------------------------------------ trees (grammar_tree.c) */

enum gkind {
    G_NEVER, /* nothing at all fits */
    G_EMPTY,
    G_BYTES,  /* a: offset in text, b: length */
    G_RANGE,  /* one byte a .. b */
    G_CLASS,  /* one character: b ranges of code points at a */
    G_TOKEN,  /* token a */
    G_CALL,   /* rule a */
    G_SEQ,    /* b nodes at kid[a] */
    G_ALT,    /* likewise, one of them */
    G_REPEAT, /* node a, b to c times (c G_INF: no limit) */
    G_COUNT,  /* the same, always with a counter */
    G_GRAPH,  /* b arcs at arc[a] between c places; from place 0 to place 1 */
};

#define G_INF UINT32_MAX

struct gnode {
    enum gkind kind;
    uint32_t a, b, c;
    uint32_t sym;  /* that stands for it in automata, plus 1; 0: none yet */
    uint32_t unit; /* the counted rule of repetitions of it, plus 1; 0: none yet */
};

struct grange {
    uint32_t lo, hi;
};

struct garc {
    uint32_t from, to, node;
};

struct grule {
    uint32_t name, name_len; /* in text; for messages */
    uint32_t node, sym;      /* sym: as in a node */
    bool set, counted;
};

/* A symbol of the automata beside bytes: a token, or (token G_INF) a call, whose counter goes from
 * min to max when the rule is counted. */
struct gsym {
    uint32_t token, rule, min, max;
};

/* What a grammar is built in. The first failure stays in rc and everything after it is void, so
 * that only the end need be asked. */
struct gbuild {
    const dsv4_tokenizer *t;
    struct gnode *node;
    struct bytes text;
    struct grange *range;
    uint32_t *kid;
    struct garc *arc;
    struct grule *rule;
    struct gsym *sym;
    size_t n_node, n_range, n_kid, n_arc, n_rule, n_sym;
    size_t cap_node, cap_range, cap_kid, cap_arc, cap_rule, cap_sym;
    size_t work; /* steps taken; bounded by G_MAX_WORK */
    int rc;
    dsv4_err *err;
};

/* Bounds of one grammar. What is larger is refused with a message. */
#define G_MAX_NODES  (1u << 20)
#define G_MAX_STATES (1u << 18)
#define G_MAX_WORK   (1u << 24)
#define G_MAX_RULES  (1u << 16)

void g_free(struct gbuild *b);
/* Records a failure; returns the node 0, which is G_NEVER. */
uint32_t g_fail(struct gbuild *b, int status, const char *format, ...) PRINTF_LIKE(3, 4);
/* Counts n steps of work; false when there were too many. */
bool g_work(struct gbuild *b, size_t n);

uint32_t g_empty(struct gbuild *b);
uint32_t g_bytes(struct gbuild *b, const void *text, size_t len);
uint32_t g_text(struct gbuild *b, const char *text);
uint32_t g_range(struct gbuild *b, unsigned lo, unsigned hi);
/* One character of the ranges (any order, overlapping or not), or with `not` any other. */
uint32_t g_class(struct gbuild *b, const struct grange *range, size_t n, bool negate);
uint32_t g_token(struct gbuild *b, int32_t token);
uint32_t g_call(struct gbuild *b, uint32_t rule);
uint32_t g_list(struct gbuild *b, enum gkind kind, const uint32_t *node, size_t n);
uint32_t g_repeat(struct gbuild *b, enum gkind kind, uint32_t node, uint32_t min, uint32_t max);
uint32_t g_graph(struct gbuild *b, const struct garc *arc, size_t n, size_t n_places);
#define g_seq(b, ...)                                 \
    g_list(b, G_SEQ, (const uint32_t[]){__VA_ARGS__}, \
           sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))
#define g_alt(b, ...)                                 \
    g_list(b, G_ALT, (const uint32_t[]){__VA_ARGS__}, \
           sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))
#define g_opt(b, node) g_repeat(b, G_REPEAT, node, 0, 1)

/* A new rule without a body. */
uint32_t g_rule(struct gbuild *b, const char *name, size_t len);
void g_set_rule(struct gbuild *b, uint32_t rule, uint32_t node);

/* A growing list of alternatives, parts or arcs; free(v). */
struct glist {
    uint32_t *v;
    size_t n, cap;
};
void glist_add(struct gbuild *b, struct glist *l, uint32_t node);

struct garcs {
    struct garc *v;
    size_t n, cap;
};
void garcs_add(struct gbuild *b, struct garcs *l, size_t from, size_t to, uint32_t node);

/* ------------------------------------------------------------------ automata (grammar_fa.c) */

struct fedge {
    uint8_t lo, hi;
    uint32_t to;
};

struct fcall {
    uint32_t sym, to;
};

struct fstate {
    uint32_t edge, n_edge; /* by byte, disjoint */
    uint32_t call, n_call;
    bool final;
};

/* Begins in state 0. */
struct fa {
    struct fstate *state;
    struct fedge *edge;
    struct fcall *call;
    size_t n, n_edge, n_call, cap, cap_edge, cap_call;
};

void fa_free(struct fa *f);
/* The automaton of one tree. `flat`: bytes only, calls are put in; refused for recursive ones. */
int fa_build(struct gbuild *b, uint32_t node, bool flat, struct fa *out);
uint32_t fa_add_state(struct gbuild *b, struct fa *f, bool final);
/* Edges belong to the state added last. */
void fa_add_edge(struct gbuild *b, struct fa *f, unsigned lo, unsigned hi, uint32_t to);
/* The state after one byte; G_INF. */
uint32_t fa_next(const struct fa *f, uint32_t state, unsigned byte);

/* ------------------------------------------------------------------ bytes only (grammar_dfa.c) */

enum dfa_op { DFA_AND, DFA_MINUS };

int dfa_combine(struct gbuild *b, const struct fa *x, const struct fa *y, enum dfa_op op,
                struct fa *out);
/* Of well-formed UTF-8: what has min to max characters. */
int dfa_limit(struct gbuild *b, const struct fa *x, uint32_t min, uint32_t max, struct fa *out);
/* Well-formed UTF-8 in which `word` does not stand. */
int dfa_without(struct gbuild *b, const char *word, struct fa *out);
bool dfa_match(const struct fa *f, const char *text, size_t len);
/* As a node; `escaped`: as it stands between the quotes of a JSON string. */
uint32_t dfa_node(struct gbuild *b, const struct fa *f, bool escaped);

/* ------------------------------------------------------------------ patterns */

/* An ECMA-262 pattern as JSON Schema uses it (found anywhere unless anchored) -> the characters of
 * all texts that fit. Refused: what is not regular. */
uint32_t g_pattern(struct gbuild *b, const char *pattern, size_t len, const char *place);
/* The pattern of a `format`; NULL: not one that is enforced. */
const char *format_pattern(const char *name, size_t len);

/* ------------------------------------------------------------------ tokens (grammar_vocab.c) */

/* Families of characters that most of a vocabulary is made of. */
enum { SLICE_PLAIN, SLICE_WORD, N_SLICES };
#define SLICE_STEPS 33

struct vnode {
    uint32_t end;   /* the first node behind this subtree */
    uint32_t main;  /* in a part of the trie: this node's place in the whole */
    int32_t token;  /* that ends here; -1 */
    uint16_t depth; /* bytes from the root */
    uint8_t byte;
    uint8_t
        level[N_SLICES]; /* most characters of a token of the subtree; 255: not all of the family */
};

/* Tokens as a trie in preorder; node 0 is the root. Added tokens are not in it. */
struct vocab {
    struct vnode *node, *mixed; /* mixed: what leads to tokens that are not all PLAIN */
    size_t n_nodes, n_mixed, cap_nodes, cap_mixed;
    uint32_t n_tokens, n_words;             /* ids of the tokenizer; words of a mask of them */
    int32_t *same;                          /* [n_tokens] another token of the same bytes; -1 */
    uint32_t depth;                         /* bytes of the longest token */
    uint32_t *slice[N_SLICES][SLICE_STEPS]; /* masks: tokens of at most slice_step(i) characters */
    uint32_t *wide;                         /* nodes of PLAIN tokens between the last two steps */
    size_t n_wide, cap_wide;
    int32_t eos;
};

/* 1 to 32, then all. */
static inline unsigned slice_step(int i)
{
    return i + 1 < SLICE_STEPS ? (unsigned)i + 1 : 254;
}

/* The tokenizer's; made when first asked for, by any thread. */
int vocab_of(const dsv4_tokenizer *t, const struct vocab **out, dsv4_err *err);

/* ------------------------------------------------------------------ compiled (grammar_link.c) */

struct cstate {
    uint32_t edge, call, tok; /* of the next state: where they end */
    uint32_t rule;
    bool final;
    bool silent;    /* final, and nothing else: need not be returned to */
    uint8_t slices; /* bits: every character of the family leads to such a state again */
};

struct cedge {
    uint8_t lo, hi;
    uint32_t to;
};

struct ccall {
    uint32_t rule, min, max, to;
};

struct ctok {
    int32_t token;
    uint32_t to;
};

struct crule {
    uint32_t start;
    bool counted;
    uint8_t slices; /* bits: every character of the family is a unit of a counted rule */
};

/* What may follow in one state whatever is below it on the stack. */
struct centry {
    uint32_t state, lo, hi;
    uint32_t n_ids, n_esc;
    uint32_t *ids;  /* n_ids of them ... */
    uint32_t *bits; /* ... or a mask */
    uint32_t *esc;  /* nodes of the trie reached when the rule had just ended, by their byte */
    uint32_t esc_at[257];
    bool left_plain; /* PLAIN tokens that may fit after the rule's end were left out */
};

struct dsv4_grammar {
    const dsv4_tokenizer *t;
    const struct vocab *vocab;
    struct cstate *state; /* [n + 1] */
    struct cedge *edge;
    struct ccall *call;
    struct ctok *tok;
    struct crule *rule;
    uint32_t n, n_rules, root;
    uint8_t class[256];  /* bytes that no edge tells apart */
    uint8_t sample[256]; /* a byte of each class */
    uint32_t n_classes;
    _Atomic(struct centry *) *cache; /* filled by matchers, never emptied */
    uint32_t cache_size;             /* a power of two */
    atomic_size_t cache_bytes;
};

#define G_CACHE_BYTES ((size_t)32 << 20)

int grammar_link(struct gbuild *b, uint32_t root, dsv4_grammar **out);
void centry_free(struct centry *e);

#endif
