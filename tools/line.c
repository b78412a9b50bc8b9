/* The prompt line: libedit with a history file on a terminal (when built with it), plain lines
 * otherwise. Owns the terminal's line discipline while a line is typed, and nothing in between. */
#include "tools.h"

#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef HAVE_EDIT
#include <histedit.h>
#endif

enum { LINE_LIMIT = 16 << 20, HISTORY_SIZE = 1000 };

struct line_reader {
    bool interactive;
    const char *prompt;
    char *plain; /* getline's buffer */
    size_t plain_cap;
#ifdef HAVE_EDIT
    EditLine *edit;
    History *history;
    char *history_file; /* NULL: none */
#endif
};

#ifdef HAVE_EDIT
/* Creates the directories of a path below `from`, private to the user. */
static bool make_directories(char *path, size_t from)
{
    for (char *p = path + from; *p; p++) {
        if (*p != '/' || p == path)
            continue;
        *p = 0;
        bool ok = mkdir(path, 0700) == 0 || errno == EEXIST;
        *p = '/';
        if (!ok)
            return false;
    }
    return true;
}

/* $XDG_STATE_HOME/dsv4/history; NULL when there is no place for it. */
static char *history_path(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    struct bytes b = {0};
    int rc = -1;
    size_t base = 0;
    if (state && state[0] == '/') {
        base = strlen(state);
        rc = bytes_printf(&b, NULL, "%s/dsv4/history", state);
    } else if (home && home[0] == '/') {
        base = strlen(home);
        rc = bytes_printf(&b, NULL, "%s/.local/state/dsv4/history", home);
    }
    if (rc != 0 || !make_directories(b.data, base)) {
        free(b.data);
        return NULL;
    }
    return b.data;
}

static char *show_prompt(EditLine *e)
{
    void *data = NULL;
    el_get(e, EL_CLIENTDATA, &data);
    return (char *)(uintptr_t)((struct line_reader *)data)->prompt;
}

static void edit_open(struct line_reader *r)
{
    /* the editor wants to know which bytes make a character; numbers stay in C */
    if (!setlocale(LC_CTYPE, "") || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
    if (!(r->edit = el_init("dsv4", stdin, stdout, stderr)))
        return; /* plain lines then */
    el_set(r->edit, EL_CLIENTDATA, (void *)r);
    el_set(r->edit, EL_PROMPT, show_prompt);
    el_set(r->edit, EL_EDITOR, "emacs");
    el_set(r->edit, EL_SIGNAL, 1); /* it restores the terminal, then our handler runs */
    el_set(r->edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    if (!(r->history = history_init()))
        return;
    HistEvent ev;
    history(r->history, &ev, H_SETSIZE, HISTORY_SIZE);
    history(r->history, &ev, H_SETUNIQUE, 1);
    el_set(r->edit, EL_HIST, history, r->history);
    if ((r->history_file = history_path()))
        history(r->history, &ev, H_LOAD, r->history_file);
}

static int edit_read(struct line_reader *r, char **text, size_t *len, dsv4_err *err)
{
    int n = 0;
    errno = 0;
    const char *got = el_gets(r->edit, &n);
    if (interrupted()) {
        el_reset(r->edit);
        return err_set(err, DSV4_INTERRUPTED, "interrupted");
    }
    if (!got || n <= 0)
        return 0; /* the end */
    size_t size = (size_t)n;
    if (got[size - 1] == '\n')
        size--;
    struct bytes b = {0};
    TRY(bytes_add(&b, got, size, err));
    *text = b.data;
    *len = size;
    return 0;
}
#endif

int line_open(struct line_reader **out, bool interactive, dsv4_err *err)
{
    struct line_reader *r;
    TRY(mem_alloc(&r, 1, sizeof *r, "the prompt line", err));
    r->interactive = interactive;
    r->prompt = "";
#ifdef HAVE_EDIT
    if (interactive)
        edit_open(r);
#endif
    *out = r;
    return 0;
}

void line_close(struct line_reader *r)
{
    if (!r)
        return;
#ifdef HAVE_EDIT
    if (r->history)
        history_end(r->history);
    if (r->edit)
        el_end(r->edit);
    free(r->history_file);
#endif
    free(r->plain);
    free(r);
}

static int plain_read(struct line_reader *r, char **text, size_t *len, dsv4_err *err)
{
    if (r->interactive) {
        fputs(r->prompt, stdout);
        fflush(stdout);
    }
    errno = 0;
    ssize_t n = getline(&r->plain, &r->plain_cap, stdin);
    if (n < 0) {
        int e = errno;
        bool failed = ferror(stdin) != 0;
        clearerr(stdin);
        if (interrupted())
            return err_set(err, DSV4_INTERRUPTED, "interrupted");
        errno = e;
        return failed || e == ENOMEM ? err_errno(err, DSV4_FAILED, "standard input", "read") : 0;
    }
    size_t size = (size_t)n;
    if (size > LINE_LIMIT)
        return err_set(err, DSV4_USAGE, "a line of %zu bytes; at most %d are read", size,
                       LINE_LIMIT);
    if (size > 0 && r->plain[size - 1] == '\n')
        size--;
    struct bytes b = {0};
    TRY(bytes_add(&b, r->plain, size, err));
    *text = b.data;
    *len = size;
    return 0;
}

int line_read(struct line_reader *r, const char *prompt, char **text, size_t *len, dsv4_err *err)
{
    *text = NULL;
    *len = 0;
    r->prompt = prompt;
#ifdef HAVE_EDIT
    if (r->edit)
        return edit_read(r, text, len, err);
#endif
    return plain_read(r, text, len, err);
}

void line_remember(struct line_reader *r, const char *text)
{
#ifdef HAVE_EDIT
    HistEvent ev;
    if (!r->history || !*text)
        return;
    history(r->history, &ev, H_ENTER, text);
    if (r->history_file)
        history(r->history, &ev, H_SAVE, r->history_file);
#else
    (void)r;
    (void)text;
#endif
}
