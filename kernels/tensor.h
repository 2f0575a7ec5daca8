/*
 * Shapes and element types that every backend understands.
 *
 * Dimensions, here and everywhere: N images, C channels, H rows, W columns; a conv has K output
 * channels and an R x S kernel over C / groups input channels; weights are in O,I,H,W order.
 */
#ifndef RINGMASTER_KERNELS_TENSOR_H
#define RINGMASTER_KERNELS_TENSOR_H

#include <stdint.h>

typedef struct shape {
    int n, c, h, w;
} shape;

static inline int64_t shape_elements(shape s)
{
    return (int64_t)s.n * s.c * s.h * s.w;
}

/* How a tensor lies in memory. The backend decides what NATIVE means (cpu: nChw8c or nChw16c with
 * channels padded with zeros to a whole block; reference: NCHW). */
typedef enum layout {
    LAYOUT_NATIVE,
    LAYOUT_IMAGE, /* net inputs: plain NCHW float, as the loader makes them */
    LAYOUT_PLAIN, /* matrices: [n][c] row-major, h = w = 1 */
} layout;

#endif
