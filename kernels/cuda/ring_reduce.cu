/*
 * Reduce: grad[e] = sum over the uses u of element e, in ascending position, of scale * sign * dW.
 *
 * A word names the place, sign and scale of a use (struct ring_words). Sums are fp32, in orders
 * that the lists fix: nothing is atomic, and the grid decides nothing.
 * - Slices, where many elements have few uses each: a lane adds the uses of two elements in
 *   ascending position, row by row. Every lane's words of a row are adjacent, and so are the
 *   gradients that a warp writes.
 * - Segments, where elements have many uses each (down to one element): lane l of a warp adds uses
 *   l, l + 32, ... of up to 512 of one element, and a tree over the lanes makes their sum. Elements
 *   of several segments are added up by a second kernel: by a thread each in ascending order, or by
 *   a block each, thread t taking segments t, t + 256, ..., then a tree.
 * Bytes for M uses of N elements: 4 M (words) + 2 M (bf16 dW) or 4 M (fp32) + 4 N; a random map's
 * ragged counts make slices about twice as long. Gathers from dW are one 32-byte sector each, out
 * of L2 but for tile maps: a block of slices works on half a tile, whose uses lie in a few spans of
 * 4 KB of dW, which stay in L1.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/weights.h"

enum {
    SLICE_BLOCK = 512, /* 16 slices: half a tile */
    SEGMENT_BLOCK = 256,
    FEW_BLOCK = 256,
    MANY_BLOCK = 256,
    AT_ONCE = 4 /* rows, or uses of a lane, that are on their way together */
};

struct alignas(8) two_words {
    uint32_t at[2];
};

struct alignas(8) two_scales {
    float at[2];
};

/* What a word means; by value to kernels. */
struct word_form {
    uint32_t places; /* mask of the place; itself = no use */
    int bits;
};

/* The palette, to shared memory. PALETTE: there is one. */
template <bool PALETTE>
static __device__ __forceinline__ void load_palette(const float *palette, int colours, float *to)
{
    if constexpr (PALETTE) {
        for (int i = (int)threadIdx.x; i < colours; i += (int)blockDim.x)
            to[i] = palette[i];
        block_sync();
    }
}

/* Signed scale of a use. */
template <bool PALETTE>
static __device__ __forceinline__ float factor_of(uint32_t word, word_form form,
                                                  const float *palette, float scale)
{
    const uint32_t colour = (word & ~RING_SIGN_BIT) >> form.bits;
    union {
        float f;
        uint32_t u;
    } v;
    v.f = PALETTE ? palette[colour] : scale;
    v.u ^= word & RING_SIGN_BIT;
    return v.f;
}

/* Where dW is read: a use that is not there reads the first, so that no branch parts the loads. */
static __device__ __forceinline__ uint32_t place_of(uint32_t word, word_form form)
{
    const uint32_t place = word & form.places;
    return place == form.places ? 0 : place;
}

/* One warp owns a slice. A row beyond the last is an earlier one, read again and not used. */
template <typename T, bool PALETTE>
static __global__ void __launch_bounds__(SLICE_BLOCK)
    slices_kernel(int64_t slices, const ring_slice *slice, const uint32_t *words,
                  const float *scales, word_form form, const float *colours, int colour_count,
                  const T *dw, float *grad)
{
    SHARED(float, palette, RING_PALETTE);
    load_palette<PALETTE>(colours, colour_count, palette);
    const int64_t warp = grid_index() / WARP;
    if (warp >= slices)
        return;
    const ring_slice s = slice[warp];
    const uint32_t lane = threadIdx.x % WARP;
    const two_words *word = (const two_words *)(const void *)(words + s.first) + lane;
    const two_scales *scale = (const two_scales *)(const void *)(scales + s.first) + lane;
    float sum[2] = {0.0f, 0.0f};
    for (uint32_t row = 0; row < s.rows; row += AT_ONCE) {
        two_words use[AT_ONCE];
        two_scales by[AT_ONCE];
        T d[AT_ONCE][2];
        for (uint32_t r = 0; r < AT_ONCE; r++) {
            const uint32_t from = (row + r < s.rows ? row + r : row) * WARP;
            use[r] = word[from];
            by[r] = PALETTE ? two_scales() : scale[from];
            if (row + r >= s.rows)
                use[r].at[0] = use[r].at[1] = RING_ZERO_WEIGHT;
        }
        for (int r = 0; r < AT_ONCE; r++)
            for (int i = 0; i < 2; i++)
                d[r][i] = dw[place_of(use[r].at[i], form)];
        for (int r = 0; r < AT_ONCE; r++)
            for (int i = 0; i < 2; i++)
                if ((use[r].at[i] & form.places) != form.places)
                    sum[i] += factor_of<PALETTE>(use[r].at[i], form, palette, by[r].at[i]) *
                              to_float(d[r][i]);
    }
    for (uint32_t i = 0; i < 2; i++)
        if (lane + i * WARP < s.elements)
            grad[s.to + lane + i * WARP] = sum[i];
}

/* One warp owns a segment. */
template <typename T, bool PALETTE>
static __global__ void __launch_bounds__(SEGMENT_BLOCK)
    segments_kernel(int64_t segments, const ring_sum *segment, const uint32_t *words,
                    const float *scales, word_form form, const float *colours, int colour_count,
                    const T *dw, float *grad, float *partial)
{
    SHARED(float, palette, RING_PALETTE);
    load_palette<PALETTE>(colours, colour_count, palette);
    const int64_t warp = grid_index() / WARP;
    if (warp >= segments)
        return;
    const ring_sum s = segment[warp];
    const uint32_t lane = threadIdx.x % WARP;
    float sum = 0.0f;
    for (uint32_t k = lane; k < s.count; k += AT_ONCE * WARP) {
        uint32_t use[AT_ONCE];
        float by[AT_ONCE];
        T d[AT_ONCE];
        for (uint32_t r = 0; r < AT_ONCE; r++) {
            const uint32_t from = s.first + (k + r * WARP < s.count ? k + r * WARP : k);
            use[r] = words[from];
            by[r] = PALETTE ? 1.0f : scales[from];
            if (k + r * WARP >= s.count)
                use[r] = RING_ZERO_WEIGHT;
        }
        for (int r = 0; r < AT_ONCE; r++)
            d[r] = dw[place_of(use[r], form)];
        for (int r = 0; r < AT_ONCE; r++)
            if ((use[r] & form.places) != form.places)
                sum += factor_of<PALETTE>(use[r], form, palette, by[r]) * to_float(d[r]);
    }
    sum = warp_sum(sum);
    if (lane == 0)
        (s.to >= 0 ? grad + s.to : partial + (-1 - s.to))[0] = sum;
}

/* One thread owns an element of up to RING_FEW_PARTS segments. */
static __global__ void few_parts_kernel(int64_t n, const ring_sum *sums, const float *partial,
                                        float *grad)
{
    const int64_t i = grid_index();
    if (i >= n)
        return;
    const ring_sum s = sums[i];
    float sum = 0.0f;
    for (uint32_t k = 0; k < s.count; k++)
        sum += partial[s.first + k];
    grad[s.to] = sum;
}

/* One block owns an element of more. */
static __global__ void many_parts_kernel(const ring_sum *sums, const float *partial, float *grad)
{
    SHARED(float, scratch, WARP);
    const ring_sum s = sums[blockIdx.x];
    float sum = 0.0f;
    for (uint32_t k = threadIdx.x; k < s.count; k += MANY_BLOCK)
        sum += partial[s.first + k];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0)
        grad[s.to] = sum;
}

template <typename T, bool PALETTE> static status sum_uses(backend_weights *w, float *grad)
{
    const ring_words *words = &w->words;
    const word_form form = {(uint32_t)(((uint64_t)1 << words->bits) - 1), words->bits};
    const T *dw = (const T *)w->grads;
    if (w->slices > 0)
        TRY(cuda_launch(w->be, "reduce: slices", slices_kernel<T, PALETTE>,
                        dim3(blocks_for(w->slices * WARP, SLICE_BLOCK)), dim3(SLICE_BLOCK), 0,
                        w->slices, w->slice, words->word, words->scale, form, words->palette,
                        words->colours, dw, grad));
    if (w->segments > 0)
        TRY(cuda_launch(w->be, "reduce: segments", segments_kernel<T, PALETTE>,
                        dim3(blocks_for(w->segments * WARP, SEGMENT_BLOCK)), dim3(SEGMENT_BLOCK), 0,
                        w->segments, w->segment, words->word, words->scale, form, words->palette,
                        words->colours, dw, grad, w->partial));
    return STATUS_OK;
}

static status sum_parts(backend_weights *w, float *grad)
{
    if (w->fews > 0)
        TRY(cuda_launch(w->be, "reduce: few segments", few_parts_kernel,
                        dim3(blocks_for(w->fews, FEW_BLOCK)), dim3(FEW_BLOCK), 0, w->fews, w->few,
                        w->partial, grad));
    if (w->manys > 0)
        TRY(cuda_launch(w->be, "reduce: many segments", many_parts_kernel,
                        dim3((unsigned int)w->manys), dim3(MANY_BLOCK), 0, w->many, w->partial,
                        grad));
    return STATUS_OK;
}

extern "C" status cuda_weights_reduce(backend_weights *w, int lane, float *grad)
{
    if (!w->ready || lane != 0)
        return cuda_fail(w->be, STATUS_BAD_INPUT, "weights cannot be reduced %s",
                         w->ready ? "in a lane that is not there" : "before commit");
    const bool palette = w->words.colours > 0;
    if (cuda_is_bf16(w->be))
        TRY((palette ? sum_uses<bf16, true> : sum_uses<bf16, false>)(w, grad));
    else
        TRY((palette ? sum_uses<float, true> : sum_uses<float, false>)(w, grad));
    return sum_parts(w, grad);
}
