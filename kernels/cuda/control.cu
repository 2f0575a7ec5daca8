/*
 * A step's control on the device: what the step is given (learning rate, the host's requests, its
 * place in the epoch) is read from a ring of slots in shared memory, what it reports is written to
 * another, both indexed by the step counter that step_end advances. So a recorded step needs no
 * argument that changes.
 *
 * Bytes moved: a few hundred a step. One block each, because one thread's worth of work is not
 * worth more; what matters is that they take a few microseconds of a step's latency.
 */
#include <math.h>

#include "kernels/cuda/launch.cuh"

/* one thread */
static __global__ void step_begin_kernel(step_control *c, const step_input *in, int slots)
{
    const step_input now = in[c->step % (uint64_t)slots];
    c->in = now;
    c->failures = now.error != 0 ? STEP_TOLD : 0;
    c->stops = c->errors = 0;
}

extern "C" status cuda_step_begin(backend *be, step_control *c, const step_input *in, int slots)
{
    return cuda_launch(cuda_of(be), "begin of a step", step_begin_kernel, 1, 1, 0, c, in, slots);
}

/* one warp owns all losses; lane 0 the control and the word */
static __global__ void step_word_kernel(step_control *c, const loss_sums *sums, int shards,
                                        bool exact, void *word)
{
    uint32_t failures = 0;
    for (int k = (int)threadIdx.x; k < shards; k += WARP)
        failures |= isfinite(sums[k].loss) ? 0 : STEP_LOSS;
    for (int mask = WARP / 2; mask > 0; mask /= 2)
        failures |= shuffle_xor(failures, mask);
    if (threadIdx.x != 0)
        return;
    failures |= c->failures;
    c->failures = failures;
    if (exact) {
        ((int64_t *)word)[0] = (int64_t)c->in.stop;
        ((int64_t *)word)[1] = failures != 0;
    } else {
        ((float *)word)[0] = c->in.stop;
        ((float *)word)[1] = failures != 0 ? 1.0f : 0.0f;
    }
}

extern "C" status cuda_step_word(backend *be, step_control *c, const loss_sums *sums, int shards,
                                 bool exact, void *word)
{
    return cuda_launch(cuda_of(be), "control word", step_word_kernel, 1, WARP, 0, c, sums, shards,
                       exact, word);
}

/* one thread */
static __global__ void step_judge_kernel(step_control *c, bool exact, const void *word)
{
    const int64_t *whole = (const int64_t *)word;
    const float *both = (const float *)word;
    c->stops = exact ? (float)whole[0] : both[0];
    c->errors = exact ? (float)whole[1] : both[1];
    if (c->errors > 0)
        c->halted = 1;
}

extern "C" status cuda_step_judge(backend *be, step_control *c, bool exact, const void *word)
{
    return cuda_launch(cuda_of(be), "judgement of a step", step_judge_kernel, 1, 1, 0, c, exact,
                       word);
}

/* one warp owns all losses; lane 0 the control and the report */
static __global__ void step_end_kernel(step_control *c, const loss_sums *sums, int shards,
                                       step_output *out, loss_sums *out_sums, int slots)
{
    const uint64_t step = c->step, slot = step % (uint64_t)slots;
    for (int k = (int)threadIdx.x; k < shards; k += WARP)
        out_sums[slot * (uint64_t)shards + (uint64_t)k] = sums[k];
    block_sync(); /* all have read the step */
    if (threadIdx.x != 0)
        return;
    step_output report;
    report.step = step;
    report.stops = c->stops;
    report.errors = c->errors;
    report.failures = c->failures;
    report.halted = c->halted;
    out[slot] = report;
    c->step = step + 1;
}

extern "C" status cuda_step_end(backend *be, step_control *c, const loss_sums *sums, int shards,
                                step_output *out, loss_sums *out_sums, int slots)
{
    return cuda_launch(cuda_of(be), "end of a step", step_end_kernel, 1, WARP, 0, c, sums, shards,
                       out, out_sums, slots);
}
