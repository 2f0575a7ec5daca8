/* A wait for other ranks that has a deadline; see comm_wait.h. */
#include "kernels/comm_wait.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PEER_TIMEOUT    300.0
#define PUBLISH_PERIOD  1.0 /* seconds */
#define PERIODS_TO_HEAR 3   /* in which every rank that waits has been heard */

status comm_wait_timeout(double *ret_seconds, errbuf *err)
{
    const char *text = getenv("RINGMASTER_PEER_TIMEOUT");
    double seconds = PEER_TIMEOUT;
    if (text) {
        char *end = NULL;
        seconds = strtod(text, &end);
        if (end == text || *end || !(seconds > 0 && seconds < 1e9))
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "RINGMASTER_PEER_TIMEOUT=%s: a number of seconds is expected", text);
    }
    *ret_seconds = seconds;
    return STATUS_OK;
}

double comm_wait_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void comm_wait_nap(int *tries)
{
    const int doubled = *tries < 6 ? (*tries)++ : 6;
    nanosleep(&(struct timespec){0, doubled == 6 ? 1000000 : 20000 << doubled}, NULL);
}

void comm_wait_begin(comm_wait *w, comm *c, double timeout, uint64_t step)
{
    *w = (comm_wait){.c = c, .timeout = timeout, .step = step, .begin = comm_wait_seconds()};
}

/* Between two words of this rank. */
static double period_of(const comm_wait *w)
{
    return w->timeout / 8 < PUBLISH_PERIOD ? w->timeout / 8 : PUBLISH_PERIOD;
}

status comm_wait_farewell(const comm_peer *p, errbuf *err)
{
    return errbuf_set(err, p->farewell->code, "rank %d: %s", p->rank, p->farewell->text);
}

/* " after step 41"; nothing before the first one. */
static const char *after(uint64_t step, char *text, size_t size)
{
    text[0] = '\0';
    if (step)
        snprintf(text, size, " after step %llu", (unsigned long long)step);
    return text;
}

/* The time is over. */
static status lost_peer(comm_wait *w, double waited, const char *what, errbuf *err)
{
    char own[40], theirs[40];
    comm_peer p;
    w->c->ops->silent(w->c, w->timeout / 2, &p);
    w->c->lost = true;
    after(w->step, own, sizeof own);
    if (p.rank < 0)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "%s: waited for %.3g s%s, and no other rank is silent or behind: this "
                          "rank's device or the network is stuck",
                          what, waited, own);
    if (p.silence >= w->timeout / 2)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "%s: rank %d is lost: not heard of while this rank waited for %.3g s%s "
                          "(RINGMASTER_PEER_TIMEOUT)",
                          what, p.rank, waited, own);
    return errbuf_set(err, STATUS_ENVIRONMENT,
                      "%s: rank %d stays behind%s, this rank waited for %.3g s%s "
                      "(RINGMASTER_PEER_TIMEOUT)",
                      what, p.rank, after(p.step, theirs, sizeof theirs), waited, own);
}

status comm_wait_look(comm_wait *w, const char *what, errbuf *err)
{
    const double now = comm_wait_seconds(), period = period_of(w), waited = now - w->begin;
    if (waited < period)
        return STATUS_OK;
    if (now - w->said >= period) {
        comm_peer p;
        w->c->ops->publish(w->c, w->step);
        w->said = now;
        w->c->ops->silent(w->c, w->timeout, &p);
        if (p.farewell) {
            w->told = true;
            return comm_wait_farewell(&p, err);
        }
    }
    return waited < w->timeout ? STATUS_OK : lost_peer(w, waited, what, err);
}

void comm_wait_listen(comm_wait *w, comm_peer *ret)
{
    const double period = period_of(w), enough = PERIODS_TO_HEAR * period;
    const double begin = comm_wait_seconds();
    double now = begin, said = 0;
    int tries = 0;
    while (now - begin < enough + period / 2) {
        if (now - said >= period) {
            w->c->ops->publish(w->c, w->step);
            said = now;
        }
        w->c->ops->silent(w->c, enough, ret);
        if (ret->farewell)
            return;
        comm_wait_nap(&tries);
        now = comm_wait_seconds();
    }
    if (ret->silence < enough)
        ret->rank = -1;
}
