/* Whether the finished work can be given its name: better asked before hours of it than afterwards. */
#include "convert.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A directory can be renamed to PATH; "." and "/" are no names. */
static bool is_name(const char *path)
{
    const char *slash = strrchr(path, '/'), *last = slash ? slash + 1 : path;
    return *last && strcmp(last, ".") != 0 && strcmp(last, "..") != 0;
}

static bool is_mount_point(const char *path, const struct stat *st)
{
    struct bytes up = {0};
    struct stat parent;
    dsv4_err ignored;
    bool is = bytes_printf(&up, &ignored, "%s/..", path) == 0 && stat(up.data, &parent) == 0 &&
              parent.st_dev != st->st_dev;
    free(up.data);
    return is;
}

static int check_empty(const char *path, dsv4_err *err)
{
    bool empty = true;
    DIR *d = opendir(path);
    if (!d)
        return err_errno(err, DSV4_FAILED, path, "look at");
    for (const struct dirent *x; empty && (x = readdir(d));)
        empty = strcmp(x->d_name, ".") == 0 || strcmp(x->d_name, "..") == 0;
    closedir(d);
    return empty ? 0 : err_set(err, DSV4_USAGE, "%s exists and is not empty", path);
}

static bool is_same(const char *path, const char *source)
{
    struct stat a, b;
    return stat(path, &a) == 0 && stat(source, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

int destination_check(const char *path, const char *source, bool file, dsv4_err *err)
{
    struct stat st;
    if (!*path)
        return err_set(err, DSV4_USAGE, "the name of the destination is empty");
    if (!is_name(path))
        return err_set(err, DSV4_USAGE, "%s: expected the name of a new %s", path,
                       file ? "file" : "directory");
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : err_errno(err, DSV4_FAILED, path, "look at");
    if (is_same(path, source))
        return err_set(err, DSV4_USAGE, "%s: source and destination are the same directory", path);
    if (file)
        return err_set(err, DSV4_USAGE, "%s exists", path);
    if (S_ISLNK(st.st_mode))
        return err_set(err, DSV4_USAGE, "%s is a symbolic link; name the place that it leads to",
                       path);
    if (!S_ISDIR(st.st_mode))
        return err_set(err, DSV4_USAGE, "%s exists and is not a directory", path);
    TRY(check_empty(path, err));
    if (is_mount_point(path, &st))
        return err_set(err, DSV4_USAGE,
                       "%s is where a file system is mounted; name a new directory in it", path);
    return 0;
}
