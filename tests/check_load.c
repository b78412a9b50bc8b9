/* safetensors files and checkpoint directories: the good ones open, every lie is refused with a
 * message that says which file and what. */
#include "suite.h"

#include "src/load/load.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------ making files */

static char dir[64];

static void make_dir(void)
{
    strcpy(dir, "/tmp/dsv4-load.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void remove_dir(void)
{
    char cmd[96];
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    ck_assert_int_eq(system(cmd), 0);
}

static const char *in_dir(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void put_file(const char *name, const void *data, size_t n)
{
    unlink(in_dir(name)); /* replacing makes some file systems write to the disk at once */
    FILE *f = fopen(in_dir(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

/* A safetensors file: the length says `claim`, the header is `header`, `data` zero bytes follow. */
static void put_claim(const char *name, uint64_t claim, const char *header, size_t data)
{
    size_t n = strlen(header);
    unsigned char *file = calloc(1, 8 + n + data);
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)(claim >> 8 * i);
    memcpy(file + 8, header, n);
    put_file(name, file, 8 + n + data);
    free(file);
}

static void put_tensors(const char *name, const char *header, size_t data)
{
    put_claim(name, strlen(header), header, data);
}

/* Opens the file or the directory, which must be refused in words that hold `words`. */
static void refuse(const char *name, const char *words, const char *what)
{
    dsv4_err err = {0};
    struct store *s = (struct store *)&err;
    int rc = name ? store_open_file(&s, in_dir(name), &err) : store_open(&s, dir, &err);
    ck_assert_msg(rc == DSV4_REFUSED && s == NULL, "%s: status %d", what, rc);
    ck_assert_msg(strncmp(err.text, dir, strlen(dir)) == 0 && strstr(err.text, words) != NULL,
                  "%.300s: %s", what, err.text);
}

/* What an open store promises. */
static void store_holds(const struct store *s)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < store_count(s); i++) {
        const struct tensor *t = store_at(s, i);
        ck_assert_ptr_eq(store_find(s, t->name), t);
        if (i)
            ck_assert_int_lt(strcmp(store_at(s, i - 1)->name, t->name), 0);
        uint64_t bytes = dtype_size(t->dtype);
        for (uint32_t k = 0; k < t->rank; k++)
            bytes *= t->dim[k];
        ck_assert_uint_eq(bytes, t->bytes);
        for (uint64_t k = 0; k < t->bytes; k += 4096)
            sum += t->data[k] & 0; /* readable */
        if (t->bytes)
            sum += t->data[t->bytes - 1] & 0;
        sum += t->bytes;
    }
    ck_assert_uint_eq(sum, store_bytes(s));
    ck_assert_ptr_null(store_at(s, store_count(s)));
    ck_assert_ptr_null(store_find(s, "no such tensor"));
    ck_assert_ptr_null(store_find(s, ""));
}

/* ------------------------------------------------------------------ good ones */

START_TEST(goldens_open)
{
    static const struct {
        const char *dir;
        size_t tensors, shards;
        uint64_t bytes;
    } known[] = {
        {"v4-mixed", 102, 1, 358820},   {"v4-oldnames", 180, 1, 390574},
        {"v4-pro", 274, 3, 1679590},    {"v4-tiny", 585, 1, 2233655},
        {"v41-long", 491, 1, 954610},   {"v41-quant", 417, 1, 790730},
        {"v41-tiny", 1059, 1, 2201084},
    };
    dsv4_err err;
    struct store *s;
    char path[256];
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        snprintf(path, sizeof path, GOLDEN "%s", known[i].dir);
        OK(store_open(&s, path, &err));
        ck_assert_uint_eq(store_count(s), known[i].tensors);
        ck_assert_uint_eq(store_shards(s), known[i].shards);
        ck_assert_uint_eq(store_bytes(s), known[i].bytes);
        store_holds(s);
        ck_assert_ptr_nonnull(store_find(s, "embed.weight"));
        store_close(s);
        snprintf(path, sizeof path, GOLDEN "%s/expect.safetensors", known[i].dir);
        OK(store_open_file(&s, path, &err));
        store_holds(s);
        ck_assert_ptr_nonnull(store_find(s, "input_ids"));
        store_close(s);
    }
    store_close(NULL);
}
END_TEST

START_TEST(one_tensor_in_all_detail)
{
    dsv4_err err;
    struct store *s;
    OK(store_open(&s, GOLDEN "v4-oldnames", &err));
    const struct tensor *t = store_find(s, "layers.1.attn.indexer.wq_b.scale");
    ck_assert_ptr_nonnull(t);
    ck_assert_str_eq(t->stored, "model.layers.1.self_attn.indexer.wq_b.weight_scale_inv");
    ck_assert_str_eq(t->path, GOLDEN "v4-oldnames/model.safetensors");
    ck_assert_int_eq(t->dtype, DTYPE_E8M0);
    char text[64];
    tensor_shape_text(t, text, sizeof text);
    ck_assert_str_eq(text, "F8_E8M0 [4, 1]");
    tensor_shape_text(t, text, 9);
    ck_assert_str_eq(text, "F8_E8M0 ");
    t = store_find(s, "layers.0.ffn.gate.tid2eid");
    ck_assert_ptr_nonnull(t);
    ck_assert_int_eq(t->dtype, DTYPE_I64);
    store_close(s);
    ck_assert_str_eq(dtype_name(DTYPE_E4M3), "F8_E4M3");
    ck_assert_str_eq(dtype_name(DTYPE_BOOL), "BOOL");
}
END_TEST

START_TEST(names_become_official)
{
    static const struct {
        const char *stored, *official;
    } names[] = {
        {"embed.weight", "embed.weight"},
        {"model.embed_tokens.weight", "embed.weight"},
        {"lm_head.weight", "head.weight"},
        {"model.norm.weight", "norm.weight"},
        {"model.hc_head_fn", "hc_head_fn"},
        {"model.layers.3.input_layernorm.weight", "layers.3.attn_norm.weight"},
        {"model.layers.3.post_attention_layernorm.weight", "layers.3.ffn_norm.weight"},
        {"layers.10.self_attn.q_a_proj.weight_scale_inv", "layers.10.attn.wq_a.scale"},
        {"layers.10.self_attn.q_a_layernorm.weight", "layers.10.attn.q_norm.weight"},
        {"layers.10.self_attn.q_b_proj.weight", "layers.10.attn.wq_b.weight"},
        {"layers.0.mlp.experts.7.gate_proj.weight", "layers.0.ffn.experts.7.w1.weight"},
        {"layers.0.mlp.experts.7.up_proj.weight", "layers.0.ffn.experts.7.w3.weight"},
        {"layers.0.mlp.experts.7.down_proj.weight", "layers.0.ffn.experts.7.w2.weight"},
        {"layers.0.mlp.gate.e_score_correction_bias", "layers.0.ffn.gate.bias"},
        {"mtp.2.markov_head.markov_w1.weight", "mtp.2.markov_head.embed.weight"},
        {"mtp.2.markov_head.markov_w2.weight", "mtp.2.markov_head.head.weight"},
        /* components, never parts of one */
        {"layers.0.mlp_gate_proj.weight", "layers.0.mlp_gate_proj.weight"},
        {"layers.0.xself_attn.wq_a.weight", "layers.0.xself_attn.wq_a.weight"},
        {"remodel.embed.weight", "remodel.embed.weight"},
        {"model", "model"},
        {"model.", ""},
        {"", ""},
        {"..mlp.", "..ffn."},
    };
    char out[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        ck_assert(official_name(names[i].stored, out, sizeof out));
        ck_assert_str_eq(out, names[i].official);
        size_t n = strlen(out);
        ck_assert(official_name(names[i].stored, out, n + 1));
        ck_assert_str_eq(out, names[i].official);
        for (size_t cap = 0; cap <= n; cap++)
            ck_assert(!official_name(names[i].stored, out, cap));
    }
}
END_TEST

/* The format's corners: padding, metadata, scalars, empty tensors, entries in any order. */
START_TEST(corners_of_the_format)
{
    static const char header[] =
        " {\"__metadata__\": {\"format\": \"pt\", \"a\": \"}{\\\"\"},\n"
        "  \"last\": {\"data_offsets\": [4, 10], \"shape\": [1, 3, 1, 1], \"dtype\": \"BF16\"},"
        "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
        "\"empty\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[4,4]}}    ";
    dsv4_err err;
    struct store *s;
    make_dir();
    put_tensors("a.safetensors", header, 10);
    OK(store_open_file(&s, in_dir("a.safetensors"), &err));
    ck_assert_uint_eq(store_count(s), 3);
    ck_assert_uint_eq(store_find(s, "scalar")->rank, 0);
    ck_assert_uint_eq(store_find(s, "empty")->bytes, 0);
    ck_assert_ptr_eq(store_find(s, "last")->data, store_find(s, "scalar")->data + 4);
    char text[64];
    tensor_shape_text(store_find(s, "scalar"), text, sizeof text);
    ck_assert_str_eq(text, "F32 []");
    store_holds(s);
    store_close(s);
    remove_dir();
}
END_TEST

struct watch {
    int calls;
    uint64_t done, total;
    bool stop;
};

static bool watching(void *arg, uint64_t done, uint64_t total)
{
    struct watch *w = arg;
    ck_assert_uint_gt(done, w->done);
    ck_assert_uint_le(done, total);
    w->calls++;
    w->done = done;
    w->total = total;
    return w->stop;
}

static bool not_b(const struct tensor *t)
{
    return strcmp(t->name, "b") != 0;
}

START_TEST(prefetch_reports_and_stops)
{
    static const char header[] =
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[140000000],\"data_offsets\":[0,140000000]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[5000],\"data_offsets\":[140000000,140005000]}}";
    dsv4_err err;
    struct store *s;
    make_dir();
    put_tensors("model.safetensors", header, 0);
    ck_assert_int_eq(truncate(in_dir("model.safetensors"), 8 + sizeof header - 1 + 140005000), 0);
    OK(store_open(&s, dir, &err));
    struct watch w = {0};
    OK(store_prefetch(s, NULL, watching, &w, &err));
    ck_assert_uint_eq(w.done, 140005000);
    ck_assert_uint_eq(w.total, 140005000);
    ck_assert_int_eq(w.calls, 3); /* every 64 MiB and at the end */
    w = (struct watch){0};
    OK(store_prefetch(s, not_b, watching, &w, &err));
    ck_assert_uint_eq(w.done, 140000000);
    ck_assert_uint_eq(w.total, 140000000);
    w = (struct watch){.stop = true};
    ck_assert_int_eq(store_prefetch(s, NULL, watching, &w, &err), DSV4_INTERRUPTED);
    ck_assert_int_eq(w.calls, 1);
    OK(store_prefetch(s, NULL, NULL, NULL, &err));
    store_close(s);
    remove_dir();
}
END_TEST

/* ------------------------------------------------------------------ lies in one file */

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}"
#define B "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[24,28]}"

static const struct {
    const char *header;
    size_t data;
    const char *words;
} lies[] = {
    {"", 0, "no JSON object begins"},
    {"{}", 0, "the file holds no tensor"},
    {"{\"__metadata__\":{}}", 0, "the file holds no tensor"},
    {"[" A "]", 28, "no JSON object begins"},
    {"{" A, 24, "no comma or closing brace"},
    {"{" A ",}", 24, "a member has no quoted name"},
    {"{" A " " B "}", 28, "no comma or closing brace"},
    {"{" A "}x", 24, "text follows the object"},
    {"{" A "}\n", 24, "text follows the object"},
    {"{\"a\"}", 0, "no colon"},
    {"{\"a\":}", 0, "a value does not end"},
    {"{\"a\":{\"dtype\":\"F32}", 0, "a value does not end"},
    {"{\"a\":{\"dtype\":\"F32\\", 0, "a value does not end"},
    {"{\"\":1}", 0, "a name is empty"},
    {"{\"a b\":1}", 0, "a name is empty, longer"},
    {"{\"a\\u0062\":1}", 0, "unusual characters"},
    {"{\"\xc3\xa4\":1}", 0, "unusual characters"},
    {"{\"a\":1}", 0, "a: not an object"},
    {"{\"a\":[]}", 0, "a: not an object"},
    {"{\"a\":nonsense}", 0, "a: not valid JSON"},
    {"{\"a\":{]}", 0, "a: not valid JSON"},
    {"{\"a\":{}}", 0, "a: dtype is missing"},
    {"{" A "," B "}", 27, "b: data_offsets end at 28; the file has 27"},
    {"{" A "," B "}", 29, "29 bytes of data, but the last tensor ends at 28"},
    {"{" A "," B "}", 0, "a: data_offsets end at 24; the file has 0"},
    {"{" A "," A "}", 24, "a: its data begins at 0"},
    {"{" A ",\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[24,28]}}", 28,
     "a is there twice"},
    {"{" A ",\"model.a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[24,28]}}", 28,
     "are names of the same tensor"},
    {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[23,28]}}", 28,
     "tensors overlap"},
    {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[25,28]}}", 28,
     "there is a hole"},
    {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[28],\"data_offsets\":[0,28]}}", 28,
     "tensors overlap"},
    {"{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[24,28]}}", 28, "there is a hole"},
    {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[12,12]}}", 24,
     "its data begins at 12, but what comes before ends at 24"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,23]}}", 23,
     "data_offsets span 23 bytes; expected 24 for F32 [2, 3]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,25]}}", 25,
     "data_offsets span 25 bytes; expected 24 for F32 [2, 3]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[24,0]}}", 24,
     "a: data_offsets is not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[-24,0]}}", 24,
     "a: data_offsets is not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0]}}", 24,
     "a: data_offsets is not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24,24]}}", 24,
     "a: data_offsets is not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24.0]}}", 24,
     "a: data_offsets is not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":\"0,24\"}}", 24,
     "a: data_offsets is not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3]}}", 24, "a: data_offsets is not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,9223372036854775807]}}", 24,
     "data_offsets end at 9223372036854775807"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,18446744073709551615]}}", 24,
     "not valid JSON"},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[6],\"data_offsets\":[0,24]}}", 24,
     "dtype \"F4\" is not known"},
    {"{\"a\":{\"dtype\":7,\"shape\":[6],\"data_offsets\":[0,24]}}", 24, "dtype is missing or not"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,24]}}", 24, "shape is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":6,\"data_offsets\":[0,24]}}", 24,
     "shape is missing or not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-6],\"data_offsets\":[0,24]}}", 24,
     "shape has an entry"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6.0],\"data_offsets\":[0,24]}}", 24,
     "shape has an entry"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"6\"],\"data_offsets\":[0,24]}}", 24,
     "shape has an entry"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,6],\"data_offsets\":[0,24]}}", 24,
     "shape has 5 dimensions"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775807],\"data_offsets\":[0,24]}}", 24,
     "do not fit 64 bits"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
     "do not fit 64 bits"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "do not fit 64 bits"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0,
     "do not fit 64 bits"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "do not fit 64 bits"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,0]}}", 0,
     "not valid JSON"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24]}}", 24,
     "a: not valid JSON"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24],\"x\":1}}", 24,
     "has members besides"},
    {"{\"__metadata__\":[]," A "}", 24, "__metadata__ is no object of strings"},
    {"{\"__metadata__\":{\"a\":1}," A "}", 24, "__metadata__ is no object of strings"},
    {"{\"__metadata__\":{\"a\":\"\xff\"}," A "}", 24, "not valid JSON"},
};

START_TEST(a_lying_header_is_refused)
{
    make_dir();
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        put_tensors("a.safetensors", lies[i].header, lies[i].data);
        refuse("a.safetensors", lies[i].words, lies[i].header);
    }
    remove_dir();
}
END_TEST

START_TEST(a_lying_length_is_refused)
{
    static const char good[] = "{" A "," B "}";
    const uint64_t n = sizeof good - 1;
    const uint64_t claims[] = {0,          1,          7,          n - 1,         n + 1,
                               n + 27,     n + 28,     n + 29,     100000001,     UINT64_C(1) << 31,
                               1ull << 32, 1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    make_dir();
    for (size_t i = 0; i < sizeof claims / sizeof *claims; i++) {
        put_claim("a.safetensors", claims[i], good, 28);
        refuse("a.safetensors", "", "a length");
    }
    /* a file that could hold a header above the limit */
    put_claim("a.safetensors", 100000001, good, 0);
    ck_assert_int_eq(truncate(in_dir("a.safetensors"), 300000000), 0);
    refuse("a.safetensors", "claims 100000001 bytes; expected at most 100000000, the limit",
           "limit");
    put_claim("a.safetensors", 100000000, good, 0);
    ck_assert_int_eq(truncate(in_dir("a.safetensors"), 300000000), 0);
    refuse("a.safetensors", "text follows the object", "zeros");
    for (size_t k = 0; k < 8; k++) {
        put_file("a.safetensors", "\0\0\0\0\0\0\0", k);
        refuse("a.safetensors", k ? "too few for a safetensors file" : "the file is empty",
               "short");
    }
    remove_dir();
}
END_TEST

START_TEST(every_truncation_is_refused)
{
    static const char good[] = "{" A "," B "}";
    unsigned char file[8 + sizeof good - 1 + 29] = {sizeof good - 1};
    memcpy(file + 8, good, sizeof good - 1);
    dsv4_err err;
    struct store *s;
    make_dir();
    for (size_t n = 0; n <= sizeof file; n++) {
        put_file("a.safetensors", file, n);
        if (n != sizeof file - 1) {
            refuse("a.safetensors", "a.safetensors", "truncated");
            continue;
        }
        OK(store_open_file(&s, in_dir("a.safetensors"), &err));
        store_close(s);
    }
    remove_dir();
}
END_TEST

/* Each byte of length and header replaced: refused, or another consistent file. */
START_TEST(any_byte_may_be_anything)
{
    static const char good[] = "{" A "," B "}";
    static const char bytes[] = "\"\\{}[],:0139.-eE ax\x01\xff\x80";
    unsigned char file[8 + sizeof good - 1 + 28] = {sizeof good - 1};
    memcpy(file + 8, good, sizeof good - 1);
    size_t opened = 0, refusals = 0;
    make_dir();
    for (size_t i = 0; i < 8 + sizeof good - 1; i++) {
        unsigned char was = file[i];
        for (size_t k = 0; k < sizeof bytes; k++) { /* the NUL as well */
            file[i] = (unsigned char)bytes[k];
            put_file("a.safetensors", file, sizeof file);
            dsv4_err err = {0};
            struct store *s;
            int rc = store_open_file(&s, in_dir("a.safetensors"), &err);
            ck_assert_msg(rc == 0 || rc == DSV4_REFUSED, "byte %zu: %d %s", i, rc, err.text);
            if (rc == 0) {
                store_holds(s);
                ck_assert_uint_eq(store_bytes(s), 28);
                opened++;
            } else {
                ck_assert_msg(strstr(err.text, "a.safetensors: "), "%s", err.text);
                refusals++;
            }
            store_close(s);
        }
        file[i] = was;
    }
    ck_assert_uint_gt(refusals, 2000);
    ck_assert_uint_gt(opened, 20); /* other names */
    remove_dir();
}
END_TEST

static char *repeat(const char *begin, const char *what, size_t n, const char *end)
{
    size_t each = strlen(what), a = strlen(begin);
    char *text = malloc(a + each * n + strlen(end) + 1);
    ck_assert_ptr_nonnull(text);
    memcpy(text, begin, a);
    for (size_t i = 0; i < n; i++)
        memcpy(text + a + each * i, what, each);
    strcpy(text + a + each * n, end);
    return text;
}

START_TEST(deep_and_long_headers_are_refused)
{
    static const struct {
        const char *begin, *what, *end, *words;
    } large[] = {
        {"", "[", "", "no JSON object begins"},
        {"", "{\"a\":", "", "a value does not end"},
        {"{\"a\":", "[", "", "a value does not end"},
        {"{\"a\":", "[", "]}", "a value does not end"},
        {"{\"a\":\"", "x", "\"}", "an entry of more than 4096 bytes"},
        {"{\"a\":{\"dtype\":\"", "x", "\"}}", "an entry of more than 4096 bytes"},
        {"{\"", "x", "\":1}", "longer than 255 bytes"},
        {"{\"__metadata__\":{\"a\":\"", "xx", "\"}}", "__metadata__ has more than 1 MiB"},
        {"{\"__metadata__\":", "[", "", "a value does not end"},
        {"", " ", "", "no JSON object begins"},
        {"{\"a\":1}", " ", "", "a: not an object"},
        {"{", "\"a\":{},", "}", "a: dtype is missing"},
    };
    make_dir();
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        char *text = repeat(large[i].begin, large[i].what, 1000000, large[i].end);
        put_tensors("a.safetensors", text, 8);
        refuse("a.safetensors", large[i].words, large[i].begin);
        free(text);
    }
    /* deep, but short enough to be given to the JSON parser */
    char *text = repeat("{\"a\":", "[", 2000, "");
    char *both = repeat(text, "]", 2000, "}");
    put_tensors("a.safetensors", both, 8);
    refuse("a.safetensors", "a: not an object", "2000 brackets");
    free(both);
    free(text);
    text = repeat("{\"__metadata__\":", "[", 300000, "");
    both = repeat(text, "]", 300000, "}");
    put_tensors("a.safetensors", both, 8);
    refuse("a.safetensors", "not valid JSON", "300000 brackets");
    free(both);
    free(text);
    remove_dir();
}
END_TEST

/* ------------------------------------------------------------------ directories */

#define INDEX "model.safetensors.index.json"
#define ONE   "\"one\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}"
#define TWO   "\"model.two\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}"

static void put_text(const char *name, const char *text)
{
    put_file(name, text, strlen(text));
}

/* Two shards, no index yet. */
static void put_shards(void)
{
    put_tensors("1.safetensors", "{" ONE "}", 4);
    put_tensors("2.safetensors", "{" TWO "}", 4);
}

static const struct {
    const char *index, *words;
} indexes[] = {
    {"", "the file is empty"},
    {"[]", "no JSON object begins"},
    {"{}", "weight_map is missing"},
    {"{\"weight_map\":{}}", "weight_map is empty"},
    {"{\"weight_map\":[]}", "no JSON object begins"},
    {"{\"weight_map\":{\"one\":\"1.safetensors\"}", "no comma or closing brace"},
    {"{\"weight_map\":{\"one\":\"1.safetensors\"}} x", "text follows the object"},
    {"{\"weight_map\":{\"one\":\"1.safetensors\"},\"weight_map\":{\"one\":\"1.safetensors\"}}",
     "weight_map is there twice"},
    {"{\"weight_map\":{\"one\":\"1.safetensors\",\"one\":\"1.safetensors\"}}",
     "one is there twice"},
    {"{\"metadata\":nonsense,\"weight_map\":{\"one\":\"1.safetensors\"}}", "not valid JSON"},
    {"{\"weight_map\":{\"one\":1}}", "weight_map: one is in 1; expected the name"},
    {"{\"weight_map\":{\"one\":null}}", "one is in null"},
    {"{\"weight_map\":{\"one\":{\"a\":\"1.safetensors\"}}}", "one is in {"},
    {"{\"weight_map\":{\"one\":\"\"}}", "one is in \"\""},
    {"{\"weight_map\":{\"one\":\"1.bin\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\".safetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"../1.safetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"sub/1.safetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"/etc/passwd\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"/tmp/1.safetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"..\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"..safetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"-1.safetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"1\\u0000.safetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"1\\u002esafetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"%s.safetensors\"}}", "expected the name of a .safetensors"},
    {"{\"weight_map\":{\"one\":\"3.safetensors\"}}", "3.safetensors: cannot open"},
    {"{\"weight_map\":{\"one\":\"fifo.safetensors\"}}", "not a regular file"},
    {"{\"weight_map\":{\"one\":\"sub.safetensors\"}}", "not a regular file"},
    {"{\"weight_map\":{\"one\":\"out.safetensors\"}}", "a symbolic link"},
    {"{\"weight_map\":{\"one\":\"in.safetensors\"}}", "a symbolic link"},
    {"{\"weight_map\":{\"one\":\"zero.safetensors\"}}", "a symbolic link"},
    {"{\"weight_map\":{\"one\":\"empty.safetensors\"}}", "the file is empty"},
    {"{\"weight_map\":{\"one\":\"2.safetensors\"}}", "model.two is not in the model's index"},
    {"{\"weight_map\":{\"model.two\":\"1.safetensors\"}}", "one is not in the model's index"},
    {"{\"weight_map\":{\"one\":\"2.safetensors\",\"model.two\":\"1.safetensors\"}}",
     "one is here, but"},
    {"{\"weight_map\":{\"one\":\"1.safetensors\",\"three\":\"1.safetensors\"}}",
     "three is not in 1.safetensors, where the index places it"},
    {"{\"weight_map\":{\"one\":\"1.safetensors\",\"model.one\":\"1.safetensors\"}}",
     "model.one is not in 1.safetensors"},
    {"{\"weight_map\":{\"two\":\"2.safetensors\"}}", "model.two is not in the model's index"},
    {"{\"weight_map\":{\"one\":\"1.safetensors\",\"model.two\":\"hard.safetensors\"}}",
     "one is there twice"},
};

START_TEST(a_lying_index_is_refused)
{
    make_dir();
    put_shards();
    int d = open(dir, O_RDONLY | O_DIRECTORY);
    ck_assert_int_ge(d, 0);
    ck_assert_int_eq(mkfifoat(d, "fifo.safetensors", 0600), 0);
    ck_assert_int_eq(mkdirat(d, "sub.safetensors", 0700), 0);
    ck_assert_int_eq(mkdirat(d, "sub", 0700), 0);
    ck_assert_int_eq(symlinkat("/etc/passwd", d, "out.safetensors"), 0);
    ck_assert_int_eq(symlinkat("1.safetensors", d, "in.safetensors"), 0);
    ck_assert_int_eq(symlinkat("/dev/zero", d, "zero.safetensors"), 0);
    ck_assert_int_eq(linkat(d, "1.safetensors", d, "hard.safetensors", 0), 0);
    ck_assert_int_eq(linkat(d, "1.safetensors", d, "sub/1.safetensors", 0), 0);
    put_text("empty.safetensors", "");
    close(d);
    char *long_name = repeat("", "x", 4096, "");
    for (size_t i = 0; i < sizeof indexes / sizeof *indexes; i++) {
        char text[5000];
        const char *mark = strstr(indexes[i].index, "%s");
        if (mark)
            snprintf(text, sizeof text, "%.*s%s%s", (int)(mark - indexes[i].index),
                     indexes[i].index, long_name, mark + 2);
        else
            snprintf(text, sizeof text, "%s", indexes[i].index);
        put_text(INDEX, text);
        refuse(NULL, indexes[i].words, indexes[i].index);
    }
    free(long_name);
    remove_dir();
}
END_TEST

START_TEST(directories_open_as_they_should)
{
    dsv4_err err;
    struct store *s;
    make_dir();
    refuse(NULL, "neither model.safetensors nor", "an empty directory");
    ck_assert_int_eq(store_open(&s, in_dir("absent"), &err), DSV4_REFUSED);
    ck_assert_int_eq(store_open(&s, "/etc/passwd", &err), DSV4_REFUSED);
    ck_assert_int_eq(store_open_file(&s, dir, &err), DSV4_REFUSED);
    ck_assert_int_eq(store_open_file(&s, "/dev/zero", &err), DSV4_REFUSED);
    ck_assert_int_eq(store_open(&s, "", &err), DSV4_REFUSED);
    put_shards();
    put_text("3.safetensors", "never looked at");
    put_text(INDEX, "{\"metadata\":{\"total_size\":8},\"weight_map\":"
                    "{\"one\":\"1.safetensors\",\"model.two\":\"2.safetensors\"}}\n");
    OK(store_open(&s, dir, &err));
    ck_assert_uint_eq(store_shards(s), 2);
    ck_assert_uint_eq(store_count(s), 2);
    ck_assert_ptr_nonnull(store_find(s, "two"));
    ck_assert_ptr_null(store_find(s, "model.two"));
    store_holds(s);
    store_close(s);
    /* both: the single file, as Transformers does */
    put_tensors("model.safetensors", "{" ONE "}", 4);
    OK(store_open(&s, dir, &err));
    ck_assert_uint_eq(store_count(s), 1);
    store_close(s);
    remove_dir();
}
END_TEST

/* What huggingface_hub leaves in its cache: links from snapshots to blobs. */
START_TEST(links_of_the_hub_cache_are_followed)
{
    dsv4_err err;
    struct store *s;
    make_dir();
    ck_assert_int_eq(mkdir(in_dir("blobs"), 0700), 0);
    ck_assert_int_eq(mkdir(in_dir("snapshots"), 0700), 0);
    ck_assert_int_eq(mkdir(in_dir("snapshots/main"), 0700), 0);
    put_tensors("blobs/0123456789abcdef", "{" ONE "}", 4);
    ck_assert_int_eq(
        symlink("../../blobs/0123456789abcdef", in_dir("snapshots/main/model.safetensors")), 0);
    OK(store_open(&s, in_dir("snapshots/main"), &err));
    ck_assert_uint_eq(store_count(s), 1);
    store_close(s);
    remove_dir();
}
END_TEST

/* A header as large as the largest release would need in one file: the time is that of a linear
 * reader (a quadratic one takes minutes). */
START_TEST(a_hundred_thousand_tensors)
{
    enum { N = 100000 };
    struct bytes b = {0};
    dsv4_err err;
    OK(bytes_text(&b, "{\"__metadata__\":{\"format\":\"pt\"}", &err));
    for (unsigned i = 0; i < N; i++)
        OK(bytes_printf(&b, &err,
                        ",\"model.layers.%u.mlp.experts.%u.gate_proj.weight\":{\"dtype\":\"I8\","
                        "\"shape\":[4,16],\"data_offsets\":[%u,%u]}",
                        i / 384, i % 384, (N - 1 - i) * 64, (N - i) * 64));
    OK(bytes_text(&b, "}", &err));
    make_dir();
    put_tensors("model.safetensors", b.data, 0);
    ck_assert_int_eq(truncate(in_dir("model.safetensors"), (off_t)(8 + b.len + N * 64)), 0);
    struct store *s;
    clock_t begin = clock();
    OK(store_open(&s, dir, &err));
    double t = (double)(clock() - begin) / CLOCKS_PER_SEC;
    printf("   %d tensors, header of %.1f MB: opened in %.3f s of CPU, peak %.0f MB\n", N,
           1e-6 * (double)b.len, t, 1e-6 * (double)mem_peak());
    ck_assert(t < 30);
    ck_assert_uint_eq(store_count(s), N);
    ck_assert_ptr_nonnull(store_find(s, "layers.100.ffn.experts.383.w1.weight"));
    store_close(s);
    free(b.data);
    remove_dir();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("load");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 300);
    tcase_add_test(t, goldens_open);
    tcase_add_test(t, one_tensor_in_all_detail);
    tcase_add_test(t, names_become_official);
    tcase_add_test(t, corners_of_the_format);
    tcase_add_test(t, prefetch_reports_and_stops);
    tcase_add_test(t, a_lying_header_is_refused);
    tcase_add_test(t, a_lying_length_is_refused);
    tcase_add_test(t, every_truncation_is_refused);
    tcase_add_test(t, any_byte_may_be_anything);
    tcase_add_test(t, deep_and_long_headers_are_refused);
    tcase_add_test(t, a_lying_index_is_refused);
    tcase_add_test(t, directories_open_as_they_should);
    tcase_add_test(t, links_of_the_hub_cache_are_followed);
    tcase_add_test(t, a_hundred_thousand_tensors);
    suite_add_tcase(s, t);
    return run_suite(s);
}
