/*
 * From a decoded image to the network's input.
 *
 * none, crop: the short side is resized to `size` and the centre is taken, which for square images
 *   is resizing alone. A square image whose side is a multiple of `size` is averaged in blocks, for
 *   others the filter is bilinear with antialiasing. Training with crop then pads by size/8
 *   black pixels (4 at 32, 2 at 16), cuts size x size at random and mirrors every second image.
 *   Black means 0 before normalisation, as in the usual CIFAR recipe.
 * rrc: in training a random rectangle of 8 to 100 % of the area with sides 3:4 to 4:3 is resized
 *   to size x size, mirrored every second time; otherwise the short side is resized to
 *   size * 256 / 224 and the centre is taken.
 *
 * All choices are drawn from the stream of (seed, sample, epoch).
 */
#include "trainer/data/augment.h"

#include <math.h>
#include <string.h>

#include "kernels/random.h"

#define RRC_TRIES 10

static const double channel_mean[][3] = {
    [NORMALISE_NONE] = {0, 0, 0},
    [NORMALISE_CIFAR10] = {.4914, .4822, .4465},
    [NORMALISE_CIFAR100] = {.507075, .486549, .440918},
    [NORMALISE_IMAGENET] = {.485, .456, .406},
};
static const double channel_deviation[][3] = {
    [NORMALISE_NONE] = {1, 1, 1},
    [NORMALISE_CIFAR10] = {.2023, .1994, .2010},
    [NORMALISE_CIFAR100] = {.267334, .256438, .276150},
    [NORMALISE_IMAGENET] = {.229, .224, .225},
};

void augmenter_init(augmenter *a, const loader_options *o)
{
    ASSERT(o->normalise >= NORMALISE_NONE && o->normalise <= NORMALISE_IMAGENET);
    ASSERT(o->augment >= AUGMENT_NONE && o->augment <= AUGMENT_RRC);
    *a = (augmenter){.size = o->size,
                     .augment = o->augment,
                     .is_random = o->split == SPLIT_TRAIN && !o->clean,
                     .bytes = o->bytes,
                     .seed = o->seed};
    loader_levels(o, a->level);
}

void loader_levels(const loader_options *o, float ret_level[3][256])
{
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++)
            ret_level[c][v] = (float)((v / 255.0 - channel_mean[o->normalise][c]) /
                                      channel_deviation[o->normalise][c]);
}

void augment_scratch_fini(augment_scratch *s)
{
    if (!s)
        return;
    image_fini(&s->resized);
    resample_scratch_fini(&s->resample);
}

/* Short side of an image whose centre is evaluated under rrc. */
static int rrc_short_side(int size)
{
    return (size * 256 + 112) / 224;
}

int augmenter_short_side(const augmenter *a)
{
    if (a->augment != AUGMENT_RRC)
        return a->size;
    /* A random rectangle is a part of the image: twice the size keeps its detail. */
    return a->is_random ? 2 * a->size : rrc_short_side(a->size);
}

/* -- writing the output -- */

/* The same as emit_floats before normalisation. */
static void emit_bytes(const augmenter *a, const image *im, int x0, int y0, bool mirrored,
                       uint8_t *out)
{
    const int size = a->size;
    for (int c = 0; c < 3; c++) {
        const uint8_t *plane = im->pixels + (size_t)c * (size_t)im->w * (size_t)im->h;
        for (int y = 0; y < size; y++, out += size) {
            const bool is_inside = y + y0 >= 0 && y + y0 < im->h;
            for (int x = 0; x < size; x++) {
                const int column = x + x0;
                const bool is_there = is_inside && column >= 0 && column < im->w;
                out[mirrored ? size - 1 - x : x] =
                    is_there ? plane[(ptrdiff_t)(y + y0) * im->w + column] : 0;
            }
        }
    }
}

/* Writes the size x size window of `im` whose corner is (x0, y0), which may lie outside: black. */
static void emit_floats(const augmenter *a, const image *im, int x0, int y0, bool mirrored,
                        float *out)
{
    int size = a->size;
    int left = x0 < 0 ? -x0 : 0; /* columns of the window before the image begins, and after it */
    int right = x0 + size > im->w ? x0 + size - im->w : 0;
    for (int c = 0; c < 3; c++) {
        const float *level = a->level[c];
        const uint8_t *plane = im->pixels + (size_t)c * (size_t)im->w * (size_t)im->h;
        for (int y = 0; y < size; y++, out += size) {
            bool is_inside = y + y0 >= 0 && y + y0 < im->h;
            const uint8_t *row = is_inside ? plane + (ptrdiff_t)(y + y0) * im->w : NULL;
            int from = is_inside ? left : size, to = is_inside ? size - right : size;
            for (int x = 0; x < from; x++)
                out[mirrored ? size - 1 - x : x] = level[0];
            if (mirrored)
                for (int x = from; x < to; x++)
                    out[size - 1 - x] = level[row[x0 + x]];
            else
                for (int x = from; x < to; x++)
                    out[x] = level[row[x0 + x]];
            for (int x = to; x < size; x++)
                out[mirrored ? size - 1 - x : x] = level[0];
        }
    }
}

static void emit(const augmenter *a, const image *im, int x0, int y0, bool mirrored, void *out)
{
    if (a->bytes)
        emit_bytes(a, im, x0, y0, mirrored, out);
    else
        emit_floats(a, im, x0, y0, mirrored, out);
}

/* -- resizing -- */

/* *ret becomes `im` itself where its short side is `side` already, else the resized image. */
static status fit_short_side(const image *im, int side, bool may_average, augment_scratch *scratch,
                             const image **ret, errbuf *err)
{
    int shorter = im->w < im->h ? im->w : im->h;
    if (shorter == side) {
        *ret = im;
        return STATUS_OK;
    }
    if (may_average && im->w % side == 0 && im->h == im->w) {
        TRY(resample_box(im, im->w / side, &scratch->resized, err));
    } else {
        int w = (int)((int64_t)im->w * side / shorter), h = (int)((int64_t)im->h * side / shorter);
        TRY(resample_bilinear(im, (image_region){0, 0, im->w, im->h}, w, h, &scratch->resample,
                              &scratch->resized, err));
    }
    *ret = &scratch->resized;
    return STATUS_OK;
}

/* -- the random rectangle -- */

static int rounded_part(int64_t length, int64_t numerator, int64_t denominator)
{
    int64_t v = (length * numerator + denominator / 2) / denominator;
    return v < 1 ? 1 : (int)v;
}

static image_region random_rectangle(const image *im, random_stream *s)
{
    double area = (double)im->w * im->h, least = log(3.0 / 4.0), most = log(4.0 / 3.0);
    for (int i = 0; i < RRC_TRIES; i++) {
        double part = area * (.08 + .92 * random_unit(s));
        double ratio = exp(least + (most - least) * random_unit(s));
        int w = (int)rint(sqrt(part * ratio)), h = (int)rint(sqrt(part / ratio));
        if (w > 0 && h > 0 && w <= im->w && h <= im->h) {
            int x = random_between(s, 0, im->w - w), y = random_between(s, 0, im->h - h);
            return (image_region){x, y, w, h};
        }
    }
    /* A very long image: the largest centre part with a ratio that is allowed. */
    int w = im->w, h = im->h;
    if (4 * w < 3 * h)
        h = rounded_part(w, 4, 3);
    else if (3 * w > 4 * h)
        w = rounded_part(h, 4, 3);
    w = w < im->w ? w : im->w;
    h = h < im->h ? h : im->h;
    return (image_region){(im->w - w) / 2, (im->h - h) / 2, w, h};
}

/* Where the centre `size` of `length` begins; a half is rounded to even, as torchvision does. */
static int centre_offset(int length, int size)
{
    int twice = length - size;
    return twice / 2 + (twice & twice / 2 & 1);
}

status augmenter_apply(const augmenter *a, int64_t epoch, int64_t sample, const image *im,
                       augment_scratch *scratch, void *out, errbuf *err)
{
    bool is_rrc = a->augment == AUGMENT_RRC, mirrored = false;
    if (is_rrc && a->is_random) {
        random_stream s = random_open(a->seed, RANDOM_AUGMENT, (uint32_t)sample, (uint32_t)epoch);
        mirrored = random_below(&s, 2);
        TRY(resample_bilinear(im, random_rectangle(im, &s), a->size, a->size, &scratch->resample,
                              &scratch->resized, err));
        emit(a, &scratch->resized, 0, 0, mirrored, out);
        return STATUS_OK;
    }
    const image *fitted = NULL;
    TRY(fit_short_side(im, is_rrc ? rrc_short_side(a->size) : a->size, !is_rrc, scratch, &fitted,
                       err));
    int x = centre_offset(fitted->w, a->size), y = centre_offset(fitted->h, a->size);
    if (a->augment == AUGMENT_CROP && a->is_random) {
        const crop_choice crop = choose_crop(a->seed, (uint32_t)sample, (uint32_t)epoch, a->size);
        mirrored = crop.mirrored;
        x += crop.x;
        y += crop.y;
    }
    emit(a, fitted, x, y, mirrored, out);
    return STATUS_OK;
}

status augment_image(const loader_options *o, int64_t epoch, int64_t sample, const image *im,
                     image *scratch, void *out, errbuf *err)
{
    augmenter a;
    augment_scratch work = {.resized = *scratch};
    augmenter_init(&a, o);
    status st = augmenter_apply(&a, epoch, sample, im, &work, out, err);
    *scratch = work.resized; /* the caller's, which may have grown */
    resample_scratch_fini(&work.resample);
    return st;
}
