/* What makes a step run without the host: its control, shared memory, copies, updates that a
 * control steers; and, on a device, recorded graphs, events and feeds. */
#include <time.h>

#include "ops/harness.h"

/* A control and what its ops read and write, as a trainer has them. */
typedef struct rig {
    backend *be;
    int slots, shards;
    tensor control, sums, word;
    step_input *in;      /* shared */
    step_output *out;    /* shared */
    loss_sums *out_sums; /* shared */
} rig;

static step_control *control_of(rig *r)
{
    return (step_control *)(void *)r->control.data;
}

static loss_sums *sums_of(rig *r)
{
    return (loss_sums *)(void *)r->sums.data;
}

static void *shared_new(backend *be, size_t bytes)
{
    void *memory = NULL;
    MUST(be->ops->alloc_shared(be, bytes, &memory, NULL));
    return memory;
}

static rig rig_new(backend *be, int slots, int shards)
{
    const step_control zero = {0};
    const size_t losses = (size_t)shards * sizeof(loss_sums);
    rig r = {.be = be, .slots = slots, .shards = shards};
    r.control = tensor_bytes_new(be, sizeof zero, &zero);
    r.sums = tensor_bytes_new(be, losses, NULL);
    r.word = tensor_bytes_new(be, 2 * sizeof(int64_t), NULL);
    r.in = shared_new(be, (size_t)slots * sizeof *r.in);
    r.out = shared_new(be, (size_t)slots * sizeof *r.out);
    r.out_sums = shared_new(be, (size_t)slots * losses);
    return r;
}

static void rig_free(rig *r)
{
    tensor_free(&r->control);
    tensor_free(&r->sums);
    tensor_free(&r->word);
    r->be->ops->release_shared(r->be, r->in);
    r->be->ops->release_shared(r->be, r->out);
    r->be->ops->release_shared(r->be, r->out_sums);
}

static step_control read_control(rig *r)
{
    step_control c;
    tensor_check_guards(&r->control);
    MUST(r->be->ops->download(r->be, &c, r->control.data, sizeof c));
    return c;
}

static void write_control(rig *r, const step_control *c)
{
    MUST(r->be->ops->upload(r->be, r->control.data, c, sizeof *c));
}

static void write_sums(rig *r, const loss_sums *sums)
{
    MUST(r->be->ops->upload(r->be, r->sums.data, sums, (size_t)r->shards * sizeof *sums));
}

/* The word as stops and errors. */
static void read_word(rig *r, bool exact, double word[2])
{
    int64_t whole[2];
    float both[2];
    tensor_check_guards(&r->word);
    MUST(r->be->ops->download(r->be, whole, r->word.data, sizeof whole));
    memcpy(both, whole, sizeof both);
    for (int i = 0; i < 2; i++)
        word[i] = exact ? (double)whole[i] : (double)both[i];
}

static void write_word(rig *r, bool exact, int stops, int errors)
{
    const int64_t whole[2] = {stops, errors};
    const float both[2] = {(float)stops, (float)errors};
    if (exact)
        MUST(r->be->ops->upload(r->be, r->word.data, whole, sizeof whole));
    else
        MUST(r->be->ops->upload(r->be, r->word.data, both, sizeof both));
}

/* Losses that tell which step and shard they are of. */
static loss_sums sums_at(int step, int shard)
{
    return (loss_sums){.loss = 100 * step + shard + 0.25,
                       .count = 1000 + step,
                       .top1 = 10 * shard,
                       .top5 = 10 * shard + step};
}

static void fill_sums(loss_sums *sums, int shards, int step)
{
    for (int k = 0; k < shards; k++)
        sums[k] = sums_at(step, k);
}

/* Reads the sums in a word's order again, so that padding does not matter. */
static void check_sums(const loss_sums *got, int shards, int step)
{
    for (int k = 0; k < shards; k++) {
        const loss_sums expect = sums_at(step, k);
        ck_assert_double_eq(got[k].loss, expect.loss);
        ck_assert_int_eq(got[k].count, expect.count);
        ck_assert_int_eq(got[k].top1, expect.top1);
        ck_assert_int_eq(got[k].top5, expect.top5);
    }
}

static void wait_for(backend_event *e, const backend_ops *ops)
{
    bool done = false;
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    while (!done) {
        MUST(ops->event_done(e, &done));
        clock_gettime(CLOCK_MONOTONIC, &now);
        ck_assert_msg(now.tv_sec - begin.tv_sec < 60, "an event is not done after a minute");
    }
}

/* ---- the control ---- */

static const struct {
    int slots, shards;
    bool exact;
} rings[] = {{1, 1, false}, {3, 2, true}, {4, 33, false}, {2, 64, true}};

static void check_after_begin(rig *r, int step)
{
    const step_control c = read_control(r);
    const step_input *in = &r->in[step % r->slots];
    ck_assert_uint_eq(c.step, (uint64_t)step);
    ck_assert_float_eq(c.in.lr, in->lr);
    ck_assert_float_eq(c.in.stop, in->stop);
    ck_assert_float_eq(c.in.error, in->error);
    ck_assert_uint_eq(c.in.epoch, in->epoch);
    ck_assert_uint_eq(c.in.first, in->first);
    ck_assert_uint_eq(c.failures, 0);
    ck_assert_float_eq(c.stops, 0);
    ck_assert_float_eq(c.errors, 0);
}

static void check_report(rig *r, int step, int stops)
{
    const step_output *out = &r->out[step % r->slots];
    ck_assert_uint_eq(out->step, (uint64_t)step);
    ck_assert_float_eq(out->stops, (float)stops);
    ck_assert_float_eq(out->errors, 0);
    ck_assert_uint_eq(out->failures, 0);
    ck_assert_uint_eq(out->halted, 0);
    check_sums(r->out_sums + (size_t)(step % r->slots) * (size_t)r->shards, r->shards, step);
}

/* Steps that go well, one after another, in every slot more than once. */
START_TEST(steps_follow_one_another)
{
    const backend_ops *ops = loop_backend(_i, COUNT(rings));
    const bool exact = rings[_i % COUNT(rings)].exact;
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    rig r = rig_new(be, rings[_i % COUNT(rings)].slots, rings[_i % COUNT(rings)].shards);
    loss_sums sums[64];
    for (int step = 0; step < 2 * r.slots + 1; step++) {
        double word[2];
        r.in[step % r.slots] = (step_input){.lr = 0.5f / (float)(step + 1),
                                            .stop = step % 2 ? 1 : 0,
                                            .epoch = (uint32_t)(step / 2),
                                            .first = (UINT64_C(1) << 40) + (uint64_t)step};
        fill_sums(sums, r.shards, step);
        write_sums(&r, sums);
        MUST(ops->step_begin(be, control_of(&r), r.in, r.slots));
        check_after_begin(&r, step);
        MUST(ops->step_word(be, control_of(&r), sums_of(&r), r.shards, exact, r.word.data));
        read_word(&r, exact, word);
        ck_assert_double_eq(word[0], step % 2);
        ck_assert_double_eq(word[1], 0);
        write_word(&r, exact, 3 * (step % 2), 0); /* as if three ranks were summed */
        MUST(ops->step_judge(be, control_of(&r), exact, r.word.data));
        MUST(ops->step_end(be, control_of(&r), sums_of(&r), r.shards, r.out, r.out_sums, r.slots));
        ck_assert_uint_eq(read_control(&r).step, (uint64_t)step + 1); /* and so all has run */
        check_report(&r, step, 3 * (step % 2));
    }
    rig_free(&r);
    ops->close(be);
}
END_TEST

static const float not_finite[] = {NAN, INFINITY, -INFINITY};

/* One loss that is not finite, wherever it is. */
START_TEST(word_tells_a_loss_that_is_not_finite)
{
    const backend_ops *ops = loop_backend(_i, COUNT(rings));
    const bool exact = rings[_i % COUNT(rings)].exact;
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    rig r = rig_new(be, 1, rings[_i % COUNT(rings)].shards);
    loss_sums sums[64];
    for (int k = 0; k < r.shards; k++) {
        double word[2];
        fill_sums(sums, r.shards, 1);
        sums[k].loss = (double)not_finite[k % COUNT(not_finite)];
        write_sums(&r, sums);
        MUST(ops->step_begin(be, control_of(&r), r.in, r.slots));
        MUST(ops->step_word(be, control_of(&r), sums_of(&r), r.shards, exact, r.word.data));
        read_word(&r, exact, word);
        ck_assert_double_eq(word[0], 0);
        ck_assert_double_eq(word[1], 1);
        ck_assert_uint_eq(read_control(&r).failures, STEP_LOSS);
        ck_assert_uint_eq(read_control(&r).halted, 0); /* the sum over ranks decides */
    }
    rig_free(&r);
    ops->close(be);
}
END_TEST

/* What failed before the word, and what the host says, are an error, too. */
START_TEST(word_tells_what_failed_before)
{
    const backend_ops *ops = loop_backend(_i, 2);
    const bool exact = _i % 2;
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    rig r = rig_new(be, 2, 1);
    const loss_sums fine = sums_at(0, 0);
    double word[2];
    write_sums(&r, &fine);
    r.in[0].error = 1;
    r.in[0].stop = 1;
    MUST(ops->step_begin(be, control_of(&r), r.in, r.slots));
    ck_assert_uint_eq(read_control(&r).failures, STEP_TOLD);
    MUST(ops->step_word(be, control_of(&r), sums_of(&r), 1, exact, r.word.data));
    read_word(&r, exact, word);
    ck_assert_double_eq(word[0], 1);
    ck_assert_double_eq(word[1], 1);

    step_control c = {.step = 1, .failures = STEP_TOLD | STEP_LOSS, .stops = 5, .errors = 6};
    write_control(&r, &c);
    MUST(ops->step_begin(be, control_of(&r), r.in, r.slots)); /* of a new step: forgotten */
    c = read_control(&r);
    ck_assert_uint_eq(c.failures, 0);
    ck_assert_float_eq(c.stops + c.errors, 0);
    c.failures = STEP_REFUSED;
    write_control(&r, &c);
    MUST(ops->step_word(be, control_of(&r), sums_of(&r), 1, exact, r.word.data));
    read_word(&r, exact, word);
    ck_assert_double_eq(word[0], 0);
    ck_assert_double_eq(word[1], 1);
    ck_assert_uint_eq(read_control(&r).failures, STEP_REFUSED);
    rig_free(&r);
    ops->close(be);
}
END_TEST

/* An error on any rank halts for good, and is reported with the step. */
START_TEST(judgement_is_for_good)
{
    const backend_ops *ops = loop_backend(_i, 2);
    const bool exact = _i % 2;
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    rig r = rig_new(be, 4, 1);
    const loss_sums fine = sums_at(0, 0);
    write_sums(&r, &fine);
    for (int step = 0; step < 4; step++) {
        MUST(ops->step_begin(be, control_of(&r), r.in, r.slots));
        MUST(ops->step_word(be, control_of(&r), sums_of(&r), 1, exact, r.word.data));
        write_word(&r, exact, step, step == 1 ? 2 : 0);
        MUST(ops->step_judge(be, control_of(&r), exact, r.word.data));
        MUST(ops->step_end(be, control_of(&r), sums_of(&r), 1, r.out, r.out_sums, r.slots));
    }
    const step_control c = read_control(&r);
    ck_assert_uint_eq(c.step, 4);
    ck_assert_uint_eq(c.halted, 1);
    for (int step = 0; step < 4; step++) {
        ck_assert_uint_eq(r.out[step].step, (uint64_t)step);
        ck_assert_float_eq(r.out[step].stops, (float)step);
        ck_assert_float_eq(r.out[step].errors, step == 1 ? 2 : 0);
        ck_assert_uint_eq(r.out[step].failures, 0); /* it was another rank's */
        ck_assert_uint_eq(r.out[step].halted, step >= 1);
    }
    rig_free(&r);
    ops->close(be);
}
END_TEST

/* ---- copies and shared memory ---- */

START_TEST(copies)
{
    const backend_ops *ops = loop_backend(_i, 1);
    static const size_t sizes[] = {0, 1, 63, 1000, 100003};
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    for (int i = 0; i < COUNT(sizes); i++) {
        unsigned char *data = malloc(sizes[i] + 1), *back = malloc(sizes[i] + 1);
        ck_assert(data && back);
        for (size_t k = 0; k < sizes[i]; k++)
            data[k] = (unsigned char)(k * 7 + 1);
        tensor from = tensor_bytes_new(be, sizes[i], data);
        tensor to = tensor_bytes_new(be, sizes[i], NULL);
        MUST(ops->copy(be, to.data, from.data, sizes[i]));
        MUST(ops->download(be, back, to.data, sizes[i]));
        ck_assert(memcmp(data, back, sizes[i]) == 0);
        tensor_free(&from);
        tensor_free(&to);
        free(data);
        free(back);
    }
    ops->close(be);
}
END_TEST

START_TEST(shared_memory)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    enum {
        N = 1000
    };
    backend *be = open_ops(ops, 1, 1);
    float *shared = shared_new(be, N * sizeof *shared),
          *result = shared_new(be, N * sizeof *result);
    for (int i = 0; i < N; i++) {
        ck_assert_float_eq(shared[i], 0);
        shared[i] = (float)i;
    }
    tensor ones = vector_new(be, N, NULL), out = vector_new(be, N, NULL);
    MUST(ops->copy(be, ones.data, shared, N * sizeof(float)));
    MUST(ops->add(be, N, ones.data, shared, out.data));
    MUST(ops->copy(be, result, out.data, N * sizeof(float)));
    float *got = tensor_take(&out); /* and so all before it has run */
    for (int i = 0; i < N; i++) {
        ck_assert_float_eq(got[i], 2 * (float)i);
        ck_assert_float_eq(result[i], 2 * (float)i);
    }
    free(got);
    tensor_free(&ones);
    ops->release_shared(be, shared);
    ops->release_shared(be, result);
    ops->release_shared(be, NULL);
    ops->close(be);
}
END_TEST

/* ---- updates under a control ---- */

enum {
    UPDATED = 1003,
};
static const sgd_params update_params = {0.1f, 0.9f, 5e-4f, 0.5f, true};

/* Parameters and velocity after one step under `c` (NULL: with params' rate). */
static void sgd_under(backend *be, float lr, const step_control *c, float **ret_p, float **ret_v)
{
    float *p = host_random(1, UPDATED), *g = host_random(2, UPDATED), *v = host_random(3, UPDATED);
    tensor pt = vector_new(be, UPDATED, p), gt = vector_new(be, UPDATED, g);
    tensor vt = vector_new(be, UPDATED, v);
    tensor control = tensor_bytes_new(be, sizeof *c, c);
    sgd_params params = update_params;
    params.lr = lr;
    MUST(be->ops->sgd(be, UPDATED, pt.data, gt.data, vt.data, &params,
                      c ? (const step_control *)(const void *)control.data : NULL));
    *ret_p = tensor_take(&pt);
    *ret_v = tensor_take(&vt);
    tensor_free(&gt);
    tensor_free(&control);
    free(p);
    free(g);
    free(v);
}

START_TEST(sgd_takes_the_rate_of_its_control)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    step_control c = {.step = 7, .in = {.lr = 0.037f}, .failures = STEP_LOSS};
    float *p, *v, *got_p, *got_v, *before_p = host_random(1, UPDATED);
    float *before_v = host_random(3, UPDATED);
    sgd_under(be, 0.037f, NULL, &p, &v);
    sgd_under(be, 99, &c, &got_p, &got_v);
    check_same_bits("p", UPDATED, got_p, p);
    check_same_bits("v", UPDATED, got_v, v);
    free(got_p);
    free(got_v);
    c.halted = 1;
    sgd_under(be, 99, &c, &got_p, &got_v);
    check_same_bits("p, halted", UPDATED, got_p, before_p);
    check_same_bits("v, halted", UPDATED, got_v, before_v);
    float *all[] = {p, v, got_p, got_v, before_p, before_v};
    for (int i = 0; i < COUNT(all); i++)
        free(all[i]);
    ops->close(be);
}
END_TEST

START_TEST(blend_obeys_its_control)
{
    const backend_ops *ops = loop_backend(_i, 1);
    if (!ops)
        return;
    backend *be = open_ops(ops, 1, 1);
    float *x = host_random(1, UPDATED), *y = host_random(2, UPDATED);
    tensor xt = vector_new(be, UPDATED, x), free_y = vector_new(be, UPDATED, y);
    tensor steered = vector_new(be, UPDATED, y);
    step_control c = {.halted = 0};
    tensor control = tensor_bytes_new(be, sizeof c, &c);
    const step_control *on_device = (const step_control *)(const void *)control.data;
    MUST(ops->blend(be, UPDATED, free_y.data, 0.9f, xt.data, 0.3f, NULL));
    MUST(ops->blend(be, UPDATED, steered.data, 0.9f, xt.data, 0.3f, on_device));
    c.halted = 1;
    MUST(ops->upload(be, control.data, &c, sizeof c));
    MUST(ops->blend(be, UPDATED, steered.data, 0, xt.data, 0, on_device));
    float *expect = tensor_take(&free_y), *got = tensor_take(&steered);
    check_same_bits("blend", UPDATED, got, expect);
    tensor_free(&control);
    tensor_free(&xt);
    free(expect);
    free(got);
    free(x);
    free(y);
    ops->close(be);
}
END_TEST

/* ---- recorded graphs ---- */

/* Everything of a step but the nets: counts launches in `total`, under the control. */
static void record_step(rig *r, const tensor *total, const tensor *one, const tensor *scratch)
{
    const backend_ops *ops = r->be->ops;
    const size_t bytes = total->bytes;
    const int64_t n = (int64_t)(bytes / sizeof(float));
    MUST(ops->step_begin(r->be, control_of(r), r->in, r->slots));
    MUST(ops->zero(r->be, scratch->data, bytes));
    MUST(ops->add(r->be, n, scratch->data, one->data, scratch->data));
    MUST(ops->step_word(r->be, control_of(r), sums_of(r), r->shards, false, r->word.data));
    MUST(ops->step_judge(r->be, control_of(r), false, r->word.data));
    MUST(ops->blend(r->be, n, total->data, 1, scratch->data, 1, control_of(r)));
    MUST(ops->step_end(r->be, control_of(r), sums_of(r), r->shards, r->out, r->out_sums, r->slots));
}

START_TEST(graph_runs_when_it_is_launched)
{
    const backend_ops *ops = loop_backend(_i, 1);
    enum {
        N = 1001
    };
    if (!ops || !ops->graph_begin)
        return;
    backend *be = open_ops(ops, 1, 1);
    rig r = rig_new(be, 3, 2);
    loss_sums sums[2];
    float *zeros = host_fill(N, 0), *ones = host_fill(N, 1);
    tensor total = vector_new(be, N, zeros), one = vector_new(be, N, ones);
    tensor scratch = vector_new(be, N, NULL);
    backend_graph *g = NULL;
    MUST(ops->graph_begin(be));
    record_step(&r, &total, &one, &scratch);
    MUST(ops->graph_end(be, &g));
    ck_assert_uint_eq(read_control(&r).step, 0);
    for (int step = 0; step < 8; step++) {
        /* what the steps read changes between launches, not the graph */
        r.in[step % r.slots] = (step_input){.lr = (float)step, .error = step == 6 ? 1 : 0};
        fill_sums(sums, r.shards, step);
        write_sums(&r, sums);
        MUST(ops->graph_launch(g));
        const step_control c = read_control(&r);
        ck_assert_uint_eq(c.step, (uint64_t)step + 1);
        ck_assert_float_eq(c.in.lr, (float)step);
        ck_assert_uint_eq(c.halted, step >= 6);
        ck_assert_uint_eq(r.out[step % r.slots].step, (uint64_t)step);
        check_sums(r.out_sums + (step % r.slots) * r.shards, r.shards, step);
    }
    float *got = tensor_take(&total);
    for (int i = 0; i < N; i++)
        ck_assert_float_eq(got[i], 6); /* not in the step that failed, nor after it */
    ops->graph_destroy(&g);
    ck_assert_ptr_null(g);
    ops->graph_destroy(&g);
    tensor_free(&one);
    tensor_free(&scratch);
    rig_free(&r);
    free(got);
    free(zeros);
    free(ones);
    ops->close(be);
}
END_TEST

/* Launches are done in order, with ops between them. */
START_TEST(graph_keeps_its_place_among_ops)
{
    const backend_ops *ops = loop_backend(_i, 1);
    enum {
        N = 4099
    };
    if (!ops || !ops->graph_begin)
        return;
    backend *be = open_ops(ops, 1, 1);
    float *ones = host_fill(N, 1);
    tensor x = vector_new(be, N, ones);
    backend_graph *g = NULL;
    MUST(ops->graph_begin(be));
    MUST(ops->add(be, N, x.data, x.data, x.data)); /* doubles */
    MUST(ops->graph_end(be, &g));
    tensor one = vector_new(be, N, ones);
    for (int i = 0; i < 3; i++) {
        MUST(ops->graph_launch(g));
        MUST(ops->add(be, N, x.data, one.data, x.data));
    }
    float *got = tensor_take(&x);
    for (int i = 0; i < N; i++)
        ck_assert_float_eq(got[i], 15); /* ((1 * 2 + 1) * 2 + 1) * 2 + 1 */
    ops->graph_destroy(&g);
    tensor_free(&one);
    free(got);
    free(ones);
    ops->close(be);
}
END_TEST

/* What waits for the device cannot be recorded; afterwards all is as before. */
START_TEST(graph_that_fails)
{
    const backend_ops *ops = loop_backend(_i, 5);
    if (!ops || !ops->graph_begin)
        return;
    backend *be = open_ops(ops, 1, 1);
    float host[4] = {1, 2, 3, 4};
    tensor x = vector_new(be, 4, host);
    backend_graph *g = NULL;
    backend_event *e = NULL;
    void *memory = NULL;
    MUST(ops->event_create(be, &e, NULL));
    ck_assert_int_ne(ops->graph_end(be, &g), STATUS_OK); /* none was begun */
    MUST(ops->graph_begin(be));
    MUST(ops->add(be, 4, x.data, x.data, x.data));
    status st = STATUS_OK;
    if (_i % 5 == 0)
        st = ops->download(be, host, x.data, sizeof host);
    else if (_i % 5 == 1)
        st = ops->upload(be, x.data, host, sizeof host);
    else if (_i % 5 == 2)
        st = ops->alloc(be, 64, &memory, NULL);
    else if (_i % 5 == 3)
        st = ops->graph_begin(be);
    else
        st = ops->event_record(e);
    ck_assert_int_ne(st, STATUS_OK);
    ck_assert_str_ne(ops->last_error(be), "");
    ck_assert_ptr_null(memory);
    ck_assert_int_ne(ops->graph_end(be, &g), STATUS_OK);
    ck_assert_ptr_null(g);
    float *got = tensor_read(&x); /* nothing ran */
    for (int i = 0; i < 4; i++)
        ck_assert_float_eq(got[i], (float)(i + 1));
    free(got);
    MUST(ops->graph_begin(be));
    MUST(ops->add(be, 4, x.data, x.data, x.data));
    MUST(ops->graph_end(be, &g));
    MUST(ops->graph_launch(g));
    got = tensor_take(&x);
    ck_assert_float_eq(got[3], 8);
    free(got);
    ops->graph_destroy(&g);
    ops->event_destroy(&e);
    ops->close(be);
}
END_TEST

/* ---- events and feeds ---- */

START_TEST(events_tell_what_has_run)
{
    const backend_ops *ops = loop_backend(_i, 1);
    enum {
        N = 1 << 20
    };
    if (!ops || !ops->event_create)
        return;
    backend *be = open_ops(ops, 1, 1);
    float *ones = host_fill(N, 1), *result = shared_new(be, N * sizeof *result);
    tensor x = vector_new(be, N, ones);
    backend_event *e = NULL;
    bool done = false;
    MUST(ops->event_create(be, &e, NULL));
    MUST(ops->event_done(e, &done));
    ck_assert(done); /* never recorded */
    for (int round = 1; round <= 3; round++) {
        MUST(ops->add(be, N, x.data, x.data, x.data));
        MUST(ops->copy(be, result, x.data, N * sizeof *result));
        MUST(ops->event_record(e));
        wait_for(e, ops);
        ck_assert_float_eq(result[0], (float)(1 << round));
        ck_assert_float_eq(result[N - 1], (float)(1 << round));
    }
    ops->event_destroy(&e);
    ck_assert_ptr_null(e);
    ops->event_destroy(&e);
    tensor_free(&x);
    ops->release_shared(be, result);
    free(ones);
    ops->close(be);
}
END_TEST

/* Two buffers that take turns, each filled again when its event says that it was read. */
START_TEST(feeds_arrive_before_the_ops_that_follow)
{
    const backend_ops *ops = loop_backend(_i, 1);
    enum {
        N = 100003,
        STEPS = 9
    };
    if (!ops || !ops->feed)
        return;
    backend *be = open_ops(ops, 1, 1);
    float *zeros = host_fill(N, 0), *staged[2];
    tensor total = vector_new(be, N, zeros), buffer[2];
    backend_event *read[2] = {NULL, NULL};
    for (int i = 0; i < 2; i++) {
        staged[i] = shared_new(be, N * sizeof(float));
        buffer[i] = vector_new(be, N, NULL);
        MUST(ops->event_create(be, &read[i], NULL));
    }
    for (int step = 0; step < STEPS; step++) {
        const int i = step % 2;
        wait_for(read[i], ops); /* before the host writes what an earlier feed reads */
        for (int k = 0; k < N; k++)
            staged[i][k] = (float)(step + k % 3);
        MUST(
            ops->feed(be, buffer[i].data, staged[i], N * sizeof(float), step < 2 ? NULL : read[i]));
        MUST(ops->add(be, N, total.data, buffer[i].data, total.data));
        MUST(ops->event_record(read[i]));
    }
    float *got = tensor_take(&total);
    for (int k = 0; k < N; k++)
        ck_assert_float_eq(got[k], (float)(STEPS * (STEPS - 1) / 2 + STEPS * (k % 3)));
    for (int i = 0; i < 2; i++) {
        tensor_free(&buffer[i]);
        ops->event_destroy(&read[i]);
        ops->release_shared(be, staged[i]);
    }
    free(got);
    free(zeros);
    ops->close(be);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("step control");
    TCase *tc = tcase_create("control");
    ADD_CASES(tc, steps_follow_one_another, COUNT(rings));
    ADD_CASES(tc, word_tells_a_loss_that_is_not_finite, COUNT(rings));
    ADD_CASES(tc, word_tells_what_failed_before, 2);
    ADD_CASES(tc, judgement_is_for_good, 2);
    ADD_CASES(tc, sgd_takes_the_rate_of_its_control, 1);
    ADD_CASES(tc, blend_obeys_its_control, 1);
    suite_add_tcase(suite, tc);
    tc = tcase_create("order");
    ADD_CASES(tc, copies, 1);
    ADD_CASES(tc, shared_memory, 1);
    ADD_CASES(tc, graph_runs_when_it_is_launched, 1);
    ADD_CASES(tc, graph_keeps_its_place_among_ops, 1);
    ADD_CASES(tc, graph_that_fails, 5);
    ADD_CASES(tc, events_tell_what_has_run, 1);
    ADD_CASES(tc, feeds_arrive_before_the_ops_that_follow, 1);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
