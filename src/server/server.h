/* server.h - the server: HTTP in, answers of one engine out.
 *
 *   http*.c, gate.c    connections (libmicrohttpd, one thread), what is let through
 *   exchange.c         one request and its reply, shared by the threads that work on it
 *   json.c             JSON in, also when memory is short
 *   route.c, work.c    which function answers which path; threads that decode requests
 *   api_*.c            protocols: translate bodies to turns and events to bodies, decide nothing
 *   turn.c, answer.c   a request for text: prompts and choices; tokens -> events of one choice
 *   sched*.c, prefix.c who computes when, and what of it is kept; knows tokens, not text
 *   backend.c          the engine as the scheduler sees it
 *
 * Threads: one for HTTP, one that owns the engine (scheduler), a few that decode requests. What
 * they share is named where it is declared; everything else belongs to one of them. */
#ifndef DSV4_SERVER_H
#define DSV4_SERVER_H

#include <jansson.h>
#include <pthread.h>

#include "src/dsv4.h"
#include "src/system/system.h"

/* ------------------------------------------------------------------ text (out.c) */

/* Text being put together. A failed allocation is remembered and met once, at the end. */
struct out {
    struct bytes b;
    bool failed;
};

void out_add(struct out *o, const char *data, size_t len);
void out_text(struct out *o, const char *text);
void out_printf(struct out *o, const char *format, ...) PRINTF_LIKE(2, 3);
/* A JSON string with its quotes; text is UTF-8. */
void out_string(struct out *o, const char *text, size_t len);
/* A token's text as a JSON string: its first 300 bytes, whatever is no UTF-8 replaced. */
void out_token(struct out *o, const dsv4_tokenizer *tok, int32_t id);
void out_cstring(struct out *o, const char *text);
/* Likewise what stands in `text` from byte `at` on. */
void out_string_of(struct out *o, const struct out *text, size_t at);
void out_json(struct out *o, const json_t *v);
/* A number that JSON can hold: NaN and infinities as the nearest finite one. */
void out_number(struct out *o, double x);
void out_free(struct out *o);

/* ------------------------------------------------------------------ JSON (json.c) */

/* JSON text -> value. Duplicate keys, depth above 128 and trailing text are refused. */
int json_read(json_t **out, const char *text, size_t len, dsv4_err *err);
/* Gives jansson, for the whole process, allocation functions that remember failures and know of the spare
 * space below. Before threads start. */
void json_watch(void);
/* Whether an allocation of jansson's has failed on this thread since it began to read a text or was asked
 * this. */
bool json_failed(void);
/* Around calls that read JSON of len bytes on this thread: jansson must not run out of memory in the middle
 * (json.c says why). Nothing that it makes in between may be kept. Not nested. */
int json_spare_begin(size_t len, dsv4_err *err);
void json_spare_end(void);

/* ------------------------------------------------------------------ metrics (metrics.c)
 * Counters of the whole server, shared by all threads. */

enum count {
    COUNT_REQUESTS,
    COUNT_ERRORS_CLIENT,
    COUNT_ERRORS_SERVER,
    COUNT_REFUSED_BUSY,
    COUNT_CANCELLED,
    COUNT_DEADLINES,
    COUNT_PROMPT_TOKENS, /* computed */
    COUNT_CACHED_TOKENS, /* taken over from another sequence */
    COUNT_OUTPUT_TOKENS, /* generated */
    COUNT_REASONING_TOKENS,
    COUNT_CACHE_HITS,
    COUNT_CACHE_MISSES,
    COUNT_CACHE_EVICTIONS,
    COUNT_DISK_LOADS,
    COUNT_DISK_SAVES,
    COUNT_DISK_ERRORS,
    COUNT_STEPS,
    COUNT_STEP_ROWS,
    COUNT_TOOL_CALLS,
    COUNT_TOOL_QUARANTINED,
    COUNT_LOOPS,
    COUNT_CONNECTIONS,
    N_COUNTS
};

enum histogram { HIST_TTFT, HIST_BETWEEN, HIST_REQUEST, HIST_BATCH, HIST_QUEUE, N_HISTOGRAMS };
enum { MAX_BUCKETS = 20 };

struct metrics {
    _Atomic uint64_t count[N_COUNTS];
    struct {
        _Atomic uint64_t bucket[MAX_BUCKETS + 1];
        _Atomic uint64_t sum_us; /* of values in seconds times 1e6, of others as they are */
    } hist[N_HISTOGRAMS];
    double started;
};

void metric_add(struct metrics *m, enum count c, uint64_t n);
void metric_observe(struct metrics *m, enum histogram h, double value);
/* Prometheus text, without the gauges. */
void metrics_write(struct metrics *m, struct out *o);

/* ------------------------------------------------------------------ the engine (backend.c)
 * What the scheduler needs of an engine; tests bring a false one. Used by the scheduler's thread
 * alone. Meanings are those of dsv4.h. */

struct backend {
    void *self;
    size_t vocab, ctx, batch;
    int (*open)(void *self, dsv4_seq **out, dsv4_err *err);
    void (*close)(void *self, dsv4_seq *s);
    const int32_t *(*tokens)(void *self, const dsv4_seq *s, size_t *n);
    int (*eval)(void *self, const dsv4_row *rows, size_t n, float *logits, dsv4_err *err);
    int (*rewind)(void *self, dsv4_seq *s, size_t len, dsv4_err *err);
    /* The largest length <= len that rewind (`fork` false) or fork can deliver. */
    size_t (*reusable)(void *self, const dsv4_seq *s, size_t len, bool fork);
    int (*fork)(void *self, dsv4_seq **out, const dsv4_seq *s, size_t len, dsv4_err *err);
    uint64_t (*bytes)(void *self, const dsv4_seq *s);
    /* Remembers this length as one that is returned to. May be NULL. */
    int (*mark)(void *self, dsv4_seq *s, dsv4_err *err);
    /* May be NULL, all three: no snapshots. */
    int (*save)(void *self, const dsv4_seq *s, const char *file, dsv4_err *err);
    int (*load)(void *self, dsv4_seq **out, const char *file, dsv4_err *err);
    int (*peek)(void *self, const char *file, int32_t **ids, size_t *n, dsv4_err *err);
    /* Bytes of a token; *marker for added tokens, which stand for themselves only. May be NULL. */
    const char *(*text)(void *self, int32_t token, size_t *len, bool *marker);
};

/* batch: rows of one step, as in the engine's options. */
struct backend backend_engine(dsv4_engine *e, size_t batch);

/* ------------------------------------------------------------------ scheduler (sched.c) */

/* Why a choice ended. */
enum ended {
    ENDED_BY_JOB,   /* its token function said so */
    ENDED_LIMIT,    /* max_tokens */
    ENDED_CTX,      /* the context is full */
    ENDED_DEADLINE, /* time is up */
    ENDED_GONE,     /* nobody listens any more */
    ENDED_FAILED    /* job_ops.failed was called before */
};

struct job_stats {
    size_t n_prompt, n_cached, n_tokens;
    double queued, prompt, generating; /* seconds */
};

/* How a job hears of itself: called on the scheduler's thread, must be quick. */
struct job_ops {
    /* The prompt is about to be computed, or more of it was: done of total tokens. */
    void (*progress)(void *arg, size_t cached, size_t done, size_t total, double seconds);
    /* The tokens that may come next (a bit each), NULL: any. */
    const uint32_t *(*allow)(void *arg, unsigned choice);
    /* True: the next token is *token, whatever the model thinks. */
    bool (*forced)(void *arg, unsigned choice, int32_t *token);
    /* A token of a choice. True: it was the last. `top`: job.n_top of them. */
    bool (*token)(void *arg, unsigned choice, dsv4_logprob chosen, const dsv4_logprob *top);
    void (*ended)(void *arg, unsigned choice, enum ended why);
    /* The job cannot be computed: err says why. finished() follows. */
    void (*failed)(void *arg, const dsv4_err *err);
    /* The last call: the job is gone afterwards. */
    void (*finished)(void *arg, const struct job_stats *stats);
};

/* A prompt to be continued. Made by the submitter with calloc-like zeros, taken over by
 * sched_submit. */
struct job {
    int32_t *prompt; /* malloc'ed */
    size_t n_prompt;
    char *text; /* the prompt's text, malloc'ed, and its control spans; NULL: tokens alone count */
    size_t text_len;
    dsv4_span *spans; /* malloc'ed */
    size_t n_spans;
    unsigned n_choices; /* >= 1 */
    dsv4_sampling sampling;
    dsv4_bias *bias;   /* of sampling, malloc'ed */
    size_t max_tokens; /* 0: until the context is full */
    size_t n_top;
    size_t head;   /* tokens that other prompts are likely to begin with: instructions, tools; 0 */
    size_t tail;   /* tokens at the prompt's end that a longer prompt may not have */
    bool no_cache; /* neither takes nor leaves anything */
    uint64_t client, scope;
    double deadline;         /* of clock_seconds(); 0: none */
    const atomic_bool *gone; /* nobody listens any more; outlives the job; may be NULL */
    const struct job_ops *ops;
    void *arg;
    /* the scheduler's own */
    struct job *next;
    double submitted;
    uint64_t id;
};

void job_free(struct job *j);

struct sched_options {
    size_t parallel;       /* choices computed at once */
    size_t queue;          /* jobs that may wait */
    uint64_t cache_bytes;  /* of sequences that nobody uses */
    const char *cache_dir; /* NULL: none */
    uint64_t disk_bytes;
    size_t disk_min; /* tokens of a sequence worth a file */
    void (*log)(void *arg, const char *text);
    void (*stepped)(void *arg); /* something may have been said */
    void *arg;
};

enum slot_state { SLOT_QUEUED, SLOT_PROMPT, SLOT_GENERATING };

struct slot_info {
    uint64_t job;
    enum slot_state state;
    size_t n_prompt, n_done, n_cached, n_tokens, n_choices;
    double seconds; /* since it was submitted */
    double rate;    /* tokens of the prompt per second */
};

struct sched_info {
    size_t n_slots; /* of them in slots[], as many as asked for */
    size_t live, queued, stored, stored_disk, parallel;
    uint64_t stored_bytes, stored_disk_bytes;
    bool draining;
};

struct sched;

/* Starts the thread that owns the backend. */
int sched_open(struct sched **out, const struct backend *b, const struct sched_options *opt,
               struct metrics *m, dsv4_err *err);
/* DSV4_FAILED: the queue is full (*retry: seconds to wait); DSV4_INTERRUPTED: no more jobs are
 * taken. Takes the job in any case: after a failure it is freed and none of its functions is
 * called. */
int sched_submit(struct sched *s, struct job *j, unsigned *retry, dsv4_err *err);
void sched_info(struct sched *s, struct sched_info *info, struct slot_info *slots, size_t n);
/* No new jobs; true when all are done. */
bool sched_drain(struct sched *s);
/* Ends all jobs (ENDED_GONE), saves what is worth it, joins the thread. */
void sched_close(struct sched *s);

/* ------------------------------------------------------------------ prefixes (prefix.c)
 * Sequences that were computed and may begin another prompt. Belongs to the scheduler's thread. */

struct prefix_store;

int prefix_open(struct prefix_store **out, const struct backend *b, const struct sched_options *opt,
                struct metrics *m, dsv4_err *err);
/* Saves what is worth it. */
void prefix_close(struct prefix_store *p);

/* What was found for a job's prompt. */
struct taken {
    dsv4_seq *seq; /* NULL: nothing */
    size_t cached; /* its tokens */
    int32_t *rest; /* malloc'ed, at least one: what is left to compute */
    size_t n_rest;
    size_t fork;     /* of rest (without seq: of the prompt): where it leaves the other sequence */
    ptrdiff_t shift; /* rest[i + shift] is prompt[i], behind the fork */
};

/* A sequence that begins like the job's prompt. live[]: sequences in use, which can only be forked. Never
 * fails: what goes wrong is a miss. */
void prefix_take(struct prefix_store *p, const struct job *j, dsv4_seq *const *live,
                 const uint64_t *scope, size_t n_live, struct taken *out);
/* Takes the sequence over, or closes it. */
void prefix_give(struct prefix_store *p, dsv4_seq *s, uint64_t scope);
/* Frees the least recently used one; false: there is none. */
bool prefix_drop(struct prefix_store *p);
/* Writes at most one sequence to disk; called when there is nothing else to do. True: it did. */
bool prefix_idle(struct prefix_store *p);
void prefix_info(const struct prefix_store *p, struct sched_info *info);

/* How many of ids[0..n) begin the prompt, as text where the job has it: generated tokens need not
 * be the ones that encoding their text gives, and are kept. *from: how many tokens of job.prompt
 * they stand for. The cut is at a control span, or both sides have the same ids. */
size_t prefix_match(const struct backend *b, const struct job *j, const int32_t *ids, size_t n,
                    size_t *from);

/* ------------------------------------------------------------------ failures (params.c) */

struct failure {
    int status;              /* HTTP's; 0: none */
    const char *type, *code; /* in OpenAI's words; code may be NULL */
    char param[96];
    char message[600];
    unsigned retry; /* seconds; 0: not said */
};

/* Fills f and returns -1. */
int fail_set(struct failure *f, int status, const char *param, const char *format, ...)
    PRINTF_LIKE(4, 5);
/* What a dsv4_err means to a client. */
int fail_err(struct failure *f, const dsv4_err *err);

enum param_kind { P_BOOL, P_INT, P_NUMBER, P_TEXT, P_LIST, P_OBJECT, P_ANY };

/* One row a parameter: what may stand in a body, and where it goes. null is the same as absent. */
struct param {
    const char *name;
    enum param_kind kind;
    double min, max; /* of numbers; of texts and lists their length (max 0: no limit) */
    size_t offset;   /* bool, int64_t, double, const char *, json_t * */
};

/* Members that are not in the table are refused. */
int params_read(const json_t *body, const struct param *table, size_t n, void *values,
                struct failure *f);

/* ------------------------------------------------------------------ exchanges (exchange.c) */

struct server;

/* One request and its reply. Counted: HTTP's thread holds one reference, who computes the reply
 * another. The request does not change once it is complete; the reply is behind the lock. */
struct exchange {
    atomic_int refs;
    atomic_bool gone; /* the client hung up, or was hung up on */
    atomic_bool
        generates; /* the reply is made by the scheduler, as long as somebody waits for it */
    struct server *server;
    uint64_t number;
    char id[24]; /* "req_..." */
    double begun;

    const struct route *route;
    char method[12];
    char *path;
    char origin[256], peer[64];
    uint64_t client, scope; /* whose it is: for fairness, for the cache */
    bool framed;            /* its headers say clearly where it ends */
    struct bytes body;

    pthread_mutex_t lock;
    atomic_int status; /* 0: not known yet */
    const char *type;
    bool sse;
    atomic_bool complete;
    struct out out;
    size_t sent;        /* of out */
    uint64_t delivered; /* bytes of all that was sent */
    unsigned retry;
    const char *allow; /* methods, for 405 and OPTIONS */
    double touched;    /* when something was last put */
};

int exchange_open(struct exchange **out, struct server *s, dsv4_err *err);
struct exchange *exchange_ref(struct exchange *x);
void exchange_unref(struct exchange *x);
/* The whole reply; empties o. */
void exchange_reply(struct exchange *x, int status, const char *type, struct out *o);
/* Begins, continues and ends a stream of events. push() empties o. */
void exchange_stream(struct exchange *x);
void exchange_push(struct exchange *x, struct out *o);
void exchange_end(struct exchange *x);
/* The reply as a failure, in the shape of the route's protocol. */
void exchange_fail(struct exchange *x, const struct failure *f);

/* ------------------------------------------------------------------ routes (route.c, work.c) */

enum protocol { PROTOCOL_OPENAI, PROTOCOL_ANTHROPIC };

struct route {
    const char *method, *path;
    bool open; /* needs no key */
    enum protocol protocol;
    /* Runs on a decoding thread; replies or hands the exchange (a reference) on. */
    void (*handle)(struct exchange *x);
};

/* The route; NULL and *allow (NULL: no such path) when there is none. */
const struct route *route_find(const char *method, const char *path, const char **allow);
const struct route *route_at(size_t i); /* NULL after the last */
/* The body of a failure in a protocol's shape. */
void failure_body(struct out *o, enum protocol p, const struct failure *f, const char *id);

struct work;
int work_open(struct work **out, unsigned threads, size_t queue, dsv4_err *err);
/* Runs x->route->handle(x) on one of the threads; takes a reference of its own. False: too much to
 * do. */
bool work_submit(struct work *w, struct exchange *x);
void work_close(struct work *w);

/* ------------------------------------------------------------------ the server (server.c) */

enum reasoning { REASONING_SHOWN, REASONING_HIDDEN };

struct key {
    size_t len;
    char text[256]; /* padded with zeros */
};

struct server_options {
    const char *host;
    uint16_t port; /* 0: any */
    const char *model_name;
    const char *const *aliases; /* other names that are accepted; "*": any */
    size_t n_aliases;
    struct key *keys;
    size_t n_keys;
    bool no_auth;
    const char *const *origins, *const *hosts; /* allowed besides our own */
    size_t n_origins, n_hosts;
    size_t max_body, max_messages, max_tools, max_choices, max_connections;
    double idle_timeout, body_timeout, send_timeout, request_timeout, ping;
    size_t max_tokens;  /* default of requests; 0: none */
    size_t block_limit; /* tokens of one block of tool calls */
    size_t loop_limit;  /* tokens that only repeat; 0: not looked for */
    enum reasoning reasoning;
    bool cache_per_key;
    const char *tls_cert, *tls_key; /* PEM text; NULL: none */
    struct sched_options sched;
    unsigned workers;
    /* One line for the log: a request that is over, or something to know. */
    void (*access)(void *arg, const struct exchange *x, double seconds);
    void (*note)(void *arg, const char *text);
    void *log_arg;
};

struct server {
    const struct server_options *opt;
    struct backend backend;
    const dsv4_tokenizer *tok;
    dsv4_dialect dialect;
    dsv4_sampling sampling;
    int32_t bos, eos;
    uint64_t memory_planned;
    struct metrics metrics;
    struct sched *sched;
    struct work *work;
    struct http *http;
    struct memory *memory;
    struct grammars *grammars;
    atomic_uint_fast64_t next_number;
    int64_t created; /* UNIX seconds */
};

/* A server over an engine, listening but not yet serving. The engine and the options must outlive
 * it; server_close() leaves the engine open. */
int server_open(struct server **out, dsv4_engine *e, size_t batch, const struct server_options *opt,
                dsv4_err *err);
/* Serves until server_stop() has been called; then lets requests finish. Called again, or with a
 * second stop, it returns at once. */
int server_run(struct server *s, dsv4_err *err);
/* Safe in a signal handler: 1st call drains, 2nd ends. */
void server_stop(struct server *s);
uint16_t server_port(const struct server *s);
void server_close(struct server *s);

/* http.c */
struct http;
int http_open(struct http **out, struct server *s, dsv4_err *err);
int http_run(struct http *h, dsv4_err *err);
/* Safe in a signal handler and from any thread. */
void http_wake(struct http *h);
/* A stream has grown, which may wait for some milliseconds when others were just sent. */
void http_said(struct http *h);
void http_stop(struct http *h);
uint16_t http_port(const struct http *h);
void http_close(struct http *h);
size_t http_connections(const struct http *h);

/* gate.c: what is let through. All return NULL or why not. */
const char *gate_uri(const char *uri);
const char *gate_method(const char *method);
struct gate_header {
    const char *name, *value;
    size_t name_len, value_len;
};
const char *gate_headers(const struct gate_header *h, size_t n, bool http11);
bool gate_host(const struct server_options *opt, const char *host);
bool gate_origin(const struct server_options *opt, const char *origin, const char *host);
/* The index of the key plus one; 0: none of ours. Takes the same time for every wrong key. */
size_t gate_key(const struct server_options *opt, const char *given);

#endif
