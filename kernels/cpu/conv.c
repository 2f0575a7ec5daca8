/*
 * Convolutions: which oneDNN pass serves a shape, and running it.
 *
 * A pass works on native tensors where oneDNN has a fast kernel for them, else on plain copies in
 * the lane's scratch. Channels (and the groups of a depthwise conv) are rounded up to whole blocks:
 * padded weights are zeros, so padded outputs are zeros too, and no kernel meets a part of a block.
 */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/weights.h"

typedef struct conv_pass {
    onednn_pass *pass;     /* NULL: not asked for */
    bool plain_x, plain_y; /* through plain copies */
    int threads;           /* fixed when the pass is made, and the same whenever it runs */
} conv_pass;

struct backend_conv {
    backend_weights *weights;
    weights_kernel *kernel;
    int lane;
    conv_desc desc;
    shape y;
    conv_pass pass[ONEDNN_PASSES];
    float *bias; /* padded, and its gradient */
    bool adds;   /* to a weight gradient that an earlier conv made */
    /* offsets into the lane's scratch; oneDNN's own is at 0 */
    size_t plain_x_at, plain_y_at, gradient_at;
};

static const char *const pass_names[ONEDNN_PASSES] = {"forward", "backward_data",
                                                      "backward_weights"};
static const char *const algorithm_names[] = {"direct", "winograd"};

/* ---- what oneDNN is asked for ---- */

static onednn_problem plain_problem(const conv_desc *d)
{
    shape y = conv_output(d);
    return (onednn_problem){
        .n = d->x.n,
        .groups = d->groups,
        .in = d->x.c,
        .out = d->out,
        .h = d->x.h,
        .w = d->x.w,
        .oh = y.h,
        .ow = y.w,
        .kh = d->kh,
        .kw = d->kw,
        .stride_h = d->stride_h,
        .stride_w = d->stride_w,
        .pad_h = d->pad_h,
        .pad_w = d->pad_w,
        .dilation = d->dilation,
        .x_block = 1,
        .y_block = 1,
        .bias = d->bias,
    };
}

/* The same on native tensors; false where groups do not fall on whole blocks. */
static bool native_problem(const conv_desc *d, int block, onednn_problem *ret)
{
    onednn_problem p = plain_problem(d);
    const bool image = d->x_layout == LAYOUT_IMAGE;
    p.x_block = image ? 1 : block;
    p.y_block = block;
    if (d->groups == 1) {
        p.in = image ? d->x.c : (int)round_up(d->x.c, block);
        p.out = (int)round_up(d->out, block);
    } else if (!image && d->groups == d->x.c && d->groups == d->out) {
        p.groups = p.in = p.out = (int)round_up(d->groups, block);
    } else if (d->x.c / d->groups % block != 0 || d->out / d->groups % block != 0) {
        return false;
    }
    *ret = p;
    return true;
}

static void shape_key(const conv_desc *d, char *key, size_t size)
{
    snprintf(key, size, "n%d c%d h%d w%d k%d r%dx%d s%dx%d p%dx%d d%d g%d %s", d->x.n, d->x.c,
             d->x.h, d->x.w, d->out, d->kh, d->kw, d->stride_h, d->stride_w, d->pad_h, d->pad_w,
             d->dilation, d->groups, d->x_layout == LAYOUT_IMAGE ? "image" : "native");
}

/* Threads of a pass. oneDNN cuts the matrix products behind plain convs differently for every
 * number of threads; with one, a forward pass has the same bits on any number. */
static int pass_threads(const backend_conv *c, enum onednn_pass_kind kind, bool plain)
{
    const backend_options *options = &c->weights->cpu->base.options;
    return options->lanes > 1 || (plain && kind == ONEDNN_FORWARD) ? 1 : options->threads;
}

/* ---- choosing ---- */

/* A pass that is being chosen: the best so far, with the weight layout that it wants. */
typedef struct candidate {
    onednn_pass *pass;
    weight_layout layout;
    bool plain;
} candidate;

static status try_pass(const backend_conv *c, enum onednn_pass_kind kind,
                       const onednn_problem *problem, enum onednn_algorithm algorithm,
                       candidate *ret, errbuf *err)
{
    ret->layout = c->kernel->layout[kind];
    ret->plain = problem->y_block == 1;
    int threads = omp_get_max_threads();
    omp_set_num_threads(pass_threads(c, kind, ret->plain));
    status st = onednn_pass_create(c->weights->cpu->dnn, problem, kind, algorithm, &ret->layout,
                                   &ret->pass, err);
    omp_set_num_threads(threads);
    return st;
}

/* Seconds that a pass takes on scratch tensors: the fastest of a few runs; < 0: no memory. */
static double time_pass(const backend_conv *c, enum onednn_pass_kind kind, const onednn_problem *p,
                        const candidate *a)
{
    const size_t x = (size_t)p->n * (size_t)p->in * (size_t)p->h * (size_t)p->w;
    const size_t y = (size_t)p->n * (size_t)p->out * (size_t)p->oh * (size_t)p->ow;
    float *memory[] = {cpu_memory(x * sizeof(float)), cpu_memory(y * sizeof(float)),
                       cpu_memory((size_t)a->layout.elements * sizeof(float)),
                       cpu_memory(onednn_pass_scratch(a->pass)),
                       cpu_memory((size_t)p->out * sizeof(float))};
    double best = -1;
    bool ok = memory[0] && memory[1] && memory[2] && memory[3] && memory[4];
    int threads = omp_get_max_threads();
    omp_set_num_threads(pass_threads(c, kind, a->plain));
    for (int run = 0; ok && run < 5; run++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        ok = onednn_pass_run(a->pass, c->weights->cpu->lane[c->lane].stream, memory[0], memory[2],
                             memory[4], memory[1], memory[3]) == 0;
        clock_gettime(CLOCK_MONOTONIC, &end);
        double seconds =
            (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
        if (ok && run > 0 && (best < 0 || seconds < best))
            best = seconds;
    }
    omp_set_num_threads(threads);
    for (size_t m = 0; m < sizeof memory / sizeof *memory; m++)
        free(memory[m]);
    return ok ? best : -1;
}

/* What a plan says about a pass: an algorithm, or -1. */
static int planned_algorithm(const cJSON *plan, enum onednn_pass_kind kind, const char *key)
{
    const cJSON *shape_plan = cJSON_GetObjectItemCaseSensitive(plan, key);
    const char *name =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(shape_plan, pass_names[kind]));
    return !name                                                 ? -1
           : strcmp(name, algorithm_names[ONEDNN_WINOGRAD]) == 0 ? ONEDNN_WINOGRAD
                                                                 : ONEDNN_DIRECT;
}

/* The algorithm that is settled already, or -1. A given plan settles all, so one that does not know
 * the shape is for another job. Tuning settles a shape once: what the plan records is what runs, in
 * every conv of the shape and every lane. */
static status find_planned(const backend_conv *c, enum onednn_pass_kind kind, const char *key,
                           int *ret_algorithm, errbuf *err)
{
    const cpu_backend *cpu = c->weights->cpu;
    const cJSON *plan = cpu->base.options.tune ? cpu->plan_made : NULL;
    *ret_algorithm = planned_algorithm(cpu->plan_given ? cpu->plan_given : plan, kind, key);
    if (cpu->plan_given && *ret_algorithm < 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "plan: conv \"%s\", %s is not in it: the plan is for another network, "
                          "batch, or number of ranks",
                          key, pass_names[kind]);
    return STATUS_OK;
}

/* Direct or Winograd on native tensors: the plan's, else the faster if asked to tune, else a fixed
 * rule: Winograd where oneDNN has it (AVX-512, 3x3, stride 1). */
static status choose_native(backend_conv *c, enum onednn_pass_kind kind,
                            const onednn_problem *problem, const char *key, int planned,
                            enum onednn_algorithm *ret_algorithm, candidate *ret, errbuf *err)
{
    const conv_desc *d = &c->desc;
    candidate direct = {0}, winograd = {0};
    bool suits = onednn_effective_isa() == ONEDNN_ISA_AVX512 && d->kh == 3 && d->kw == 3 &&
                 d->stride_h == 1 && d->stride_w == 1 && d->dilation == 1 && d->groups == 1;
    if (planned == ONEDNN_WINOGRAD || (planned < 0 && suits))
        TRY(try_pass(c, kind, problem, ONEDNN_WINOGRAD, &winograd, err));
    if (planned == ONEDNN_WINOGRAD && !winograd.pass)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "plan: conv \"%s\", %s: oneDNN has no winograd for it here; use direct",
                          key, pass_names[kind]);
    if (!winograd.pass || (planned < 0 && c->weights->cpu->base.options.tune)) {
        status st = try_pass(c, kind, problem, ONEDNN_DIRECT, &direct, err);
        if (st != STATUS_OK) {
            onednn_pass_destroy(&winograd.pass);
            return st;
        }
    }
    bool take_direct = !winograd.pass;
    if (direct.pass && winograd.pass) {
        double slow = time_pass(c, kind, problem, &direct),
               fast = time_pass(c, kind, problem, &winograd);
        take_direct = slow >= 0 && fast >= 0 && slow < fast;
    }
    onednn_pass_destroy(take_direct ? &winograd.pass : &direct.pass);
    *ret_algorithm = take_direct ? ONEDNN_DIRECT : ONEDNN_WINOGRAD;
    *ret = take_direct ? direct : winograd;
    return STATUS_OK;
}

/* Native where that is fast; else plain copies where they are; else whatever there is. */
static status choose_pass(backend_conv *c, enum onednn_pass_kind kind, const char *key,
                          enum onednn_algorithm *ret_algorithm, candidate *ret, errbuf *err)
{
    onednn_problem native, plain = plain_problem(&c->desc);
    candidate best = {0}, other = {0};
    enum onednn_algorithm algorithm = ONEDNN_DIRECT;
    int planned = -1;
    TRY(find_planned(c, kind, key, &planned, err));
    if (native_problem(&c->desc, c->weights->cpu->simd->block, &native))
        TRY(choose_native(c, kind, &native, key, planned, &algorithm, &best, err));
    else if (planned == ONEDNN_WINOGRAD)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "plan: conv \"%s\", %s: oneDNN has no winograd for it here; use direct",
                          key, pass_names[kind]);
    if (!best.pass || onednn_pass_slow(best.pass)) {
        status st = try_pass(c, kind, &plain, ONEDNN_DIRECT, &other, err);
        if (st != STATUS_OK) {
            onednn_pass_destroy(&best.pass);
            return st;
        }
        if (other.pass && (!best.pass || !onednn_pass_slow(other.pass))) {
            onednn_pass_destroy(&best.pass);
            best = other;
            algorithm = ONEDNN_DIRECT;
        }
        if (best.pass != other.pass)
            onednn_pass_destroy(&other.pass);
    }
    if (!best.pass)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "conv \"%s\", %s: oneDNN has no implementation that shares its kernel's "
                          "weights with the convs before it",
                          key, pass_names[kind]);
    *ret_algorithm = algorithm;
    *ret = best;
    return STATUS_OK;
}

static status record_choice(cpu_backend *cpu, const char *key, enum onednn_pass_kind kind,
                            enum onednn_algorithm algorithm, errbuf *err)
{
    cJSON *entry = cJSON_GetObjectItemCaseSensitive(cpu->plan_made, key);
    if (!entry)
        entry = cJSON_AddObjectToObject(cpu->plan_made, key);
    if (entry && cJSON_GetObjectItemCaseSensitive(entry, pass_names[kind]))
        return STATUS_OK;
    if (!entry || !cJSON_AddStringToObject(entry, pass_names[kind], algorithm_names[algorithm]))
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory recording the plan");
    return STATUS_OK;
}

/* ---- creating ---- */

static status check_conv(const backend_weights *w, int kernel, int lane, const conv_desc *d,
                         errbuf *err)
{
    TRY(cpu_check_lane(w->cpu, lane, err));
    TRY(cpu_check_shape(d->x, "conv", err));
    if (w->committed || kernel < 0 || kernel >= w->kernels)
        return errbuf_set(err, STATUS_BAD_INPUT, "conv of kernel %d of %d%s", kernel, w->kernels,
                          w->committed ? ": the weights are committed already" : "");
    const kernel_shape *s = &w->kernel[kernel].shape;
    if (d->groups < 1 || d->x.c % d->groups != 0 || d->out % d->groups != 0 || d->out != s->out ||
        d->x.c / d->groups != s->in || d->kh != s->kh || d->kw != s->kw)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "conv of %d to %d channels in %d groups, %d x %d: kernel %d is %d x %d x "
                          "%d x %d",
                          d->x.c, d->out, d->groups, d->kh, d->kw, kernel, s->out, s->in, s->kh,
                          s->kw);
    shape y = conv_output(d);
    if (d->stride_h < 1 || d->stride_w < 1 || d->pad_h < 0 || d->pad_w < 0 || d->dilation < 1 ||
        y.h < 1 || y.w < 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "conv of %d x %d pixels with a %d x %d kernel: no output", d->x.h, d->x.w,
                          d->kh, d->kw);
    return STATUS_OK;
}

static bool asks_for(const conv_desc *d, enum onednn_pass_kind kind)
{
    static const unsigned flag[ONEDNN_PASSES] = {CONV_FORWARD, CONV_BACKWARD_DATA,
                                                 CONV_BACKWARD_WEIGHTS};
    return (d->passes & flag[kind]) != 0;
}

static status create_passes(backend_conv *c, errbuf *err)
{
    char key[160];
    shape_key(&c->desc, key, sizeof key);
    for (int kind = 0; kind < ONEDNN_PASSES; kind++) {
        enum onednn_algorithm algorithm = ONEDNN_DIRECT;
        candidate chosen = {0};
        if (!asks_for(&c->desc, kind))
            continue;
        TRY(choose_pass(c, kind, key, &algorithm, &chosen, err));
        c->pass[kind] = (conv_pass){.pass = chosen.pass,
                                    .plain_x = chosen.plain && c->desc.x_layout != LAYOUT_IMAGE,
                                    .plain_y = chosen.plain,
                                    .threads = pass_threads(c, kind, chosen.plain)};
        c->kernel->layout[kind] = chosen.layout;
        TRY(record_choice(c->weights->cpu, key, kind, algorithm, err));
    }
    return STATUS_OK;
}

/* Lays out what the conv needs of its lane's scratch, and the padded bias. */
static status reserve_memory(backend_conv *c, errbuf *err)
{
    size_t used = 0, plain_x = 0, plain_y = 0, gradient = 0;
    for (int kind = 0; kind < ONEDNN_PASSES; kind++) {
        const conv_pass *p = &c->pass[kind];
        if (!p->pass)
            continue;
        used = used > onednn_pass_scratch(p->pass) ? used : onednn_pass_scratch(p->pass);
        if (p->plain_x)
            plain_x = (size_t)shape_elements(c->desc.x) * sizeof(float);
        if (p->plain_y)
            plain_y = (size_t)shape_elements(c->y) * sizeof(float);
    }
    if (c->adds)
        gradient = (size_t)c->kernel->layout[ONEDNN_BACKWARD_WEIGHTS].elements * sizeof(float);
    c->plain_x_at = (size_t)round_up((int64_t)used, CPU_ALIGN);
    c->plain_y_at = c->plain_x_at + (size_t)round_up((int64_t)plain_x, CPU_ALIGN);
    c->gradient_at = c->plain_y_at + (size_t)round_up((int64_t)plain_y, CPU_ALIGN);
    TRY(cpu_reserve_scratch(c->weights->cpu, c->lane, c->gradient_at + gradient, err));
    if (c->desc.bias) {
        c->bias = cpu_memory((size_t)round_up(c->desc.out, CPU_ALIGN) * sizeof(float));
        if (!c->bias)
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a bias");
    }
    return STATUS_OK;
}

status cpu_conv_create(backend_weights *w, int kernel, int lane, const conv_desc *desc,
                       backend_conv **ret, errbuf *err)
{
    TRY(check_conv(w, kernel, lane, desc, err));
    backend_conv *c = calloc(1, sizeof *c);
    if (!c)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a conv");
    c->weights = w;
    c->kernel = &w->kernel[kernel];
    c->lane = lane;
    c->desc = *desc;
    c->y = conv_output(desc);
    c->adds = asks_for(desc, ONEDNN_BACKWARD_WEIGHTS) && c->kernel->writers[lane] > 0;
    status st = create_passes(c, err);
    if (st == STATUS_OK)
        st = reserve_memory(c, err);
    if (st != STATUS_OK) {
        cpu_conv_destroy(&c);
        return st;
    }
    c->kernel->writers[lane] += asks_for(desc, ONEDNN_BACKWARD_WEIGHTS);
    *ret = c;
    return STATUS_OK;
}

void cpu_conv_destroy(backend_conv **c)
{
    if (!c || !*c)
        return;
    for (int kind = 0; kind < ONEDNN_PASSES; kind++)
        onednn_pass_destroy(&(*c)->pass[kind].pass);
    free((*c)->bias);
    free(*c);
    *c = NULL;
}

/* ---- running ---- */

static status run_pass(backend_conv *c, enum onednn_pass_kind kind, const float *x,
                       const float *weights, const float *y)
{
    cpu_backend *cpu = c->weights->cpu;
    cpu_lane *lane = &cpu->lane[c->lane];
    if (!c->pass[kind].pass || !c->weights->committed)
        return cpu_fail(cpu, c->lane, STATUS_BAD_INPUT,
                        "conv: %s was not asked for, or its "
                        "weights are not committed",
                        pass_names[kind]);
    int threads = omp_get_max_threads();
    omp_set_num_threads(c->pass[kind].threads);
    int failed =
        onednn_pass_run(c->pass[kind].pass, lane->stream, x, weights, c->bias, y, lane->scratch);
    omp_set_num_threads(threads);
    if (failed)
        return cpu_fail(cpu, c->lane, STATUS_ENVIRONMENT,
                        "oneDNN failed in a conv's %s pass "
                        "(status %d)",
                        pass_names[kind], failed);
    return STATUS_OK;
}

/* Plain copies of a pass's tensors in the lane's scratch. */
static float *plain_x(const backend_conv *c)
{
    return (float *)(void *)(c->weights->cpu->lane[c->lane].scratch + c->plain_x_at);
}

static float *plain_y(const backend_conv *c)
{
    return (float *)(void *)(c->weights->cpu->lane[c->lane].scratch + c->plain_y_at);
}

/* Makes sure of zeros in the padding channels of what a pass made: padded weights are zeros, but
 * times an infinity they are not. */
static void clear_padding(const backend_conv *c, shape s, float *native)
{
    const cpu_backend *cpu = c->weights->cpu;
    const int block = cpu->simd->block, blocks = cpu_blocks(cpu, s.c), real = (s.c - 1) % block + 1;
    const int64_t pixels = (int64_t)s.h * s.w;
    if (real == block)
        return;
#pragma omp parallel for num_threads(cpu_threads(cpu)) schedule(static)
    for (int n = 0; n < s.n; n++) {
        float *last = native + ((int64_t)(n + 1) * blocks - 1) * pixels * block;
        for (int64_t p = 0; p < pixels; p++)
            memset(last + p * block + real, 0, (size_t)(block - real) * sizeof *last);
    }
}

/* The tensor as the pass reads it. */
static const float *read_tensor(const backend_conv *c, bool plain, shape s, const float *native,
                                float *copy)
{
    const cpu_backend *cpu = c->weights->cpu;
    if (!plain)
        return native;
    cpu_from_native(cpu, s, copy, native, cpu_threads(cpu));
    return copy;
}

status cpu_conv_forward(backend_conv *c, const float *x, const float *bias, float *y)
{
    const conv_pass *p = &c->pass[ONEDNN_FORWARD];
    const cpu_backend *cpu = c->weights->cpu;
    const float *from = read_tensor(c, p->plain_x, c->desc.x, x, plain_x(c));
    float *to = p->plain_y ? plain_y(c) : y;
    if (c->bias)
        memcpy(c->bias, bias, (size_t)c->desc.out * sizeof *bias);
    /* the gradient of an earlier step may have left something behind them */
    if (c->bias)
        memset(c->bias + c->desc.out, 0, sizeof *bias * (size_t)(-c->desc.out & (CPU_ALIGN - 1)));
    TRY(run_pass(c, ONEDNN_FORWARD, from, c->weights->values + c->kernel->at[ONEDNN_FORWARD], to));
    if (p->plain_y)
        cpu_to_native(cpu, c->y, y, to, cpu_threads(cpu));
    else
        clear_padding(c, c->y, y);
    return STATUS_OK;
}

status cpu_conv_backward_data(backend_conv *c, const float *dy, float *dx)
{
    const conv_pass *p = &c->pass[ONEDNN_BACKWARD_DATA];
    const cpu_backend *cpu = c->weights->cpu;
    const float *from = read_tensor(c, p->plain_y, c->y, dy, plain_y(c));
    float *to = p->plain_x ? plain_x(c) : dx;
    TRY(run_pass(c, ONEDNN_BACKWARD_DATA, to,
                 c->weights->values + c->kernel->at[ONEDNN_BACKWARD_DATA], from));
    if (p->plain_x)
        cpu_to_native(cpu, c->desc.x, dx, to, cpu_threads(cpu));
    else if (c->desc.x_layout == LAYOUT_NATIVE)
        clear_padding(c, c->desc.x, dx);
    return STATUS_OK;
}

status cpu_conv_backward_weights(backend_conv *c, const float *x, const float *dy, float *dbias)
{
    const conv_pass *p = &c->pass[ONEDNN_BACKWARD_WEIGHTS];
    const cpu_backend *cpu = c->weights->cpu;
    const int pass = ONEDNN_BACKWARD_WEIGHTS;
    const float *from_x = read_tensor(c, p->plain_x, c->desc.x, x, plain_x(c));
    const float *from_y = read_tensor(c, p->plain_y, c->y, dy, plain_y(c));
    float *sum = c->weights->grads[c->lane] + c->kernel->at[pass];
    float *to = !c->adds ? sum : (float *)(void *)(cpu->lane[c->lane].scratch + c->gradient_at);
    TRY(run_pass(c, pass, from_x, to, from_y));
    if (c->adds)
        TRY(cpu_add(&c->weights->cpu->base, c->kernel->layout[pass].elements, sum, to, sum));
    if (c->bias && dbias)
        memcpy(dbias, c->bias, (size_t)c->desc.out * sizeof *dbias);
    return STATUS_OK;
}
