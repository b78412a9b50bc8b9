/* Checksums of finished shards: they tell whether a copy is whole, not who made it. */
#include "convert.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef HAVE_XXHASH
#include <xxhash.h>
#endif

enum { STEP = 4 << 20, SUM_CAP = 40 };

#ifdef HAVE_XXHASH
static int sum_of(char **out, int fd, const char *path, uint8_t *buffer, XXH3_state_t *s,
                  dsv4_progress_fn progress, void *arg, dsv4_err *err)
{
    uint64_t at = 0;
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_errno(err, DSV4_FAILED, path, "look at");
    XXH3_128bits_reset(s);
    for (ssize_t n; (n = pread(fd, buffer, STEP, (off_t)at)) != 0; at += (uint64_t)n) {
        if (n < 0 && errno == EINTR) {
            n = 0;
            continue;
        }
        if (n < 0)
            return err_errno(err, DSV4_FAILED, path, "read");
        XXH3_128bits_update(s, buffer, (size_t)n);
        if (progress && progress(arg, at + (uint64_t)n, (uint64_t)st.st_size))
            return err_set(err, DSV4_INTERRUPTED, "interrupted while reading %s", path);
    }
    XXH128_hash_t h = XXH3_128bits_digest(s);
    snprintf(*out, SUM_CAP, "xxh128:%016llx%016llx", (unsigned long long)h.high64,
             (unsigned long long)h.low64);
    return 0;
}
#endif

int file_sum(char **out, const char *path, dsv4_progress_fn progress, void *arg, dsv4_err *err)
{
    TRY(mem_alloc(out, SUM_CAP, 1, "a checksum", err));
    int rc = 0;
#ifdef HAVE_XXHASH
    uint8_t *buffer = NULL;
    XXH3_state_t *s = XXH3_createState();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    rc = s ? mem_alloc(&buffer, STEP, 1, "a checksum", err) : err_memory(err, 0, "a checksum");
    if (rc == 0 && fd < 0)
        rc = err_errno(err, DSV4_FAILED, path, "open");
    if (rc == 0)
        rc = sum_of(out, fd, path, buffer, s, progress, arg, err);
    if (fd >= 0)
        close(fd);
    XXH3_freeState(s);
    free(buffer);
#else
    (void)path;
    (void)progress;
    (void)arg;
#endif
    if (rc != 0) {
        free(*out);
        *out = NULL; /* of output.sum, which is released as a whole */
    }
    return rc;
}
