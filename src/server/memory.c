/* Reasoning by a key that comes back with a conversation. In conversations with tools the model is
 * to see its earlier reasoning again, and its tokens are in the cache; most clients send back calls
 * and content only. The ids of calls are ours and random, so that a call's id finds the reasoning
 * that led to it. */
#include "turn.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_ENTRIES = 4096, MAX_BYTES = 32 << 20 };

struct remembered {
    uint64_t client, used;
    char key[40];
    char *text;
    size_t len;
};

struct memory {
    pthread_mutex_t lock;
    struct remembered *r;
    size_t n, bytes;
    uint64_t clock;
};

int memory_open(struct memory **out, dsv4_err *err)
{
    struct memory *m;
    *out = NULL;
    TRY(mem_alloc(&m, 1, sizeof *m, "remembered reasoning", err));
    int rc = mem_alloc(&m->r, MAX_ENTRIES, sizeof *m->r, "remembered reasoning", err);
    if (rc != 0) {
        free(m);
        return rc;
    }
    pthread_mutex_init(&m->lock, NULL);
    *out = m;
    return 0;
}

static void drop_oldest(struct memory *m)
{
    size_t oldest = 0;
    for (size_t i = 1; i < m->n; i++)
        if (m->r[i].used < m->r[oldest].used)
            oldest = i;
    m->bytes -= m->r[oldest].len;
    free(m->r[oldest].text);
    m->r[oldest] = m->r[--m->n];
}

void memory_put(struct memory *m, uint64_t client, const char *key, const char *text, size_t len)
{
    struct remembered r = {.client = client, .len = len};
    if (len == 0 || len > MAX_BYTES / 4 || strlen(key) >= sizeof r.key)
        return;
    strcpy(r.key, key);
    r.text = malloc(len + 1);
    if (!r.text)
        return;
    memcpy(r.text, text, len);
    r.text[len] = 0;
    pthread_mutex_lock(&m->lock);
    while (m->n > 0 && (m->n == MAX_ENTRIES || m->bytes + len > MAX_BYTES))
        drop_oldest(m);
    r.used = ++m->clock;
    m->bytes += len;
    m->r[m->n++] = r;
    pthread_mutex_unlock(&m->lock);
}

char *memory_get(struct memory *m, uint64_t client, const char *key)
{
    char *text = NULL;
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < m->n && !text; i++)
        if (m->r[i].client == client && strcmp(m->r[i].key, key) == 0) {
            m->r[i].used = ++m->clock;
            text = strdup(m->r[i].text);
        }
    pthread_mutex_unlock(&m->lock);
    return text;
}

void memory_close(struct memory *m)
{
    if (!m)
        return;
    while (m->n > 0)
        drop_oldest(m);
    pthread_mutex_destroy(&m->lock);
    free(m->r);
    free(m);
}
