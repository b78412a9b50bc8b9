/* http.h - what the files around libmicrohttpd share: http.c (requests and the loop), http_connections.c (phases and
 * limits of connections), http_judge.c (what is said of a request before its body is there), http_reply.c (replies).
 * HTTP's thread alone calls these. */
#ifndef DSV4_SERVER_HTTP_H
#define DSV4_SERVER_HTTP_H

#include <microhttpd.h>

#include <poll.h>

#include "server.h"

/* PHASE_LEAVING: had to make place, and is still to be closed by the library. */
enum phase { PHASE_HEADERS, PHASE_BODY, PHASE_REPLY, PHASE_LEAVING, N_PHASES };

struct list {
    struct list *prev, *next;
};

struct connection {
    struct list link; /* first: in h->phase[...], oldest first */
    int fd;
    enum phase phase;
    double since; /* in this phase */
    struct exchange *x;
    struct MHD_Connection *mhd;
    uint64_t seen; /* bytes delivered at `moved` */
    double moved;
};

struct http {
    struct server *server;
    struct MHD_Daemon *daemon;
    int epoll, wake, listener;
    uint16_t port;
    struct list phase[N_PHASES];
    size_t in[N_PHASES]; /* connections there */
    atomic_size_t n;
    size_t limit;
    bool progress;             /* a callback did something in the last run */
    bool woken;                /* the last turn was called for: another one comes within NAP_MS */
    atomic_bool napping, said; /* that is promised; what http_said() left for then */
    atomic_int stops;
    bool quiet; /* no new connections */
    struct pollfd *poll;
    struct connection **polled;
    size_t poll_cap, polled_cap;
};

/* A header's value, "" when it is not there. */
const char *http_header(struct MHD_Connection *con, const char *name);

/* Whether the request may go on to its body: fills in route, client, scope, origin; -1 and *f otherwise. */
int http_judge(struct MHD_Connection *con, struct exchange *x, const char *url, const char *method,
               const char *version, struct failure *f);
bool http_has_body(struct MHD_Connection *con);

/* Hands the reply to the library if it is known; MHD_YES also when it is not yet. */
enum MHD_Result http_answer(struct MHD_Connection *con, struct exchange *x, bool close_after);

/* The library has more to do than it says: it is to be run again at once. */
void http_again(struct http *h);

/* ------------------------------------------------------------------ http_connections.c */

void connections_init(struct http *h);
/* The library's notice of connections that begin and end. */
void connections_notify(void *arg, struct MHD_Connection *con, void **state,
                        enum MHD_ConnectionNotificationCode code);
void connection_enter(struct http *h, struct connection *c, enum phase phase);
/* The library notices, and closes. */
void connection_hang_up(struct connection *c);
/* The client has closed its side, and nothing of what it sent before is left to be read. */
bool connection_drained(const struct connection *c);
/* Hangs up on clients that have: of requests in work, and of those that will never be complete. A closed sending
 * side looks the same; it is served where that costs nothing. */
void connections_lost(struct http *h);
/* Hangs up on those that take too long; pings streams that are silent. */
void connections_look_after(struct http *h, double now);
/* No request is in work. */
bool connections_idle(const struct http *h);
/* Whether a whole reply is with the library: having sent the last of it, it wants to be run once more to close the
 * connection, and says nothing of it. */
bool connections_finishing(const struct http *h);
/* Nobody waits for any reply any more. */
void connections_gone(struct http *h);

#endif
