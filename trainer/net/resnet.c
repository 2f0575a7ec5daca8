/* ResNet-18 and -34 with CIFAR or ImageNet stem (METHODS 1.1, 1.3, 1.4, 2); see builders.h. */
#include "trainer/net/resnet.h"

#include <stdio.h>

#define STAGES 4

/* ---- BasicBlock ---- */

static status join(char to[NET_NAME_MAX], const char *prefix, const char *part, errbuf *err)
{
    int length = snprintf(to, NET_NAME_MAX, "%s.%s", prefix, part);
    if (length >= NET_NAME_MAX)
        return errbuf_set(err, STATUS_BAD_INPUT, "name '%.32s….%s' is longer than %d letters",
                          prefix, part, NET_NAME_MAX - 1);
    return STATUS_OK;
}

static status add_kernel(net *n, const char *prefix, const char *part, kernel_shape s, int ring,
                         int *ret_kernel, errbuf *err)
{
    char name[NET_NAME_MAX];
    TRY(join(name, prefix, part, err));
    return net_add_kernel(n, name, s, ring, ret_kernel, err);
}

status basic_block_add_kernels(net *n, const char *prefix, basic_block_shape s, int ring,
                               basic_block_parts *ret, errbuf *err)
{
    basic_block_parts k = {.downsample = -1};
    if (basic_block_has_downsample(s))
        TRY(add_kernel(n, prefix, "downsample.0.weight", (kernel_shape){s.out, s.in, 1, 1}, ring,
                       &k.downsample, err));
    TRY(add_kernel(n, prefix, "conv1.weight", (kernel_shape){s.out, s.in, 3, 3}, ring, &k.conv1,
                   err));
    TRY(add_kernel(n, prefix, "conv2.weight", (kernel_shape){s.out, s.out, 3, 3}, ring, &k.conv2,
                   err));
    *ret = k;
    return STATUS_OK;
}

static status add_norm(net *n, const char *prefix, const char *part, int channels, int *ret_norm,
                       errbuf *err)
{
    char name[NET_NAME_MAX];
    TRY(join(name, prefix, part, err));
    return net_add_norm(n, name, channels, ret_norm, err);
}

status basic_block_add_norms(net *n, const char *prefix, basic_block_shape s,
                             basic_block_parts *ret, errbuf *err)
{
    basic_block_parts k = {.downsample = -1};
    TRY(add_norm(n, prefix, "bn1", s.out, &k.conv1, err));
    TRY(add_norm(n, prefix, "bn2", s.out, &k.conv2, err));
    if (basic_block_has_downsample(s))
        TRY(add_norm(n, prefix, "downsample.1", s.out, &k.downsample, err));
    *ret = k;
    return STATUS_OK;
}

static conv_desc square_conv(int stride, int pad)
{
    return (conv_desc){.stride_h = stride,
                       .stride_w = stride,
                       .pad_h = pad,
                       .pad_w = pad,
                       .dilation = 1,
                       .groups = 1};
}

/* A conv and its norm. */
typedef struct conv_bn {
    const char *conv, *bn; /* node names within the block */
    int kernel, norm;
    int stride, pad;
    bool relu;
    int residual; /* tensor, -1 = none */
} conv_bn;

static status add_conv_bn(net *n, const char *prefix, int input, const conv_bn *c, int *ret_tensor,
                          errbuf *err)
{
    char name[NET_NAME_MAX];
    conv_desc d = square_conv(c->stride, c->pad);
    int x;
    TRY(join(name, prefix, c->conv, err));
    TRY(net_add_conv(n, name, input, c->kernel, &d, &x, err));
    TRY(join(name, prefix, c->bn, err));
    return net_add_bn(n, name, x, c->norm, c->relu, c->residual, ret_tensor, err);
}

status basic_block_add_nodes(net *n, const char *prefix, basic_block_shape s, int input,
                             const basic_block_parts *kernels, const basic_block_parts *norms,
                             int *ret_tensor, errbuf *err)
{
    conv_bn down = {.conv = "downsample.0",
                    .bn = "downsample.1",
                    .kernel = kernels->downsample,
                    .norm = norms->downsample,
                    .stride = s.stride,
                    .residual = -1};
    conv_bn first = {.conv = "conv1",
                     .bn = "bn1",
                     .kernel = kernels->conv1,
                     .norm = norms->conv1,
                     .stride = s.stride,
                     .pad = 1,
                     .relu = true,
                     .residual = -1};
    conv_bn second = {.conv = "conv2",
                      .bn = "bn2",
                      .kernel = kernels->conv2,
                      .norm = norms->conv2,
                      .stride = 1,
                      .pad = 1,
                      .relu = true,
                      .residual = input};
    int x;
    if (basic_block_has_downsample(s))
        TRY(add_conv_bn(n, prefix, input, &down, &second.residual, err));
    TRY(add_conv_bn(n, prefix, input, &first, &x, err));
    return add_conv_bn(n, prefix, x, &second, ret_tensor, err);
}

/* ---- the whole net ---- */

/* conv, BN, ReLU and, for ImageNet, the max pool. Registered first: the first slot of its ring. */
static status add_stem(net *n, const spec *s, int ring, int *ret_tensor, errbuf *err)
{
    bool is_imagenet = s->model.stem == STEM_IMAGENET;
    int side = is_imagenet ? 7 : 3, width = (int)s->model.width, size = (int)s->data.size;
    conv_desc d = square_conv(is_imagenet ? 2 : 1, side / 2);
    int input, kernel, norm, x;
    TRY(net_add_input(n, 3, size, size, &input, err));
    TRY(net_add_kernel(n, "conv1.weight", (kernel_shape){width, 3, side, side},
                       s->rpg.include_stem ? ring : -1, &kernel, err));
    TRY(net_add_norm(n, "bn1", width, &norm, err));
    TRY(net_add_conv(n, "conv1", input, kernel, &d, &x, err));
    TRY(net_add_bn(n, "bn1", x, norm, true, -1, &x, err));
    if (is_imagenet)
        TRY(net_add_max_pool(n, "maxpool", x, 3, 2, 1, &x, err));
    *ret_tensor = x;
    return STATUS_OK;
}

static status add_stage(net *n, int stage, int blocks, int in, int ring, int *tensor, errbuf *err)
{
    int first = stage == 0 ? in : 2 * in; /* channels of the stage */
    for (int b = 0; b < blocks; b++) {
        char prefix[NET_NAME_MAX];
        basic_block_shape s = {b == 0 ? in : first, first, b == 0 && stage > 0 ? 2 : 1};
        basic_block_parts kernels, norms;
        snprintf(prefix, sizeof prefix, "layer%d.%d", stage + 1, b);
        TRY(basic_block_add_kernels(n, prefix, s, ring, &kernels, err));
        TRY(basic_block_add_norms(n, prefix, s, &norms, err));
        TRY(basic_block_add_nodes(n, prefix, s, *tensor, &kernels, &norms, tensor, err));
    }
    return STATUS_OK;
}

/* The ring of each stage: -1 for a dense net, 0 for a global ring, its own for block scope. */
static status add_rings(net *n, const spec *s, int ring[STAGES], errbuf *err)
{
    static const char *const names[STAGES] = {"layer1", "layer2", "layer3", "layer4"};
    int global = -1;
    if (s->rpg.scope == SCOPE_GLOBAL)
        TRY(net_add_ring(n, "global", &global, err));
    for (int i = 0; i < STAGES; i++) {
        ring[i] = global;
        if (s->rpg.scope == SCOPE_BLOCK)
            TRY(net_add_ring(n, names[i], &ring[i], err));
    }
    return STATUS_OK;
}

status resnet_build(net *n, const spec *s, errbuf *err)
{
    static const int blocks18[STAGES] = {2, 2, 2, 2}, blocks34[STAGES] = {3, 4, 6, 3};
    const int *blocks = s->model.arch == ARCH_RESNET34 ? blocks34 : blocks18;
    int ring[STAGES], tensor, channels = (int)s->model.width;
    TRY(add_rings(n, s, ring, err));
    TRY(add_stem(n, s, ring[0], &tensor, err));
    for (int i = 0; i < STAGES; i++) {
        TRY(add_stage(n, i, blocks[i], channels, ring[i], &tensor, err));
        channels = i == 0 ? channels : 2 * channels;
    }
    TRY(net_add_global_avg_pool(n, "avgpool", tensor, &tensor, err));
    TRY(net_add_fc(n, "fc", tensor, (int)s->model.classes, &tensor, err));
    return net_add_output(n, tensor, err);
}
