/*
 * Separable resampling in fixed point, and box averages.
 *
 * Each output is a sum of inputs under a triangle filter, whose width is one input pixel when the
 * image grows and in/out pixels when it shrinks (so that nothing is skipped). Filters are made in
 * double, normalised, and rounded to 22 bits; sums are rounded to 8 bits after each pass, the
 * horizontal one first. Double arithmetic here is additions, products and quotients alone, which
 * IEEE 754 fixes to the bit.
 */
#include "trainer/data/resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_BITS 22

void resample_scratch_fini(resample_scratch *s)
{
    if (!s)
        return;
    free(s->rows);
    free(s->weights);
    free(s->bounds);
    *s = (resample_scratch){0};
}

/* Makes room for `need` bytes; what was there is lost. */
static status grow(void **p, size_t *capacity, size_t need, errbuf *err)
{
    if (need <= *capacity)
        return STATUS_OK;
    void *made = malloc(need);
    if (!made)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for resizing an image (%zu bytes)",
                          need);
    free(*p);
    *p = made;
    *capacity = need;
    return STATUS_OK;
}

static double triangle(double x)
{
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

/* Filters of an axis: output i is the sum over j of weights[i*taps + j] * input[first + j]. */
static void make_filters(int in, int out, int taps, double support, double filter_scale,
                         int32_t *weights, int32_t *bounds)
{
    double scale = (double)in / out, inverse = 1.0 / filter_scale;
    for (int i = 0; i < out; i++) {
        double centre = (i + 0.5) * scale, sum = 0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        if (first < 0)
            first = 0;
        if (last > in)
            last = in;
        int n = last - first;
        for (int j = 0; j < n; j++)
            sum += triangle((j + first - centre + 0.5) * inverse);
        for (int j = 0; j < n; j++) {
            double w = triangle((j + first - centre + 0.5) * inverse);
            if (sum != 0)
                w /= sum;
            weights[(size_t)i * (size_t)taps + (size_t)j] = (int32_t)(w * (1 << WEIGHT_BITS) + 0.5);
        }
        bounds[2 * i] = first;
        bounds[2 * i + 1] = n;
    }
}

static status prepare_axis(int in, int out, resample_scratch *s, int *ret_taps, errbuf *err)
{
    double scale = (double)in / out, filter_scale = scale < 1 ? 1 : scale;
    double support = filter_scale; /* the triangle reaches one scaled pixel to each side */
    int taps = (int)ceil(support) * 2 + 1;
    TRY(grow((void **)&s->weights, &s->weights_capacity,
             (size_t)taps * (size_t)out * sizeof *s->weights, err));
    TRY(grow((void **)&s->bounds, &s->bounds_capacity, 2 * (size_t)out * sizeof *s->bounds, err));
    make_filters(in, out, taps, support, filter_scale, s->weights, s->bounds);
    *ret_taps = taps;
    return STATUS_OK;
}

static inline uint8_t round_sum(int32_t sum)
{
    int32_t v = sum >> WEIGHT_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* One row across: out[i] for all i. */
static void across(const uint8_t *in, int out_w, int taps, const resample_scratch *s, uint8_t *out)
{
    for (int i = 0; i < out_w; i++) {
        const int32_t *w = s->weights + (size_t)i * (size_t)taps;
        const uint8_t *from = in + s->bounds[2 * i];
        int32_t sum = 1 << (WEIGHT_BITS - 1);
        for (int j = 0; j < s->bounds[2 * i + 1]; j++)
            sum += w[j] * from[j];
        out[i] = round_sum(sum);
    }
}

/* One output row down: the weighted sum of `n` rows of `w` bytes, `stride` apart. */
static void down(const uint8_t *in, size_t stride, int n, int w, const int32_t *weights,
                 uint8_t *out)
{
    enum {
        BLOCK = 64
    };
    for (int x = 0; x < w; x += BLOCK) {
        int32_t sum[BLOCK];
        int width = w - x < BLOCK ? w - x : BLOCK;
        for (int i = 0; i < width; i++)
            sum[i] = 1 << (WEIGHT_BITS - 1);
        for (int j = 0; j < n; j++) {
            const uint8_t *row = in + (size_t)j * stride + (size_t)x;
            for (int i = 0; i < width; i++)
                sum[i] += weights[j] * row[i];
        }
        for (int i = 0; i < width; i++)
            out[x + i] = round_sum(sum[i]);
    }
}

status resample_bilinear(const image *from, image_region r, int w, int h, resample_scratch *s,
                         image *to, errbuf *err)
{
    ASSERT(r.x >= 0 && r.y >= 0 && r.w > 0 && r.h > 0 && r.x + r.w <= from->w &&
           r.y + r.h <= from->h);
    size_t plane = (size_t)from->w * (size_t)from->h, middle = (size_t)w * (size_t)r.h;
    int taps = 0;
    TRY(image_reserve(to, w, h, err));
    TRY(grow((void **)&s->rows, &s->rows_capacity, 3 * middle, err));
    TRY(prepare_axis(r.w, w, s, &taps, err));
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < r.h; y++) {
            const uint8_t *row = from->pixels + (size_t)c * plane +
                                 (size_t)(r.y + y) * (size_t)from->w + (size_t)r.x;
            uint8_t *out = s->rows + (size_t)c * middle + (size_t)y * (size_t)w;
            if (r.w == w)
                memcpy(out, row, (size_t)w);
            else
                across(row, w, taps, s, out);
        }
    TRY(prepare_axis(r.h, h, s, &taps, err));
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < h; y++)
            down(s->rows + (size_t)c * middle + (size_t)s->bounds[2 * y] * (size_t)w, (size_t)w,
                 s->bounds[2 * y + 1], w, s->weights + (size_t)y * (size_t)taps,
                 to->pixels + (size_t)c * (size_t)w * (size_t)h + (size_t)y * (size_t)w);
    return STATUS_OK;
}

status resample_box(const image *from, int k, image *to, errbuf *err)
{
    int w = from->w / k, h = from->h / k;
    uint32_t area = (uint32_t)k * (uint32_t)k;
    TRY(image_reserve(to, w, h, err));
    for (int y = 0; y < 3 * h; y++) { /* planes lie one under the other */
        /* Rows of a plane that k does not divide are left out at its lower end. */
        const uint8_t *rows =
            from->pixels +
            ((size_t)(y / h) * (size_t)from->h + (size_t)(y % h) * (size_t)k) * (size_t)from->w;
        for (int x = 0; x < w; x++) {
            uint32_t sum = area / 2;
            for (int j = 0; j < k; j++)
                for (int i = 0; i < k; i++)
                    sum += rows[(size_t)j * (size_t)from->w + (size_t)(x * k + i)];
            to->pixels[(size_t)y * (size_t)w + (size_t)x] = (uint8_t)(sum / area);
        }
    }
    return STATUS_OK;
}
