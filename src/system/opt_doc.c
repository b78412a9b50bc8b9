/* What can be read about a program's options: --help and the manual page, made from the one table
 * (opt.h). Pure text: nothing here prints. */
#include "opt.h"

#include <stdlib.h>
#include <string.h>

enum { HELP_WIDTH = 100, HELP_COLUMN = 30 };

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
        if (!opt_takes(o, command))
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

static int commands_help(struct bytes *out, const struct opt_set *s, dsv4_err *err)
{
    TRY(bytes_printf(out, err, "  %s COMMAND [OPTION...] ...\n\n", s->program));
    TRY(paragraphs(out, s->text, err));
    TRY(bytes_text(out, "\nCommands:\n", err));
    for (size_t i = 0; i < s->n_commands; i++)
        TRY(bytes_printf(out, err, "  %-12s  %s\n", s->command[i].name, s->command[i].brief));
    return bytes_printf(out, err, "\n%s %s, in full:", s->program, s->command[0].name);
}

int opt_help(const struct opt_set *s, unsigned command, struct bytes *out, dsv4_err *err)
{
    const struct opt_command *c = &s->command[command];
    if (command == 0) {
        TRY(bytes_printf(out, err, "%s %s - %s\n\nUsage:\n  %s [OPTION...]%s%s\n", s->program,
                         s->version, s->brief, s->program, *c->args ? " " : "", c->args));
        if (!opt_single(s))
            TRY(commands_help(out, s, err));
        TRY(bytes_text(out, "\n", err));
        if (opt_single(s) && *s->text) {
            TRY(paragraphs(out, s->text, err));
            TRY(bytes_text(out, "\n", err));
        }
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
        if (opt_single(s))
            TRY(bytes_printf(out, err,
                             "\nAlone: --man writes the manual page, --completion=SHELL "
                             "completions for bash, zsh or fish.\n"));
        else
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

static int roff_examples(struct bytes *b, const struct opt_command *c, dsv4_err *err)
{
    for (const char *const *e = c->examples; e && e[0]; e += 2) {
        TRY(bytes_text(b, ".TP\n.B ", err));
        TRY(roff(b, e[0], err));
        TRY(bytes_text(b, "\n", err));
        TRY(roff(b, e[1], err));
        TRY(bytes_text(b, "\n", err));
    }
    return 0;
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
        if (opt_takes(&s->opt[i], command))
            TRY(roff_option(b, &s->opt[i], err));
    if (c->examples)
        TRY(bytes_text(b, ".PP\nExamples:\n", err));
    return roff_examples(b, c, err);
}

static int roff_notes(struct bytes *b, const char *title, const struct opt_note *n, dsv4_err *err)
{
    if (!n || !n->name)
        return 0;
    TRY(bytes_printf(b, err, ".SH %s\n", title));
    for (; n->name; n++) {
        TRY(bytes_text(b, ".TP\n.B ", err));
        TRY(roff(b, n->name, err));
        TRY(bytes_text(b, "\n", err));
        TRY(roff(b, n->text, err));
        TRY(bytes_text(b, "\n", err));
    }
    return 0;
}

static int roff_commands(struct bytes *out, const struct opt_set *s, dsv4_err *err)
{
    TRY(bytes_text(out, ".SH COMMANDS\n", err));
    for (size_t i = 0; i < s->n_commands; i++)
        TRY(roff_command(out, s, (unsigned)i, err));
    return 0;
}

/* The options by group, then the examples, of a program without commands. */
static int roff_single(struct bytes *out, const struct opt_set *s, dsv4_err *err)
{
    const struct opt_command *c = s->command;
    const char *group = NULL;
    if (*s->text)
        TRY(roff_break(out, err));
    TRY(roff_paragraphs(out, c->text, err));
    TRY(bytes_text(out, ".SH OPTIONS\n", err));
    for (size_t i = 0; i < s->n_opts; i++) {
        if (!group || strcmp(group, s->opt[i].group) != 0)
            TRY(bytes_printf(out, err, ".SS %s\n", group = s->opt[i].group));
        TRY(roff_option(out, &s->opt[i], err));
    }
    if (!c->examples)
        return 0;
    TRY(bytes_text(out, ".SH EXAMPLES\n", err));
    return roff_examples(out, c, err);
}

int opt_man(const struct opt_set *s, struct bytes *out, dsv4_err *err)
{
    TRY(bytes_printf(out, err, ".TH %s 1 \"\" \"%s %s\"\n.SH NAME\n", s->program, s->program,
                     s->version));
    TRY(roff(out, s->program, err));
    TRY(bytes_text(out, " \\- ", err));
    TRY(roff(out, s->brief, err));
    TRY(bytes_printf(out, err, "\n.SH SYNOPSIS\n.B %s\n[\\fIOPTION\\fR...] ", s->program));
    TRY(roff(out, s->command[0].args, err));
    if (!opt_single(s))
        TRY(bytes_printf(out, err, "\n.br\n.B %s\n\\fICOMMAND\\fR [\\fIOPTION\\fR...] ...",
                         s->program));
    TRY(bytes_text(out, "\n.SH DESCRIPTION\n", err));
    TRY(roff_paragraphs(out, s->text, err));
    if (opt_single(s))
        TRY(roff_single(out, s, err));
    else
        TRY(roff_commands(out, s, err));
    TRY(roff_notes(out, "ENVIRONMENT", s->environment, err));
    TRY(roff_notes(out, "FILES", s->files, err));
    return roff_notes(out, "EXIT STATUS", s->exits, err);
}
