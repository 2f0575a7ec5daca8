/*
 * Loops over many independent items on a few short-lived threads: scanning, hashing, and making
 * the procedural set while a data set is opened. Items are handed out in pieces in order; errors
 * are settled by the lowest item, so that the outcome does not depend on timing.
 */
#include "trainer/data/source.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#define MAX_THREADS 64

typedef struct parallel_job {
    int64_t count, grain;
    parallel_body body;
    void *ctx;
    const dataset_progress *progress;
    pthread_mutex_t mutex;
    int64_t next, done;
    int64_t failed; /* the lowest item that failed; count = none */
    status st;
    errbuf err;
} parallel_job;

static void note_failure(parallel_job *job, int64_t i, status st, const errbuf *err)
{
    pthread_mutex_lock(&job->mutex);
    if (i < job->failed) {
        job->failed = i;
        job->st = st;
        job->err = *err;
    }
    pthread_mutex_unlock(&job->mutex);
}

/* Takes pieces until there are none. Only the caller's own thread (`reports`) tells the progress,
 * so that the callback needs no locking. */
static void work(parallel_job *job, bool reports)
{
    int64_t first = 0, n = 0;
    for (;;) {
        pthread_mutex_lock(&job->mutex);
        job->done += n;
        int64_t done = job->done;
        first = job->next;
        n = job->count - first < job->grain ? job->count - first : job->grain;
        job->next += n;
        pthread_mutex_unlock(&job->mutex);
        if (reports && job->progress && job->progress->report)
            job->progress->report(job->progress->ctx, done, job->count);
        if (n == 0)
            return;
        for (int64_t i = first; i < first + n; i++) {
            errbuf err = {0};
            status st = job->body(job->ctx, i, &err);
            if (st != STATUS_OK)
                note_failure(job, i, st, &err);
        }
    }
}

static void *work_beside(void *job)
{
    work(job, false);
    return NULL;
}

static int thread_count(int asked, int64_t pieces)
{
    int n = asked;
    if (n <= 0) {
        cpu_set_t mask;
        n = sched_getaffinity(0, sizeof mask, &mask) == 0 ? CPU_COUNT(&mask) : 1;
    }
    if (n > MAX_THREADS)
        n = MAX_THREADS;
    return n > pieces ? (int)pieces : n;
}

status parallel_for(int64_t count, int64_t grain, int threads, parallel_body body, void *ctx,
                    const dataset_progress *progress, errbuf *err)
{
    if (count <= 0)
        return STATUS_OK;
    parallel_job job = {.count = count,
                        .grain = grain,
                        .body = body,
                        .ctx = ctx,
                        .progress = progress,
                        .mutex = PTHREAD_MUTEX_INITIALIZER,
                        .failed = count};
    pthread_t beside[MAX_THREADS];
    int n = thread_count(threads, (count + grain - 1) / grain), started = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals stay with the main thread */
    /* A thread that cannot be had is no failure: the others do its share. */
    while (started < n - 1 && pthread_create(&beside[started], NULL, work_beside, &job) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    work(&job, true);
    for (int t = 0; t < started; t++)
        pthread_join(beside[t], NULL);
    pthread_mutex_destroy(&job.mutex);
    if (job.st != STATUS_OK)
        return errbuf_set(err, job.st, "%s", job.err.text);
    return STATUS_OK;
}
