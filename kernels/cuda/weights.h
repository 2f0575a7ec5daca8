/*
 * The generated weights of a net on the device, as weights.c and the ring_*.c and .cu files see
 * them.
 *
 * Life: kernels are declared, convs claim them (channels in memory, passes), commit places them,
 * makes the tables of expand (ring_table.c) and the lists of uses of reduce (ring_uses.c) on the
 * host, in all its threads, and puts them on the device. Expand and reduce then only launch.
 *
 * Memory: a kernel's weights are KRSC in the io type and begin at a chunk, so that what one block
 * of expand makes lies within one kernel; the rest of its last chunk is zero. Gradients are placed
 * in the same way, for the kernels that have any.
 */
#ifndef RINGMASTER_KERNELS_CUDA_WEIGHTS_H
#define RINGMASTER_KERNELS_CUDA_WEIGHTS_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    RING_CHUNK = 4096,   /* weights that a block of expand makes */
    RING_SLICE = 64,     /* elements that a warp of reduce sums where each has few uses: 2 a lane */
    RING_SEGMENT = 512,  /* uses of one element, at most, that a warp sums where each has many */
    RING_FEW_PARTS = 32, /* segments of an element that one thread adds up */
    RING_PALETTE = 256   /* different scales that the words of uses can name */
};

/* bf16: rings of more bytes (fp32) are first rounded to a copy that stays in the L2 cache. Weights
 * are then rounded twice, before and after their scale: 2^-8 relative instead of 2^-9. Smaller
 * rings fit as they are. To be settled by measurement. */
#define RING_SHADOW_BYTES (16 << 20)

typedef struct cuda_kernel {
    kernel_shape shape;
    int channels;        /* input channels a group in memory; 0: no conv has claimed it yet */
    bool has_grad;       /* some conv writes its gradient */
    int64_t elements;    /* in memory */
    int64_t at;          /* into values */
    int64_t grad_at;     /* into grads; -1 without */
    int64_t first_entry; /* in the host's entries, while commit runs */
} cuda_kernel;

/* What a block of expand has to know. */
typedef struct expand_chunk {
    int64_t source; /* element of the parameter vector (or shadow) that table entries count from */
    float scale;    /* of all its weights, where scales < 0 */
    int32_t scales; /* into the scales: its kernel's, one an output channel */
    uint32_t first; /* of its weights, counted within its kernel */
    uint32_t row;   /* weights of an output channel in memory */
    int32_t shadow; /* whether it draws from the shadow */
} expand_chunk;

/* A ring, or what is drawn from of it, that expand rounds to bf16 first. */
typedef struct ring_shadow {
    int64_t source, elements; /* of the parameter vector */
    int64_t at;               /* into the shadow */
} ring_shadow;

/* RING_SLICE elements and the words of their uses: row u holds each element's use u (the words of
 * elements l and l + 32 side by side), or RING_ZERO_WEIGHT where it has fewer. */
typedef struct ring_slice {
    int64_t to;     /* the first element's gradient */
    uint32_t first; /* word */
    uint32_t rows;
    uint32_t elements;
} ring_slice;

/* A sum over `count` words of uses, or over partial sums, from `first` on. */
typedef struct ring_sum {
    int64_t to; /* the element's gradient; negative: partial sum -1 - to */
    uint32_t first, count;
} ring_sum;

/* The word of a use: its sign in bit 31, its place in grads in the lowest `bits`, between them the
 * number of its scale in the palette. A place of all ones is no use. */
typedef struct ring_words {
    uint32_t *word;
    float *scale; /* one a word where the palette would not hold them all; else NULL */
    float *palette;
    int64_t count;
    int bits, colours;
} ring_words;

struct backend_weights {
    cuda_backend *be;
    cuda_kernel *kernel;
    int kernels;
    bool committed; /* or tried to: no conv can claim a kernel any more */
    bool ready;     /* everything below is made */
    size_t bytes;   /* of device memory */
    void *values;   /* io type */
    void *grads;    /* io type */
    int64_t value_elements, grad_elements;

    /* expand; all but `shadows` in device memory */
    uint32_t *table; /* for each weight in memory: element of its source, sign in bit 31 */
    expand_chunk *chunk;
    float *scales;
    void *shadow;         /* bf16 */
    ring_shadow *shadows; /* host memory */
    int64_t chunks;
    int shadow_count;

    /* reduce; in device memory */
    ring_words words;
    ring_slice *slice;
    ring_sum *segment;
    ring_sum *few, *many; /* elements of several segments: of up to RING_FEW_PARTS, and of more */
    float *partial;
    int64_t slices, segments, fews, manys, partials;
};

/* ---- weights.c ---- */

/* Device memory of the weights, counted; `from` (host) is copied to it unless NULL. No bytes: *ret
 * stays NULL. */
CHECK_RESULT status ring_upload(backend_weights *w, const void *from, size_t bytes, void *ret,
                                errbuf *err);

/* ---- ring_table.c ---- */

/* entries: of all weights, elements counted from their source; kernel k's in O,I,H,W order from
 * kernel[k].first_entry on. */
CHECK_RESULT status ring_table_build(backend_weights *w, const weight_source *sources,
                                     const uint32_t *entries, errbuf *err);

/* ---- ring_uses.c ---- */

CHECK_RESULT status ring_uses_build(backend_weights *w, const weight_source *sources,
                                    const uint32_t *entries, errbuf *err);

static inline int64_t round_up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static inline int64_t min_int64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#ifdef __cplusplus
}
#endif

#endif
