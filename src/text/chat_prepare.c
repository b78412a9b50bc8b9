/* From messages as they were given to messages as they are written (chat-encoding, sections 2 and 3):
 * options checked, images collected, tool results and user messages merged to user turns, results
 * sorted by their calls, old reasoning dropped. What a message contains beyond that is looked at
 * when it is written: messages that are dropped are never judged by their content. */
#include "chat_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int chat_refuse(const struct message *m, dsv4_err *err, const char *format, ...)
{
    char text[800];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    return err_set(err, DSV4_REFUSED, "%s[%zu]: %s", m->in_context ? "context" : "messages", m->at,
                   text);
}

/* ------------------------------------------------------------------ options */

static int read_flag(const struct jv *v, bool *out, dsv4_err *err)
{
    if (v->type == JV_TRUE || v->type == JV_FALSE)
        *out = v->type == JV_TRUE;
    else if (v->type != JV_NULL)
        return err_set(err, DSV4_REFUSED, "options.%.*s must be true or false", (int)v->key_len,
                       v->key);
    return 0;
}

static int read_effort(struct chat *c, const struct jv *v, dsv4_err *err)
{
    c->effort = c->dialect->efforts[0];
    if (jv_none(v))
        return 0;
    for (const struct effort *e = c->dialect->efforts; e->name; e++)
        if (jv_equals(v, e->name)) {
            c->effort = *e;
            return 0;
        }
    if (c->dialect->v41 && v->type == JV_NUMBER && v->integer && v->len <= 3) {
        int percent = 0;
        for (size_t i = 0; i < v->len; i++)
            percent = v->text[i] >= '0' ? percent * 10 + (v->text[i] - '0') : -1000;
        if (percent >= 1 && percent <= 100) {
            c->effort.percent = percent;
            return 0;
        }
    }
    const char *allowed = c->dialect->v41 ? "low, high, max or an integer from 1 to 100"
                          : c->dialect->efforts[2].name ? "low, high or max"
                                                        : "high or max";
    if (v->type == JV_STRING || v->type == JV_NUMBER)
        return err_set(err, DSV4_REFUSED, "options.reasoning_effort is %.*s; expected %s",
                       chat_shown(v), v->text, allowed);
    return err_set(err, DSV4_REFUSED, "options.reasoning_effort must be %s", allowed);
}

static int read_options(struct chat *c, const struct jv *options, dsv4_err *err)
{
    c->drop_thinking = c->bos = true;
    if (options && options->type != JV_OBJECT)
        return err_set(err, DSV4_REFUSED, "options is no object");
    const struct jv *mode = jv_get(options, "thinking_mode");
    c->thinking = jv_equals(mode, "thinking");
    if (!c->thinking && !jv_equals(mode, "chat"))
        return err_set(err, DSV4_REFUSED, "options.thinking_mode must be \"thinking\" or \"chat\"");
    TRY(read_effort(c, jv_get(options, "reasoning_effort"), err));
    struct {
        const char *name;
        bool *value;
    } flags[] = {{"drop_thinking", &c->drop_thinking},
                 {"add_default_bos_token", &c->bos},
                 {"new_turn", &c->new_turn},
                 {"open_block", &c->open_block}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        const struct jv *v = jv_get(options, flags[i].name);
        if (v)
            TRY(read_flag(v, flags[i].value, err));
    }
    return 0;
}

/* ------------------------------------------------------------------ images (V4.1) */

enum block_kind chat_kind(const struct jv *block)
{
    const struct jv *type = jv_get(block, "type");
    return jv_equals(type, "text")                                    ? BLOCK_TEXT
           : jv_equals(type, "image_url") || jv_equals(type, "image") ? BLOCK_IMAGE
           : jv_equals(type, "tool_result")                           ? BLOCK_RESULT
                                                                      : BLOCK_OTHER;
}

const struct jv *chat_content_list(const struct jv *message)
{
    const struct jv *content = jv_get(message, "content");
    if (jv_is(content, JV_LIST))
        return content;
    const struct jv *blocks = jv_get(message, "content_blocks");
    return jv_is(blocks, JV_LIST) ? blocks : NULL;
}

/* Text with an image marker in it would stand for an image that is not there. */
static int check_text(const struct message *m, const struct jv *v, const char *where, dsv4_err *err)
{
    if (jv_is(v, JV_STRING) && memmem(v->text, v->len, M_IMAGE, strlen(M_IMAGE)))
        return chat_refuse(m, err, "%s contains the image marker; images are content blocks",
                           where);
    return 0;
}

/* {"type":"image",KEY:VALUE} */
static int add_image(struct chat *c, const char *key, const struct jv *value, dsv4_err *err)
{
    TRY(mem_grow(&c->images, &c->cap_images, c->n_images + 1, sizeof *c->images, "images", err));
    struct bytes record = {0};
    int rc = bytes_printf(&record, err, "{\"type\":\"image\",\"%s\":", key);
    if (rc == 0)
        rc = jv_write(&record, value, true, err);
    if (rc == 0)
        rc = bytes_text(&record, "}", err);
    if (rc != 0) {
        free(record.data);
        return rc;
    }
    c->images[c->n_images++] = record.data;
    return 0;
}

/* An image block: checks its source and, outside the context, remembers it. */
static int take_image(struct chat *c, const struct message *m, const struct jv *block,
                      dsv4_err *err)
{
    static const char *const keys[] = {"source", "url", "data"};
    const struct jv *value = NULL;
    const char *key = "url";
    if (jv_equals(jv_get(block, "type"), "image_url")) {
        value = jv_get(block, "image_url");
        if (jv_is(value, JV_OBJECT))
            value = jv_get(value, "url");
    } else {
        for (size_t i = 0; i < sizeof keys / sizeof *keys && !jv_truth(value); i++)
            value = jv_get(block, key = keys[i]);
    }
    if (!jv_truth(value) || (value->type != JV_STRING && value->type != JV_OBJECT))
        return chat_refuse(m, err, "an image block without a source");
    return m->in_context ? 0 : add_image(c, key, value, err);
}

static int take_part(struct chat *c, const struct message *m, const struct jv *part, dsv4_err *err)
{
    if (part->type != JV_OBJECT)
        return chat_refuse(m, err, "a content block is no object");
    switch (chat_kind(part)) {
    case BLOCK_TEXT: return check_text(m, jv_get(part, "text"), "a text block", err);
    case BLOCK_IMAGE: return take_image(c, m, part, err);
    case BLOCK_RESULT:
    case BLOCK_OTHER: break;
    }
    return 0;
}

static int take_images(struct chat *c, const struct message *m, dsv4_err *err)
{
    const struct jv *list = chat_content_list(m->given);
    TRY(check_text(m, jv_get(m->given, "content"), "content", err));
    TRY(check_text(m, jv_get(m->given, "reasoning_content"), "reasoning_content", err));
    for (const struct jv *b = list ? list->first : NULL; b; b = b->next) {
        TRY(take_part(c, m, b, err));
        if (chat_kind(b) != BLOCK_RESULT)
            continue;
        const struct jv *content = jv_get(b, "content");
        TRY(check_text(m, content, "a tool result", err));
        if (jv_is(content, JV_LIST))
            for (const struct jv *p = content->first; p; p = p->next)
                TRY(take_part(c, m, p, err));
    }
    return 0;
}

/* ------------------------------------------------------------------ merging */

static enum role role_of(const struct jv *message, bool v41)
{
    static const char *const names[] = {"system",    "developer",      "user", "tool",
                                        "assistant", "latest_reminder"}; /* ORDER enum role */
    const struct jv *role = jv_get(message, "role");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (jv_equals(role, names[i]))
            return v41 && i == ROLE_DEVELOPER ? ROLE_UNKNOWN : (enum role)i;
    return ROLE_UNKNOWN;
}

static int add_block(struct chat *c, struct block b, dsv4_err *err)
{
    TRY(mem_grow(&c->blocks, &c->cap_blocks, c->n_blocks + 1, sizeof b, "content blocks", err));
    c->blocks[c->n_blocks++] = b;
    c->messages[c->n - 1].n_blocks++;
    return 0;
}

/* The blocks of one user message go to the last turn. */
static int add_user_blocks(struct chat *c, const struct message *m, dsv4_err *err)
{
    const struct jv *list = c->dialect->v41 ? chat_content_list(m->given) : NULL;
    if (!list) {
        const struct jv *content = jv_get(m->given, "content");
        if (content && content->type != JV_STRING)
            return chat_refuse(m, err, "the content of a user message must be text%s",
                               c->dialect->v41 ? " or a list of blocks" : "");
        return add_block(c, (struct block){.kind = BLOCK_TEXT, .value = content}, err);
    }
    for (const struct jv *b = list->first; b; b = b->next) {
        struct block new = {.kind = chat_kind(b)};
        new.value = jv_get(b, new.kind == BLOCK_TEXT     ? "text"
                              : new.kind == BLOCK_RESULT ? "content"
                                                         : "type");
        if (new.kind == BLOCK_RESULT)
            new.id = jv_get(b, "tool_use_id");
        TRY(add_block(c, new, err));
    }
    return 0;
}

static int add_tool_result(struct chat *c, const struct message *m, dsv4_err *err)
{
    struct block new = {.kind = BLOCK_RESULT, .id = jv_get(m->given, "tool_call_id")};
    new.value = jv_get(m->given, "content");
    if (c->dialect->v41 && !jv_is(new.value, JV_STRING)) {
        const struct jv *list = chat_content_list(m->given);
        new.value = list ? list : new.value;
        new.texts_only = true;
    }
    return add_block(c, new, err);
}

/* Tool results join any user turn before them, user messages one without a task. `first` is where the
 * turns of this list begin: the context and the new messages are not merged with each other. */
static int add_message(struct chat *c, struct message m, size_t first, dsv4_err *err)
{
    const struct message *last = c->n > first ? &c->messages[c->n - 1] : NULL;
    bool user = m.role == ROLE_USER, tool = m.role == ROLE_TOOL;
    bool joins = last && last->role == ROLE_USER && (tool || (user && !last->task));
    if (!joins) {
        m.block = c->n_blocks;
        m.task = tool || jv_none(jv_get(m.given, "task")) ? NULL : jv_get(m.given, "task");
        if (!tool && (c->dialect->v41 || !user))
            m.tools = jv_truth(jv_get(m.given, "tools"));
        TRY(mem_grow(&c->messages, &c->cap, c->n + 1, sizeof m, "messages", err));
        c->messages[c->n++] = m;
        if (tool)
            c->messages[c->n - 1].role = ROLE_USER;
    }
    return user ? add_user_blocks(c, &m, err) : tool ? add_tool_result(c, &m, err) : 0;
}

static int add_list(struct chat *c, const struct jv *list, bool context, dsv4_err *err)
{
    size_t first = c->n, at = 0;
    for (const struct jv *v = list->first; v; v = v->next, at++) {
        struct message m = {.given = v, .at = at, .in_context = context};
        if (v->type != JV_OBJECT)
            return chat_refuse(&m, err, "not an object");
        m.role = role_of(v, c->dialect->v41);
        if (c->dialect->v41)
            TRY(take_images(c, &m, err));
        TRY(add_message(c, m, first, err));
    }
    return 0;
}

/* ------------------------------------------------------------------ sorting */

struct place {
    const struct jv *id;
    size_t at; /* the call's position in its message, or the result's in the turn */
    size_t key;
    struct block block;
};

static int compare_ids(const struct jv *a, const struct jv *b)
{
    if (a->type != b->type)
        return a->type < b->type ? -1 : 1;
    if (a->len != b->len)
        return a->len < b->len ? -1 : 1;
    return a->len ? memcmp(a->text, b->text, a->len) : 0;
}

static int by_id(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    int c = compare_ids(x->id, y->id);
    return c ? c : x->at < y->at ? -1 : 1;
}

static int by_call(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

struct memory {
    struct place *call;
    size_t n, cap;
};

static bool scalar(const struct jv *v)
{
    return v && v->type != JV_LIST && v->type != JV_OBJECT;
}

/* The calls of an assistant message replace what was remembered. */
static int remember(struct memory *mem, const struct jv *calls, dsv4_err *err)
{
    mem->n = 0;
    size_t at = 0;
    for (const struct jv *call = calls->first; call; call = call->next, at++) {
        const struct jv *id = jv_get(call, "id");
        if (!jv_truth(id))
            id = jv_get(jv_get(call, "function"), "id");
        if (!jv_truth(id) || !scalar(id))
            continue;
        TRY(mem_grow(&mem->call, &mem->cap, mem->n + 1, sizeof *mem->call, "tool calls", err));
        mem->call[mem->n++] = (struct place){.id = id, .at = at};
    }
    if (mem->n)
        qsort(mem->call, mem->n, sizeof *mem->call, by_id);
    return 0;
}

/* Of a repeated id the last call counts; an unknown one counts as the first call. */
static size_t position(const struct memory *mem, const struct jv *id)
{
    size_t lo = 0, hi = mem->n;
    if (!scalar(id))
        return 0;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (compare_ids(mem->call[mid].id, id) <= 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo > 0 && compare_ids(mem->call[lo - 1].id, id) == 0 ? mem->call[lo - 1].at : 0;
}

/* Results change places among themselves, texts stay where they are. */
static int sort_turn(struct chat *c, const struct message *m, const struct memory *mem,
                     dsv4_err *err)
{
    if (m->n_blocks == 0)
        return 0;
    struct block *b = c->blocks + m->block;
    size_t n = 0;
    for (size_t i = 0; i < m->n_blocks; i++)
        n += b[i].kind == BLOCK_RESULT;
    if (n < 2 || mem->n == 0)
        return 0;
    struct place *p;
    TRY(mem_alloc(&p, n, sizeof *p, "tool results", err));
    n = 0;
    for (size_t i = 0; i < m->n_blocks; i++)
        if (b[i].kind == BLOCK_RESULT) {
            p[n] = (struct place){.at = n, .key = position(mem, b[i].id), .block = b[i]};
            n++;
        }
    qsort(p, n, sizeof *p, by_call);
    n = 0;
    for (size_t i = 0; i < m->n_blocks; i++)
        if (b[i].kind == BLOCK_RESULT)
            b[i] = p[n++].block;
    free(p);
    return 0;
}

static int sort_results(struct chat *c, dsv4_err *err)
{
    struct memory mem = {0};
    int rc = 0;
    for (size_t i = 0; i < c->n && rc == 0; i++) {
        const struct message *m = &c->messages[i];
        const struct jv *calls = jv_get(m->given, "tool_calls");
        if (m->role == ROLE_ASSISTANT && jv_is(calls, JV_LIST) && calls->len)
            rc = remember(&mem, calls, err);
        else if (m->role == ROLE_USER)
            rc = sort_turn(c, m, &mem, err);
    }
    free(mem.call);
    return rc;
}

/* ------------------------------------------------------------------ thinking kept or dropped */

/* What the model answers to, besides user messages: V4 developer, V4.1 system but at the start. */
static size_t find_last_user(const struct chat *c)
{
    for (size_t i = c->n; i-- > 0;) {
        enum role r = c->messages[i].role;
        if (r == ROLE_USER || r == ROLE_DEVELOPER || (c->dialect->v41 && r == ROLE_SYSTEM && i > 0))
            return i;
    }
    return c->n;
}

/* Takes out what old turns do not keep; their reasoning is left out when they are written. */
static void drop(struct chat *c)
{
    size_t last = find_last_user(c), kept = 0, kept_context = 0;
    for (size_t i = 0; i < c->n; i++) {
        struct message m = c->messages[i];
        if (last != c->n && i < last && (m.role == ROLE_DEVELOPER || m.role == ROLE_UNKNOWN))
            continue;
        kept_context += m.in_context;
        c->messages[kept++] = m;
    }
    c->n = kept;
    c->n_context = kept_context;
}

int chat_prepare(struct chat *c, const struct jv *request, dsv4_err *err)
{
    if (!jv_is(request, JV_OBJECT))
        return err_set(err, DSV4_REFUSED, "chat: not an object with messages and options");
    TRY(read_options(c, jv_get(request, "options"), err));
    const struct jv *messages = jv_get(request, "messages"), *context = jv_get(request, "context");
    if (!jv_is(messages, JV_LIST))
        return err_set(err, DSV4_REFUSED, "messages must be a list");
    if (!jv_none(context) && context->type != JV_LIST)
        return err_set(err, DSV4_REFUSED, "context must be a list");
    if (!jv_none(context))
        TRY(add_list(c, context, true, err));
    c->n_context = c->n;
    TRY(add_list(c, messages, false, err));
    TRY(sort_results(c, err));
    for (size_t i = 0; i < c->n; i++)
        if (c->messages[i].tools)
            c->drop_thinking = false;
    c->bos = c->bos && c->n_context == 0;
    if (c->thinking && c->drop_thinking)
        drop(c);
    c->last_user = find_last_user(c);
    return 0;
}
