/* turn.h - between protocols and the scheduler: what a request for text is, and what becomes of
 * its tokens.
 *   constrain.c  grammars, compiled once and kept
 *   answer.c     tokens of one choice -> reasoning, content, calls, as they come
 *   memory.c     reasoning of earlier calls, for clients that do not send it back
 *   turn.c       one request: its prompts as jobs, its answers, the protocol's functions
 * Knows neither HTTP nor any protocol. */
#ifndef DSV4_SERVER_TURN_H
#define DSV4_SERVER_TURN_H

#include "server.h"

/* ------------------------------------------------------------------ constrain.c */

enum grammar_kind { GRAMMAR_JSON, GRAMMAR_GBNF, GRAMMAR_TOOLS };

struct grammar_want {
    enum grammar_kind kind;
    const char *text; /* a schema ("": any object), a grammar, a list of tools */
    size_t len;
    dsv4_tool_mode choice; /* of tools */
    const char *name;      /* DSV4_TOOLS_NAMED: which */
    bool parallel;
};

/* A grammar that several answers share. */
struct grammar_ref {
    atomic_int refs;
    dsv4_grammar *g;
};

struct grammars;

int grammars_open(struct grammars **out, const dsv4_tokenizer *t, dsv4_dialect d, dsv4_err *err);
void grammars_close(struct grammars *g);
/* Compiles, or finds what was compiled before. DSV4_REFUSED: what the client has to change. */
int grammar_get(struct grammars *g, const struct grammar_want *w, struct grammar_ref **out,
                dsv4_err *err);
void grammar_unref(struct grammar_ref *g);

/* ------------------------------------------------------------------ memory.c */

struct memory;

/* Reasoning by a key that comes back with the conversation. Bounded; safe for all threads. */
int memory_open(struct memory **out, dsv4_err *err);
void memory_close(struct memory *m);
void memory_put(struct memory *m, uint64_t client, const char *key, const char *text, size_t len);
/* Malloc'ed, NULL: not known. */
char *memory_get(struct memory *m, uint64_t client, const char *key);

/* ------------------------------------------------------------------ answer.c */

enum piece_kind {
    PIECE_REASONING, /* text */
    PIECE_CONTENT,   /* text */
    PIECE_CALL,      /* a call begins */
    PIECE_ARGUMENTS, /* text: more of its arguments (JSON) */
    PIECE_CALL_END
};

struct piece {
    enum piece_kind kind;
    const char *text; /* UTF-8, whole characters */
    size_t len;
    size_t call; /* index */
};

enum finish { FINISH_NONE, FINISH_STOP, FINISH_STOP_STRING, FINISH_LENGTH, FINISH_CALLS };

struct call {
    char id[32];
    struct out name, arguments;
};

/* A token of the content with its alternatives. */
struct logged {
    dsv4_logprob chosen;
    dsv4_logprob *top; /* malloc'ed */
};

struct answer_options {
    const dsv4_tokenizer *tok;
    dsv4_dialect dialect;
    int32_t eos;
    struct metrics *metrics;
    bool raw; /* the text as it is: no reasoning, no calls */
    bool ignore_eos;
    bool thinking;       /* begins inside reasoning */
    bool tools;          /* calls are possible */
    bool in_block;       /* begins inside a block of calls */
    bool parallel;       /* more than one call */
    const json_t *names; /* object: a member for each tool; NULL: not checked */
    size_t budget;       /* tokens of reasoning; 0: no limit */
    size_t block_limit, loop_limit;
    const char *const *stops;
    size_t n_stops;
    size_t n_top;
    bool logprobs;
    const dsv4_grammar *grammar;
    bool grammar_thinks; /* it knows of reasoning: asked from the first token on */
    size_t vocab;        /* width of masks */
};

struct answer;
typedef void (*piece_fn)(void *arg, unsigned choice, const struct piece *p);

/* What came of a choice so far; `logged` only if asked for. */
struct result {
    struct out reasoning, content;
    struct call *call;
    size_t n_calls, cap_calls;
    struct logged *logged;
    size_t n_logged, cap_logged;
    size_t n_tokens, n_reasoning;
    double reasoning_seconds;
    enum finish finish;
    const char *stop; /* the stop string */
};

/* Options and what they point to must outlive the answer. */
int answer_open(struct answer **out, const struct answer_options *opt, unsigned choice, piece_fn fn,
                void *arg, dsv4_err *err);
void answer_close(struct answer *a);
struct result *answer_result(struct answer *a);
/* Memory was short: the result is not the model's answer. */
bool answer_failed(const struct answer *a);
/* The three questions of the scheduler (struct job_ops). */
const uint32_t *answer_allow(struct answer *a);
bool answer_forced(struct answer *a, int32_t *token);
bool answer_token(struct answer *a, dsv4_logprob chosen, const dsv4_logprob *top);
void answer_end(struct answer *a, enum ended why);

/* ------------------------------------------------------------------ turn.c */

struct turn;

/* How a protocol writes. All are called with the turn's lock held, on the scheduler's thread or
 * (begin) on the submitter's. They put text into t->out, which is sent when they return. */
struct shape {
    void (*begin)(struct turn *t);                                         /* of a stream */
    void (*piece)(struct turn *t, unsigned choice, const struct piece *p); /* of a stream */
    void (*finish)(struct turn *t, unsigned choice); /* of a stream: the choice has ended */
    void (*end)(struct turn *t);                     /* of a stream: everything has ended well */
    void (*fail)(struct turn *t, const struct failure *f); /* of a stream */
    void (*progress)(struct turn *t, size_t cached, size_t done, size_t total, double seconds);
    void (*whole)(struct turn *t);   /* instead of a stream */
    void (*release)(struct turn *t); /* frees t->own; may be NULL */
};

struct turn {
    struct exchange *x;
    const struct shape *shape;
    void *own;    /* the protocol's */
    json_t *body; /* the request; owned */
    pthread_mutex_t lock;
    struct out out;

    /* the request */
    bool stream, return_progress, hide_reasoning;
    bool include_usage, running_usage; /* after a stream; in each of its pieces, too */
    unsigned n_choices;                /* of each prompt */
    size_t n_prompts;
    struct answer_options options;
    char **stops;  /* owned */
    json_t *names; /* owned */
    struct grammar_ref *grammar;
    struct job **jobs; /* [n_prompts], until they are submitted */

    /* the answers */
    struct answer **answer; /* [n_prompts * n_choices] */
    struct part *part;      /* [n_prompts]: what the scheduler calls us with */
    size_t open;            /* jobs that are not finished */
    bool begun, submitted;
    struct failure failure;
    size_t prompt_given; /* tokens, before the cache was asked */
    size_t prompt_tokens, cached_tokens;
    struct job_stats stats; /* of the last job */
    char id[40];
    int64_t created;
};

int turn_open(struct turn **out, struct exchange *x, const struct shape *shape, json_t *body,
              struct failure *f);
void turn_close(struct turn *t);

/* Stop strings: NULL, a text, or a list of texts. */
int turn_stops(struct turn *t, const json_t *stop, const char *param, size_t max,
               struct failure *f);
/* tools as OpenAI writes them: remembers their names. */
int turn_tools(struct turn *t, const json_t *tools, struct failure *f);
/* Compiles a grammar. */
int turn_constrain(struct turn *t, const struct grammar_want *w, const char *param,
                   struct failure *f);

/* Sampling parameters and others that all jobs of a turn share. */
struct turn_sampling {
    dsv4_sampling sampling;
    json_t *logit_bias; /* object; NULL */
    size_t max_tokens;
    const char *user;
    double timeout;
};

/* Adds a prompt: an OpenAI chat body (takes reasoning from memory where the client left it out) */
int turn_chat(struct turn *t, json_t *chat, const struct turn_sampling *s, struct failure *f);
/* or text (`markers`: control tokens in it count), or ids. */
int turn_text(struct turn *t, const char *text, size_t len, const struct turn_sampling *s,
              struct failure *f);
int turn_ids(struct turn *t, const json_t *ids, const struct turn_sampling *s, struct failure *f);

/* An OpenAI chat body -> prompt text, spans, ids; for counting too. */
struct rendered {
    dsv4_prompt *prompt;
    int32_t *ids;
    size_t n;
};
int turn_render(struct server *s, json_t *chat, struct rendered *r, struct failure *f);

/* Hands the turn to the scheduler; replies in any case. The turn frees itself. */
void turn_go(struct turn *t);
/* Replies with a failure and frees the turn (may be NULL). */
void turn_refuse(struct turn *t, struct exchange *x, const struct failure *f);

/* For shapes. */
struct result *turn_result(struct turn *t, size_t i);
size_t turn_tokens(const struct turn *t, size_t *reasoning);

#endif
