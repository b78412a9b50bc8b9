/* Unit tests of what the program dsv4 stands on: the option table and its parser, the safe form of text,
 * lists of ids and chunks. The program as a whole: tests/test_cli.sh. */
#include "suite.h"

#include "tools/input.c"
#include "tools/options.c"
#include "tools/terminal.c"

#include <dirent.h>

/* A command line: struct line l = LINE("-n", "5"); */
struct line {
    char *argv[16];
    int argc;
};
#define LINE(...)                                                              \
    {                                                                          \
        {__VA_ARGS__}, (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)) \
    }

static int parse(enum command c, struct line *l, struct args *a, int *n, dsv4_err *err)
{
    *a = args_defaults();
    return opt_parse(&option_table, c, l->argc, l->argv, a, n, err);
}

/* Refused, and the message holds `part`. */
static void refused(enum command c, struct line l, const char *part)
{
    struct args a;
    dsv4_err err = {0};
    int n;
    ck_assert_int_eq(parse(c, &l, &a, &n, &err), DSV4_USAGE);
    ck_assert_msg(strstr(err.text, part), "%s: %s", part, err.text);
    opt_release(&option_table, &a);
}

START_TEST(the_table_is_consistent)
{
    for (size_t i = 0; i < option_table.n_opts; i++) {
        const struct opt *o = &option_table.opt[i];
        ck_assert(o->commands != 0 && o->commands < 1u << N_COMMANDS);
        ck_assert((o->kind == OPT_FLAG) == (o->arg == NULL));
        ck_assert(o->kind != OPT_LIST || !o->env);
        ck_assert_ptr_null(strchr(o->help, '\n'));
        if (i > 0 && strcmp(o->group, o[-1].group) != 0)
            for (size_t k = 0; k < i; k++)
                ck_assert_str_ne(option_table.opt[k].group, o->group);
        for (size_t k = 0; k < i; k++) {
            const struct opt *p = &option_table.opt[k];
            if (strcmp(p->name, o->name) == 0) { /* rows of one option */
                ck_assert_int_eq(p->kind, o->kind);
                ck_assert_int_eq(p->letter, o->letter);
                ck_assert_uint_eq(p->commands & o->commands, 0);
            } else if (o->letter) {
                ck_assert_int_ne(p->letter, o->letter);
            }
        }
    }
}
END_TEST

START_TEST(options_and_words_mix)
{
    struct args a;
    dsv4_err err;
    int n;
    struct line l = LINE("one", "-n5", "--temp=0.5", "two", "--stop", "x", "--stop=-y", "-qm",
                         "DIR", "-", "--", "--json", "-n");
    OK(parse(CMD_ASK, &l, &a, &n, &err));
    ck_assert_int_eq(n, 5);
    ck_assert_str_eq(l.argv[0], "one");
    ck_assert_str_eq(l.argv[1], "two");
    ck_assert_str_eq(l.argv[2], "-");
    ck_assert_str_eq(l.argv[3], "--json");
    ck_assert_str_eq(l.argv[4], "-n");
    ck_assert_uint_eq(a.max_tokens, 5);
    ck_assert(a.temp > 0.49f && a.temp < 0.51f);
    ck_assert_uint_eq(a.stop.n, 2);
    ck_assert_str_eq(a.stop.item[1], "-y");
    ck_assert(a.quiet && !a.json);
    ck_assert_str_eq(a.model, "DIR");
    opt_release(&option_table, &a);
    struct line last =
        LINE("--seed", "1", "--seed", "2", "--cache-quant", "off", "--max-memory", "24G");
    OK(parse(CMD_RUN, &last, &a, &n, &err));
    ck_assert_str_eq(a.seed, "2");
    ck_assert_int_eq(a.cache_quant, CACHE_QUANT_OFF);
    ck_assert_uint_eq(a.max_memory, (uint64_t)24 << 30);
    ck_assert_int_eq(n, 0);
}
END_TEST

START_TEST(wrong_words_are_refused)
{
    refused(CMD_ASK, (struct line)LINE("--tempp", "1"), "did you mean --temp?");
    refused(CMD_ASK, (struct line)LINE("--tem", "1"),
            "did you mean --temp?"); /* no abbreviations */
    refused(CMD_ASK, (struct line)LINE("--chunks", "1"), "no option of dsv4 ask");
    refused(CMD_ASK, (struct line)LINE("--temp"), "needs a value");
    refused(CMD_ASK, (struct line)LINE("-n"), "needs a value");
    refused(CMD_ASK, (struct line)LINE("-qZ"), "unknown option -Z");
    refused(CMD_ASK, (struct line)LINE("--json=yes"), "takes no value");
    refused(CMD_ASK, (struct line)LINE("--temp", "inf"), "0 to 100");
    refused(CMD_ASK, (struct line)LINE("--temp", "0x1"), "0 to 100");
    refused(CMD_ASK, (struct line)LINE("--temp", "1,5"), "0 to 100");
    refused(CMD_ASK, (struct line)LINE("--temp", ""), "0 to 100");
    refused(CMD_ASK, (struct line)LINE("-n", "4294967296"), "4294967295");
    refused(CMD_ASK, (struct line)LINE("-n", "18446744073709551617"), "4294967295");
    refused(CMD_ASK, (struct line)LINE("-n", " 5"), "4294967295");
    refused(CMD_ASK, (struct line)LINE("--cache-quant", "o"), "on|off");
    refused(CMD_ASK, (struct line)LINE("--cache-quant", ""), "on|off");
    refused(CMD_ASK, (struct line)LINE("--max-memory", "99999999999T"), "bytes");
    refused(CMD_ASK, (struct line)LINE("--max-memory", "0"), "bytes");
    refused(CMD_ASK, (struct line)LINE("--a\x1b[2Jb"), "\\x1b");
}
END_TEST

START_TEST(variables_stand_in)
{
    struct args a;
    dsv4_err err;
    int n;
    struct line none = {.argc = 0}, given = LINE("-t", "3");
    setenv("DSV4_THREADS", "7", 1);
    OK(parse(CMD_ASK, &none, &a, &n, &err));
    ck_assert_uint_eq(a.threads, 7);
    OK(parse(CMD_ASK, &given, &a, &n, &err));
    ck_assert_uint_eq(a.threads, 3);
    OK(parse(CMD_INFO, &none, &a, &n, &err));
    ck_assert_uint_eq(a.threads, 0);
    setenv("DSV4_THREADS", "many", 1);
    refused(CMD_ASK, none, "DSV4_THREADS");
    setenv("DSV4_THREADS", "", 1);
    OK(parse(CMD_ASK, &none, &a, &n, &err));
    ck_assert_uint_eq(a.threads, 0);
    unsetenv("DSV4_THREADS");
}
END_TEST

START_TEST(the_command_is_the_first_word)
{
    struct line l = LINE("-m", "chat", "--temp", "1", "--json", "-qn", "3", "info");
    ck_assert_int_eq(opt_first_word(&option_table, l.argc, l.argv), 7);
    struct line eq = LINE("--model=chat", "-mplan", "run");
    ck_assert_int_eq(opt_first_word(&option_table, eq.argc, eq.argv), 2);
    struct line dashes = LINE("--json", "--", "chat");
    ck_assert_int_eq(opt_first_word(&option_table, dashes.argc, dashes.argv), -1);
    struct line cut = LINE("--model");
    ck_assert_int_eq(opt_first_word(&option_table, cut.argc, cut.argv), -1);
    ck_assert_int_eq(opt_command_find(&option_table, "chat"), CMD_CHAT);
    ck_assert_int_eq(opt_command_find(&option_table, "cha"), -1);
    ck_assert_str_eq(opt_nearest_command(&option_table, "tokenise", 1), "tokenize");
    ck_assert_ptr_null(opt_nearest_command(&option_table, "hello", 1));
}
END_TEST

static void safe(const char *text, size_t len, const char *want)
{
    char out[256];
    bool wide = false;
    ck_assert_uint_le(SAFE_ROOM(len), sizeof out);
    size_t n = safe_text(text, len, &wide, out);
    ck_assert_uint_lt(n, sizeof out);
    out[n] = 0;
    ck_assert_str_eq(out, want);
}

START_TEST(text_is_safe)
{
#define SAFE(text, want) safe(text, sizeof text - 1, want)
    SAFE("plain\ttext\n", "plain\ttext\n");
    SAFE("\x1b]52;c;AAAA\x07\r\b", "\\x1b]52;c;AAAA\\x07\\x0d\\x08");
    SAFE("a\0b\x7f", "a\\x00b\\x7f");
    SAFE("\xc2\x9b"
         "31m",
         "<U+009B>31m");
    SAFE("\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80");
    SAFE("\xe2\x80\xae\xe2\x81\xa6\xef\xbb\xbf", "<U+202E><U+2066><U+FEFF>");
    SAFE("\xf3\xa0\x81\x81", "<U+E0041>");
    /* joiners: between emoji, not between letters, not two in a row */
    SAFE("\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9",
         "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9");
    SAFE("x\xe2\x80\x8dy", "x<U+200D>y");
    SAFE("\xc3\xa4\xe2\x80\x8d\xe2\x80\x8d", "\xc3\xa4\xe2\x80\x8d<U+200D>");
    /* a character that is cut short is never read beyond its end */
    SAFE("\xf0\x9f", "<U+FEFF>");
}
END_TEST

static int ids(const char *text, size_t len, size_t vocab, int32_t **v, size_t *n)
{
    dsv4_err err = {0};
    *v = NULL;
    *n = 0;
    int rc = ids_parse(text, len, vocab, "test", v, n, &err);
    ck_assert((rc == 0) == (err.text[0] == 0));
    return rc;
}

START_TEST(lists_of_ids)
{
    int32_t *v;
    size_t n;
    ck_assert_int_eq(ids(" 1\n22\t333\r\n", 11, 334, &v, &n), 0);
    ck_assert_uint_eq(n, 3);
    ck_assert_int_eq(v[2], 333);
    free(v);
    ck_assert_int_eq(ids("", 0, 10, &v, &n), 0);
    ck_assert_uint_eq(n, 0);
    free(v);
    ck_assert_int_eq(ids("2147483646", 10, INT32_MAX, &v, &n), 0);
    free(v);
    static const char *const bad[] = {"-1",    "+1",          "1.0",
                                      "0x1",   "1,2",         "x",
                                      "10",    "2147483648",  "99999999999999999999999999",
                                      "1\xff", "\xe2\x80\x83"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_int_eq(ids(bad[i], strlen(bad[i]), 10, &v, &n), DSV4_REFUSED);
    ck_assert_int_eq(ids("1\0"
                         "2",
                         3, 10, &v, &n),
                     DSV4_REFUSED);
}
END_TEST

START_TEST(lists_of_chunks)
{
    dsv4_err err;
    size_t *v, n;
    OK(chunks_parse("3,1,17", &v, &n, &err));
    ck_assert_uint_eq(n, 3);
    ck_assert_uint_eq(v[2], 17);
    free(v);
    OK(chunks_parse(NULL, &v, &n, &err));
    ck_assert_uint_eq(n, 0);
    free(v);
    static const char *const bad[] = {"0", "1,", ",1", "1,,2", "1 2", "-1", "a", "4294967296"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_int_eq(chunks_parse(bad[i], &v, &n, &err), DSV4_USAGE);
}
END_TEST

static size_t entries(const char *dir)
{
    size_t n = 0;
    DIR *d = opendir(dir);
    ck_assert_ptr_nonnull(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

START_TEST(outputs_appear_whole)
{
    dsv4_err err;
    struct sink s;
    char dir[] = "/tmp/dsv4-check.XXXXXX", path[64], *text;
    size_t len;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/out", dir);
    OK(sink_open(&s, path, &err));
    OK(sink_write(&s, "half", 4, &err));
    ck_assert_int_eq(sink_close(&s, DSV4_INTERRUPTED, &err), DSV4_INTERRUPTED); /* taken back */
    ck_assert_uint_eq(entries(dir), 0);
    OK(sink_file(path, "whole", 5, &err));
    OK(file_read(path, 100, &text, &len, &err));
    ck_assert_str_eq(text, "whole");
    free(text);
    ck_assert_uint_eq(entries(dir), 1);
    ck_assert_int_eq(sink_open(&s, dir, &err), DSV4_FAILED);
    ck_assert_int_eq(sink_open(&s, "", &err), DSV4_USAGE);
    ck_assert_int_eq(sink_open(&s, "/nowhere/at/all", &err), DSV4_FAILED);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(rmdir(dir), 0);
}
END_TEST

START_TEST(help_man_and_completions_exist)
{
    dsv4_err err;
    struct bytes b = {0};
    for (unsigned c = 0; c < N_COMMANDS; c++)
        OK(opt_help(&option_table, c, &b, &err));
    OK(opt_man(&option_table, &b, &err));
    OK(opt_completion(&option_table, "bash", &b, &err));
    OK(opt_completion(&option_table, "zsh", &b, &err));
    OK(opt_completion(&option_table, "fish", &b, &err));
    ck_assert_int_eq(opt_completion(&option_table, "csh", &b, &err), DSV4_USAGE);
    for (size_t i = 0; i < b.len; i++)
        ck_assert((unsigned char)b.data[i] < 0x80 && b.data[i] != 0);
    free(b.data);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cli");
    TCase *t = tcase_create("all");
    tcase_add_test(t, the_table_is_consistent);
    tcase_add_test(t, options_and_words_mix);
    tcase_add_test(t, wrong_words_are_refused);
    tcase_add_test(t, variables_stand_in);
    tcase_add_test(t, the_command_is_the_first_word);
    tcase_add_test(t, text_is_safe);
    tcase_add_test(t, lists_of_ids);
    tcase_add_test(t, lists_of_chunks);
    tcase_add_test(t, outputs_appear_whole);
    tcase_add_test(t, help_man_and_completions_exist);
    suite_add_tcase(s, t);
    return run_suite(s);
}
