/*
 * Which backends were built: the one file with an #ifdef for them. Best first: "auto" takes the
 * first one that this machine can run.
 */
#include <stdio.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/reference/backend_reference.h"
#ifdef RINGMASTER_ONEDNN
#include "kernels/cpu/backend_cpu.h"
#endif

static const backend_ops *const backends[] = {
#ifdef RINGMASTER_ONEDNN
    &backend_cpu,
#endif
    &backend_reference,
    NULL,
};

const backend_ops *const *backend_list(void)
{
    return backends;
}

const backend_ops *backend_find(const char *name)
{
    for (const backend_ops *const *b = backends; *b; b++)
        if (strcmp((*b)->name, name) == 0)
            return *b;
    return NULL;
}

/* "auto, cpu, reference" */
static void list_names(char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "auto");
    for (const backend_ops *const *b = backends; *b && used < size; b++)
        used += (size_t)snprintf(text + used, size - used, ", %s", (*b)->name);
}

static status choose(const char *name, const backend_ops **ret_ops, errbuf *err)
{
    if (strcmp(name, "auto") == 0) {
        for (const backend_ops *const *b = backends; *b; b++)
            if ((*b)->available()) {
                *ret_ops = *b;
                return STATUS_OK;
            }
        return errbuf_set(err, STATUS_ENVIRONMENT, "no backend of this build runs on this machine");
    }
    const backend_ops *ops = backend_find(name);
    if (!ops) {
        char names[200];
        list_names(names, sizeof names);
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "backend '%s' is not part of this build: choose one of %s", name, names);
    }
    if (!ops->available())
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "backend '%s' (%s) cannot run on this machine: use auto", name,
                          ops->help);
    *ret_ops = ops;
    return STATUS_OK;
}

status backend_open(const char *name, const backend_options *options, backend **ret_be, errbuf *err)
{
    const backend_ops *ops = NULL;
    TRY(choose(name, &ops, err));
    return ops->open(options, ret_be, err);
}
