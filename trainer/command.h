/*
 * The subcommands of ringtrain: what they share (options, loading a spec) and their entry points.
 * A command prints its results to stdout, progress to stderr, and returns a status; main prints
 * the error line and exits with the status's value.
 */
#ifndef RINGMASTER_TRAINER_COMMAND_H
#define RINGMASTER_TRAINER_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

#include "protocol/spec.h"
#include "protocol/status.h"

#define COMMAND_MAX_SETS 64
#define COMMAND_MAX_ARGS 64

/* Options that every command takes; a command refuses those that mean nothing to it. */
typedef struct command_options {
    bool help, json;
    const char *set[COMMAND_MAX_SETS]; /* --set key=value, in order; --backend X is one too */
    int sets;
    const char *arg[COMMAND_MAX_ARGS]; /* positional */
    int args;
    /* train */
    bool dry_run;
    const char *attempt; /* --attempt FILE */
    /* others: --name value pairs, kept as given ("plot", "steps", …); NULL-value for flags */
    struct {
        const char *name, *value;
    } extra[16];
    int extras;
} command_options;

/* A command's own options, besides the common ones. */
typedef struct command_flag {
    const char *name; /* without "--" */
    bool takes_value;
} command_flag;

typedef struct command {
    const char *name, *summary;
    const char *help; /* usage, options, two examples */
    const command_flag *flags;
    int flag_count;
    status (*run)(const command_options *options, errbuf *err);
} command;

/* NULL, or the value ("" for a flag) of --name. */
const char *command_extra(const command_options *o, const char *name);

/* spec_init, the file at `path` ("-" = stdin, not in a world of several ranks), every --set in
 * order, spec_validate. */
CHECK_RESULT status command_load_spec(const command_options *o, const char *path, spec *ret_spec,
                                      errbuf *err);

/* All of standard input, at most max_bytes (longer: STATUS_BAD_INPUT); *ret_text has a NUL behind
 * ret_length bytes, the caller frees it. */
CHECK_RESULT status command_read_stdin(size_t max_bytes, char **ret_text, size_t *ret_length,
                                       errbuf *err);

extern const command command_train, command_eval, command_info, command_bench, command_metrics,
    command_compare;

#endif
