/* What of a tokenizer.json is refused, by edits of a good one and by files that are none: each with a message
 * that names the fault. */
#include "suite.h"

#include "src/text/text.h"

#include <jansson.h>

/* Applies an edit, given as JSON, to a good tokenizer: {"path": [...], "value": ...} sets, without a
 * value deletes, "append" adds to a list. */
static void edit(json_t *root, json_t *how)
{
    json_t *path = json_object_get(how, "path"), *at = root, *key = NULL, *value;
    size_t i;
    json_array_foreach(path, i, key)
    {
        if (i + 1 == json_array_size(path))
            break;
        at = json_is_string(key) ? json_object_get(at, json_string_value(key))
                                 : json_array_get(at, (size_t)json_integer_value(key));
        ck_assert_ptr_nonnull(at);
    }
    if ((value = json_object_get(how, "append")) != NULL)
        json_array_append(json_object_get(at, json_string_value(key)), value);
    else if (json_is_integer(key))
        json_array_set(at, (size_t)json_integer_value(key), json_object_get(how, "value"));
    else if ((value = json_object_get(how, "value")) != NULL)
        json_object_set(at, json_string_value(key), value);
    else
        ck_assert_int_eq(json_object_del(at, json_string_value(key)), 0);
}

/* The edit and a word that its refusal must have; without a word: accepted all the same. */
static const struct {
    const char *edit, *word;
} edits[] = {
    {"{'path':['model','type'],'value':'Unigram'}", "Unigram"},
    {"{'path':['model','type'],'value':7}", "BPE"},
    {"{'path':['model']}", "missing"},
    {"{'path':['model'],'value':[]}", "a list"},
    {"{'path':['model','dropout'],'value':0.1}", "dropout"},
    {"{'path':['model','unk_token'],'value':'<unk>'}", "<unk>"},
    {"{'path':['model','continuing_subword_prefix'],'value':'##'}", "##"},
    {"{'path':['model','end_of_word_suffix'],'value':'</w>'}", "</w>"},
    {"{'path':['model','end_of_word_suffix'],'value':''}", NULL},
    {"{'path':['model','fuse_unk'],'value':true}", "fuse_unk"},
    {"{'path':['model','byte_fallback'],'value':true}", "byte_fallback"},
    {"{'path':['model','ignore_merges'],'value':'x'}", "ignore_merges"},
    {"{'path':['model','ignore_merges'],'value':true}", NULL},
    {"{'path':['model','surprise'],'value':1}", "surprise"},
    {"{'path':['model','vocab']}", "vocab"},
    {"{'path':['model','vocab'],'value':{}}", "without a gap"},
    {"{'path':['model','merges']}", "merges"},
    {"{'path':['model','merges'],'value':{}}", "merges"},
    {"{'path':['model','merges'],'value':[]}", NULL},
    {"{'path':['model','vocab','a']}", "without a gap"},
    {"{'path':['model','vocab','a'],'value':68}", "two tokens"},
    {"{'path':['model','vocab','a'],'value':-1}", "id -1"},
    {"{'path':['model','vocab','a'],'value':2147483648}", "2147483648"},
    {"{'path':['model','vocab','a'],'value':9223372036854775807}", "9223372036854775807"},
    {"{'path':['model','vocab','a'],'value':'67'}", "a string"},
    {"{'path':['model','vocab','a'],'value':67.0}", "a number"},
    {"{'path':['model','vocab',''],'value':67}", "empty"},
    {"{'path':['added_tokens'],'append':{'content':'</think>','id':272}}", "same text"},
    {"{'path':['added_tokens'],'append':{'content':'</think>','id':272,'normalized':true}}",
     "same text"},
    {"{'path':['model','vocab','<\\u0001>'],'value':272}", "byte alphabet"},
    {"{'path':['model','vocab','\\uff5c'],'value':272}", "byte alphabet"},
    {"{'path':['model','vocab','</think>'],'value':3}", "two tokens"},
    {"{'path':['added_tokens',0,'id'],'value':272}", "byte alphabet"},
    {"{'path':['added_tokens'],'append':{'content':'\\u0120t','id':272}}", "in added_tokens"},
    {"{'path':['model','merges'],'append':['h','zz']}", "the right one"},
    {"{'path':['model','merges'],'append':['zz','h']}", "the left one"},
    {"{'path':['model','merges'],'append':['h','h']}", "the result"},
    {"{'path':['model','merges'],'append':['','h']}", "the left one"},
    {"{'path':['model','merges'],'append':['h','e']}", "repeats"},
    {"{'path':['model','merges'],'append':['h','e','h']}", "neither"},
    {"{'path':['model','merges'],'append':['h',1]}", "neither"},
    {"{'path':['model','merges'],'append':'he'}", "neither"},
    {"{'path':['model','merges'],'append':'h e'}", "repeats"},
    {"{'path':['model','merges'],'append':'h  e'}", "the right one"},
    {"{'path':['model','merges'],'append':null}", "neither"},
    {"{'path':['added_tokens'],'value':{}}", "an object"},
    {"{'path':['added_tokens'],'append':{}}", "missing"},
    {"{'path':['added_tokens'],'append':5}", "expected an object"},
    {"{'path':['added_tokens'],'append':{'content':'','id':272}}", "0 bytes"},
    {"{'path':['added_tokens'],'append':{'content':'x y','id':272}}", NULL},
    {"{'path':['added_tokens'],'append':{'content':'x y','id':273}}", "273"},
    {"{'path':['added_tokens'],'append':{'content':'x y','id':5}}", "two tokens"},
    {"{'path':['added_tokens'],'append':{'content':'h','id':5}}", "two tokens"},
    {"{'path':['added_tokens'],'append':{'content':'x y'}}", "missing"},
    {"{'path':['added_tokens'],'append':{'content':'x y','id':272,'more':1}}", "more"},
    {"{'path':['added_tokens',0,'lstrip'],'value':true}", "lstrip"},
    {"{'path':['added_tokens',0,'rstrip'],'value':true}", "rstrip"},
    {"{'path':['added_tokens',0,'single_word'],'value':true}", "single_word"},
    {"{'path':['added_tokens',0,'special'],'value':'yes'}", "special"},
    {"{'path':['added_tokens',0,'content'],'value':'other'}", "two tokens"},
    {"{'path':['normalizer']}", NULL},
    {"{'path':['normalizer'],'value':null}", NULL},
    {"{'path':['normalizer'],'value':{'type':'NFC'}}", "NFC"},
    {"{'path':['normalizer','normalizers'],'append':{'type':'Lowercase'}}", "Lowercase"},
    {"{'path':['post_processor'],'value':{'type':'TemplateProcessing'}}", "TemplateProcessing"},
    {"{'path':['post_processor'],'value':null}", NULL},
    {"{'path':['decoder'],'value':{'type':'WordPiece'}}", "WordPiece"},
    {"{'path':['truncation'],'value':{'max_length':512}}", "truncation"},
    {"{'path':['padding'],'value':{}}", "padding"},
    {"{'path':['extra'],'value':0}", "extra"},
    {"{'path':['pre_tokenizer']}", "pre_tokenizer"},
    {"{'path':['pre_tokenizer'],'value':{'type':'Whitespace'}}", "Whitespace"},
    {"{'path':['pre_tokenizer','pretokenizers'],'value':[]}", "empty"},
    {"{'path':['pre_tokenizer','pretokenizers'],'append':{'type':'Digits'}}", "expected Split"},
    {"{'path':['pre_tokenizer','pretokenizers',0],'value':{'type':'Digits'}}", "Digits"},
    {"{'path':['pre_tokenizer','pretokenizers',0,'invert'],'value':true}", "invert"},
    {"{'path':['pre_tokenizer','pretokenizers',0,'behavior'],'value':'Removed'}", "Removed"},
    {"{'path':['pre_tokenizer','pretokenizers',0,'pattern'],'value':{'String':' '}}", "Regex"},
    {"{'path':['pre_tokenizer','pretokenizers',0,'pattern','Regex'],'value':'(['}", "(["},
    {"{'path':['pre_tokenizer','pretokenizers',3,'add_prefix_space'],'value':true}",
     "add_prefix_space"},
};

START_TEST(broken_tables_are_refused)
{
    json_t *good = json_load_file(GOLDEN "v4-pro/tokenizer.json", 0, NULL);
    ck_assert_ptr_nonnull(good);
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        char text[300];
        snprintf(text, sizeof text, "%s", edits[i].edit);
        for (char *p = text; *p; p++)
            if (*p == '\'')
                *p = '"';
        json_t *how = json_loads(text, 0, NULL), *root = json_deep_copy(good);
        ck_assert_msg(how != NULL, "%s", text);
        edit(root, how);
        char *json = json_dumps(root, JSON_COMPACT);
        dsv4_tokenizer *t = NULL;
        dsv4_err err = {0};
        int rc = tokenizer_parse(&t, json, strlen(json), "edited", &err);
        if (edits[i].word) {
            ck_assert_msg(rc == DSV4_REFUSED, "%s: status %d", text, rc);
            ck_assert_msg(strstr(err.text, edits[i].word) && strncmp(err.text, "edited: ", 8) == 0,
                          "%s: \"%s\" lacks \"%s\"", text, err.text, edits[i].word);
            ck_assert_ptr_null(t);
        } else {
            ck_assert_msg(rc == 0, "%s: %s", text, err.text);
            dsv4_tokenizer_close(t);
        }
        free(json);
        json_decref(how);
        json_decref(root);
    }
    json_decref(good);
}
END_TEST

START_TEST(broken_files_are_refused)
{
    dsv4_tokenizer *t = NULL;
    dsv4_err err;
    ck_assert_int_eq(dsv4_tokenizer_open(&t, "/nowhere", &err), DSV4_REFUSED);
    ck_assert_int_eq(dsv4_tokenizer_open(&t, "/dev/zero", &err), DSV4_REFUSED);
    ck_assert_int_eq(dsv4_tokenizer_open(&t, "tests", &err), DSV4_REFUSED);
    static const char *const bad[] = {"",
                                      "{",
                                      "[]",
                                      "null",
                                      "{\"a\":1,\"a\":2}",
                                      "\xff",
                                      "{\"model\":{\"vocab\":{\"a\":0,\"a\":1}}}",
                                      "{} {}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_int_eq(tokenizer_parse(&t, bad[i], strlen(bad[i]), "bad", &err), DSV4_REFUSED);
    size_t n = 1000000;
    char *deep = malloc(n);
    ck_assert_ptr_nonnull(deep);
    memset(deep, '[', n);
    ck_assert_int_eq(tokenizer_parse(&t, deep, n, "deep", &err), DSV4_REFUSED);
    free(deep);
    ck_assert_ptr_null(t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tokenizer file");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 300);
    tcase_add_test(t, broken_tables_are_refused);
    tcase_add_test(t, broken_files_are_refused);
    suite_add_tcase(s, t);
    return run_suite(s);
}
