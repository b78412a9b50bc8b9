/* HTTP: libmicrohttpd driven from outside by one thread, which waits for sockets (one epoll
 * descriptor) and for others who have something to say (one eventfd).
 *
 * libmicrohttpd 0.9.75: suspending a connection loses wake-ups there, so nothing is suspended. A
 * reply that is not there yet is asked for again whenever this thread wakes up, which those who
 * write replies see to. Who hangs up, and who takes too long: http_connections.c. */
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
#include <sys/socket.h>
#include <unistd.h>

/* NAP_MS: how long this thread does not want to hear of tokens after it has sent some. Where a step takes
 * less, what several of them say goes out together: on few cores every look at the sockets is taken
 * from the threads that compute, and nobody reads that fast. */
enum { HEADER_BYTES = 64 << 10, NAP_MS = 5 };

/* ------------------------------------------------------------------ requests */

/* Refuses a request before its body is read. If there is one the connection cannot be used again.
 * */
static enum MHD_Result refuse(struct MHD_Connection *con, struct exchange *x, struct failure *f,
                              bool body)
{
    exchange_fail(x, f);
    return http_answer(con, x, body);
}

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
    connection_enter(h, c, PHASE_BODY);
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
    connection_enter(h, i->socket_context, PHASE_REPLY);
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
        connection_enter(h, c, PHASE_HEADERS);
        if (connection_drained(
                c)) /* the library was told of it together with the request, and forgot */
            connection_hang_up(c);
    }
    exchange_unref(x);
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

/* Waits, unless the last turn left something to do, and works. */
static int turn(struct http *h, int timeout, dsv4_err *err)
{
    bool once_more = true;
    TRY(wait_for_work(h, timeout, err));
    connections_lost(h);
    for (int i = 0; i < 5; i++) {
        h->progress = false;
        if (MHD_run(h->daemon) != MHD_YES)
            return err_set(err, DSV4_FAILED, "the HTTP library failed");
        if (!h->progress && !(once_more && connections_finishing(h)))
            break;
        once_more = h->progress;
    }
    h->progress = h->progress || unread(h);
    return 0;
}

int http_run(struct http *h, dsv4_err *err)
{
    double looked = 0;
    while (atomic_load(&h->stops) < 2) {
        if (atomic_load(&h->stops) == 1 && !h->quiet) {
            MHD_quiesce_daemon(h->daemon);
            close(h->listener);
            h->listener = -1;
            h->quiet = true;
            sched_drain(h->server->sched);
        }
        if (h->quiet && connections_idle(h) && sched_drain(h->server->sched))
            break;
        TRY(turn(h, h->quiet ? 50 : 250, err));
        double now = clock_seconds();
        if (now - looked >= 0.2) {
            looked = now;
            connections_look_after(h, now);
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
    size_t all = descriptors_raise(), room = all > 128 ? all - 128 : 1;
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
    connections_init(h);
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
        MHD_OPTION_NOTIFY_CONNECTION, connections_notify, h, MHD_OPTION_EXTERNAL_LOGGER, no_message,
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
    connections_gone(h);
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
