/* ask: one answer. chat: a conversation at a prompt, with /commands. */
#include "repo.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ shared */

/* Which model answers, so that nobody mistakes the embedded one for the real thing. */
static void greet(struct program *p, const struct model_handle *m, bool chat)
{
    struct stream *s = &p->term.err;
    dsv4_err ignored;
    if (p->a.quiet || !s->tty || (!chat && !m->embedded))
        return;
    stream_dim(s, true);
    if (chat)
        stream_printf(s, "dsv4 %s, ", DSV4_VERSION);
    stream_text(s, "model ");
    stream_foreign(s, m->name, strlen(m->name));
    stream_foreign_end(s);
    if (m->embedded)
        stream_text(s, ": the tiny embedded model, a toy; -m DIR for a real one");
    if (chat)
        stream_text(s, "\n/help tells what can be typed");
    stream_dim(s, false);
    stream_text(s, "\n");
    stream_flush(s, &ignored);
}

/* Text files that stand in front of the next message. */
static int add_file(struct program *p, struct bytes *to, const char *path, dsv4_err *err)
{
    char *raw, *text = NULL;
    size_t len, n;
    TRY(file_read(path, TEXT_LIMIT, &raw, &len, err));
    int rc = text_repair(p, path, raw, len, &text, &n, err);
    free(raw);
    if (rc == 0)
        rc = bytes_add(to, text, n, err);
    if (rc == 0)
        rc = bytes_text(to, n > 0 && text[n - 1] == '\n' ? "\n" : "\n\n", err);
    free(text);
    return rc;
}

static int add_files(struct program *p, struct bytes *to, dsv4_err *err)
{
    for (size_t i = 0; i < p->a.files.n; i++)
        TRY(add_file(p, to, p->a.files.item[i], err));
    return 0;
}

static bool reads_stdin(const struct program *p)
{
    for (size_t i = 0; i < p->a.files.n; i++)
        if (strcmp(p->a.files.item[i], "-") == 0)
            return true;
    return false;
}

/* ------------------------------------------------------------------ ask */

/* The files, then the words; standard input where there are neither words nor files. */
static int ask_prompt(struct program *p, struct bytes *b, dsv4_err *err)
{
    TRY(add_files(p, b, err));
    if (p->argc == 0 && p->a.files.n > 0)
        return 0;
    struct opt_list files = p->a.files;
    p->a.files = (struct opt_list){0};
    char *text = NULL;
    size_t n;
    int rc = input_text(p, 0, &text, &n, err);
    p->a.files = files;
    if (rc == 0 && p->argc == 0 && n > 0 && text[n - 1] == '\n')
        n--; /* a pipe's last newline ends the text, it is no part of it */
    if (rc == 0)
        rc = bytes_add(b, text, n, err);
    free(text);
    return rc;
}

static int blank(const struct bytes *b)
{
    for (size_t i = 0; i < b->len; i++)
        if (b->data[i] != ' ' && b->data[i] != '\n' && b->data[i] != '\t' && b->data[i] != '\r')
            return 0;
    return 1;
}

/* repo->dir NULL: no folder was given. */
static int ask(struct program *p, struct repo *repo, struct bytes *prompt, dsv4_err *err)
{
    struct talk t;
    struct answer a = {0};
    TRY(talk_open(&t, p, err));
    int rc = repo->dir ? repo_in_front(repo, p, t.model.engine, prompt, err) : 0;
    if (rc == 0)
        rc = talk_add_user(&t, prompt->data, prompt->len, err);
    if (rc == 0)
        rc = talk_check(&t, err);
    if (rc == 0) {
        greet(p, &t.model, false);
        rc = talk_answer(&t, &a, err);
    }
    if (rc == 0 && p->a.json)
        rc = json_print(p, answer_json(&t, &a), err);
    if (rc == 0)
        statistics(p, &a.generated);
    answer_release(&a);
    talk_close(&t);
    return rc;
}

int cmd_ask(struct program *p, dsv4_err *err)
{
    if (p->argc == 0 && p->a.files.n == 0 && isatty(STDIN_FILENO)) {
        if (isatty(STDOUT_FILENO))
            return cmd_chat(p, err);
        return err_set(err, DSV4_USAGE, "no prompt: give it on the command line or through a pipe");
    }
    struct bytes prompt = {0};
    int rc = ask_prompt(p, &prompt, err);
    if (rc == 0 && blank(&prompt))
        rc = err_set(err, DSV4_USAGE, "the prompt is empty");
    struct repo repo = {0};
    if (rc == 0 && p->a.repo)
        rc = repo_scan(&repo, p->a.repo, err);
    if (rc == 0)
        rc = ask(p, &repo, &prompt, err);
    repo_close(&repo);
    free(prompt.data);
    return rc;
}

/* ------------------------------------------------------------------ /commands */

struct chat {
    struct program *p;
    struct talk talk;
    struct line_reader *lines;
    struct bytes pending; /* /file texts for the next message */
    bool interactive, quit;
    int first_failure;
};

static void tell(struct chat *c, const char *text)
{
    struct stream *s = &c->p->term.err;
    dsv4_err ignored;
    if (c->p->a.quiet || !c->interactive)
        return;
    stream_dim(s, true);
    stream_foreign(s, text, strlen(text));
    stream_foreign_end(s);
    stream_dim(s, false);
    stream_text(s, "\n");
    stream_flush(s, &ignored);
}

static int do_help(struct chat *c, const char *arg, dsv4_err *err)
{
    (void)arg;
    struct stream *s = &c->p->term.err;
    const char *text = option_table.command[CMD_CHAT].text;
    const char *list = strstr(text, "  /help"); /* the commands stand behind the prose */
    stream_text(s, list ? list : text);
    stream_text(s,
                "\nA message between lines of \"\"\" may have any lines; \\ at the end of a line "
                "goes on in the next.\nCtrl-C stops an answer, Ctrl-D ends.\n");
    return stream_flush(s, err);
}

static int do_clear(struct chat *c, const char *arg, dsv4_err *err)
{
    (void)arg;
    c->pending.len = 0;
    TRY(talk_clear(&c->talk, err));
    tell(c, "forgotten");
    return 0;
}

static int do_system(struct chat *c, const char *arg, dsv4_err *err)
{
    TRY(talk_system(&c->talk, arg, err));
    tell(c, *arg ? "system message set" : "no system message");
    return 0;
}

static int do_think(struct chat *c, const char *arg, dsv4_err *err)
{
    char *before = strdup(c->talk.think);
    if (!before)
        return err_memory(err, 8, "a mode");
    int rc = talk_think(&c->talk, *arg ? arg : "on", err);
    if (rc == 0 && json_array_size(c->talk.messages) > 0 && (rc = talk_check(&c->talk, err)) != 0) {
        dsv4_err later;
        talk_think(&c->talk, before, &later);
    }
    free(before);
    if (rc == 0)
        tell(c, strcmp(c->talk.think, "off") == 0 ? "no thinking" : "thinking");
    return rc;
}

static int do_file(struct chat *c, const char *arg, dsv4_err *err)
{
    if (!*arg || strcmp(arg, "-") == 0)
        return err_set(err, DSV4_USAGE, "/file PATH: which file?");
    size_t before = c->pending.len;
    int rc = add_file(c->p, &c->pending, arg, err);
    if (rc != 0) {
        c->pending.len = before;
        return rc;
    }
    tell(c, "in front of the next message");
    return 0;
}

/* The folder as it is now, in front of what waits for the next message already. */
static int add_repo(struct chat *c, const char *dir, dsv4_err *err)
{
    struct repo r;
    int rc = repo_scan(&r, dir, err);
    if (rc == 0)
        rc = repo_in_front(&r, c->p, c->talk.model.engine, &c->pending, err);
    repo_close(&r);
    return rc;
}

static int do_repo(struct chat *c, const char *arg, dsv4_err *err)
{
    if (!*arg)
        return err_set(err, DSV4_USAGE, "/repo DIR: which folder?");
    TRY(add_repo(c, arg, err));
    tell(c, "in front of the next message");
    return 0;
}

static const char chat_format[] = "dsv4-chat-1";

static int save_messages(const struct chat *c, const char *path, dsv4_err *err)
{
    json_t *v = json_pack("{s:s, s:s, s:s, s:O}", "format", chat_format, "model",
                          c->talk.model.name, "think", c->talk.think, "messages", c->talk.messages);
    TRY(json_made(v, err));
    char *text = json_text(v, JSON_INDENT(1));
    json_decref(v);
    if (!text)
        return json_made(NULL, err);
    size_t len = strlen(text);
    text[len] = '\n'; /* in place of the NUL: len + 1 bytes are written */
    int rc = sink_file(path, text, len + 1, err);
    free(text);
    return rc;
}

static int do_save(struct chat *c, const char *arg, dsv4_err *err)
{
    if (!*arg || strcmp(arg, "-") == 0)
        return err_set(err, DSV4_USAGE, "/save FILE: to which file?");
    TRY(save_messages(c, arg, err));
    tell(c, "saved");
    return 0;
}

static int load_messages(struct chat *c, const json_t *v, const char *path, dsv4_err *err)
{
    json_t *list = json_is_array(v) ? (json_t *)(uintptr_t)v : json_object_get(v, "messages");
    const char *format = json_string_value(json_object_get(v, "format"));
    const char *think = json_string_value(json_object_get(v, "think"));
    if (!json_is_array(list) || (format && strcmp(format, chat_format) != 0))
        return err_set(err, DSV4_REFUSED, "%s: not a conversation that /save wrote", path);
    json_t *before = c->talk.messages;
    char *mode = strdup(c->talk.think);
    if (!mode)
        return err_memory(err, 8, "a mode");
    c->talk.messages = json_incref(list);
    int rc = think ? talk_think(&c->talk, think, err) : 0;
    if (rc == 0 && json_array_size(list) > 0)
        rc = talk_check(&c->talk, err);
    if (rc != 0) {
        dsv4_err later;
        json_decref(list);
        c->talk.messages = before;
        talk_think(&c->talk, mode, &later);
        char why[sizeof err->text];
        memcpy(why, err->text, sizeof why);
        rc = err_set(err, DSV4_REFUSED, "%s: %s", path, why);
    } else {
        json_decref(before);
    }
    free(mode);
    return rc;
}

static int load_file(struct chat *c, const char *path, dsv4_err *err)
{
    char *text;
    size_t len;
    json_error_t je;
    TRY(file_read(path, TEXT_LIMIT, &text, &len, err));
    json_t *v = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    free(text);
    if (!v)
        return err_set(err, DSV4_REFUSED, "%s: line %d: %s", path, je.line, je.text);
    int rc = load_messages(c, v, path, err);
    json_decref(v);
    return rc;
}

static int do_load(struct chat *c, const char *arg, dsv4_err *err)
{
    if (!*arg || strcmp(arg, "-") == 0)
        return err_set(err, DSV4_USAGE, "/load FILE: which file?");
    TRY(load_file(c, arg, err));
    tell(c, "loaded");
    return 0;
}

static int do_quit(struct chat *c, const char *arg, dsv4_err *err)
{
    (void)arg;
    (void)err;
    c->quit = true;
    return 0;
}

static const struct {
    const char *name;
    int (*run)(struct chat *c, const char *arg, dsv4_err *err);
} chat_commands[] = {{"help", do_help},   {"clear", do_clear}, {"system", do_system},
                     {"think", do_think}, {"file", do_file},   {"repo", do_repo},
                     {"save", do_save},   {"load", do_load},   {"quit", do_quit},
                     {"exit", do_quit}};

/* "/word rest" */
static int command(struct chat *c, const char *line, dsv4_err *err)
{
    size_t n = strcspn(line + 1, " \t");
    const char *arg = line + 1 + n;
    arg += strspn(arg, " \t");
    for (size_t i = 0; i < sizeof chat_commands / sizeof *chat_commands; i++)
        if (strlen(chat_commands[i].name) == n && memcmp(chat_commands[i].name, line + 1, n) == 0)
            return chat_commands[i].run(c, arg, err);
    return err_set(err, DSV4_USAGE,
                   "/%.*s: no such command; /help lists them. (A message may begin "
                   "with a blank.)",
                   (int)(n < 40 ? n : 40), line + 1);
}

/* ------------------------------------------------------------------ --session */

static int cache_path(const struct chat *c, struct bytes *path, dsv4_err *err)
{
    return bytes_printf(path, err, "%s.cache", c->p->a.session);
}

/* The conversation of last time, if there was one. Its caches are a convenience: without them, or with
 * those of another model, it is computed again. */
static int session_begin(struct chat *c, dsv4_err *err)
{
    struct bytes path = {0};
    dsv4_seq *s = NULL;
    if (!c->p->a.session || access(c->p->a.session, F_OK) != 0)
        return 0;
    TRY(load_file(c, c->p->a.session, err));
    int rc = cache_path(c, &path, err);
    if (rc == 0 && access(path.data, F_OK) == 0) {
        dsv4_err why;
        if (dsv4_seq_load(&s, c->talk.model.engine, path.data, &why) == 0) {
            dsv4_seq_close(c->talk.seq);
            c->talk.seq = s;
        } else if (!c->p->a.quiet) {
            complain(&c->p->term, "%s; the conversation is computed again", why.text);
        }
    }
    free(path.data);
    if (rc == 0)
        tell(c, "going on with the conversation of last time");
    return rc;
}

static int session_end(struct chat *c, dsv4_err *err)
{
    struct bytes path = {0};
    if (!c->p->a.session || dsv4_seq_len(c->talk.seq) == 0)
        return 0;
    int rc = cache_path(c, &path, err);
    if (rc == 0)
        rc = dsv4_seq_save(c->talk.seq, path.data, err);
    free(path.data);
    return rc;
}

/* ------------------------------------------------------------------ chat */

static const char prompt_first[] = "> ", prompt_more[] = "... ";

/* Adds lines to b while `more` says the message goes on. */
static int read_block(struct chat *c, struct bytes *b, dsv4_err *err)
{
    for (;;) {
        char *line;
        size_t len;
        TRY(line_read(c->lines, prompt_more, &line, &len, err));
        bool end = !line || strcmp(line, "\"\"\"") == 0;
        int rc = end ? 0 : bytes_add(b, line, len, err);
        if (rc == 0 && !end)
            rc = bytes_text(b, "\n", err);
        free(line);
        if (rc != 0 || end) {
            b->len -= b->len > 0; /* the last newline */
            return rc;
        }
    }
}

/* One message or command; b->data NULL at the end of input. */
static int read_message(struct chat *c, struct bytes *b, dsv4_err *err)
{
    const char *prompt = prompt_first;
    for (;;) {
        char *line;
        size_t len;
        TRY(line_read(c->lines, prompt, &line, &len, err));
        if (!line)
            return 0;
        if (!b->data && strcmp(line, "\"\"\"") == 0) {
            free(line);
            TRY(bytes_text(b, "", err));
            return read_block(c, b, err);
        }
        bool more = len > 0 && line[len - 1] == '\\';
        int rc = bytes_add(b, line, more ? len - 1 : len, err);
        if (rc == 0 && more)
            rc = bytes_text(b, "\n", err);
        free(line);
        if (rc != 0 || !more)
            return rc;
        prompt = prompt_more;
    }
}

static int say(struct chat *c, const struct bytes *message, dsv4_err *err)
{
    struct program *p = c->p;
    int rc = bytes_add(&c->pending, message->data, message->len, err);
    if (rc == 0)
        rc = talk_add_user(&c->talk, c->pending.data, c->pending.len, err);
    c->pending.len = 0;
    TRY(rc);
    struct answer a;
    rc = talk_answer(&c->talk, &a, err);
    if (rc == 0 && p->a.json)
        rc = json_print(p, answer_json(&c->talk, &a), err);
    if (rc == 0)
        statistics(p, &a.generated);
    answer_release(&a);
    if ((rc == 0 || rc == DSV4_INTERRUPTED) && p->a.session) {
        dsv4_err later;
        int kept = save_messages(c, p->a.session, rc == 0 ? err : &later);
        rc = rc == 0 ? kept : rc;
    }
    return rc;
}

static int repair(struct chat *c, struct bytes *b, dsv4_err *err)
{
    char *text = NULL;
    size_t n;
    TRY(text_repair(c->p, "the message", b->data, b->len, &text, &n, err));
    free(b->data);
    *b = (struct bytes){text, n, n + 1};
    return 0;
}

/* One round. Failures of an answer or a command are told and forgotten; what cannot be told any more
 * (standard output is gone) or cannot be read is returned. */
static int round_trip(struct chat *c, dsv4_err *err)
{
    struct bytes b = {0};
    dsv4_err ignored;
    interrupted_reset(3);
    int rc = stream_flush(&c->p->term.out, err);
    if (rc == 0)
        rc = read_message(c, &b, err);
    if (rc != 0 || !b.data) {
        free(b.data);
        if (rc == DSV4_INTERRUPTED && c->interactive) {
            stream_text(&c->p->term.out, "\n");
            return stream_flush(&c->p->term.out, err);
        }
        c->quit = true;
        if (rc == 0 && c->interactive)
            stream_text(&c->p->term.out, "\n");
        return rc;
    }
    if (c->interactive)
        line_remember(c->lines, b.data);
    rc = repair(c, &b, err);
    if (rc != 0) {
        free(b.data);
        return rc;
    }
    if (b.data[0] == '/' && strlen(b.data) == b.len)
        rc = command(c, b.data, err);
    else if (!blank(&b))
        rc = say(c, &b, err);
    free(b.data);
    if (rc == DSV4_INTERRUPTED && c->interactive) {
        tell(c, "stopped");
        return 0;
    }
    if (rc == DSV4_INTERRUPTED || stream_flush(&c->p->term.out, &ignored) != 0) {
        c->quit = true;
        return rc;
    }
    if (rc != 0) {
        complain(&c->p->term, "%s", err->text);
        if (c->first_failure == 0)
            c->first_failure = rc;
    }
    return 0;
}

static int converse(struct chat *c, dsv4_err *err)
{
    int rc = 0;
    while (rc == 0 && !c->quit)
        rc = round_trip(c, err);
    if (rc == 0 && c->first_failure != 0 && !c->interactive) {
        err->text[0] = 0; /* told already */
        return c->first_failure;
    }
    return rc;
}

int cmd_chat(struct program *p, dsv4_err *err)
{
    struct chat c = {.p = p, .interactive = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    if (reads_stdin(p))
        return err_set(err, DSV4_USAGE, "--file -: standard input is where chat reads messages");
    p->chatting = true;
    int rc = add_files(p, &c.pending, err);
    if (rc == 0)
        rc = talk_open(&c.talk, p, err);
    if (rc != 0) {
        free(c.pending.data);
        return rc;
    }
    if (p->a.repo)
        rc = add_repo(&c, p->a.repo, err);
    if (rc == 0 && (rc = line_open(&c.lines, c.interactive, err)) == 0) {
        greet(p, &c.talk.model, true);
        rc = session_begin(&c, err);
        if (rc == 0) {
            rc = converse(&c, err);
            dsv4_err later;
            int kept = session_end(&c, rc == 0 ? err : &later);
            rc = rc == 0 ? kept : rc;
        }
    }
    line_close(c.lines);
    talk_close(&c.talk);
    free(c.pending.data);
    return rc;
}
