/* The beginning and the end of a program, the same for all of them. Ctrl-C is in interrupt.c: a server does
 * something else about it. */
#include "process.h"

#include "bus_error.h"
#include "src/system/system.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Descriptors 0 to 2 that were closed at start are opened the wrong way round, so that no file of
 * ours takes their place and using them fails instead of doing harm. */
static void fill_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF)
            (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

static void set_signals(const char *program)
{
    struct sigaction a = {.sa_handler = SIG_IGN}; /* writing then fails, with a message */
    sigemptyset(&a.sa_mask);
    sigaction(SIGPIPE, &a, NULL);
    sigaction(SIGXFSZ, &a, NULL);
    bus_error_catch(program);
}

void process_begin(struct terminal *t, const char *program)
{
    fill_descriptors();
    descriptors_raise(); /* every shard of a model keeps one */
    set_signals(program);
    terminal_open(t, program);
}

int process_command(const struct opt_set *set, int *argc, char **argv)
{
    int at = opt_first_word(set, *argc, argv);
    int command = at < 0 ? -1 : opt_command_find(set, argv[at]);
    if (command < 0)
        return -1;
    memmove(argv + at, argv + at + 1, (size_t)(*argc - at - 1) * sizeof *argv);
    --*argc;
    return command;
}

/* What of the table was asked for (`rc`: of making it). */
static int show(struct terminal *t, int rc, struct bytes *text)
{
    if (rc == 0)
        stream_bytes(&t->out, text->data, text->len);
    free(text->data);
    return rc;
}

int process_parse(const struct process_options *o, struct terminal *t, int argc, char **argv,
                  struct process_parsed *out, dsv4_err *err)
{
    static const char completion[] = "--completion=";
    struct bytes text = {0};
    char **word = argc > 0 ? argv + 1 : argv;
    int n = argc > 0 ? argc - 1 : 0;
    *out = (struct process_parsed){.done = true};
    /* for whoever installs the program; alone, so that they need no place in its values */
    if (n == 1 && strcmp(word[0], "--man") == 0)
        return show(t, opt_man(o->set, &text, err), &text);
    if (n == 1 && strncmp(word[0], completion, sizeof completion - 1) == 0)
        return show(t, opt_completion(o->set, word[0] + sizeof completion - 1, &text, err), &text);
    int command = o->set->n_commands > 1 ? process_command(o->set, &n, word) : 0;
    out->command = command < 0 ? 0 : (unsigned)command;
    TRY(opt_parse(o->set, out->command, n, word, o->values, &out->n_args, err));
    if (*o->version) {
        stream_printf(&t->out, "%s %s\n", o->set->program, o->set->version);
        return 0;
    }
    if (*o->help)
        return show(t, opt_help(o->set, out->command, &text, err), &text);
    out->done = false;
    return opt_count_args(o->set, out->command, out->n_args, word, err);
}

static int exit_code(int status)
{
    switch (status) {
    case DSV4_OK: return 0;
    case DSV4_USAGE: return 2;
    case DSV4_REFUSED: return 3;
    case DSV4_NO_MEMORY: return 4;
    case DSV4_INTERRUPTED: return 130;
    default: return 1;
    }
}

int process_end(struct terminal *t, int rc, dsv4_err *err)
{
    dsv4_err later;
    status_clear(t);
    int flushed = stream_flush(&t->out, rc == 0 ? err : &later);
    if (rc == 0)
        rc = flushed;
    if (rc != 0 && err->text[0])
        complain(t, "%s", err->text);
    stream_flush(&t->err, &later);
    return exit_code(rc);
}
