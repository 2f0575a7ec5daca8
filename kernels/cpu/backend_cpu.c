/* The cpu backend's vtable, opening and closing, memory, lanes and tensor layouts. */
#include "kernels/cpu/backend_cpu.h"

#include <cjson/cJSON.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"
#include "kernels/host_ops.h"

#define HUGE_PAGE (2u << 20)

/* ---- shared helpers ---- */

/* Zeroes and so takes a large block with all threads: at start-up most of the time goes into the
 * system's handing out of pages. */
static void zero_block(char *memory, size_t size)
{
#pragma omp parallel for schedule(static) if (size >= 16 * HUGE_PAGE)
    for (size_t at = 0; at < size; at += HUGE_PAGE)
        memset(memory + at, 0, size - at < HUGE_PAGE ? size - at : HUGE_PAGE);
}

void *cpu_memory(size_t bytes)
{
    size_t align = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : CPU_ALIGN;
    size_t size = (size_t)round_up((int64_t)(bytes ? bytes : 1), CPU_ALIGN);
    void *memory = NULL;
    if (bytes > (size_t)INT64_MAX - CPU_ALIGN || posix_memalign(&memory, align, size) != 0)
        return NULL;
    if (align == HUGE_PAGE)
        madvise(memory, size, MADV_HUGEPAGE); /* only a hint: random access to rings likes it */
    zero_block(memory, size);
    return memory;
}

status cpu_reserve_scratch(cpu_backend *cpu, int lane, size_t bytes, errbuf *err)
{
    cpu_lane *l = &cpu->lane[lane];
    if (bytes <= l->scratch_bytes)
        return STATUS_OK;
    char *memory = cpu_memory(bytes);
    if (!memory)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory: %zu bytes of scratch space",
                          bytes);
    free(l->scratch);
    l->scratch = memory;
    l->scratch_bytes = bytes;
    return STATUS_OK;
}

status cpu_fail(cpu_backend *cpu, int lane, status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(cpu->lane[lane].error, sizeof cpu->lane[lane].error, format, args);
    va_end(args);
    return code;
}

status cpu_check_lane(const cpu_backend *cpu, int lane, errbuf *err)
{
    if (lane >= 0 && lane < cpu->base.options.lanes)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT, "lane %d: the backend was opened with %d", lane,
                      cpu->base.options.lanes);
}

status cpu_check_shape(shape s, const char *what, errbuf *err)
{
    if (s.n > 0 && s.c > 0 && s.h > 0 && s.w > 0)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT, "%s: shape %d x %d x %d x %d is empty", what, s.n, s.c,
                      s.h, s.w);
}

/* ---- opening ---- */

static const simd_kernels *choose_kernels(void)
{
#ifdef RINGMASTER_SIMD_X86
    switch (onednn_effective_isa()) {
    case ONEDNN_ISA_AVX512:
        return &simd_kernels_avx512;
    case ONEDNN_ISA_AVX2:
        return &simd_kernels_avx2;
    default:
        break;
    }
#endif
    return &simd_kernels_base;
}

static bool cpu_available(void)
{
    return true;
}

/* Checks the conv part of a given plan: {shape: {pass: algorithm}}. */
static status check_plan(const cJSON *conv, errbuf *err)
{
    const cJSON *entry, *pass;
    cJSON_ArrayForEach (entry, conv) {
        if (!cJSON_IsObject(entry))
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "plan: conv \"%s\" should be an object of passes", entry->string);
        cJSON_ArrayForEach (pass, entry) {
            const char *name = pass->string, *value = cJSON_GetStringValue(pass);
            if (strcmp(name, "forward") != 0 && strcmp(name, "backward_data") != 0 &&
                strcmp(name, "backward_weights") != 0)
                return errbuf_set(err, STATUS_BAD_INPUT,
                                  "plan: conv \"%s\" has no pass \"%s\" (forward, backward_data, "
                                  "backward_weights)",
                                  entry->string, name);
            if (!value || (strcmp(value, "direct") != 0 && strcmp(value, "winograd") != 0))
                return errbuf_set(
                    err, STATUS_BAD_INPUT,
                    "plan: conv \"%s\", %s: unknown algorithm \"%s\" (direct, winograd)",
                    entry->string, name, value ? value : "");
        }
    }
    return STATUS_OK;
}

static status take_plan(cpu_backend *cpu, const cJSON *plan, errbuf *err)
{
    if (plan) {
        const cJSON *conv = cJSON_GetObjectItemCaseSensitive(plan, "conv");
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(plan, "backend"));
        if (!cJSON_IsObject(plan) || !cJSON_IsObject(conv))
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "plan: an object with an object \"conv\" was expected");
        if (name && strcmp(name, "cpu") != 0)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "plan: it is for backend \"%s\", this is \"cpu\"", name);
        TRY(check_plan(conv, err));
        cpu->plan_given = cJSON_Duplicate(conv, true);
        if (!cpu->plan_given)
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory reading the plan");
    }
    cpu->plan_made = cJSON_CreateObject();
    if (!cpu->plan_made)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory making the plan");
    return STATUS_OK;
}

static void cpu_close(backend *be)
{
    if (!be)
        return;
    cpu_backend *cpu = cpu_of(be);
    for (int l = 0; cpu->lane && l < be->options.lanes; l++) {
        onednn_stream_destroy(&cpu->lane[l].stream);
        free(cpu->lane[l].scratch);
    }
    free(cpu->lane);
    onednn_close(&cpu->dnn);
    cJSON_Delete(cpu->plan_given);
    cJSON_Delete(cpu->plan_made);
    free(cpu);
}

static status cpu_open(const backend_options *options, backend **ret_be, errbuf *err)
{
    status st = STATUS_OK;
    if (options->threads < 1 || options->lanes < 1 || options->lanes > options->threads)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "cpu backend: %d threads with %d lanes (at least 1 each, and a lane "
                          "needs a thread)",
                          options->threads, options->lanes);
    if (options->compute != COMPUTE_FP32)
        return errbuf_set(err, STATUS_BAD_INPUT, "cpu backend: it computes in fp32 only");
    cpu_backend *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the cpu backend");
    cpu->base.ops = &backend_cpu;
    cpu->base.options = *options;
    cpu->base.options.plan = NULL;
    cpu->simd = choose_kernels();
    cpu->lane = calloc((size_t)options->lanes, sizeof *cpu->lane);
    if (!cpu->lane) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the cpu backend");
        goto fail;
    }
    TRY_GOTO(take_plan(cpu, options->plan, err), st, fail);
    TRY_GOTO(onednn_open(&cpu->dnn, err), st, fail);
    for (int l = 0; l < options->lanes; l++)
        TRY_GOTO(onednn_stream_create(cpu->dnn, &cpu->lane[l].stream, err), st, fail);
    *ret_be = &cpu->base;
    return STATUS_OK;
fail:
    cpu_close(&cpu->base);
    return st;
}

static status cpu_describe(backend *be, cJSON **ret_plan, errbuf *err)
{
    cpu_backend *cpu = cpu_of(be);
    char version[32];
    onednn_version(version);
    cJSON *plan = cJSON_CreateObject(), *conv = cJSON_Duplicate(cpu->plan_made, true);
    bool ok = plan && conv && cJSON_AddStringToObject(plan, "backend", "cpu") &&
              cJSON_AddStringToObject(plan, "isa", onednn_isa_text()) &&
              cJSON_AddStringToObject(plan, "onednn", version) &&
              cJSON_AddNumberToObject(plan, "threads", be->options.threads) &&
              cJSON_AddNumberToObject(plan, "lanes", be->options.lanes);
    if (!ok || !cJSON_AddItemToObject(plan, "conv", conv)) {
        cJSON_Delete(conv);
        cJSON_Delete(plan);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory describing the plan");
    }
    *ret_plan = plan;
    return STATUS_OK;
}

static const char *cpu_last_error(const backend *be)
{
    const cpu_backend *cpu = (const cpu_backend *)be;
    for (int l = 0; l < be->options.lanes; l++) {
        if (cpu->lane[l].error[0])
            return cpu->lane[l].error;
    }
    return "";
}

/* ---- memory ---- */

static status cpu_alloc(backend *be, size_t bytes, void **ret, errbuf *err)
{
    (void)be;
    void *memory = cpu_memory(bytes);
    if (!memory)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory: %zu bytes were asked for",
                          bytes);
    *ret = memory;
    return STATUS_OK;
}

static void cpu_release(backend *be, void *memory)
{
    (void)be;
    free(memory);
}

static status cpu_copy(backend *be, void *to, const void *from, size_t bytes)
{
    (void)be;
    memcpy(to, from, bytes);
    return STATUS_OK;
}

static status cpu_zero(backend *be, void *memory, size_t bytes)
{
    (void)be;
    memset(memory, 0, bytes);
    return STATUS_OK;
}

/* ---- layouts ---- */

static size_t cpu_tensor_bytes(const backend *be, shape s, layout l)
{
    const cpu_backend *cpu = (const cpu_backend *)be;
    int64_t elements = l == LAYOUT_NATIVE ? cpu_native_elements(cpu, s) : shape_elements(s);
    return (size_t)elements * sizeof(float);
}

void cpu_to_native(const cpu_backend *cpu, shape s, float *to, const float *nchw, int threads)
{
    const int block = cpu->simd->block, blocks = cpu_blocks(cpu, s.c);
    const int64_t pixels = (int64_t)s.h * s.w;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int n = 0; n < s.n; n++) {
        for (int cb = 0; cb < blocks; cb++) {
            float *out = to + ((int64_t)n * blocks + cb) * pixels * block;
            const float *in = nchw + ((int64_t)n * s.c + (int64_t)cb * block) * pixels;
            int real = (int)min_int64(block, s.c - cb * block);
            for (int64_t p = 0; p < pixels; p++) {
                for (int c = 0; c < block; c++)
                    out[p * block + c] = c < real ? in[c * pixels + p] : 0.0f;
            }
        }
    }
}

void cpu_from_native(const cpu_backend *cpu, shape s, float *nchw, const float *from, int threads)
{
    const int block = cpu->simd->block, blocks = cpu_blocks(cpu, s.c);
    const int64_t pixels = (int64_t)s.h * s.w;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int n = 0; n < s.n; n++) {
        for (int c = 0; c < s.c; c++) {
            const float *in = from + ((int64_t)n * blocks + c / block) * pixels * block + c % block;
            float *out = nchw + ((int64_t)n * s.c + c) * pixels;
            for (int64_t p = 0; p < pixels; p++)
                out[p] = in[p * block];
        }
    }
}

static status cpu_pack(backend *be, shape s, layout l, void *to, const float *nchw)
{
    if (l == LAYOUT_NATIVE)
        cpu_to_native(cpu_of(be), s, to, nchw, cpu_threads(cpu_of(be)));
    else
        memcpy(to, nchw, cpu_tensor_bytes(be, s, l));
    return STATUS_OK;
}

static status cpu_unpack(backend *be, shape s, layout l, float *nchw, const void *from)
{
    if (l == LAYOUT_NATIVE)
        cpu_from_native(cpu_of(be), s, nchw, from, cpu_threads(cpu_of(be)));
    else
        memcpy(nchw, from, cpu_tensor_bytes(be, s, l));
    return STATUS_OK;
}

/* ---- lanes ---- */

static status cpu_run_lanes(backend *be, int count, status (*fn)(void *ctx, int lane), void *ctx)
{
    cpu_backend *cpu = cpu_of(be);
    if (count < 0 || count > be->options.lanes)
        return cpu_fail(cpu, 0, STATUS_BAD_INPUT, "%d lanes asked for, %d were opened", count,
                        be->options.lanes);
    if (be->options.lanes == 1)
        return count ? fn(ctx, 0) : STATUS_OK;
    status first = STATUS_OK;
    int first_lane = count;
    /* a parallel region even for one lane, so that its ops know that they have one thread */
#pragma omp parallel for num_threads(be->options.lanes) schedule(static, 1)
    for (int lane = 0; lane < count; lane++) {
        status st = fn(ctx, lane);
        if (st != STATUS_OK) {
#pragma omp critical(ringmaster_cpu_lanes)
            if (lane < first_lane) {
                first = st;
                first_lane = lane;
            }
        }
    }
    return first;
}

const backend_ops backend_cpu = {
    .name = "cpu",
    .help = "oneDNN convolutions and our own SIMD on CPU cores",
    .host_memory = true,
    .computes = 1u << COMPUTE_FP32,
    .bn_in_place = true,
    .available = cpu_available,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .last_error = cpu_last_error,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = host_copy,
    .zero = cpu_zero,
    .alloc_shared = host_alloc_shared,
    .release_shared = host_release_shared,
    .tensor_bytes = cpu_tensor_bytes,
    .pack = cpu_pack,
    .unpack = cpu_unpack,
    .run_lanes = cpu_run_lanes,
    .weights_create = cpu_weights_create,
    .weights_destroy = cpu_weights_destroy,
    .weights_commit = cpu_weights_commit,
    .weights_bytes = cpu_weights_bytes,
    .weights_expand = cpu_weights_expand,
    .weights_reduce = cpu_weights_reduce,
    .weights_read = cpu_weights_read,
    .weights_read_grad = cpu_weights_read_grad,
    .conv_create = cpu_conv_create,
    .conv_destroy = cpu_conv_destroy,
    .conv_forward = cpu_conv_forward,
    .conv_backward_data = cpu_conv_backward_data,
    .conv_backward_weights = cpu_conv_backward_weights,
    .bn_create = cpu_bn_create,
    .bn_destroy = cpu_bn_destroy,
    .bn_forward_train = cpu_bn_forward_train,
    .bn_forward_eval = cpu_bn_forward_eval,
    .bn_backward = cpu_bn_backward,
    .pool_create = cpu_pool_create,
    .pool_destroy = cpu_pool_destroy,
    .pool_workspace = cpu_pool_workspace,
    .pool_forward = cpu_pool_forward,
    .pool_backward = cpu_pool_backward,
    .fc_create = cpu_fc_create,
    .fc_destroy = cpu_fc_destroy,
    .fc_forward = cpu_fc_forward,
    .fc_backward = cpu_fc_backward,
    .loss_create = cpu_loss_create,
    .loss_destroy = cpu_loss_destroy,
    .loss_run = cpu_loss_run,
    .step_begin = host_step_begin,
    .step_word = host_step_word,
    .step_judge = host_step_judge,
    .step_end = host_step_end,
    .add = cpu_add,
    .add_native = cpu_add_native,
    .blend = cpu_blend,
    .sgd = cpu_sgd,
    .all_finite = cpu_all_finite,
    .exact_accumulate = cpu_exact_accumulate,
    .exact_to_float = cpu_exact_to_float,
};
