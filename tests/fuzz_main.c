/* Replays a fuzz target without a fuzzer: tests/replay_NAME runs every file of tests/corpus/NAME (or the
 * files and folders given), and every file cut short, through LLVMFuzzerTestOneInput. Any compiler
 * will do, so the corpus is part of `make check`. */
#include <dirent.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the signal handler shows. */
static char current[PATH_MAX + 64];

static void died(int sig)
{
    static const char head[] = "died on ";
    ssize_t ignored = write(STDERR_FILENO, head, sizeof head - 1);
    ignored += write(STDERR_FILENO, current, strlen(current));
    ignored += write(STDERR_FILENO, "\n", 1);
    (void)ignored;
    signal(sig, SIG_DFL);
    raise(sig);
}

/* The target gets a block of exactly `size` bytes, so that reading past it is noticed. */
static int run(const char *path, const uint8_t *data, size_t size)
{
    snprintf(current, sizeof current, "%s, the first %zu bytes", path, size);
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        return -1;
    if (size)
        memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    return 0;
}

static int run_file(const char *path)
{
    enum { CUTS = 16 };
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) != 0 || st.st_size < 0) {
        perror(path);
        if (f)
            fclose(f);
        return -1;
    }
    size_t size = (size_t)st.st_size;
    uint8_t *data = malloc(size ? size : 1);
    int rc = data && fread(data, 1, size, f) == size ? 0 : -1;
    fclose(f);
    for (size_t i = 0; rc == 0 && i <= CUTS; i++)
        rc = run(path, data, size / CUTS * i + size % CUTS * i / CUTS);
    free(data);
    return rc;
}

/* Counts the files run in *n. Corpus folders are flat. */
static int run_path(const char *path, size_t *n)
{
    DIR *d = opendir(path);
    if (!d) {
        ++*n;
        return run_file(path);
    }
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(d));) {
        char file[PATH_MAX];
        if (e->d_name[0] == '.')
            continue;
        int len = snprintf(file, sizeof file, "%s/%s", path, e->d_name);
        rc = len > 0 && (size_t)len < sizeof file ? run_file(file) : -1;
        ++*n;
    }
    closedir(d);
    return rc;
}

int main(int argc, char **argv)
{
    static const char name[] = "/replay_";
    const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        signal(signals[i], died);

    size_t n = 0;
    int rc = 0;
    const char *self = argc > 0 ? strstr(argv[0], name) : NULL;
    if (argc == 1 && self) {
        char corpus[PATH_MAX];
        snprintf(corpus, sizeof corpus, "tests/corpus/%s", self + sizeof name - 1);
        rc = run_path(corpus, &n);
    }
    for (int i = 1; rc == 0 && i < argc; i++)
        rc = run_path(argv[i], &n);
    if (rc != 0 || n == 0) {
        fprintf(stderr, "no corpus, or a file of it cannot be read\n");
        return 1;
    }
    printf("%zu passed, 0 failed\n", n);
    return 0;
}
