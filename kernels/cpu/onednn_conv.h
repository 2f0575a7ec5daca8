/*
 * The one place that talks to oneDNN: convolution passes and a matrix product.
 *
 * A pass (forward, backward data or backward weights of one shape) is created once and run with
 * raw pointers; its scratchpad is the caller's. Weight layouts are described by weight_layout, a
 * plain value, so that nobody else needs to know oneDNN's descriptors. Written against the 2.x
 * API; another major version is another implementation of this header.
 */
#ifndef RINGMASTER_KERNELS_CPU_ONEDNN_CONV_H
#define RINGMASTER_KERNELS_CPU_ONEDNN_CONV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/status.h"

typedef struct onednn onednn;
typedef struct onednn_stream onednn_stream;
typedef struct onednn_pass onednn_pass;

enum onednn_isa {
    ONEDNN_ISA_BASE, /* less than AVX2 */
    ONEDNN_ISA_AVX2,
    ONEDNN_ISA_AVX512,
};

enum onednn_algorithm {
    ONEDNN_DIRECT,
    ONEDNN_WINOGRAD,
};

enum onednn_pass_kind {
    ONEDNN_FORWARD,
    ONEDNN_BACKWARD_DATA,
    ONEDNN_BACKWARD_WEIGHTS,
    ONEDNN_PASSES
};

/* A convolution as oneDNN sees it: channel counts are totals, already padded where they are. */
typedef struct onednn_problem {
    int n, groups, in, out;
    int h, w, oh, ow, kh, kw;
    int stride_h, stride_w, pad_h, pad_w, dilation;
    int x_block, y_block; /* channels a block: 1 (NCHW), 8 or 16 */
    bool bias;
} onednn_problem;

/* Where weight [g][o][i][h][w] of a kernel lies: dimension d's index is cut into an outer part,
 * times stride[d], and the digits of its inner blocks, outermost block first. */
#define WEIGHT_DIMS       5
#define WEIGHT_MAX_BLOCKS 4
typedef struct weight_layout {
    int dim[WEIGHT_DIMS]; /* groups, out a group, in a group, kh, kw */
    int64_t stride[WEIGHT_DIMS];
    int blocks;
    int block[WEIGHT_MAX_BLOCKS], block_dim[WEIGHT_MAX_BLOCKS];
    int64_t elements; /* floats; 0 = no layout */
} weight_layout;

/* What index `x` of dimension d adds to the offset; an offset is the sum over dimensions. */
int64_t weight_layout_part(const weight_layout *layout, int d, int x);
bool weight_layout_equal(const weight_layout *a, const weight_layout *b);
/* Plain [g][o][i][h][w]. */
weight_layout weight_layout_plain(int groups, int out, int in, int kh, int kw);

CHECK_RESULT status onednn_open(onednn **ret, errbuf *err);
void onednn_close(onednn **dnn); /* NULL-safe; after its streams and passes */
enum onednn_isa onednn_effective_isa(void);
const char *onednn_isa_text(void);        /* "avx2", "avx512_core", … */
void onednn_version(char ret[static 32]); /* "2.6.3" */

CHECK_RESULT status onednn_stream_create(onednn *dnn, onednn_stream **ret, errbuf *err);
void onednn_stream_destroy(onednn_stream **s);

/* Creates a pass for the number of threads that OpenMP would use now. layout->elements == 0: the
 * library chooses the weights' layout, which is written to *layout; else *layout is used as it is.
 * *ret is NULL where the library cannot do it (an algorithm or layout that it lacks). */
CHECK_RESULT status onednn_pass_create(onednn *dnn, const onednn_problem *problem,
                                       enum onednn_pass_kind kind, enum onednn_algorithm algorithm,
                                       weight_layout *layout, onednn_pass **ret, errbuf *err);
void onednn_pass_destroy(onednn_pass **p);
size_t onednn_pass_scratch(const onednn_pass *p); /* bytes */
bool onednn_pass_slow(const onednn_pass *p);      /* the library's plain loops */

/* Tensors in the order of the convolution, whatever the pass: the one that the pass makes is
 * overwritten. bias (or its gradient) is ignored where the problem has none. 0 = done. */
int onednn_pass_run(onednn_pass *p, onednn_stream *s, const float *x, const float *weights,
                    const float *bias, const float *y, void *scratch);

/* Row-major C[m][n] = op(A) op(B) + beta C; op transposes where asked. 0 = done. */
int onednn_matmul(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                  const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                  int64_t ldc);

#endif
