/* fake_server.h - a whole server over the false engine, with the embedded model's tokenizer: requests are
 * decoded, rendered, encoded, their grammars compiled, and answered with tokens that depend on those before. */
#ifndef TESTS_FAKE_SERVER_H
#define TESTS_FAKE_SERVER_H

#include "fake_engine.h"

struct fake_server {
    struct fake_engine fake;
    struct server_options opt;
    struct server server;
};

/* `http`: it listens, on a port of its own, and has threads that decode; otherwise handlers are called
 * directly, and opt.sched.stepped is the caller's to set after fake_server_options(). The tokenizer must
 * outlive it. After a failure fake_server_close() is due all the same. */
void fake_server_options(struct fake_server *f, const dsv4_tokenizer *tok);
int fake_server_open(struct fake_server *f, bool http, dsv4_err *err);
void fake_server_close(struct fake_server *f);

#endif
