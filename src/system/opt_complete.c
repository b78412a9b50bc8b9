/* Completions of a program's options for bash, zsh and fish, made from the one table (opt.h). */
#include "opt.h"

#include <string.h>

enum words { WORDS_NONE, WORDS_CHOICE, WORDS_FILE, WORDS_DIR, WORDS_OTHER };

/* What the value of an option can be completed with. */
static enum words words_of(const struct opt *o)
{
    if (o->kind == OPT_FLAG)
        return WORDS_NONE;
    if (o->kind == OPT_CHOICE)
        return WORDS_CHOICE;
    if (strcmp(o->arg, "FILE") == 0)
        return WORDS_FILE;
    return strcmp(o->arg, "DIR") == 0 ? WORDS_DIR : WORDS_OTHER;
}

/* The words of "on|off" with `separator` between them. */
static int choices(struct bytes *b, const char *words, char separator, dsv4_err *err)
{
    for (; *words; words++)
        TRY(bytes_add(b, *words == '|' ? &separator : words, 1, err));
    return 0;
}

/* Text inside single quotes of a shell; characters of `special` get a backslash. */
static int quoted(struct bytes *b, const char *text, const char *special, dsv4_err *err)
{
    for (; *text; text++) {
        if (*text == '\'') {
            TRY(bytes_text(b, "'\\''", err));
            continue;
        }
        if (strchr(special, *text))
            TRY(bytes_text(b, "\\", err));
        TRY(bytes_add(b, text, 1, err));
    }
    return 0;
}

static int command_names(struct bytes *b, const struct opt_set *s, const char *separator,
                         dsv4_err *err)
{
    for (size_t i = 0; i < s->n_commands; i++)
        TRY(bytes_printf(b, err, "%s%s", i ? separator : "", s->command[i].name));
    return 0;
}

static int bash_values(struct bytes *b, const struct opt_set *s, dsv4_err *err)
{
    for (size_t i = 0; i < s->n_opts; i++) {
        const struct opt *o = &s->opt[i];
        enum words w = words_of(o);
        if (w == WORDS_NONE)
            continue;
        TRY(bytes_printf(b, err, "    --%s", o->name));
        if (o->letter)
            TRY(bytes_printf(b, err, "|-%c", o->letter));
        TRY(bytes_text(b, ") ", err));
        if (w == WORDS_CHOICE) {
            TRY(bytes_text(b, "COMPREPLY=($(compgen -W '", err));
            TRY(choices(b, o->arg, ' ', err));
            TRY(bytes_text(b, "' -- \"$cur\")); ", err));
        } else if (w != WORDS_OTHER) {
            TRY(bytes_printf(b, err, "COMPREPLY=($(compgen -%c -- \"$cur\")); ",
                             w == WORDS_FILE ? 'f' : 'd'));
        }
        TRY(bytes_text(b, "return ;;\n", err));
    }
    return 0;
}

static int bash(const struct opt_set *s, struct bytes *b, dsv4_err *err)
{
    const char *p = s->program;
    TRY(bytes_printf(b, err,
                     "# bash completion for %s\n_%s()\n{\n"
                     "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
                     "    local cmd=%s i\n",
                     p, p, s->command[0].name));
    if (!opt_single(s)) {
        TRY(bytes_text(b,
                       "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
                       "        case ${COMP_WORDS[i]} in\n        ",
                       err));
        TRY(command_names(b, s, "|", err));
        TRY(bytes_text(b, ") cmd=${COMP_WORDS[i]}; break ;;\n        esac\n    done\n", err));
    }
    TRY(bytes_text(b, "    case $prev in\n", err));
    TRY(bash_values(b, s, err));
    TRY(bytes_text(b, "    esac\n    local words=\n    case $cmd in\n", err));
    for (size_t c = 0; c < s->n_commands; c++) {
        TRY(bytes_printf(b, err, "    %s) words='", s->command[c].name));
        for (size_t i = 0; i < s->n_opts; i++)
            if (opt_takes(&s->opt[i], (unsigned)c))
                TRY(bytes_printf(b, err, "--%s ", s->opt[i].name));
        TRY(bytes_text(b, "' ;;\n", err));
    }
    TRY(bytes_text(b,
                   "    esac\n    if [[ $cur == -* ]]; then\n"
                   "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n",
                   err));
    if (!opt_single(s)) {
        TRY(bytes_text(b, "    elif ((COMP_CWORD == 1)); then\n        COMPREPLY=($(compgen -W '",
                       err));
        TRY(command_names(b, s, " ", err));
        TRY(bytes_text(b, "' -- \"$cur\"))\n", err));
    }
    return bytes_printf(b, err,
                        "    else\n        COMPREPLY=($(compgen -f -- \"$cur\"))\n"
                        "    fi\n}\ncomplete -o filenames -F _%s %s\n",
                        p, p);
}

static int zsh_option(struct bytes *b, const struct opt *o, const char *name, const char *dashes,
                      dsv4_err *err)
{
    TRY(bytes_printf(b, err, " \\\n            '%s%s%s%s[", o->kind == OPT_LIST ? "*" : "", dashes,
                     name, o->arg ? (dashes[1] ? "=" : "+") : ""));
    TRY(quoted(b, o->help, "[]:\\", err));
    TRY(bytes_text(b, "]", err));
    enum words w = words_of(o);
    if (w == WORDS_NONE)
        return bytes_text(b, "'", err);
    TRY(bytes_printf(b, err, ":%s:", w == WORDS_CHOICE ? "which" : o->arg));
    if (w == WORDS_CHOICE) {
        TRY(bytes_text(b, "(", err));
        TRY(choices(b, o->arg, ' ', err));
        TRY(bytes_text(b, ")", err));
    } else if (w == WORDS_FILE) {
        TRY(bytes_text(b, "_files", err));
    } else if (w == WORDS_DIR) {
        TRY(bytes_text(b, "_files -/", err));
    } else {
        TRY(bytes_text(b, " ", err));
    }
    return bytes_text(b, "'", err);
}

static int zsh_arguments(struct bytes *b, const struct opt_set *s, unsigned command, dsv4_err *err)
{
    TRY(bytes_text(b, "_arguments -s", err));
    for (size_t i = 0; i < s->n_opts; i++) {
        const struct opt *o = &s->opt[i];
        if (!opt_takes(o, command))
            continue;
        TRY(zsh_option(b, o, o->name, "--", err));
        char letter[2] = {o->letter, 0};
        if (o->letter)
            TRY(zsh_option(b, o, letter, "-", err));
    }
    return bytes_text(b, " \\\n            '*: :_files'\n", err);
}

static int zsh_commands(struct bytes *b, const struct opt_set *s, dsv4_err *err)
{
    TRY(bytes_text(b, "    local -a cmds\n    cmds=(\n", err));
    for (size_t i = 0; i < s->n_commands; i++) {
        TRY(bytes_printf(b, err, "        '%s:", s->command[i].name));
        TRY(quoted(b, s->command[i].brief, ":\\", err));
        TRY(bytes_text(b, "'\n", err));
    }
    TRY(bytes_printf(b, err,
                     "    )\n    if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then\n"
                     "        _describe -t commands command cmds\n        return\n    fi\n"
                     "    local cmd=%s w\n    for w in ${words[2,-1]}; do\n"
                     "        if [[ -n ${cmds[(r)${w}:*]} ]]; then\n"
                     "            cmd=$w\n            break\n        fi\n    done\n"
                     "    case $cmd in\n",
                     s->command[0].name));
    for (size_t c = 0; c < s->n_commands; c++) {
        TRY(bytes_printf(b, err, "    %s)\n        ", s->command[c].name));
        TRY(zsh_arguments(b, s, (unsigned)c, err));
        TRY(bytes_text(b, "        ;;\n", err));
    }
    return bytes_text(b, "    esac\n", err);
}

static int zsh(const struct opt_set *s, struct bytes *b, dsv4_err *err)
{
    const char *p = s->program;
    TRY(bytes_printf(b, err, "#compdef %s\n# zsh completion for %s\n_%s()\n{\n", p, p, p));
    if (opt_single(s)) {
        TRY(bytes_text(b, "    ", err));
        TRY(zsh_arguments(b, s, 0, err));
    } else {
        TRY(zsh_commands(b, s, err));
    }
    return bytes_printf(b, err, "}\n_%s \"$@\"\n", p);
}

static int fish_option(struct bytes *b, const struct opt_set *s, const struct opt *o,
                       size_t command, dsv4_err *err)
{
    TRY(bytes_printf(b, err, "complete -c %s", s->program));
    if (!opt_single(s))
        TRY(bytes_printf(b, err, " -n '__%s_is %s'", s->program, s->command[command].name));
    TRY(bytes_printf(b, err, " -l %s", o->name));
    if (o->letter)
        TRY(bytes_printf(b, err, " -s %c", o->letter));
    enum words w = words_of(o);
    if (w == WORDS_CHOICE) {
        TRY(bytes_text(b, " -x -a '", err));
        TRY(choices(b, o->arg, ' ', err));
        TRY(bytes_text(b, "'", err));
    } else if (w == WORDS_DIR) {
        TRY(bytes_text(b, " -x -a '(__fish_complete_directories)'", err));
    } else if (w != WORDS_NONE) {
        TRY(bytes_text(b, w == WORDS_FILE ? " -r -F" : " -x", err));
    }
    TRY(bytes_text(b, " -d '", err));
    /* fish knows \' inside single quotes, unlike other shells */
    for (const char *t = o->help; *t; t++) {
        if (*t == '\'' || *t == '\\')
            TRY(bytes_text(b, "\\", err));
        TRY(bytes_add(b, t, 1, err));
    }
    return bytes_text(b, "'\n", err);
}

/* A function that tells whether a command is being completed, and the commands themselves. */
static int fish_commands(struct bytes *b, const struct opt_set *s, dsv4_err *err)
{
    TRY(bytes_printf(b, err,
                     "function __%s_is\n    set -l words (commandline -opc)\n    set -l cmd %s\n"
                     "    for w in $words[2..]\n        switch $w\n            case ",
                     s->program, s->command[0].name));
    TRY(command_names(b, s, " ", err));
    TRY(bytes_text(b,
                   "\n                set cmd $w\n                break\n        end\n    end\n"
                   "    test $cmd = $argv[1]\nend\n",
                   err));
    for (size_t i = 0; i < s->n_commands; i++) {
        TRY(bytes_printf(b, err, "complete -c %s -n __fish_use_subcommand -a %s -d '", s->program,
                         s->command[i].name));
        TRY(quoted(b, s->command[i].brief, "", err));
        TRY(bytes_text(b, "'\n", err));
    }
    return 0;
}

static int fish(const struct opt_set *s, struct bytes *b, dsv4_err *err)
{
    TRY(bytes_printf(b, err, "# fish completion for %s\n", s->program));
    if (!opt_single(s))
        TRY(fish_commands(b, s, err));
    for (size_t c = 0; c < s->n_commands; c++)
        for (size_t i = 0; i < s->n_opts; i++)
            if (opt_takes(&s->opt[i], (unsigned)c))
                TRY(fish_option(b, s, &s->opt[i], c, err));
    return 0;
}

int opt_completion(const struct opt_set *s, const char *shell, struct bytes *out, dsv4_err *err)
{
    if (strcmp(shell, "bash") == 0)
        return bash(s, out, err);
    if (strcmp(shell, "zsh") == 0)
        return zsh(s, out, err);
    if (strcmp(shell, "fish") == 0)
        return fish(s, out, err);
    return err_set(err, DSV4_USAGE, "no completions for \"%s\"; there are bash, zsh and fish",
                   shell);
}
