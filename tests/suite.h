/* suite.h - what every C test program shares: a runner for one Check suite that ends with the line
 * tests/run.sh adds up, and a few helpers. */
#ifndef TESTS_SUITE_H
#define TESTS_SUITE_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where the golden data lies (tests run from the top of the tree). */
#define GOLDEN "tests/golden/"

/* Fails the test with the library's message. */
#define OK(call)                                                                  \
    do {                                                                          \
        int ok_rc_ = (call);                                                      \
        ck_assert_msg(ok_rc_ == 0, "%s: status %d: %s", #call, ok_rc_, err.text); \
    } while (0)

/* Runs the suite (CK_FORK=no in a debugger), prints "N passed, N failed", returns the exit code. */
static inline int run_suite(Suite *s)
{
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int run = srunner_ntests_run(r), failed = srunner_ntests_failed(r);
    srunner_free(r);
    printf("%d passed, %d failed\n", run - failed, failed);
    return failed == 0 && run > 0 ? 0 : 1;
}

#endif
