/* The state of a run: what is finished, in a file that is valid after every line. */
#include "eval.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { STATE_LIMIT = 1 << 30 };

/* What differs between two tasks, for a message. */
static int other_task(const char *path, const json_t *was, const json_t *is, dsv4_err *err)
{
    const char *key;
    json_t *now;
    json_object_foreach((json_t *)(uintptr_t)is, key, now)
    {
        json_t *then = json_object_get(was, key);
        if (then && json_equal(then, now))
            continue;
        char *a = then ? json_text(then, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
        char *b = json_text(now, JSON_COMPACT | JSON_ENCODE_ANY);
        int rc = err_set(err, DSV4_REFUSED,
                         "%s: the state of another run: \"%s\" was %.200s and is %.200s", path, key,
                         a ? a : "not there", b ? b : "?");
        free(a);
        free(b);
        return rc;
    }
    return err_set(err, DSV4_REFUSED, "%s: the state of another run", path);
}

/* Lines of the file into units; *good is where the last whole line ends. */
static int take_lines(struct eval_state *s, const char *text, size_t len, const json_t *task,
                      size_t *good, dsv4_err *err)
{
    *good = 0;
    for (size_t at = 0, line = 1; at < len; line++) {
        const char *end = memchr(text + at, '\n', len - at);
        if (!end && line > 1)
            return 0; /* what was being written when the run was killed */
        size_t n = end ? (size_t)(end - text) - at : len - at;
        json_error_t je;
        json_t *j = json_loadb(text + at, n, JSON_REJECT_DUPLICATES, &je);
        int rc = 0;
        if (!j)
            rc = err_set(err, DSV4_REFUSED, "%s, line %zu: %s; a state file of dsv4-eval is wanted",
                         s->path, line, je.text);
        else if (line == 1 && !json_equal(j, task))
            rc = json_object_get(j, "dsv4-eval")
                     ? other_task(s->path, j, task, err)
                     : err_set(err, DSV4_REFUSED, "%s: not a state file of dsv4-eval", s->path);
        else if (line > 1 && !json_is_object(j))
            rc = err_set(err, DSV4_REFUSED, "%s, line %zu: not a unit of work", s->path, line);
        else if (line > 1 && json_array_append(s->units, j) != 0)
            rc = json_made(NULL, err);
        json_decref(j);
        TRY(rc);
        if (!end)
            return err_set(err, DSV4_REFUSED, "%s: the first line has no end", s->path);
        at += n + 1;
        *good = at;
    }
    return 0;
}

static int put_line(struct eval_state *s, const json_t *j, dsv4_err *err)
{
    char *text = json_text(j, JSON_COMPACT);
    if (!text)
        return json_made(NULL, err);
    size_t n = strlen(text);
    text[n] = '\n'; /* in one write, so that a kill leaves a whole line or none on most systems */
    int rc = file_write_all(s->fd, s->path, text, n + 1, err);
    free(text);
    return rc;
}

static int open_file(struct eval_state *s, const char *path, const json_t *task, dsv4_err *err)
{
    char *text;
    size_t len, good = 0;
    s->path = strdup(path);
    if (!s->path)
        return err_memory(err, strlen(path) + 1, "a path");
    s->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (s->fd < 0)
        return err_errno(err, DSV4_FAILED, path, "open");
    if (flock(s->fd, LOCK_EX | LOCK_NB) != 0)
        return err_set(err, DSV4_FAILED, "%s: another run is using it", path);
    TRY(file_read_fd(s->fd, path, STATE_LIMIT, &text, &len, err));
    int rc = take_lines(s, text, len, task, &good, err);
    free(text);
    TRY(rc);
    if (ftruncate(s->fd, (off_t)good) != 0 || lseek(s->fd, 0, SEEK_END) < 0)
        return err_errno(err, DSV4_FAILED, path, "cut");
    return good == 0 ? put_line(s, task, err) : 0;
}

int eval_state_open(struct eval_state *s, const char *path, const json_t *task, dsv4_err *err)
{
    *s = (struct eval_state){.units = json_array(), .fd = -1};
    int rc = json_made(s->units, err);
    if (rc == 0 && path && !*path)
        rc = err_set(err, DSV4_USAGE, "--state: the name of the file is empty");
    if (rc == 0 && path)
        rc = open_file(s, path, task, err);
    if (rc != 0)
        eval_state_close(s);
    return rc;
}

int eval_state_add(struct eval_state *s, json_t *unit, dsv4_err *err)
{
    TRY(json_made(unit, err));
    int rc = s->fd >= 0 ? put_line(s, unit, err) : 0;
    if (rc == 0 && json_array_append(s->units, unit) != 0)
        rc = json_made(NULL, err);
    json_decref(unit);
    return rc;
}

void eval_state_close(struct eval_state *s)
{
    json_decref(s->units);
    free(s->path);
    if (s->fd >= 0)
        close(s->fd);
    *s = (struct eval_state){.fd = -1};
}
