/*
 * cuDNN behind dnn.h: opening, ops and running them. A plan is shared by all ops of its key; an op
 * keeps a variant pack of the pointers it ran with last, which in a training are always the same.
 */
#include <cjson/cJSON.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/dnn_internal.h"
#include "protocol/strbuf.h"

struct dnn_op {
    dnn *d;
    const dnn_plan *plan;
    dnn_binding binding;
    void *pointers[DNN_MAX_POINTERS]; /* of `pack` */
    void *workspace;
    cudnnBackendDescriptor_t pack;
};

/* ---- cuDNN's errors ---- */

cudnnStatus_t dnn_set(cudnnBackendDescriptor_t to, cudnnBackendAttributeName_t name,
                      cudnnBackendAttributeType_t type, int64_t count, const void *value)
{
    return cudnnBackendSetAttribute(to, name, type, count, value);
}

void dnn_explain(cudnnStatus_t failed, char *ret, size_t size)
{
    char text[600] = "";
    cudnnGetLastErrorString(text, sizeof text);
    for (char *c = text; *c; c++)
        if (*c == '\n' || *c == '\r' || *c == '\t')
            *c = ' ';
    for (size_t n = strlen(text); n > 0 && text[n - 1] == ' '; n--)
        text[n - 1] = '\0';
    snprintf(ret, size, "%s%s%s", cudnnGetErrorString(failed), text[0] ? ": " : "", text);
}

status dnn_failed(cudnnStatus_t failed, const char *what, errbuf *err)
{
    char text[DNN_WHY_SIZE];
    dnn_explain(failed, text, sizeof text);
    bool memory = failed == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ||
                  failed == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
    return errbuf_set(err, memory ? STATUS_OUT_OF_MEMORY : STATUS_ENVIRONMENT,
                      "cuDNN cannot %s: %s", what, text);
}

const char *dnn_version(void)
{
    static char text[32];
    size_t v = cudnnGetVersion();
    if (text[0] == '\0')
        snprintf(text, sizeof text, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    return text;
}

/* ---- open ---- */

static status check_version(errbuf *err)
{
    size_t major = cudnnGetVersion() / 10000;
    if (major != CUDNN_MAJOR)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "cuDNN %s was found, cuDNN %d is needed: look at LD_LIBRARY_PATH for a "
                          "libcudnn.so.%d",
                          dnn_version(), CUDNN_MAJOR, CUDNN_MAJOR);
    return STATUS_OK;
}

/* Tests: the device is what the JSON says. */
static status describe_device(dnn *d, errbuf *err)
{
    const char *text = d->options.device_json;
    cJSON *json = cJSON_Parse(text);
    const cJSON *sms = cJSON_GetObjectItemCaseSensitive(json, "multiProcessorCount");
    d->sms = cJSON_IsNumber(sms) ? sms->valueint : 0;
    cJSON_Delete(json);
    cudnnStatus_t st =
        cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d->device);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(d->device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                     (int64_t)strlen(text), text);
    if (st == CUDNN_STATUS_SUCCESS)
        st = cudnnBackendFinalize(d->device);
    return st == CUDNN_STATUS_SUCCESS ? STATUS_OK : dnn_failed(st, "take device properties", err);
}

static status open_handle(dnn *d, errbuf *err)
{
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&d->sms, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess)
        return errbuf_set(err, STATUS_ENVIRONMENT, "cuDNN: no device: %s",
                          cudaGetErrorString(error));
    cudnnStatus_t st = cudnnCreate(&d->handle);
    if (st == CUDNN_STATUS_SUCCESS)
        st = cudnnSetStream(d->handle, d->options.stream);
    return st == CUDNN_STATUS_SUCCESS ? STATUS_OK : dnn_failed(st, "be opened", err);
}

status dnn_open(const dnn_options *options, dnn **ret, errbuf *err)
{
    status st = STATUS_OK;
    TRY(check_version(err));
    dnn *d = calloc(1, sizeof *d);
    if (!d)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening cuDNN");
    d->options = *options;
    snprintf(d->device_name, sizeof d->device_name, "%s",
             options->device_name ? options->device_name : "");
    d->options.device_name = d->device_name;
    if (options->cache)
        TRY_GOTO(string_copy(options->cache, &d->cache, err), st, failed);
    d->options.cache = d->cache;
    TRY_GOTO(options->device_json ? describe_device(d, err) : open_handle(d, err), st, failed);
    *ret = d;
    return STATUS_OK;
failed:
    dnn_close(&d);
    return st;
}

void dnn_close(dnn **d)
{
    if (!d || !*d)
        return;
    for (dnn_plan *p = (*d)->plans, *next; p; p = next) {
        next = p->next;
        dnn_plan_destroy(&p);
    }
    if ((*d)->workspace)
        cudaFree((*d)->workspace);
    if ((*d)->device)
        cudnnBackendDestroyDescriptor((*d)->device);
    if ((*d)->handle)
        cudnnDestroy((*d)->handle);
    free((*d)->cache);
    free(*d);
    *d = NULL;
}

/* ---- the plan as people and checkpoints see it ---- */

static bool add_entry(cJSON *engines, const dnn_plan *p)
{
    cJSON *entry = p->plan ? dnn_choice_write(&p->choice) : cJSON_CreateNull();
    if (entry && cJSON_AddItemToObject(engines, p->key, entry))
        return true;
    cJSON_Delete(entry);
    return false;
}

status dnn_describe(const dnn *d, cJSON **ret, errbuf *err)
{
    cJSON *json = cJSON_CreateObject();
    bool ok = cJSON_AddStringToObject(json, "version", dnn_version()) != NULL;
    cJSON *engines = ok ? cJSON_AddObjectToObject(json, "engines") : NULL;
    ok = engines != NULL;
    for (const dnn_plan *p = d->plans; ok && p; p = p->next)
        ok = add_entry(engines, p);
    if (!ok) {
        cJSON_Delete(json);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory writing cuDNN's plan");
    }
    *ret = json;
    return STATUS_OK;
}

const char *dnn_missing(const dnn *d)
{
    return d->missing;
}

const char *dnn_last_error(const dnn *d)
{
    return d->error;
}

size_t dnn_mask_bytes(shape x)
{
    return ((size_t)shape_elements(x) + 7) / 8;
}

/* ---- ops ---- */

/* The scratch that all ops share, as large as the largest wants. Ops run on one stream, so they
 * take turns. */
static status grow_workspace(dnn *d, int64_t bytes, errbuf *err)
{
    if (!d->handle || (size_t)bytes <= d->workspace_bytes)
        return STATUS_OK;
    void *more = NULL;
    cudaError_t error = cudaMalloc(&more, (size_t)bytes);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return errbuf_set(
            err, error == cudaErrorMemoryAllocation ? STATUS_OUT_OF_MEMORY : STATUS_ENVIRONMENT,
            "cuDNN's scratch of %lld MiB: %s", (long long)(bytes >> 20), cudaGetErrorString(error));
    }
    if (d->workspace)
        cudaFree(d->workspace); /* waits for what still uses it */
    d->workspace = more;
    d->workspace_bytes = (size_t)bytes;
    return STATUS_OK;
}

static status plan_for(dnn *d, const dnn_graph *g, const dnn_plan **ret, errbuf *err)
{
    dnn_plan *p = d->plans;
    while (p && strcmp(p->key, g->key) != 0)
        p = p->next;
    if (!p) {
        TRY(dnn_plan_make(d, g, &p, err));
        p->next = d->plans;
        d->plans = p;
    }
    *ret = p;
    return STATUS_OK;
}

static status create_op(dnn *d, const dnn_graph *g, dnn_op **ret, errbuf *err)
{
    const dnn_plan *p = NULL;
    TRY(plan_for(d, g, &p, err));
    if (!p->plan) {
        snprintf(d->missing, sizeof d->missing, "cuDNN %s has no engine for %s on %s (%s)",
                 dnn_version(), g->key, d->device_name[0] ? d->device_name : "this device", p->why);
        *ret = NULL;
        return STATUS_OK;
    }
    TRY(grow_workspace(d, p->workspace, err));
    dnn_op *op = calloc(1, sizeof *op);
    if (!op)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory making %s", g->key);
    op->d = d;
    op->plan = p;
    op->binding = g->binding;
    *ret = op;
    return STATUS_OK;
}

status dnn_conv_create(dnn *d, dnn_conv_kind kind, const conv_desc *desc, int channels,
                       dnn_type type, dnn_op **ret, errbuf *err)
{
    dnn_graph g;
    status st = dnn_graph_conv(d, kind, desc, channels, type, &g, err);
    if (st == STATUS_OK)
        st = create_op(d, &g, ret, err);
    dnn_graph_fini(&g);
    return st;
}

status dnn_bn_create(dnn *d, dnn_bn_kind kind, const bn_desc *desc, bool two_gradients,
                     dnn_type type, dnn_op **ret, errbuf *err)
{
    dnn_graph g;
    status st = dnn_graph_bn(d, kind, desc, two_gradients, type, &g, err);
    if (st == STATUS_OK)
        st = create_op(d, &g, ret, err);
    dnn_graph_fini(&g);
    return st;
}

void dnn_op_destroy(dnn_op **op)
{
    if (!op || !*op)
        return;
    if ((*op)->pack)
        cudnnBackendDestroyDescriptor((*op)->pack);
    free(*op);
    *op = NULL;
}

float dnn_op_ms(const dnn_op *op)
{
    return op->plan->ms;
}

/* ---- running ---- */

cudnnStatus_t dnn_pack(const dnn_binding *b, void *const *pointers, void *workspace,
                       cudnnBackendDescriptor_t *ret)
{
    int64_t ids[DNN_MAX_POINTERS + DNN_MAX_SCALARS], count = 0;
    void *memory[DNN_MAX_POINTERS + DNN_MAX_SCALARS];
    cudnnBackendDescriptor_t pack = NULL;
    for (int i = 0; i < b->pointers; i++, count++) {
        ids[count] = i + 1;
        memory[count] = pointers[i];
    }
    for (int i = 0; i < b->scalars; i++, count++) {
        ids[count] = b->scalar_id[i];
        memory[count] = (void *)(uintptr_t)&b->scalar[i];
    }
    cudnnStatus_t st = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count,
                     memory);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    if (st == CUDNN_STATUS_SUCCESS)
        st = cudnnBackendFinalize(pack);
    if (st != CUDNN_STATUS_SUCCESS && pack)
        cudnnBackendDestroyDescriptor(pack);
    else
        *ret = pack;
    return st;
}

static status run_failed(dnn_op *op, cudnnStatus_t failed)
{
    char text[DNN_WHY_SIZE];
    dnn_explain(failed, text, sizeof text);
    snprintf(op->d->error, sizeof op->d->error, "cuDNN: %s: %.300s", op->plan->key, text);
    return STATUS_ENVIRONMENT;
}

/* The pack for these pointers: the one of the last run where they are the same. */
static status prepare(dnn_op *op, void *const *pointers)
{
    size_t bytes = sizeof *pointers * (size_t)op->binding.pointers;
    void *workspace = op->d->workspace;
    if (op->pack && op->workspace == workspace && memcmp(op->pointers, pointers, bytes) == 0)
        return STATUS_OK;
    for (int i = 0; i < op->binding.pointers; i++) {
        if (!pointers[i] || (uintptr_t)pointers[i] % DNN_ALIGNMENT != 0) {
            snprintf(op->d->error, sizeof op->d->error,
                     "cuDNN: %s: tensor %d is at %p; memory aligned to %d bytes is expected",
                     op->plan->key, i, pointers[i], DNN_ALIGNMENT);
            return STATUS_ENVIRONMENT;
        }
    }
    if (op->pack)
        cudnnBackendDestroyDescriptor(op->pack);
    op->pack = NULL;
    cudnnStatus_t st = dnn_pack(&op->binding, pointers, workspace, &op->pack);
    if (st != CUDNN_STATUS_SUCCESS)
        return run_failed(op, st);
    memcpy(op->pointers, pointers, bytes);
    op->workspace = workspace;
    return STATUS_OK;
}

status dnn_run(dnn_op *op, void *const *pointers)
{
    if (!op->d->handle) {
        snprintf(op->d->error, sizeof op->d->error, "cuDNN: %s: there is no device to run it on",
                 op->plan->key);
        return STATUS_ENVIRONMENT;
    }
    TRY(prepare(op, pointers));
    cudnnStatus_t st = cudnnBackendExecute(op->d->handle, op->plan->plan, op->pack);
    return st == CUDNN_STATUS_SUCCESS ? STATUS_OK : run_failed(op, st);
}
