/* Files: mapping, whole reads, atomic writes. Every name that comes from a model directory is
 * opened beneath that directory. */
#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Hugging Face's cache makes every file of a snapshot a link to ../../blobs/HASH. That shape is
 * let out of the directory, no other. */
static bool is_cache_link(int dirfd, const char *name)
{
    char target[256];
    ssize_t n = readlinkat(dirfd, name, target, sizeof target - 1);
    static const char prefix[] = "../../blobs/";
    if (n <= (ssize_t)sizeof prefix - 1 || n >= (ssize_t)sizeof target - 1)
        return false;
    target[n] = 0;
    if (strncmp(target, prefix, sizeof prefix - 1) != 0)
        return false;
    return strspn(target + sizeof prefix - 1, "0123456789abcdef") ==
           (size_t)n - (sizeof prefix - 1);
}

static bool plain_name(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > 255 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (size_t i = 0; i < n; i++)
        if (name[i] == '/' || (unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    return true;
}

int file_map_open(struct file_map *m, int dirfd, const char *name, bool beneath, const char *shown,
                  dsv4_err *err)
{
    *m = (struct file_map){0};
    if (beneath && !plain_name(name))
        return err_set(err, DSV4_REFUSED, "%s: not the name of a file in the model's directory",
                       shown);
    int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    if (beneath && !is_cache_link(dirfd, name))
        flags |= O_NOFOLLOW;
    int fd;
    do {
        fd = openat(dirfd, name, flags);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        if (errno == ELOOP && beneath)
            return err_set(err, DSV4_REFUSED,
                           "%s: a symbolic link; files of a model have to lie in its directory",
                           shown);
        return err_errno(err, DSV4_REFUSED, shown, "open");
    }
    int rc = 0;
    struct stat st;
    void *p = NULL;
    if (fstat(fd, &st) != 0)
        rc = err_errno(err, DSV4_REFUSED, shown, "stat");
    else if (!S_ISREG(st.st_mode))
        rc = err_set(err, DSV4_REFUSED, "%s: not a regular file", shown);
    else if (st.st_size <= 0)
        rc = err_set(err, DSV4_REFUSED, "%s: the file is empty", shown);
    else if ((uintmax_t)st.st_size > SIZE_MAX)
        rc = err_set(err, DSV4_REFUSED, "%s: %jd bytes do not fit the address space", shown,
                     (intmax_t)st.st_size);
    else if ((p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        rc = err_errno(err, DSV4_REFUSED, shown, "map");
    if (rc != 0) {
        close(fd);
        return rc;
    }
    m->data = p;
    m->len = (size_t)st.st_size;
    m->fd = fd;
    if (!(m->path = strdup(shown))) {
        file_map_close(m);
        return err_memory(err, strlen(shown) + 1, "a path");
    }
    return 0;
}

void file_map_close(struct file_map *m)
{
    if (m->data) {
        munmap((void *)(uintptr_t)m->data, m->len);
        close(m->fd);
    }
    free(m->path);
    *m = (struct file_map){0};
}

int file_map_read(const struct file_map *m, size_t at, void *out, size_t n, dsv4_err *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(m->fd, (char *)out + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_errno(err, DSV4_FAILED, m->path, "read");
        if (got == 0)
            return err_set(err, DSV4_FAILED,
                           "%s: shrank while it was read; it had %zu bytes and ends before byte "
                           "%zu now",
                           m->path, m->len, at + done + 1);
        done += (size_t)got;
    }
    return 0;
}

size_t descriptors_raise(void)
{
    struct rlimit r = {.rlim_cur = 1024};
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
        getrlimit(RLIMIT_NOFILE, &r);
    }
    return r.rlim_cur < SIZE_MAX ? (size_t)r.rlim_cur : SIZE_MAX;
}

int file_read_fd(int fd, const char *shown, size_t limit, char **data, size_t *len, dsv4_err *err)
{
    struct bytes b = {0};
    struct stat st;
    int rc = 0;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode))
        rc = err_set(err, DSV4_REFUSED, "%s: a directory, not a file", shown);
    else if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 &&
             (uintmax_t)st.st_size <= limit)
        rc = mem_grow(&b.data, &b.cap, (size_t)st.st_size + 2, 1, "a file's content", err);
    while (rc == 0) {
        if ((rc = mem_grow(&b.data, &b.cap, b.len + 4096, 1, "a file's content", err)) != 0)
            break;
        ssize_t n = read(fd, b.data + b.len, b.cap - b.len - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = err_errno(err, DSV4_REFUSED, shown, "read");
        if (n <= 0)
            break;
        b.len += (size_t)n;
        if (b.len > limit)
            rc = err_set(err, DSV4_REFUSED, "%s: more than %zu bytes", shown, limit);
    }
    if (rc == 0)
        rc = bytes_add(&b, "", 0, err);
    if (rc != 0) {
        free(b.data);
        return rc;
    }
    *data = b.data;
    *len = b.len;
    return 0;
}

int file_read(const char *path, size_t limit, char **data, size_t *len, dsv4_err *err)
{
    if (strcmp(path, "-") == 0)
        return file_read_fd(STDIN_FILENO, "standard input", limit, data, len, err);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return err_errno(err, DSV4_REFUSED, path, "open");
    int rc = file_read_fd(fd, path, limit, data, len, err);
    close(fd);
    return rc;
}

int file_write_all(int fd, const char *shown, const void *data, size_t len, dsv4_err *err)
{
    const char *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, DSV4_FAILED, shown, "write");
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

void file_sync_directory_of(const char *path)
{
    char dir[4096];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 1;
    if (n >= sizeof dir)
        return;
    memcpy(dir, slash ? path : ".", n);
    dir[n] = 0;
    int fd = open(n ? dir : "/", O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

int file_replaceable(const char *path, dsv4_err *err)
{
    struct stat st;
    if (!*path)
        return err_set(err, DSV4_USAGE, "the name of the file to write is empty");
    if (stat(path, &st) != 0 || S_ISREG(st.st_mode))
        return 0;
    return err_set(err, DSV4_FAILED, "%s: %s, not a file", path,
                   S_ISDIR(st.st_mode) ? "a directory" : "a device or the like");
}

int file_aside_open(struct file_aside *f, const char *path, dsv4_err *err)
{
    struct bytes aside = {0};
    *f = (struct file_aside){.fd = -1};
    TRY(file_replaceable(path, err));
    int rc = bytes_printf(&aside, err, "%s.XXXXXX", path);
    if (rc == 0 && !(f->path = strdup(path)))
        rc = err_memory(err, strlen(path) + 1, "a path");
    if (rc == 0 && (f->fd = mkstemp(aside.data)) < 0)
        rc = err_errno(err, DSV4_FAILED, path, "create a file beside it");
    if (rc != 0) {
        free(aside.data);
        free(f->path);
        return rc;
    }
    f->aside = aside.data;
    return 0;
}

int file_aside_close(struct file_aside *f, int rc, dsv4_err *err)
{
    if (rc == 0 && fsync(f->fd) != 0)
        rc = err_errno(err, DSV4_FAILED, f->path, "sync");
    if (close(f->fd) != 0 && rc == 0)
        rc = err_errno(err, DSV4_FAILED, f->path, "close");
    if (rc == 0 && rename(f->aside, f->path) != 0)
        rc = err_errno(err, DSV4_FAILED, f->path, "rename into place");
    if (rc != 0)
        unlink(f->aside);
    else
        file_sync_directory_of(f->path);
    free(f->aside);
    free(f->path);
    return rc;
}

int file_write_atomic(const char *path, const void *data, size_t len, dsv4_err *err)
{
    struct file_aside f;
    TRY(file_aside_open(&f, path, err));
    return file_aside_close(&f, file_write_all(f.fd, path, data, len, err), err);
}

double clock_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
