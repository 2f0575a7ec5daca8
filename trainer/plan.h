/*
 * The plan: everything besides the spec that the bits of a run depend on (FORMATS 7), as canonical
 * JSON text.
 */
#ifndef RINGMASTER_TRAINER_PLAN_H
#define RINGMASTER_TRAINER_PLAN_H

#include <stdbool.h>

#include "kernels/backend.h"
#include "kernels/comm.h"

/* The plan that `be` runs by, after all its ops were created. In exact mode the parts that bits do
 * not depend on (threads, lanes, ranks a host, all-reduce) are left out, so that checkpoints of
 * different worlds are equal. Caller frees. */
CHECK_RESULT status plan_describe(backend *be, const comm *c, bool exact, char **ret_text,
                                  errbuf *err);

/* Reads and parses a plan file (backend.plan: PATH). Caller frees the text. */
CHECK_RESULT status plan_load(const char *path, char **ret_text, errbuf *err);

/* Hands rank 0's text to every rank (NULL stays NULL). *text is replaced on the others. */
CHECK_RESULT status plan_share(comm *c, char **text, errbuf *err);

#endif
