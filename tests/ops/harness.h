/*
 * What the conformance suites share. Each suite runs its table of cases on every backend that was
 * built and can run here, against `reference`:
 * - device memory with a guard zone on both sides, checked whenever it is read back;
 * - outputs are filled with junk first, so that "=" is seen to overwrite;
 * - blocked tensors: whatever is not an element must stay zero, wherever the layout keeps it;
 * - comparison by relative L2, and the bits where they are promised.
 */
#ifndef RINGMASTER_TESTS_OPS_HARNESS_H
#define RINGMASTER_TESTS_OPS_HARNESS_H

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/philox.h"

#define GUARD_BYTES 256
#define GUARD_BYTE  0xa5
#define JUNK        12345.0f

/* ---- host data ---- */

static inline float *host_new(int64_t n)
{
    float *x = calloc((size_t)n + 1, sizeof *x);
    ck_assert_ptr_nonnull(x);
    return x;
}

static inline double host_unit(uint32_t seed, int64_t i)
{
    return philox4x32((uint32_t)i, (uint32_t)(i >> 32), 0, 0, seed, 99).word[0] * 0x1p-32;
}

/* Roughly normal: mean 0, standard deviation 1. */
static inline float *host_random(uint32_t seed, int64_t n)
{
    float *x = host_new(n);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        philox_block b = philox4x32((uint32_t)i, 1, 0, 0, seed, 99);
        for (int k = 0; k < 4; k++)
            sum += b.word[k] * 0x1p-32 - 0.5;
        x[i] = (float)(sum * sqrt(3.0));
    }
    return x;
}

/* Integers -limit .. limit. */
static inline float *host_integers(uint32_t seed, int64_t n, int limit)
{
    float *x = host_new(n);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((int)(host_unit(seed, i) * (2 * limit + 1)) - limit);
    return x;
}

static inline float *host_copy(const float *from, int64_t n)
{
    float *x = host_new(n);
    memcpy(x, from, sizeof *x * (size_t)n);
    return x;
}

static inline float *host_fill(int64_t n, float value)
{
    float *x = host_new(n);
    for (int64_t i = 0; i < n; i++)
        x[i] = value;
    return x;
}

/* ---- backends ---- */

static inline int backend_count(void)
{
    int n = 0;
    while (backend_list()[n])
        n++;
    return n;
}

static inline backend *open_ops(const backend_ops *ops, int threads, int lanes)
{
    backend_options options = {.threads = threads, .lanes = lanes};
    errbuf err = {0};
    backend *be = NULL;
    ck_assert_msg(ops->open(&options, &be, &err) == STATUS_OK, "%s: %s", ops->name, err.text);
    return be;
}

static inline backend *open_reference(void)
{
    return open_ops(backend_find("reference"), 1, 1);
}

#define MUST(expr) ck_assert_int_eq((expr), STATUS_OK)

/* ---- guarded device memory ---- */

typedef struct tensor {
    backend *be;
    char *base; /* guard, data, guard */
    float *data;
    size_t bytes;
    shape s;
    layout l;
    bool raw; /* a plain vector of s.n floats (or other words), in no layout */
} tensor;

static inline tensor tensor_guarded(backend *be, size_t bytes)
{
    tensor t = {.be = be, .bytes = bytes};
    unsigned char guard[GUARD_BYTES];
    void *memory = NULL;
    size_t whole = (bytes + 63) / 64 * 64 + 2 * GUARD_BYTES;
    MUST(be->ops->alloc(be, whole, &memory, NULL));
    memset(guard, GUARD_BYTE, sizeof guard);
    t.base = memory;
    t.data = (float *)(t.base + GUARD_BYTES);
    MUST(be->ops->upload(be, t.base, guard, GUARD_BYTES));
    MUST(be->ops->upload(be, (char *)t.data + bytes, guard, GUARD_BYTES));
    return t;
}

/* NULL: junk. */
static inline tensor tensor_new(backend *be, shape s, layout l, const float *nchw)
{
    tensor t = tensor_guarded(be, be->ops->tensor_bytes(be, s, l));
    float *junk = nchw ? NULL : host_fill(shape_elements(s), JUNK);
    t.s = s;
    t.l = l;
    MUST(be->ops->pack(be, s, l, t.data, nchw ? nchw : junk));
    free(junk);
    return t;
}

static inline tensor tensor_bytes_new(backend *be, size_t bytes, const void *data)
{
    tensor t = tensor_guarded(be, bytes);
    t.raw = true;
    if (data)
        MUST(be->ops->upload(be, t.data, data, bytes));
    return t;
}

static inline tensor vector_new(backend *be, int64_t n, const float *data)
{
    float *junk = data ? NULL : host_fill(n, JUNK);
    tensor t = tensor_bytes_new(be, (size_t)n * sizeof(float), data ? data : junk);
    free(junk);
    return t;
}

static inline void tensor_check_guards(const tensor *t)
{
    unsigned char guard[2 * GUARD_BYTES];
    int broken = 0;
    MUST(t->be->ops->download(t->be, guard, t->base, GUARD_BYTES));
    MUST(t->be->ops->download(t->be, guard + GUARD_BYTES, (char *)t->data + t->bytes, GUARD_BYTES));
    for (int i = 0; i < 2 * GUARD_BYTES; i++)
        broken += guard[i] != GUARD_BYTE;
    ck_assert_msg(broken == 0, "%s wrote %d bytes outside a tensor of %zu", t->be->ops->name,
                  broken, t->bytes);
}

/* As many words are not zero in memory as there are elements that are not zero: the padding of a
 * blocked layout is clean, whatever the layout. */
static inline void tensor_check_padding(const tensor *t, const float *nchw)
{
    size_t words = t->bytes / sizeof(uint32_t);
    int64_t elements = shape_elements(t->s), in_memory = 0, in_tensor = 0;
    uint32_t *raw = malloc(t->bytes + 1);
    ck_assert_ptr_nonnull(raw);
    MUST(t->be->ops->download(t->be, raw, t->data, t->bytes));
    for (size_t i = 0; i < words; i++)
        in_memory += (raw[i] & 0x7fffffff) != 0;
    for (int64_t i = 0; i < elements; i++)
        in_tensor += nchw[i] != 0;
    ck_assert_msg(in_memory == in_tensor, "%s: %lld words are not zero, of %lld elements",
                  t->be->ops->name, (long long)in_memory, (long long)in_tensor);
    free(raw);
}

/* Back to the host, guards and padding checked. */
static inline float *tensor_read(const tensor *t)
{
    tensor_check_guards(t);
    float *out = host_new(t->raw ? (int64_t)(t->bytes / sizeof(float)) : shape_elements(t->s));
    if (t->raw) {
        MUST(t->be->ops->download(t->be, out, t->data, t->bytes));
        return out;
    }
    MUST(t->be->ops->unpack(t->be, t->s, t->l, out, t->data));
    tensor_check_padding(t, out);
    return out;
}

static inline void tensor_free(tensor *t)
{
    if (!t->base)
        return;
    tensor_check_guards(t);
    t->be->ops->release(t->be, t->base);
    t->base = NULL;
}

static inline float *tensor_take(tensor *t)
{
    float *out = tensor_read(t);
    tensor_free(t);
    return out;
}

/* ---- comparison ---- */

/* |got - expect| / |expect| over the elements; the reference must be finite. */
static inline double relative_l2(int64_t n, const float *got, const float *expect)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)got[i] - expect[i];
        difference += d * d;
        norm += (double)expect[i] * expect[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

static inline void check_close(const char *what, int64_t n, const float *got, const float *expect,
                               double tolerance)
{
    double error = relative_l2(n, got, expect);
    ck_assert_msg(error <= tolerance, "%s: relative L2 %.3g, allowed %.3g", what, error, tolerance);
}

/* Where the reference is not finite, the other is not, either. (A backend may spread a NaN
 * further, not lose one.) */
static inline void check_keeps_not_finite(const char *what, int64_t n, const float *got,
                                          const float *expect)
{
    int64_t lost = 0, places = 0;
    for (int64_t i = 0; i < n; i++) {
        places += !isfinite(expect[i]);
        lost += !isfinite(expect[i]) && isfinite(got[i]);
    }
    ck_assert_msg(lost == 0, "%s: finite at %lld of %lld places where the reference is not", what,
                  (long long)lost, (long long)places);
}

/* The same where there has to be such a place. */
static inline void check_not_finite(const char *what, int64_t n, const float *got,
                                    const float *expect)
{
    int64_t places = 0;
    for (int64_t i = 0; i < n; i++)
        places += !isfinite(expect[i]);
    ck_assert_msg(places > 0, "%s: the reference is finite", what);
    check_keeps_not_finite(what, n, got, expect);
}

static inline void check_same_bits(const char *what, int64_t n, const float *a, const float *b)
{
    int64_t different = 0;
    for (int64_t i = 0; i < n; i++)
        different += memcmp(&a[i], &b[i], sizeof *a) != 0;
    ck_assert_msg(different == 0, "%s: %lld of %lld elements differ in bits", what,
                  (long long)different, (long long)n);
}

/* ---- running ---- */

/* Adds `test`, looped over cases x backends: case = _i % cases, backend = _i / cases. */
#define ADD_CASES(tc, test, cases) tcase_add_loop_test(tc, test, 0, (int)(cases)*backend_count())
#define COUNT(array)               ((int)(sizeof(array) / sizeof *(array)))

/* The backend of this round of the loop, or NULL where this machine cannot run it. */
static inline const backend_ops *loop_backend(int i, int cases)
{
    const backend_ops *ops = backend_list()[i / cases];
    /* to spend a GPU's minutes on its own backend */
    const char *only = getenv("RINGMASTER_TEST_BACKEND");
    if (only && strcmp(only, ops->name) != 0)
        return NULL;
    return ops->available() ? ops : NULL;
}

static inline int run_suite(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}

#endif
