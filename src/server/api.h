/* api.h - what the protocol files share: parameters that every one of them has in its own words,
 * and the
 * functions that routes call. */
#ifndef DSV4_SERVER_API_H
#define DSV4_SERVER_API_H

#include "turn.h"

/* The body as JSON; replies with the failure otherwise and returns NULL. */
json_t *api_body(struct exchange *x);

/* A JSON value built from a format (as json_pack); NULL on failure. Members of a chat body. */
int api_set(json_t *object, const char *key, json_t *value);

/* {"role", ...} of a message. */
bool api_is(const json_t *object, const char *key, const char *value);

/* Model names: absent, ours, or any of the aliases; others are refused. */
int api_model(struct server *s, const char *name, struct failure *f);

/* The server's sampling as a start. */
struct turn_sampling api_sampling(const struct server *s);
/* Any seed. */
uint64_t api_seed(void);

/* thinking, tools and constraints of a chat body in OpenAI's words (the ones of dsv4_request) and
 * more:
 * fills the turn's options. `format`: response_format, `grammar`: ours; may be NULL. */
struct chat_words {
    const json_t *tools, *tool_choice, *format;
    const char *grammar;
    bool parallel;
    int64_t budget; /* 0: none */
};
int api_chat(struct turn *t, json_t *chat, const struct chat_words *w, struct failure *f);

/* "data: " TEXT "\n\n" around what is written between them. */
void sse_begin(struct turn *t, const char *event);
void sse_end(struct turn *t);

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
