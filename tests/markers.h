/* markers.h - every text that a control span of a prompt may hold, for the tests of chat encoding. */
#ifndef TESTS_MARKERS_H
#define TESTS_MARKERS_H

#include "src/text/chat_inner.h"

static const char *const known[] = {
    M_BOS,
    M_EOS,
    M_USER,
    M_ASSISTANT,
    M_SYSTEM,
    M_REMINDER,
    M_THINK,
    M_END_THINK,
    M_DSML,
    M_IMAGE,
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜read_url｜>",
};

#endif
