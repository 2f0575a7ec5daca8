/*
 * The reference backend: its table of ops, and what needs no arithmetic: opening, memory, layouts,
 * lanes.
 */
#include "kernels/reference/backend_reference.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/host_ops.h"
#include "kernels/reference/reference.h"

status reference_out_of_memory(const char *what, errbuf *err)
{
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for %s", what);
}

status reference_check_lane(const backend *be, int lane, errbuf *err)
{
    if (lane < 0 || lane >= be->options.lanes)
        return errbuf_set(err, STATUS_BAD_INPUT, "lane %d of a backend that was opened with %d",
                          lane, be->options.lanes);
    return STATUS_OK;
}

static bool reference_available(void)
{
    return true;
}

/* The plan has nothing to follow here, but it must be one of this backend's. */
static status check_plan(const cJSON *plan, errbuf *err)
{
    const cJSON *name = plan ? cJSON_GetObjectItemCaseSensitive(plan, "backend") : NULL;
    if (name && cJSON_IsString(name) && strcmp(name->valuestring, "reference") != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "the plan is for backend '%s', this is reference: give another plan or "
                          "backend.plan default",
                          name->valuestring);
    return STATUS_OK;
}

static status reference_open(const backend_options *options, backend **ret_be, errbuf *err)
{
    if (options->threads < 1 || options->lanes < 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "a backend needs at least one thread and one lane, not %d and %d",
                          options->threads, options->lanes);
    if (options->compute != COMPUTE_FP32)
        return errbuf_set(err, STATUS_BAD_INPUT, "reference backend: it computes in fp32 only");
    TRY(check_plan(options->plan, err));
    backend *be = calloc(1, sizeof *be);
    if (!be)
        return reference_out_of_memory("the reference backend", err);
    be->ops = &backend_reference;
    be->options = *options;
    be->options.plan = NULL;
    *ret_be = be;
    return STATUS_OK;
}

static void reference_close(backend *be)
{
    free(be);
}

static status reference_describe(backend *be, cJSON **ret_plan, errbuf *err)
{
    (void)be;
    cJSON *plan = cJSON_CreateObject();
    if (!plan || !cJSON_AddStringToObject(plan, "backend", "reference")) {
        cJSON_Delete(plan);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for the plan");
    }
    *ret_plan = plan;
    return STATUS_OK;
}

static const char *reference_last_error(const backend *be)
{
    (void)be;
    return "";
}

static status reference_alloc(backend *be, size_t bytes, void **ret, errbuf *err)
{
    (void)be;
    void *memory = NULL;
    if (bytes > SIZE_MAX - 64 || posix_memalign(&memory, 64, bytes ? bytes : 64) != 0)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory: %zu bytes on the host", bytes);
    memset(memory, 0, bytes);
    *ret = memory;
    return STATUS_OK;
}

static void reference_release(backend *be, void *memory)
{
    (void)be;
    free(memory);
}

static status reference_copy(backend *be, void *to, const void *from, size_t bytes)
{
    (void)be;
    if (bytes > 0)
        memmove(to, from, bytes);
    return STATUS_OK;
}

static status reference_zero(backend *be, void *memory, size_t bytes)
{
    (void)be;
    if (bytes > 0)
        memset(memory, 0, bytes);
    return STATUS_OK;
}

static size_t reference_tensor_bytes(const backend *be, shape s, layout l)
{
    (void)be;
    (void)l;
    return (size_t)shape_elements(s) * sizeof(float);
}

static status reference_pack(backend *be, shape s, layout l, void *to, const float *nchw)
{
    return reference_copy(be, to, nchw, reference_tensor_bytes(be, s, l));
}

static status reference_unpack(backend *be, shape s, layout l, float *nchw, const void *from)
{
    return reference_copy(be, nchw, from, reference_tensor_bytes(be, s, l));
}

/* One after another; a lane that fails does not keep the others from running, as side by side. */
static status reference_run_lanes(backend *be, int count, status (*fn)(void *ctx, int lane),
                                  void *ctx)
{
    ASSERT(count <= be->options.lanes);
    status first = STATUS_OK;
    for (int lane = 0; lane < count; lane++) {
        status st = fn(ctx, lane);
        if (first == STATUS_OK)
            first = st;
    }
    return first;
}

const backend_ops backend_reference = {
    .name = "reference",
    .help = "plain loops in double on one core: the oracle for tests",
    .host_memory = true,
    .computes = 1u << COMPUTE_FP32,
    .bn_in_place = true,
    .available = reference_available,
    .open = reference_open,
    .close = reference_close,
    .describe = reference_describe,
    .last_error = reference_last_error,
    .alloc = reference_alloc,
    .release = reference_release,
    .upload = reference_copy,
    .download = reference_copy,
    .copy = host_copy,
    .zero = reference_zero,
    .alloc_shared = host_alloc_shared,
    .release_shared = host_release_shared,
    .tensor_bytes = reference_tensor_bytes,
    .pack = reference_pack,
    .unpack = reference_unpack,
    .run_lanes = reference_run_lanes,
    .weights_create = reference_weights_create,
    .weights_destroy = reference_weights_destroy,
    .weights_commit = reference_weights_commit,
    .weights_bytes = reference_weights_bytes,
    .weights_expand = reference_weights_expand,
    .weights_reduce = reference_weights_reduce,
    .weights_read = reference_weights_read,
    .weights_read_grad = reference_weights_read_grad,
    .conv_create = reference_conv_create,
    .conv_destroy = reference_conv_destroy,
    .conv_forward = reference_conv_forward,
    .conv_backward_data = reference_conv_backward_data,
    .conv_backward_weights = reference_conv_backward_weights,
    .bn_create = reference_bn_create,
    .bn_destroy = reference_bn_destroy,
    .bn_forward_train = reference_bn_forward_train,
    .bn_forward_eval = reference_bn_forward_eval,
    .bn_backward = reference_bn_backward,
    .pool_create = reference_pool_create,
    .pool_destroy = reference_pool_destroy,
    .pool_workspace = reference_pool_workspace,
    .pool_forward = reference_pool_forward,
    .pool_backward = reference_pool_backward,
    .fc_create = reference_fc_create,
    .fc_destroy = reference_fc_destroy,
    .fc_forward = reference_fc_forward,
    .fc_backward = reference_fc_backward,
    .loss_create = reference_loss_create,
    .loss_destroy = reference_loss_destroy,
    .loss_run = reference_loss_run,
    .step_begin = host_step_begin,
    .step_word = host_step_word,
    .step_judge = host_step_judge,
    .step_end = host_step_end,
    .add = reference_add,
    .add_native = reference_add_native,
    .blend = reference_blend,
    .sgd = reference_sgd,
    .all_finite = reference_all_finite,
    .exact_accumulate = reference_exact_accumulate,
    .exact_to_float = reference_exact_to_float,
};
