/* Connections from the first byte to the last: in which phase each of them is, since when, and who has to go. The
 * library's own limits of time start anew with every byte, and it does not look at a socket while it waits for us, so
 * both are done here. */
#include "http.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { UNSENT_LIMIT = 8 << 20 };

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

void connections_init(struct http *h)
{
    for (size_t i = 0; i < N_PHASES; i++)
        list_init(&h->phase[i]);
}

void connections_gone(struct http *h)
{
    for (size_t i = 0; i < N_PHASES; i++)
        for (struct list *l = h->phase[i].next; l != &h->phase[i]; l = l->next)
            if (((struct connection *)l)->x)
                ((struct connection *)l)->x->gone = true;
}

void connection_enter(struct http *h, struct connection *c, enum phase phase)
{
    list_remove(&c->link);
    h->in[c->phase]--;
    h->in[phase]++;
    c->phase = phase;
    c->since = c->moved = clock_seconds();
    c->seen = 0;
    list_append(&h->phase[phase], &c->link);
}

void connection_hang_up(struct connection *c)
{
    if (c->x)
        c->x->gone = true;
    shutdown(c->fd, SHUT_RDWR);
}

bool connection_drained(const struct connection *c)
{
    char byte;
    return recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* Room for the next: those that say nothing make place, oldest first. */
static void make_room(struct http *h)
{
    const struct list *silent = &h->phase[PHASE_HEADERS];
    while (atomic_load(&h->n) - h->in[PHASE_LEAVING] > h->limit && silent->next != silent) {
        struct connection *c = (struct connection *)silent->next;
        connection_hang_up(c);
        connection_enter(h, c, PHASE_LEAVING);
    }
}

void connections_notify(void *arg, struct MHD_Connection *con, void **state,
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

void connections_lost(struct http *h)
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
        if (lost || (closed && (c->phase == PHASE_REPLY ? c->x->generates : connection_drained(c))))
            connection_hang_up(c);
    }
}

static void too_old(struct http *h, enum phase phase, double limit, double now)
{
    for (struct list *l = h->phase[phase].next; l != &h->phase[phase]; l = l->next) {
        struct connection *c = (struct connection *)l;
        if (now - c->since < limit)
            break;
        connection_hang_up(c);
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
            connection_hang_up(c);
    }
}

void connections_look_after(struct http *h, double now)
{
    const struct server_options *opt = h->server->opt;
    look_after_streams(h, now);
    too_old(h, PHASE_HEADERS, opt->idle_timeout, now);
    too_old(h, PHASE_BODY, opt->body_timeout, now);
}

bool connections_idle(const struct http *h)
{
    return h->phase[PHASE_BODY].next == &h->phase[PHASE_BODY] &&
           h->phase[PHASE_REPLY].next == &h->phase[PHASE_REPLY];
}

bool connections_finishing(const struct http *h)
{
    const struct list *replies = &h->phase[PHASE_REPLY];
    for (const struct list *l = replies->next; l != replies; l = l->next) {
        const struct exchange *x = ((const struct connection *)l)->x;
        if (x && x->complete)
            return true;
    }
    return false;
}
