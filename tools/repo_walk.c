/* Lists the files of a folder that no .gitignore hides. Follows no link, opens nothing but directories
 * and .gitignore files, and keeps what it leaves out, with the reason. */
#include "repo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { IGNORE_BYTES = 1 << 20 };

/* As if they stood in front of the folder's own .gitignore, which can take them back. */
static const char built_in_rules[] = ".hg/\n.svn/\nnode_modules/\n__pycache__/\n.venv/\n";

struct walk {
    struct repo *repo;
    struct ignore ignore;
    struct bytes path; /* of the directory with a slash behind, or "" */
};

/* A header line of the prompt has to hold it: UTF-8 without control characters. U+FFFD is what a browser
 * makes of broken names, and a backslash it takes for a slash. */
static bool is_line(const char *name)
{
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f || *c == '\\')
            return false;
    return repo_is_utf8(name, strlen(name)) && !strstr(name, "\xef\xbf\xbd");
}

static int add(struct walk *w, const char *slash, uint64_t bytes, enum repo_state state,
               dsv4_err *err)
{
    struct repo *r = w->repo;
    struct bytes path = {0};
    TRY(mem_grow(&r->file, &r->cap, r->n + 1, sizeof *r->file, "a list of files", err));
    TRY(bytes_printf(&path, err, "%s%s", w->path.data, slash));
    r->file[r->n++] = (struct repo_file){.path = path.data, .bytes = bytes, .state = state};
    return 0;
}

/* The rules of the .gitignore in the directory; git follows no link there either. */
static int read_rules(struct walk *w, int fd, dsv4_err *err)
{
    struct stat st;
    char *text;
    size_t len;
    if (fstatat(fd, ".gitignore", &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
        return 0;
    struct bytes shown = {0};
    int rc = bytes_printf(&shown, err, "%s/%s.gitignore", w->repo->dir, w->path.data);
    int file = -1;
    if (rc == 0 && (file = openat(fd, ".gitignore", O_RDONLY | O_CLOEXEC | O_NOFOLLOW)) < 0)
        rc = err_errno(err, DSV4_REFUSED, shown.data, "open");
    if (rc == 0)
        rc = file_read_fd(file, shown.data, IGNORE_BYTES, &text, &len, err);
    if (rc == 0) {
        rc = ignore_add(&w->ignore, text, len, w->path.len, err);
        free(text);
    }
    if (file >= 0)
        close(file);
    free(shown.data);
    return rc;
}

static int walk(struct walk *w, int fd, size_t depth, dsv4_err *err);

static int visit_dir(struct walk *w, int parent, const char *name, size_t depth, dsv4_err *err)
{
    if (depth == REPO_DEPTH)
        return add(w, "/", 0, REPO_DEEP, err);
    int fd = openat(parent, name, O_RDONLY | O_CLOEXEC | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return add(w, "/", 0, REPO_UNREADABLE, err);
    TRY(bytes_text(&w->path, "/", err));
    return walk(w, fd, depth + 1, err);
}

/* w->path ends with the name. */
static int visit(struct walk *w, int parent, const char *name, size_t depth, dsv4_err *err)
{
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : add(w, "", 0, REPO_UNREADABLE, err);
    bool dir = S_ISDIR(st.st_mode);
    if (ignored(&w->ignore, w->path.data, dir)) {
        w->repo->n_ignored++;
        return 0;
    }
    if (S_ISLNK(st.st_mode))
        return add(w, "", 0, REPO_LINK, err);
    if (!dir && !S_ISREG(st.st_mode))
        return add(w, "", 0, REPO_SPECIAL, err);
    if (!is_line(name))
        return add(w, dir ? "/" : "", 0, REPO_NAME, err);
    if (dir)
        return visit_dir(w, parent, name, depth, err);
    uint64_t bytes = (uint64_t)st.st_size;
    return add(w, "", bytes, bytes > REPO_FILE_BYTES ? REPO_LARGE : REPO_IN, err);
}

/* Owns fd. */
static int walk(struct walk *w, int fd, size_t depth, dsv4_err *err)
{
    size_t n_rules = w->ignore.n, base = w->path.len;
    int rc = read_rules(w, fd, err);
    DIR *d = rc == 0 ? fdopendir(fd) : NULL;
    if (!d) {
        close(fd);
        if (rc == 0)
            rc = err_memory(err, 0, "a directory");
    }
    while (rc == 0) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e && errno != 0)
            rc = add(w, "", 0, REPO_UNREADABLE, err);
        if (!e)
            break;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            strcmp(e->d_name, ".git") == 0)
            continue;
        if (interrupted())
            rc = err_set(err, DSV4_INTERRUPTED, "interrupted");
        if (rc == 0)
            rc = bytes_text(&w->path, e->d_name, err);
        if (rc == 0)
            rc = visit(w, fd, e->d_name, depth, err);
        w->path.len = base;
        if (w->path.data)
            w->path.data[base] = 0;
    }
    if (d)
        closedir(d);
    ignore_cut(&w->ignore, n_rules);
    return rc;
}

int repo_scan(struct repo *r, const char *dir, dsv4_err *err)
{
    *r = (struct repo){.dir = dir, .fd = -1};
    if (!*dir)
        return err_set(err, DSV4_USAGE, "--repo: the name of the directory is empty");
    int flags = O_RDONLY | O_CLOEXEC | O_DIRECTORY | O_NONBLOCK;
    if ((r->fd = open(dir, flags)) < 0)
        return err_errno(err, DSV4_REFUSED, dir, "open as a directory");
    struct walk w = {.repo = r};
    int rc = bytes_text(&w.path, "", err);
    if (rc == 0)
        rc = ignore_add(&w.ignore, built_in_rules, sizeof built_in_rules - 1, 0, err);
    int fd = -1;
    if (rc == 0 && (fd = openat(r->fd, ".", flags)) < 0)
        rc = err_errno(err, DSV4_REFUSED, dir, "open as a directory");
    if (rc == 0)
        rc = walk(&w, fd, 0, err);
    ignore_cut(&w.ignore, 0);
    free(w.ignore.rule);
    free(w.path.data);
    return rc;
}

void repo_close(struct repo *r)
{
    for (size_t i = 0; i < r->n; i++) {
        free(r->file[i].path);
        free(r->file[i].prompt.data);
    }
    free(r->file);
    if (r->dir && r->fd >= 0)
        close(r->fd);
    *r = (struct repo){.fd = -1};
}
