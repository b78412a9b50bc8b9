/* Commands that only tell something: info, plan, version, completion, help. */
#include "tools.h"

#include <stdlib.h>
#include <string.h>

int show_json(struct program *p, char *text, dsv4_err *err)
{
    struct stream *out = &p->term.out;
    json_error_t je;
    struct bytes sheet = {0};
    int rc = 0;
    if (!p->a.json) { /* the text is our own: what cannot be read was cut off by a lack of memory */
        json_t *v = json_loads(text, 0, &je);
        rc = json_made(v, err);
        if (rc == 0)
            rc = report_text(v, &sheet, err);
        json_decref(v);
    }
    if (rc == 0) {
        const char *shown = p->a.json ? text : sheet.data;
        stream_foreign(out, shown, strlen(shown));
        stream_foreign_end(out);
        if (!out->line_start)
            stream_text(out, "\n");
        rc = stream_flush(out, err);
    }
    free(sheet.data);
    dsv4_free(text);
    return rc;
}

/* DIR as an argument is the same as -m DIR. */
static int argument_dir(struct program *p, dsv4_err *err)
{
    if (p->argc == 0)
        return 0;
    if (!*p->argv[0])
        return err_set(err, DSV4_USAGE, "the name of the directory is empty");
    p->a.model = p->argv[0];
    return 0;
}

int cmd_info(struct program *p, dsv4_err *err)
{
    char *dir, *text = NULL;
    bool embedded;
    TRY(argument_dir(p, err));
    TRY(model_find(p, &dir, &embedded, err));
    int rc = dsv4_info(dir, &text, err);
    free(dir);
    return rc != 0 ? rc : show_json(p, text, err);
}

int cmd_plan(struct program *p, dsv4_err *err)
{
    char *dir, *text = NULL;
    bool embedded;
    dsv4_options opt = engine_options(p);
    TRY(argument_dir(p, err));
    TRY(model_find(p, &dir, &embedded, err));
    int rc = dsv4_plan(dir, &opt, &text, err);
    free(dir);
    return rc != 0 ? rc : show_json(p, text, err);
}

int cmd_version(struct program *p, dsv4_err *err)
{
    char *text;
    TRY(dsv4_about(&text, err));
    if (!p->a.json)
        stream_printf(&p->term.out, "dsv4 %s\n", DSV4_VERSION);
    return show_json(p, text, err);
}

static int print(struct program *p, struct bytes *b, int rc, dsv4_err *err)
{
    if (rc == 0) {
        stream_bytes(&p->term.out, b->data, b->len);
        rc = stream_flush(&p->term.out, err);
    }
    free(b->data);
    return rc;
}

int cmd_completion(struct program *p, dsv4_err *err)
{
    struct bytes b = {0};
    return print(p, &b, opt_completion(&option_table, p->argv[0], &b, err), err);
}

int cmd_help(struct program *p, dsv4_err *err)
{
    struct bytes b = {0};
    if (p->a.man)
        return print(p, &b, opt_man(&option_table, &b, err), err);
    int command = p->argc ? opt_command_find(&option_table, p->argv[0]) : 0;
    if (command < 0) {
        const char *near = opt_nearest_command(&option_table, p->argv[0], 2);
        return err_set(err, DSV4_USAGE, "%s: no such command%s%s%s", p->argv[0],
                       near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    }
    return print(p, &b, opt_help(&option_table, (unsigned)command, &b, err), err);
}
