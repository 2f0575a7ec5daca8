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

/* A stretch of physical weights in which the scales repeat: what one call of expand makes. */
typedef struct expand_chunk {
    int64_t table, to, turned; /* entries; floats into `values`; the same transposed, or -1 */
    int64_t length, scale;     /* floats; into `scales` */
    int period;
    bool stream;
} expand_chunk;

typedef struct expand_plan {
    uint32_t *table; /* parameter element with the sign in bit 31, in physical order */
    float *scales;
    expand_chunk *chunk;
    int64_t entries, scale_count, scale_room;
    int chunks, chunk_room;
} expand_plan;

/* A run of uses with one scale. */
typedef struct reduce_run {
    float scale;
    uint32_t count;
} reduce_run;

/* The uses that one thread at a time sums into one span of elements. */
typedef struct reduce_unit {
    int64_t first_use, first_run, runs;
    int64_t to; /* into the gradient vector, or into the lane's segments */
    int elements;
    bool segmented;
} reduce_unit;

/* Elements whose uses lie in several segments, each summed by itself. */
typedef struct reduce_group {
    int64_t source, elements; /* in the parameter vector */
    int64_t uses, segment;    /* uses in all, uses a segment */
    int64_t segments, at;     /* `at`: into the lane's segments */
    int64_t partitions, first_unit;
} reduce_group;

typedef struct reduce_plan {
    uint32_t *from;  /* per use: float of the lane's gradients */
    uint16_t *local; /* per use: element within the unit's span, sign in bit 15 */
    reduce_run *run;
    reduce_unit *unit;
    reduce_group *group;
    float **segments; /* [lanes], where some group needs them */
    int64_t uses, runs, units, segment_floats;
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
    expand_plan expand;
    reduce_plan reduce;
};

/* Offset of weight (o, i, h, w) of a kernel in a layout, o counting over all groups. */
int64_t weights_offset(const weight_layout *form, int o, int i, int h, int w);
/* What (h, w) adds to it, for all of them; NULL when out of memory. Caller frees. */
int64_t *weights_spatial(const weight_layout *form);

/* Both build from entries in O,I,H,W order: kernel k's start at kernel[k].first_entry. */
CHECK_RESULT status expand_plan_build(backend_weights *w, const weight_source *sources,
                                      const uint32_t *entries, errbuf *err);
void expand_plan_fini(expand_plan *plan);
CHECK_RESULT status reduce_plan_build(backend_weights *w, const weight_source *sources,
                                      const uint32_t *entries, errbuf *err);
void reduce_plan_fini(reduce_plan *plan, int lanes);
size_t reduce_plan_bytes(const reduce_plan *plan, int lanes);

#endif
