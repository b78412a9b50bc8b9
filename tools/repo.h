/* repo.h - a folder as the beginning of a prompt (docs/repository.md): which files, in which order, how
 * many fit. The chat page does the same in JavaScript (src/server/page/repo.js); tests/test_repo.sh and
 * tests/test_page.sh compare the two byte by byte. */
#ifndef DSV4_REPO_H
#define DSV4_REPO_H

#include "tools.h"

/* ------------------------------------------------------------------ repo_ignore.c */

/* A line of a .gitignore. */
struct ignore_rule {
    char *pattern; /* without "!" and the slashes at its ends */
    size_t len;
    size_t
        base; /* bytes of the directory its file lies in ("src/": 4): paths are matched behind them */
    bool negated;  /* "!": takes back what earlier rules ignore */
    bool dir_only; /* a slash at its end */
    bool whole;    /* another slash: matched with the path, otherwise with its last name */
};

/* The rules in force in one directory: those of its parents first. */
struct ignore {
    struct ignore_rule *rule;
    size_t n, cap;
};

/* Adds the lines of a .gitignore, with git's reading of blanks, CRs, comments and backslashes. */
int ignore_add(struct ignore *g, const char *text, size_t len, size_t base, dsv4_err *err);
/* Forgets all rules but the first n; ignore_cut(g, 0) and free(g->rule) release everything. */
void ignore_cut(struct ignore *g, size_t n);
/* Whether the last rule that matches ignores. `path` is relative to the root and lies below the
 * directories of all rules; its parents are not ignored. */
bool ignored(const struct ignore *g, const char *path, bool dir);

/* ------------------------------------------------------------------ repo_walk.c */

enum {
    REPO_FILE_BYTES = 4 << 20, /* larger files stay out */
    REPO_DEPTH = 100,          /* directories inside each other */
};

/* ORDER repo_why */
enum repo_state {
    REPO_IN,
    REPO_OVER, /* the budget of tokens */
    REPO_LARGE,
    REPO_BINARY,
    REPO_NOT_UTF8,
    REPO_NAME,
    REPO_LINK,
    REPO_SPECIAL,
    REPO_UNREADABLE,
    REPO_DEEP,
    N_REPO_STATES
};

struct repo_file {
    char *path; /* below the folder; of directories that could not be entered with a slash behind */
    uint64_t bytes;
    enum repo_state state;
    size_t tokens;       /* of the part of the prompt; REPO_IN */
    struct bytes prompt; /* "File: PATH\n", the text, an empty line; REPO_IN */
};

struct repo {
    const char *dir; /* as it was given */
    int fd;
    struct repo_file *file; /* what no rule ignores: by path, once repo_choose() is done */
    size_t n, cap;
    size_t n_ignored;      /* files and whole directories */
    size_t tokens, budget; /* of the files that are in */
    size_t n_in;
};

/* Lists the folder; reads nothing but .gitignore files. Never follows a link. Refused: a folder or a
 * .gitignore that cannot be read (what it would hide must not be sent). repo_close() in any case. */
int repo_scan(struct repo *r, const char *dir, dsv4_err *err);
void repo_close(struct repo *r);

/* ------------------------------------------------------------------ repo.c */

/* Takes files, the smallest first, until one would make more than `budget` tokens: that one and all
 * that are larger stay out. What turns out to be no text stays out, too. */
int repo_choose(struct repo *r, struct program *p, const dsv4_tokenizer *t, size_t budget,
                dsv4_err *err);
/* What a part of a prompt has to be. */
bool repo_is_utf8(const char *text, size_t len);
/* The files that are in, in the order of their paths, so that another question about the same folder
 * begins with the same tokens. */
int repo_prompt(const struct repo *r, struct bytes *to, dsv4_err *err);
/* What is in with its tokens (the `rows` largest of it), what stayed out and why. */
void repo_report(const struct repo *r, struct stream *s, size_t rows);
json_t *repo_json(const struct repo *r);

/* --repo, when it is given: tokens that the files may have in a context of `ctx`. */
size_t repo_budget(const struct program *p, size_t ctx);
/* Chooses, tells (unless --quiet) and puts the files in front of the message. */
int repo_in_front(struct repo *r, struct program *p, const dsv4_engine *e, struct bytes *message,
                  dsv4_err *err);

#endif
