/* `ringtrain bench`: how fast one job's training step is here, and where its time goes. */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "trainer/clock.h"
#include "trainer/command.h"
#include "trainer/placement.h"
#include "trainer/schedule.h"
#include "trainer/session.h"

static const command_flag flags[] = {{"steps", true}, {"warmup", true}};

#define BENCH_MAX_STEPS 10000

typedef struct bench {
    int steps, warmup;
    double *step_ms;                                      /* of the measured steps */
    double start_to_first_step, start_to_first_step_done; /* seconds since the command began */
    double first_step; /* CLOCK_MONOTONIC, for whoever started the process */
    step_times phases; /* of the measured steps, summed */
} bench;

static status read_count(const command_options *o, const char *name, int preset, int *ret,
                         errbuf *err)
{
    const char *text = command_extra(o, name);
    char *end = NULL;
    long value = text ? strtol(text, &end, 10) : preset;
    if ((text && *end != '\0') || value < 0 || value > BENCH_MAX_STEPS)
        return errbuf_set(err, STATUS_BAD_INPUT, "--%s %s: a number from 0 to %d is expected", name,
                          text, BENCH_MAX_STEPS);
    *ret = (int)value;
    return STATUS_OK;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int count)
{
    double *sorted = malloc((size_t)count * sizeof *sorted);
    if (!sorted)
        return values[count / 2];
    memcpy(sorted, values, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_doubles);
    double middle = count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
    free(sorted);
    return middle;
}

static step_times phases_since(step_times then, step_times now)
{
    return (step_times){now.expand - then.expand,           now.data - then.data,
                        now.compute - then.compute,         now.reduce - then.reduce,
                        now.communicate - then.communicate, now.update - then.update};
}

static status initialise(session *s, errbuf *err)
{
    stepper_state host = {
        .params = calloc((size_t)s->net->param_elements + 1, sizeof(float)),
        .running = calloc((size_t)s->net->running_elements + 1, sizeof(float)),
    };
    status st = STATUS_OK;
    if (!host.params || !host.running) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for the parameters");
    } else {
        net_init_params(s->net, s->spec.train.seed, host.params, host.running);
        st = stepper_upload(s->step, &host, err);
    }
    free(host.params);
    free(host.running);
    return comm_agree(s->comm, st, err);
}

static status measure(session *s, bench *b, double began, errbuf *err)
{
    step_times before = {0};
    int64_t step = 0;
    TRY(initialise(s, err));
    TRY(feed_start(s->train, 0, 0, err));
    for (int i = 0; i < b->warmup + b->steps; i++, step++) {
        if (step > 0 && step % s->steps_per_epoch == 0)
            TRY(feed_start(s->train, step / s->steps_per_epoch, 0, err));
        if (i == b->warmup)
            before = stepper_times(s->step);
        bool stop = false;
        sample_sums ignored = {0};
        double start = clock_seconds();
        if (i == 0) {
            b->first_step = start;
            b->start_to_first_step = start - began;
        }
        double lr = schedule_lr(&s->spec, step, s->steps_per_epoch);
        TRY(stepper_ready(s->step, &stop, err));
        TRY(stepper_run(s->step, s->train, lr, false, err));
        if (i == 0) /* where steps are replayed it is only on its way */
            TRY(stepper_collect(s->step, &ignored, NULL, err));
        if (i == 0)
            b->start_to_first_step_done = clock_seconds() - began;
        if (i >= b->warmup)
            b->step_ms[i - b->warmup] = 1e3 * (clock_seconds() - start);
        progress_phase(s->progress, "step", i + 1, b->warmup + b->steps);
        if (stepper_pending(s->step) == STEP_MAX_PENDING)
            TRY(stepper_collect(s->step, &ignored, NULL, err));
    }
    if (stepper_pending(s->step) > 0) {
        sample_sums ignored = {0};
        TRY(stepper_collect(s->step, &ignored, NULL, err));
    }
    b->phases = phases_since(before, stepper_times(s->step));
    progress_end(s->progress);
    return STATUS_OK;
}

static const char *const phase_names[] = {"expand", "data",        "compute",
                                          "reduce", "communicate", "update"};

static void phase_values(const bench *b, double ms[6])
{
    const step_times *t = &b->phases;
    const double seconds[6] = {t->expand, t->data,        t->compute,
                               t->reduce, t->communicate, t->update};
    for (int i = 0; i < 6; i++)
        ms[i] = 1e3 * seconds[i] / b->steps;
}

static void print_json(const session *s, const bench *b, double ms)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    net_exec_memory memory = net_exec_usage(stepper_exec(s->step));
    double phases[6];
    phase_values(b, phases);
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "name", s->spec.name);
    cJSON_AddStringToObject(o, "feed", feed_kind(s->train));
    cJSON_AddNumberToObject(o, "images_per_second", 1e3 * (double)s->spec.train.batch / ms);
    cJSON_AddNumberToObject(o, "step_ms", ms);
    cJSON *all = cJSON_AddArrayToObject(o, "steps_ms");
    for (int i = 0; i < b->steps; i++)
        cJSON_AddItemToArray(all, cJSON_CreateNumber(b->step_ms[i]));
    cJSON_AddBoolToObject(o, "replayed", stepper_is_replayed(s->step));
    /* replayed steps have no phases that the host could time */
    cJSON *p = stepper_is_replayed(s->step) ? NULL : cJSON_AddObjectToObject(o, "phases_ms");
    for (int i = 0; i < 6; i++)
        cJSON_AddNumberToObject(p, phase_names[i], phases[i]);
    cJSON_AddNumberToObject(o, "start_to_first_step_s", b->start_to_first_step);
    cJSON_AddNumberToObject(o, "start_to_first_step_done_s", b->start_to_first_step_done);
    cJSON_AddNumberToObject(o, "first_step_monotonic_s", b->first_step);
    cJSON_AddNumberToObject(o, "peak_rss_bytes", 1024.0 * (double)usage.ru_maxrss);
    cJSON_AddNumberToObject(o, "weights_bytes", (double)memory.weights);
    cJSON_AddNumberToObject(o, "activations_bytes", (double)memory.activations);
    cJSON_AddNumberToObject(o, "ranks", s->comm->size);
    cJSON_AddNumberToObject(o, "threads", s->threads);
    cJSON_AddItemToObject(o, "plan", cJSON_Parse(s->plan));
    char *text = cJSON_Print(o);
    if (text)
        puts(text);
    free(text);
    cJSON_Delete(o);
}

static void print_table(const session *s, const bench *b, double ms)
{
    double phases[6];
    phase_values(b, phases);
    printf("%s: %.1f images/s, %.1f ms a step of %lld (median of %d), %d rank%s x %d thread%s\n",
           s->spec.name, 1e3 * (double)s->spec.train.batch / ms, ms, (long long)s->spec.train.batch,
           b->steps, s->comm->size, s->comm->size == 1 ? "" : "s", s->threads,
           s->threads == 1 ? "" : "s");
    for (int i = 0; i < 6 && !stepper_is_replayed(s->step); i++)
        printf("  %-12s %9.2f ms  %5.1f %%\n", phase_names[i], phases[i], 100 * phases[i] / ms);
    printf("  start to the first step: %.2f s, to its end: %.2f s\n", b->start_to_first_step,
           b->start_to_first_step_done);
}

static status run_with(const command_options *o, comm *c, const spec *given, bench *b, errbuf *err)
{
    double began = clock_seconds();
    progress p;
    session s = {0};
    int threads = 0;
    progress_init(&p, c->rank != 0, "bench");
    status st = placement_settle(c, given->resources.threads, &threads, err);
    if (st == STATUS_OK)
        st = session_begin(&s, given, threads, c, &p, err);
    if (st == STATUS_OK)
        st = session_open_data(&s, true, err);
    if (st == STATUS_OK)
        st = session_open_net(&s, err);
    if (st == STATUS_OK)
        st = session_open_compute(&s, NULL, true, err);
    if (st == STATUS_OK)
        st = measure(&s, b, began, err);
    if (st == STATUS_OK && c->rank == 0) {
        double ms = median(b->step_ms, b->steps);
        if (o->json)
            print_json(&s, b, ms);
        else
            print_table(&s, b, ms);
    }
    progress_end(&p);
    session_close(&s);
    return st;
}

static status run(const command_options *o, errbuf *err)
{
    bench b = {0};
    spec given;
    comm *c = NULL;
    if (o->args != 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "one SPEC.json is needed; see `ringtrain bench --help`");
    TRY(read_count(o, "steps", 10, &b.steps, err));
    TRY(read_count(o, "warmup", 2, &b.warmup, err));
    if (b.steps == 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "--steps 0 measures nothing");
    TRY(command_load_spec(o, o->arg[0], &given, err));
    b.step_ms = calloc((size_t)b.steps, sizeof *b.step_ms);
    status st = b.step_ms ? STATUS_OK
                          : errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for the times");
    if (st == STATUS_OK)
        st = comm_open(&c, err);
    if (st == STATUS_OK)
        st = run_with(o, c, &given, &b, err);
    comm_close(&c);
    free(b.step_ms);
    spec_fini(&given);
    return st;
}

const command command_bench = {
    .name = "bench",
    .summary = "time a job's training step and its parts",
    .help =
        "Usage: ringtrain bench SPEC.json [options]\n"
        "\n"
        "Runs training steps of the job without a run folder and prints images/s, the median\n"
        "step and the share of each phase: expand (the ring into weights), data (waiting for\n"
        "images), compute (forward, loss, backward, and from weights back to the ring), reduce\n"
        "(adding shards' gradients up, where a rank has several or train.exact is on),\n"
        "communicate (between ranks), update (SGD). Works under mpirun too.\n"
        "\n"
        "  --steps K         measured steps (default 10)\n"
        "  --warmup K        steps before them (default 2)\n"
        "\n"
        "Examples:\n"
        "  ringtrain bench job.json --set train.batch=128 --steps 20\n"
        "  mpirun -np 2 ringtrain bench job.json --set resources.threads=1 --json\n",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .run = run,
};
