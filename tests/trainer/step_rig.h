/*
 * A training step to be tried out: a session on procedural images, with a network of a few thousand
 * numbers.
 */
#ifndef RINGMASTER_TESTS_TRAINER_STEP_RIG_H
#define RINGMASTER_TESTS_TRAINER_STEP_RIG_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "trainer/session.h"

#define OK(call)                                          \
    do {                                                  \
        errbuf oops = {0};                                \
        status st_ = (call);                              \
        ck_assert_msg(st_ == STATUS_OK, "%s", oops.text); \
    } while (0)

typedef struct rig {
    comm *comm;
    progress silent;
    session s;
    stepper_state host;
    int64_t params, running;
} rig;

/* `sets`: NULL-ended. */
static inline rig *open_rig(const char *backend_name, int threads, const char *const sets[])
{
    static const char *const base[] = {"model.width=4", "model.classes=4",     "rpg.size=300",
                                       "data.size=8",   "data.train_count=96", "data.eval_count=8",
                                       "train.batch=8", "train.lr=0.05"};
    char name[64];
    spec given;
    rig *r = calloc(1, sizeof *r);
    ck_assert_ptr_nonnull(r);
    progress_init(&r->silent, true, "test");
    OK(spec_init(&given, &oops));
    for (size_t i = 0; i < sizeof base / sizeof *base; i++)
        OK(spec_set(&given, base[i], &oops));
    snprintf(name, sizeof name, "backend.name=%s", backend_name);
    OK(spec_set(&given, name, &oops));
    for (int i = 0; sets[i]; i++)
        OK(spec_set(&given, sets[i], &oops));
    OK(comm_open(&r->comm, &oops));
    OK(session_begin(&r->s, &given, threads, r->comm, &r->silent, &oops));
    OK(session_open_data(&r->s, true, &oops));
    OK(session_open_net(&r->s, &oops));
    OK(session_open_compute(&r->s, NULL, true, &oops));
    spec_fini(&given);
    r->params = r->s.net->param_elements;
    r->running = r->s.net->running_elements;
    r->host.params = calloc((size_t)r->params, sizeof(float));
    r->host.momentum = calloc((size_t)r->params, sizeof(float));
    r->host.running = calloc((size_t)r->running, sizeof(float));
    net_init_params(r->s.net, 1, r->host.params, r->host.running);
    OK(stepper_upload(r->s.step, &r->host, &oops));
    OK(feed_start(r->s.train, 0, 0, &oops));
    return r;
}
#define OPEN(backend_name, threads, ...) \
    open_rig(backend_name, threads, (const char *const[]){__VA_ARGS__, NULL})

static inline void close_rig(rig *r)
{
    session_close(&r->s);
    comm_close(&r->comm);
    free(r->host.params);
    free(r->host.momentum);
    free(r->host.running);
    free(r);
}

static inline void step(rig *r, double lr)
{
    bool stop = false;
    OK(stepper_ready(r->s.step, &stop, &oops));
    ck_assert(!stop);
    OK(stepper_run(r->s.step, r->s.train, lr, false, &oops));
}

#endif
