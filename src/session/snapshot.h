/* snapshot.h - the layout of snapshot files, shared by those that write and read them.
 *
 *   head       struct snapshot_head
 *   index      ids [len] int32, positions of savepoints [n_saved] uint64
 *   rows       of every layer that owns a compressed cache: entries, keys [len / ratio]
 *   tail       ring rows, [low, len) as cache_tail() hands them out
 *   savepoints their data, in order
 *   hash       of rows, tail and savepoints
 *
 * Numbers as the machine has them; hashes are XXH3_64bits. All sizes follow from the head, the
 * positions and the model, so a file that is not exactly as long as they say is refused before
 * memory for rows is taken. */
#ifndef DSV4_SNAPSHOT_H
#define DSV4_SNAPSHOT_H

#include "session.h"

#define SNAPSHOT_MAGIC "dsv4seq\n"
enum { SNAPSHOT_VERSION = 1, SNAPSHOT_ORDER = 0x01020304 };

struct snapshot_head {
    char magic[8];
    uint32_t order, version;
    uint64_t model[2]; /* fingerprint */
    uint64_t bytes;    /* of the whole file */
    uint64_t len, low; /* tokens; where the tail begins */
    uint64_t n_saved;  /* savepoints */
    uint64_t index;    /* hash of the index */
    uint64_t hash;     /* of everything above */
};

uint64_t snapshot_head_hash(const struct snapshot_head *h);

/* Computed once an engine. Equal when config, tensors and sampled weights are, and the formats of
 * the caches; where the files lie and how they are cut into shards does not matter. */
int snapshot_fingerprint(uint64_t out[2], dsv4_engine *e, dsv4_err *err);

/* Bytes of rows, tail and hash; those of savepoints come on top. */
uint64_t snapshot_body_bytes(const struct model *m, uint64_t len, uint64_t low);

/* Calls fn with every piece of rows, tail and savepoints in the order of the file. */
int snapshot_body(const struct cache *c, size_t low, tail_fn fn, void *arg);

#endif
