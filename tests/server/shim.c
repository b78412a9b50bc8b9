/* Preloaded into a server under test. The wall clock jumps by a day to and fro with every look at it, and a
 * connection to anybody is refused and told: a server has no reason to open one. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static atomic_int looks;

static long jump(void)
{
    return (atomic_fetch_add(&looks, 1) % 3 - 1) * 86400L;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    long rc = syscall(SYS_clock_gettime, id, t);
    if (rc == 0 && id == CLOCK_REALTIME)
        t->tv_sec += jump();
    return (int)rc;
}

time_t time(time_t *out)
{
    struct timespec t;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &t);
    t.tv_sec += jump();
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}

int connect(int fd, const struct sockaddr *to, socklen_t len)
{
    static const char said[] = "CONNECT\n";
    (void)fd, (void)to, (void)len;
    (void)!write(2, said, sizeof said - 1);
    errno = ECONNREFUSED;
    return -1;
}
