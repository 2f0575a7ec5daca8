/*
 * The ops of a training step one by one, as the trainer calls them: through a backend's vtable,
 * recorded many times into one graph where the backend has graphs, so that launches cost nothing.
 * The shapes are those of ResNet-18 with the CIFAR stem. Prints one JSON object; times are medians
 * over the rounds, in microseconds a call.
 *
 *     gpu_ops [--backend cuda] [--precision fp32|tf32|bf16] [--batch 512] [--width 64]
 *             [--what all|copy|ring|conv|bn|other] [--plan default|tune|FILE] [--cache FOLDER]
 *             [--rounds 7] [--target-ms 10] [--write-plan FILE]
 *
 * Bytes are what PERFORMANCE's floors count: batch norm 4 passes over the tensor forward with a
 * residual (3 without) and 6 backward (5 without ReLU, 7 with two gradients); expand 4 bytes of
 * index and one io-type weight an element and the ring; reduce the same and the gradient.
 */
#include <errno.h>

#include "bench/gpu_timing.h"

enum {
    MAX_CONVS = 20,
    CLASSES = 10
};

/* ---- copies ---- */

typedef struct copy_ctx {
    backend *be;
    void *from, *to;
    size_t bytes;
} copy_ctx;

static status run_copy(void *ctx)
{
    copy_ctx *c = ctx;
    return c->be->ops->copy(c->be, c->to, c->from, c->bytes);
}

static void time_copy(bench *b)
{
    const int before = b->memories;
    copy_ctx c = {.be = b->be, .bytes = (size_t)b->batch * 2 << 20};
    c.from = new_memory(b, c.bytes);
    c.to = new_memory(b, c.bytes);
    add_row(b, "copy", "device memory", 0, time_op(b, run_copy, &c), 2.0 * (double)c.bytes, 0);
    release_since(b, before);
}

/* ---- the convolutions of the network, in slot order ---- */

typedef struct conv_kind {
    const char *name;
    conv_desc desc;
    int count; /* of them in the network */
} conv_kind;

static conv_desc conv_of(shape x, int out, int kernel, int stride, bool image)
{
    return (conv_desc){.x = x,
                       .out = out,
                       .kh = kernel,
                       .kw = kernel,
                       .stride_h = stride,
                       .stride_w = stride,
                       .pad_h = kernel / 2,
                       .pad_w = kernel / 2,
                       .dilation = 1,
                       .groups = 1,
                       .x_layout = image ? LAYOUT_IMAGE : LAYOUT_NATIVE,
                       .passes =
                           CONV_FORWARD | CONV_BACKWARD_WEIGHTS | (image ? 0 : CONV_BACKWARD_DATA)};
}

/* The shapes that differ; returns how many. */
static int list_kinds(int batch, int width, conv_kind kinds[MAX_CONVS])
{
    static const char *const first[] = {"", "layer2 first", "layer3 first", "layer4 first"},
                             *const narrow[] = {"", "layer2 shortcut", "layer3 shortcut",
                                                "layer4 shortcut"},
                             *const rest[] = {"layer1", "layer2", "layer3", "layer4"};
    int n = 0;
    shape x = {batch, 3, 32, 32};
    kinds[n++] = (conv_kind){"stem", conv_of(x, width, 3, 1, true), 1};
    x.c = width;
    for (int layer = 0; layer < 4; layer++) {
        const int out = width << layer;
        if (layer > 0) {
            kinds[n++] = (conv_kind){narrow[layer], conv_of(x, out, 1, 2, false), 1};
            kinds[n++] = (conv_kind){first[layer], conv_of(x, out, 3, 2, false), 1};
            x.c = out;
            x.h = x.w = x.h / 2;
        }
        kinds[n++] = (conv_kind){rest[layer], conv_of(x, out, 3, 1, false), layer ? 3 : 4};
    }
    return n;
}

static int64_t conv_elements(const conv_desc *d)
{
    return (int64_t)d->out * d->x.c * d->kh * d->kw;
}

/* ---- one convolution ---- */

typedef struct conv_ctx {
    backend *be;
    backend_conv *conv;
    float *x, *y, *dx;
} conv_ctx;

static status run_forward(void *ctx)
{
    conv_ctx *c = ctx;
    return c->be->ops->conv_forward(c->conv, c->x, NULL, c->y);
}

static status run_data(void *ctx)
{
    conv_ctx *c = ctx;
    return c->be->ops->conv_backward_data(c->conv, c->y, c->dx);
}

static status run_weights(void *ctx)
{
    conv_ctx *c = ctx;
    return c->be->ops->conv_backward_weights(c->conv, c->x, c->y, NULL);
}

static void time_conv(bench *b, const conv_kind *k)
{
    const backend_ops *ops = b->be->ops;
    const conv_desc *d = &k->desc;
    const shape y = conv_output(d);
    const double flops = 2.0 * (double)shape_elements(y) * d->x.c * d->kh * d->kw;
    const kernel_shape kernel = {d->out, d->x.c, d->kh, d->kw};
    const weight_source source = {0};
    const int before = b->memories;
    errbuf err = {0};
    backend_weights *w = NULL;
    conv_ctx c = {.be = b->be};
    must(ops->weights_create(b->be, &kernel, 1, &w, &err), &err);
    must(ops->conv_create(w, 0, 0, d, &c.conv, &err), &err);
    must(ops->weights_commit(w, &source, kernel_elements(kernel), &err), &err);
    float *params = new_floats(b, kernel_elements(kernel));
    must_op(b, ops->weights_expand(w, params));
    c.x = new_tensor(b, d->x, d->x_layout);
    c.y = new_tensor(b, y, LAYOUT_NATIVE);
    c.dx = new_tensor(b, d->x, d->x_layout);
    add_row(b, "conv forward", k->name, k->count, time_op(b, run_forward, &c), 0, flops);
    add_row(b, "conv backward weights", k->name, k->count, time_op(b, run_weights, &c), 0, flops);
    if (d->passes & CONV_BACKWARD_DATA)
        add_row(b, "conv backward data", k->name, k->count, time_op(b, run_data, &c), 0, flops);
    ops->conv_destroy(&c.conv);
    ops->weights_destroy(&w);
    release_since(b, before);
}

/* ---- batch norm ---- */

typedef struct bn_ctx {
    backend *be;
    backend_bn *bn;
    float *x, *residual, *y, *dy1, *dy2, *dz, *dx;
    float *gamma, *beta, *saved, *stats, *dgamma, *dbeta;
} bn_ctx;

static status run_bn_forward(void *ctx)
{
    bn_ctx *c = ctx;
    return c->be->ops->bn_forward_train(c->bn, c->x, c->residual, c->gamma, c->beta, c->y, c->saved,
                                        c->stats);
}

static status run_bn_backward(void *ctx)
{
    bn_ctx *c = ctx;
    return c->be->ops->bn_backward(c->bn, c->x, c->y, c->gamma, c->saved, c->dy1, c->dy2, c->dz,
                                   c->dx, c->dgamma, c->dbeta);
}

static void bn_vectors(bench *b, bn_ctx *c, int channels)
{
    float **const vectors[] = {&c->gamma, &c->beta, &c->saved, &c->stats, &c->dgamma, &c->dbeta};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        *vectors[i] = new_floats(b, 2 * (int64_t)channels);
}

/* `plain`, `relus` and `adds`: how many norms of each kind the layer has. */
static void time_bn(bench *b, const char *layer, shape s, const int counts[3])
{
    static const char *const kinds[] = {"bn", "bn relu", "bn add relu"};
    const double pass = (double)shape_elements(s) * (double)element(b);
    const int before = b->memories;
    char name[64];
    bn_ctx c = {.be = b->be};
    float **const tensors[] = {&c.x, &c.residual, &c.y, &c.dy1, &c.dy2, &c.dz, &c.dx};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        *tensors[i] = new_tensor(b, s, LAYOUT_NATIVE);
    bn_vectors(b, &c, s.c);
    float *const residual = c.residual, *const dy2 = c.dy2;
    for (int kind = 0; kind < 3; kind++) {
        const bn_desc d = {s, 1e-5f, kind > 0, kind == 2, 0};
        errbuf err = {0};
        must(b->be->ops->bn_create(b->be, 0, &d, &c.bn, &err), &err);
        snprintf(name, sizeof name, "%s %s", layer, kinds[kind]);
        c.residual = kind == 2 ? residual : NULL;
        c.dy2 = NULL;
        add_row(b, "bn forward", name, counts[kind], time_op(b, run_bn_forward, &c),
                (kind == 2 ? 4 : 3) * pass, 0);
        add_row(b, "bn backward", name, kind == 2 ? 0 : counts[kind],
                time_op(b, run_bn_backward, &c), (kind ? 6 : 5) * pass, 0);
        if (kind == 2) {
            c.dy2 = dy2;
            add_row(b, "bn backward of two", name, counts[kind], time_op(b, run_bn_backward, &c),
                    7 * pass, 0);
        }
        b->be->ops->bn_destroy(&c.bn);
    }
    release_since(b, before);
}

/* ---- the ring ---- */

typedef struct ring_ctx {
    backend *be;
    backend_weights *w;
    float *params, *grad;
} ring_ctx;

static status run_expand(void *ctx)
{
    ring_ctx *c = ctx;
    return c->be->ops->weights_expand(c->w, c->params);
}

static status run_reduce(void *ctx)
{
    ring_ctx *c = ctx;
    return c->be->ops->weights_reduce(c->w, 0, c->grad);
}

/* All convs of the network on one ring, in slot order; the stem's weights are its own. */
static int list_all(const bench *b, conv_desc all[MAX_CONVS])
{
    conv_kind kinds[MAX_CONVS];
    const int count = list_kinds(1, b->width, kinds);
    int n = 0;
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < kinds[i].count; k++) {
            all[n] = kinds[i].desc;
            all[n++].passes = CONV_FORWARD | CONV_BACKWARD_WEIGHTS;
        }
    }
    return n;
}

static void time_ring(bench *b, ring_map_params ring, const char *name)
{
    const backend_ops *ops = b->be->ops;
    const int before = b->memories;
    conv_desc all[MAX_CONVS];
    kernel_shape kernels[MAX_CONVS];
    weight_source sources[MAX_CONVS] = {0};
    backend_conv *convs[MAX_CONVS];
    errbuf err = {0};
    ring_map map;
    ring_ctx c = {.be = b->be};
    const int count = list_all(b, all);
    for (int i = 1; i < count; i++)
        ring.m += conv_elements(&all[i]);
    ring.n = ring.n ? ring.n : ring.m;
    must(ring_map_init(&map, &ring, &err), &err);
    int64_t first = 0;
    for (int i = 0; i < count; i++) {
        kernels[i] = (kernel_shape){all[i].out, all[i].x.c, all[i].kh, all[i].kw};
        sources[i] = (weight_source){i ? &map : NULL, first, i ? 0 : ring.n, NULL};
        first += i ? kernel_elements(kernels[i]) : 0;
    }
    const int64_t params = ring.n + kernel_elements(kernels[0]);
    must(ops->weights_create(b->be, kernels, count, &c.w, &err), &err);
    for (int i = 0; i < count; i++)
        must(ops->conv_create(c.w, i, 0, &all[i], &convs[i], &err), &err);
    must(ops->weights_commit(c.w, sources, params, &err), &err);
    ring_map_fini(&map);
    c.params = new_floats(b, params);
    c.grad = new_floats(b, params);
    const double bytes = (double)ring.m * (4 + (double)element(b)) + (double)ring.n * sizeof(float);
    add_row(b, "expand", name, 1, time_op(b, run_expand, &c), bytes, 0);
    add_row(b, "reduce", name, 1, time_op(b, run_reduce, &c), bytes, 0);
    for (int i = 0; i < count; i++)
        ops->conv_destroy(&convs[i]);
    ops->weights_destroy(&c.w);
    release_since(b, before);
}

static void time_rings(bench *b)
{
    /* at width 64: 2.36 M, 100 k, 36,864, 8,192 and, nothing shared, 11.16 M */
    static const int64_t sizes[] = {2359296, 100000, 36864, 8192, 11160576};
    char name[64];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int tile = 0; tile < 2; tile++) {
            snprintf(name, sizeof name, "%s %lld", tile ? "tile" : "even", (long long)sizes[i]);
            const ring_map_params ring = {
                tile ? RING_INDEX_TILE : RING_INDEX_EVEN, true, true, 0, sizes[i], 1, 0};
            time_ring(b, ring, name);
        }
    }
    time_ring(b, (ring_map_params){RING_INDEX_EVEN, false, false, 0, 0, 1, 0}, "in order");
}

/* ---- the rest of a step ---- */

typedef struct other_ctx {
    backend *be;
    backend_pool *pool;
    backend_fc *fc;
    backend_loss *loss;
    step_control *control;
    image_set set;
    int batch;
    int64_t params;
    float *x, *dx, *pooled, *dpooled, *logits, *dlogits, *fc_w, *fc_b, *fc_dw, *fc_db, *p, *grad,
        *v;
    void *image;
    int32_t *labels;
    loss_sums *sums;
} other_ctx;

static status run_head(void *ctx)
{
    other_ctx *c = ctx;
    const backend_ops *ops = c->be->ops;
    TRY(ops->pool_forward(c->pool, c->x, c->pooled, NULL));
    TRY(ops->fc_forward(c->fc, c->pooled, c->fc_w, c->fc_b, c->logits));
    TRY(ops->loss_run(c->loss, c->logits, c->labels, c->batch, 1.0f / (float)c->batch, c->dlogits,
                      c->sums));
    TRY(ops->fc_backward(c->fc, c->pooled, c->fc_w, c->dlogits, c->dpooled, c->fc_dw, c->fc_db));
    return ops->pool_backward(c->pool, c->dpooled, NULL, NULL, c->dx);
}

static status run_images(void *ctx)
{
    other_ctx *c = ctx;
    return c->be->ops->images_from_set(c->be, &c->set, c->control, 0, c->set.count, c->batch,
                                       c->image, c->labels);
}

static status run_sgd(void *ctx)
{
    other_ctx *c = ctx;
    const sgd_params params = {1e-6f, 0.9f, 5e-4f, 1.0f, false};
    return c->be->ops->sgd(c->be, c->params, c->p, c->grad, c->v, &params, NULL);
}

static void time_head(bench *b, other_ctx *c)
{
    const int n = b->batch, features = 8 * b->width;
    const pool_desc pool = {.kind = POOL_GLOBAL_AVG, .x = {n, features, 4, 4}};
    const fc_desc fc = {n, features, CLASSES};
    const loss_desc loss = {n, CLASSES};
    errbuf err = {0};
    must(b->be->ops->pool_create(b->be, 0, &pool, &c->pool, &err), &err);
    must(b->be->ops->fc_create(b->be, 0, &fc, &c->fc, &err), &err);
    must(b->be->ops->loss_create(b->be, 0, &loss, &c->loss, &err), &err);
    c->x = new_tensor(b, pool.x, LAYOUT_NATIVE);
    c->dx = new_tensor(b, pool.x, LAYOUT_NATIVE);
    c->pooled = new_floats(b, (int64_t)n * features);
    c->dpooled = new_floats(b, (int64_t)n * features);
    c->logits = new_floats(b, (int64_t)n * CLASSES);
    c->dlogits = new_floats(b, (int64_t)n * CLASSES);
    c->fc_w = new_floats(b, (int64_t)features * CLASSES);
    c->fc_b = new_floats(b, CLASSES);
    c->fc_dw = new_floats(b, (int64_t)features * CLASSES);
    c->fc_db = new_floats(b, CLASSES);
    c->sums = new_memory(b, sizeof *c->sums);
    add_row(b, "other", "pool, fc, loss, both ways", 1, time_op(b, run_head, c), 0, 0);
    b->be->ops->pool_destroy(&c->pool);
    b->be->ops->fc_destroy(&c->fc);
    b->be->ops->loss_destroy(&c->loss);
}

static void time_other(bench *b)
{
    other_ctx c = {.be = b->be, .batch = b->batch, .params = 2359296 + 16458};
    const int64_t images = 4 * (int64_t)b->batch;
    const int before = b->memories;
    c.labels = new_memory(b, (size_t)images * sizeof *c.labels);
    c.set = (image_set){.labels = c.labels,
                        .count = images,
                        .size = 32,
                        .shuffled = true,
                        .cropped = true,
                        .seed = 1};
    time_head(b, &c);
    c.set.pixels = new_memory(b, (size_t)images * 3072);
    c.set.level = new_floats(b, (int64_t)IMAGE_CHANNELS * 256);
    c.control = new_memory(b, sizeof *c.control);
    c.image =
        new_memory(b, b->be->ops->tensor_bytes(b->be, (shape){b->batch, 3, 32, 32}, LAYOUT_IMAGE));
    if (b->be->ops->images_from_set)
        add_row(b, "other", "images, augmented", 1, time_op(b, run_images, &c),
                (double)b->batch * 1024 * (3 + 8 * (double)element(b)), 0);
    c.p = new_floats(b, c.params);
    c.grad = new_floats(b, c.params);
    c.v = new_floats(b, c.params);
    add_row(b, "other", "sgd, N = 2359296", 1, time_op(b, run_sgd, &c), 20.0 * (double)c.params, 0);
    release_since(b, before);
}

/* ---- main ---- */

static cJSON *read_plan(const char *path)
{
    FILE *f = fopen(path, "rb");
    static char text[1 << 20];
    size_t length = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[length] = '\0';
    cJSON *plan = cJSON_Parse(text);
    if (!plan) {
        fprintf(stderr, "gpu_ops: %s is not the JSON of a plan\n", path);
        exit(STATUS_BAD_INPUT);
    }
    return plan;
}

static void open_backend(bench *b)
{
    const bool tune = strcmp(b->plan, "tune") == 0;
    const bool file = !tune && strcmp(b->plan, "default") != 0;
    cJSON *plan = file ? read_plan(b->plan) : NULL;
    const backend_options options = {.threads = 1,
                                     .lanes = 1,
                                     .compute = b->compute,
                                     .cache = b->cache,
                                     .tune = tune,
                                     .plan = plan};
    errbuf err = {0};
    must(backend_open(b->backend, &options, &b->be, &err), &err);
    if (b->be->ops->event_create)
        must(b->be->ops->event_create(b->be, &b->event, &err), &err);
    /* the plan is borrowed for as long as ops are made from it, so it is never freed */
}

static void print_result(bench *b)
{
    static const char *const precisions[] = {"fp32", "tf32", "bf16"};
    errbuf err = {0};
    cJSON *plan = NULL, *o = cJSON_CreateObject();
    must(b->be->ops->describe(b->be, &plan, &err), &err);
    cJSON_AddStringToObject(o, "backend", b->be->ops->name);
    cJSON_AddStringToObject(o, "precision", precisions[b->compute]);
    cJSON_AddNumberToObject(o, "batch", b->batch);
    cJSON_AddNumberToObject(o, "width", b->width);
    cJSON_AddNumberToObject(o, "rounds", b->rounds);
    cJSON_AddItemToObject(o, "rows", b->rows);
    cJSON_AddItemToObject(o, "plan", plan);
    char *text = cJSON_Print(o), *plan_text = cJSON_Print(plan);
    if (text)
        puts(text);
    FILE *f = b->write_plan && plan_text ? fopen(b->write_plan, "w") : NULL;
    if (f && (fputs(plan_text, f) < 0 || fclose(f) != 0))
        must(STATUS_ENVIRONMENT, NULL);
    free(text);
    free(plan_text);
    cJSON_Delete(o);
}

static bool read_number(const char *value, int *ret)
{
    char *end = NULL;
    errno = 0;
    const long number = strtol(value, &end, 10);
    *ret = (int)number;
    return !errno && end != value && !*end && number > 0 && number <= 1 << 20;
}

static bool read_option(bench *b, const char *name, const char *value)
{
    static const char *const precisions[] = {"fp32", "tf32", "bf16"};
    int number = 0;
    const struct {
        const char *name;
        const char **text;
        int *number;
    } known[] = {{"--backend", &b->backend, NULL}, {"--what", &b->what, NULL},
                 {"--plan", &b->plan, NULL},       {"--cache", &b->cache, NULL},
                 {"--batch", NULL, &b->batch},     {"--width", NULL, &b->width},
                 {"--rounds", NULL, &b->rounds},   {"--write-plan", &b->write_plan, NULL}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i].name) != 0)
            continue;
        if (known[i].text)
            *known[i].text = value;
        return known[i].text || read_number(value, known[i].number);
    }
    for (int i = 0; strcmp(name, "--precision") == 0 && i < 3; i++) {
        b->compute = strcmp(value, precisions[i]) == 0 ? (compute_type)i : b->compute;
        number += strcmp(value, precisions[i]) == 0;
    }
    if (strcmp(name, "--target-ms") == 0 && read_number(value, &number))
        b->target = 1e-3 * number;
    return number > 0;
}

int main(int argc, char **argv)
{
    static bench b = {.backend = "cuda",
                      .what = "all",
                      .plan = "default",
                      .compute = COMPUTE_BF16,
                      .batch = 512,
                      .width = 64,
                      .rounds = 7,
                      .target = 0.01};
    conv_kind kinds[MAX_CONVS];
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 >= argc || !read_option(&b, argv[i], argv[i + 1]) || b.rounds > MAX_ROUNDS) {
            fprintf(stderr, "gpu_ops: %s: unknown option or bad value\n", argv[i]);
            return STATUS_BAD_INPUT;
        }
    }
    open_backend(&b);
    make_noise(&b);
    b.rows = cJSON_CreateArray();
    if (wanted(&b, "copy"))
        time_copy(&b);
    if (wanted(&b, "ring"))
        time_rings(&b);
    const int count = list_kinds(b.batch, b.width, kinds);
    for (int i = 0; i < count && wanted(&b, "conv"); i++)
        time_conv(&b, &kinds[i]);
    for (int layer = 0; layer < 4 && wanted(&b, "bn"); layer++) {
        static const char *const names[] = {"layer1", "layer2", "layer3", "layer4"};
        const shape s = {b.batch, b.width << layer, 32 >> layer, 32 >> layer};
        time_bn(&b, names[layer], s, (const int[]){layer > 0, layer ? 2 : 3, 2});
    }
    if (wanted(&b, "other"))
        time_other(&b);
    print_result(&b);
    return STATUS_OK;
}
