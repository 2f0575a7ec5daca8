/*
 * The plan: everything besides the spec that the bits of a run depend on (FORMATS 7), as canonical
 * JSON text.
 */
#ifndef RINGMASTER_TRAINER_PLAN_H
#define RINGMASTER_TRAINER_PLAN_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/backend.h"
#include "kernels/comm_device.h"

/* The plan that `be` and, where training, `reduce` (may be NULL) run by, after all ops were
 * created. In exact mode the parts that bits do not depend on (threads, lanes, ranks a host,
 * all-reduce) are left out, so that checkpoints of different worlds are equal. Caller frees. */
CHECK_RESULT status plan_describe(backend *be, const comm *c, const comm_device *reduce, bool exact,
                                  char **ret_text, errbuf *err);

/* Reads and parses a plan file (backend.plan: PATH). Caller frees the text. */
CHECK_RESULT status plan_load(const char *path, char **ret_text, errbuf *err);

/* A plan that was given is one for this machine and these threads: STATUS_BAD_INPUT naming the
 * field in which it differs from `plan`, by which this run goes (ranks and shapes are the backend's
 * to judge). `path` is for the message. */
CHECK_RESULT status plan_check_given(const char *given, const char *plan, const char *path,
                                     errbuf *err);

/* Replaces every rank's plan by rank 0's: collective. A rank that computes otherwise (the ranks of
 * its host apart, which bits do not depend on here) is STATUS_BAD_INPUT, on all ranks. */
CHECK_RESULT status plan_settle(comm *c, char **plan, errbuf *err);

/* Hands rank 0's text to every rank (NULL stays NULL). *text is replaced on the others. */
CHECK_RESULT status plan_share(comm *c, char **text, errbuf *err);

#define PLAN_CACHE_PATH_MAX 4096

/* The folder in which backends keep compiled plans, between runs: $RINGMASTER_CACHE, else
 * ringmaster/plans in $XDG_CACHE_HOME or ~/.cache. "" where there is none or its name is too long.
 * Not created. */
void plan_cache_folder(char *path, size_t size);

#endif
