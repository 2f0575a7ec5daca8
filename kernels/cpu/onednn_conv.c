/* oneDNN 2.x behind onednn_conv.h. */
#include "kernels/cpu/onednn_conv.h"

#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if DNNL_VERSION_MAJOR != 2
#error "onednn_conv.c is written for oneDNN 2.x: configure with -DRINGMASTER_ONEDNN=OFF"
#endif

struct onednn {
    dnnl_engine_t engine;
};

struct onednn_stream {
    dnnl_stream_t stream;
};

enum pass_tensor {
    TENSOR_X,
    TENSOR_WEIGHTS,
    TENSOR_Y,
    TENSOR_SCRATCH,
    TENSOR_BIAS,
    TENSORS
};

struct onednn_pass {
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t arg[TENSORS];
    const void *handle[TENSORS];
    int args;
    size_t scratch;
    bool slow;
};

int64_t weight_layout_part(const weight_layout *layout, int d, int x)
{
    int64_t offset = 0, unit = 1;
    int digits = x;
    for (int b = layout->blocks - 1; b >= 0; b--) {
        if (layout->block_dim[b] == d) {
            offset += digits % layout->block[b] * unit;
            digits /= layout->block[b];
        }
        unit *= layout->block[b];
    }
    return offset + digits * layout->stride[d];
}

bool weight_layout_equal(const weight_layout *a, const weight_layout *b)
{
    if (a->elements != b->elements || a->blocks != b->blocks)
        return false;
    for (int d = 0; d < WEIGHT_DIMS; d++) {
        if (a->dim[d] != b->dim[d] || (a->dim[d] > 1 && a->stride[d] != b->stride[d]))
            return false;
    }
    for (int i = 0; i < a->blocks; i++) {
        if (a->block[i] != b->block[i] || a->block_dim[i] != b->block_dim[i])
            return false;
    }
    return true;
}

weight_layout weight_layout_plain(int groups, int out, int in, int kh, int kw)
{
    weight_layout l = {.dim = {groups, out, in, kh, kw}, .elements = 1};
    for (int d = WEIGHT_DIMS - 1; d >= 0; d--) {
        l.stride[d] = l.elements;
        l.elements *= l.dim[d];
    }
    return l;
}

status onednn_open(onednn **ret, errbuf *err)
{
    onednn *dnn = calloc(1, sizeof *dnn);
    if (!dnn)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening oneDNN");
    dnnl_status_t st = dnnl_engine_create(&dnn->engine, dnnl_cpu, 0);
    if (st != dnnl_success) {
        free(dnn);
        return errbuf_set(err, STATUS_ENVIRONMENT, "oneDNN has no CPU engine here (status %d)",
                          (int)st);
    }
    *ret = dnn;
    return STATUS_OK;
}

void onednn_close(onednn **dnn)
{
    if (!dnn || !*dnn)
        return;
    dnnl_engine_destroy((*dnn)->engine);
    free(*dnn);
    *dnn = NULL;
}

enum onednn_isa onednn_effective_isa(void)
{
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();
    if ((isa & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core)
        return ONEDNN_ISA_AVX512;
    return (isa & dnnl_cpu_isa_avx2) == dnnl_cpu_isa_avx2 ? ONEDNN_ISA_AVX2 : ONEDNN_ISA_BASE;
}

const char *onednn_isa_text(void)
{
    switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41:
        return "sse41";
    case dnnl_cpu_isa_avx:
        return "avx";
    case dnnl_cpu_isa_avx2:
        return "avx2";
    case dnnl_cpu_isa_avx2_vnni:
        return "avx2_vnni";
    case dnnl_cpu_isa_avx512_mic:
    case dnnl_cpu_isa_avx512_mic_4ops:
        return "avx512_mic";
    case dnnl_cpu_isa_avx512_core:
        return "avx512_core";
    case dnnl_cpu_isa_avx512_core_vnni:
        return "avx512_core_vnni";
    case dnnl_cpu_isa_avx512_core_bf16:
        return "avx512_core_bf16";
    case dnnl_cpu_isa_avx512_core_amx:
        return "avx512_core_amx";
    default:
        return "other";
    }
}

void onednn_version(char ret[static 32])
{
    const dnnl_version_t *v = dnnl_version();
    snprintf(ret, 32, "%d.%d.%d", v->major, v->minor, v->patch);
}

status onednn_stream_create(onednn *dnn, onednn_stream **ret, errbuf *err)
{
    onednn_stream *s = calloc(1, sizeof *s);
    if (!s || dnnl_stream_create(&s->stream, dnn->engine, dnnl_stream_default_flags)) {
        free(s);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory making a oneDNN stream");
    }
    *ret = s;
    return STATUS_OK;
}

void onednn_stream_destroy(onednn_stream **s)
{
    if (!s || !*s)
        return;
    dnnl_stream_destroy((*s)->stream);
    free(*s);
    *s = NULL;
}

/* ---- descriptors ---- */

/* First of our dimensions that oneDNN's weight descriptors have: without groups it is `out`. */
static int first_dim(int groups)
{
    return groups > 1 ? 0 : 1;
}

static bool weights_desc(const onednn_problem *p, const weight_layout *layout,
                         dnnl_memory_desc_t *ret)
{
    int first = first_dim(p->groups), dims = WEIGHT_DIMS - first;
    const int size[WEIGHT_DIMS] = {p->groups, p->out / p->groups, p->in / p->groups, p->kh, p->kw};
    dnnl_dims_t dim = {0};
    for (int d = 0; d < dims; d++) {
        dim[d] = size[d + first];
        if (layout->elements && layout->dim[d + first] != size[d + first])
            return false;
    }
    if (dnnl_memory_desc_init_by_tag(ret, dims, dim, dnnl_f32, dnnl_format_tag_any) != dnnl_success)
        return false;
    if (!layout->elements)
        return true;
    /* by hand: the library's own ways in take a named layout or one without inner blocks */
    dnnl_blocking_desc_t *blocking = &ret->format_desc.blocking;
    ret->format_kind = dnnl_blocked;
    blocking->inner_nblks = layout->blocks;
    for (int d = 0; d < dims; d++)
        blocking->strides[d] = layout->stride[d + first];
    for (int b = 0; b < layout->blocks; b++) {
        blocking->inner_blks[b] = layout->block[b];
        blocking->inner_idxs[b] = layout->block_dim[b] - first;
    }
    return true;
}

/* Reads a layout that oneDNN chose; false where it is none that tables can be made for. */
static bool read_layout(const onednn_problem *p, const dnnl_memory_desc_t *md, weight_layout *ret)
{
    const dnnl_blocking_desc_t *blocking = &md->format_desc.blocking;
    int first = first_dim(p->groups);
    if (md->format_kind != dnnl_blocked || md->extra.flags != dnnl_memory_extra_flag_none ||
        blocking->inner_nblks > WEIGHT_MAX_BLOCKS || md->offset0 != 0)
        return false;
    weight_layout l = {.dim = {1, 1, 1, 1, 1}, .blocks = blocking->inner_nblks, .elements = 1};
    for (int d = 0; d < md->ndims; d++) {
        if (md->padded_dims[d] != md->dims[d])
            return false;
        l.dim[d + first] = (int)md->dims[d];
        l.stride[d + first] = blocking->strides[d];
        l.elements *= md->dims[d];
    }
    for (int b = 0; b < l.blocks; b++) {
        l.block[b] = (int)blocking->inner_blks[b];
        l.block_dim[b] = (int)blocking->inner_idxs[b] + first;
    }
    *ret = l;
    return (int64_t)(dnnl_memory_desc_get_size(md) / sizeof(float)) == l.elements;
}

typedef struct pass_descs {
    dnnl_memory_desc_t x, weights, bias, y;
} pass_descs;

static bool make_descs(const onednn_problem *p, const weight_layout *layout, pass_descs *ret)
{
    dnnl_dims_t x = {p->n, p->in, p->h, p->w}, y = {p->n, p->out, p->oh, p->ow}, b = {p->out};
    dnnl_format_tag_t tag_x = p->x_block == 16  ? dnnl_nChw16c
                              : p->x_block == 8 ? dnnl_nChw8c
                                                : dnnl_nchw;
    dnnl_format_tag_t tag_y = p->y_block == 16  ? dnnl_nChw16c
                              : p->y_block == 8 ? dnnl_nChw8c
                                                : dnnl_nchw;
    memset(ret, 0, sizeof *ret);
    return dnnl_memory_desc_init_by_tag(&ret->x, 4, x, dnnl_f32, tag_x) == dnnl_success &&
           dnnl_memory_desc_init_by_tag(&ret->y, 4, y, dnnl_f32, tag_y) == dnnl_success &&
           dnnl_memory_desc_init_by_tag(&ret->bias, 1, b, dnnl_f32, dnnl_x) == dnnl_success &&
           weights_desc(p, layout, &ret->weights);
}

static dnnl_status_t make_op(const onednn_problem *p, enum onednn_pass_kind kind,
                             enum onednn_algorithm algorithm, const pass_descs *d,
                             dnnl_convolution_desc_t *ret)
{
    dnnl_dims_t stride = {p->stride_h, p->stride_w}, pad = {p->pad_h, p->pad_w};
    dnnl_dims_t dilation = {p->dilation - 1, p->dilation - 1};
    const dnnl_memory_desc_t *bias = p->bias ? &d->bias : NULL;
    dnnl_alg_kind_t alg =
        algorithm == ONEDNN_WINOGRAD ? dnnl_convolution_winograd : dnnl_convolution_direct;
    switch (kind) {
    case ONEDNN_FORWARD:
        return dnnl_dilated_convolution_forward_desc_init(ret, dnnl_forward_training, alg, &d->x,
                                                          &d->weights, bias, &d->y, stride,
                                                          dilation, pad, pad);
    case ONEDNN_BACKWARD_DATA:
        return dnnl_dilated_convolution_backward_data_desc_init(ret, alg, &d->x, &d->weights, &d->y,
                                                                stride, dilation, pad, pad);
    default:
        return dnnl_dilated_convolution_backward_weights_desc_init(
            ret, alg, &d->x, &d->weights, bias, &d->y, stride, dilation, pad, pad);
    }
}

/* The primitive descriptor, or NULL where oneDNN has no such implementation. A backward pass wants
 * a forward descriptor as a hint; its weights may be in any layout. */
static dnnl_primitive_desc_t make_primitive_desc(onednn *dnn, const onednn_problem *p,
                                                 enum onednn_pass_kind kind,
                                                 enum onednn_algorithm algorithm,
                                                 const pass_descs *descs)
{
    dnnl_primitive_desc_t hint = NULL, result = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_convolution_desc_t op;
    if (kind != ONEDNN_FORWARD) {
        pass_descs any;
        weight_layout none = {.elements = 0};
        if (!make_descs(p, &none, &any) ||
            make_op(p, ONEDNN_FORWARD, ONEDNN_DIRECT, &any, &op) != dnnl_success ||
            dnnl_primitive_desc_create(&hint, &op, NULL, dnn->engine, NULL) != dnnl_success)
            goto done;
    }
    if (make_op(p, kind, algorithm, descs, &op) != dnnl_success ||
        dnnl_primitive_attr_create(&attr) != dnnl_success ||
        dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) != dnnl_success)
        goto done;
    if (dnnl_primitive_desc_create(&result, &op, attr, dnn->engine, hint) != dnnl_success)
        result = NULL;
done:
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    if (hint)
        dnnl_primitive_desc_destroy(hint);
    return result;
}

/* ---- passes ---- */

static const int pass_args[ONEDNN_PASSES][TENSORS] = {
    [ONEDNN_FORWARD] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD,
                        DNNL_ARG_BIAS},
    [ONEDNN_BACKWARD_DATA] = {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST,
                              DNNL_ARG_SCRATCHPAD, DNNL_ARG_BIAS},
    [ONEDNN_BACKWARD_WEIGHTS] = {DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST,
                                 DNNL_ARG_SCRATCHPAD, DNNL_ARG_DIFF_BIAS},
};

static dnnl_status_t fill_pass(onednn *dnn, const onednn_problem *problem,
                               enum onednn_pass_kind kind, const pass_descs *descs,
                               const dnnl_memory_desc_t *weights, dnnl_primitive_desc_t pd,
                               onednn_pass *p)
{
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    const dnnl_memory_desc_t *md[TENSORS] = {&descs->x, weights, &descs->y, scratch, &descs->bias};
    const char *implementation = "";
    p->scratch = scratch ? dnnl_memory_desc_get_size(scratch) : 0;
    p->args = problem->bias && kind != ONEDNN_BACKWARD_DATA ? TENSORS : TENSOR_BIAS;
    dnnl_status_t st = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &implementation);
    p->slow = strncmp(implementation, "ref", 3) == 0;
    for (int t = 0; t < p->args && st == dnnl_success; t++) {
        p->arg[t].arg = pass_args[kind][t];
        st = dnnl_memory_create(&p->arg[t].memory, md[t], dnn->engine, DNNL_MEMORY_NONE);
    }
    return st == dnnl_success ? dnnl_primitive_create(&p->primitive, pd) : st;
}

status onednn_pass_create(onednn *dnn, const onednn_problem *problem, enum onednn_pass_kind kind,
                          enum onednn_algorithm algorithm, weight_layout *layout, onednn_pass **ret,
                          errbuf *err)
{
    pass_descs descs;
    weight_layout chosen;
    onednn_pass *p = NULL;
    dnnl_primitive_desc_t pd = NULL;
    *ret = NULL;
    if (!make_descs(problem, layout, &descs))
        return STATUS_OK;
    pd = make_primitive_desc(dnn, problem, kind, algorithm, &descs);
    if (!pd)
        return STATUS_OK;
    const dnnl_memory_desc_t *weights = dnnl_primitive_desc_query_md(
        pd, kind == ONEDNN_BACKWARD_WEIGHTS ? dnnl_query_diff_weights_md : dnnl_query_weights_md,
        0);
    if (!weights || !read_layout(problem, weights, &chosen)) {
        dnnl_primitive_desc_destroy(pd);
        return STATUS_OK;
    }
    p = calloc(1, sizeof *p);
    dnnl_status_t st =
        p ? fill_pass(dnn, problem, kind, &descs, weights, pd, p) : dnnl_out_of_memory;
    dnnl_primitive_desc_destroy(pd);
    if (st != dnnl_success) {
        onednn_pass_destroy(&p);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY,
                          "oneDNN cannot make a convolution of %d to %d channels (status %d)",
                          problem->in, problem->out, (int)st);
    }
    *layout = chosen;
    *ret = p;
    return STATUS_OK;
}

void onednn_pass_destroy(onednn_pass **pass)
{
    if (!pass || !*pass)
        return;
    onednn_pass *p = *pass;
    for (int t = 0; t < p->args; t++) {
        if (p->arg[t].memory)
            dnnl_memory_destroy(p->arg[t].memory);
    }
    if (p->primitive)
        dnnl_primitive_destroy(p->primitive);
    free(p);
    *pass = NULL;
}

size_t onednn_pass_scratch(const onednn_pass *p)
{
    return p->scratch;
}

bool onednn_pass_slow(const onednn_pass *p)
{
    return p->slow;
}

int onednn_pass_run(onednn_pass *p, onednn_stream *s, const float *x, const float *weights,
                    const float *bias, const float *y, void *scratch)
{
    const void *handle[TENSORS] = {x, weights, y, scratch, bias};
    for (int t = 0; t < p->args; t++) {
        if (p->handle[t] == handle[t])
            continue;
        /* the API takes no const; what a pass only reads, it does not write */
        dnnl_status_t st =
            dnnl_memory_set_data_handle(p->arg[t].memory, (void *)(uintptr_t)handle[t]);
        if (st != dnnl_success)
            return (int)st;
        p->handle[t] = handle[t];
    }
    dnnl_status_t st = dnnl_primitive_execute(p->primitive, s->stream, p->args, p->arg);
    return (int)(st == dnnl_success ? dnnl_stream_wait(s->stream) : st);
}

int onednn_matmul(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                  const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                  int64_t ldc)
{
    return (int)dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, 1.0f, a, lda,
                           b, ldb, beta, c, ldc);
}
