/*
 * The training step: what it updates, by how much, what it leaves alone when something is wrong,
 * and that it allocates nothing once it runs.
 */
#include <check.h>
#include <dlfcn.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "trainer/step_rig.h"

/* ---- counting: every allocation of the process passes here ---- */

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
#define EVERYWHERE         __attribute__((visibility("default")))

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static atomic_bool is_counting;
static atomic_long allocations;

/* Ours, whoever we called for it; not what the threading and convolution libraries take for
 * themselves on every call (libgomp a team, oneDNN a map of arguments). */
static void count(const void *caller)
{
    static const char *const others[] = {"libgomp", "libomp", "libdnnl", "libstdc++"};
    Dl_info info;
    if (!atomic_load(&is_counting))
        return;
    if (dladdr(caller, &info) != 0 && info.dli_fname)
        for (size_t i = 0; i < sizeof others / sizeof *others; i++)
            if (strstr(info.dli_fname, others[i]))
                return;
    atomic_fetch_add(&allocations, 1);
}

EVERYWHERE void *malloc(size_t size)
{
    count(__builtin_return_address(0));
    return __libc_malloc(size);
}

EVERYWHERE void *calloc(size_t n, size_t size)
{
    count(__builtin_return_address(0));
    return __libc_calloc(n, size);
}

EVERYWHERE void *realloc(void *memory, size_t size)
{
    count(__builtin_return_address(0));
    return __libc_realloc(memory, size);
}

EVERYWHERE void *aligned_alloc(size_t alignment, size_t size)
{
    count(__builtin_return_address(0));
    return __libc_memalign(alignment, size);
}

EVERYWHERE void *memalign(size_t alignment, size_t size)
{
    count(__builtin_return_address(0));
    return __libc_memalign(alignment, size);
}

EVERYWHERE int posix_memalign(void **ret, size_t alignment, size_t size)
{
    count(__builtin_return_address(0));
    *ret = __libc_memalign(alignment, size);
    return *ret ? 0 : 12;
}

EVERYWHERE void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    count(__builtin_return_address(0));
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}
#endif

/* Backend names of loop tests: 0 = the best here, 1 = the oracle. */
static const char *const backends[] = {"auto", "reference"};

/* ---- tests ---- */

START_TEST(nothing_is_allocated)
{
#ifdef COUNTS_ALLOCATIONS
    static const struct {
        int threads;
        const char *exact, *shard;
    } ways[] = {{1, "train.exact=false", "train.shard=8"},
                {2, "train.exact=false", "train.shard=4"},
                {2, "train.exact=true", "train.shard=2"}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        rig *r =
            OPEN(backends[_i], ways[i].threads, ways[i].exact, ways[i].shard, "data.workers=1");
        sample_sums sums = {0};
        free(malloc(1));
        for (int k = 0; k < 10; k++) {
            if (k == 2) {
                atomic_store(&allocations, 0);
                atomic_store(&is_counting, true);
            }
            bool stop = false;
            errbuf err = {0};
            status st = stepper_ready(r->s.step, &stop, &err);
            if (st == STATUS_OK)
                st = stepper_run(r->s.step, r->s.train, 0.05, false, &err);
            if (k == 6 && st == STATUS_OK)
                st = stepper_collect(r->s.step, &sums, NULL, &err);
            if (st != STATUS_OK) /* Check allocates */
                atomic_store(&is_counting, false), ck_abort_msg("%s", err.text);
        }
        atomic_store(&is_counting, false);
        ck_assert_msg(atomic_load(&allocations) == 0, "%ld allocations, way %zu",
                      atomic_load(&allocations), i);
        close_rig(r);
    }
#endif
}
END_TEST

/* The count is no constant 0. */
START_TEST(counting_counts)
{
#ifdef COUNTS_ALLOCATIONS
    atomic_store(&is_counting, true);
    void *volatile memory = malloc(10);
    atomic_store(&is_counting, false);
    free(memory);
    ck_assert_int_eq(atomic_load(&allocations), 1);
#endif
}
END_TEST

static double decay_of(const rig *r, const net_param *p)
{
    double decay = r->s.spec.train.weight_decay;
    switch (r->s.spec.train.decay_on) {
    case DECAY_RING:
        return p->kind == PARAM_RING ? decay : 0;
    case DECAY_WEIGHTS:
        return p->kind == PARAM_RING || p->kind == PARAM_CONV || p->kind == PARAM_FC ? decay : 0;
    default:
        return decay;
    }
}

/* Two steps by hand, from the gradients that the stepper shows. */
START_TEST(update_is_sgd)
{
    static const char *const on[] = {"train.decay_on=all", "train.decay_on=weights",
                                     "train.decay_on=ring"};
    static const char *const nesterov[] = {"train.nesterov=false", "train.nesterov=true"};
    rig *r = OPEN("auto", 1, on[_i / 2], nesterov[_i % 2], "train.weight_decay=0.1");
    double *p = calloc((size_t)r->params, sizeof *p), *v = calloc((size_t)r->params, sizeof *v);
    ck_assert(p && v);
    for (int64_t i = 0; i < r->params; i++)
        p[i] = r->host.params[i];
    for (int k = 0; k < 2; k++) {
        double lr = k ? 0.02 : 0.05;
        step(r, lr);
        const float *grad = stepper_gradient(r->s.step);
        for (int n = 0; n < r->s.net->params; n++) {
            const net_param *param = &r->s.net->param[n];
            for (int64_t i = param->offset; i < param->offset + param->elements; i++) {
                double g = grad[i] + decay_of(r, param) * p[i];
                v[i] = 0.9 * v[i] + g;
                p[i] -= lr * (_i % 2 ? g + 0.9 * v[i] : v[i]);
            }
        }
    }
    OK(stepper_download(r->s.step, &r->host, &oops));
    for (int64_t i = 0; i < r->params; i++) {
        ck_assert_double_eq_tol(r->host.params[i], p[i], 1e-5 * (1 + fabs(p[i])));
        ck_assert_double_eq_tol(r->host.momentum[i], v[i], 1e-5 * (1 + fabs(v[i])));
    }
    free(p);
    free(v);
    close_rig(r);
}
END_TEST

/* Running statistics move by a tenth, towards the mean over the step's shards. */
START_TEST(running_statistics_move)
{
    rig *r = OPEN("auto", 1, "train.shard=4");
    step(r, 0);
    const float *stats = stepper_gradient(r->s.step) + r->params; /* summed over two shards */
    float *before = calloc((size_t)r->running, sizeof *before);
    memcpy(before, r->host.running, (size_t)r->running * sizeof *before);
    OK(stepper_download(r->s.step, &r->host, &oops));
    for (int64_t i = 0; i < r->running; i++) {
        double expected = 0.9 * before[i] + 0.1 * stats[i] / 2;
        ck_assert_double_eq_tol(r->host.running[i], expected, 1e-5 * (1 + fabs(expected)));
    }
    free(before);
    close_rig(r);
}
END_TEST

START_TEST(losses_are_collected)
{
    rig *r = OPEN(backends[_i], 1, "train.shard=4");
    sample_sums two = {0}, more = {0};
    double last = 0;
    step(r, 0.05);
    step(r, 0.05);
    ck_assert_int_eq(stepper_pending(r->s.step), 2);
    OK(stepper_collect(r->s.step, &two, &last, &oops));
    ck_assert_int_eq(stepper_pending(r->s.step), 0);
    ck_assert_int_eq((int)two.count, 16);
    ck_assert_double_gt(last, 0);
    step(r, 0.05);
    more = two;
    OK(stepper_collect(r->s.step, &more, &last, &oops));
    ck_assert_int_eq((int)more.count, 24);
    ck_assert_double_eq_tol(more.loss - two.loss, 8 * last, 1e-9 * more.loss);
    ck_assert(more.top1 <= more.top5 && more.top5 <= more.count);
    close_rig(r);
}
END_TEST

START_TEST(stop_is_passed_on)
{
    rig *r = OPEN(backends[_i], 1, _i ? "train.exact=true" : "train.exact=false");
    bool stop = true;
    const bool asks[] = {false, true, false};
    for (int i = 0; i < 3; i++) {
        OK(stepper_ready(r->s.step, &stop, &oops));
        ck_assert(!stop || i == 2);
        OK(stepper_run(r->s.step, r->s.train, 0.05, asks[i], &oops));
    }
    OK(stepper_ready(r->s.step, &stop, &oops)); /* at the latest after two more */
    ck_assert(stop);
    close_rig(r);
}
END_TEST

/* One weight is not finite: the step fails and has updated nothing. */
START_TEST(failure_updates_nothing)
{
    rig *r = OPEN(backends[_i % 2], 1, _i / 2 ? "train.exact=true" : "train.exact=false",
                  "train.shard=4");
    step(r, 0.05);
    OK(stepper_download(r->s.step, &r->host, &oops));
    r->host.params[3] = INFINITY;
    OK(stepper_upload(r->s.step, &r->host, &oops));
    stepper_state after = {.params = calloc((size_t)r->params, sizeof(float)),
                           .momentum = calloc((size_t)r->params, sizeof(float)),
                           .running = calloc((size_t)r->running, sizeof(float))};
    sample_sums none = {0};
    errbuf err = {0};
    status st = stepper_run(r->s.step, r->s.train, 0.05, false, &err);
    if (st == STATUS_OK) /* replayed: judged when it is waited for */
        st = stepper_collect(r->s.step, &none, NULL, &err);
    ck_assert_int_eq(st, STATUS_NUMERICAL);
    ck_assert_msg(strstr(err.text, "finite"), "%s", err.text);
    OK(stepper_download(r->s.step, &after, &oops));
    ck_assert_mem_eq(after.params, r->host.params, (size_t)r->params * sizeof(float));
    ck_assert_mem_eq(after.momentum, r->host.momentum, (size_t)r->params * sizeof(float));
    ck_assert_mem_eq(after.running, r->host.running, (size_t)r->running * sizeof(float));
    free(after.params);
    free(after.momentum);
    free(after.running);
    close_rig(r);
}
END_TEST

START_TEST(wire_is_parameters_and_statistics)
{
    rig *r = OPEN("reference", 1, "train.seed=1");
    ck_assert_int_eq(stepper_wire_floats(r->s.step), r->params + r->running);
    close_rig(r);
}
END_TEST

/* Exact sums are the float sums, to rounding. */
START_TEST(exact_is_close_to_float)
{
    rig *a = OPEN("auto", 2, "train.exact=true", "train.shard=2");
    rig *b = OPEN("auto", 2, "train.exact=false", "train.shard=2");
    step(a, 0.05);
    step(b, 0.05);
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < a->params + a->running; i++) {
        double x = stepper_gradient(a->s.step)[i], y = stepper_gradient(b->s.step)[i];
        difference += (x - y) * (x - y);
        norm += x * x;
    }
    ck_assert_msg(difference <= 1e-10 * norm, "%g", sqrt(difference / norm));
    close_rig(a);
    close_rig(b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("step");
    TCase *tcase = tcase_create("step");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, nothing_is_allocated, 0, 2);
    tcase_add_test(tcase, counting_counts);
    tcase_add_loop_test(tcase, update_is_sgd, 0, 6);
    tcase_add_test(tcase, running_statistics_move);
    tcase_add_loop_test(tcase, losses_are_collected, 0, 2);
    tcase_add_loop_test(tcase, stop_is_passed_on, 0, 2);
    tcase_add_loop_test(tcase, failure_updates_nothing, 0, 4);
    tcase_add_test(tcase, wire_is_parameters_and_statistics);
    tcase_add_test(tcase, exact_is_close_to_float);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
