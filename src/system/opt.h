/* opt.h - the one table of a program's commands and options. From it come parsing, --help, the man
 * page and the shell completions; nothing about an option is written anywhere else. */
#ifndef DSV4_OPT_H
#define DSV4_OPT_H

#include "system.h"

/* What an option's value is, and the type of the field it is stored in. */
enum opt_kind {
    OPT_FLAG,   /* bool */
    OPT_TEXT,   /* const char *: points into argv or the environment */
    OPT_LIST,   /* struct opt_list: may be given several times */
    OPT_CHOICE, /* int: which of the words in `arg` ("on|off") */
    OPT_U32,    /* uint32_t in min..max */
    OPT_FLOAT,  /* float in min..max */
    OPT_BYTES,  /* uint64_t: 4096, 512M, 24G, ... (powers of 1024) */
};

struct opt_list {
    const char **item;
    size_t n, cap;
};

/* One row. An option may have several rows if its meaning differs between commands; they must agree
 * in kind and letter. */
struct opt {
    const char *group; /* heading in the help; rows of one group stand together */
    char letter;       /* 0: none */
    const char *name;
    enum opt_kind kind;
    const char *arg;      /* the value's name, "N"; for OPT_CHOICE the words; NULL for flags */
    double min, max;      /* OPT_U32, OPT_FLOAT */
    unsigned commands;    /* bit i: belongs to command i of the set */
    size_t offset;        /* of the field in the struct of values */
    const char *env;      /* this variable gives the value when the option does not; no lists */
    const char *fallback; /* the default as the help shows it; NULL: nothing to say */
    const char *help;
};

struct opt_command {
    const char *name;
    const char *args;  /* "[PROMPT...]" */
    const char *brief; /* one line */
    const char *text;  /* paragraphs, separated by empty lines; "  x" lines are kept as they are */
    const char *const *examples; /* line, what it does, line, ..., NULL; NULL: none */
    int min_args, max_args;      /* positional arguments; -1: any number */
};

struct opt_note {
    const char *name, *text;
};

struct opt_set {
    const char *program, *version, *brief, *text;
    const struct opt_command *command; /* command 0 is the default one */
    size_t n_commands;
    const struct opt *opt;
    size_t n_opts;
    const struct opt_note *environment, *files, *exits; /* ended by a NULL name */
};

/* A program that is one command: its name is not typed twice. */
static inline bool opt_single(const struct opt_set *s)
{
    return s->n_commands == 1;
}

static inline bool opt_takes(const struct opt *o, unsigned command)
{
    return o->commands >> command & 1;
}

/* ------------------------------------------------------------------ opt.c */

/* Where in argv[0..argc) the first word stands that is neither an option nor an option's value (of
 * any command); -1 when there is none before a "--". */
int opt_first_word(const struct opt_set *s, int argc, char *const *argv);

/* The command of that name; -1. */
int opt_command_find(const struct opt_set *s, const char *name);

/* The command or option name nearest to `word`, NULL when none is near. */
const char *opt_nearest_command(const struct opt_set *s, const char *word, size_t distance);
const char *opt_nearest_option(const struct opt_set *s, unsigned command, const char *word);

/* Reads argv[0..argc) (without program and command) into `values`; positional arguments are moved
 * to the front of argv, *n_args of them. Lists are malloc'ed: opt_release() after success and
 * failure alike. */
int opt_parse(const struct opt_set *s, unsigned command, int argc, char **argv, void *values,
              int *n_args, dsv4_err *err);
/* Whether the command takes so many positional arguments. */
int opt_count_args(const struct opt_set *s, unsigned command, int n, char *const *argv,
                   dsv4_err *err);
void opt_release(const struct opt_set *s, void *values);

/* Numbers the way options take them: the whole text, decimal, in range. */
bool opt_number_u64(const char *text, uint64_t *out);
bool opt_number_double(const char *text, double *out);

/* ------------------------------------------------------------------ opt_doc.c */

/* Help of one command (command 0: of the program, with the list of commands). */
int opt_help(const struct opt_set *s, unsigned command, struct bytes *out, dsv4_err *err);
/* The manual page, man(7) macros. */
int opt_man(const struct opt_set *s, struct bytes *out, dsv4_err *err);

/* ------------------------------------------------------------------ opt_complete.c */

/* shell: "bash", "zsh" or "fish"; DSV4_USAGE for another. */
int opt_completion(const struct opt_set *s, const char *shell, struct bytes *out, dsv4_err *err);

#endif
