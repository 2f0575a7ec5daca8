/*
 * Which backends were built: the one file with an #ifdef for them. Best first: "auto" takes the
 * first one that this machine can run.
 */
#include <stdio.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/reference/backend_reference.h"
#ifdef RINGMASTER_CUDA
#include "kernels/cuda/backend_cuda.h"
#endif
#ifdef RINGMASTER_ONEDNN
#include "kernels/cpu/backend_cpu.h"
#endif

static const backend_ops *const backends[] = {
#ifdef RINGMASTER_CUDA
    &backend_cuda,
#endif
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

/* The line of a backend that cannot run here: its own, from trying to open it. */
static status say_why(const backend_ops *ops, errbuf *err)
{
    const backend_options plain = {.threads = 1, .lanes = 1};
    backend *be = NULL;
    TRY(ops->open(&plain, &be, err));
    ops->close(be);
    return errbuf_set(err, STATUS_ENVIRONMENT,
                      "backend '%s' (%s) cannot run on this machine: use auto", ops->name,
                      ops->help);
}

status backend_choose(const char *name, const backend_ops **ret_ops, errbuf *err)
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
        return say_why(ops, err);
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
        {"memory", ops->alloc && ops->release && ops->upload && ops->download && ops->copy &&
                       ops->zero && ops->alloc_shared && ops->release_shared},
        {"order",
         ops->host_memory ||
             (ops->graph_begin && ops->graph_end && ops->graph_launch && ops->graph_destroy &&
              ops->event_create && ops->event_destroy && ops->event_record && ops->event_done &&
              ops->feed && ops->images_from_set && ops->images_from_bytes)},
        {"step control", ops->step_begin && ops->step_word && ops->step_judge && ops->step_end},
        {"tensors", ops->tensor_bytes && ops->pack && ops->unpack},
        {"lanes", ops->run_lanes},
        {"weights", ops->weights_create && ops->weights_destroy && ops->weights_commit &&
                        ops->weights_bytes && ops->weights_expand && ops->weights_reduce},
        {"loss", ops->loss_create && ops->loss_destroy && ops->loss_run},
        {"update", ops->add && ops->add_native && ops->blend && ops->sgd && ops->all_finite},
        {"exact sums", ops->exact_accumulate && ops->exact_to_float},
    };
    for (size_t i = 0; i < sizeof core / sizeof *core; i++)
        if (!core[i].is_there)
            return errbuf_set(err, STATUS_ENVIRONMENT, "backend %s lacks ops: %s", ops->name,
                              core[i].name);
    return STATUS_OK;
}

status backend_check_compute(const backend_ops *ops, compute_type compute, errbuf *err)
{
    static const char *const names[] = {"fp32", "tf32", "bf16"};
    if (ops->computes >> compute & 1)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "train.precision %s needs a GPU, backend %s computes in fp32 only: use "
                      "--backend cuda, or fp32",
                      names[compute], ops->name);
}

status backend_open(const char *name, const backend_options *options, backend **ret_be, errbuf *err)
{
    const backend_ops *ops = NULL;
    TRY(backend_choose(name, &ops, err));
    TRY(require_core(ops, err));
    TRY(backend_check_compute(ops, options->compute, err));
    return ops->open(options, ret_be, err);
}
