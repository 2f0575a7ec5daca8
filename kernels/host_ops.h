/*
 * Ops that all backends whose memory is the host's share: a step's control, copies, shared memory.
 * Contracts: backend.h.
 */
#ifndef RINGMASTER_KERNELS_HOST_OPS_H
#define RINGMASTER_KERNELS_HOST_OPS_H

#include "kernels/backend.h"

CHECK_RESULT status host_copy(backend *be, void *to, const void *from, size_t bytes);
CHECK_RESULT status host_alloc_shared(backend *be, size_t bytes, void **ret, errbuf *err);
void host_release_shared(backend *be, void *memory);

CHECK_RESULT status host_step_begin(backend *be, step_control *c, const step_input *in, int slots);
CHECK_RESULT status host_step_word(backend *be, step_control *c, const loss_sums *sums, int shards,
                                   bool exact, void *word);
CHECK_RESULT status host_step_judge(backend *be, step_control *c, bool exact, const void *word);
CHECK_RESULT status host_step_end(backend *be, step_control *c, const loss_sums *sums, int shards,
                                  step_output *out, loss_sums *out_sums, int slots);

#endif
