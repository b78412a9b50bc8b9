/* Any bytes as a GGUF file: refused with a message, or something that keeps every promise of load.h: tensors inside
 * the file whose rows can be decoded and packed, a config and a tokenizer that their parsers take or refuse. The
 * first byte says how many KiB of zeros stand behind the rest, so that small inputs can have large tensors. */
#include "src/load/load.h"
#include "src/text/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool x)
{
    if (!x)
        abort();
}

static bool taken(int rc, const dsv4_err *err)
{
    must(rc == 0 || ((rc == DSV4_REFUSED || rc == DSV4_NO_MEMORY) && err->status == rc));
    must(rc == 0 || err->text[0] != 0);
    return rc == 0;
}

/* One panel of blocks, and one row as floats. */
static void check_blocks(const struct kernels *k, const struct tensor *t)
{
    if (t->rank != 2 || t->dim[0] > UINT32_MAX || t->dim[1] > (1 << 20))
        return;
    struct wmat w = block_matrix(t->blocks, t->data, (uint32_t)t->dim[0], (uint32_t)t->dim[1]);
    struct wmat p = panel_shape(&w, PANEL);
    size_t last = (size_t)(t->dim[0] - 1);
    float *row = malloc(w.cols * sizeof *row);
    uint8_t *codes = malloc(p.code_ld), *scales = malloc(p.scale_ld);
    must(row && codes && scales && panel_fits(&w));
    row_floats(k, row, &w, last);
    panel_pack(codes, scales, &w, last / PANEL * PANEL);
    free(row);
    free(codes);
    free(scales);
}

static void check_store(const struct store *s, size_t size)
{
    struct kernels k;
    char shape[128];
    kernels_init(&k, NULL);
    for (size_t i = 0; i < store_count(s); i++) {
        const struct tensor *t = store_at(s, i);
        uint64_t bytes = dtype_size(t->dtype);
        must(store_find(s, t->name) == t && t->rank >= 1 && t->rank <= TENSOR_MAX_RANK);
        must(i == 0 || strcmp(store_at(s, i - 1)->name, t->name) < 0);
        for (uint32_t j = 0; j < t->rank && !t->blocks; j++)
            bytes *= t->dim[j];
        must(t->bytes > 0 && t->bytes <= size && (t->blocks || bytes == t->bytes));
        volatile uint8_t ends = t->data[0] ^ t->data[t->bytes - 1];
        (void)ends;
        tensor_shape_text(t, shape, sizeof shape);
        if (t->blocks)
            check_blocks(&k, t);
    }
    must(store_bytes(s) <= size);
}

static void check_texts(const char *path)
{
    static const char *const name[] = {"config.json", "tokenizer.json", "generation_config.json",
                                       "chat_template.jinja"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        struct checkpoint_text t;
        struct config *c;
        struct generation_defaults g = {0}; /* fields that are not said stay */
        dsv4_tokenizer *tok;
        dsv4_err err = {0};
        if (!taken(checkpoint_text(&t, path, name[i], i < 2, &err), &err))
            continue;
        must(t.text ? strlen(t.text) == t.len : i >= 2);
        if (i == 0 && taken(config_parse(&c, t.text, t.len, path, &err), &err))
            config_close(c);
        if (i == 1 && taken(tokenizer_parse(&tok, t.text, t.len, path, &err), &err))
            dsv4_tokenizer_close(tok);
        if (i == 2 && t.text)
            taken(generation_parse(&g, t.text, t.len, path, &err), &err);
        checkpoint_text_close(&t);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    struct store *s;
    dsv4_err err = {0};
    if (size < 5 || memcmp(data + 1, "GGUF", 4) != 0) /* other files are fuzz_safetensors' */
        return 0;
    size_t all = size - 1 + (size_t)data[0] * 1024;
    int fd = memfd_create("fuzz", 0);
    must(fd >= 0 && write(fd, data + 1, size - 1) == (ssize_t)size - 1);
    must(ftruncate(fd, (off_t)all) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (taken(store_open_file(&s, path, &err), &err))
        check_store(s, all);
    store_close(s);
    check_texts(path);
    close(fd);
    return 0;
}
