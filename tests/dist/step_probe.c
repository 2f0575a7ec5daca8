/*
 * A rank of test_equality.c: ten training steps of SPEC.json, without a run folder. Rank 0 writes
 * the first step's gradient as raw floats and the ten mean losses as text.
 * usage: step_probe SPEC.json GRADIENT LOSSES [KEY=VALUE...]
 */
#include <stdio.h>
#include <stdlib.h>

#include "trainer/schedule.h"
#include "trainer/session.h"

#define STEPS 10

static status write_floats(session *s, const float *device, const char *path, errbuf *err)
{
    size_t count = (size_t)s->net->param_elements;
    float *host = malloc(count * sizeof *host);
    FILE *f = fopen(path, "wb");
    status st = STATUS_ENVIRONMENT;
    if (host && f) {
        st = s->be->ops->download(s->be, host, device, count * sizeof *host);
        if (st == STATUS_OK && fwrite(host, sizeof *host, count, f) != count)
            st = STATUS_ENVIRONMENT;
    }
    if (f && fclose(f) != 0)
        st = STATUS_ENVIRONMENT;
    free(host);
    return st == STATUS_OK ? st : errbuf_set(err, st, "cannot write %s", path);
}

static status initialise(session *s, errbuf *err)
{
    stepper_state host = {
        .params = calloc((size_t)s->net->param_elements + 1, sizeof(float)),
        .running = calloc((size_t)s->net->running_elements + 1, sizeof(float)),
    };
    status st = STATUS_OUT_OF_MEMORY;
    if (host.params && host.running) {
        net_init_params(s->net, s->spec.train.seed, host.params, host.running);
        st = stepper_upload(s->step, &host, err);
    }
    free(host.params);
    free(host.running);
    return st;
}

static status train(session *s, const char *const paths[2], FILE *losses, errbuf *err)
{
    TRY(comm_agree(s->comm, initialise(s, err), err));
    TRY(feed_start(s->train, 0, 0, err));
    for (int64_t step = 0; step < STEPS; step++) {
        bool stop = false;
        double loss = 0;
        sample_sums sums = {0};
        if (step > 0 && step % s->steps_per_epoch == 0)
            TRY(feed_start(s->train, step / s->steps_per_epoch, 0, err));
        double lr = schedule_lr(&s->spec, step, s->steps_per_epoch);
        TRY(stepper_ready(s->step, &stop, err));
        TRY(stepper_run(s->step, s->train, lr, false, err));
        if (step == 0 && s->comm->rank == 0)
            TRY(write_floats(s, stepper_gradient(s->step), paths[0], err));
        TRY(stepper_collect(s->step, &sums, &loss, err));
        if (losses)
            fprintf(losses, "%.17g\n", loss);
    }
    return STATUS_OK;
}

static status probe(comm *c, int argc, char **argv, errbuf *err)
{
    spec given;
    session s = {0};
    progress silent;
    progress_init(&silent, true, "probe");
    TRY(spec_init(&given, err));
    status st = spec_load(&given, argv[1], err);
    for (int i = 4; i < argc && st == STATUS_OK; i++)
        st = spec_set(&given, argv[i], err);
    FILE *losses = c->rank == 0 ? fopen(argv[3], "w") : NULL;
    if (st == STATUS_OK)
        st = session_begin(&s, &given, (int)given.resources.threads, c, &silent, err);
    if (st == STATUS_OK)
        st = session_open_data(&s, true, err);
    if (st == STATUS_OK)
        st = session_open_net(&s, err);
    if (st == STATUS_OK)
        st = session_open_compute(&s, NULL, true, err);
    if (st == STATUS_OK)
        st = train(&s, (const char *const[]){argv[2], argv[3]}, losses, err);
    session_close(&s);
    spec_fini(&given);
    if (losses && fclose(losses) != 0 && st == STATUS_OK)
        st = errbuf_set(err, STATUS_ENVIRONMENT, "cannot write %s", argv[3]);
    return st;
}

int main(int argc, char **argv)
{
    comm *c = NULL;
    errbuf err = {0};
    if (argc < 4)
        return STATUS_BAD_INPUT;
    status st = comm_open(&c, &err);
    if (st == STATUS_OK)
        st = probe(c, argc, argv, &err);
    if (st != STATUS_OK)
        fprintf(stderr, "step_probe: %s\n", err.text);
    comm_close(&c);
    return (int)st;
}
