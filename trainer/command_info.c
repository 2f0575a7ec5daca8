/*
 * ringtrain info: what a job's network costs, before anything is trained: generated weights, ring
 * sizes, DoF, MACs, memory, bytes on the wire. It also answers the coordinator: --stdin for all
 * cells of a sweep in one process, --signature for a seat's part of the plan's signature.
 */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/json.h"
#include "protocol/json_canonical.h"
#include "protocol/sha256.h"
#include "protocol/strbuf.h"
#include "trainer/command.h"
#include "trainer/net/builders.h"
#include "trainer/net/memory_check.h"
#include "trainer/net/report.h"
#include "trainer/session.h"

#define STDIN_MAX_BYTES ((size_t)256 << 20)

static status print_text(const char *text, errbuf *err)
{
    if (fputs(text, stdout) < 0 || fflush(stdout) != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "the report cannot be written to stdout");
    return STATUS_OK;
}

/* Indented: people read it too. */
static status print_json(const cJSON *json, errbuf *err)
{
    char *text = cJSON_Print(json);
    if (!text)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a report");
    status st = print_text(text, err);
    cJSON_free(text);
    return st == STATUS_OK ? print_text("\n", err) : st;
}

/* ---- one job ---- */

static status print_job_json(const spec *s, const net *n, const net_memory *m, errbuf *err)
{
    cJSON *report = NULL, *memory = NULL;
    TRY(net_report_json(n, &report, err));
    status st = net_memory_json(m, &memory, err);
    if (st == STATUS_OK &&
        (!cJSON_AddNumberToObject(report, "workers", (double)s->resources.workers) ||
         !cJSON_AddNumberToObject(report, "shard", (double)s->train.shard) ||
         !cJSON_AddItemToObject(report, "memory", memory))) {
        cJSON_Delete(memory);
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a report");
    }
    if (st == STATUS_OK)
        st = print_json(report, err);
    cJSON_Delete(report);
    return st;
}

/* A resolved job, as a table or as JSON. */
static status print_job(const spec *s, bool json, errbuf *err)
{
    net *n = NULL;
    net_memory m;
    char *text = NULL;
    TRY(net_build(s, &n, err));
    status st = net_estimate_memory(n, (int)s->train.shard, memory_lanes(s, false), &m, err);
    if (st == STATUS_OK && json) {
        st = print_job_json(s, n, &m, err);
    } else if (st == STATUS_OK) {
        st = net_report_text(n, &m, &text, err);
        if (st == STATUS_OK)
            st = print_text(text, err);
        free(text);
    }
    net_destroy(&n);
    return st;
}

static status run_job(const command_options *o, errbuf *err)
{
    spec s;
    if (o->args != 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "one SPEC.json is needed (got %d); see `ringtrain info --help`", o->args);
    TRY(command_load_spec(o, o->arg[0], &s, err));
    /* as a world of the size that the spec asks for would resolve it */
    int world = s.resources.workers > 0 ? (int)s.resources.workers : 1;
    int threads = s.resources.threads > 0 ? (int)s.resources.threads : 1;
    status st = session_resolve_spec(&s, world, threads, err);
    if (st == STATUS_OK)
        st = print_job(&s, o->json, err);
    spec_fini(&s);
    return st;
}

/* ---- --stdin: a sweep's cells ---- */

/* Parses one cell and fills in what its network depends on; data that the spec does not need is
 * not looked for: the coordinator's host may not have it. */
static status load_cell(const cJSON *json, const command_options *o, spec *s, errbuf *err)
{
    strbuf b = {0};
    char *text = NULL;
    json_add_value(&b, json);
    size_t length = b.length;
    TRY(strbuf_take(&b, &text, err));
    status st = spec_parse(s, text, length, "spec", err);
    free(text);
    TRY(st);
    for (int i = 0; i < o->sets; i++)
        TRY(spec_set(s, o->set[i], err));
    TRY(spec_validate(s, err));
    if (s->model.classes == 0 || s->data.size == 0)
        TRY(spec_resolve_data(s, err));
    return spec_resolve_rings(s, err);
}

static status add_cell(const cJSON *json, const command_options *o, strbuf *out, errbuf *err)
{
    spec s;
    net *n = NULL;
    cJSON *summary = NULL;
    TRY(spec_init(&s, err));
    status st = load_cell(json, o, &s, err);
    if (st == STATUS_OK)
        st = net_build(&s, &n, err);
    if (st == STATUS_OK)
        st = net_summary_json(n, &summary, err);
    if (st == STATUS_OK)
        json_add_value(out, summary);
    cJSON_Delete(summary);
    net_destroy(&n);
    spec_fini(&s);
    return st;
}

/* All or nothing: a report is printed once every cell has one. */
static status add_cells(const cJSON *cells, const command_options *o, strbuf *out, errbuf *err)
{
    int number = 0;
    const cJSON *cell;
    if (!cJSON_IsArray(cells) && !cJSON_IsObject(cells))
        return errbuf_set(err, STATUS_BAD_INPUT, "stdin: expected a spec or an array of them");
    strbuf_add(out, "[");
    if (cJSON_IsObject(cells))
        TRY(add_cell(cells, o, out, err));
    for (cell = cJSON_IsArray(cells) ? cells->child : NULL; cell; cell = cell->next) {
        strbuf_add(out, number == 0 ? "" : ",\n");
        status st = add_cell(cell, o, out, err);
        if (st != STATUS_OK) {
            errbuf_prefix(err, "stdin[%d]", number);
            return st;
        }
        number++;
    }
    strbuf_add(out, "]\n");
    return STATUS_OK;
}

static status run_stdin(const command_options *o, errbuf *err)
{
    strbuf out = {0};
    char *text = NULL, *report = NULL;
    size_t length;
    cJSON *cells = NULL;
    if (o->args != 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "--stdin takes no file, got '%s'", o->arg[0]);
    TRY(command_read_stdin(STDIN_MAX_BYTES, &text, &length, err));
    status st = json_parse(text, length, "stdin", &cells, err);
    free(text);
    if (st == STATUS_OK)
        st = add_cells(cells, o, &out, err);
    cJSON_Delete(cells);
    if (st == STATUS_OK)
        st = strbuf_take(&out, &report, err);
    strbuf_fini(&out);
    if (st == STATUS_OK)
        st = print_text(report, err);
    free(report);
    return st;
}

/* ---- --signature: a seat's part of the plan signature (FORMATS 7) ---- */

/* What identifies a seat: the backend's description less what depends on the job (lanes, and the
 * algorithms that it has chosen for shapes). */
static status seat_json(backend *be, cJSON **ret, errbuf *err)
{
    cJSON *seat = NULL;
    TRY(be->ops->describe(be, &seat, err));
    cJSON_DeleteItemFromObjectCaseSensitive(seat, "lanes");
    cJSON *next;
    for (cJSON *item = seat->child; item; item = next) {
        next = item->next;
        if (cJSON_IsObject(item) || cJSON_IsArray(item))
            cJSON_Delete(cJSON_DetachItemViaPointer(seat, item));
    }
    if (!cJSON_GetObjectItemCaseSensitive(seat, "threads") &&
        !cJSON_AddNumberToObject(seat, "threads", be->options.threads)) {
        cJSON_Delete(seat);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a report");
    }
    *ret = seat;
    return STATUS_OK;
}

static status sign_seat(cJSON *seat, errbuf *err)
{
    char *text = NULL, hex[SHA256_HEX_SIZE];
    sha256 hash;
    TRY(json_canonical(seat, &text, err));
    sha256_init(&hash);
    sha256_update(&hash, text, strlen(text));
    sha256_final_hex(&hash, hex);
    free(text);
    if (!cJSON_AddStringToObject(seat, "signature", hex))
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a report");
    return STATUS_OK;
}

static status print_seat(const cJSON *seat, bool json, errbuf *err)
{
    if (json)
        return print_json(seat, err);
    const cJSON *item;
    cJSON_ArrayForEach (item, seat) {
        strbuf value = {0};
        char *text = NULL;
        if (cJSON_IsString(item))
            strbuf_add(&value, item->valuestring);
        else
            json_add_value(&value, item);
        TRY(strbuf_take(&value, &text, err));
        printf("%-12s %s\n", item->string, text);
        free(text);
    }
    return print_text("", err);
}

/* backend.name and resources.threads come from --set, --backend and, where given, a spec. */
static status signature_spec(const command_options *o, spec *ret, errbuf *err)
{
    spec s;
    if (o->args > 0)
        return command_load_spec(o, o->arg[0], ret, err);
    TRY(spec_init(&s, err));
    status st = STATUS_OK;
    for (int i = 0; i < o->sets && st == STATUS_OK; i++)
        st = spec_set(&s, o->set[i], err);
    if (st != STATUS_OK) {
        spec_fini(&s);
        return st;
    }
    *ret = s;
    return STATUS_OK;
}

static status run_signature(const command_options *o, errbuf *err)
{
    spec s;
    backend *be = NULL;
    cJSON *seat = NULL;
    if (o->args > 1)
        return errbuf_set(err, STATUS_BAD_INPUT, "--signature takes at most one SPEC.json");
    TRY(signature_spec(o, &s, err));
    backend_options options = {.threads = s.resources.threads > 0 ? (int)s.resources.threads : 1,
                               .lanes = 1};
    const char *name = spec_find_field("backend.name")->names[s.backend.name];
    status st = backend_open(name, &options, &be, err);
    spec_fini(&s);
    if (st == STATUS_OK)
        st = seat_json(be, &seat, err);
    if (st == STATUS_OK)
        st = sign_seat(seat, err);
    if (st == STATUS_OK)
        st = print_seat(seat, o->json, err);
    cJSON_Delete(seat);
    if (be)
        be->ops->close(be);
    return st;
}

/* ---- the command ---- */

static status run_info(const command_options *o, errbuf *err)
{
    bool is_stdin = command_extra(o, "stdin"), is_signature = command_extra(o, "signature");
    if (is_stdin && is_signature)
        return errbuf_set(err, STATUS_BAD_INPUT, "--stdin and --signature exclude each other");
    if (is_stdin)
        return run_stdin(o, err);
    return is_signature ? run_signature(o, err) : run_job(o, err);
}

static const command_flag flags[] = {{"stdin", false}, {"signature", false}};

const command command_info = {
    .name = "info",
    .summary = "what a job's network costs: weights, rings, DoF, MACs, memory, bytes on the wire",
    .help = "Usage: ringtrain info SPEC.json [options]\n"
            "       ringtrain info --stdin [options]\n"
            "       ringtrain info --signature [SPEC.json] [options]\n"
            "\n"
            "Prints, per conv kernel and in total, the generated weights M, the ring sizes N,\n"
            "degrees of freedom, direct parameters, MACs, the memory of a rank in training, and\n"
            "the bytes that a step all-reduces against those of the dense network. Nothing is\n"
            "trained, and a ring may be larger than this machine's memory.\n"
            "\n"
            "  --stdin           read one spec or an array of them, print an array of totals\n"
            "  --signature       print what of the plan depends on this machine, and its hash\n"
            "\n"
            "Examples:\n"
            "  ringtrain info job.json --set rpg.size=36864\n"
            "  ringtrain info --stdin < cells.json\n"
            "  ringtrain info --signature --json --set resources.threads=2\n",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .run = run_info,
};
