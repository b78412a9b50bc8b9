/* A handler may call little: open, read, write, _exit. So the map of the process is read by hand. */
#include "bus_error.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_CAP = 4352 }; /* a path of PATH_MAX and what stands before it */

/* What the handler says first; a handler reaches nothing but globals. */
static char prefix[64];

/* The number in hexadecimal digits at *p, which moves behind it. */
static uintptr_t hexadecimal(const char **p)
{
    uintptr_t v = 0;
    for (;; ++*p)
        if (**p >= '0' && **p <= '9')
            v = v * 16 + (uintptr_t)(**p - '0');
        else if (**p >= 'a' && **p <= 'f')
            v = v * 16 + (uintptr_t)(**p - 'a' + 10);
        else
            return v;
}

/* "FIRST-END rights offset device inode   /path": the path, if the range holds `at` and a file is there. */
static const char *path_of(const char *line, uintptr_t at)
{
    const char *p = line;
    uintptr_t first = hexadecimal(&p), end = *p == '-' ? (p++, hexadecimal(&p)) : 0;
    return at >= first && at < end ? strchr(p, '/') : NULL;
}

/* A line without its end; false: no more, or one longer than the buffer. */
static bool read_line(int fd, char line[LINE_CAP])
{
    for (size_t n = 0; n < LINE_CAP && read(fd, line + n, 1) == 1; n++)
        if (line[n] == '\n') {
            line[n] = 0;
            return true;
        }
    return false;
}

static void say(const char *text)
{
    (void)!write(STDERR_FILENO, text, strlen(text));
}

static void on_bus_error(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)context;
    char line[LINE_CAP];
    const char *path = NULL;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && !path && read_line(fd, line))
        path = path_of(line, (uintptr_t)info->si_addr);
    say(prefix);
    say(path ? path : "a file of the model");
    say(": shrank or could not be read while in use\n");
    _exit(3);
}

void bus_error_catch(const char *program)
{
    struct sigaction a = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    snprintf(prefix, sizeof prefix, "%s: ", program);
    sigemptyset(&a.sa_mask);
    sigaction(SIGBUS, &a, NULL);
}
