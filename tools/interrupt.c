/* Ctrl-C: one press asks, and whoever computes looks for it; presses that nobody answers end the process. */
#include "tools.h"

#include <signal.h>
#include <unistd.h>

/* What a signal handler can reach. */
static volatile sig_atomic_t presses, patience_left = 2;

static void on_interrupt(int sig)
{
    (void)sig;
    presses = 1;
    patience_left--;
    if (patience_left <= 0)
        _exit(130);
}

bool interrupted(void)
{
    return presses != 0;
}

void interrupted_reset(int patience)
{
    presses = 0;
    patience_left = patience;
}

void interrupt_catch(void)
{
    struct sigaction a = {.sa_handler = on_interrupt}, old; /* no SA_RESTART: reading ends */
    sigemptyset(&a.sa_mask);
    if (sigaction(SIGINT, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
        sigaction(SIGINT, &a, NULL); /* a script's background job stays deaf */
}
