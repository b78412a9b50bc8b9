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

static bool is_empty(const char *path)
{
    DIR *d = opendir(path);
    bool empty = d != NULL;
    for (const struct dirent *x; empty && (x = readdir(d));)
        empty = strcmp(x->d_name, ".") == 0 || strcmp(x->d_name, "..") == 0;
    if (d)
        closedir(d);
    return empty;
}

int destination_check(const char *path, const char *source, bool file, dsv4_err *err)
{
    struct stat a, b;
    if (!*path)
        return err_set(err, DSV4_USAGE, "the name of the destination is empty");
    if (!is_name(path))
        return err_set(err, DSV4_USAGE, "%s: expected the name of a new %s", path,
                       file ? "file" : "directory");
    if (lstat(path, &a) != 0)
        return errno == ENOENT ? 0 : err_errno(err, DSV4_FAILED, path, "look at");
    if (stat(path, &a) == 0 && stat(source, &b) == 0 && a.st_dev == b.st_dev &&
        a.st_ino == b.st_ino)
        return err_set(err, DSV4_USAGE, "%s: source and destination are the same directory", path);
    if (file)
        return err_set(err, DSV4_USAGE, "%s exists", path);
    if (lstat(path, &a) == 0 && S_ISLNK(a.st_mode))
        return err_set(err, DSV4_USAGE, "%s is a symbolic link; name the place that it leads to",
                       path);
    if (!S_ISDIR(a.st_mode))
        return err_set(err, DSV4_USAGE, "%s exists and is not a directory", path);
    if (!is_empty(path))
        return err_set(err, DSV4_USAGE, "%s exists and is not empty", path);
    if (is_mount_point(path, &a))
        return err_set(err, DSV4_USAGE,
                       "%s is where a file system is mounted; name a new directory in it", path);
    return 0;
}
