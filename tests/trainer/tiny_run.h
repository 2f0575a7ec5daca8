/*
 * A network of a few numbers and checkpoints of it, for the suites of checkpoints and run folders.
 */
#ifndef RINGMASTER_TESTS_TINY_RUN_H
#define RINGMASTER_TESTS_TINY_RUN_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/spec.h"
#include "trainer/checkpoint.h"
#include "trainer/safetensors.h"

/* A call that must succeed; it is given `&oops` for its error line. */
#define TINY_OK(call)                                          \
    do {                                                       \
        errbuf oops = {0};                                     \
        const status tiny_st_ = (call);                        \
        ck_assert_msg(tiny_st_ == STATUS_OK, "%s", oops.text); \
    } while (0)

/* What tiny_net may change, one thing at a time, to make another network. */
typedef struct tiny_options {
    int ring;              /* N; 0 = 5 */
    int classes;           /* 0 = 2 */
    bool swap, has_bias;   /* slots in the other order; a bias to the first conv */
    const char *ring_name; /* NULL = "global" */
} tiny_options;

/* input 2x4x4 -> conv 2 -> bn -> conv 2 -> pool -> fc; both convs in one ring. */
static inline net *tiny_net(tiny_options o)
{
    net *n = NULL;
    int x, ring, kernel[2], norm;
    const int64_t size = o.ring > 0 ? o.ring : 5;
    const kernel_shape shapes[2] = {{2, 2, 1, 1}, {2, 2, 1, 3}};
    const char *names[2] = {"layer1.0.conv1.weight", "layer1.0.conv2.weight"};
    const net_rings rings = {.index = RING_INDEX_EVEN, .permute = true, .seed = 7, .size = &size};
    conv_desc geometry = {
        .stride_h = 1, .stride_w = 1, .dilation = 1, .groups = 1, .bias = o.has_bias};
    TINY_OK(net_create("tiny", &n, &oops));
    TINY_OK(net_add_ring(n, o.ring_name != NULL ? o.ring_name : "global", &ring, &oops));
    TINY_OK(net_add_input(n, 2, 4, 4, &x, &oops));
    for (int i = 0; i < 2; i++) {
        const int k = o.swap ? 1 - i : i;
        TINY_OK(net_add_kernel(n, names[k], shapes[k], ring, &kernel[k], &oops));
    }
    TINY_OK(net_add_norm(n, "layer1.0.bn1", 2, &norm, &oops));
    TINY_OK(net_add_conv(n, "layer1.0.conv1", x, kernel[0], &geometry, &x, &oops));
    TINY_OK(net_add_bn(n, "layer1.0.bn1", x, norm, true, -1, &x, &oops));
    geometry.pad_w = 1;
    geometry.bias = false;
    TINY_OK(net_add_conv(n, "layer1.0.conv2", x, kernel[1], &geometry, &x, &oops));
    TINY_OK(net_add_global_avg_pool(n, "avgpool", x, &x, &oops));
    TINY_OK(net_add_fc(n, "fc", x, o.classes > 0 ? o.classes : 2, &x, &oops));
    TINY_OK(net_add_output(n, x, &oops));
    TINY_OK(net_finish(n, &rings, &oops));
    return n;
}

/* "affects results" text of the default spec with one assignment (NULL = none). Caller frees. */
static inline char *tiny_results(const char *assignment)
{
    spec s;
    char *text = NULL;
    TINY_OK(spec_init(&s, &oops));
    if (assignment != NULL)
        TINY_OK(spec_set(&s, assignment, &oops));
    TINY_OK(spec_dump_results(&s, &text, &oops));
    spec_fini(&s);
    return text;
}

/* A checkpoint that owns its vectors; values follow from `seed`. */
typedef struct tiny_run {
    net *net;
    checkpoint c;
    optim_state momentum;
} tiny_run;

static inline void tiny_fill(float *values, int64_t count, uint32_t seed)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = seed = seed * 1664525u + 1013904223u; /* any bits: NaN, denormals, … */
        memcpy(&values[i], &bits, sizeof bits);
    }
}

static inline tiny_run tiny_begin(tiny_options o, uint32_t seed)
{
    tiny_run t = {.net = tiny_net(o)};
    const size_t params = (size_t)t.net->param_elements, running = (size_t)t.net->running_elements;
    t.c = (checkpoint){.net = t.net,
                       .params = calloc(params, sizeof(float)),
                       .running = calloc(running, sizeof(float)),
                       .results = tiny_results(NULL),
                       .plan = strdup("{\"backend\":\"cpu\"}"),
                       .data_hash = "00112233"};
    t.momentum = (optim_state){"momentum", calloc(params, sizeof(float))};
    tiny_fill(t.c.params, t.net->param_elements, seed);
    tiny_fill(t.c.running, t.net->running_elements, seed + 1);
    tiny_fill(t.momentum.values, t.net->param_elements, seed + 2);
    t.c.optims = 1;
    t.c.state = (train_state){
        .step = 120,
        .epoch = 3,
        .next_seq = 17,
        .best_top1 = 0.1 + 0.2,
        .best_step = 80,
        .best_epoch = 2,
        .train = {.loss = 1.0 / 3.0, .count = 640, .top1 = 13, .top5 = 40, .skipped = 3}};
    return t;
}

static inline void tiny_end(tiny_run *t)
{
    checkpoint_fini(&t->c);
    free(t->c.params);
    free(t->c.running);
    free(t->momentum.values);
    net_destroy(&t->net);
}

/* `c.optim` points into the struct itself: set just before use. */
static inline status tiny_write(tiny_run *t, const char *path, errbuf *err)
{
    t->c.optim = &t->momentum;
    return checkpoint_write(&t->c, path, err);
}

static inline status tiny_read(tiny_run *t, const char *path, errbuf *err)
{
    t->c.optim = &t->momentum;
    return checkpoint_read(&t->c, path, err);
}

/* Writes the file anew, sealed, with one metadata string replaced (NULL: left out). */
static inline void tiny_rewrite(const char *path, const char *key, const char *value)
{
    safetensors_file *file = NULL;
    safetensors_string metadata[20];
    safetensors_tensor tensor[20];
    size_t strings = 0;
    TINY_OK(safetensors_open(path, &file, &oops));
    for (size_t i = 0; i < file->header.strings; i++) {
        safetensors_string s = file->header.metadata[i];
        if (strstr(s.key, "_sha256") != NULL)
            continue;
        if (strcmp(s.key, key) == 0)
            s.value = value;
        if (s.value != NULL)
            metadata[strings++] = s;
    }
    const size_t tensors = file->header.tensors;
    for (size_t i = 0; i < tensors; i++) {
        void *data = malloc(1024);
        tensor[i] = file->header.tensor[i];
        TINY_OK(safetensors_read(file, &tensor[i], data, &oops));
        tensor[i].data = data;
    }
    TINY_OK(safetensors_write(path, metadata, strings, tensor, tensors, &oops));
    for (size_t i = 0; i < tensors; i++)
        free((void *)tensor[i].data);
    safetensors_close(&file);
}

#endif
