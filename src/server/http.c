/* Connections: libmicrohttpd driven from outside by one thread, which waits for sockets (one epoll
 * descriptor) and for others who have something to say (one eventfd).
 *
 * libmicrohttpd 0.9.75: suspending a connection loses wake-ups there, so nothing is suspended. A
 * reply that is not there yet is asked for again whenever this thread wakes up, which those who
 * write replies see to. A client that hangs up is seen by polling its socket, because the library
 * does not look while it waits for us. Limits of time are kept here too: the library's own start
 * anew with every byte. */
#include "http.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* NAP_MS: how long this thread does not want to hear of tokens after it has sent some. Where a step takes
 * less, what several of them say goes out together: on few cores every look at the sockets is taken
 * from the threads that compute, and nobody reads that fast. */
enum { HEADER_BYTES = 64 << 10, UNSENT_LIMIT = 8 << 20, NAP_MS = 5 };

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

/* ------------------------------------------------------------------ lists */

static void list_init(struct list *l)
{
    l->prev = l->next = l;
}

static void list_remove(struct list *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
}

static void list_append(struct list *head, struct list *l)
{
    l->prev = head->prev;
    l->next = head;
    head->prev->next = l;
    head->prev = l;
}

static void enter(struct http *h, struct connection *c, enum phase phase)
{
    list_remove(&c->link);
    h->in[c->phase]--;
    h->in[phase]++;
    c->phase = phase;
    c->since = c->moved = clock_seconds();
    c->seen = 0;
    list_append(&h->phase[phase], &c->link);
}

/* The library notices, and closes. */
static void hang_up(struct connection *c)
{
    if (c->x)
        c->x->gone = true;
    shutdown(c->fd, SHUT_RDWR);
}

/* The client has closed its side, and nothing of what it sent before is left to be read. */
static bool drained(const struct connection *c)
{
    char byte;
    return recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* Refuses a request before its body is read. If there is one the connection cannot be used again.
 * */
static enum MHD_Result refuse(struct MHD_Connection *con, struct exchange *x, struct failure *f,
                              bool body)
{
    exchange_fail(x, f);
    return http_answer(con, x, body);
}

/* ------------------------------------------------------------------ requests */

static enum MHD_Result first_call(struct http *h, struct MHD_Connection *con, struct exchange *x,
                                  const char *url, const char *method, const char *version)
{
    struct failure f;
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(con, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct connection *c = i ? i->socket_context : NULL;
    if (!c)
        return MHD_NO;
    c->x = x;
    enter(h, c, PHASE_BODY);
    getnameinfo(MHD_get_connection_info(con, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr,
                sizeof(struct sockaddr_storage), x->peer, sizeof x->peer, NULL, 0, NI_NUMERICHOST);
    if (http_judge(con, x, url, method, version, &f) != 0)
        return refuse(con, x, &f, !x->framed || http_has_body(con));
    metric_add(&h->server->metrics, COUNT_REQUESTS, 1);
    return MHD_YES;
}

static void take_body(struct exchange *x, const char *data, size_t len)
{
    dsv4_err err;
    struct failure f;
    size_t max = x->server->opt->max_body;
    http_again(x->server->http); /* more may have come already */
    if (x->status)
        return; /* refused already: the rest is thrown away */
    if (len > max - x->body.len) {
        fail_set(&f, 413, NULL, "the body has more than %zu bytes", max);
        exchange_fail(x, &f);
        x->body.len = 0;
    } else if (bytes_add(&x->body, data, len, &err) != 0) {
        fail_err(&f, &err);
        exchange_fail(x, &f);
    }
}

/* The request is there: hands it to the threads that decode. */
static void whole(struct http *h, struct MHD_Connection *con, struct exchange *x)
{
    struct failure f;
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(con, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    enter(h, i->socket_context, PHASE_REPLY);
    if (x->status)
        return;
    if (!x->route) { /* OPTIONS */
        struct out none = {0};
        exchange_reply(x, 204, NULL, &none);
    } else if (!work_submit(h->server->work, x)) {
        metric_add(&h->server->metrics, COUNT_REFUSED_BUSY, 1);
        fail_set(&f, 429, NULL, "too many requests are waiting to be read");
        f.retry = 1;
        exchange_fail(x, &f);
    }
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *con, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **state)
{
    struct http *h = arg;
    struct exchange *x = *state;
    if (!x)
        return MHD_NO;
    if (!x->method[0] && x->status == 0) {
        snprintf(x->method, sizeof x->method, "%s", "-");
        return first_call(h, con, x, url, method, version);
    }
    if (*upload_size > 0) {
        take_body(x, upload, *upload_size);
        *upload_size = 0;
        return MHD_YES;
    }
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(con, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct connection *c = i->socket_context;
    if (c->phase == PHASE_BODY)
        whole(h, con, x);
    if (x->gone)
        return MHD_NO;
    return http_answer(con, x, x->status == 413);
}

/* The first that is heard of a request. The result is the state that on_request gets; NULL, for want of
 * memory, closes the connection. */
static void *on_uri(void *arg, const char *uri, struct MHD_Connection *con)
{
    struct http *h = arg;
    struct exchange *x;
    dsv4_err err;
    (void)con;
    if (exchange_open(&x, h->server, &err) != 0)
        return NULL;
    if (!gate_uri(uri) && !(x->path = strdup(uri))) {
        exchange_unref(x);
        return NULL;
    }
    return x;
}

static void on_completed(void *arg, struct MHD_Connection *con, void **state,
                         enum MHD_RequestTerminationCode code)
{
    struct http *h = arg;
    struct exchange *x = *state;
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(con, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct connection *c = i ? i->socket_context : NULL;
    const struct server_options *opt = h->server->opt;
    if (!x)
        return;
    *state = NULL;
    if (code != MHD_REQUEST_TERMINATED_COMPLETED_OK) {
        x->gone = true;
        metric_add(&h->server->metrics, COUNT_CANCELLED, 1);
    }
    if (x->status >= 400)
        metric_add(&h->server->metrics, x->status < 500 ? COUNT_ERRORS_CLIENT : COUNT_ERRORS_SERVER,
                   1);
    if (opt->access)
        opt->access(opt->log_arg, x, clock_seconds() - x->begun);
    if (c) {
        c->x = NULL;
        enter(h, c, PHASE_HEADERS);
        if (drained(c)) /* the library was told of it together with the request, and forgot */
            hang_up(c);
    }
    exchange_unref(x);
}

/* ------------------------------------------------------------------ connections */

/* Room for the next: those that say nothing make place, oldest first. */
static void make_room(struct http *h)
{
    const struct list *silent = &h->phase[PHASE_HEADERS];
    while (atomic_load(&h->n) - h->in[PHASE_LEAVING] > h->limit && silent->next != silent) {
        struct connection *c = (struct connection *)silent->next;
        hang_up(c);
        enter(h, c, PHASE_LEAVING);
    }
}

static void on_connection(void *arg, struct MHD_Connection *con, void **state,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http *h = arg;
    struct connection *c = *state;
    dsv4_err err;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        if (mem_alloc(&c, 1, sizeof *c, "a connection", &err) != 0)
            return;
        *state = c;
        c->mhd = con;
        c->fd = MHD_get_connection_info(con, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        c->since = clock_seconds();
        list_append(&h->phase[PHASE_HEADERS], &c->link);
        h->in[PHASE_HEADERS]++;
        metric_add(&h->server->metrics, COUNT_CONNECTIONS, 1);
        atomic_fetch_add(&h->n, 1);
        make_room(h);
    } else if (c) {
        list_remove(&c->link);
        h->in[c->phase]--;
        atomic_fetch_sub(&h->n, 1);
        free(c);
        *state = NULL;
    }
}

static int add_poll(struct http *h, struct connection *c, size_t n)
{
    dsv4_err err;
    TRY(mem_grow(&h->poll, &h->poll_cap, n + 1, sizeof *h->poll, "sockets", &err));
    TRY(mem_grow(&h->polled, &h->polled_cap, n + 1, sizeof *h->polled, "sockets", &err));
    h->poll[n] = (struct pollfd){.fd = c->fd, .events = POLLRDHUP};
    h->polled[n] = c;
    return 0;
}

/* Clients that have hung up: of requests in work, and of those that will never be complete. A closed sending
 * side looks the same; it is served where that costs nothing. */
static void look_for_hang_ups(struct http *h)
{
    size_t n = 0;
    for (enum phase p = PHASE_BODY; p <= PHASE_REPLY; p++)
        for (struct list *l = h->phase[p].next; l != &h->phase[p]; l = l->next) {
            struct connection *c = (struct connection *)l;
            if (!c->x || c->x->complete)
                continue; /* the library is sending and sees it */
            if (add_poll(h, c, n) != 0)
                break;
            n++;
        }
    if (n == 0 || poll(h->poll, n, 0) <= 0)
        return;
    for (size_t i = 0; i < n; i++) {
        struct connection *c = h->polled[i];
        bool lost = h->poll[i].revents & (POLLHUP | POLLERR | POLLNVAL);
        bool closed = h->poll[i].revents & POLLRDHUP;
        if (lost || (closed && (c->phase == PHASE_REPLY ? c->x->generates : drained(c))))
            hang_up(c);
    }
}

static void too_old(struct http *h, enum phase phase, double limit, double now)
{
    for (struct list *l = h->phase[phase].next; l != &h->phase[phase]; l = l->next) {
        struct connection *c = (struct connection *)l;
        if (now - c->since < limit)
            break;
        hang_up(c);
    }
}

/* Pings for streams that are silent; an end for those that nobody reads. */
static void look_after_streams(struct http *h, double now)
{
    const struct server_options *opt = h->server->opt;
    for (struct list *l = h->phase[PHASE_REPLY].next; l != &h->phase[PHASE_REPLY]; l = l->next) {
        struct connection *c = (struct connection *)l;
        struct exchange *x = c->x;
        if (!x || !x->status) {
            c->moved = now;
            continue;
        }
        pthread_mutex_lock(&x->lock);
        size_t unsent = x->out.b.len - x->sent;
        if (x->sse && !x->complete && unsent == 0 && now - x->touched >= opt->ping) {
            out_text(&x->out, ": ping\n\n");
            x->touched = now;
        }
        pthread_mutex_unlock(&x->lock);
        if ((unsent == 0 && !x->complete) || c->seen != x->delivered) {
            c->seen = x->delivered;
            c->moved = now;
        }
        if (now - c->moved > opt->send_timeout || unsent > UNSENT_LIMIT)
            hang_up(c);
    }
}

/* ------------------------------------------------------------------ the loop */

void http_wake(struct http *h)
{
    uint64_t one = 1;
    int was = errno;
    if (h)
        (void)!write(h->wake, &one, sizeof one);
    errno = was;
}

/* One of the two sees the other's store: a nap that is over looks for what was said in it. */
void http_said(struct http *h)
{
    if (!h)
        return;
    atomic_store(&h->said, true);
    if (!atomic_load(&h->napping))
        http_wake(h);
}

void http_stop(struct http *h)
{
    atomic_fetch_add(&h->stops, 1);
    http_wake(h);
}

void http_again(struct http *h)
{
    h->progress = true;
}

static bool idle(const struct http *h)
{
    return h->phase[PHASE_BODY].next == &h->phase[PHASE_BODY] &&
           h->phase[PHASE_REPLY].next == &h->phase[PHASE_REPLY];
}

/* Whether the library left something in a socket: long headers are read in pieces, and epoll tells of them
 * once. While a reply is awaited it always says so; then the next step leads here soon enough. */
static bool unread(struct http *h)
{
    MHD_UNSIGNED_LONG_LONG ms;
    return h->in[PHASE_REPLY] == 0 && MHD_get_timeout(h->daemon, &ms) == MHD_YES && ms == 0;
}

/* Waits until a socket or another thread has something, `timeout` ms at most; a nap comes first where the last
 * turn was called for. Sets `woken`. */
static int wait_for_work(struct http *h, int timeout, dsv4_err *err)
{
    struct pollfd p[2] = {{.fd = h->epoll, .events = POLLIN}, {.fd = h->wake, .events = POLLIN}};
    uint64_t n;
    int ready = 0;
    if (h->woken) {
        ready = poll(p, 2, h->progress ? 0 : NAP_MS);
        atomic_store(&h->napping, false);
    }
    h->woken = false;
    if (ready == 0 && !atomic_load(&h->said))
        ready = poll(p, 2, h->progress ? 0 : timeout);
    if (ready < 0 && errno != EINTR)
        return err_errno(err, DSV4_FAILED, "sockets", "wait for");
    if (p[1].revents & POLLIN)
        (void)!read(h->wake, &n, sizeof n);
    h->woken = atomic_exchange(&h->said, false);
    atomic_store(&h->napping, h->woken);
    return 0;
}

/* Whether a whole reply is with the library: having sent the last of it, it wants to be run once more to close the
 * connection, and says nothing of it. */
static bool finishing(const struct http *h)
{
    const struct list *replies = &h->phase[PHASE_REPLY];
    for (const struct list *l = replies->next; l != replies; l = l->next) {
        const struct exchange *x = ((const struct connection *)l)->x;
        if (x && x->complete)
            return true;
    }
    return false;
}

/* Waits, unless the last turn left something to do, and works. */
static int turn(struct http *h, int timeout, dsv4_err *err)
{
    bool once_more = true;
    TRY(wait_for_work(h, timeout, err));
    look_for_hang_ups(h);
    for (int i = 0; i < 5; i++) {
        h->progress = false;
        if (MHD_run(h->daemon) != MHD_YES)
            return err_set(err, DSV4_FAILED, "the HTTP library failed");
        if (!h->progress && !(once_more && finishing(h)))
            break;
        once_more = h->progress;
    }
    h->progress = h->progress || unread(h);
    return 0;
}

int http_run(struct http *h, dsv4_err *err)
{
    const struct server_options *opt = h->server->opt;
    double looked = 0;
    while (atomic_load(&h->stops) < 2) {
        if (atomic_load(&h->stops) == 1 && !h->quiet) {
            MHD_quiesce_daemon(h->daemon);
            close(h->listener);
            h->listener = -1;
            h->quiet = true;
            sched_drain(h->server->sched);
        }
        if (h->quiet && idle(h) && sched_drain(h->server->sched))
            break;
        TRY(turn(h, h->quiet ? 50 : 250, err));
        double now = clock_seconds();
        if (now - looked >= 0.2) {
            looked = now;
            look_after_streams(h, now);
            too_old(h, PHASE_HEADERS, opt->idle_timeout, now);
            too_old(h, PHASE_BODY, opt->body_timeout, now);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------ opening */

static int listen_on(const struct server_options *opt, int *fd, uint16_t *port, dsv4_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    char service[8];
    snprintf(service, sizeof service, "%u", opt->port);
    const char *host = opt->host;
    char bare[256];
    size_t n = strlen(host);
    if (host[0] == '[' && n < sizeof bare && host[n - 1] == ']') {
        memcpy(bare, host + 1, n - 2);
        bare[n - 2] = 0;
        host = bare;
    }
    int e = getaddrinfo(host, service, &hints, &list);
    if (e != 0)
        return err_set(err, DSV4_USAGE, "--host: %s: %s", opt->host, gai_strerror(e));
    *fd = -1;
    for (struct addrinfo *a = list; a && *fd < 0; a = a->ai_next) {
        *fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (*fd < 0)
            continue;
        setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
        setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); /* tokens at once */
        /* what a client does not read is to be seen here, not to vanish in the kernel's memory */
        setsockopt(*fd, SOL_SOCKET, SO_SNDBUF, &(int){128 << 10}, sizeof(int));
        if (bind(*fd, a->ai_addr, a->ai_addrlen) != 0 || listen(*fd, 1024) != 0) {
            int was = errno;
            close(*fd);
            errno = was;
            *fd = -1;
        }
    }
    freeaddrinfo(list);
    char shown[300];
    snprintf(shown, sizeof shown, "%s port %u", opt->host, opt->port);
    if (*fd < 0)
        return err_errno(err, DSV4_FAILED, shown, "listen");
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    if (getsockname(*fd, (struct sockaddr *)&a, &len) != 0)
        return err_errno(err, DSV4_FAILED, shown, "look at the socket");
    const void *v = &a;
    *port = ntohs(a.ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)v)->sin6_port
                                          : ((const struct sockaddr_in *)v)->sin_port);
    return 0;
}

static void no_message(void *arg, const char *format, va_list a)
{
    (void)arg;
    (void)format;
    (void)a;
}

static size_t connections_possible(size_t wanted)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return wanted;
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    getrlimit(RLIMIT_NOFILE, &r);
    size_t room = r.rlim_cur > 128 ? (size_t)r.rlim_cur - 128 : 1;
    return wanted < room ? wanted : room;
}

int http_open(struct http **out, struct server *s, dsv4_err *err)
{
    const struct server_options *opt = s->opt;
    struct http *h;
    *out = NULL;
    TRY(mem_alloc(&h, 1, sizeof *h, "the HTTP server", err));
    h->server = s;
    h->epoll = h->listener = -1;
    for (size_t i = 0; i < N_PHASES; i++)
        list_init(&h->phase[i]);
    h->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = h->wake < 0 ? err_errno(err, DSV4_FAILED, "eventfd", "open") : 0;
    if (rc == 0)
        rc = listen_on(opt, &h->listener, &h->port, err);
    if (rc != 0) {
        http_close(h);
        return rc;
    }
    h->limit = connections_possible(opt->max_connections);
    unsigned flags = MHD_USE_EPOLL | MHD_USE_ERROR_LOG | (opt->tls_cert ? MHD_USE_TLS : 0u);
    struct MHD_OptionItem tls[] = {{MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)(uintptr_t)opt->tls_cert},
                                   {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)(uintptr_t)opt->tls_key},
                                   {MHD_OPTION_END, 0, NULL}};
    struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};
    h->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, h, MHD_OPTION_LISTEN_SOCKET, h->listener,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)(h->limit + 64), MHD_OPTION_CONNECTION_TIMEOUT, 0u,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_BYTES, MHD_OPTION_STRICT_FOR_CLIENT, 0,
        MHD_OPTION_URI_LOG_CALLBACK, on_uri, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_EXTERNAL_LOGGER, no_message,
        NULL, MHD_OPTION_ARRAY, opt->tls_cert ? tls : none, MHD_OPTION_END);
    const union MHD_DaemonInfo *info =
        h->daemon ? MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
    if (!info) {
        http_close(h);
        return err_set(err, DSV4_FAILED, "the HTTP library does not start%s",
                       opt->tls_cert ? " (is the certificate and its key PEM text?)" : "");
    }
    h->epoll = info->epoll_fd;
    *out = h;
    return 0;
}

uint16_t http_port(const struct http *h)
{
    return h->port;
}

size_t http_connections(const struct http *h)
{
    return h->n;
}

void http_close(struct http *h)
{
    if (!h)
        return;
    for (size_t i = 0; i < N_PHASES; i++)
        for (struct list *l = h->phase[i].next; l != &h->phase[i]; l = l->next)
            if (((struct connection *)l)->x)
                ((struct connection *)l)->x->gone = true;
    if (h->daemon) {
        MHD_stop_daemon(h->daemon);
        if (!h->quiet)
            h->listener = -1; /* closed with it */
    }
    if (h->listener >= 0)
        close(h->listener);
    if (h->wake >= 0)
        close(h->wake);
    free(h->poll);
    free(h->polled);
    free(h);
}
