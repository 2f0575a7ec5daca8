/* `ringtrain train`: one job, from its spec to result.json. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/comm.h"
#include "trainer/command.h"
#include "trainer/placement.h"
#include "trainer/train.h"

static const command_flag flags[] = {
    {"dry-run", false}, {"attempt", true}, {"fields", false}, {"schema", false}};

/* Resolves as a run would and prints the spec; touches nothing. */
static status dry_run(const spec *given, errbuf *err)
{
    comm *c = NULL;
    char *text = NULL;
    spec s;
    TRY(comm_open(&c, err));
    int threads = 0;
    status st = placement_settle(c, given->resources.threads, &threads, err);
    if (st == STATUS_OK)
        st = spec_copy(given, &s, err);
    if (st == STATUS_OK) {
        st = session_resolve_spec(&s, c->size, threads, err);
        if (st == STATUS_OK)
            st = spec_dump(&s, true, &text, err);
        spec_fini(&s);
    }
    st = comm_agree(c, st, err);
    if (st == STATUS_OK && c->rank == 0)
        puts(text);
    free(text);
    comm_close(&c);
    return st;
}

static status print_text(status (*make)(char **, errbuf *), errbuf *err)
{
    char *text = NULL;
    TRY(make(&text, err));
    fputs(text, stdout);
    free(text);
    return STATUS_OK;
}

static status run(const command_options *o, errbuf *err)
{
    if (command_extra(o, "fields"))
        return print_text(spec_help, err);
    if (command_extra(o, "schema"))
        return print_text(spec_schema, err);
    if (o->args != 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "one SPEC.json is needed (got %d); see `ringtrain train --help`",
                          o->args);
    spec s;
    TRY(command_load_spec(o, o->arg[0], &s, err));
    train_options options = {.attempt_path = command_extra(o, "attempt"), .json = o->json};
    status st = command_extra(o, "dry-run") ? dry_run(&s, err) : train_job(&s, &options, err);
    spec_fini(&s);
    return st;
}

const command command_train = {
    .name = "train",
    .summary = "train one job, alone or under mpirun; run again to resume",
    .help = "Usage: ringtrain train SPEC.json [options]\n"
            "\n"
            "Trains the network that SPEC.json (- for standard input) describes, into its run\n"
            "folder `out`: job.json, attempt-<n>/{run.json, metrics.jsonl, ckpt-*.safetensors,\n"
            "result.json}, and links last.safetensors and best.safetensors. A run that was\n"
            "stopped or killed goes on from its newest checkpoint when it is started again.\n"
            "\n"
            "  --dry-run         check and resolve the spec, print it, train nothing\n"
            "  --attempt FILE    run as the attempt that an agent prepared\n"
            "  --fields          list every field of a spec\n"
            "  --schema          print the spec's JSON Schema\n"
            "\n"
            "Examples:\n"
            "  ringtrain train job.json --set rpg.size=36864 --set out=runs/a\n"
            "  mpirun -np 2 ringtrain train job.json\n",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .run = run,
};
