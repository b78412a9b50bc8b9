/* fake_engine.h - an engine without a model for tests of the server: sequences are lists of tokens, the
 * test says which token is likely. It counts what it was asked, and can be slow, fail, and rewind only
 * to where a real one could. */
#ifndef TESTS_FAKE_ENGINE_H
#define TESTS_FAKE_ENGINE_H

#include "src/server/server.h"

#include <stdatomic.h>

enum { FAKE_CTX = 4096, FAKE_MARKS = 16 };

struct dsv4_seq {
    int32_t token[FAKE_CTX];
    size_t n;
    size_t mark[FAKE_MARKS], n_marks;
};

/* Set before the scheduler starts, or atomic. */
struct fake_engine {
    size_t vocab, batch;
    /* The likeliest token behind s. */
    size_t (*next)(void *arg, const dsv4_seq *s);
    void *arg;
    size_t rewind; /* tokens that can be taken back without a mark; 0: all */

    atomic_uint delay; /* microseconds of a step */
    atomic_int fail;   /* so many steps fail from now on, */
    atomic_int fail_with;
    atomic_size_t open, steps, rows, forks;
    atomic_size_t most_rows;      /* of a step */
    atomic_size_t longest_prompt; /* rows of one sequence in a step beside others */
};

struct backend fake_backend(struct fake_engine *f);

#endif
