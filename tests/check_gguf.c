/* GGUF files: blocks against what the package `gguf` makes of them (golden-gguf/make.py), and headers that lie.
 * Whole models are compared in test_gguf.sh. */
#include "src/load/load.h"
#include "suite.h"

#include <math.h>
#include <unistd.h>

static dsv4_err err;

/* ------------------------------------------------------------------ blocks */

/* As kernels will see it. */
static void as_format(float *y, const struct block_type *t, const uint8_t *block, uint32_t cols)
{
    struct kernels k;
    uint8_t codes[256], scales[16];
    struct wmat w = block_matrix(t, block, 1, cols);
    kernels_init(&k, NULL);
    block_encode_span(codes, scales, &w, 0, 0, cols);
    w.blocks = NULL;
    w.codes = codes;
    w.scales = scales;
    w.code_ld = wformat_row_bytes(w.format, cols);
    w.scale_ld = cols / GROUP * 2;
    k.decode(y, &w, 0);
}

/* Its row of codes and scales gives the block again, byte for byte. */
static void as_block_again(const struct block_type *t, const uint8_t *block)
{
    uint8_t codes[GROUP], scales[2], again[GROUP + 2];
    struct wmat w = block_matrix(t, block, 1, GROUP);
    block_encode_span(codes, scales, &w, 0, 0, GROUP);
    ck_assert_ptr_eq(block_type_as(wtype_of(&w)), t);
    block_row(t, again, codes, scales, GROUP);
    ck_assert_mem_eq(again, block, block_row_bytes(t, GROUP));
}

START_TEST(blocks)
{
    FILE *f = fopen("tests/golden-gguf/blocks.bin", "rb");
    uint32_t head[3];
    size_t n = 0;
    ck_assert_ptr_nonnull(f);
    for (; fread(head, sizeof head, 1, f) == 1; n++) {
        uint8_t block[256];
        float want[256], got[256], near[256];
        double error = 0, sum = 0;
        const struct block_type *t = block_type_of(head[0]);
        ck_assert_ptr_nonnull(t);
        ck_assert_uint_eq(block_cols(t), head[1]);
        ck_assert_uint_eq(block_row_bytes(t, head[1]), head[2]);
        ck_assert_uint_eq(fread(block, 1, head[2], f), head[2]);
        ck_assert_uint_eq(fread(want, sizeof *want, head[1], f), head[1]);
        block_decode(t, got, block, head[1]);
        as_format(near, t, block, head[1]);
        if (head[1] == GROUP)
            as_block_again(t, block);
        for (size_t c = 0; c < head[1]; c++) {
            ck_assert_msg(fabsf(got[c] - want[c]) <= 1e-6f * fabsf(want[c]) + 1e-7f,
                          "%s[%zu]: %g, not %g", block_name(t), c, (double)got[c], (double)want[c]);
            if (head[1] == GROUP) /* these have a format of their own: the same numbers */
                ck_assert_msg(near[c] == got[c], "%s[%zu]: %g as a format, not %g", block_name(t),
                              c, (double)near[c], (double)got[c]);
            error += (near[c] - got[c]) * (near[c] - got[c]);
            sum += got[c] * got[c];
        }
        ck_assert_msg(error <= sum * 1e-4, "%s as q8: relative error %g", block_name(t),
                      sqrt(error / sum));
    }
    fclose(f);
    ck_assert_uint_eq(n, 36);
}
END_TEST

/* ------------------------------------------------------------------ headers */

struct file {
    uint8_t b[4096];
    size_t n;
};

static void put(struct file *f, const void *p, size_t n)
{
    memcpy(f->b + f->n, p, n);
    f->n += n;
}

static void put32(struct file *f, uint32_t v)
{
    put(f, &v, sizeof v);
}

static void put64(struct file *f, uint64_t v)
{
    put(f, &v, sizeof v);
}

static void put_text(struct file *f, const char *text)
{
    put64(f, strlen(text));
    put(f, text, strlen(text));
}

struct claims {
    uint32_t version, align, type;
    uint64_t tensors, metas, text, dim, second;
};

static const struct claims honest = {3, 32, 0, 2, 4, 9, 8, 32};

/* Two tensors of 8 floats. */
static struct file make(struct claims c)
{
    struct file f = {0};
    put(&f, "GGUF", 4);
    put32(&f, c.version);
    put64(&f, c.tensors);
    put64(&f, c.metas);
    put_text(&f, "general.architecture");
    put32(&f, 8);
    put64(&f, c.text);
    put(&f, "deepseek4", 9);
    put_text(&f, "general.alignment");
    put32(&f, 4);
    put32(&f, c.align);
    put_text(&f, "deepseek4.block_count");
    put32(&f, 4);
    put32(&f, 1);
    put_text(&f, "a.list");
    put32(&f, 9);
    put32(&f, 0);
    put64(&f, 3);
    put(&f, "\1\2\3", 3);
    for (int i = 0; i < 2; i++) {
        put_text(&f, i ? "blk.0.attn_norm.weight" : "output_norm.weight");
        put32(&f, 1);
        put64(&f, i ? 8 : c.dim);
        put32(&f, c.type);
        put64(&f, i ? c.second : 0);
    }
    f.n = (f.n + 31) / 32 * 32 + 64;
    return f;
}

static int open_as_store(const struct file *f, struct store **s)
{
    char path[] = "/tmp/dsv4-check-gguf-XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, f->b, f->n), (ssize_t)f->n);
    close(fd);
    int rc = store_open_file(s, path, &err);
    unlink(path);
    return rc;
}

static void refused(struct claims c, const char *because)
{
    struct store *s;
    struct file f = make(c);
    ck_assert_int_eq(open_as_store(&f, &s), DSV4_REFUSED);
    ck_assert_msg(strstr(err.text, because) != NULL, "%s: not because %s", err.text, because);
}

START_TEST(good_header)
{
    struct store *s;
    struct file f = make(honest);
    OK(open_as_store(&f, &s));
    ck_assert_uint_eq(store_count(s), 2);
    const struct tensor *t = store_find(s, "layers.0.attn_norm.weight");
    ck_assert_ptr_nonnull(t);
    ck_assert_uint_eq(t->bytes, 32);
    ck_assert_int_eq(t->dtype, DTYPE_F32);
    store_close(s);
}
END_TEST

START_TEST(cut_short)
{
    struct file f = make(honest);
    for (size_t all = f.n; f.n-- > 1;) {
        struct store *s;
        ck_assert_msg(open_as_store(&f, &s) == DSV4_REFUSED, "%zu of %zu bytes", f.n, all);
    }
}
END_TEST

#define CLAIM(field, value, because) \
    do {                             \
        struct claims c_ = honest;   \
        c_.field = value;            \
        refused(c_, because);        \
    } while (0)

START_TEST(lies)
{
    CLAIM(version, 2, "version");
    CLAIM(tensors, UINT64_C(1) << 60, "more tensors");
    CLAIM(metas, UINT64_C(1) << 60, "more metadata");
    CLAIM(text, UINT64_C(1) << 60, "a string is longer");
    CLAIM(align, 0, "general.alignment");
    CLAIM(align, 48, "general.alignment");
    CLAIM(type, 200, "type 200");
    CLAIM(dim, UINT64_C(1) << 62, "larger than the file");
    CLAIM(dim, 0, "empty");
    CLAIM(dim, 9, "another tensor");
    CLAIM(second, 0, "another tensor");
    CLAIM(second, 64, "end of the file");
    CLAIM(second, 33, "not aligned");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gguf");
    TCase *t = tcase_create("gguf");
    tcase_add_test(t, blocks);
    tcase_add_test(t, good_header);
    tcase_add_test(t, cut_short);
    tcase_add_test(t, lies);
    suite_add_tcase(s, t);
    return run_suite(s);
}
