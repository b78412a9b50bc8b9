/* process.h - what every program does as a process: descriptors, signals, its two streams, help and version,
 * and how what came of it becomes a message and an exit code. */
#ifndef DSV4_PROCESS_H
#define DSV4_PROCESS_H

#include "tools.h"

/* First of all in main(): standard descriptors that are closed are filled, as many may be open as the system
 * allows, a file of the model that shrinks under us ends the process with a message, broken pipes and size
 * limits become errors of write(2), and `t` is opened. `program` names the process in its messages and must stay. */
void process_begin(struct terminal *t, const char *program);

/* Takes the command's name out of argv[0..*argc): its number; -1 when none stands there, and the default
 * command, 0, gets all words. */
int process_command(const struct opt_set *set, int *argc, char **argv);

/* Parses argv[1..] into `values`: the command, its options, and its positional arguments, which end up at the
 * front of argv[1..]. *done: --help or --version was asked for and has been answered, or --man or
 * --completion=SHELL, each alone. */
struct process_options {
    const struct opt_set *set;
    void *values;
    const bool *help, *version; /* fields of values */
};
struct process_parsed {
    unsigned command;
    int n_args;
    bool done;
};
int process_parse(const struct process_options *o, struct terminal *t, int argc, char **argv,
                  struct process_parsed *out, dsv4_err *err);

/* Last of all: flushes, says what failed (`rc` and `err` of the run), returns the exit code. */
int process_end(struct terminal *t, int rc, dsv4_err *err);

#endif
