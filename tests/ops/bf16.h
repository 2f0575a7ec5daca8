/*
 * What suites of backends that keep activations in bf16 share: inputs that bf16 holds exactly, so
 * that a comparison with the reference, in fp32 on the same inputs, sees only what the results are
 * rounded by; and tensors of 16-bit elements back on the host.
 */
#ifndef RINGMASTER_TESTS_OPS_BF16_H
#define RINGMASTER_TESTS_OPS_BF16_H

#include "ops/harness.h"

/* To nearest even; a NaN stays one. */
static inline float rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x))
        return x;
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

static inline void round_all(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = rounded(x[i]);
}

static inline float *rounded_random(uint32_t seed, int64_t n)
{
    float *x = host_random(seed, n);
    round_all(x, n);
    return x;
}

/* NULL: the backend cannot run here or does not know bf16. */
static inline backend *open_bf16(const backend_ops *ops)
{
    backend_options options = {.threads = 2, .lanes = 1, .compute = COMPUTE_BF16};
    backend *be = NULL;
    if (!ops || ops->open(&options, &be, NULL) != STATUS_OK)
        return NULL;
    return be;
}

/* tensor_check_padding for 16-bit elements. */
static inline void check_padding16(const tensor *t, const float *nchw)
{
    int64_t elements = shape_elements(t->s), in_memory = 0, in_tensor = 0;
    uint16_t *raw = malloc(t->bytes + 1);
    ck_assert_ptr_nonnull(raw);
    MUST(t->be->ops->download(t->be, raw, t->data, t->bytes));
    for (size_t i = 0; i < t->bytes / sizeof *raw; i++)
        in_memory += (raw[i] & 0x7fff) != 0;
    for (int64_t i = 0; i < elements; i++)
        in_tensor += nchw[i] != 0;
    ck_assert_msg(in_memory == in_tensor, "%s: %lld halfwords are not zero, of %lld elements",
                  t->be->ops->name, (long long)in_memory, (long long)in_tensor);
    free(raw);
}

/* tensor_take for a tensor in the io type. */
static inline float *take16(tensor *t)
{
    float *out = host_new(shape_elements(t->s));
    MUST(t->be->ops->unpack(t->be, t->s, t->l, out, t->data));
    check_padding16(t, out);
    tensor_free(t);
    return out;
}

#endif
