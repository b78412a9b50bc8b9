/* Counters and histograms, and how Prometheus wants to read them. */
#include "server.h"

static const struct {
    const char *name, *help;
} counts[N_COUNTS] = {
    /* ORDER enum count */
    {"requests_total", "Requests that reached a route"},
    {"errors_client_total", "Replies with status 400 to 499"},
    {"errors_server_total", "Replies with status 500 and above"},
    {"refused_busy_total", "Requests refused because the queue was full"},
    {"cancelled_total", "Requests whose client hung up"},
    {"deadlines_total", "Requests that ran out of time"},
    {"prompt_tokens_total", "Prompt tokens computed"},
    {"cached_tokens_total", "Prompt tokens taken over from the cache"},
    {"output_tokens_total", "Tokens generated"},
    {"reasoning_tokens_total", "Of them: reasoning"},
    {"cache_hits_total", "Prompts that began like a kept sequence"},
    {"cache_misses_total", "Prompts that did not"},
    {"cache_evictions_total", "Sequences dropped from memory"},
    {"disk_loads_total", "Snapshots read"},
    {"disk_saves_total", "Snapshots written"},
    {"disk_errors_total", "Snapshots that could not be written, read or trusted"},
    {"steps_total", "Steps of the engine"},
    {"step_rows_total", "Rows computed in them"},
    {"tool_calls_total", "Tool calls handed to clients"},
    {"tool_calls_quarantined_total", "Tool calls held back: unknown tool or broken arguments"},
    {"loops_total", "Answers ended because they only repeated themselves"},
    {"connections_total", "Connections accepted"},
};

static const struct {
    const char *name, *help;
    double scale;               /* of the value in sum_us */
    double bucket[MAX_BUCKETS]; /* ended by 0 */
} histograms[N_HISTOGRAMS] = {
    /* ORDER enum histogram */
    {"time_to_first_token_seconds",
     "From the request to its first token",
     1e6,
     {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560,
      5120}},
    {"time_between_tokens_seconds",
     "From one token of a choice to the next",
     1e6,
     {0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24,
      20.48}},
    {"request_seconds",
     "From the request to its last token",
     1e6,
     {0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120}},
    {"batch_rows", "Rows of a step", 1, {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}},
    {"queue_seconds",
     "Time a request waited before it was begun",
     1e6,
     {0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640}},
};

void metric_add(struct metrics *m, enum count c, uint64_t n)
{
    atomic_fetch_add_explicit(&m->count[c], n, memory_order_relaxed);
}

void metric_observe(struct metrics *m, enum histogram h, double value)
{
    const double *b = histograms[h].bucket;
    size_t i = 0;
    if (!(value >= 0))
        value = 0;
    while (i < MAX_BUCKETS && b[i] > 0 && value > b[i])
        i++;
    if (i == MAX_BUCKETS || b[i] <= 0)
        i = MAX_BUCKETS;
    atomic_fetch_add_explicit(&m->hist[h].bucket[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&m->hist[h].sum_us, (uint64_t)(value * histograms[h].scale),
                              memory_order_relaxed);
}

void metrics_write(struct metrics *m, struct out *o)
{
    for (size_t i = 0; i < N_COUNTS; i++)
        out_printf(o, "# HELP dsv4_%s %s\n# TYPE dsv4_%s counter\ndsv4_%s %llu\n", counts[i].name,
                   counts[i].help, counts[i].name, counts[i].name, (unsigned long long)m->count[i]);
    for (size_t h = 0; h < N_HISTOGRAMS; h++) {
        const char *name = histograms[h].name;
        unsigned long long n = 0;
        out_printf(o, "# HELP dsv4_%s %s\n# TYPE dsv4_%s histogram\n", name, histograms[h].help,
                   name);
        for (size_t i = 0; i < MAX_BUCKETS && histograms[h].bucket[i] > 0; i++) {
            n += m->hist[h].bucket[i];
            out_printf(o, "dsv4_%s_bucket{le=\"%g\"} %llu\n", name, histograms[h].bucket[i], n);
        }
        n += m->hist[h].bucket[MAX_BUCKETS];
        out_printf(o, "dsv4_%s_bucket{le=\"+Inf\"} %llu\ndsv4_%s_sum %.9g\ndsv4_%s_count %llu\n",
                   name, n, name, (double)m->hist[h].sum_us / histograms[h].scale, name, n);
    }
}
