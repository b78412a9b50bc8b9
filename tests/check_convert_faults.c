/* What happens to conversions, calibrations and readers of GGUF files when the n-th allocation, mapping, file
 * operation or thread creation fails (torture.h). A conversion that failed goes on with the same call, to the same
 * bytes. */
#undef _FORTIFY_SOURCE

#include "torture.h"

#ifdef NO_FAULTS

SKIP_FAULTS("faults of conversions")

#else

static char dir[40];

/* DIR/NAME; valid until the fourth call after. */
static const char *in_dir(const char *name)
{
    static char path[4][80];
    static unsigned at;
    char *p = path[at++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

static void make_dir(void)
{
    /* in memory, if there is such a place: thousands of renames would wait for a disk */
    snprintf(dir, sizeof dir, "%s/dsv4-faults.XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void remove_dir(void)
{
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

static void digest_file(struct run *r, const char *path)
{
    dsv4_err err;
    char *text;
    size_t len;
    if (file_read(path, 1 << 24, &text, &len, &err) != 0) {
        expect(r, false, "a file of the result is missing");
        return;
    }
    digest(r, text, len);
    free(text);
}

/* ------------------------------------------------------------------ converting */

static const char *source;
static dsv4_convert_options wishes;

static void clear_result(const char *name)
{
    char path[512];
    DIR *d = opendir(in_dir(name));
    for (const struct dirent *x; d && (x = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", in_dir(name), x->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(in_dir(name));
}

/* The result is there and complete, or it is not there; then the same call makes it. */
static int run_convert(struct run *r, dsv4_err *err)
{
    dsv4_err later;
    int rc = dsv4_convert(source, in_dir("out"), &wishes, err);
    bool there = access(in_dir("out"), F_OK) == 0,
         partial = access(in_dir("out.partial"), F_OK) == 0;
    faults_relent();
    expect(r, rc != 0 || there, "it succeeded and made nothing");
    expect(r, !(there && partial), "the result is there, and a part of it, too");
    if (rc != 0 && !there)
        expect(r, dsv4_convert(source, in_dir("out"), &wishes, &later) == 0, "it does not go on");
    expect(r, access(in_dir("out.partial"), F_OK) != 0, "something partial is left");
    digest_file(r, in_dir("out/model.safetensors.index.json")); /* it has the sums of all shards */
    digest_file(r, in_dir("out/config.json"));
    digest_file(r, in_dir("out/tokenizer.json"));
    clear_result("out");
    return rc;
}

static int run_plan(struct run *r, dsv4_err *err)
{
    char *json = NULL;
    int rc = dsv4_convert_plan(source, &wishes, &json, err);
    expect(r, (rc == 0) == (json != NULL), "a plan and a failure, or none of both");
    if (rc == 0)
        digest(r, json, strlen(json));
    dsv4_free(json);
    return rc;
}

static int run_verify(struct run *r, dsv4_err *err)
{
    char *json = NULL;
    int rc = dsv4_convert_verify(source, in_dir("made"), &wishes, &json, err);
    if (json)
        digest(r, json, strlen(json));
    dsv4_free(json);
    return rc;
}

/* One thread: lanes allocate nothing, and waiting for each other is slow on a crowded machine. */
static void begin_native(void)
{
    make_dir();
    source = GOLDEN "v4-mixed";
    wishes =
        (dsv4_convert_options){.threads = 1, .shard_bytes = 100 << 10, .mark_bytes = 100 << 10};
}

static char importance[64];

static void write_importance(void)
{
    dsv4_err err;
    dsv4_engine *e;
    dsv4_options o = {.ctx = 64, .threads = 1, .exact = true};
    dsv4_calibrate_options how = {.covariance = true};
    int32_t id[20];
    char *json;
    snprintf(importance, sizeof importance, "%s", in_dir("importance"));
    for (int i = 0; i < 20; i++)
        id[i] = 3 + i * i % 200;
    OK(dsv4_open(&e, source, &o, &err));
    OK(dsv4_calibrate(e, id, 20, importance, &how, &json, &err));
    dsv4_free(json);
    dsv4_close(e);
}

/* With all there is: fewer experts, tables of tokens, error feedback, rules. */
static void begin_mix(void)
{
    static const char *const rule[] = {"layers.0.attn.*=q8", "layers.?.ffn.gate=q8"};
    make_dir();
    source = GOLDEN "v4-tiny";
    write_importance();
    wishes = (dsv4_convert_options){.threads = 1,
                                    .shard_bytes = 800 << 10,
                                    .preset = "small",
                                    .rules = rule,
                                    .n_rules = 2,
                                    .effort = DSV4_EFFORT_HIGH,
                                    .importance = importance,
                                    .prune_experts = "75%"};
}

static void begin_verify(void)
{
    dsv4_err err;
    begin_mix();
    OK(dsv4_convert(source, in_dir("made"), &wishes, &err));
}

/* ------------------------------------------------------------------ calibration */

static dsv4_engine *engine;

static void begin_calibrate(void)
{
    dsv4_err err;
    dsv4_options o = {.ctx = 64, .threads = 1, .exact = true};
    make_dir();
    OK(dsv4_open(&engine, GOLDEN "v4-tiny", &o, &err));
}

static void end_calibrate(void)
{
    dsv4_close(engine);
    engine = NULL;
    remove_dir();
}

static int run_calibrate(struct run *r, dsv4_err *err)
{
    dsv4_err later;
    dsv4_calibrate_options how = {.covariance = true};
    int32_t id[20];
    char *json = NULL;
    for (int i = 0; i < 20; i++)
        id[i] = 3 + i * i % 200;
    int rc = dsv4_calibrate(engine, id, 20, in_dir("x"), &how, &json, err);
    faults_relent();
    expect(r, rc == 0 || !json, "a report of what failed");
    dsv4_free(json);
    json = NULL;
    if (rc != 0)
        expect(r, dsv4_calibrate(engine, id, 20, in_dir("x"), &how, &json, &later) == 0,
               "dsv4_calibrate does not recover");
    dsv4_free(json);
    digest_file(r, in_dir("x"));
    unlink(in_dir("x"));
    return rc;
}

static const struct scenario all[] = {
    {"plan", MEMORY, run_plan, begin_native, remove_dir},
    {"convert", MEMORY | MAP | FILES, run_convert, begin_native, remove_dir},
    {"convert a mix", MEMORY, run_convert, begin_mix, remove_dir},
    {"verify", MEMORY | MAP | FILES, run_verify, begin_verify, remove_dir},
    {"calibrate", MEMORY | FILES, run_calibrate, begin_calibrate, end_calibrate},
};

int main(void)
{
    return run_scenarios("faults of conversions", all, sizeof all / sizeof *all, 20);
}

#endif
