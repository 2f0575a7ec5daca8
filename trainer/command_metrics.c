/*
 * `ringtrain metrics DIR`: the metric log of a run folder, its attempts' logs read as one.
 */
#include <stdio.h>

#include "trainer/command.h"
#include "trainer/run_folder.h"

static status run(const command_options *o, errbuf *err)
{
    if (o->args != 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "metrics: wants one run folder, got %d; see ringtrain metrics --help",
                          o->args);
    if (o->sets > 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "metrics: --set means nothing here");
    return run_folder_print_metrics(o->arg[0], stdout, err);
}

const command command_metrics = {
    .name = "metrics",
    .summary = "print the metric log of a run, over all its attempts",
    .help = "usage: ringtrain metrics DIR\n"
            "\n"
            "Prints the metric log of the run folder DIR (the job's `out`) to stdout, one JSON\n"
            "object a line: the newest attempt and those that it was resumed from, without the\n"
            "records that were repeated after a resume and without a torn last line.\n"
            "\n"
            "options:\n"
            "  --json    accepted; the output is JSON lines with and without it\n"
            "  --help    this text\n"
            "\n"
            "examples:\n"
            "  ringtrain metrics runs/first\n"
            "  ringtrain metrics runs/first | grep '\"kind\":\"eval\"'\n",
    .run = run,
};
