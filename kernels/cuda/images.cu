/*
 * Images and tensors as the device keeps them: NHWC in the io type, a net's input with channels
 * padded to a multiple of 8 with zeros.
 *
 * From uint8 planes R, G, B to a net's input: of each image the window that choose_crop says (or
 * all of it), mirrored or not; value of a byte v of channel c = level[c][v], rounded to the io
 * type; black, level[c][0], around the image. The very choices of the CPU's data path
 * (kernels/random.h), so the same floats. Bytes: 3 read a pixel, 16 (bf16) or 32 written.
 *
 * pack and unpack reorder on the host: for tests, and for what is made there.
 */
#include <stdlib.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/random.h"

enum {
    THREADS = 256,
    BLOCK_PIXELS = 4096, /* of one image, a block */
    LEVELS = 256
};

static_assert(CUDA_IMAGE_CHANNELS == 8 && IMAGE_CHANNELS <= 8, "a pixel is one store8");

/* ---- host tensors ---- */

static int memory_channels(shape s, layout l)
{
    return l == LAYOUT_IMAGE ? cuda_image_channels(s.c) : s.c;
}

extern "C" size_t cuda_tensor_bytes(const backend *be, shape s, layout l)
{
    const size_t pixels = (size_t)s.n * (size_t)s.h * (size_t)s.w;
    const size_t element =
        l == LAYOUT_PLAIN ? sizeof(float) : cuda_element((const cuda_backend *)(const void *)be);
    return pixels * (size_t)memory_channels(s, l) * element;
}

template <typename T> static void to_nhwc(shape s, int channels, T *to, const float *nchw)
{
    const int64_t plane = (int64_t)s.h * s.w;
    for (int64_t n = 0; n < s.n; n++)
        for (int64_t i = 0; i < plane; i++)
            for (int c = 0; c < channels; c++)
                to[(n * plane + i) * channels + c] =
                    from_float<T>(c < s.c ? nchw[(n * s.c + c) * plane + i] : 0);
}

template <typename T> static void from_nhwc(shape s, int channels, float *nchw, const T *from)
{
    const int64_t plane = (int64_t)s.h * s.w;
    for (int64_t n = 0; n < s.n; n++)
        for (int64_t i = 0; i < plane; i++)
            for (int c = 0; c < s.c; c++)
                nchw[(n * s.c + c) * plane + i] = to_float(from[(n * plane + i) * channels + c]);
}

/* A host copy of a tensor as the device keeps it. */
static status staging(backend *be, size_t bytes, void **ret)
{
    *ret = malloc(bytes + 1);
    if (*ret)
        return STATUS_OK;
    return cuda_fail(cuda_of(be), STATUS_OUT_OF_MEMORY,
                     "out of host memory for a copy of a tensor of %zu bytes", bytes);
}

extern "C" status cuda_pack(backend *be, shape s, layout l, void *to, const float *nchw)
{
    const size_t bytes = cuda_tensor_bytes(be, s, l);
    const int channels = memory_channels(s, l);
    void *host = NULL;
    if (l == LAYOUT_PLAIN)
        return cuda_upload(be, to, nchw, bytes);
    TRY(staging(be, bytes, &host));
    if (cuda_is_bf16(cuda_of(be)))
        to_nhwc(s, channels, (bf16 *)host, nchw);
    else
        to_nhwc(s, channels, (float *)host, nchw);
    const status st = cuda_upload(be, to, host, bytes);
    free(host);
    return st;
}

extern "C" status cuda_unpack(backend *be, shape s, layout l, float *nchw, const void *from)
{
    const size_t bytes = cuda_tensor_bytes(be, s, l);
    const int channels = memory_channels(s, l);
    void *host = NULL;
    if (l == LAYOUT_PLAIN)
        return cuda_download(be, nchw, from, bytes);
    TRY(staging(be, bytes, &host));
    const status st = cuda_download(be, host, from, bytes);
    if (st == STATUS_OK && cuda_is_bf16(cuda_of(be)))
        from_nhwc(s, channels, nchw, (const bf16 *)host);
    else if (st == STATUS_OK)
        from_nhwc(s, channels, nchw, (const float *)host);
    free(host);
    return st;
}

/* ---- images of bytes ---- */

namespace
{

/* Where the input of one image comes from; pixels NULL: zeros. */
struct image_source {
    const uint8_t *pixels; /* [3][size][size] */
    int32_t label;
    crop_choice crop;
};

} // namespace

/* A block's part of the input of one image. */
template <typename T>
static __device__ void write_image(const image_source &from, int size, const float *level, T *to)
{
    const int pixels = size * size, first = (int)blockIdx.y * BLOCK_PIXELS;
    const int last = first + BLOCK_PIXELS < pixels ? first + BLOCK_PIXELS : pixels;
    for (int i = first + (int)threadIdx.x; i < last; i += THREADS) {
        const int column = i % size;
        const int y = from.crop.y + i / size;
        const int x = from.crop.x + (from.crop.mirrored ? size - 1 - column : column);
        const bool inside = y >= 0 && y < size && x >= 0 && x < size;
        float value[CUDA_IMAGE_CHANNELS] = {0};
        for (int c = 0; from.pixels && c < IMAGE_CHANNELS; c++)
            value[c] = level[c * LEVELS + (inside ? from.pixels[c * pixels + y * size + x] : 0)];
        store8(to + (int64_t)i * CUDA_IMAGE_CHANNELS, value);
    }
}

/* The image at `place` of the epoch, places at or after `end` blank. */
static __device__ image_source choose_image(const image_set &set, uint32_t epoch, uint64_t place,
                                            int64_t end)
{
    image_source from = {nullptr, -1, {0, 0, 0}};
    if (place >= (uint64_t)end || place >= (uint64_t)set.count)
        return from;
    uint32_t sample = (uint32_t)place;
    if (set.shuffled) {
        const feistel order = sample_order(set.seed, epoch, (uint32_t)set.count);
        sample = feistel_apply(&order, sample);
    }
    if (set.cropped)
        from.crop = choose_crop(set.seed, sample, epoch, set.size);
    from.pixels = set.pixels + (int64_t)sample * IMAGE_CHANNELS * set.size * set.size;
    from.label = set.labels[sample];
    return from;
}

/* One block owns BLOCK_PIXELS pixels of one image, a thread one at a time. */
template <typename T>
static __global__ void from_set_kernel(image_set set, const step_control *c, int64_t row,
                                       int64_t end, T *to, int32_t *labels)
{
    SHARED(image_source, from, 1);
    const int64_t image = blockIdx.x;
    if (c->halted) /* the whole grid alike */
        return;
    if (threadIdx.x == 0) {
        from[0] = choose_image(set, c->in.epoch, c->in.first + (uint64_t)(row + image), end);
        if (blockIdx.y == 0)
            labels[image] = from[0].label;
    }
    block_sync();
    write_image(from[0], set.size, set.level,
                to + image * set.size * set.size * CUDA_IMAGE_CHANNELS);
}

static dim3 image_grid(int rows, int size)
{
    return dim3((unsigned int)rows, blocks_for((int64_t)size * size, BLOCK_PIXELS));
}

extern "C" status cuda_images_from_set(backend *be, const image_set *set, const step_control *c,
                                       int64_t row, int64_t end, int rows, void *to,
                                       int32_t *labels)
{
    if (cuda_is_bf16(cuda_of(be)))
        return cuda_launch(cuda_of(be), "images of a set", from_set_kernel<bf16>,
                           image_grid(rows, set->size), dim3(THREADS), 0, *set, c, row, end,
                           (bf16 *)to, labels);
    return cuda_launch(cuda_of(be), "images of a set", from_set_kernel<float>,
                       image_grid(rows, set->size), dim3(THREADS), 0, *set, c, row, end,
                       (float *)to, labels);
}

/* One block owns BLOCK_PIXELS pixels of one image, a thread one at a time. */
template <typename T>
static __global__ void from_bytes_kernel(const uint8_t *bytes, const int32_t *staged_labels,
                                         int slots, int64_t slot_rows, const float *level,
                                         const step_control *c, int64_t row, int size, T *to,
                                         int32_t *labels)
{
    const int64_t image = blockIdx.x;
    if (c->halted)
        return;
    const int64_t staged = (int64_t)(c->step % (uint64_t)slots) * slot_rows + row + image;
    image_source from = {nullptr, staged_labels[staged], {0, 0, 0}};
    if (from.label >= 0)
        from.pixels = bytes + staged * IMAGE_CHANNELS * size * size;
    if (threadIdx.x == 0 && blockIdx.y == 0)
        labels[image] = from.label;
    write_image(from, size, level, to + image * size * size * CUDA_IMAGE_CHANNELS);
}

extern "C" status cuda_images_from_bytes(backend *be, const uint8_t *bytes,
                                         const int32_t *staged_labels, int slots, int64_t slot_rows,
                                         const float *level, const step_control *c, int64_t row,
                                         int rows, int size, void *to, int32_t *labels)
{
    if (cuda_is_bf16(cuda_of(be)))
        return cuda_launch(cuda_of(be), "staged images", from_bytes_kernel<bf16>,
                           image_grid(rows, size), dim3(THREADS), 0, bytes, staged_labels, slots,
                           slot_rows, level, c, row, size, (bf16 *)to, labels);
    return cuda_launch(cuda_of(be), "staged images", from_bytes_kernel<float>,
                       image_grid(rows, size), dim3(THREADS), 0, bytes, staged_labels, slots,
                       slot_rows, level, c, row, size, (float *)to, labels);
}
