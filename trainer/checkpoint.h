/*
 * Checkpoints: safetensors files that hold all that the bits of a run depend on (FORMATS 4):
 *
 *   tensors, F32: `ring.<name>`; direct parameters by torchvision's names; `<norm>.running_mean`
 *   and `.running_var`; `optim.<state>.<tensor>` for each of them that is trained.
 *   metadata: best {epoch, step, top1}, data_hash, epoch, format, format_version, map_version,
 *   next_seq, plan, results, slots [{name, offset, ring, shape}], step, train {count, loss,
 *   skipped, top1, top5}, and the seal of safetensors.h.
 */
#ifndef RINGMASTER_TRAINER_CHECKPOINT_H
#define RINGMASTER_TRAINER_CHECKPOINT_H

#include <stdint.h>

#include "protocol/status.h"
#include "trainer/net/graph.h"
#include "trainer/sample_sums.h"

/* Progress of a run, as a checkpoint holds it. */
typedef struct train_state {
    int64_t step;     /* steps done since the job began */
    int64_t epoch;    /* epochs done */
    int64_t next_seq; /* of the first record after it */
    double best_top1; /* -1 = none yet */
    int64_t best_step, best_epoch;
    /* sums over the images trained on so far in the epoch in progress; 0 at its start */
    sample_sums train;
} train_state;

/* One optimiser state: a named vector as long as the parameter vector ("momentum"). */
typedef struct optim_state {
    const char *name;
    float *values; /* host */
} optim_state;

typedef struct checkpoint {
    const net *net;
    float *params, *running; /* host; net->param_elements, net->running_elements */
    optim_state *optim;
    int optims;
    train_state state;
    char *results; /* spec_dump_results of the job */
    char *plan;    /* compact JSON, sorted keys */
    char data_hash[65];
} checkpoint;

/* Writes `path` atomically (temporary name, fsync, rename, fsync of the folder). Disk full or any
 * write error: STATUS_ENVIRONMENT, the temporary file removed, older files untouched. Same content,
 * same bytes. */
CHECK_RESULT status checkpoint_write(const checkpoint *c, const char *path, errbuf *err);

/* Reads into arrays that the caller has sized for `c->net`; verifies format and map version, slot
 * table, names, shapes and the hashes; the arrays are written after that. With `optims` 0 the
 * file's optimiser states are passed over (eval). Replaces results and plan (freed by
 * checkpoint_fini). Truncated or damaged: STATUS_BAD_INPUT, the line says what and where.
 * Whether results, plan and data hash are the right ones is the caller's to judge
 * (checkpoint_compare). */
CHECK_RESULT status checkpoint_read(checkpoint *c, const char *path, errbuf *err);
void checkpoint_fini(checkpoint *c); /* frees results and plan only */

/* Metadata alone, without tensors and without a net: for eval, info and the scan for a resume. */
typedef struct checkpoint_head {
    train_state state;
    char *results, *plan;
    char data_hash[65];
} checkpoint_head;
CHECK_RESULT status checkpoint_read_head(const char *path, checkpoint_head *ret, errbuf *err);
/* The same, once every byte of the file has been compared with its hashes (read_head alone reads
 * and verifies the header). */
CHECK_RESULT status checkpoint_verify(const char *path, checkpoint_head *ret, errbuf *err);
void checkpoint_head_fini(checkpoint_head *h);

/* STATUS_BAD_INPUT naming each field that differs between the job's and the file's. */
CHECK_RESULT status checkpoint_compare(const char *results, const char *data_hash,
                                       const checkpoint_head *file, const char *path, errbuf *err);

/* What spec_diff_results says, on one line for a message: the first few fields, cut to `size`. */
void checkpoint_fold_diff(const char *lines, char *ret_text, size_t size);

#endif
