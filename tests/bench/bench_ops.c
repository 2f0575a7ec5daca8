/*
 * Where the time of a training step goes, op by op: the convolutions, batch norms, pooling, fc,
 * expand and reduce of ResNet-18 with the CIFAR stem, called through a backend's vtable in the
 * order of a step, each with its own tensors. No data, no optimiser, no trainer.
 *
 *     bench_ops [--backend cpu] [--batch 128] [--width 64] [--threads 2] [--rounds 5]
 *               [--ring 2359296] [--index even|tile] [--clock wall|cpu]
 *
 * Prints one JSON object: milliseconds (medians over the rounds) per kind of op, conv shape and
 * pass, and for expand and reduce alone at other ring sizes. `--clock cpu` with one thread measures
 * processor time, which other programs on the machine disturb less.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/backend.h"

enum {
    MAX_CONVS = 20,
    MAX_ROUNDS = 101,
    MAX_ROWS = 128
};

typedef struct bench_options {
    const char *backend;
    int batch, width, threads, rounds, index;
    int64_t ring;
    clockid_t clock;
} bench_options;

/* A line of the result: an op's times, added up over its calls in a round. */
typedef struct row {
    char name[64];
    double seconds[MAX_ROUNDS];
} row;

/* A conv with the norm behind it, and its tensors. */
typedef struct unit {
    conv_desc conv_desc;
    backend_conv *conv;
    backend_bn *bn;
    float *conv_out, *out;                       /* after the conv, after the norm */
    float *gamma, *beta, *saved, *stats;         /* one block of [2C] each */
    float *dz, *dconv, *dgamma, *dbeta, *dinput; /* dinput: what the conv's backward data makes */
    char name[32];
} unit;

typedef struct bench {
    bench_options o;
    backend *be;
    backend_weights *weights;
    unit unit[MAX_CONVS];
    int units;
    int conv1[8], conv2[8], shortcut[8]; /* units of each block; shortcut -1: identity */
    float *image, *params, *grad, *pooled, *logits, *fc, *dfc, *dlogits, *dpooled;
    int32_t *labels;
    backend_pool *pool;
    backend_fc *fc_op;
    backend_loss *loss;
    row row[MAX_ROWS];
    int rows, round;
} bench;

static void must(status st, const errbuf *err)
{
    if (st == STATUS_OK)
        return;
    fprintf(stderr, "bench_ops: %s\n", err && err->text[0] ? err->text : status_name(st));
    exit((int)st);
}

static double now(const bench *b)
{
    struct timespec t;
    clock_gettime(b->o.clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void add_time(bench *b, double since, const char *what, const char *which)
{
    double seconds = now(b) - since;
    char name[64];
    int r = 0;
    snprintf(name, sizeof name, "%s%s%s", what, which[0] ? " " : "", which);
    while (r < b->rows && strcmp(b->row[r].name, name) != 0)
        r++;
    if (r == b->rows && b->rows < MAX_ROWS)
        snprintf(b->row[b->rows++].name, sizeof b->row[r].name, "%s", name);
    if (b->round >= 0)
        b->row[r].seconds[b->round] += seconds;
}

/* ---- building ---- */

static float *new_floats(bench *b, size_t bytes, float fill)
{
    void *memory = NULL;
    errbuf err = {0};
    must(b->be->ops->alloc(b->be, bytes, &memory, &err), &err);
    float *host = malloc(bytes);
    if (!host)
        must(STATUS_OUT_OF_MEMORY, NULL);
    uint32_t state = 1;
    for (size_t i = 0; i < bytes / sizeof(float); i++) {
        state = state * 1664525u + 1013904223u;
        host[i] = fill * ((float)(state >> 8) * 0x1p-23f - 1.0f);
    }
    must(b->be->ops->upload(b->be, memory, host, bytes), NULL);
    free(host);
    return memory;
}

static float *new_tensor(bench *b, shape s, layout l)
{
    return new_floats(b, b->be->ops->tensor_bytes(b->be, s, l), 0);
}

static int add_unit(bench *b, const char *name, shape x, int out, int kernel, int stride)
{
    unit *u = &b->unit[b->units];
    u->conv_desc = (conv_desc){.x = x,
                               .out = out,
                               .kh = kernel,
                               .kw = kernel,
                               .stride_h = stride,
                               .stride_w = stride,
                               .pad_h = kernel / 2,
                               .pad_w = kernel / 2,
                               .dilation = 1,
                               .groups = 1,
                               .x_layout = b->units ? LAYOUT_NATIVE : LAYOUT_IMAGE,
                               .passes = CONV_FORWARD | CONV_BACKWARD_WEIGHTS |
                                         (b->units ? CONV_BACKWARD_DATA : 0)};
    snprintf(u->name, sizeof u->name, "%s", name);
    return b->units++;
}

/* All convs in slot order: the stem, then each block's shortcut, first and second conv. */
static void list_units(bench *b)
{
    shape x = {b->o.batch, 3, 32, 32};
    add_unit(b, "stem", x, b->o.width, 3, 1);
    x.c = b->o.width;
    for (int block = 0; block < 8; block++) {
        int layer = block / 2, out = b->o.width << layer;
        bool first = layer > 0 && block % 2 == 0;
        char name[32], narrow[32];
        snprintf(name, sizeof name, "layer%d%s", layer + 1, first ? ".first" : "");
        snprintf(narrow, sizeof narrow, "layer%d.shortcut", layer + 1);
        b->shortcut[block] = first ? add_unit(b, narrow, x, out, 1, 2) : -1;
        b->conv1[block] = add_unit(b, name, x, out, 3, first ? 2 : 1);
        x.c = out;
        x.h = x.w = first ? x.h / 2 : x.h;
        snprintf(name, sizeof name, "layer%d", layer + 1);
        b->conv2[block] = add_unit(b, name, x, out, 3, 1);
    }
}

/* Weights of all units; the stem is direct, behind the ring. Convs for `batch` images. */
static void make_weights(bench *b, int batch, const ring_map_params *ring, backend_conv **convs,
                         backend_weights **ret)
{
    kernel_shape kernels[MAX_CONVS];
    weight_source sources[MAX_CONVS] = {0};
    errbuf err = {0};
    ring_map map;
    int64_t first = 0;
    must(ring_map_init(&map, ring, &err), &err);
    for (int i = 0; i < b->units; i++) {
        const conv_desc *d = &b->unit[i].conv_desc;
        kernels[i] = (kernel_shape){d->out, d->x.c, d->kh, d->kw};
        sources[i] = (weight_source){i ? &map : NULL, first, i ? 0 : ring->n, NULL};
        first += i ? kernel_elements(kernels[i]) : 0;
    }
    must(b->be->ops->weights_create(b->be, kernels, b->units, ret, &err), &err);
    for (int i = 0; i < b->units; i++) {
        conv_desc d = b->unit[i].conv_desc;
        d.x.n = batch;
        must(b->be->ops->conv_create(*ret, i, 0, &d, &convs[i], &err), &err);
    }
    must(b->be->ops->weights_commit(*ret, sources, ring->n + kernel_elements(kernels[0]), &err),
         &err);
    ring_map_fini(&map);
}

static int64_t ring_weights(const bench *b)
{
    int64_t m = 0;
    for (int i = 1; i < b->units; i++) {
        const conv_desc *d = &b->unit[i].conv_desc;
        m += kernel_elements((kernel_shape){d->out, d->x.c, d->kh, d->kw});
    }
    return m;
}

static void make_unit(bench *b, unit *u)
{
    errbuf err = {0};
    shape y = conv_output(&u->conv_desc);
    size_t channels = (size_t)y.c * 2 * sizeof(float);
    const bool shortcut = strstr(u->name, "shortcut") != NULL;
    bool second = false;
    for (int block = 0; block < 8; block++)
        second = second || &b->unit[b->conv2[block]] == u;
    bn_desc bn = {y, 1e-5f, !shortcut, second, 0};
    must(b->be->ops->bn_create(b->be, 0, &bn, &u->bn, &err), &err);
    u->conv_out = new_tensor(b, y, LAYOUT_NATIVE);
    u->out = new_tensor(b, y, LAYOUT_NATIVE);
    u->dz = new_tensor(b, y, LAYOUT_NATIVE);
    u->dconv = new_tensor(b, y, LAYOUT_NATIVE);
    u->dinput = new_tensor(b, u->conv_desc.x, u->conv_desc.x_layout);
    u->gamma = new_floats(b, channels, 1);
    u->beta = new_floats(b, channels, 1);
    u->saved = new_floats(b, channels, 0);
    u->stats = new_floats(b, channels, 0);
    u->dgamma = new_floats(b, channels, 0);
    u->dbeta = new_floats(b, channels, 0);
}

static void build(bench *b)
{
    errbuf err = {0};
    backend_options options = {.threads = b->o.threads, .lanes = 1};
    backend_conv *convs[MAX_CONVS];
    must(backend_open(b->o.backend, &options, &b->be, &err), &err);
    list_units(b);
    ring_map_params ring = {b->o.index, true, true, ring_weights(b), b->o.ring, 1, 0};
    make_weights(b, b->o.batch, &ring, convs, &b->weights);
    for (int i = 0; i < b->units; i++) {
        b->unit[i].conv = convs[i];
        make_unit(b, &b->unit[i]);
    }
    const int n = b->o.batch, features = 8 * b->o.width, classes = 100;
    size_t floats = (size_t)b->o.ring + 27 * (size_t)b->o.width;
    pool_desc pool = {.kind = POOL_GLOBAL_AVG, .x = {n, features, 4, 4}};
    fc_desc fc = {n, features, classes};
    loss_desc loss = {n, classes};
    must(b->be->ops->pool_create(b->be, 0, &pool, &b->pool, &err), &err);
    must(b->be->ops->fc_create(b->be, 0, &fc, &b->fc_op, &err), &err);
    must(b->be->ops->loss_create(b->be, 0, &loss, &b->loss, &err), &err);
    b->image = new_floats(b, (size_t)n * 3072 * sizeof(float), 1);
    b->params = new_floats(b, floats * sizeof(float), 0.05f);
    b->grad = new_floats(b, floats * sizeof(float), 0);
    b->pooled = new_floats(b, (size_t)n * (size_t)features * sizeof(float), 0);
    b->dpooled = new_floats(b, (size_t)n * (size_t)features * sizeof(float), 0);
    b->logits = new_floats(b, (size_t)n * (size_t)classes * sizeof(float), 0);
    b->dlogits = new_floats(b, (size_t)n * (size_t)classes * sizeof(float), 0);
    b->fc = new_floats(b, (size_t)(features + 1) * (size_t)classes * sizeof(float), 0.04f);
    b->dfc = new_floats(b, (size_t)(features + 1) * (size_t)classes * sizeof(float), 0);
    b->labels = calloc((size_t)n, sizeof *b->labels);
    if (!b->labels)
        must(STATUS_OUT_OF_MEMORY, NULL);
}

/* ---- a step ---- */

static void forward_unit(bench *b, int i, const float *x, const float *residual)
{
    unit *u = &b->unit[i];
    double t = now(b);
    must(b->be->ops->conv_forward(u->conv, x, NULL, u->conv_out), NULL);
    add_time(b, t, "conv forward", u->name);
    t = now(b);
    must(b->be->ops->bn_forward_train(u->bn, u->conv_out, residual, u->gamma, u->beta, u->out,
                                      u->saved, u->stats),
         NULL);
    add_time(b, t, "bn forward", u->name);
}

static void backward_unit(bench *b, int i, const float *x, const float *dy1, const float *dy2)
{
    unit *u = &b->unit[i];
    double t = now(b);
    must(b->be->ops->bn_backward(u->bn, u->conv_out, u->out, u->gamma, u->saved, dy1, dy2, u->dz,
                                 u->dconv, u->dgamma, u->dbeta),
         NULL);
    add_time(b, t, "bn backward", u->name);
    t = now(b);
    must(b->be->ops->conv_backward_weights(u->conv, x, u->dconv, NULL), NULL);
    add_time(b, t, "conv backward_weights", u->name);
    if (i == 0)
        return;
    t = now(b);
    must(b->be->ops->conv_backward_data(u->conv, u->dconv, u->dinput), NULL);
    add_time(b, t, "conv backward_data", u->name);
}

static void head(bench *b)
{
    const backend_ops *ops = b->be->ops;
    const int classes = 100;
    float *bias = b->fc + 8 * b->o.width * classes, *dbias = b->dfc + 8 * b->o.width * classes;
    loss_sums sums;
    double t = now(b);
    must(ops->pool_forward(b->pool, b->unit[b->conv2[7]].out, b->pooled, NULL), NULL);
    must(ops->fc_forward(b->fc_op, b->pooled, b->fc, bias, b->logits), NULL);
    must(ops->loss_run(b->loss, b->logits, b->labels, b->o.batch, 1.0f / (float)b->o.batch,
                       b->dlogits, &sums),
         NULL);
    must(ops->fc_backward(b->fc_op, b->pooled, b->fc, b->dlogits, b->dpooled, b->dfc, dbias), NULL);
    /* the last norm's dz has room for the gradient of its output */
    must(ops->pool_backward(b->pool, b->dpooled, NULL, NULL, b->unit[b->conv2[7]].dz), NULL);
    add_time(b, t, "pool, fc, loss", "");
}

static void step(bench *b)
{
    double begin = now(b), t = begin;
    must(b->be->ops->weights_expand(b->weights, b->params), NULL);
    add_time(b, t, "expand", "");
    forward_unit(b, 0, b->image, NULL);
    const float *x = b->unit[0].out;
    for (int block = 0; block < 8; block++) {
        int narrow = b->shortcut[block];
        if (narrow >= 0)
            forward_unit(b, narrow, x, NULL);
        forward_unit(b, b->conv1[block], x, NULL);
        forward_unit(b, b->conv2[block], b->unit[b->conv1[block]].out,
                     narrow >= 0 ? b->unit[narrow].out : x);
        x = b->unit[b->conv2[block]].out;
    }
    head(b);
    const float *dy1 = b->unit[b->conv2[7]].dz, *dy2 = NULL;
    for (int block = 7; block >= 0; block--) {
        int narrow = b->shortcut[block];
        unit *first = &b->unit[b->conv1[block]], *second = &b->unit[b->conv2[block]];
        x = block ? b->unit[b->conv2[block - 1]].out : b->unit[0].out;
        backward_unit(b, b->conv2[block], first->out, dy1, dy2);
        backward_unit(b, b->conv1[block], x, second->dinput, NULL);
        if (narrow >= 0)
            backward_unit(b, narrow, x, second->dz, NULL);
        dy1 = first->dinput;
        dy2 = narrow >= 0 ? b->unit[narrow].dinput : second->dz;
    }
    backward_unit(b, 0, b->image, dy1, dy2);
    t = now(b);
    must(b->be->ops->weights_reduce(b->weights, 0, b->grad), NULL);
    add_time(b, t, "reduce", "");
    add_time(b, begin, "step", "");
}

/* ---- rings of other sizes ---- */

typedef struct other_ring {
    const char *name;
    ring_map_params ring;
    backend_weights *weights;
    backend_conv *convs[MAX_CONVS];
    float *params, *grad;
} other_ring;

static void time_rings(bench *b)
{
    const int64_t m = ring_weights(b);
    other_ring rings[] = {
        {.name = "even 2359296", .ring = {RING_INDEX_EVEN, true, true, m, 2359296, 1, 0}},
        {.name = "tile 2359296", .ring = {RING_INDEX_TILE, true, true, m, 2359296, 1, 0}},
        {.name = "even 100000", .ring = {RING_INDEX_EVEN, true, true, m, 100000, 1, 0}},
        {.name = "even 1", .ring = {RING_INDEX_EVEN, true, true, m, 1, 1, 0}},
        {.name = "dense order", .ring = {RING_INDEX_EVEN, false, false, m, m, 1, 0}},
    };
    const int count = sizeof rings / sizeof *rings;
    for (int i = 0; i < count; i++) {
        other_ring *r = &rings[i];
        size_t bytes = ((size_t)r->ring.n + 27 * (size_t)b->o.width) * sizeof(float);
        double t = now(b);
        make_weights(b, 1, &r->ring, r->convs, &r->weights);
        b->round = 0;
        add_time(b, t, "make", r->name);
        for (int k = 1; k < b->o.rounds; k++)
            b->row[b->rows - 1].seconds[k] = b->row[b->rows - 1].seconds[0];
        r->params = new_floats(b, bytes, 0.05f);
        r->grad = new_floats(b, bytes, 0);
    }
    for (b->round = -1; b->round < b->o.rounds; b->round++) {
        for (int i = 0; i < count; i++) {
            double t = now(b);
            must(b->be->ops->weights_expand(rings[i].weights, rings[i].params), NULL);
            add_time(b, t, "expand", rings[i].name);
            t = now(b);
            must(b->be->ops->weights_reduce(rings[i].weights, 0, rings[i].grad), NULL);
            add_time(b, t, "reduce", rings[i].name);
        }
    }
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < b->units; k++)
            b->be->ops->conv_destroy(&rings[i].convs[k]);
        b->be->ops->weights_destroy(&rings[i].weights);
        b->be->ops->release(b->be, rings[i].params);
        b->be->ops->release(b->be, rings[i].grad);
    }
}

/* ---- main ---- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_rows(bench *b)
{
    static const char *const kinds[] = {"conv ", "bn "};
    double sum[2] = {0};
    printf("{\"backend\": \"%s\", \"batch\": %d, \"width\": %d, \"threads\": %d, \"rounds\": %d,\n"
           " \"ring\": %lld, \"milliseconds\": {\n",
           b->be->ops->name, b->o.batch, b->o.width, b->o.threads, b->o.rounds,
           (long long)b->o.ring);
    for (int r = 0; r < b->rows; r++) {
        qsort(b->row[r].seconds, (size_t)b->o.rounds, sizeof(double), compare_doubles);
        double median = b->row[r].seconds[b->o.rounds / 2] * 1e3;
        printf("  \"%s\": %.3f,\n", b->row[r].name, median);
        for (int k = 0; k < 2; k++)
            sum[k] += strncmp(b->row[r].name, kinds[k], strlen(kinds[k])) == 0 ? median : 0;
    }
    printf("  \"all conv\": %.3f,\n  \"all bn\": %.3f}}\n", sum[0], sum[1]);
}

/* A whole number of at least 1; 0 where it is none. */
static int64_t read_number(const char *value)
{
    char *end = NULL;
    errno = 0;
    const long long number = strtoll(value, &end, 10);
    return errno || end == value || *end || number > INT32_MAX ? 0 : number;
}

static bool read_option(bench_options *o, const char *name, const char *value)
{
    if (strcmp(name, "--backend") == 0)
        o->backend = value;
    else if (strcmp(name, "--batch") == 0)
        o->batch = (int)read_number(value);
    else if (strcmp(name, "--width") == 0)
        o->width = (int)read_number(value);
    else if (strcmp(name, "--threads") == 0)
        o->threads = (int)read_number(value);
    else if (strcmp(name, "--rounds") == 0)
        o->rounds = (int)read_number(value);
    else if (strcmp(name, "--ring") == 0)
        o->ring = read_number(value);
    else if (strcmp(name, "--index") == 0)
        o->index = strcmp(value, "tile") == 0 ? RING_INDEX_TILE : RING_INDEX_EVEN;
    else if (strcmp(name, "--clock") == 0)
        o->clock = strcmp(value, "cpu") == 0 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    else
        return false;
    return o->batch > 0 && o->width > 0 && o->threads > 0 && o->ring > 0 && o->rounds > 0 &&
           o->rounds <= MAX_ROUNDS;
}

int main(int argc, char **argv)
{
    static bench b = {.o = {"cpu", 128, 64, 2, 5, RING_INDEX_EVEN, 2359296, CLOCK_MONOTONIC}};
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 >= argc || !read_option(&b.o, argv[i], argv[i + 1])) {
            fprintf(stderr, "bench_ops: %s: unknown option or bad value\n", argv[i]);
            return STATUS_BAD_INPUT;
        }
    }
    build(&b);
    for (b.round = -1; b.round < b.o.rounds; b.round++)
        step(&b);
    time_rings(&b);
    print_rows(&b);
    return STATUS_OK;
}
