/*
 * The floor under a training step: what oneDNN's convolutions alone take for ResNet-18 with the
 * CIFAR stem, each pass with its fastest algorithm and layout: direct or Winograd in the layouts
 * that oneDNN chooses, or direct with the activations in nhwc.
 *
 *     OMP_NUM_THREADS=2 bench_convs [--batch 128] [--width 64] [--rounds 5]
 *
 * Every primitive is made once; a round executes all of them, and each one's time is the median
 * over the rounds, so that a slow moment of the machine touches all alike. Prints one JSON object.
 * The stem has no backward-data pass, as in training.
 */
#include <dnnl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if DNNL_VERSION_MAJOR != 2
#error "bench_convs is written for oneDNN 2.x, as the cpu backend is"
#endif

enum pass {
    FORWARD,
    BACKWARD_DATA,
    BACKWARD_WEIGHTS,
    PASSES
};
static const char *const pass_names[] = {"forward_ms", "backward_data_ms", "backward_weights_ms"};

enum {
    VARIANTS = 3,
    SHAPES = 11,
    MAX_ROUNDS = 101
};
/* `layout` is the activations'; that of the weights is oneDNN's choice always. */
static const struct {
    const char *name;
    dnnl_alg_kind_t algorithm;
    dnnl_format_tag_t layout;
} variants[VARIANTS] = {
    {"direct", dnnl_convolution_direct, dnnl_format_tag_any},
    {"winograd", dnnl_convolution_winograd, dnnl_format_tag_any},
    {"direct nhwc", dnnl_convolution_direct, dnnl_nhwc},
};

/* One conv of the network; channels in units of the width (0 = the three colours). */
static const struct {
    const char *name;
    int count, in, out, side, kernel, stride; /* side: of the input */
} shapes[SHAPES] = {
    {"stem", 1, 0, 1, 32, 3, 1},
    {"layer1", 4, 1, 1, 32, 3, 1},
    {"layer2.first", 1, 1, 2, 32, 3, 2},
    {"layer2.shortcut", 1, 1, 2, 32, 1, 2},
    {"layer2", 3, 2, 2, 16, 3, 1},
    {"layer3.first", 1, 2, 4, 16, 3, 2},
    {"layer3.shortcut", 1, 2, 4, 16, 1, 2},
    {"layer3", 3, 4, 4, 8, 3, 1},
    {"layer4.first", 1, 4, 8, 8, 3, 2},
    {"layer4.shortcut", 1, 4, 8, 8, 1, 2},
    {"layer4", 3, 8, 8, 4, 3, 1},
};

/* A primitive with its memory; `primitive` NULL where oneDNN has no such variant. */
typedef struct work {
    dnnl_primitive_t primitive;
    dnnl_memory_t src, weights, dst;
    dnnl_exec_arg_t args[3];
    double ms[MAX_ROUNDS];
} work;

static work all[SHAPES][PASSES][VARIANTS];

static void check(dnnl_status_t code, const char *what)
{
    if (code == dnnl_success)
        return;
    fprintf(stderr, "bench_convs: oneDNN returned %d for %s\n", (int)code, what);
    exit(5);
}

static dnnl_memory_desc_t tensor(int d0, int d1, int d2, int d3, dnnl_format_tag_t layout)
{
    dnnl_memory_desc_t md;
    const dnnl_dims_t dims = {d0, d1, d2, d3};
    check(dnnl_memory_desc_init_by_tag(&md, 4, dims, dnnl_f32, layout), "a shape");
    return md;
}

/* Memory of what the primitive wants, filled with small numbers (no denormals, no zeros). */
static dnnl_memory_t make_memory(dnnl_primitive_desc_t pd, dnnl_query_t what, dnnl_engine_t engine)
{
    const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(pd, what, 0);
    dnnl_memory_t memory;
    void *data;
    check(dnnl_memory_create(&memory, md, engine, DNNL_MEMORY_ALLOCATE), "memory");
    check(dnnl_memory_get_data_handle(memory, &data), "memory");
    float *values = data;
    uint32_t state = 1;
    for (size_t i = 0; i < dnnl_memory_desc_get_size(md) / sizeof(float); i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = ((float)(state >> 8) / 16777216.0f - 0.5f) * 0.1f;
    }
    return memory;
}

/* The descriptor of one pass in one variant; false where oneDNN has none. */
static bool make_descriptor(int shape, enum pass pass, int variant, int batch, int width,
                            dnnl_engine_t engine, dnnl_primitive_desc_t *ret)
{
    const int in = shapes[shape].in ? shapes[shape].in * width : 3;
    const int out = shapes[shape].out * width, k = shapes[shape].kernel;
    const int side = shapes[shape].side, small = side / shapes[shape].stride;
    const dnnl_alg_kind_t algorithm = variants[variant].algorithm;
    const dnnl_format_tag_t layout = variants[variant].layout;
    const dnnl_memory_desc_t x = tensor(batch, in, side, side, layout),
                             w = tensor(out, in, k, k, dnnl_format_tag_any),
                             y = tensor(batch, out, small, small, layout);
    const dnnl_dims_t strides = {shapes[shape].stride, shapes[shape].stride};
    const dnnl_dims_t pads = {k / 2, k / 2};
    dnnl_convolution_desc_t forward, op;
    dnnl_primitive_desc_t hint = NULL;
    if (dnnl_convolution_forward_desc_init(&forward, dnnl_forward_training, algorithm, &x, &w, NULL,
                                           &y, strides, pads, pads) != dnnl_success ||
        dnnl_primitive_desc_create(&hint, &forward, NULL, engine, NULL) != dnnl_success)
        return false;
    if (pass == FORWARD) {
        *ret = hint;
        return true;
    }
    dnnl_status_t made = pass == BACKWARD_DATA
                             ? dnnl_convolution_backward_data_desc_init(&op, algorithm, &x, &w, &y,
                                                                        strides, pads, pads)
                             : dnnl_convolution_backward_weights_desc_init(
                                   &op, algorithm, &x, &w, NULL, &y, strides, pads, pads);
    if (made == dnnl_success)
        made = dnnl_primitive_desc_create(ret, &op, NULL, engine, hint);
    dnnl_primitive_desc_destroy(hint);
    return made == dnnl_success;
}

static void make_work(work *w, int shape, enum pass pass, int variant, int batch, int width,
                      dnnl_engine_t engine)
{
    static const struct {
        dnnl_query_t src, weights, dst;
        int src_arg, weights_arg, dst_arg;
    } of[] = {
        {dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md, DNNL_ARG_SRC,
         DNNL_ARG_WEIGHTS, DNNL_ARG_DST},
        {dnnl_query_diff_src_md, dnnl_query_weights_md, dnnl_query_diff_dst_md, DNNL_ARG_DIFF_SRC,
         DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST},
        {dnnl_query_src_md, dnnl_query_diff_weights_md, dnnl_query_diff_dst_md, DNNL_ARG_SRC,
         DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST},
    };
    dnnl_primitive_desc_t pd;
    if (!make_descriptor(shape, pass, variant, batch, width, engine, &pd))
        return;
    check(dnnl_primitive_create(&w->primitive, pd), "a primitive");
    w->src = make_memory(pd, of[pass].src, engine);
    w->weights = make_memory(pd, of[pass].weights, engine);
    w->dst = make_memory(pd, of[pass].dst, engine);
    w->args[0] = (dnnl_exec_arg_t){of[pass].src_arg, w->src};
    w->args[1] = (dnnl_exec_arg_t){of[pass].weights_arg, w->weights};
    w->args[2] = (dnnl_exec_arg_t){of[pass].dst_arg, w->dst};
    dnnl_primitive_desc_destroy(pd);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void execute(work *w, dnnl_stream_t stream, double *ret_ms)
{
    if (!w->primitive)
        return;
    const double start = now_ms();
    check(dnnl_primitive_execute(w->primitive, stream, 3, w->args), "a convolution");
    check(dnnl_stream_wait(stream), "a convolution");
    *ret_ms = now_ms() - start;
}

/* Round 0 is the warm-up. */
static void run_rounds(int rounds, dnnl_stream_t stream)
{
    for (int round = 0; round <= rounds; round++)
        for (int s = 0; s < SHAPES; s++)
            for (int p = 0; p < PASSES; p++)
                for (int v = 0; v < VARIANTS; v++) {
                    work *w = &all[s][p][v];
                    execute(w, stream, &w->ms[round > 0 ? round - 1 : 0]);
                }
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *ms, int count)
{
    qsort(ms, (size_t)count, sizeof *ms, ascending);
    return count % 2 ? ms[count / 2] : (ms[count / 2 - 1] + ms[count / 2]) / 2;
}

/* One shape's line; returns its share of a step. */
static double print_shape(int shape, int rounds, bool last)
{
    double sum = 0;
    printf("  {\"name\": \"%s\", \"count\": %d", shapes[shape].name, shapes[shape].count);
    for (int p = 0; p < PASSES; p++) {
        double best = 0;
        int fastest = -1;
        for (int v = 0; v < VARIANTS; v++) {
            work *w = &all[shape][p][v];
            const double ms = w->primitive ? median(w->ms, rounds) : 0;
            if (w->primitive && (fastest < 0 || ms < best)) {
                best = ms;
                fastest = v;
            }
        }
        if (fastest < 0)
            continue;
        printf(", \"%s\": %.3f", pass_names[p], best);
        if (fastest > 0)
            printf(", \"%s_algorithm\": \"%s\"", pass_names[p], variants[fastest].name);
        sum += shapes[shape].count * best;
    }
    printf("}%s\n", last ? "" : ",");
    return sum;
}

static int option(int argc, char **argv, const char *name, int preset, int high)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], name) != 0)
            continue;
        const long value = strtol(argv[i + 1], NULL, 10);
        if (value < 1 || value > high) {
            fprintf(stderr, "bench_convs: %s is 1 to %d\n", name, high);
            exit(2);
        }
        return (int)value;
    }
    return preset;
}

int main(int argc, char **argv)
{
    const int batch = option(argc, argv, "--batch", 128, 4096);
    const int width = option(argc, argv, "--width", 64, 1024);
    const int rounds = option(argc, argv, "--rounds", 5, MAX_ROUNDS);
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    check(dnnl_engine_create(&engine, dnnl_cpu, 0), "the engine");
    check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "the stream");
    for (int s = 0; s < SHAPES; s++)
        for (int p = 0; p < PASSES; p++)
            for (int v = 0; v < VARIANTS; v++)
                if (!(s == 0 && p == BACKWARD_DATA))
                    make_work(&all[s][p][v], s, (enum pass)p, v, batch, width, engine);
    run_rounds(rounds, stream);

    const dnnl_version_t *version = dnnl_version();
    printf("{\"program\": \"oneDNN %d.%d.%d\", \"isa_bits\": %d, \"batch\": %d, \"width\": %d, "
           "\"rounds\": %d, \"shapes\": [\n",
           version->major, version->minor, version->patch, (int)dnnl_get_effective_cpu_isa(), batch,
           width, rounds);
    double total = 0;
    for (int s = 0; s < SHAPES; s++)
        total += print_shape(s, rounds, s == SHAPES - 1);
    printf("], \"step_ms\": %.3f, \"images_per_second\": %.2f}\n", total, 1e3 * batch / total);
    for (int s = 0; s < SHAPES; s++)
        for (int p = 0; p < PASSES; p++)
            for (int v = 0; v < VARIANTS; v++) {
                work *w = &all[s][p][v];
                if (!w->primitive)
                    continue;
                dnnl_primitive_destroy(w->primitive);
                dnnl_memory_destroy(w->src);
                dnnl_memory_destroy(w->weights);
                dnnl_memory_destroy(w->dst);
            }
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
    return 0;
}
