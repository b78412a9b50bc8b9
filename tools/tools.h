/* tools.h - what the files of the programs share. They stand on src/dsv4.h and src/system only. */
#ifndef DSV4_TOOLS_H
#define DSV4_TOOLS_H

#include <jansson.h>

#include "src/dsv4.h"
#include "src/system/opt.h"
#include "src/system/system.h"

/* ------------------------------------------------------------------ options.c */

/* The values of the one option table; what is not given keeps the value of args_defaults(). */
struct args {
    bool help, version;
    /* model */
    const char *model, *tokenizer, *family, *cpus, *numa, *synthetic;
    int revision, cache_quant;
    uint32_t ctx, batch, threads, rewind;
    uint32_t sequences; /* no option: what a program needs; 0: one */
    uint64_t max_memory;
    bool exact, paged;
    /* conversation */
    const char *system, *think, *tools, *session, *repo;
    uint32_t repo_budget;
    bool show_thinking;
    struct opt_list files;
    /* sampling; NAN and -1: the model's own default */
    float temp, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k, max_tokens, logprobs;
    bool greedy, ignore_eos;
    const char *seed, *grammar, *json_schema;
    struct opt_list logit_bias, stop;
    /* input and output */
    const char *ids_file, *out, *chunks, *load, *save;
    uint32_t window;
    bool json, stats, quiet, ids, markers, no_bos, pieces, events, strict, man;
};

enum command {
    CMD_ASK, /* the default */
    CMD_CHAT,
    CMD_RUN,
    CMD_TOKENIZE,
    CMD_DETOKENIZE,
    CMD_REPO,
    CMD_INFO,
    CMD_PLAN,
    CMD_TOPOLOGY,
    CMD_PERPLEXITY,
    CMD_LOGITS,
    CMD_DEBUG,
    CMD_VERSION,
    CMD_COMPLETION,
    CMD_HELP,
    N_COMMANDS
};

enum { REVISION_AUTO = -1, REVISION_PREVIEW, REVISION_0731 };
enum { CACHE_QUANT_ON, CACHE_QUANT_OFF };

extern const struct opt_set option_table;
struct args args_defaults(void);

/* ------------------------------------------------------------------ terminal.c */

/* Standard output or error. What was written stays in `buffer` until stream_flush; the first failure
 * is kept and everything after it dropped. */
struct stream {
    int fd;
    const char *shown;
    bool tty;    /* text of others is made safe */
    bool colour; /* escapes of ours are understood */
    bool line_start;
    bool wide;      /* the last character shown was not ASCII: a joiner may follow */
    dsv4_utf8 utf8; /* a character that is not complete yet */
    size_t n;
    int rc;
    dsv4_err err;
    char buffer[8192];
};

struct terminal {
    const char *program; /* the name in front of messages */
    struct stream out, err;
    bool quiet;       /* no progress, counter, greeting, statistics */
    bool status_on;   /* a status line stands on stderr */
    double status_at; /* when it was drawn */
};

void terminal_open(struct terminal *t, const char *program);

/* Our own text. */
void stream_text(struct stream *s, const char *text);
void stream_bytes(struct stream *s, const char *data, size_t len);
void stream_printf(struct stream *s, const char *format, ...) PRINTF_LIKE(2, 3);
/* Text of a model or a file: on a terminal made safe, elsewhere as it is. Pieces may end inside a
 * character; stream_foreign_end() shows what is left of one. */
void stream_foreign(struct stream *s, const char *text, size_t len);
void stream_foreign_end(struct stream *s);
/* "\x1b[2m" and "\x1b[0m" where they are understood. */
void stream_dim(struct stream *s, bool on);
int stream_flush(struct stream *s, dsv4_err *err);

/* A dim line on stderr that the next one replaces and that vanishes before anything else is shown.
 * Only on a terminal; drawn at most 20 times a second. */
void status_show(struct terminal *t, const char *format, ...) PRINTF_LIKE(2, 3);
/* "####...." for the part of something that is done. */
struct bar {
    char text[25];
};
struct bar status_bar(uint64_t done, uint64_t total);
void status_clear(struct terminal *t);

/* "PROGRAM: MESSAGE" on stderr. */
void complain(struct terminal *t, const char *format, ...) PRINTF_LIKE(2, 3);

/* The safe form of len bytes of UTF-8 (whole characters); out has room for SAFE_ROOM(len). */
#define SAFE_ROOM(len) ((len)*4 + 1)
size_t safe_text(const char *text, size_t len, bool *wide, char *out);

/* ------------------------------------------------------------------ line.c */

/* Lines typed at a prompt (edited, with a history file) or read from a pipe. */
struct line_reader;

int line_open(struct line_reader **out, bool interactive, dsv4_err *err);
void line_close(struct line_reader *r);
/* One line without its newline, malloc'ed; *text NULL at the end of input. DSV4_INTERRUPTED for
 * Ctrl-C. */
int line_read(struct line_reader *r, const char *prompt, char **text, size_t *len, dsv4_err *err);
/* Remembers what was typed. */
void line_remember(struct line_reader *r, const char *text);

/* ------------------------------------------------------------------ interrupt.c */

/* Ctrl-C was pressed since the last interrupted_reset(). `patience` presses that nobody answers end
 * the program at once. */
bool interrupted(void);
void interrupted_reset(int patience);
/* From now on Ctrl-C is noticed, unless the process was started deaf to it; patience 2. */
void interrupt_catch(void);

/* ------------------------------------------------------------------ dsv4.c */

/* One run of the program. */
struct program {
    struct args a;
    enum command command;
    bool chatting; /* more than one turn: ends of prompts are kept */
    char **argv;   /* positional arguments */
    int argc;
    struct terminal term;
};

int cmd_ask(struct program *p, dsv4_err *err);
int cmd_chat(struct program *p, dsv4_err *err);
int cmd_run(struct program *p, dsv4_err *err);
int cmd_perplexity(struct program *p, dsv4_err *err);
int cmd_logits(struct program *p, dsv4_err *err);
int cmd_tokenize(struct program *p, dsv4_err *err);
int cmd_detokenize(struct program *p, dsv4_err *err);
int cmd_debug(struct program *p, dsv4_err *err);
int cmd_repo(struct program *p, dsv4_err *err);
int cmd_info(struct program *p, dsv4_err *err);
int cmd_plan(struct program *p, dsv4_err *err);
int cmd_topology(struct program *p, dsv4_err *err);
int cmd_version(struct program *p, dsv4_err *err);
int cmd_completion(struct program *p, dsv4_err *err);
int cmd_help(struct program *p, dsv4_err *err);

/* ------------------------------------------------------------------ input.c */

enum { TEXT_LIMIT = 256 << 20 }; /* bytes of a prompt, a text or an ids file */

/* Text as UTF-8 with every ill-formed part replaced by U+FFFD, malloc'ed; says so on stderr. */
int text_repair(struct program *p, const char *what, const char *text, size_t len, char **out,
                size_t *n, dsv4_err *err);

/* The words of the command line joined by blanks, else --file, else standard input unless it is a
 * terminal (then DSV4_USAGE). malloc'ed. */
int input_text(struct program *p, int first, char **text, size_t *len, dsv4_err *err);

/* Decimal ids separated by white space, each in 0 .. vocab-1. */
int ids_parse(const char *text, size_t len, size_t vocab, const char *where, int32_t **ids,
              size_t *n, dsv4_err *err);
int ids_read(const char *path, size_t vocab, int32_t **ids, size_t *n, dsv4_err *err);

/* "3,1,17": sizes of calls. */
int chunks_parse(const char *text, size_t **chunk, size_t *n, dsv4_err *err);

/* A file being written: aside and renamed when it is complete if it is a regular one, directly for
 * devices and pipes ("-": standard output). */
struct sink {
    struct file_aside file; /* aside NULL: written directly */
};
int sink_open(struct sink *s, const char *path, dsv4_err *err);
int sink_write(struct sink *s, const void *data, size_t len, dsv4_err *err);
/* rc: of the writing. Completes, or takes back what was written aside; closes. Returns the first failure. */
int sink_close(struct sink *s, int rc, dsv4_err *err);
/* All of it at once. */
int sink_file(const char *path, const void *data, size_t len, dsv4_err *err);

/* JSON to standard output, one line. Takes the reference. */
int json_print(struct program *p, json_t *value, dsv4_err *err);
/* A value as JSON text, malloc'ed; NULL: out of memory. Use this and not json_dumps(): when its buffer
 * cannot grow, jansson 2.14 may leave out a key and carry on. */
char *json_text(const json_t *value, size_t flags);
/* NULL (out of memory) is an error. */
int json_made(json_t *value, dsv4_err *err);

/* ------------------------------------------------------------------ engine.c */

/* The model's directory: -m, $DSV4_MODEL, or the model that came with the program. malloc'ed. */
int model_find(struct program *p, char **dir, bool *embedded, dsv4_err *err);

struct model_handle {
    dsv4_engine *engine;
    char *dir;
    const char *name; /* last part of dir */
    bool embedded;
};
int open_model(struct program *p, struct model_handle *m, dsv4_err *err);
void close_model(struct model_handle *m);

/* What the library told (JSON text), as JSON or as a sheet. Frees the text. (cmd_info.c) */
int show_json(struct program *p, char *text, dsv4_err *err);

/* Options of the command line as the library takes them. */
dsv4_options engine_options(struct program *p);

/* The tokenizer alone: --tokenizer, or the model's. */
int tokenizer_open(struct program *p, dsv4_tokenizer **out, dsv4_err *err);

/* Sampling of the command line over the model's defaults; *bias is malloc'ed. */
int sampling_options(struct program *p, const dsv4_engine *e, dsv4_sampling *s, dsv4_bias **bias,
                     dsv4_err *err);

/* Speed and memory of a finished answer, on stderr, when wanted. */
void statistics(struct program *p, const dsv4_generated *g);
/* The same as JSON members. */
int statistics_json(json_t *to, const dsv4_generated *g, dsv4_err *err);
/* {"id", "text", "logprob", "top": [...]} */
json_t *logprob_json(const dsv4_tokenizer *t, const dsv4_token *token, size_t n_top);

/* ------------------------------------------------------------------ release.c */

/* --as: the text of a config.json, of a release by name ("v4-flash", ...) or of a file. malloc'ed. */
int release_config(const char *as, char **text, size_t *len, dsv4_err *err);

/* ------------------------------------------------------------------ eval_stats.c */

/* log sum exp of a row of logits, in double: the logarithm of a probability is the logit minus this. Not
 * finite if a logit is not. */
double row_scale(const float *logits, size_t n);

/* ------------------------------------------------------------------ report.c */

/* Members of results: 0 and "?" where there is none. */
double real_of(const json_t *from, const char *key);
const char *word_of(const json_t *from, const char *key);

/* JSON as a data sheet for people: members line by line, lists of objects as tables. */
int report_text(const json_t *value, struct bytes *out, dsv4_err *err);

/* ------------------------------------------------------------------ talk.c */

/* A conversation: messages, and the sequence that holds what was computed of them. */
struct talk {
    struct program *p;
    struct model_handle model;
    dsv4_seq *seq;
    dsv4_dialect dialect;
    json_t *messages; /* as dsv4_render takes them */
    json_t *tools;    /* NULL: none */
    char *think;      /* "off", "on", an effort's name or number */
    dsv4_sampling sampling;
    dsv4_bias *bias;
    size_t mark[4], n_marks; /* ends of the last prompts, as a ring: places to go on from */
};

/* What the model answered. */
struct answer {
    struct bytes content, reasoning;
    json_t *calls;    /* [{"name", "arguments"}] */
    json_t *logprobs; /* list, when asked for */
    char finish[16];
    dsv4_generated generated;
    size_t n_context; /* tokens of the whole prompt */
};

int talk_open(struct talk *t, struct program *p, dsv4_err *err);
void talk_close(struct talk *t);
int talk_clear(struct talk *t, dsv4_err *err);
/* Replaces or removes (NULL or empty) the system message. */
int talk_system(struct talk *t, const char *text, dsv4_err *err);
int talk_think(struct talk *t, const char *mode, dsv4_err *err);
int talk_add_user(struct talk *t, const char *text, size_t len, dsv4_err *err);
/* Renders and checks without computing anything. */
int talk_check(struct talk *t, dsv4_err *err);
/* Computes the answer to the last message, showing it as it comes (unless --json), and appends it.
 * DSV4_INTERRUPTED: what came until then was kept, or the user's message taken back if nothing had
 * come. After another failure the user's message is taken back. */
int talk_answer(struct talk *t, struct answer *a, dsv4_err *err);
void answer_release(struct answer *a);
json_t *answer_json(const struct talk *t, const struct answer *a);

#endif
