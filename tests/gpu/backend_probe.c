/*
 * What `tests/gpu/check.py` and `bench_cuda.py` ask before anything else: which backends were built
 * and can run here, and how the one that is named describes itself (device, library versions).
 *
 *     backend_probe [BACKEND]
 *
 * Prints one JSON object: {"backends": [{"name", "available"}…], "plan": {…}}, or "error" where
 * BACKEND does not open. The exit code is the status of opening it.
 */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/backend.h"

static cJSON *list_backends(void)
{
    cJSON *list = cJSON_CreateArray();
    for (const backend_ops *const *b = backend_list(); *b; b++) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "name", (*b)->name);
        cJSON_AddBoolToObject(o, "available", (*b)->available());
        cJSON_AddItemToArray(list, o);
    }
    return list;
}

static status describe(const char *name, cJSON *into)
{
    const backend_options options = {.threads = 1, .lanes = 1};
    errbuf err = {0};
    backend *be = NULL;
    cJSON *plan = NULL;
    status st = backend_open(name, &options, &be, &err);
    if (st == STATUS_OK) {
        st = be->ops->describe(be, &plan, &err);
        cJSON_AddStringToObject(into, "backend", be->ops->name);
        be->ops->close(be);
    }
    if (st == STATUS_OK)
        cJSON_AddItemToObject(into, "plan", plan);
    else
        cJSON_AddStringToObject(into, "error", err.text);
    return st;
}

int main(int argc, char **argv)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddItemToObject(o, "backends", list_backends());
    status st = argc > 1 ? describe(argv[1], o) : STATUS_OK;
    char *text = cJSON_Print(o);
    if (text)
        puts(text);
    free(text);
    cJSON_Delete(o);
    return (int)st;
}
