/*
 * The inner loops of simd_kernels.h. Compiled once per instruction set: SIMD_NAME is the suffix of
 * the table that this object defines, SIMD_BLOCK its vector width in floats.
 */
#include "kernels/cpu/simd_kernels.h"

#include <math.h>
#include <string.h>

#include "kernels/ring_map.h"

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#define B SIMD_BLOCK

/* Vectors of tensors are aligned to their size; per-channel arrays and tables need not be. */
typedef float vecf __attribute__((vector_size(4 * B)));
typedef int32_t veci __attribute__((vector_size(4 * B)));
typedef int32_t veci_any __attribute__((vector_size(4 * B), aligned(4), may_alias));
typedef float vecf_any __attribute__((vector_size(4 * B), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vecf load(const float *p)
{
    return *(const vecf *)p;
}

INLINE vecf load_any(const float *p)
{
    return *(const vecf_any *)p;
}

INLINE void store_any(float *p, vecf v)
{
    *(vecf_any *)p = v;
}

INLINE void store(float *p, vecf v, bool stream)
{
    if (!stream) {
        *(vecf *)p = v;
        return;
    }
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
    _mm256_stream_ps(p, (__m256)v);
#else
    *(vecf *)p = v;
#endif
}

/* What was streamed is visible to whoever synchronises with this thread afterwards. */
INLINE void end_stream(bool stream)
{
#if defined(__SSE2__)
    if (stream)
        _mm_sfence();
#else
    (void)stream;
#endif
}

INLINE vecf keep_where(vecf v, veci mask)
{
    return (vecf)((veci)v & mask);
}

/* ---- batch norm ---- */

static void bn_moments(const slab *s, const float *x, float *mean, float *sum, float *square)
{
    const int length = s->pixels;
    vecf a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0};
    for (int n = 0; n < s->images; n++) {
        const float *image = x + n * s->image_stride;
        int p = 0;
        for (; p + 4 <= length; p += 4) {
            a0 += load(image + (p + 0) * B);
            a1 += load(image + (p + 1) * B);
            a2 += load(image + (p + 2) * B);
            a3 += load(image + (p + 3) * B);
        }
        for (; p < length; p++)
            a0 += load(image + p * B);
    }
    vecf centre = ((a0 + a1) + (a2 + a3)) * (1.0f / ((float)s->images * (float)length));
    vecf s0 = {0}, s1 = {0}, q0 = {0}, q1 = {0};
    for (int n = 0; n < s->images; n++) {
        const float *image = x + n * s->image_stride;
        int p = 0;
        for (; p + 2 <= length; p += 2) {
            vecf d0 = load(image + (p + 0) * B) - centre, d1 = load(image + (p + 1) * B) - centre;
            s0 += d0;
            s1 += d1;
            q0 += d0 * d0;
            q1 += d1 * d1;
        }
        if (p < length) {
            vecf d0 = load(image + p * B) - centre;
            s0 += d0;
            q0 += d0 * d0;
        }
    }
    store_any(mean, centre);
    store_any(sum, s0 + s1);
    store_any(square, q0 + q1);
}

INLINE void apply(const slab *s, const float *x, const float *residual, const float *mean,
                  const float *scale, const float *shift, bool relu, bool stream, float *y)
{
    vecf m = load_any(mean), a = load_any(scale), b = load_any(shift);
    for (int n = 0; n < s->images; n++) {
        int64_t at = n * s->image_stride;
        for (int p = 0; p < s->pixels; p++, at += B) {
            vecf v = (load(x + at) - m) * a + b;
            if (residual)
                v += load(residual + at);
            if (relu)
                v = keep_where(v, ~(v < 0));
            store(y + at, v, stream);
        }
    }
    end_stream(stream);
}

static void bn_apply(const slab *s, const float *x, const float *residual, const float *mean,
                     const float *scale, const float *shift, bool relu, bool stream, float *y)
{
    /* constants for the inliner: one loop a case, without branches inside */
    if (relu && residual && stream)
        apply(s, x, residual, mean, scale, shift, true, true, y);
    else if (relu && residual)
        apply(s, x, residual, mean, scale, shift, true, false, y);
    else if (relu && stream)
        apply(s, x, NULL, mean, scale, shift, true, true, y);
    else if (relu)
        apply(s, x, NULL, mean, scale, shift, true, false, y);
    else
        apply(s, x, residual, mean, scale, shift, false, stream, y);
}

INLINE void backward_sums(const slab *s, const float *x, const float *y, const float *dy1,
                          const float *dy2, const float *mean, float *dz, float *sum,
                          float *product)
{
    vecf m = load_any(mean), s0 = {0}, s1 = {0}, q0 = {0}, q1 = {0};
    for (int n = 0; n < s->images; n++) {
        int64_t at = n * s->image_stride;
        for (int p = 0; p < s->pixels; p++, at += B) {
            vecf g = load(dy1 + at);
            if (dy2)
                g += load(dy2 + at);
            if (y)
                g = keep_where(g, load(y + at) > 0);
            store(dz + at, g, false);
            vecf q = g * (load(x + at) - m);
            if (p & 1) {
                s1 += g;
                q1 += q;
            } else {
                s0 += g;
                q0 += q;
            }
        }
    }
    store_any(sum, s0 + s1);
    store_any(product, q0 + q1);
}

static void bn_backward_sums(const slab *s, const float *x, const float *y, const float *dy1,
                             const float *dy2, const float *mean, float *dz, float *sum,
                             float *product)
{
    if (y && dy2)
        backward_sums(s, x, y, dy1, dy2, mean, dz, sum, product);
    else if (y)
        backward_sums(s, x, y, dy1, NULL, mean, dz, sum, product);
    else
        backward_sums(s, x, NULL, dy1, dy2, mean, dz, sum, product);
}

INLINE void backward_apply(const slab *s, const float *x, const float *dz, const float *mean,
                           const float *scale, const float *slope, const float *shift, bool stream,
                           float *dx)
{
    vecf m = load_any(mean), a = load_any(scale), k = load_any(slope), b = load_any(shift);
    for (int n = 0; n < s->images; n++) {
        int64_t at = n * s->image_stride;
        for (int p = 0; p < s->pixels; p++, at += B)
            store(dx + at, load(dz + at) * a - (load(x + at) - m) * k - b, stream);
    }
    end_stream(stream);
}

static void bn_backward_apply(const slab *s, const float *x, const float *dz, const float *mean,
                              const float *scale, const float *slope, const float *shift,
                              bool stream, float *dx)
{
    if (stream)
        backward_apply(s, x, dz, mean, scale, slope, shift, true, dx);
    else
        backward_apply(s, x, dz, mean, scale, slope, shift, false, dx);
}

/* ---- weight generation ---- */

/* Flips signs where the table says so. */
INLINE vecf flip(vecf v, const uint32_t *table)
{
    const veci sign_bits = (veci){0} + INT32_MIN;
    return (vecf)((veci)v ^ (*(const veci_any *)table & sign_bits));
}

/* One entry of a table that may have holes. */
INLINE float lookup(uint32_t entry, const float *params)
{
    uint32_t index = entry & ~RING_SIGN_BIT;
    float value = index == RING_ZERO_WEIGHT ? 0.0f : params[index];
    return entry & RING_SIGN_BIT ? -value : value;
}

/* B entries of a table. Where there are no holes, AVX2 does better with plain loads than with its
 * gather instruction, which takes longer than the loads that it is made of. */
INLINE vecf gather(const uint32_t *table, const float *params, bool holes)
{
#if defined(__AVX512F__)
    __m512i entry = _mm512_loadu_si512(table);
    __m512i none = _mm512_set1_epi32((int)RING_ZERO_WEIGHT); /* also the bits of an index */
    __m512i index = _mm512_and_si512(entry, none);
    __mmask16 keep = holes ? _mm512_cmpneq_epi32_mask(index, none) : (__mmask16)0xffff;
    __m512 v = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), keep, index, params, 4);
    return (vecf)_mm512_xor_si512(_mm512_castps_si512(v), _mm512_andnot_si512(none, entry));
#else
    vecf v;
    if (holes) {
        for (int l = 0; l < B; l++)
            v[l] = lookup(table[l], params);
        return v;
    }
    const uint32_t bits = ~RING_SIGN_BIT;
    v = (vecf){params[table[0] & bits], params[table[1] & bits], params[table[2] & bits],
               params[table[3] & bits], params[table[4] & bits], params[table[5] & bits],
               params[table[6] & bits], params[table[7] & bits]};
    return flip(v, table);
#endif
}

INLINE void expand_plain(const expand_args *a, bool holes, bool stream)
{
    int64_t k = 0;
    int at = 0;
    for (; k + B <= a->length; k += B) {
        vecf v = gather(a->table + k, a->params, holes) * load_any(a->scale + at);
        if (stream)
            store(a->to + k, v, true);
        else
            store_any(a->to + k, v);
        at = at + B == a->period ? 0 : at + B;
    }
    for (; k < a->length; k++, at++)
        a->to[k] = a->scale[at] * lookup(a->table[k], a->params);
}

/* The first or the last halves of two vectors, interleaved. */
#if SIMD_BLOCK == 16
#define INTERLEAVE_LOW(a, b) \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define INTERLEAVE_HIGH(a, b) \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#else
#define INTERLEAVE_LOW(a, b)  __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#endif

/* Transposes the B x B matrix whose rows are r[0 .. B-1]: interleaving rows i and i + B/2 is a
 * perfect shuffle of its elements, and log2(B) of them exchange rows and columns. */
INLINE void transpose(vecf r[B])
{
    for (int round = 1; round < B; round *= 2) {
        vecf t[B];
        for (int i = 0; i < B / 2; i++) {
            t[2 * i] = INTERLEAVE_LOW(r[i], r[i + B / 2]);
            t[2 * i + 1] = INTERLEAVE_HIGH(r[i], r[i + B / 2]);
        }
        for (int i = 0; i < B; i++)
            r[i] = t[i];
    }
}

INLINE void expand_tiles(const expand_args *a, bool holes, bool stream)
{
    for (int64_t k = 0; k < a->length; k += B * B) {
        vecf row[B];
        for (int i = 0; i < B; i++) {
            row[i] = gather(a->table + k + i * B, a->params, holes) * load_any(a->scale + i * B);
            store(a->to + k + i * B, row[i], stream);
        }
        transpose(row);
        for (int i = 0; i < B; i++)
            store(a->turned + k + i * B, row[i], stream);
    }
}

static void expand(const expand_args *a)
{
    const bool aligned = (uintptr_t)a->to % (4 * B) == 0;
    if (a->turned && a->holes)
        expand_tiles(a, true, false);
    else if (a->turned && a->stream)
        expand_tiles(a, false, true);
    else if (a->turned)
        expand_tiles(a, false, false);
    else if (a->holes)
        expand_plain(a, true, false);
    else if (a->stream && aligned)
        expand_plain(a, false, true);
    else
        expand_plain(a, false, false);
    end_stream(a->stream);
}

static void scatter(const scatter_args *a)
{
    int64_t k = 0;
    int at = 0;
    for (; k + B <= a->length; k += B) {
        vecf v = flip(load_any(a->from + k) * load_any(a->scale + at), a->table + k);
        for (int l = 0; l < B; l++) {
            uint32_t index = a->table[k + l] & ~RING_SIGN_BIT;
            if (!a->holes || index != RING_ZERO_WEIGHT)
                a->to[index] = v[l];
        }
        at = at + B == a->period ? 0 : at + B;
    }
    for (; k < a->length; k++, at++) {
        uint32_t index = a->table[k] & ~RING_SIGN_BIT;
        float v = a->from[k] * a->scale[at];
        if (index != RING_ZERO_WEIGHT)
            a->to[index] = a->table[k] & RING_SIGN_BIT ? -v : v;
    }
}

/* ---- pooling ---- */

static void max_pool(const pool_window *w, const float *x, float *y, uint8_t *choice)
{
    for (int oy = 0; oy < w->oh; oy++) {
        for (int ox = 0; ox < w->ow; ox++, y += B, choice += B) {
            vecf best = {0};
            veci taken = {0};
            bool first = true;
            for (int k = 0; k < w->kernel * w->kernel; k++) {
                int iy = oy * w->stride - w->pad + k / w->kernel;
                int ix = ox * w->stride - w->pad + k % w->kernel;
                if (iy < 0 || iy >= w->h || ix < 0 || ix >= w->w)
                    continue;
                vecf v = load(x + ((int64_t)iy * w->w + ix) * B);
                /* NOLINTNEXTLINE(misc-redundant-expression): NaN is what differs from itself */
                veci better = first ? (veci){0} - 1 : (v > best) | (v != v);
                best = (vecf)(((veci)v & better) | ((veci)best & ~better));
                taken = (k & better) | (taken & ~better);
                first = false;
            }
            store(y, best, false);
            for (int l = 0; l < B; l++)
                choice[l] = (uint8_t)taken[l];
        }
    }
}

static void max_pool_backward(const pool_window *w, const float *dy1, const float *dy2,
                              const uint8_t *choice, float *dx)
{
    memset(dx, 0, sizeof(float) * B * (size_t)w->h * (size_t)w->w);
    int64_t at = 0;
    for (int oy = 0; oy < w->oh; oy++) {
        for (int ox = 0; ox < w->ow; ox++, at += B) {
            for (int l = 0; l < B; l++) {
                int k = choice[at + l];
                int iy = oy * w->stride - w->pad + k / w->kernel;
                int ix = ox * w->stride - w->pad + k % w->kernel;
                dx[((int64_t)iy * w->w + ix) * B + l] += dy1[at + l] + (dy2 ? dy2[at + l] : 0.0f);
            }
        }
    }
}

static void pixel_mean(int pixels, const float *x, float *mean)
{
    vecf s0 = {0}, s1 = {0};
    int p = 0;
    for (; p + 2 <= pixels; p += 2) {
        s0 += load(x + (int64_t)p * B);
        s1 += load(x + (int64_t)(p + 1) * B);
    }
    if (p < pixels)
        s0 += load(x + (int64_t)p * B);
    store_any(mean, (s0 + s1) / (float)pixels);
}

static void pixel_fill(int pixels, const float *value, float *x)
{
    vecf v = load_any(value);
    for (int p = 0; p < pixels; p++)
        store(x + (int64_t)p * B, v, false);
}

/* ---- vectors; the compiler makes these wide by itself ---- */

static void add(int64_t n, const float *a, const float *b, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

static void sgd(int64_t n, float *restrict p, const float *restrict grad, float *restrict v,
                const sgd_params *params)
{
    const sgd_params s = *params;
    if (s.nesterov) {
        for (int64_t i = 0; i < n; i++) {
            float g = grad[i] * s.grad_scale + s.weight_decay * p[i];
            v[i] = s.momentum * v[i] + g;
            p[i] -= s.lr * (g + s.momentum * v[i]);
        }
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        v[i] = s.momentum * v[i] + (grad[i] * s.grad_scale + s.weight_decay * p[i]);
        p[i] -= s.lr * v[i];
    }
}

/* Bits of floats, whose exponent is all ones where they are not finite. */
INLINE uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static bool all_finite(int64_t n, const float *x)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad |= (bits_of(x[i]) & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

static bool exact_accumulate(int64_t n, const float *restrict g, int64_t *restrict acc)
{
    const uint32_t limit = bits_of(EXACT_LIMIT); /* floats without sign order as their bits */
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad |= (bits_of(g[i]) & 0x7fffffffu) >= limit;
    if (bad)
        return false;
    for (int64_t i = 0; i < n; i++)
        acc[i] += llrint((double)g[i] * EXACT_SCALE);
    return true;
}

static void exact_to_float(int64_t n, const int64_t *restrict acc, float *restrict g)
{
    for (int64_t i = 0; i < n; i++)
        g[i] = (float)((double)acc[i] / EXACT_SCALE);
}

#define JOIN_(a, b) a##b
#define JOIN(a, b)  JOIN_(a, b)
#define TEXT_(a)    #a
#define TEXT(a)     TEXT_(a)

const simd_kernels JOIN(simd_kernels_, SIMD_NAME) = {
    .name = TEXT(SIMD_NAME),
    .block = B,
    .bn_moments = bn_moments,
    .bn_apply = bn_apply,
    .bn_backward_sums = bn_backward_sums,
    .bn_backward_apply = bn_backward_apply,
    .expand = expand,
    .scatter = scatter,
    .max_pool = max_pool,
    .max_pool_backward = max_pool_backward,
    .pixel_mean = pixel_mean,
    .pixel_fill = pixel_fill,
    .add = add,
    .sgd = sgd,
    .all_finite = all_finite,
    .exact_accumulate = exact_accumulate,
    .exact_to_float = exact_to_float,
};
