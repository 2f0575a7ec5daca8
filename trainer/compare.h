/*
 * Finished runs side by side (ringtrain compare): what each run folder's job.json and result.json
 * say, as a table, as JSON, and as a plot of accuracy against degrees of freedom.
 *
 * It reads files only, so that runs of other machines and versions can be compared.
 */
#ifndef RINGMASTER_TRAINER_COMPARE_H
#define RINGMASTER_TRAINER_COMPARE_H

#include <stdint.h>
#include <stdio.h>

#include "protocol/status.h"

/* One run, from its newest attempt that measured its accuracy at the end of an epoch; where none
 * did, from the one that got furthest. */
typedef struct compare_run {
    char *path;        /* as given */
    char *name;        /* the spec's name, else the folder's own */
    char outcome[32];  /* "done", or why it stopped earlier */
    int64_t ring_size; /* sum of N over rings, 0 = a dense network */
    int64_t dof;       /* backbone (DESIGN, Vocabulary) */
    int64_t dense_dof; /* of the dense network of the same shape, counted the same way */
    int64_t epochs;    /* done */
    double top1;       /* 0..1, validation at the last epoch; -1 = never measured */
    double best_top1;  /* the same, at its best */
    double images_per_second;
    int64_t wire_bytes; /* all-reduced a step, by each rank */
} compare_run;

typedef struct compare_table {
    compare_run *run; /* by DoF, ascending */
    int runs;
} compare_table;

/* Reads every folder. One without a result, or with a damaged one: STATUS_BAD_INPUT naming it. */
CHECK_RESULT status compare_load(const char *const *paths, int count, compare_table *ret,
                                 errbuf *err);
void compare_fini(compare_table *t); /* NULL-safe, idempotent */

/* The table for people; an array of objects for machines. Callers free. */
CHECK_RESULT status compare_text(const compare_table *t, char **ret_text, errbuf *err);
CHECK_RESULT status compare_json(const compare_table *t, char **ret_text, errbuf *err);

/* How compare_plot draws. */
typedef enum compare_format {
    COMPARE_SVG,
    COMPARE_PNG
} compare_format;

/* The gnuplot program that draws the table to gnuplot's stdout. Names are reduced to harmless
 * characters: nothing of a run can become a command. Caller frees. */
CHECK_RESULT status compare_script(const compare_table *t, compare_format format, char **ret_text,
                                   errbuf *err);

/* Writes prefix.svg and prefix.png, each whole or not at all. gnuplot missing or failing:
 * STATUS_ENVIRONMENT. */
CHECK_RESULT status compare_plot(const compare_table *t, const char *prefix, errbuf *err);

#endif
