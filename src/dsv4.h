/* dsv4.h - the one public header of libdsv4: DeepSeek-V4 models on ordinary computers.
 *
 * Objects
 *   dsv4_engine      a loaded model: weights, tokenizer, threads, kernels. Read-only once open.
 *   dsv4_seq         one timeline of tokens with its caches; belongs to an engine.
 *   dsv4_tokenizer   text <-> token ids; every engine owns one, it can be opened alone.
 *   dsv4_parser      model output -> reasoning, content and tool calls, as it streams.
 *   dsv4_sampler     logits -> a token.
 *
 * Rules
 *   Functions that can fail return 0 or a negative dsv4_status and fill `err` (never NULL) with one
 *   message that says what, where and what was expected. After a failure every out-parameter is
 *   NULL or unchanged, and every object passed in is still usable and still has to be closed.
 *   The library never prints, never exits and never aborts on input. It keeps no global state.
 *   An engine may be used by one thread at a time; different engines are independent.
 *   Text is UTF-8 with an explicit length. What the library allocates for the caller is released
 *   by dsv4_free(); objects by their close function (all of which accept NULL).
 */
#ifndef DSV4_H
#define DSV4_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DSV4_API __attribute__((visibility("default")))
#else
#define DSV4_API
#endif

#define DSV4_VERSION "0.1.0"

/* ------------------------------------------------------------------ status and errors */

typedef enum dsv4_status {
    DSV4_OK = 0,
    DSV4_FAILED = -1,      /* the operation failed (I/O, a limit reached) */
    DSV4_USAGE = -2,       /* a wrong argument */
    DSV4_REFUSED = -3,     /* a model or another file is not acceptable */
    DSV4_NO_MEMORY = -4,   /* not enough memory, planned or met */
    DSV4_INTERRUPTED = -5, /* a callback asked to stop */
} dsv4_status;

typedef struct dsv4_err {
    int status;      /* the last failure's dsv4_status; 0 when none */
    char text[1020]; /* its message, no newline at the end; UTF-8 */
} dsv4_err;

DSV4_API void dsv4_free(void *p);

/* ------------------------------------------------------------------ tokenizer */

typedef struct dsv4_tokenizer dsv4_tokenizer;

/* Opens a `tokenizer.json`. Refused: anything but byte-level BPE, broken tables. */
DSV4_API int dsv4_tokenizer_open(dsv4_tokenizer **out, const char *file, dsv4_err *err);
/* The tokenizer of a model, without its weights: DIR/tokenizer.json, or what the metadata of a GGUF file say. */
DSV4_API int dsv4_tokenizer_of(dsv4_tokenizer **out, const char *model, dsv4_err *err);
DSV4_API void dsv4_tokenizer_close(dsv4_tokenizer *t);

/* Number of ids, added tokens included (ids are 0 .. size-1). */
DSV4_API size_t dsv4_tokenizer_size(const dsv4_tokenizer *t);

/* text[0..len) -> *ids (malloc'ed, *n of them). With `markers` the added tokens (role markers,
 * <think>, ...) are recognised in the text; without, they are ordinary characters: text that comes
 * from outside is always encoded without. Ill-formed UTF-8 becomes U+FFFD per maximal subpart. A
 * single piece (dsv4_pretokenize) above 512 MiB is DSV4_FAILED. */
DSV4_API int dsv4_encode(const dsv4_tokenizer *t, const char *text, size_t len, bool markers,
                         int32_t **ids, size_t *n, dsv4_err *err);

/* The pieces that the pre-tokenizer cuts the text into (added tokens off): *cuts are their lengths in
 * bytes, *n of them, malloc'ed. Ids never reach across a cut. */
DSV4_API int dsv4_pretokenize(const dsv4_tokenizer *t, const char *text, size_t len, size_t **cuts,
                              size_t *n, dsv4_err *err);

/* Bytes of one token (an added token: its text). NULL with *len 0 for an id out of range.
 * The bytes of a single token need not be whole UTF-8 characters. Valid while `t` is open. */
DSV4_API const char *dsv4_token_bytes(const dsv4_tokenizer *t, int32_t id, size_t *len);

/* True for added tokens with "special": true (left out when text is shown). */
DSV4_API bool dsv4_token_special(const dsv4_tokenizer *t, int32_t id);

/* The id of an added token by its text; -1 when there is none. */
DSV4_API int32_t dsv4_token_find(const dsv4_tokenizer *t, const char *text);

/* Streaming display of bytes: hands out only whole characters, each maximal ill-formed
 * subsequence as one U+FFFD. Zero-initialise; push; flush at the end. */
typedef struct dsv4_utf8 {
    unsigned char held[4];
    unsigned n_held;
} dsv4_utf8;

/* Writes at most 3 * len + 9 bytes to out, returns how many. */
DSV4_API size_t dsv4_utf8_push(dsv4_utf8 *u, const char *bytes, size_t len, char *out);
/* Writes at most 9 bytes to out, returns how many. */
DSV4_API size_t dsv4_utf8_flush(dsv4_utf8 *u, char *out);

/* ------------------------------------------------------------------ chat encoding */

/* How a family and revision of the models writes prompts and answers. */
typedef enum dsv4_dialect { DSV4_V4_PREVIEW, DSV4_V4_0731, DSV4_V41 } dsv4_dialect;

typedef struct dsv4_span {
    size_t begin, end; /* bytes */
} dsv4_span;

/* A rendered prompt. Bytes inside `control` are our own scaffolding and may become control
 * tokens; all other bytes came from messages and never do. */
typedef struct dsv4_prompt {
    char *text; /* `len` bytes and a NUL */
    size_t len;
    dsv4_span *control; /* ascending, disjoint */
    size_t n_control;
    char **images; /* sources of image parts in order, as compact JSON records */
    size_t n_images;
} dsv4_prompt;

/* Renders {"messages": [...], "options": {...}, "context": [...]} (JSON text) to the prompt that the
 * dialect's release would make. Options: thinking_mode ("thinking" or "chat", needed),
 * reasoning_effort, drop_thinking, add_default_bos_token; and two that servers need: new_turn (after a
 * final answer the model speaks again), open_block (ends inside a block of calls: the model has to
 * call a tool). DSV4_REFUSED for what the format does not allow. */
DSV4_API int dsv4_render(dsv4_dialect dialect, const char *json, size_t len, dsv4_prompt **out,
                         dsv4_err *err);
DSV4_API void dsv4_prompt_close(dsv4_prompt *p);

/* The body of an OpenAI chat-completion request -> *json for dsv4_render (sampling parameters are not
 * looked at). DSV4_REFUSED: what deserves status 400. */
DSV4_API int dsv4_request(dsv4_dialect dialect, const char *body, size_t len, char **json,
                          dsv4_err *err);

/* Token ids of a prompt: control spans with markers, everything between them without. */
DSV4_API int dsv4_encode_prompt(const dsv4_tokenizer *t, const dsv4_prompt *p, int32_t **ids,
                                size_t *n, dsv4_err *err);

/* ------------------------------------------------------------------ parser of model output */

typedef enum dsv4_event_kind {
    DSV4_REASONING, /* text */
    DSV4_CONTENT,   /* text */
    DSV4_CALL,      /* a tool call begins: index, text = name */
    DSV4_ARGUMENTS, /* more of the arguments text (JSON) of call `index` */
    DSV4_FINISH,    /* text = "stop", "length" or "tool_calls" */
} dsv4_event_kind;

typedef struct dsv4_event {
    dsv4_event_kind kind;
    size_t index;
    const char *text; /* not NUL-terminated; valid during the callback */
    size_t len;
} dsv4_event;

typedef void (*dsv4_event_fn)(void *arg, const dsv4_event *event);

/* A total function: any bytes in any pieces give the same result as in one piece. */
typedef struct dsv4_parser dsv4_parser;

/* `thinking`: the text starts inside reasoning. `tools`: DSML blocks are calls (otherwise text). */
DSV4_API int dsv4_parser_open(dsv4_parser **out, bool thinking, bool tools, dsv4_event_fn fn,
                              void *arg, dsv4_err *err);
/* Only DSV4_NO_MEMORY can happen, and nothing is lost then: call again with the same piece. */
DSV4_API int dsv4_parser_feed(dsv4_parser *p, const char *text, size_t len, dsv4_err *err);
/* The model stopped by itself, or (`cut`) was stopped at a limit. Ends with DSV4_FINISH. */
DSV4_API int dsv4_parser_end(dsv4_parser *p, bool cut, dsv4_err *err);
DSV4_API void dsv4_parser_close(dsv4_parser *p);

/* The release's own parser: a whole completion, EOS included -> *json {"reasoning_content", "content",
 * "tool_calls": [{"name", "arguments"}]}. DSV4_REFUSED for anything a model should not have written:
 * for checking histories and data, not for answering people. */
DSV4_API int dsv4_parse_strict(dsv4_dialect dialect, const char *text, size_t len, bool thinking,
                               char **json, dsv4_err *err);

/* ------------------------------------------------------------------ constrained decoding
 * docs/grammar.md: notation, supported keywords, what is narrowed, limits. */

/* Which texts a model may write. Never changes; may be shared by threads; belongs to the tokenizer,
 * which must outlive it. What cannot be enforced, or is too large, is DSV4_REFUSED with its place. */
typedef struct dsv4_grammar dsv4_grammar;

/* GBNF, the notation of llama.cpp; the rule `root` is the text. */
DSV4_API int dsv4_grammar_open(dsv4_grammar **out, const dsv4_tokenizer *t, const char *text,
                               size_t len, dsv4_err *err);

/* One JSON value that is valid under a JSON Schema (draft 2020-12, the part that docs/grammar.md lists).
 * Schema NULL or empty: any JSON object. */
DSV4_API int dsv4_grammar_json_schema(dsv4_grammar **out, const dsv4_tokenizer *t,
                                      const char *schema, size_t len, dsv4_err *err);

typedef enum dsv4_tool_mode {
    DSV4_TOOLS_AUTO,     /* free text, perhaps with </think> in it; once a block opens, calls */
    DSV4_TOOLS_REQUIRED, /* calls: begins a block, or inside one (render option open_block) */
    DSV4_TOOLS_NAMED,    /* likewise, of the tool `name` alone */
} dsv4_tool_mode;

/* What a model may write that was given these tools (a JSON list as in chat-completion requests, or of
 * the function objects alone): calls in the dialect's block whose arguments fit the schemas; with
 * `parallel` up to 128, otherwise one. */
DSV4_API int dsv4_grammar_tools(dsv4_grammar **out, const dsv4_tokenizer *t, dsv4_dialect dialect,
                                const char *tools_json, size_t len, dsv4_tool_mode mode,
                                const char *name, bool parallel, dsv4_err *err);
DSV4_API void dsv4_grammar_close(dsv4_grammar *g);

/* Where one text stands in its grammar. One thread at a time; the grammar must outlive it. */
typedef struct dsv4_matcher dsv4_matcher;

DSV4_API int dsv4_matcher_open(dsv4_matcher **out, const dsv4_grammar *g, dsv4_err *err);
DSV4_API int dsv4_matcher_clone(dsv4_matcher **out, const dsv4_matcher *m, dsv4_err *err);
DSV4_API void dsv4_matcher_close(dsv4_matcher *m);

/* The tokens that may follow: bit id % 32 of bits[id / 32] for all ids below `vocab` (the width of a row
 * of logits, dsv4_engine_vocab), so (vocab + 31) / 32 words are written. The end-of-sentence token when
 * the text may end here; other control tokens only where the grammar names them. DSV4_FAILED: none. */
DSV4_API int dsv4_matcher_mask(dsv4_matcher *m, uint32_t *bits, size_t vocab, dsv4_err *err);

/* Goes on behind a token. DSV4_REFUSED: it does not fit; nothing has changed then. */
DSV4_API int dsv4_matcher_accept(dsv4_matcher *m, int32_t token, dsv4_err *err);

/* The text may end here; nothing but its end may follow. */
DSV4_API bool dsv4_matcher_may_end(const dsv4_matcher *m);
DSV4_API bool dsv4_matcher_done(const dsv4_matcher *m);

/* ------------------------------------------------------------------ engine */

typedef struct dsv4_engine dsv4_engine;

/* done of total, in bytes, while weights are read. Return true to stop (DSV4_INTERRUPTED). */
typedef bool (*dsv4_progress_fn)(void *arg, uint64_t done, uint64_t total);

/* Zero means the default everywhere. */
typedef struct dsv4_options {
    uint32_t ctx;        /* tokens a sequence may hold; default: the model's maximum, less
                              if memory does not allow that */
    uint32_t batch;      /* rows of one step; default 256 */
    uint32_t sequences;  /* sequences that memory is planned for; default 1 */
    uint32_t rewind;     /* tokens that dsv4_seq_rewind can always take back; default 64 */
    uint32_t threads;    /* default: one for each core this process may use; slow ones only where
                              they help, no more than a container's quota of whole CPUs */
    const char *cpus;    /* "0-7,16": threads run on these and no others; default: all allowed */
    const char *numa;    /* default "auto": weights are cut by NUMA node, each part in the memory of
                              its node and read by its threads; "off": one memory; "0-1": these */
    uint64_t max_memory; /* bytes the engine may plan with; default: what the machine has free */
    bool paged; /* accept weights larger than memory: they are read from disk again and again */
    bool no_cache_quant; /* caches in f32 instead of the trained fp8/fp4 (for comparisons) */
    bool exact;          /* activations in f32 everywhere. Otherwise those of 4- and 8-bit integer
                              and fp4 weights are rounded to 8 bits per 32 values, and in rows whose
                              logits are not wanted those of fp8 weights to 12 */
    dsv4_progress_fn progress;
    void *progress_arg;
} dsv4_options;

/* Opens an official checkpoint directory (docs: spec of formats in docs/checkpoints.md). Everything
 * is checked and planned before the first weight is read.
 * Compute on the thread that opened the engine, or open it on one that ends: loading, too, computes, and GNU's OpenMP
 * keeps a team for each thread that did; with more of them than CPUs they sleep between steps (docs/server.md). */
DSV4_API int dsv4_open(dsv4_engine **out, const char *dir, const dsv4_options *opt, dsv4_err *err);
DSV4_API void dsv4_close(dsv4_engine *e);

/* The data sheet, and the memory plan for `opt`, of a directory as JSON text, without loading. */
DSV4_API int dsv4_info(const char *dir, char **json, dsv4_err *err);
DSV4_API int dsv4_plan(const char *dir, const dsv4_options *opt, char **json, dsv4_err *err);

/* What the library was built with and what it chose on this machine, as JSON text. */
DSV4_API int dsv4_about(char **json, dsv4_err *err);

DSV4_API const dsv4_tokenizer *dsv4_engine_tokenizer(const dsv4_engine *e);
DSV4_API dsv4_dialect dsv4_engine_dialect(const dsv4_engine *e);
DSV4_API size_t dsv4_engine_vocab(const dsv4_engine *e);    /* width of a row of logits */
DSV4_API size_t dsv4_engine_ctx(const dsv4_engine *e);      /* tokens a sequence may hold */
DSV4_API size_t dsv4_engine_threads(const dsv4_engine *e);  /* in use */
DSV4_API uint64_t dsv4_engine_memory(const dsv4_engine *e); /* planned bytes, weights included */
DSV4_API int32_t dsv4_engine_eos(const dsv4_engine *e);
DSV4_API int32_t dsv4_engine_bos(const dsv4_engine *e);

/* ------------------------------------------------------------------ sequences */

typedef struct dsv4_seq dsv4_seq;

DSV4_API int dsv4_seq_open(dsv4_seq **out, dsv4_engine *e, dsv4_err *err);
DSV4_API void dsv4_seq_close(dsv4_seq *s);
DSV4_API size_t dsv4_seq_len(const dsv4_seq *s);
DSV4_API const int32_t *dsv4_seq_tokens(const dsv4_seq *s); /* dsv4_seq_len of them */

/* Takes tokens back until `len` are left: what follows is computed as if they had never been.
 * Possible down to dsv4_seq_rewind_floor(), to 0, and to the savepoints in between, which a sequence
 * makes by itself at wide distances (3 % of its caches at most); otherwise DSV4_FAILED. */
DSV4_API int dsv4_seq_rewind(dsv4_seq *s, size_t len, dsv4_err *err);
DSV4_API size_t dsv4_seq_rewind_floor(const dsv4_seq *s);

/* The largest L <= len that dsv4_seq_rewind and dsv4_seq_fork can deliver: len - L tokens have to be
 * computed again. */
DSV4_API size_t dsv4_seq_reusable(const dsv4_seq *s, size_t len);

/* Makes a savepoint here, at dsv4_seq_len(): for places that will be returned to, like the end of a
 * prompt. Costs up to a window and a group of every layer (dsv4_seq_bytes tells), and lasts until
 * the sequence is rewound below it. */
DSV4_API int dsv4_seq_mark(dsv4_seq *s, dsv4_err *err);
/* Gives up the savepoint that dsv4_seq_mark made at `len` tokens, if there is one. */
DSV4_API void dsv4_seq_unmark(dsv4_seq *s, size_t len);

/* A second sequence with the same first `len` tokens; possible where dsv4_seq_rewind would be. The
 * two share what they have in common (compressed entries, index keys, savepoints) until one writes
 * there; window, open groups and token ids are copied. They may be closed in any order. */
DSV4_API int dsv4_seq_fork(dsv4_seq **out, const dsv4_seq *from, size_t len, dsv4_err *err);

/* Memory of a sequence. Of what n sequences share, each counts one n-th: the sum over all sequences is
 * what they take together, and closing one frees at most this. */
DSV4_API uint64_t dsv4_seq_bytes(const dsv4_seq *s);

/* Snapshots (docs/snapshots.md): a sequence in a file, tokens and caches. Written aside and renamed,
 * so that the old file or the new one is there, never a mixture; everything in it is covered by
 * checksums. Neither needs a second copy of the caches in memory. DSV4_FAILED where xxHash was not
 * there at build time. */
DSV4_API int dsv4_seq_save(const dsv4_seq *s, const char *file, dsv4_err *err);

/* Going on gives the same bits as never having stopped. DSV4_REFUSED: not a snapshot, damaged, of
 * another model, of other cache formats; DSV4_FAILED: longer than the context of this engine. */
DSV4_API int dsv4_seq_load(dsv4_seq **out, dsv4_engine *e, const char *file, dsv4_err *err);

/* The token ids of a snapshot, *n of them, malloc'ed; reads no further than them. For an index over
 * a directory: which model it belongs to is not looked at. */
DSV4_API int dsv4_snapshot_tokens(const char *file, int32_t **ids, size_t *n, dsv4_err *err);

typedef struct dsv4_row {
    dsv4_seq *seq; /* the token is appended to this sequence */
    int32_t token;
    bool logits; /* this row's logits are wanted */
} dsv4_row;

/* Appends n tokens to their sequences, any mix of sequences in any order, any n; logits
 * [rows with .logits][vocab] in row order (may be NULL when there are none). On failure no
 * sequence has changed its length. The same rows, `logits` included, give the same logits
 * however they are grouped into calls and for any number of threads, bit for bit. */
DSV4_API int dsv4_eval(dsv4_engine *e, const dsv4_row *rows, size_t n, float *logits,
                       dsv4_err *err);

/* ------------------------------------------------------------------ sampling and generation */

typedef struct dsv4_bias {
    int32_t token;
    float bias; /* added to the logit; -INFINITY forbids */
} dsv4_bias;

typedef struct dsv4_sampling {
    float temperature; /* 0: greedy */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    int top_k;         /* 0: off */
    float repetition;  /* 1: off */
    float presence;    /* 0: off */
    float frequency;   /* 0: off */
    uint64_t seed;
    const dsv4_bias *bias;
    size_t n_bias;
} dsv4_sampling;

/* generation_config.json of the model, or the release's defaults; seed 0, no bias. */
DSV4_API dsv4_sampling dsv4_engine_sampling(const dsv4_engine *e);

typedef struct dsv4_logprob {
    int32_t token;
    float logprob; /* natural logarithm, of the distribution before temperature and filters */
} dsv4_logprob;

typedef struct dsv4_sampler dsv4_sampler;

/* Copies `p`. Refuses values out of range (DSV4_USAGE). */
DSV4_API int dsv4_sampler_open(dsv4_sampler **out, const dsv4_sampling *p, size_t vocab,
                               dsv4_err *err);
DSV4_API void dsv4_sampler_close(dsv4_sampler *s);
/* Counts a token of the text so far for the penalties. */
DSV4_API void dsv4_sampler_accept(dsv4_sampler *s, int32_t token);
/* Picks a token. `top` (may be NULL) receives the n_top most likely tokens, best first. */
DSV4_API dsv4_logprob dsv4_sample(dsv4_sampler *s, const float *logits, dsv4_logprob *top,
                                  size_t n_top);
/* The same among the tokens whose bit is set in `allow` (dsv4_matcher_mask; NULL: all). Probabilities
 * stay those of the whole distribution. */
DSV4_API dsv4_logprob dsv4_sample_masked(dsv4_sampler *s, const float *logits,
                                         const uint32_t *allow, dsv4_logprob *top, size_t n_top);

typedef enum dsv4_stop {
    DSV4_STOP_EOS,
    DSV4_STOP_STRING,
    DSV4_STOP_LIMIT,
    DSV4_STOP_CTX
} dsv4_stop;

typedef struct dsv4_token {
    dsv4_logprob chosen;
    const dsv4_logprob *top; /* generate.n_top of them */
    const char *text;        /* bytes that became certain with this token (no part of a stop */
    size_t len;              /* string, whole UTF-8 characters); may be empty */
} dsv4_token;

/* Return true to stop (DSV4_INTERRUPTED). The sequence holds all tokens reported, but the last. */
typedef bool (*dsv4_token_fn)(void *arg, const dsv4_token *token);

typedef struct dsv4_generate_options {
    dsv4_sampling sampling;
    size_t max_tokens;        /* 0: until the context is full */
    const char *const *stops; /* stop strings, may lie across tokens; not part of the text */
    size_t n_stops;
    bool ignore_eos;             /* not where a grammar ends */
    const dsv4_grammar *grammar; /* what may be generated; NULL: anything */
    int32_t grammar_after;       /* not 0: only behind this token (</think>) */
    size_t n_top;                /* log-probabilities wanted per token */
    size_t
        mark; /* not 0: dsv4_seq_mark behind so many of the ids (the next turn of a conversation may
                    begin with them and then differ) */
    bool (*prefilled)(void *arg, size_t done, size_t n); /* may be NULL; true stops */
    dsv4_token_fn token;                                 /* may be NULL */
    void *arg;
} dsv4_generate_options;

typedef struct dsv4_generated {
    size_t n_prompt, n_tokens; /* computed; generated (the EOS included) */
    double prompt_seconds, token_seconds;
    dsv4_stop stop;
} dsv4_generated;

/* Appends ids[0..n) to the sequence and continues it. */
DSV4_API int dsv4_generate(dsv4_engine *e, dsv4_seq *s, const int32_t *ids, size_t n,
                           const dsv4_generate_options *opt, dsv4_generated *out, dsv4_err *err);

/* ------------------------------------------------------------------ converting (docs/quantization.md)
 * A checkpoint becomes a directory whose weights lie as kernels read them: it is mapped and used at once. */

typedef enum dsv4_effort {
    DSV4_EFFORT_ABSMAX, /* scales from the largest value of a group */
    DSV4_EFFORT_SEARCH, /* scales with the least squared error */
    DSV4_EFFORT_HIGH, /* rounding errors are carried into later columns: needs an importance with covariances */
} dsv4_effort;

/* Zero means the default everywhere. Types: native, q8, q4, q4nl, q3, q2 and others of docs/quantization.md;
 * where several fit a matrix the later field decides. */
typedef struct dsv4_convert_options {
    const char *preset;  /* lossless, quality, balanced, small, tiny; default: all native */
    const char *type;    /* of all large matrices; 2 and 3 bits: of routed experts */
    const char *experts; /* of routed experts */
    const char *dense;   /* of attention and shared experts */
    const char *head;    /* of the output head */
    const char *engram;  /* of Engram tables: native, fp8, fp4; DSV4_USAGE where there are none */
    const char *rules_file;   /* a rule a line */
    const char *const *rules; /* "PATTERN=TYPE", PATTERN a glob for names without .weight */
    size_t n_rules;
    dsv4_effort effort;
    const char *importance; /* a file of dsv4_calibrate */
    /* how many experts of every layer stay, "128" or "50%": those that gave most to the importance's text */
    const char *prune_experts;
    uint32_t ctx; /* plans, fit: tokens that memory is counted for; default 32768 at most */
    /* Types are chosen for the large matrices of which the fields above say nothing, so that the expected divergence is
     * least (docs/quantization.md): */
    uint64_t fit; /* the model with ctx tokens fits into so many bytes of memory */
    double bits;  /* these matrices have so many bits a weight on the average */
    bool dynamic; /* each matrix by itself; otherwise those of one class in a layer together */
    const char
        *sensitivity; /* a file of dsv4_sensitivity; default: figures of the embedded model */
    /* Hears before a conversion begins what was decided for it: the members "choice" (of types) and "pruning" of a
     * plan. Not called where neither is asked for; or NULL. */
    void (*decided)(void *arg, const char *json);
    void *decided_arg;
    uint64_t shard_bytes; /* of one file; default 4 GiB */
    uint64_t max_ram;     /* for buffers; default: a quarter of what is free */
    uint64_t
        mark_bytes; /* at most so many have to be done again after an interruption; default: what is
                             done in ten seconds */
    uint32_t threads; /* default: one for each core */
    bool gguf; /* dst becomes a GGUF file for llama.cpp (docs/gguf.md) instead of a directory */
    bool allow_nan; /* NaN and infinite weights become 0; otherwise they are refused */
    uint64_t *
        zeroed; /* set to how many did, by this call, not by the one that it goes on from; or NULL */
    bool restart; /* forgets what an interrupted conversion has done already */
    dsv4_progress_fn progress;
    void *progress_arg;
} dsv4_convert_options;

/* Converts the directory `src` into the directory or file `dst`, which appears under its name when it is complete and
 * on the disk; until then it is dst.partial, and the same call goes on where an interrupted one
 * stopped. The result is the same, byte for byte, for any number of threads and interruptions. DSV4_USAGE:
 * options, or dst exists and is not empty; DSV4_REFUSED: the source; DSV4_FAILED: the disk, or a source
 * that was cut while it was read. */
DSV4_API int dsv4_convert(const char *src, const char *dst, const dsv4_convert_options *opt,
                          dsv4_err *err);

/* What dsv4_convert would do and how much memory the result would need, as JSON text; reads no weight but, to prune
 * layers that route by token id, their routers and, to choose types, some rows of each matrix. */
DSV4_API int dsv4_convert_plan(const char *src, const dsv4_convert_options *opt, char **json,
                               dsv4_err *err);

/* The same for the text of a config.json alone: a release of it, fp8 with fp4 experts, without drafting heads and
 * vision. */
DSV4_API int dsv4_convert_plan_config(const char *config, size_t len,
                                      const dsv4_convert_options *opt, char **json, dsv4_err *err);

/* Reads a converted directory again: checksums, and every tensor against the source (NULL: checksums alone).
 * *json (may be set after DSV4_REFUSED, too, which means damage) has the errors of every tensor, those of a layer's
 * experts together. Of the options threads and progress count. */
DSV4_API int dsv4_convert_verify(const char *src, const char *dst, const dsv4_convert_options *opt,
                                 char **json, dsv4_err *err);

typedef struct dsv4_calibrate_options {
    bool covariance;           /* sums of products of columns too, for DSV4_EFFORT_HIGH: large */
    dsv4_progress_fn progress; /* of tokens */
    void *progress_arg;
} dsv4_calibrate_options;

/* Computes the n tokens and writes what the model's matrices multiplied with to `file`: the importance of columns,
 * by which conversions weigh errors. json: how many rows the experts of each layer saw, as text that dsv4_free()
 * releases. DSV4_USAGE: no tokens, or an id out of range; DSV4_NO_MEMORY; DSV4_FAILED: the disk. */
DSV4_API int dsv4_calibrate(dsv4_engine *e, const int32_t *ids, size_t n, const char *file,
                            const dsv4_calibrate_options *opt, char **json, dsv4_err *err);

typedef struct dsv4_sensitivity_options {
    const char *type;          /* that matrices are put into, one after the other; default q3 */
    dsv4_progress_fn progress; /* of tokens, counted for every run */
    void *progress_arg;
} dsv4_sensitivity_options;

/* Measures how much the model's logits on the n tokens diverge when one matrix (or the same one of all experts of a
 * layer) is coarse, per relative error of its products, and writes it to `file`, JSON, which *json has too:
 * what dsv4_convert chooses types by. The model reads the tokens once for each of them: tens to hundreds of times.
 * Open the engine exact, with no_cache_quant and numa "off". The same for any number of threads. Errors as
 * dsv4_calibrate. */
DSV4_API int dsv4_sensitivity(dsv4_engine *e, const int32_t *ids, size_t n, const char *file,
                              const dsv4_sensitivity_options *opt, char **json, dsv4_err *err);

/* ------------------------------------------------------------------ measuring
 * What a machine can do with a model whose weights are not there: engines with made-up weights. */

typedef enum dsv4_format {
    DSV4_FORMAT_OFFICIAL, /* what the release has: mxfp4 experts, the rest e4m3 */
    DSV4_MXFP4,
    DSV4_Q4,
    DSV4_Q8,
    DSV4_E4M3,
    DSV4_BF16,
    DSV4_Q3,
    DSV4_Q2,
} dsv4_format;

/* A part of a model that fits into memory and whose layers still are those of the model, byte for byte.
 * Zero: as the config has it. */
typedef struct dsv4_slice {
    const uint32_t *layers; /* n_layers of the config's, ascending; NULL: the first n_layers */
    uint32_t n_layers;
    uint32_t experts; /* a layer that there are to choose from */
    uint32_t held;    /* of them, that have weights of their own; the others share theirs */
    uint32_t vocab;
    dsv4_format expert_format; /* of routed experts */
    dsv4_format
        dense_format; /* of all other large matrices but embedding, head, router, compressors */
} dsv4_slice;

/* An engine for the text of a config.json, with random weights and without a tokenizer: for dsv4_eval
 * and what is below, not for text. slice and opt may be NULL. DSV4_REFUSED: the config; DSV4_USAGE: a slice
 * it does not have; DSV4_NO_MEMORY: does not fit. */
DSV4_API int dsv4_open_synthetic(dsv4_engine **out, const char *config, size_t len,
                                 const dsv4_slice *slice, const dsv4_options *opt, dsv4_err *err);

/* Its memory plan as dsv4_plan has it, without making any weight, and what every layer is, reads and
 * computes. */
DSV4_API int dsv4_plan_synthetic(const char *config, size_t len, const dsv4_slice *slice,
                                 const dsv4_options *opt, char **json, dsv4_err *err);

/* The sequence becomes one of `len` random tokens with random caches, as if they had been computed. Only
 * for synthetic engines (DSV4_USAGE). */
DSV4_API int dsv4_seq_pretend(dsv4_seq *s, size_t len, dsv4_err *err);

/* Where the time of dsv4_eval went since dsv4_timings_reset, as one of the threads saw it, as JSON text:
 *   {"steps", "rows", "barriers", "seconds", "operators": [names], "layers": [[seconds of each operator], ...]}
 * The last list is for what belongs to no layer. barriers: how often all threads met. Only for synthetic engines (DSV4_USAGE). */
DSV4_API int dsv4_timings(const dsv4_engine *e, char **json, dsv4_err *err);
DSV4_API void dsv4_timings_reset(dsv4_engine *e);

/* What the threads of an engine with these options can do at most, all together. */
typedef struct dsv4_roof {
    double read, copy; /* bytes a second, from and to memory; copied bytes count once */
    double int8, f32;  /* multiply-adds a second, from registers; 0: not known for these kernels */
    double barrier;    /* seconds that a meeting of all threads takes; 0: there is one thread */
    uint64_t bytes;    /* that were read */
} dsv4_roof;

/* Takes about `seconds`. */
DSV4_API int dsv4_roofs(const dsv4_options *opt, double seconds, dsv4_roof *out, dsv4_err *err);

#ifdef __cplusplus
}
#endif
#endif
