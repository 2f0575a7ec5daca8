/*
 * Batch norm with residual and ReLU.
 *
 * Statistics are taken in fixed pieces (images and pixels of one channel block, chosen by shape
 * alone), each summed in float around its own mean and combined in double in piece order: the same
 * bits for any number of threads. Threads take whole channel blocks where there are enough of them,
 * else share the pieces of a wave of blocks; either stays in the caches between summing and
 * writing.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define PIECE_PIXELS 1024      /* of one channel block that a piece should have */
#define WAVE_BYTES   (6 << 20) /* of one tensor that a wave should have */

struct backend_bn {
    cpu_backend *cpu;
    bn_desc desc;
    int block, blocks; /* channels a block, blocks */
    int pixels;        /* h * w */
    int images, parts; /* a piece: so many images, or one of `parts` parts of an image */
    int pieces, wave;  /* pieces a block, blocks a wave */
    bool stream;
    float *partial;     /* [blocks][pieces][3][block] */
    float *coefficient; /* [4][blocks * block] */
};

status cpu_bn_create(backend *be, int lane, const bn_desc *desc, backend_bn **ret, errbuf *err)
{
    cpu_backend *cpu = cpu_of(be);
    TRY(cpu_check_lane(cpu, lane, err));
    TRY(cpu_check_shape(desc->x, "batch norm", err));
    backend_bn *b = calloc(1, sizeof *b);
    if (!b)
        goto no_memory;
    const int64_t pixels = (int64_t)desc->x.h * desc->x.w;
    b->cpu = cpu;
    b->desc = *desc;
    b->block = cpu->simd->block;
    b->blocks = cpu_blocks(cpu, desc->x.c);
    b->pixels = (int)pixels;
    b->images = (int)min_int64(desc->x.n, max_int64(1, PIECE_PIXELS / pixels));
    b->parts = (int)max_int64(1, pixels / (2 * PIECE_PIXELS));
    b->pieces = (desc->x.n + b->images - 1) / b->images * b->parts;
    int64_t bytes = desc->x.n * pixels * b->block * (int64_t)sizeof(float);
    b->wave = (int)min_int64(b->blocks, max_int64(1, WAVE_BYTES / bytes));
    b->stream = bytes * b->blocks >= CPU_STREAM_BYTES;
    b->partial =
        cpu_memory((size_t)b->blocks * (size_t)b->pieces * 3 * (size_t)b->block * sizeof(float));
    b->coefficient = cpu_memory(4 * (size_t)b->blocks * (size_t)b->block * sizeof(float));
    if (!b->partial || !b->coefficient)
        goto no_memory;
    *ret = b;
    return STATUS_OK;
no_memory:
    cpu_bn_destroy(&b);
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for a batch norm of %d channels",
                      desc->x.c);
}

void cpu_bn_destroy(backend_bn **b)
{
    if (!b || !*b)
        return;
    free((*b)->partial);
    free((*b)->coefficient);
    free(*b);
    *b = NULL;
}

/* One piece of a channel block: where it starts, and how it lies. */
static int64_t piece_slab(const backend_bn *b, int cb, int piece, slab *ret)
{
    int image = piece / b->parts * b->images, part = piece % b->parts;
    int first = (int)((int64_t)b->pixels * part / b->parts);
    int end = (int)((int64_t)b->pixels * (part + 1) / b->parts);
    ret->image_stride = (int64_t)b->blocks * b->pixels * b->block;
    ret->images = (int)min_int64(b->images, b->desc.x.n - image);
    ret->pixels = end - first;
    return image * ret->image_stride + ((int64_t)cb * b->pixels + first) * b->block;
}

static float *piece_partial(const backend_bn *b, int cb, int piece)
{
    return b->partial + ((int64_t)cb * b->pieces + piece) * 3 * b->block;
}

static float *coefficients(const backend_bn *b, int which, int cb)
{
    return b->coefficient + ((int64_t)which * b->blocks + cb) * b->block;
}

/* ---- the three stages of a pass ---- */

/* Both passes take sums of every piece of a channel block, then finish each of its channels, then
 * write every piece. */
typedef struct bn_stages {
    void (*sum)(const backend_bn *b, const void *args, int cb, int piece);
    void (*finish)(const backend_bn *b, const void *args, int cb, int lane);
    void (*write)(const backend_bn *b, const void *args, int cb, int piece);
} bn_stages;

/* A thread takes a whole channel block: nobody waits for anybody. */
static void run_by_block(const backend_bn *b, const bn_stages *stages, const void *args,
                         int threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int cb = 0; cb < b->blocks; cb++) {
        for (int piece = 0; piece < b->pieces; piece++)
            stages->sum(b, args, cb, piece);
        for (int lane = 0; lane < b->block; lane++)
            stages->finish(b, args, cb, lane);
        for (int piece = 0; piece < b->pieces; piece++)
            stages->write(b, args, cb, piece);
    }
}

/* All threads work on the pieces of a wave of blocks. */
static void run_by_piece(const backend_bn *b, const bn_stages *stages, const void *args,
                         int threads)
{
#pragma omp parallel num_threads(threads)
    for (int first = 0; first < b->blocks; first += b->wave) {
        int end = (int)min_int64(b->blocks, first + b->wave);
#pragma omp for collapse(2) schedule(static)
        for (int cb = first; cb < end; cb++) {
            for (int piece = 0; piece < b->pieces; piece++)
                stages->sum(b, args, cb, piece);
        }
#pragma omp for collapse(2) schedule(static)
        for (int cb = first; cb < end; cb++) {
            for (int lane = 0; lane < b->block; lane++)
                stages->finish(b, args, cb, lane);
        }
#pragma omp for collapse(2) schedule(static) nowait
        for (int cb = first; cb < end; cb++) {
            for (int piece = 0; piece < b->pieces; piece++)
                stages->write(b, args, cb, piece);
        }
    }
}

static void run_stages(const backend_bn *b, const bn_stages *stages, const void *args)
{
    int threads = cpu_threads(b->cpu);
    bool even = b->blocks % threads == 0 || b->blocks >= 8 * threads;
    (even ? run_by_block : run_by_piece)(b, stages, args, threads);
}

/* ---- forward ---- */

/* What all threads of a forward pass work on. */
typedef struct forward_args {
    const float *x, *residual, *gamma, *beta;
    float *y, *saved, *stats;
} forward_args;

static void moments_piece(const backend_bn *b, const void *args, int cb, int piece)
{
    const forward_args *a = args;
    slab s;
    const float *from = a->x + piece_slab(b, cb, piece, &s);
    float *part = piece_partial(b, cb, piece);
    b->cpu->simd->bn_moments(&s, from, part, part + b->block, part + 2 * b->block);
}

/* Mean, scale and shift of one channel from the moments of its pieces; Chan's formula in double. */
static void finish_channel(const backend_bn *b, const void *args, int cb, int lane)
{
    const forward_args *a = args;
    int c = cb * b->block + lane, channels = b->desc.x.c;
    double count = 0, mean = 0, square = 0;
    for (int piece = 0; c < channels && piece < b->pieces; piece++) {
        const float *part = piece_partial(b, cb, piece) + lane;
        slab s;
        piece_slab(b, cb, piece, &s);
        double n = (double)s.images * s.pixels, sum = part[b->block];
        double piece_mean = part[0] + sum / n;
        double piece_square = part[2 * b->block] - sum * sum / n;
        double delta = piece_mean - mean;
        square += piece_square + delta * delta * count * n / (count + n);
        mean += delta * n / (count + n);
        count += n;
    }
    if (c >= channels) { /* a padding channel: zero in, zero out */
        coefficients(b, 0, cb)[lane] = 0;
        coefficients(b, 1, cb)[lane] = 0;
        coefficients(b, 2, cb)[lane] = 0;
        return;
    }
    square = square < 0 ? 0 : square; /* a NaN stays one */
    double rstd = 1.0 / sqrt(square / count + (double)b->desc.eps);
    coefficients(b, 0, cb)[lane] = (float)mean;
    coefficients(b, 1, cb)[lane] = (float)(rstd * a->gamma[c]);
    coefficients(b, 2, cb)[lane] = a->beta[c];
    a->saved[c] = (float)mean;
    a->saved[channels + c] = (float)rstd;
    a->stats[c] = (float)mean;
    a->stats[channels + c] = (float)(square / (count > 1 ? count - 1 : count));
}

static void apply_piece(const backend_bn *b, const void *args, int cb, int piece)
{
    const forward_args *a = args;
    slab s;
    int64_t at = piece_slab(b, cb, piece, &s);
    b->cpu->simd->bn_apply(&s, a->x + at, a->residual ? a->residual + at : NULL,
                           coefficients(b, 0, cb), coefficients(b, 1, cb), coefficients(b, 2, cb),
                           b->desc.relu, b->stream, a->y + at);
}

status cpu_bn_forward_train(backend_bn *b, const float *x, const float *residual,
                            const float *gamma, const float *beta, float *y, float *saved,
                            float *stats)
{
    const forward_args a = {x, b->desc.residual ? residual : NULL, gamma, beta, y, saved, stats};
    run_stages(b, &(bn_stages){moments_piece, finish_channel, apply_piece}, &a);
    return STATUS_OK;
}

status cpu_bn_forward_eval(backend_bn *b, const float *x, const float *residual, const float *gamma,
                           const float *beta, const float *running, float *y)
{
    const forward_args a = {x, b->desc.residual ? residual : NULL, gamma, beta, y, NULL, NULL};
    const int channels = b->desc.x.c;
    for (int c = 0; c < b->blocks * b->block; c++) {
        bool real = c < channels;
        double variance = real ? running[channels + c] : 1;
        double rstd = 1.0 / sqrt(variance + (double)b->desc.eps);
        coefficients(b, 0, 0)[c] = real ? running[c] : 0;
        coefficients(b, 1, 0)[c] = real ? (float)(rstd * gamma[c]) : 0;
        coefficients(b, 2, 0)[c] = real ? beta[c] : 0;
    }
#pragma omp parallel for collapse(2) num_threads(cpu_threads(b->cpu)) schedule(static)
    for (int cb = 0; cb < b->blocks; cb++) {
        for (int piece = 0; piece < b->pieces; piece++)
            apply_piece(b, &a, cb, piece);
    }
    return STATUS_OK;
}

/* ---- backward ---- */

typedef struct backward_args {
    const float *x, *y, *gamma, *saved, *dy1, *dy2;
    float *dz, *dx, *dgamma, *dbeta;
} backward_args;

/* Sums of one channel, and with them the coefficients of dx = dz * scale - (x-mean) * slope - shift
 */
static void finish_gradients(const backend_bn *b, const void *args, int cb, int lane)
{
    const backward_args *a = args;
    int c = cb * b->block + lane, channels = b->desc.x.c;
    double count = (double)b->desc.x.n * b->pixels, sum = 0, product = 0, scale = 0, rstd = 0;
    if (c < channels) {
        for (int piece = 0; piece < b->pieces; piece++) {
            const float *part = piece_partial(b, cb, piece) + lane;
            sum += part[0];
            product += part[b->block];
        }
        rstd = a->saved[channels + c];
        product *= rstd; /* sum of dz * xhat */
        scale = rstd * a->gamma[c];
        a->dgamma[c] = (float)product;
        a->dbeta[c] = (float)sum;
    }
    coefficients(b, 1, cb)[lane] = (float)scale;
    coefficients(b, 2, cb)[lane] = (float)(scale * rstd * product / count);
    coefficients(b, 3, cb)[lane] = (float)(scale * sum / count);
}

static void sum_piece(const backend_bn *b, const void *args, int cb, int piece)
{
    const backward_args *a = args;
    slab s;
    int64_t at = piece_slab(b, cb, piece, &s);
    float *part = piece_partial(b, cb, piece);
    b->cpu->simd->bn_backward_sums(&s, a->x + at, b->desc.relu ? a->y + at : NULL, a->dy1 + at,
                                   a->dy2 ? a->dy2 + at : NULL, coefficients(b, 0, cb), a->dz + at,
                                   part, part + b->block);
}

static void gradient_piece(const backend_bn *b, const void *args, int cb, int piece)
{
    const backward_args *a = args;
    slab s;
    int64_t at = piece_slab(b, cb, piece, &s);
    b->cpu->simd->bn_backward_apply(&s, a->x + at, a->dz + at, coefficients(b, 0, cb),
                                    coefficients(b, 1, cb), coefficients(b, 2, cb),
                                    coefficients(b, 3, cb), b->stream, a->dx + at);
}

status cpu_bn_backward(backend_bn *b, const float *x, const float *y, const float *gamma,
                       const float *saved, const float *dy1, const float *dy2, float *dz, float *dx,
                       float *dgamma, float *dbeta)
{
    const backward_args a = {x, y, gamma, saved, dy1, dy2, dz, dx, dgamma, dbeta};
    float *mean = coefficients(b, 0, 0);
    for (int c = 0; c < b->blocks * b->block; c++)
        mean[c] = c < b->desc.x.c ? saved[c] : 0;
    run_stages(b, &(bn_stages){sum_piece, finish_gradients, gradient_piece}, &a);
    return STATUS_OK;
}
