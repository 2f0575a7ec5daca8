/*
 * The generated weights of a net, as the files that make, fill, use and reduce them see them.
 *
 * Life: kernels are declared, convs choose the layouts of the kernels they use (one a pass, the
 * first conv of a kernel decides), commit places all kernels in one allocation and builds the
 * tables of expand (weights_expand.c) and the lists of reduce (weights_reduce.c).
 */
#ifndef RINGMASTER_KERNELS_CPU_WEIGHTS_H
#define RINGMASTER_KERNELS_CPU_WEIGHTS_H

#include "kernels/cpu/cpu.h"

/* Dimensions of a weight_layout. */
enum {
    DIM_GROUP,
    DIM_OUT,
    DIM_IN,
    DIM_KH,
    DIM_KW
};

typedef struct weights_kernel {
    kernel_shape shape;
    weight_layout layout[ONEDNN_PASSES]; /* no elements: no conv asks for the pass */
    int64_t at[ONEDNN_PASSES]; /* floats into `values`, or for backward weights into a lane's */
    int *writers;              /* [lanes] convs so far that make the lane's gradient */
    int64_t first_entry;       /* in the temporary entries of commit */
} weights_kernel;

/* A stretch of physical weights in which the scales repeat: what one call of an inner loop does. */
typedef struct weight_chunk {
    int64_t table, at, turned; /* entries; floats of the weights; the same transposed, or -1 */
    int64_t length, scale;     /* floats; into `scales` */
    int period;
    bool holes; /* some entries stand for no weight */
} weight_chunk;

/* One word for every physical weight of some kernels, and the scale of its output channel. */
typedef struct weight_table {
    uint32_t *entry;
    float *scales;
    weight_chunk *chunk;
    int64_t entries, room; /* room: what is allocated */
    int64_t scale_count, scale_room;
    int chunks, chunk_room;
} weight_table;

/* The uses that one thread at a time sums into one span of elements. */
typedef struct reduce_unit {
    int64_t first_use, uses;
    int64_t to; /* into the gradient vector, or into the lane's segments */
    int elements;
    bool segmented;
} reduce_unit;

/* A ring, or a direct kernel: elements whose uses may lie in several segments. */
typedef struct reduce_group {
    int64_t source, elements; /* in the parameter vector */
    int64_t uses, segment;    /* uses in all, uses a segment */
    int64_t segments, at;     /* `at`: into the lane's segments */
    int64_t partitions, first_unit;
} reduce_group;

typedef struct reduce_plan {
    weight_table table; /* place among the sorted uses, with the sign in bit 31 */
    uint16_t *local;    /* per sorted use: element within the unit's span */
    reduce_unit *unit;
    reduce_group *group;
    float **segments; /* [lanes], where some group needs them */
    int64_t uses, units, segment_floats;
    int groups;
} reduce_plan;

struct backend_weights {
    cpu_backend *cpu;
    weights_kernel *kernel;
    int kernels;
    bool committed;
    float *values; /* all kernels, forward and backward-data layouts */
    float **grads; /* [lanes] all kernels' gradients */
    int64_t value_floats, grad_floats, params;
    weight_table expand; /* parameter element, with the sign in bit 31 */
    reduce_plan reduce;
};

/* Offset of weight (o, i, h, w) of a kernel in a layout, o counting over all groups. */
int64_t weights_offset(const weight_layout *form, int o, int i, int h, int w);

/* ---- weights_table.c ---- */

CHECK_RESULT status weight_table_init(weight_table *t, int64_t entries, errbuf *err);
void weight_table_fini(weight_table *t);
size_t weight_table_bytes(const weight_table *t);

/* Adds a kernel: its entries (O,I,H,W order) in the order of layout `form`, which lies at float
 * `at`; transposed also at `turned`, unless that is < 0. `scale` per output channel, NULL = 1. */
CHECK_RESULT status weight_table_add(weight_table *t, const kernel_shape *s,
                                     const weight_layout *form, int64_t at, int64_t turned,
                                     const uint32_t *entries, const float *scale, int threads,
                                     errbuf *err);

/* b is a with its two inner blocks, block x block, exchanged: one table can serve both. */
bool weight_table_pairs(const weight_layout *a, const weight_layout *b, int block);

/* ---- weights_expand.c, weights_reduce.c ---- */

/* Entries in O,I,H,W order: kernel k's start at kernel[k].first_entry. */
CHECK_RESULT status expand_build(backend_weights *w, const weight_source *sources,
                                 const uint32_t *entries, errbuf *err);
/* Overwrites the entries. */
CHECK_RESULT status reduce_plan_build(backend_weights *w, const weight_source *sources,
                                      uint32_t *entries, errbuf *err);
void reduce_plan_fini(reduce_plan *plan, int lanes);
size_t reduce_plan_bytes(const reduce_plan *plan, int lanes);

#endif
