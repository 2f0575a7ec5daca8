/*
 * Training on the cuda backend, its kernels run on the CPU: steps as graphs, data that is staged or
 * lies on the device, evaluation, stops and failures, all against the reference backend or against
 * the same steps without graphs.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "simt_testing.h"
#include "trainer/step_rig.h"

#define STEPS 5
#define LR    0.05
/* Rounding grows from step to step as fast as the weights move: slowly, where two are compared. */
#define SMALL_LR 1e-4

/* What STEPS steps and an evaluation leave behind. */
typedef struct outcome {
    double loss[STEPS];
    sample_sums sums, eval;
    float *params, *momentum, *running;
    int64_t count, stats;
} outcome;

static void fini(outcome *o)
{
    free(o->params);
    free(o->momentum);
    free(o->running);
}

static float *copy_of(const float *from, int64_t n)
{
    float *copy = calloc((size_t)n + 1, sizeof *copy);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, from, (size_t)n * sizeof *copy);
    return copy;
}

/* Steps that are collected one by one, or (`flow`) only at the end, two under way. */
static outcome train(const char *backend_name, bool flow, double lr, const char *const sets[])
{
    outcome o = {0};
    rig *r = open_rig(backend_name, 1, sets);
    for (int k = 0; k < STEPS; k++) {
        if (k > 0 && k % r->s.steps_per_epoch == 0)
            OK(feed_start(r->s.train, k / r->s.steps_per_epoch, 0, &oops));
        step(r, lr);
        if (!flow || k == STEPS - 1)
            OK(stepper_collect(r->s.step, &o.sums, &o.loss[k], &oops));
    }
    OK(stepper_evaluate(r->s.step, r->s.eval, &o.eval, NULL, NULL, &oops));
    OK(stepper_download(r->s.step, &r->host, &oops));
    o.count = r->params;
    o.stats = r->running;
    o.params = copy_of(r->host.params, r->params);
    o.momentum = copy_of(r->host.momentum, r->params);
    o.running = copy_of(r->host.running, r->running);
    close_rig(r);
    return o;
}
#define TRAIN(backend_name, flow, lr, ...) \
    train(backend_name, flow, lr, (const char *const[]){__VA_ARGS__, NULL})

static void check_same_bits(const outcome *a, const outcome *b)
{
    ck_assert_int_eq(a->count, b->count);
    ck_assert_mem_eq(a->params, b->params, (size_t)a->count * sizeof(float));
    ck_assert_mem_eq(a->momentum, b->momentum, (size_t)a->count * sizeof(float));
    ck_assert_mem_eq(a->running, b->running, (size_t)a->stats * sizeof(float));
    ck_assert(a->sums.loss == b->sums.loss && a->sums.top1 == b->sums.top1);
    ck_assert(a->eval.loss == b->eval.loss && a->eval.count == b->eval.count);
}

static double distance(const float *a, const float *b, int64_t n)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(difference / (norm > 0 ? norm : 1));
}

static void check_close(const outcome *a, const outcome *b, double tolerance)
{
    ck_assert_int_eq(a->count, b->count);
    ck_assert_double_lt(distance(a->params, b->params, a->count), tolerance);
    ck_assert_double_lt(distance(a->running, b->running, a->stats), tolerance);
    ck_assert_double_eq_tol(a->sums.loss / (double)a->sums.count,
                            b->sums.loss / (double)b->sums.count, tolerance);
    ck_assert_int_eq(a->sums.count, b->sums.count);
    ck_assert_int_eq(a->eval.count, b->eval.count);
    ck_assert_double_eq_tol(a->eval.loss / (double)a->eval.count,
                            b->eval.loss / (double)b->eval.count, 10 * tolerance);
}

/* ---- tests ---- */

static const struct way {
    const char *exact, *shard, *augment, *index;
} ways[] = {
    {"train.exact=true", "train.shard=4", "data.augment=crop", "rpg.index=even"},
    {"train.exact=false", "train.shard=4", "data.augment=none", "rpg.index=tile"},
    {"train.exact=false", "train.shard=8", "data.augment=crop", "rpg.index=even"},
    {"train.exact=false", "train.shard=8", "data.augment=rrc", "rpg.index=random"},
};
#define SETS(w) (w)->exact, (w)->shard, (w)->augment, (w)->index, "data.eval_count=21"

/* The same network, images and steps on both backends. */
START_TEST(agrees_with_reference)
{
    const struct way *w = &ways[_i];
    outcome cuda = TRAIN("cuda", true, SMALL_LR, SETS(w));
    outcome reference = TRAIN("reference", false, SMALL_LR, SETS(w));
    check_close(&cuda, &reference, 1e-4);
    fini(&cuda);
    fini(&reference);
}
END_TEST

/* bf16 goes the same way, roughly. */
START_TEST(bf16_trains)
{
    outcome bf16 = TRAIN("cuda", true, SMALL_LR, "train.precision=bf16", "data.eval_count=21");
    outcome fp32 = TRAIN("cuda", true, SMALL_LR, "train.precision=fp32", "data.eval_count=21");
    check_close(&bf16, &fp32, 0.1);
    ck_assert(memcmp(bf16.params, fp32.params, (size_t)fp32.count * sizeof(float)) != 0);
    fini(&bf16);
    fini(&fp32);
}
END_TEST

/* Replayed, waited for each time, or run as called: the same bits. */
START_TEST(graphs_change_no_bits)
{
    const struct way *w = &ways[_i];
    outcome flow = TRAIN("cuda", true, LR, SETS(w));
    outcome waited = TRAIN("cuda", false, LR, SETS(w));
    setenv("RINGMASTER_CUDA_SYNC", "1", 1);
    outcome called = TRAIN("cuda", true, LR, SETS(w));
    unsetenv("RINGMASTER_CUDA_SYNC");
    check_same_bits(&flow, &waited);
    check_same_bits(&flow, &called);
    fini(&flow);
    fini(&waited);
    fini(&called);
}
END_TEST

/* A set on the device and the same images staged give the same bits: the loader's bytes and the
 * device's own order and crops. */
START_TEST(feeds_agree)
{
    rig *r = OPEN("cuda", 1, "data.augment=crop");
    ck_assert_str_eq(feed_kind(r->s.train), "resident");
    ck_assert_str_eq(feed_kind(r->s.eval), "resident");
    close_rig(r);
    r = OPEN("cuda", 1, "data.augment=rrc");
    ck_assert_str_eq(feed_kind(r->s.train), "staged");
    close_rig(r);
    r = OPEN("reference", 1, "data.augment=crop");
    ck_assert_str_eq(feed_kind(r->s.train), "packed");
    close_rig(r);
    outcome resident = TRAIN("cuda", true, SMALL_LR, "data.augment=crop", "train.shard=4");
    setenv("RINGMASTER_FEED", "staged", 1);
    outcome staged = TRAIN("cuda", true, SMALL_LR, "data.augment=crop", "train.shard=4");
    unsetenv("RINGMASTER_FEED");
    check_same_bits(&resident, &staged);
    fini(&resident);
    fini(&staged);
}
END_TEST

/* A resumed epoch: the loss of its third step on, whatever brings the images. */
START_TEST(epochs_begin_anywhere)
{
    static const char *const names[] = {"cuda", "cuda", "reference"};
    double loss[3];
    for (int i = 0; i < 3; i++) {
        sample_sums sums = {0};
        if (i == 1)
            setenv("RINGMASTER_FEED", "staged", 1);
        rig *r = OPEN(names[i], 1, "data.augment=crop", "train.shard=4");
        unsetenv("RINGMASTER_FEED");
        OK(feed_start(r->s.train, 1, 2, &oops));
        step(r, 0);
        step(r, 0);
        OK(stepper_collect(r->s.step, &sums, &loss[i], &oops));
        close_rig(r);
    }
    ck_assert(loss[0] == loss[1]);
    ck_assert_double_eq_tol(loss[0], loss[2], 1e-4);
}
END_TEST

/* The set does not fit: its images are brought step by step, with the same bits. */
START_TEST(full_devices_stage)
{
    rig *r = OPEN("cuda", 1, "data.augment=crop");
    backend *be = r->s.be;
    feed *f = NULL;
    const loader_options images = {.set = r->s.train_set,
                                   .split = SPLIT_TRAIN,
                                   .size = 8,
                                   .augment = AUGMENT_CROP,
                                   .normalise = NORMALISE_NONE,
                                   .seed = 1,
                                   .batch = 8,
                                   .shard = 8,
                                   .world = 1,
                                   .threads = 1};
    const feed_options o = {.loader = images, .be = be, .lanes = 1};
    simt_fail_allocation(3); /* after the levels and the labels: the pixels */
    OK(feed_create(&o, &f, &oops));
    ck_assert_str_eq(feed_kind(f), "staged");
    feed_destroy(&f);
    close_rig(r);
    ck_assert_int_eq(simt_live_allocations(), 0);
}
END_TEST

/* After the second step neither device nor pinned memory is taken, and kernels do run. */
START_TEST(nothing_is_allocated)
{
    rig *r = OPEN("cuda", 1, _i ? "data.augment=rrc" : "data.augment=crop");
    sample_sums sums = {0};
    step(r, 0.05);
    step(r, 0.05);
    const long allocations = simt_allocations(), kernels = simt_kernels();
    for (int k = 0; k < 4; k++)
        step(r, 0.05);
    OK(stepper_collect(r->s.step, &sums, NULL, &oops));
    ck_assert_int_eq(simt_allocations(), allocations);
    ck_assert_int_gt(simt_kernels(), kernels + 100);
    ck_assert_int_eq((int)sums.count, 48);
    close_rig(r);
    ck_assert_int_eq(simt_live_allocations(), 0);
}
END_TEST

/* The word of step s is acted on before step s + 2, not sooner. */
START_TEST(stop_takes_two_steps)
{
    rig *r = OPEN("cuda", 1, "train.exact=false");
    for (int k = 0; k < 4; k++) {
        bool stop = true;
        OK(stepper_ready(r->s.step, &stop, &oops));
        ck_assert_int_eq(stop, k == 3);
        if (!stop)
            OK(stepper_run(r->s.step, r->s.train, 0.05, k == 1, &oops));
    }
    close_rig(r);
}
END_TEST

/* A weight that is not finite: nothing is updated from that step on, and the line says where. */
START_TEST(failure_names_the_layer)
{
    rig *r = OPEN("cuda", 1, _i ? "train.exact=true" : "train.exact=false", "train.shard=4");
    sample_sums none = {0};
    for (int k = 0; k < 3; k++)
        step(r, 0.05);
    OK(stepper_download(r->s.step, &r->host, &oops));
    const int gamma = r->s.net->norm[1].gamma;
    r->host.params[r->s.net->param[gamma].offset] = NAN;
    OK(stepper_upload(r->s.step, &r->host, &oops));
    OK(stepper_run(r->s.step, r->s.train, 0.05, false, &oops));
    OK(stepper_run(r->s.step, r->s.train, 0.05, false, &oops));
    errbuf err = {0};
    ck_assert_int_eq(stepper_collect(r->s.step, &none, NULL, &err), STATUS_NUMERICAL);
    ck_assert_msg(strstr(err.text, "not finite") && strstr(err.text, r->s.net->param[gamma].name),
                  "%s", err.text);
    float *params = copy_of(r->host.params, r->params);
    OK(stepper_download(r->s.step, &r->host, &oops));
    ck_assert_mem_eq(params, r->host.params, (size_t)r->params * sizeof *params);
    free(params);
    close_rig(r);
}
END_TEST

/* Every allocation of a session fails once: a line, a status, nothing left. */
START_TEST(device_memory_runs_out)
{
    for (long n = 1;; n++) {
        errbuf err = {0};
        session s = {0};
        spec given;
        comm *c = NULL;
        progress silent;
        static const char *const sets[] = {
            "model.width=4",       "model.classes=4",   "rpg.size=300",
            "data.size=8",         "train.batch=8",     "train.shard=4",
            "data.train_count=24", "data.eval_count=8", "backend.name=cuda"};
        progress_init(&silent, true, "test");
        OK(spec_init(&given, &oops));
        for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
            OK(spec_set(&given, sets[i], &oops));
        OK(comm_open(&c, &oops));
        OK(session_begin(&s, &given, 1, c, &silent, &oops));
        OK(session_open_data(&s, true, &oops));
        OK(session_open_net(&s, &oops));
        simt_fail_allocation(n);
        status st = session_open_compute(&s, NULL, true, &err);
        simt_fail_allocation(0);
        session_close(&s);
        comm_close(&c);
        spec_fini(&given);
        ck_assert_int_eq(simt_live_allocations(), 0);
        if (st == STATUS_OK) {
            ck_assert_int_gt(n, 20);
            return;
        }
        ck_assert_int_eq(st, STATUS_OUT_OF_MEMORY);
        ck_assert_msg(err.text[0] != '\0', "allocation %ld has no line", n);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("training");
    const int count = (int)(sizeof ways / sizeof *ways);
    const struct {
        const TTest *test;
        const char *name;
        int times;
    } tests[] = {
        {agrees_with_reference, "reference", count}, {bf16_trains, "bf16", 1},
        {graphs_change_no_bits, "graphs", 2},        {feeds_agree, "feeds", 1},
        {nothing_is_allocated, "allocations", 2},    {stop_takes_two_steps, "stop", 1},
        {failure_names_the_layer, "failure", 2},     {device_memory_runs_out, "memory", 1},
        {epochs_begin_anywhere, "epochs", 1},        {full_devices_stage, "full", 1},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        TCase *tc = tcase_create(tests[i].name); /* CK_RUN_CASE runs one */
        tcase_add_loop_test(tc, tests[i].test, 0, tests[i].times);
        suite_add_tcase(suite, tc);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
