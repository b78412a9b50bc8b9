/* The program dsv4: finds the command, reads its options, runs it, and turns what came of it into a
 * message and an exit code. Owns what belongs to the process: signals, descriptors, locale. */
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ the process */

/* The only globals: what a signal handler can reach. */
static volatile sig_atomic_t presses, patience_left = 2;

static void on_interrupt(int sig)
{
    (void)sig;
    presses = 1;
    patience_left--;
    if (patience_left <= 0)
        _exit(130);
}

/* A mapped file became shorter than it was (or its disk is gone): nothing can be computed any more. */
static void on_bus_error(int sig)
{
    static const char text[] =
        "dsv4: a file of the model shrank or could not be read while in use\n";
    (void)sig;
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(3);
}

bool interrupted(void)
{
    return presses != 0;
}

void interrupted_reset(int patience)
{
    presses = 0;
    patience_left = patience;
}

static void set_signals(void)
{
    struct sigaction a = {.sa_handler = on_interrupt}, old; /* no SA_RESTART: reading ends */
    sigemptyset(&a.sa_mask);
    if (sigaction(SIGINT, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
        sigaction(SIGINT, &a, NULL); /* a script's background job stays deaf */
    a.sa_handler = on_bus_error;
    sigaction(SIGBUS, &a, NULL);
    a.sa_handler = SIG_IGN; /* writing then fails, with a message */
    sigaction(SIGPIPE, &a, NULL);
    sigaction(SIGXFSZ, &a, NULL);
    sigaction(SIGXFSZ, &a, NULL); /* as with a broken pipe: the failed write has a message */
}

/* Descriptors 0 to 2 that were closed at start are opened the wrong way round, so that no file of
 * ours takes their place and using them fails instead of doing harm. */
static void fill_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF)
            (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

/* ------------------------------------------------------------------ commands */

/* ORDER enum command */
static int (*const run_command[N_COMMANDS])(struct program *p, dsv4_err *err) = {
    cmd_ask,   cmd_chat,    cmd_run,        cmd_tokenize,   cmd_detokenize,
    cmd_info,  cmd_plan,    cmd_topology,   cmd_perplexity, cmd_logits,
    cmd_debug, cmd_version, cmd_completion, cmd_help};

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

/* Takes the command's name out of argv; without one the default command gets all words. */
static void find_command(struct program *p, int *argc, char **argv)
{
    int at = opt_first_word(&option_table, *argc, argv);
    int command = at < 0 ? -1 : opt_command_find(&option_table, argv[at]);
    p->command = command < 0 ? CMD_ASK : (enum command)command;
    if (command < 0)
        return;
    memmove(argv + at, argv + at + 1, (size_t)(*argc - at - 1) * sizeof *argv);
    --*argc;
}

/* One word that is almost a command was hardly meant as a question. */
static int mistyped(const struct program *p, bool named, dsv4_err *err)
{
    if (named || p->command != CMD_ASK || p->argc == 0 || strlen(p->argv[0]) < 4)
        return 0;
    const char *near = opt_nearest_command(&option_table, p->argv[0], 1);
    if (!near)
        return 0;
    return err_set(err, DSV4_USAGE,
                   "%s: no such command; did you mean %s? (As a question: dsv4 ask \"%s\")",
                   p->argv[0], near, p->argv[0]);
}

static int check_args(const struct args *a, dsv4_err *err)
{
    if (a->logprobs > 0 && !a->json)
        return err_set(err, DSV4_USAGE, "--logprobs goes with --json");
    for (size_t i = 0; i < a->stop.n; i++)
        if (!*a->stop.item[i])
            return err_set(err, DSV4_USAGE, "--stop: an empty text would stop at once");
    if (a->chunks && !*a->chunks)
        return err_set(err, DSV4_USAGE, "--chunks: the list is empty");
    return 0;
}

static int run(struct program *p, int argc, char **argv, dsv4_err *err)
{
    int before = argc;
    find_command(p, &argc, argv);
    TRY(opt_parse(&option_table, p->command, argc, argv, &p->a, &p->argc, err));
    p->argv = argv;
    p->term.quiet = p->a.quiet;
    if (p->a.help) {
        char *word = (char *)(uintptr_t)option_table.command[p->command].name;
        p->argv = &word;
        p->argc = 1;
        return cmd_help(p, err);
    }
    if (p->a.version)
        return cmd_version(p, err);
    TRY(opt_count_args(&option_table, p->command, p->argc, p->argv, err));
    TRY(mistyped(p, argc != before, err));
    TRY(check_args(&p->a, err));
    return run_command[p->command](p, err);
}

int main(int argc, char **argv)
{
    static struct program p; /* its streams hold buffers */
    dsv4_err err = {0}, later;
    fill_descriptors();
    set_signals();
    terminal_open(&p.term);
    p.a = args_defaults();
    int rc = run(&p, argc > 0 ? argc - 1 : 0, argc > 0 ? argv + 1 : argv, &err);
    status_clear(&p.term);
    int flushed = stream_flush(&p.term.out, rc == 0 ? &err : &later);
    if (rc == 0)
        rc = flushed;
    if (rc != 0 && err.text[0])
        complain(&p.term, "%s", err.text);
    stream_flush(&p.term.err, &later);
    opt_release(&option_table, &p.a);
    return exit_code(rc);
}
