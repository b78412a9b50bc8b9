/* Threads that decode requests: JSON, prompts, token ids, grammars. A queue with a bound between
 * HTTP's thread, which must not wait, and them. */
#include "server.h"

#include <stdlib.h>

struct work {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct exchange **ring;
    size_t cap, first, n;
    bool stop;
    pthread_t *thread;
    unsigned n_threads;
};

static void *run(void *arg)
{
    struct work *w = arg;
    for (;;) {
        pthread_mutex_lock(&w->lock);
        while (w->n == 0 && !w->stop)
            pthread_cond_wait(&w->more, &w->lock);
        if (w->n == 0) {
            pthread_mutex_unlock(&w->lock);
            return NULL;
        }
        struct exchange *x = w->ring[w->first];
        w->first = (w->first + 1) % w->cap;
        w->n--;
        pthread_mutex_unlock(&w->lock);
        if (!x->gone)
            x->route->handle(x);
        exchange_unref(x);
    }
}

int work_open(struct work **out, unsigned threads, size_t queue, dsv4_err *err)
{
    struct work *w;
    *out = NULL;
    TRY(mem_alloc(&w, 1, sizeof *w, "threads for requests", err));
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    w->cap = queue;
    int rc = mem_alloc(&w->ring, queue, sizeof(void *), "threads for requests", err);
    if (rc == 0)
        rc = mem_alloc(&w->thread, threads, sizeof *w->thread, "threads for requests", err);
    for (; rc == 0 && w->n_threads < threads; w->n_threads++)
        if (pthread_create(&w->thread[w->n_threads], NULL, run, w) != 0) {
            rc = err_set(err, DSV4_FAILED, "a thread for requests cannot be started");
            break;
        }
    if (rc != 0) {
        work_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

bool work_submit(struct work *w, struct exchange *x)
{
    pthread_mutex_lock(&w->lock);
    bool ok = w->n < w->cap && !w->stop;
    if (ok) {
        w->ring[(w->first + w->n++) % w->cap] = exchange_ref(x);
        pthread_cond_signal(&w->more);
    }
    pthread_mutex_unlock(&w->lock);
    return ok;
}

void work_close(struct work *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->more);
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < w->n_threads; i++)
        pthread_join(w->thread[i], NULL);
    for (; w->n > 0; w->n--, w->first = (w->first + 1) % w->cap)
        exchange_unref(w->ring[w->first]);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->more);
    free(w->ring);
    free(w->thread);
    free(w);
}
