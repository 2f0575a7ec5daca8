/* Stop requests by signal; see signals.h. */
#include "trainer/signals.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static void stop_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGUSR1);
}

status signals_open(signals *s, errbuf *err)
{
    sigset_t set;
    stop_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    /* Writing past a file-size limit or into a closed pipe is an error to report, not a death. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "cannot open a signal descriptor: %s",
                          strerror(errno));
    *s = (signals){.fd = fd};
    return STATUS_OK;
}

void signals_close(signals *s)
{
    if (!s || s->fd < 0)
        return;
    while (signals_poll(s))
        continue;
    close(s->fd);
    s->fd = -1;
}

int signals_poll(signals *s)
{
    struct signalfd_siginfo info;
    if (s->fd < 0 || read(s->fd, &info, sizeof info) != (ssize_t)sizeof info)
        return 0;
    return (int)info.ssi_signo;
}

void signals_let_through(signals *s)
{
    sigset_t hard;
    if (s->fd < 0)
        return;
    while (signals_poll(s)) /* INT and TERM at once are one request */
        continue;
    sigemptyset(&hard);
    sigaddset(&hard, SIGINT);
    sigaddset(&hard, SIGTERM);
    pthread_sigmask(SIG_UNBLOCK, &hard, NULL);
}

void signals_hold(signals *s)
{
    sigset_t set;
    if (s->fd < 0)
        return;
    stop_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

status signals_status(int signal)
{
    return signal == SIGINT ? STATUS_INTERRUPTED : STATUS_TERMINATED;
}
