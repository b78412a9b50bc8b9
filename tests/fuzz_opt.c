/* Any words (separated by NUL) as the command line of any command (the first byte says which): refused
 * with a message, or values in the ranges that the table states. */
#include "tools/options.c"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_WORDS = 64 };

static void must(bool x)
{
    if (!x)
        abort();
}

static void check_values(const struct args *a)
{
    for (size_t i = 0; i < option_table.n_opts; i++) {
        const struct opt *o = &option_table.opt[i];
        const char *at = (const char *)a + o->offset;
        if (o->kind == OPT_FLOAT) {
            float v;
            memcpy(&v, at, sizeof v);
            must(isnan(v) || ((double)v >= (double)(float)o->min && (double)v <= o->max));
        } else if (o->kind == OPT_CHOICE) {
            int v;
            memcpy(&v, at, sizeof v);
            must(v >= -1 && v <= 1);
        }
    }
}

static void try_command(unsigned command, int argc, char **words)
{
    char *argv[MAX_WORDS + 1];
    struct args a = args_defaults();
    dsv4_err err = {0};
    int n = 0;
    memcpy(argv, words, (size_t)argc * sizeof *argv);
    int first = opt_first_word(&option_table, argc, argv);
    must(first >= -1 && first < argc);
    int rc = opt_parse(&option_table, command, argc, argv, &a, &n, &err);
    must(rc == 0 || (rc == DSV4_USAGE && err.text[0]));
    if (rc == 0) {
        must(n >= 0 && n <= argc);
        check_values(&a);
        rc = opt_count_args(&option_table, command, n, argv, &err);
        must(rc == 0 || rc == DSV4_USAGE);
        for (int i = 0; i < n; i++)
            opt_nearest_command(&option_table, argv[i], 2);
    }
    opt_release(&option_table, &a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    char *words[MAX_WORDS], *text = malloc(size);
    must(text != NULL);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = 0;
    int argc = 0;
    for (char *p = text; p < text + size && argc < MAX_WORDS; p += strlen(p) + 1)
        words[argc++] = p;
    try_command(data[0] % N_COMMANDS, argc, words);
    free(text);
    return 0;
}
