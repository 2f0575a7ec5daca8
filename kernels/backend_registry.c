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

/* What every training step needs; ops of single layers are asked for by the nets that use them. */
static status require_core(const backend_ops *ops, errbuf *err)
{
    const struct {
        const char *name;
        bool is_there;
    } core[] = {
        {"memory", ops->alloc && ops->release && ops->upload && ops->download && ops->zero},
        {"tensors", ops->tensor_bytes && ops->pack && ops->unpack},
        {"lanes", ops->run_lanes},
        {"weights", ops->weights_create && ops->weights_destroy && ops->weights_commit &&
                        ops->weights_bytes && ops->weights_expand && ops->weights_reduce},
        {"loss", ops->loss_create && ops->loss_destroy && ops->loss_run},
        {"update", ops->add && ops->blend && ops->sgd && ops->all_finite},
        {"exact sums", ops->exact_accumulate && ops->exact_to_float},
    };
    for (size_t i = 0; i < sizeof core / sizeof *core; i++)
        if (!core[i].is_there)
            return errbuf_set(err, STATUS_ENVIRONMENT, "backend %s lacks ops: %s", ops->name,
                              core[i].name);
    return STATUS_OK;
}

status backend_open(const char *name, const backend_options *options, backend **ret_be, errbuf *err)
{
    const backend_ops *ops = NULL;
    TRY(choose(name, &ops, err));
    TRY(require_core(ops, err));
    return ops->open(options, ret_be, err);
}
