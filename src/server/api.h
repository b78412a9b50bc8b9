/* api.h - what the protocol files share: parameters that every one of them has in its own words,
 * and the functions that routes call. */
#ifndef DSV4_SERVER_API_H
#define DSV4_SERVER_API_H

#include "turn.h"

/* The body as JSON; replies with the failure otherwise and returns NULL. */
json_t *api_body(struct exchange *x);

/* What came of reading a body's members: rc and f, unless the values they were put together into lack
 * something for want of memory (json_failed()). */
int api_settled(int rc, struct failure *f);

/* A request that becomes a turn: opens it with the body, names it `prefix` and the exchange's number,
 * lets the protocol read the parameters, and hands it over; or replies with the failure. */
void api_turn(struct exchange *x, const struct shape *shape, const char *prefix,
              int (*read)(struct turn *t, struct failure *f));

/* A JSON value built from a format (as json_pack); NULL on failure. Members of a chat body. */
int api_set(json_t *object, const char *key, json_t *value);

/* Takes the value over, NULL after a failed allocation. */
int api_append(json_t *list, json_t *value, struct failure *f);
int api_no_memory(struct failure *f);
/* A JSON string of what was written, which is freed; NULL after a failed allocation. */
json_t *api_string(struct out *o);
/* Adds a tool in OpenAI's words; parameters and description may be NULL. */
int api_add_function(json_t *list, json_t *name, json_t *parameters, json_t *description,
                     struct failure *f);

/* {"role", ...} of a message. */
bool api_is(const json_t *object, const char *key, const char *value);

/* Model names: absent, ours, or any of the aliases; others are refused. */
int api_model(struct server *s, const char *name, struct failure *f);

/* The server's sampling as a start. */
struct turn_sampling api_sampling(const struct server *s);
/* Any seed. */
uint64_t api_seed(void);

/* thinking, tools and constraints of a chat body in OpenAI's words (the ones of dsv4_request) and
 * more: fills the turn's options. `format`: response_format, `grammar`: ours; may be NULL. */
struct chat_words {
    const json_t *tools, *tool_choice, *format;
    const char *grammar;
    bool parallel;
    int64_t budget; /* 0: none */
};
int api_chat(struct turn *t, json_t *chat, const struct chat_words *w, struct failure *f);

/* ------------------------------------------------------------------ bodies as chats in OpenAI's words */

/* What anthropic_chat.c reads of a body: members as params_read() leaves them, NULL where absent. */
struct anthropic_body {
    json_t *messages, *system, *tools, *tool_choice, *thinking, *output;
};

/* What becomes of it: a chat for api_chat(), and what a chat has no words for. */
struct anthropic_chat {
    json_t *chat;          /* with response_format; the caller's, NULL on failure */
    bool parallel, hidden; /* more than one call may be made; reasoning is not sent */
    int64_t budget;        /* tokens of reasoning; 0: no limit */
};

int anthropic_chat(const struct anthropic_body *b, struct anthropic_chat *out, struct failure *f);

/* Likewise responses_chat.c. */
struct responses_body {
    const char *instructions;
    json_t *input, *tools, *tool_choice, *text, *reasoning;
};

int responses_chat(const struct responses_body *b, json_t **chat, struct failure *f);

/* ------------------------------------------------------------------ events */

/* "data: " TEXT "\n\n" around what is written between them. */
void sse_begin(struct turn *t, const char *event);
void sse_end(struct turn *t);

/* ------------------------------------------------------------------ OpenAI's two protocols (openai.c) */

/* Parameters that both have. */
struct openai_params {
    const char *model, *user, *grammar;
    json_t *stop, *bias, *stream_options;
    bool stream, ignore_eos, return_progress, cache_prompt;
    int64_t n, seed, top_k;
    double temperature, top_p, min_p, frequency, presence, repetition, timeout;
};

/* Their rows of a table (params_read); AT(field) is the offset of a field of struct openai_params. */
#define OPENAI_PARAMS(AT)                                                                          \
    {"model", P_TEXT, 0, 256, AT(model)}, {"grammar", P_TEXT, 1, 1 << 20, AT(grammar)},            \
        {"temperature", P_NUMBER, 0, 2, AT(temperature)}, {"top_p", P_NUMBER, 1e-6, 1, AT(top_p)}, \
        {"top_k", P_INT, 0, INT32_MAX, AT(top_k)}, {"min_p", P_NUMBER, 0, 1, AT(min_p)},           \
        {"frequency_penalty", P_NUMBER, -2, 2, AT(frequency)},                                     \
        {"presence_penalty", P_NUMBER, -2, 2, AT(presence)},                                       \
        {"repetition_penalty", P_NUMBER, 0.01, 100, AT(repetition)},                               \
        {"seed", P_INT, -9.2e18, 9.2e18, AT(seed)}, {"stop", P_ANY, 0, 0, AT(stop)},               \
        {"n", P_INT, 1, 1e6, AT(n)}, {"logit_bias", P_OBJECT, 0, 0, AT(bias)},                     \
        {"stream", P_BOOL, 0, 0, AT(stream)},                                                      \
        {"stream_options", P_OBJECT, 0, 0, AT(stream_options)},                                    \
        {"ignore_eos", P_BOOL, 0, 0, AT(ignore_eos)},                                              \
        {"return_progress", P_BOOL, 0, 0, AT(return_progress)},                                    \
        {"cache_prompt", P_BOOL, 0, 0, AT(cache_prompt)},                                          \
        {"timeout", P_NUMBER, 0, 1e6, AT(timeout)}, {"user", P_TEXT, 0, 1024, AT(user)},

/* What holds where the body says nothing. */
void openai_defaults(struct openai_params *p, const struct turn_sampling *s);
/* Whether and how the turn streams. */
int openai_stream(struct turn *t, const struct openai_params *p, struct failure *f);
void openai_sampling(const struct openai_params *p, struct turn_sampling *s);

/* {"id": ..., "choices":[ */
void openai_head(struct turn *t, const char *object);
/* Ends a piece of a stream behind its choices; usage: writes {"prompt_tokens": ...}. */
void openai_piece_end(struct turn *t, void (*usage)(struct turn *t));
void openai_logprob(struct turn *t, const dsv4_logprob *l);
/* Messages of a chat as dsv4_request knows them: other names for the same things are replaced, members and
 * parts that nobody knows refused. NULL is no message. */
int openai_messages(const struct server *s, json_t *messages, struct failure *f);
/* The last line of a stream; the same behind a failure. */
void openai_done(struct turn *t);
void openai_fail(struct turn *t, const struct failure *f);

/* ------------------------------------------------------------------ routes */

void api_chat_completions(struct exchange *x);
void api_completions(struct exchange *x);
void api_responses(struct exchange *x);
void api_messages(struct exchange *x);
void api_count_tokens(struct exchange *x);
void api_models(struct exchange *x);
void api_tokenize(struct exchange *x);
void api_detokenize(struct exchange *x);
void api_health(struct exchange *x);
void api_metrics(struct exchange *x);
void api_props(struct exchange *x);
void api_slots(struct exchange *x);
void api_openapi(struct exchange *x);
void api_page(struct exchange *x);

#endif
