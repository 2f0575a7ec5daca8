/*
 * Stop requests by signal, without handlers and without globals: SIGINT, SIGTERM and SIGUSR1 are
 * blocked in every thread and read from a descriptor between steps.
 *
 * One that asks for an orderly end (checkpoint, result) is followed by signals_let_through, so that
 * a second Ctrl-C ends the process at once; one that asks for a checkpoint alone is not.
 */
#ifndef RINGMASTER_TRAINER_SIGNALS_H
#define RINGMASTER_TRAINER_SIGNALS_H

#include "protocol/status.h"

typedef struct signals {
    int fd; /* signalfd, -1 = not open */
} signals;

/* Before any thread is created: they inherit the mask. */
CHECK_RESULT status signals_open(signals *s, errbuf *err);
/* Forgets those that have arrived. What is held stays held: a signal that comes when the work is
 * over must not change how the process ends. NULL-safe. */
void signals_close(signals *s);
/* The signal that has arrived since the last call, 0 = none. Never blocks. */
int signals_poll(signals *s);
/* From now on SIGINT and SIGTERM end the process; of those that have come already, none does. */
void signals_let_through(signals *s);
/* Holds them again, for this thread and those that it starts. */
void signals_hold(signals *s);
/* Exit status for a stop by `signal`: 130 for SIGINT, 143 otherwise. */
status signals_status(int signal);

#endif
