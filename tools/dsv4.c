/* The program dsv4: finds the command, reads its options, runs it, and turns what came of it into a
 * message and an exit code. */
#include "process.h"

#include <string.h>

/* ------------------------------------------------------------------ commands */

/* ORDER enum command */
static int (*const run_command[N_COMMANDS])(struct program *p, dsv4_err *err) = {
    cmd_ask,    cmd_chat,  cmd_run,     cmd_tokenize,   cmd_detokenize,
    cmd_repo,   cmd_info,  cmd_plan,    cmd_topology,   cmd_perplexity,
    cmd_logits, cmd_debug, cmd_version, cmd_completion, cmd_help};

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
    int command = process_command(&option_table, &argc, argv);
    p->command = command < 0 ? CMD_ASK : (enum command)command;
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
    TRY(mistyped(p, command >= 0, err));
    TRY(check_args(&p->a, err));
    return run_command[p->command](p, err);
}

int main(int argc, char **argv)
{
    static struct program p; /* its streams hold buffers */
    dsv4_err err = {0};
    process_begin(&p.term, option_table.program);
    interrupt_catch();
    p.a = args_defaults();
    int rc = run(&p, argc > 0 ? argc - 1 : 0, argc > 0 ? argv + 1 : argv, &err);
    int code = process_end(&p.term, rc, &err);
    opt_release(&option_table, &p.a);
    return code;
}
