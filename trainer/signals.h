/*
 * Stop requests by signal, without handlers and without globals: SIGINT, SIGTERM and SIGUSR1 are
 * blocked in every thread and read from a descriptor between steps.
 *
 * The first one asks for an orderly end (checkpoint, result). After it SIGINT and SIGTERM are let
 * through again, so that a second Ctrl-C ends the process at once.
 */
#ifndef RINGMASTER_TRAINER_SIGNALS_H
#define RINGMASTER_TRAINER_SIGNALS_H

#include "protocol/status.h"

typedef struct signals {
    int fd;    /* signalfd, -1 = not open */
    int first; /* the signal that asked to stop, 0 = none */
} signals;

/* Before any thread is created: they inherit the mask. */
CHECK_RESULT status signals_open(signals *s, errbuf *err);
void signals_close(signals *s); /* restores the default dispositions; NULL-safe */
/* The signal that has arrived since the last call, 0 = none. Never blocks. */
int signals_poll(signals *s);
/* Exit status for a stop by `signal`: 130 for SIGINT, 143 otherwise. */
status signals_status(int signal);

#endif
