/* What can be read about a program's options: --help, the manual page, completions for bash, zsh and
 * fish, all made from the one table (opt.h). Pure text: nothing here prints. */
#include "opt.h"

#include <stdlib.h>
#include <string.h>

enum { HELP_WIDTH = 100, HELP_COLUMN = 30 };

static bool takes(const struct opt *o, unsigned command)
{
    return o->commands >> command & 1;
}

/* ------------------------------------------------------------------ help */

/* Appends text from `column` on, broken at blanks before HELP_WIDTH; lines after the first begin at
 * `indent`. Columns are counted in bytes: these texts are ASCII. */
static int wrap(struct bytes *b, const char *text, size_t column, size_t indent, dsv4_err *err)
{
    bool first = true;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (!first && column + 1 + n > HELP_WIDTH) {
            TRY(bytes_printf(b, err, "\n%*s", (int)indent, ""));
            column = indent;
        } else if (!first) {
            TRY(bytes_text(b, " ", err));
            column++;
        }
        TRY(bytes_add(b, text, n, err));
        column += n;
        first = false;
        text += n;
        text += strspn(text, " ");
    }
    return bytes_text(b, "\n", err);
}

/* Paragraphs: lines that begin with blanks stay as they are, the others are filled. */
static int paragraphs(struct bytes *b, const char *text, dsv4_err *err)
{
    struct bytes fill = {0};
    int rc = 0;
    while (*text && rc == 0) {
        size_t n = strcspn(text, "\n");
        if (*text == ' ' || n == 0) {
            if ((rc = bytes_add(b, text, n, err)) == 0)
                rc = bytes_text(b, "\n", err);
            text += n + (text[n] == '\n');
            continue;
        }
        fill.len = 0;
        while (rc == 0 && *text && *text != ' ' && *text != '\n') {
            n = strcspn(text, "\n");
            if (fill.len)
                rc = bytes_text(&fill, " ", err);
            if (rc == 0)
                rc = bytes_add(&fill, text, n, err);
            text += n + (text[n] == '\n');
        }
        if (rc == 0)
            rc = wrap(b, fill.data, 0, 0, err);
    }
    free(fill.data);
    return rc;
}

static int option_help(struct bytes *b, const struct opt *o, dsv4_err *err)
{
    size_t start = b->len;
    if (o->letter)
        TRY(bytes_printf(b, err, "  -%c, --%s", o->letter, o->name));
    else
        TRY(bytes_printf(b, err, "      --%s", o->name));
    if (o->arg)
        TRY(bytes_printf(b, err, " %s", o->arg));
    size_t column = b->len - start;
    if (column + 2 > HELP_COLUMN) {
        TRY(bytes_text(b, "\n", err));
        column = 0;
    }
    TRY(bytes_printf(b, err, "%*s", (int)(HELP_COLUMN - column), ""));
    struct bytes text = {0};
    int rc = bytes_text(&text, o->help, err);
    if (rc == 0 && o->fallback)
        rc = bytes_printf(&text, err, " (default: %s)", o->fallback);
    if (rc == 0)
        rc = wrap(b, text.data, HELP_COLUMN, HELP_COLUMN, err);
    free(text.data);
    return rc;
}

static int options_help(struct bytes *b, const struct opt_set *s, unsigned command, dsv4_err *err)
{
    const char *group = NULL;
    for (size_t i = 0; i < s->n_opts; i++) {
        const struct opt *o = &s->opt[i];
        if (!takes(o, command))
            continue;
        if (!group || strcmp(group, o->group) != 0)
            TRY(bytes_printf(b, err, "\n%s:\n", group = o->group));
        TRY(option_help(b, o, err));
    }
    return 0;
}

static int examples_help(struct bytes *b, const struct opt_command *c, dsv4_err *err)
{
    if (!c->examples)
        return 0;
    TRY(bytes_text(b, "\nExamples:\n", err));
    for (const char *const *e = c->examples; e[0]; e += 2)
        TRY(bytes_printf(b, err, "  %s\n      %s\n", e[0], e[1]));
    return 0;
}

static int notes_help(struct bytes *b, const char *title, const struct opt_note *n, dsv4_err *err)
{
    if (!n || !n->name)
        return 0;
    TRY(bytes_printf(b, err, "\n%s:\n", title));
    for (; n->name; n++) {
        TRY(bytes_printf(b, err, "  %-16s  ", n->name));
        TRY(wrap(b, n->text, 20, 20, err));
    }
    return 0;
}

static int usage_line(struct bytes *b, const struct opt_set *s, unsigned command, dsv4_err *err)
{
    const struct opt_command *c = &s->command[command];
    return bytes_printf(b, err, "%s %s [OPTION...]%s%s", s->program, c->name, *c->args ? " " : "",
                        c->args);
}

int opt_help(const struct opt_set *s, unsigned command, struct bytes *out, dsv4_err *err)
{
    const struct opt_command *c = &s->command[command];
    if (command == 0) {
        TRY(bytes_printf(out, err, "%s %s - %s\n\n", s->program, s->version, s->brief));
        TRY(bytes_printf(out, err, "Usage:\n  %s [OPTION...] %s\n  %s COMMAND [OPTION...] ...\n\n",
                         s->program, c->args, s->program));
        TRY(paragraphs(out, s->text, err));
        TRY(bytes_text(out, "\nCommands:\n", err));
        for (size_t i = 0; i < s->n_commands; i++)
            TRY(bytes_printf(out, err, "  %-12s  %s\n", s->command[i].name, s->command[i].brief));
        TRY(bytes_printf(out, err, "\n%s %s, in full:\n", s->program, c->name));
    } else {
        TRY(bytes_text(out, "Usage:\n  ", err));
        TRY(usage_line(out, s, command, err));
        TRY(bytes_printf(out, err, "\n\n%s %s - %s\n\n", s->program, c->name, c->brief));
    }
    TRY(paragraphs(out, c->text, err));
    if (command == 0)
        TRY(examples_help(out, c, err));
    TRY(options_help(out, s, command, err));
    if (command != 0)
        TRY(examples_help(out, c, err));
    if (command == 0) {
        TRY(notes_help(out, "Environment", s->environment, err));
        TRY(notes_help(out, "Exit codes", s->exits, err));
        TRY(bytes_printf(out, err, "\n%s COMMAND --help tells more about a command.\n",
                         s->program));
    }
    return 0;
}

/* ------------------------------------------------------------------ manual page */

/* Text for troff: backslashes and hyphens escaped, no line begins with a control character. */
static int roff(struct bytes *b, const char *text, dsv4_err *err)
{
    bool line_start = b->len == 0 || b->data[b->len - 1] == '\n';
    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\''))
            TRY(bytes_text(b, "\\&", err));
        if (*text == '\\')
            TRY(bytes_text(b, "\\e", err));
        else if (*text == '-')
            TRY(bytes_text(b, "\\-", err));
        else
            TRY(bytes_add(b, text, 1, err));
        line_start = *text == '\n';
    }
    return 0;
}

/* A new paragraph, unless one begins here already. */
static int roff_break(struct bytes *b, dsv4_err *err)
{
    if (b->len >= 4 && memcmp(b->data + b->len - 4, ".PP\n", 4) == 0)
        return 0;
    return bytes_text(b, ".PP\n", err);
}

static int roff_paragraphs(struct bytes *b, const char *text, dsv4_err *err)
{
    bool kept = false;
    while (*text) {
        size_t n = strcspn(text, "\n");
        bool keep = *text == ' ';
        if (kept && !keep)
            TRY(bytes_text(b, ".fi\n", err));
        if (keep != kept || n == 0)
            TRY(roff_break(b, err));
        if (keep && !kept)
            TRY(bytes_text(b, ".nf\n", err));
        kept = keep;
        struct bytes line = {0};
        int rc = bytes_add(&line, text, n, err);
        if (rc == 0 && n > 0)
            rc = roff(b, line.data, err);
        if (rc == 0 && n > 0)
            rc = bytes_text(b, "\n", err);
        free(line.data);
        TRY(rc);
        text += n + (text[n] == '\n');
    }
    return kept ? bytes_text(b, ".fi\n", err) : 0;
}

static int roff_option(struct bytes *b, const struct opt *o, dsv4_err *err)
{
    TRY(bytes_text(b, ".TP\n", err));
    if (o->letter)
        TRY(bytes_printf(b, err, "\\fB\\-%c\\fR, ", o->letter));
    TRY(bytes_text(b, "\\fB\\-\\-", err));
    TRY(roff(b, o->name, err));
    TRY(bytes_text(b, "\\fR", err));
    if (o->arg) {
        TRY(bytes_text(b, " \\fI", err));
        TRY(roff(b, o->arg, err));
        TRY(bytes_text(b, "\\fR", err));
    }
    TRY(bytes_text(b, "\n", err));
    TRY(roff(b, o->help, err));
    if (o->fallback) {
        TRY(bytes_text(b, " (default: ", err));
        TRY(roff(b, o->fallback, err));
        TRY(bytes_text(b, ")", err));
    }
    return bytes_text(b, "\n", err);
}

static int roff_command(struct bytes *b, const struct opt_set *s, unsigned command, dsv4_err *err)
{
    const struct opt_command *c = &s->command[command];
    TRY(bytes_printf(b, err, ".SS %s %s\n.B %s %s\n[\\fIOPTION\\fR...] ", s->program, c->name,
                     s->program, c->name));
    TRY(roff(b, c->args, err));
    TRY(bytes_text(b, "\n.PP\n", err));
    TRY(roff(b, c->brief, err));
    TRY(bytes_text(b, ".\n", err));
    if (*c->text)
        TRY(roff_break(b, err));
    TRY(roff_paragraphs(b, c->text, err));
    for (size_t i = 0; i < s->n_opts; i++)
        if (takes(&s->opt[i], command))
            TRY(roff_option(b, &s->opt[i], err));
    if (c->examples)
        TRY(bytes_text(b, ".PP\nExamples:\n", err));
    for (const char *const *e = c->examples; e && e[0]; e += 2) {
        TRY(bytes_text(b, ".TP\n.B ", err));
        TRY(roff(b, e[0], err));
        TRY(bytes_text(b, "\n", err));
        TRY(roff(b, e[1], err));
        TRY(bytes_text(b, "\n", err));
    }
    return 0;
}

static int roff_notes(struct bytes *b, const char *title, const struct opt_note *n, dsv4_err *err)
{
    TRY(bytes_printf(b, err, ".SH %s\n", title));
    for (; n && n->name; n++) {
        TRY(bytes_text(b, ".TP\n.B ", err));
        TRY(roff(b, n->name, err));
        TRY(bytes_text(b, "\n", err));
        TRY(roff(b, n->text, err));
        TRY(bytes_text(b, "\n", err));
    }
    return 0;
}

int opt_man(const struct opt_set *s, struct bytes *out, dsv4_err *err)
{
    TRY(bytes_printf(out, err, ".TH %s 1 \"\" \"%s %s\"\n.SH NAME\n%s \\- ", s->program, s->program,
                     s->version, s->program));
    TRY(roff(out, s->brief, err));
    TRY(bytes_printf(out, err, "\n.SH SYNOPSIS\n.B %s\n[\\fIOPTION\\fR...] ", s->program));
    TRY(roff(out, s->command[0].args, err));
    TRY(bytes_printf(out, err, "\n.br\n.B %s\n\\fICOMMAND\\fR [\\fIOPTION\\fR...] ...\n",
                     s->program));
    TRY(bytes_text(out, ".SH DESCRIPTION\n", err));
    TRY(roff_paragraphs(out, s->text, err));
    TRY(bytes_text(out, ".SH COMMANDS\n", err));
    for (size_t i = 0; i < s->n_commands; i++)
        TRY(roff_command(out, s, (unsigned)i, err));
    TRY(roff_notes(out, "ENVIRONMENT", s->environment, err));
    TRY(roff_notes(out, "FILES", s->files, err));
    return roff_notes(out, "EXIT STATUS", s->exits, err);
}

/* ------------------------------------------------------------------ completions */

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
                     "# bash completion for %s (made by: %s completion bash)\n_%s()\n{\n"
                     "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
                     "    local cmd=%s i\n"
                     "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
                     "        case ${COMP_WORDS[i]} in\n        ",
                     p, p, p, s->command[0].name));
    for (size_t i = 0; i < s->n_commands; i++)
        TRY(bytes_printf(b, err, "%s%s", i ? "|" : "", s->command[i].name));
    TRY(bytes_text(b,
                   ") cmd=${COMP_WORDS[i]}; break ;;\n        esac\n    done\n"
                   "    case $prev in\n",
                   err));
    TRY(bash_values(b, s, err));
    TRY(bytes_text(b, "    esac\n    local words=\n    case $cmd in\n", err));
    for (size_t c = 0; c < s->n_commands; c++) {
        TRY(bytes_printf(b, err, "    %s) words='", s->command[c].name));
        for (size_t i = 0; i < s->n_opts; i++)
            if (takes(&s->opt[i], (unsigned)c))
                TRY(bytes_printf(b, err, "--%s ", s->opt[i].name));
        TRY(bytes_text(b, "' ;;\n", err));
    }
    TRY(bytes_text(b,
                   "    esac\n    if [[ $cur == -* ]]; then\n"
                   "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
                   "    elif ((COMP_CWORD == 1)); then\n        COMPREPLY=($(compgen -W '",
                   err));
    for (size_t i = 0; i < s->n_commands; i++)
        TRY(bytes_printf(b, err, "%s%s", i ? " " : "", s->command[i].name));
    return bytes_printf(b, err,
                        "' -- \"$cur\"))\n    else\n        COMPREPLY=($(compgen -f -- \"$cur\"))\n"
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

static int zsh(const struct opt_set *s, struct bytes *b, dsv4_err *err)
{
    TRY(bytes_printf(b, err,
                     "#compdef %s\n# zsh completion for %s (made by: %s completion zsh)\n_%s()\n{\n"
                     "    local -a cmds\n    cmds=(\n",
                     s->program, s->program, s->program, s->program));
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
        TRY(bytes_printf(b, err, "    %s)\n        _arguments -s", s->command[c].name));
        for (size_t i = 0; i < s->n_opts; i++) {
            const struct opt *o = &s->opt[i];
            if (!takes(o, (unsigned)c))
                continue;
            TRY(zsh_option(b, o, o->name, "--", err));
            char letter[2] = {o->letter, 0};
            if (o->letter)
                TRY(zsh_option(b, o, letter, "-", err));
        }
        TRY(bytes_text(b, " \\\n            '*: :_files'\n        ;;\n", err));
    }
    return bytes_printf(b, err, "    esac\n}\n_%s \"$@\"\n", s->program);
}

static int fish_option(struct bytes *b, const struct opt_set *s, const struct opt *o,
                       size_t command, dsv4_err *err)
{
    TRY(bytes_printf(b, err, "complete -c %s -n '__%s_is %s' -l %s", s->program, s->program,
                     s->command[command].name, o->name));
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

static int fish(const struct opt_set *s, struct bytes *b, dsv4_err *err)
{
    TRY(bytes_printf(b, err,
                     "# fish completion for %s (made by: %s completion fish)\nfunction __%s_is\n"
                     "    set -l words (commandline -opc)\n    set -l cmd %s\n"
                     "    for w in $words[2..]\n        switch $w\n            case",
                     s->program, s->program, s->program, s->command[0].name));
    for (size_t i = 0; i < s->n_commands; i++)
        TRY(bytes_printf(b, err, " %s", s->command[i].name));
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
    for (size_t c = 0; c < s->n_commands; c++)
        for (size_t i = 0; i < s->n_opts; i++)
            if (takes(&s->opt[i], (unsigned)c))
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
