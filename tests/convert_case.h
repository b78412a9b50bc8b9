/* convert_case.h - conversions in a directory of the test's own, and what comes of them. */
#ifndef TESTS_CONVERT_CASE_H
#define TESTS_CONVERT_CASE_H

#include "src/dsv4.h"
#include "suite.h"

#define NANO "models/nano"

enum { N_IDS = 24 };

/* A fixture: an empty directory before every test, gone after it. */
void make_tmp(void);
void remove_tmp(void);
/* TMP/NAME; valid until the eighth call after. */
const char *in_tmp(const char *name);

void copy_dir(const char *from, const char *to);
/* A file DIR/NAME as text, malloc'ed; and the other way round. */
char *slurp(const char *dir, const char *name, size_t *len);
void spill(const char *dir, const char *name, const char *text, size_t len);
/* Every file of a is in b with the same bytes, and b has no others. */
void same_files(const char *a, const char *b);

/* The token of row i of logits_of(). */
int32_t case_token(int i, size_t vocab);
/* Logits [N_IDS][vocab] of a model directory for some tokens, malloc'ed; two rows of three are asked for. */
float *logits_of(const char *dir, bool exact, bool paged, size_t *vocab);

/* A progress function that lets a conversion live for so many (int *arg) reports. */
bool stop_after(void *arg, uint64_t done, uint64_t total);
/* The conversion fails with that status and a message that has `text` in it. */
void refuse(const char *src, const char *dst, const dsv4_convert_options *o, int status,
            const char *text);

#endif
