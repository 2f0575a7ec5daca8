/*
 * Expand: weight[i] = scale * sign[i] * W[index[i]], in the order of memory (KRSC).
 *
 * A word of the table holds index and sign of a weight. Scales are applied in fp32, before the
 * weight is rounded to the io type.
 * Bytes for M weights, N elements: 4 M (table) + 4 N (ring) + 2 M (bf16) or 4 M (fp32), and M
 * gathers of a 32-byte sector each, which an even map takes from L2: they, not the bytes, are its
 * limit. A chunk of 4096 weights lies in one kernel: of a tile map it touches five or six tiles
 * (8 KB each, 4 KB in the shadow), which stay in L1; a small ring stays there as a whole.
 * Rings larger than RING_SHADOW_BYTES are rounded to bf16 first (6 N bytes), so that L2 holds them.
 */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/weights.h"

enum {
    EXPAND_BLOCK = RING_CHUNK / 8,
    SHADOW_BLOCK = 256,
    SHADOW_EACH = 4 /* elements of a thread, one block's threads apart */
};

static __device__ __forceinline__ bool is_zero(uint32_t word)
{
    return (word & ~RING_SIGN_BIT) == RING_ZERO_WEIGHT;
}

static __device__ __forceinline__ float with_sign(float value, uint32_t word)
{
    union {
        float f;
        uint32_t u;
    } v;
    v.f = value;
    v.u ^= word & RING_SIGN_BIT;
    return v.f;
}

/* The elements that eight words name, with their signs. All are read, element 0 for a zero weight:
 * eight loads on their way at once, and no branch between them. */
template <typename T>
static __device__ __forceinline__ void gather8(const eight<uint32_t> &words, const T *from,
                                               float to[8])
{
    T element[8];
    for (int i = 0; i < 8; i++)
        element[i] = from[is_zero(words.at[i]) ? 0u : words.at[i] & ~RING_SIGN_BIT];
    for (int i = 0; i < 8; i++)
        to[i] = is_zero(words.at[i]) ? 0.0f : with_sign(to_float(element[i]), words.at[i]);
}

/* Scales of weights `first` .. `first` + 7 of a kernel, wherever they change. Rows end before the
 * chunk does: what is there is no weight. */
static __device__ __forceinline__ void scale8(const eight<uint32_t> &words, const float *scales,
                                              uint32_t first, uint32_t row, float value[8])
{
    for (uint32_t i = 0; i < 8; i++)
        if (!is_zero(words.at[i]))
            value[i] *= scales[(first + i) / row];
}

/* One thread owns eight weights, one block a chunk. */
template <typename T>
static __global__ void __launch_bounds__(EXPAND_BLOCK)
    expand_kernel(const uint32_t *table, const expand_chunk *chunks, const float *params,
                  const bf16 *shadow, const float *scales, T *values)
{
    const int64_t at = (int64_t)blockIdx.x * RING_CHUNK + (int64_t)threadIdx.x * 8;
    const eight<uint32_t> words = *(const eight<uint32_t> *)(const void *)(table + at);
    const expand_chunk chunk = chunks[blockIdx.x];
    float value[8];
    if (chunk.shadow)
        gather8(words, shadow + chunk.source, value);
    else
        gather8(words, params + chunk.source, value);
    if (chunk.scales < 0)
        for (int i = 0; i < 8; i++)
            value[i] *= chunk.scale;
    else
        scale8(words, scales + chunk.scales, chunk.first + threadIdx.x * 8, chunk.row, value);
    store8(values + at, value);
}

/* One thread owns SHADOW_EACH elements; a source lies anywhere, so each is read by itself. */
static __global__ void shadow_kernel(int64_t n, const float *ring, bf16 *shadow)
{
    const int64_t first = (int64_t)blockIdx.x * blockDim.x * SHADOW_EACH + threadIdx.x;
    for (int k = 0; k < SHADOW_EACH; k++) {
        const int64_t i = first + (int64_t)k * blockDim.x;
        if (i < n)
            shadow[i] = from_float<bf16>(ring[i]);
    }
}

template <typename T> static status expand(backend_weights *w, const float *params)
{
    return cuda_launch(w->be, "expand", expand_kernel<T>, dim3((unsigned int)w->chunks),
                       dim3(EXPAND_BLOCK), 0, w->table, w->chunk, params, (const bf16 *)w->shadow,
                       w->scales, (T *)w->values);
}

extern "C" status cuda_weights_expand(backend_weights *w, const float *params)
{
    if (!w->ready)
        return cuda_fail(w->be, STATUS_BAD_INPUT, "weights cannot be expanded before commit");
    if (w->chunks == 0)
        return STATUS_OK;
    for (int i = 0; i < w->shadow_count; i++) {
        const ring_shadow *s = &w->shadows[i];
        TRY(cuda_launch(w->be, "expand: bf16 shadow", shadow_kernel,
                        dim3(blocks_for(s->elements, SHADOW_BLOCK * SHADOW_EACH)),
                        dim3(SHADOW_BLOCK), 0, s->elements, params + s->source,
                        (bf16 *)w->shadow + s->at));
    }
    return cuda_is_bf16(w->be) ? expand<bf16>(w, params) : expand<float>(w, params);
}
