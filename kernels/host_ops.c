/* Ops of host-memory backends; see host_ops.h. */
#include "kernels/host_ops.h"

#include <math.h>
#include <string.h>

status host_copy(backend *be, void *to, const void *from, size_t bytes)
{
    (void)be;
    if (bytes > 0)
        memcpy(to, from, bytes);
    return STATUS_OK;
}

status host_alloc_shared(backend *be, size_t bytes, void **ret, errbuf *err)
{
    return be->ops->alloc(be, bytes, ret, err);
}

void host_release_shared(backend *be, void *memory)
{
    be->ops->release(be, memory);
}

status host_step_begin(backend *be, step_control *c, const step_input *in, int slots)
{
    (void)be;
    c->in = in[c->step % (uint64_t)slots];
    c->failures = c->in.error != 0 ? STEP_TOLD : 0;
    c->stops = c->errors = 0;
    return STATUS_OK;
}

status host_step_word(backend *be, step_control *c, const loss_sums *sums, int shards, bool exact,
                      void *word)
{
    (void)be;
    for (int k = 0; k < shards; k++)
        if (!isfinite(sums[k].loss))
            c->failures |= STEP_LOSS;
    const int error = c->failures != 0;
    if (exact) {
        const int64_t both[2] = {(int64_t)c->in.stop, error};
        memcpy(word, both, sizeof both);
    } else {
        const float both[2] = {c->in.stop, (float)error};
        memcpy(word, both, sizeof both);
    }
    return STATUS_OK;
}

status host_step_judge(backend *be, step_control *c, bool exact, const void *word)
{
    (void)be;
    int64_t whole[2];
    float both[2];
    if (exact) {
        memcpy(whole, word, sizeof whole);
        both[0] = (float)whole[0];
        both[1] = (float)whole[1];
    } else {
        memcpy(both, word, sizeof both);
    }
    c->stops = both[0];
    c->errors = both[1];
    if (c->errors > 0)
        c->halted = 1;
    return STATUS_OK;
}

status host_step_end(backend *be, step_control *c, const loss_sums *sums, int shards,
                     step_output *out, loss_sums *out_sums, int slots)
{
    (void)be;
    const uint64_t slot = c->step % (uint64_t)slots;
    out[slot] = (step_output){.step = c->step,
                              .stops = c->stops,
                              .errors = c->errors,
                              .failures = c->failures,
                              .halted = c->halted};
    memcpy(out_sums + slot * (uint64_t)shards, sums, (size_t)shards * sizeof *sums);
    c->step++;
    return STATUS_OK;
}
