/* Grammars, compiled on the threads that decode requests and kept while they are asked for: agents
 * send the same tools with every request. */
#include "turn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_KEPT = 64, MAX_TEXT = 1 << 20 };

struct kept {
    struct grammar_want want; /* text and name are owned */
    struct grammar_ref *ref;
    uint64_t used;
};

struct grammars {
    pthread_mutex_t lock;
    const dsv4_tokenizer *tok;
    dsv4_dialect dialect;
    struct kept kept[MAX_KEPT];
    size_t n;
    uint64_t clock;
};

int grammars_open(struct grammars **out, const dsv4_tokenizer *t, dsv4_dialect d, dsv4_err *err)
{
    struct grammars *g;
    *out = NULL;
    TRY(mem_alloc(&g, 1, sizeof *g, "grammars", err));
    pthread_mutex_init(&g->lock, NULL);
    g->tok = t;
    g->dialect = d;
    *out = g;
    return 0;
}

void grammar_unref(struct grammar_ref *g)
{
    if (!g || atomic_fetch_sub(&g->refs, 1) != 1)
        return;
    dsv4_grammar_close(g->g);
    free(g);
}

static void drop(struct kept *k)
{
    grammar_unref(k->ref);
    free((char *)(uintptr_t)k->want.text);
    free((char *)(uintptr_t)k->want.name);
}

void grammars_close(struct grammars *g)
{
    if (!g)
        return;
    while (g->n > 0)
        drop(&g->kept[--g->n]);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

static bool same(const struct grammar_want *a, const struct grammar_want *b)
{
    return a->kind == b->kind && a->len == b->len && memcmp(a->text, b->text, a->len) == 0 &&
           a->choice == b->choice && a->parallel == b->parallel &&
           strcmp(a->name ? a->name : "", b->name ? b->name : "") == 0;
}

static struct grammar_ref *find(struct grammars *g, const struct grammar_want *w)
{
    struct grammar_ref *r = NULL;
    pthread_mutex_lock(&g->lock);
    for (size_t i = 0; i < g->n && !r; i++)
        if (same(&g->kept[i].want, w)) {
            g->kept[i].used = ++g->clock;
            r = g->kept[i].ref;
            atomic_fetch_add(&r->refs, 1);
        }
    pthread_mutex_unlock(&g->lock);
    return r;
}

/* Without memory it is just not kept. */
static void keep(struct grammars *g, const struct grammar_want *w, struct grammar_ref *r)
{
    struct kept k = {.want = *w, .ref = r};
    char *text = malloc(w->len + 1);
    k.want.name = strdup(w->name ? w->name : "");
    if (!text || !k.want.name) {
        free(text);
        free((char *)(uintptr_t)k.want.name);
        return;
    }
    memcpy(text, w->text, w->len);
    text[w->len] = 0;
    k.want.text = text;
    atomic_fetch_add(&r->refs, 1);
    pthread_mutex_lock(&g->lock);
    size_t at = g->n;
    if (g->n == MAX_KEPT) {
        at = 0;
        for (size_t i = 1; i < g->n; i++)
            if (g->kept[i].used < g->kept[at].used)
                at = i;
        drop(&g->kept[at]);
    } else {
        g->n++;
    }
    k.used = ++g->clock;
    g->kept[at] = k;
    pthread_mutex_unlock(&g->lock);
}

static int compile(const struct grammars *g, const struct grammar_want *w, dsv4_grammar **out,
                   dsv4_err *err)
{
    switch (w->kind) {
    case GRAMMAR_JSON: return dsv4_grammar_json_schema(out, g->tok, w->text, w->len, err);
    case GRAMMAR_GBNF: return dsv4_grammar_open(out, g->tok, w->text, w->len, err);
    default:
        return dsv4_grammar_tools(out, g->tok, g->dialect, w->text, w->len, w->choice, w->name,
                                  w->parallel, err);
    }
}

/* Nothing comes of a text that jansson had to read in its spare space. */
static int compile_safely(const struct grammars *g, const struct grammar_want *w,
                          dsv4_grammar **out, dsv4_err *err)
{
    TRY(json_spare_begin(w->len, err));
    (void)json_failed();
    int rc = compile(g, w, out, err);
    if (json_failed()) {
        if (rc == 0)
            dsv4_grammar_close(*out);
        rc = err_memory(err, w->len, "a grammar");
    }
    json_spare_end();
    return rc;
}

int grammar_get(struct grammars *g, const struct grammar_want *w, struct grammar_ref **out,
                dsv4_err *err)
{
    dsv4_grammar *made = NULL;
    *out = find(g, w);
    if (*out)
        return 0;
    if (w->len > MAX_TEXT)
        return err_set(err, DSV4_REFUSED, "%zu bytes of a grammar; at most %d are taken", w->len,
                       MAX_TEXT);
    TRY(compile_safely(g, w, &made, err));
    struct grammar_ref *r;
    int rc = mem_alloc(&r, 1, sizeof *r, "a grammar", err);
    if (rc != 0) {
        dsv4_grammar_close(made);
        return rc;
    }
    atomic_init(&r->refs, 1);
    r->g = made;
    keep(g, w, r);
    *out = r;
    return 0;
}
