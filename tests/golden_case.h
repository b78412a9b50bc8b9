/* golden_case.h - one golden directory: checkpoint, expected tensors, and a model bound to it. */
#ifndef TESTS_GOLDEN_CASE_H
#define TESTS_GOLDEN_CASE_H

#include "src/model/model.h"
#include "suite.h"

#include <jansson.h>

struct golden {
    char dir[256];
    json_t *expect;
    struct store *want; /* expect.safetensors; NULL when the case borrows another's */
    struct config *cfg;
    struct store *store;
    struct model *m;
    struct pool *pool;
    bool quant, plain;
};

/* Opens tests/golden/NAME. The checks inside fail the running test. */
void golden_open(struct golden *g, const char *name, int threads);
/* Weights are used as they lie in the file (--paged). */
void golden_open_plain(struct golden *g, const char *name, int threads);
void golden_close(struct golden *g);

const struct tensor *golden_tensor(const struct golden *g, const char *name);
float golden_f32(const struct tensor *t, size_t i);
int64_t golden_i64(const struct tensor *t, size_t i);

/* Prompt ids of the case, malloc'ed. */
int32_t *golden_prompt(const struct golden *g, size_t *n);

/* Logits of tokens appended to a cache in chunks of the given sizes (0-terminated; NULL: one), all
 * rows [n][vocab] malloc'ed. */
float *golden_run(const struct golden *g, struct cache *c, const int32_t *ids, size_t n,
                  const size_t *chunks, const struct tap *tap);
struct cache *golden_cache(const struct golden *g, size_t tokens);

#endif
