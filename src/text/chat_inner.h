/* chat_inner.h - what the files of the prompt encoder share with each other and nobody else:
 *   chat.c          the dialects as tables, the way from a request to a prompt
 *   chat_prepare.c  messages as given -> messages as they are written (merged, sorted, dropped)
 *   chat_render.c   those -> text with control spans
 *   parse.c, parse_strict.c  model output -> message
 *   request.c       an OpenAI chat-completion body -> what chat_prepare.c takes
 * The format is described in docs (chat-encoding); its section numbers are used in comments. */
#ifndef DSV4_CHAT_INNER_H
#define DSV4_CHAT_INNER_H

#include "jv.h"

/* Markers: each is one added token of the tokenizer. */
#define M_BOS       "<｜begin▁of▁sentence｜>"
#define M_EOS       "<｜end▁of▁sentence｜>"
#define M_USER      "<｜User｜>"
#define M_ASSISTANT "<｜Assistant｜>"
#define M_SYSTEM    "<｜System｜>"
#define M_REMINDER  "<｜latest_reminder｜>"
#define M_THINK     "<think>"
#define M_END_THINK "</think>"
#define M_DSML      "｜DSML｜"
#define M_IMAGE     "<｜deepseek_image｜>"

struct effort {
    const char *name; /* NULL ends a table */
    const char *text; /* V4: written at the start of the prompt */
    int percent;      /* V4.1 */
};

struct dialect {
    bool v41;
    const char *tag[3];           /* names of the tags of a block, a call, a parameter */
    const struct effort *efforts; /* the first is the default */
};

extern const struct dialect chat_dialects[3]; /* ORDER dsv4_dialect */

enum role {
    ROLE_SYSTEM,
    ROLE_DEVELOPER,
    ROLE_USER,
    ROLE_TOOL,
    ROLE_ASSISTANT,
    ROLE_REMINDER,
    ROLE_UNKNOWN
};

enum block_kind { BLOCK_TEXT, BLOCK_IMAGE, BLOCK_RESULT, BLOCK_OTHER };

/* A part of a user turn. */
struct block {
    enum block_kind kind;
    const struct jv *value; /* the text, the content of the result, the type of another block */
    const struct jv *id;    /* of the call that a result answers */
    bool texts_only;        /* parts of the result that are no text and no image vanish */
};

struct message {
    enum role role;
    const struct jv *given; /* of a merged turn: the first */
    const struct jv *task;  /* NULL: none */
    size_t at;              /* its place in the list it came from, for messages */
    bool in_context;
    bool tools; /* has some */
    size_t block, n_blocks;
};

struct chat {
    const struct dialect *dialect;
    bool thinking, drop_thinking, bos;
    bool new_turn;   /* the model speaks again after a finished answer */
    bool open_block; /* the model has to call a tool */
    struct effort effort;

    struct message *messages; /* the context first */
    size_t n, cap, n_context;
    struct block *blocks;
    size_t n_blocks, cap_blocks;
    size_t last_user; /* index of the last user turn, n when there is none */

    struct bytes text; /* the prompt so far */
    dsv4_span *spans;
    size_t n_spans, cap_spans;
    char **images;
    size_t n_images, cap_images;
};

/* Fills the options, messages, blocks and images. */
int chat_prepare(struct chat *c, const struct jv *request, dsv4_err *err);

/* Fills text and spans. */
int chat_render(struct chat *c, dsv4_err *err);

/* How much of a foreign string a message quotes: at most 60 bytes, whole characters. For %.*s. */
static inline int chat_shown(const struct jv *v)
{
    size_t n = v->len < 60 ? v->len : 60;
    while (n < v->len && n > 0 && ((unsigned char)v->text[n] & 0xC0) == 0x80)
        n--;
    return (int)n;
}

/* The kind of a block of a content list by its `type`. */
enum block_kind chat_kind(const struct jv *block);

/* V4.1: the content list of a message, NULL when its content is plain text. */
const struct jv *chat_content_list(const struct jv *message);

/* "messages[3]: ..." */
int chat_refuse(const struct message *m, dsv4_err *err, const char *format, ...) PRINTF_LIKE(3, 4);

#endif
