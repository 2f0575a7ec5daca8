/*
 * ringtrain compare: the table and the plot of several runs.
 */
#include <stdio.h>
#include <stdlib.h>

#include "trainer/command.h"
#include "trainer/compare.h"

static status print_table(const compare_table *t, bool json, errbuf *err)
{
    char *text = NULL;
    TRY(json ? compare_json(t, &text, err) : compare_text(t, &text, err));
    const int printed = printf(json ? "%s\n" : "%s", text);
    free(text);
    if (printed < 0 || fflush(stdout) != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "the table cannot be written to stdout");
    return STATUS_OK;
}

static status run_compare(const command_options *o, errbuf *err)
{
    if (o->sets > 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "--set and --backend mean nothing here: runs are read as they are");
    if (o->args == 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "no run folder given: ringtrain compare [--plot PREFIX] RUN...");
    compare_table t = {0};
    TRY(compare_load(o->arg, o->args, &t, err));
    status st = print_table(&t, o->json, err);
    const char *prefix = command_extra(o, "plot");
    if (st == STATUS_OK && prefix)
        st = compare_plot(&t, prefix, err);
    if (st == STATUS_OK && prefix)
        fprintf(stderr, "plots: %s.svg and %s.png\n", prefix, prefix);
    compare_fini(&t);
    return st;
}

static const command_flag flags[] = {{"plot", true}};

const command command_compare = {
    .name = "compare",
    .summary = "table and plot of runs: accuracy against degrees of freedom",
    .help = "Usage: ringtrain compare [--json] [--plot PREFIX] RUN...\n"
            "\n"
            "Prints one line a run, by DoF, of the newest result in its folder with an accuracy:\n"
            "ring size, DoF, their share of the dense network's, accuracy (the last epoch's and\n"
            "the best), images/s, and the bytes that every rank all-reduces a step.\n"
            "\n"
            "  --plot PREFIX  also draws PREFIX.svg and PREFIX.png (needs gnuplot)\n"
            "  --json         an array of objects instead of the table\n"
            "\n"
            "Examples:\n"
            "  ringtrain compare out/ring-4608 out/ring-36864 out/dense\n"
            "  ringtrain compare --plot accuracy out/*\n",
    .flags = flags,
    .flag_count = 1,
    .run = run_compare,
};
