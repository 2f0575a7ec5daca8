/*
 * What the tests of cuDNN's graphs share: hand-written devices, and every graph that the networks
 * need. No device is used: graphs are checked, and plans built, for a device's properties, under
 * the fake driver (fake_driver.c).
 */
#ifndef RINGMASTER_TESTS_CUDNN_TESTING_H
#define RINGMASTER_TESTS_CUDNN_TESTING_H

#include <check.h>
#include <cjson/cJSON.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda/dnn_internal.h"
#include "protocol/file.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
#define MUST(expr)                                                                      \
    do {                                                                                \
        errbuf must_ = {.code = STATUS_OK};                                             \
        errbuf *err = &must_;                                                           \
        ck_assert_msg((expr) == STATUS_OK, "%s:%d: %s", __FILE__, __LINE__, err->text); \
    } while (0)

/* ---- devices ---- */

static const char *const device_names[] = {"a100", "h200", "b200"};
enum {
    A100,
    H200,
    B200,
    DEVICES
};

/* The properties as JSON text; caller frees. */
static inline char *device_json(int device)
{
    char *text = NULL;
    size_t length = 0;
    MUST(file_read_all(CUDNN_DEVICES, (size_t)1 << 20, &text, &length, err));
    cJSON *all = cJSON_ParseWithLength(text, length);
    char *json =
        cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(all, device_names[device]));
    ck_assert_msg(json, "%s: no device %s", CUDNN_DEVICES, device_names[device]);
    cJSON_Delete(all);
    free(text);
    return json;
}

static inline dnn *open_device(int device, bool tf32, const cJSON *plan, const char *cache)
{
    dnn *d = NULL;
    char *json = device_json(device);
    dnn_options options = {.device_json = json,
                           .device_name = device_names[device],
                           .tf32 = tf32,
                           .plan = plan,
                           .cache = cache};
    MUST(dnn_open(&options, &d, err));
    free(json);
    return d;
}

/* Whether the libcuda.so.1 that cuDNN will find is the fake one. */
static inline bool has_fake_driver(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    bool is_fake = driver && dlsym(driver, "ringmaster_fake_driver");
    if (!is_fake)
        fprintf(stderr, "needs the fake driver as libcuda.so.1: run it through ctest\n");
    return is_fake;
}

/* ---- graphs ---- */

typedef struct graph_case {
    bool is_bn;
    int kind; /* dnn_conv_kind or dnn_bn_kind */
    conv_desc conv;
    int channels;
    bn_desc bn;
    bool two_gradients;
    dnn_type type;
} graph_case;

typedef void graph_fn(void *ctx, const graph_case *c);

static inline dnn_graph *make_graph(const dnn *d, const graph_case *c)
{
    dnn_graph *g = malloc(sizeof *g);
    ck_assert_ptr_nonnull(g);
    if (c->is_bn)
        MUST(dnn_graph_bn(d, (dnn_bn_kind)c->kind, &c->bn, c->two_gradients, c->type, g, err));
    else
        MUST(dnn_graph_conv(d, (dnn_conv_kind)c->kind, &c->conv, c->channels, c->type, g, err));
    return g;
}

static inline void free_graph(dnn_graph *g)
{
    dnn_graph_fini(g);
    free(g);
}

static inline conv_desc square_conv(int n, int c, int size, int out, int kernel, int stride)
{
    return (conv_desc){.x = {n, c, size, size},
                       .out = out,
                       .kh = kernel,
                       .kw = kernel,
                       .stride_h = stride,
                       .stride_w = stride,
                       .pad_h = kernel / 2,
                       .pad_w = kernel / 2,
                       .dilation = 1,
                       .groups = 1};
}

/* The three passes; a net's input, padded to 8 channels, needs no gradient. */
static inline void each_conv(dnn_type type, conv_desc conv, graph_fn *fn, void *ctx)
{
    bool is_input = conv.x.c < 8;
    for (int kind = DNN_CONV_FORWARD; kind <= DNN_CONV_BACKWARD_WEIGHTS; kind++) {
        graph_case c = {
            .kind = kind, .conv = conv, .channels = is_input ? 8 : conv.x.c, .type = type};
        if (!is_input || kind != DNN_CONV_BACKWARD_DATA)
            fn(ctx, &c);
    }
}

static inline void each_bn(dnn_type type, shape x, bool relu, bool residual, bool two, graph_fn *fn,
                           void *ctx)
{
    graph_case c = {.is_bn = true,
                    .bn = {.x = x, .eps = 1e-5f, .relu = relu, .residual = residual},
                    .type = type};
    if (!two) { /* the forward pass is the same */
        c.kind = DNN_BN_FORWARD;
        fn(ctx, &c);
    }
    c.kind = DNN_BN_BACKWARD;
    c.two_gradients = two;
    fn(ctx, &c);
}

/* All graphs of ResNet-18 and 34 of width 64, which have the same shapes; the classifier is in fp32
 * whatever the type. `small`: the 3x3 stem of CIFAR on 32 pixels, else the 7x7 one on 224. */
static inline void each_graph(bool small, int n, dnn_type type, graph_fn *fn, void *ctx)
{
    static const int classes[] = {10, 100, 1000};
    int size = small ? 32 : 56;
    each_conv(type, small ? square_conv(n, 3, 32, 64, 3, 1) : square_conv(n, 3, 224, 64, 7, 2), fn,
              ctx);
    if (!small)
        each_bn(type, (shape){n, 64, 112, 112}, true, false, false, fn, ctx);
    for (int channels = 64; channels <= 512; channels *= 2, size /= 2) {
        shape x = {n, channels, size, size};
        if (channels > 64) {
            each_conv(type, square_conv(n, channels / 2, 2 * size, channels, 3, 2), fn, ctx);
            each_conv(type, square_conv(n, channels / 2, 2 * size, channels, 1, 2), fn, ctx);
            each_bn(type, x, false, false, false, fn, ctx); /* of the 1x1 */
        }
        each_conv(type, square_conv(n, channels, size, channels, 3, 1), fn, ctx);
        each_bn(type, x, true, false, false, fn, ctx); /* inside a block */
        each_bn(type, x, true, true, false, fn, ctx);  /* at its end */
        each_bn(type, x, true, true, true, fn, ctx);   /* the same before a block */
    }
    for (int i = 0; small && i < COUNT(classes); i++)
        each_conv(DNN_FP32, square_conv(n, 512, 1, classes[i], 1, 1), fn, ctx);
}

static inline double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
