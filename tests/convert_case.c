/* Conversions in a directory of the test's own, and what comes of them. */
#include "convert_case.h"

#include "src/system/system.h"

#include <dirent.h>
#include <unistd.h>

/* ------------------------------------------------------------------ directories */

static char tmp[] = "/tmp/dsv4-check-convert-XXXXXX";

void make_tmp(void)
{
    strcpy(tmp + strlen(tmp) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(tmp));
}

void remove_tmp(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", tmp);
    ck_assert_int_eq(system(command), 0);
}

/* TMP/NAME; valid until the eighth call after. */
const char *in_tmp(const char *name)
{
    static char path[8][256];
    static unsigned at;
    char *p = path[at++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", tmp, name);
    return p;
}

void copy_dir(const char *from, const char *to)
{
    char command[512];
    snprintf(command, sizeof command, "cp -r %s %s", from, to);
    ck_assert_int_eq(system(command), 0);
}

char *slurp(const char *dir, const char *name, size_t *len)
{
    char path[512], *text;
    dsv4_err err;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    OK(file_read(path, 1u << 30, &text, len, &err));
    return text;
}

void spill(const char *dir, const char *name, const char *text, size_t len)
{
    char path[512];
    dsv4_err err;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    OK(file_write_atomic(path, text, len, &err));
}

/* Every file of a is in b with the same bytes, and b has no others. */
void same_files(const char *a, const char *b)
{
    int n[2] = {0};
    for (int i = 0; i < 2; i++) {
        DIR *d = opendir(i ? b : a);
        ck_assert_ptr_nonnull(d);
        for (const struct dirent *x; (x = readdir(d));) {
            if (x->d_name[0] == '.')
                continue;
            n[i]++;
            size_t na, nb;
            char *ta = slurp(a, x->d_name, &na), *tb = slurp(b, x->d_name, &nb);
            ck_assert_msg(na == nb && memcmp(ta, tb, na) == 0, "%s differs", x->d_name);
            free(ta);
            free(tb);
        }
        closedir(d);
    }
    ck_assert_int_eq(n[0], n[1]);
    ck_assert_int_ge(n[0], 3);
}

/* ------------------------------------------------------------------ logits */

int32_t case_token(int i, size_t vocab)
{
    return (int32_t)((size_t)(i * 37 + 5) % vocab);
}

float *logits_of(const char *dir, bool exact, bool paged, size_t *vocab)
{
    dsv4_err err;
    dsv4_engine *e;
    dsv4_seq *s;
    dsv4_row row[N_IDS];
    dsv4_options o = {.ctx = 64, .threads = 2, .exact = exact, .paged = paged};
    OK(dsv4_open(&e, dir, &o, &err));
    OK(dsv4_seq_open(&s, e, &err));
    *vocab = dsv4_engine_vocab(e);
    for (int i = 0; i < N_IDS; i++)
        row[i] = (dsv4_row){s, case_token(i, *vocab), i % 3 != 1};
    float *x = calloc(N_IDS * *vocab, sizeof *x);
    OK(dsv4_eval(e, row, N_IDS, x, &err));
    dsv4_seq_close(s);
    dsv4_close(e);
    return x;
}

bool stop_after(void *arg, uint64_t done, uint64_t total)
{
    int *left = arg;
    ck_assert_uint_le(done, total);
    return --*left <= 0;
}

void refuse(const char *src, const char *dst, const dsv4_convert_options *o, int status,
            const char *text)
{
    dsv4_err err = {0};
    int rc = dsv4_convert(src, dst, o, &err);
    ck_assert_msg(rc == status, "%s: %d: %s", text, rc, err.text);
    ck_assert_msg(strstr(err.text, text) != NULL, "\"%s\" not in: %s", text, err.text);
}
