/*
 * Compiled plans in a folder: building one costs 0.3 to 2 s, reading it back some 10 ms.
 *
 * A file is named by a hash of all that its content depends on: cuDNN's version, the device, the
 * graph, engine and knobs. It holds its own name and a hash of the plan's text, so that a damaged
 * file is seen before cuDNN reads it. Whatever is wrong with a file, the plan is built, and the
 * file written again; a folder that cannot be written only costs time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/dnn_internal.h"
#include "protocol/file.h"
#include "protocol/sha256.h"

#define MAX_FILE    ((size_t)64 << 20)
#define HEADER_SIZE (sizeof "ringmaster cudnn plan 1\n" - 1 + 2 * SHA256_HEX_SIZE)

static void hash_text(sha256 *h, const char *text)
{
    sha256_update(h, text, strlen(text) + 1);
}

/* Hex name of an entry. */
static void entry_name(const dnn *d, const dnn_graph *g, const dnn_choice *c,
                       char ret[SHA256_HEX_SIZE])
{
    char number[64];
    sha256 h;
    sha256_init(&h);
    hash_text(&h, dnn_version());
    hash_text(&h, d->device_name);
    snprintf(number, sizeof number, "%d SMs", d->sms);
    hash_text(&h, number);
    hash_text(&h, g->key);
    snprintf(number, sizeof number, "engine %lld", (long long)c->engine);
    hash_text(&h, number);
    for (int i = 0; i < c->knobs; i++) {
        snprintf(number, sizeof number, "%lld=%lld", (long long)c->knob[i], (long long)c->value[i]);
        hash_text(&h, number);
    }
    sha256_final_hex(&h, ret);
}

/* What a file begins with: magic, its name, the hash of what follows; a line each. */
static void make_header(const char *name, const char *text, size_t length,
                        char ret[HEADER_SIZE + 1])
{
    char hash[SHA256_HEX_SIZE];
    sha256 h;
    sha256_init(&h);
    sha256_update(&h, text, length);
    sha256_final_hex(&h, hash);
    snprintf(ret, HEADER_SIZE + 1, "ringmaster cudnn plan 1\n%s\n%s\n", name, hash);
}

static char *entry_path(const dnn *d, const char *name)
{
    size_t size = strlen(d->cache) + SHA256_HEX_SIZE + sizeof "/.plan";
    char *path = malloc(size);
    if (path)
        snprintf(path, size, "%s/%s.plan", d->cache, name);
    return path;
}

cudnnStatus_t dnn_plan_restore(const dnn *d, const char *text, size_t length,
                               cudnnBackendDescriptor_t *ret)
{
    cudnnBackendDescriptor_t plan = NULL;
    cudnnStatus_t st = cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                     (int64_t)length, text);
    if (st == CUDNN_STATUS_SUCCESS && d->handle)
        st = dnn_set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &d->handle);
    if (st == CUDNN_STATUS_SUCCESS && d->device)
        st = dnn_set(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                     &d->device);
    if (st == CUDNN_STATUS_SUCCESS)
        st = cudnnBackendFinalize(plan);
    if (st != CUDNN_STATUS_SUCCESS && plan)
        cudnnBackendDestroyDescriptor(plan);
    else
        *ret = plan;
    return st;
}

cudnnBackendDescriptor_t dnn_cache_load(const dnn *d, const dnn_graph *g, const dnn_choice *choice)
{
    if (!d->cache)
        return NULL;
    cudnnBackendDescriptor_t plan = NULL;
    char name[SHA256_HEX_SIZE], header[HEADER_SIZE + 1], *bytes = NULL;
    size_t length = 0;
    entry_name(d, g, choice, name);
    char *path = entry_path(d, name);
    if (path && file_read_all(path, MAX_FILE, &bytes, &length, NULL) == STATUS_OK &&
        length > HEADER_SIZE) {
        make_header(name, bytes + HEADER_SIZE, length - HEADER_SIZE, header);
        if (memcmp(bytes, header, HEADER_SIZE) == 0 &&
            dnn_plan_restore(d, bytes + HEADER_SIZE, length - HEADER_SIZE, &plan) !=
                CUDNN_STATUS_SUCCESS)
            plan = NULL;
    }
    free(bytes);
    free(path);
    return plan;
}

char *dnn_plan_text(cudnnBackendDescriptor_t plan, size_t *ret_length)
{
    int64_t size = 0, got = 0;
    if (cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION,
                                 CUDNN_TYPE_CHAR, 0, &size, NULL) != CUDNN_STATUS_SUCCESS ||
        size <= 0 || (size_t)size > MAX_FILE - HEADER_SIZE)
        return NULL;
    char *text = calloc(1, (size_t)size + 1);
    if (text &&
        cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION,
                                 CUDNN_TYPE_CHAR, size, &got, text) != CUDNN_STATUS_SUCCESS) {
        free(text);
        return NULL;
    }
    *ret_length = (size_t)size;
    return text;
}

void dnn_cache_store(const dnn *d, const dnn_graph *g, const dnn_choice *choice,
                     cudnnBackendDescriptor_t plan)
{
    if (!d->cache)
        return;
    char name[SHA256_HEX_SIZE];
    size_t length = 0;
    char *text = dnn_plan_text(plan, &length);
    entry_name(d, g, choice, name);
    char *path = entry_path(d, name), *file = text ? malloc(HEADER_SIZE + length + 1) : NULL;
    if (path && file) {
        make_header(name, text, length, file);
        memcpy(file + HEADER_SIZE, text, length);
        errbuf unused = {.code = STATUS_OK};
        if (file_make_dirs(d->cache, &unused) == STATUS_OK &&
            file_write_atomic(path, file, HEADER_SIZE + length, &unused) != STATUS_OK)
            errbuf_clear(&unused); /* built again next time */
    }
    free(file);
    free(path);
    free(text);
}
