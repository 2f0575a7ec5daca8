/* Training a job: opening, where to begin, ending; see train.h. */
#include "trainer/train.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "protocol/file.h"
#include "protocol/json.h"
#include "protocol/sha256.h"
#include "trainer/net/report.h"
#include "trainer/placement.h"
#include "trainer/plan.h"

#define RESULT_MAX_BYTES (1 << 20)

/* ---- the state that a run begins from ---- */

/* What rank 0 found in the run folder, as every rank must know it. */
typedef struct resume_point {
    int32_t has_checkpoint, is_done;
    int64_t attempt;
    train_state state;
} resume_point;

typedef struct resume {
    resume_point at;
    char *path, *plan; /* of the checkpoint; path on rank 0 only */
} resume;

static void resume_fini(resume *r)
{
    free(r->path);
    free(r->plan);
}

static status allocate_host_state(train_run *run, errbuf *err)
{
    size_t params = (size_t)run->s.net->param_elements + 1;
    size_t running = (size_t)run->s.net->running_elements + 1;
    run->host.params = calloc(params, sizeof(float));
    run->host.momentum = calloc(params, sizeof(float));
    run->host.running = calloc(running, sizeof(float));
    if (!run->host.params || !run->host.momentum || !run->host.running)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for the parameters");
    return STATUS_OK;
}

static status read_checkpoint(train_run *run, const resume *r, errbuf *err)
{
    optim_state momentum = {"momentum", run->host.momentum};
    checkpoint c = {.net = run->s.net,
                    .params = run->host.params,
                    .running = run->host.running,
                    .optim = &momentum,
                    .optims = 1};
    TRY(checkpoint_read(&c, r->path, err));
    checkpoint_fini(&c);
    return STATUS_OK;
}

static status share_floats(comm *c, float *values, int64_t count, errbuf *err)
{
    return c->ops->broadcast(c, values, count * (int64_t)sizeof *values, 0, err);
}

static void free_host_state(train_run *run)
{
    free(run->host.params);
    free(run->host.running);
    free(run->host.momentum);
    run->host = (stepper_state){0};
}

/* Initial values, the same on every rank, or rank 0's checkpoint handed to all. */
static status load_state(train_run *run, const resume *r, errbuf *err)
{
    const net *n = run->s.net;
    TRY(comm_agree(run->comm, allocate_host_state(run, err), err));
    if (!r->at.has_checkpoint) {
        net_init_params(n, run->s.spec.train.seed, run->host.params, run->host.running);
        run->state = (train_state){.best_top1 = -1};
    } else {
        status st = run->comm->rank == 0 ? read_checkpoint(run, r, err) : STATUS_OK;
        TRY(comm_agree(run->comm, st, err));
        TRY(share_floats(run->comm, run->host.params, n->param_elements, err));
        TRY(share_floats(run->comm, run->host.momentum, n->param_elements, err));
        TRY(share_floats(run->comm, run->host.running, n->running_elements, err));
        run->state = r->at.state;
        if (run->has_folder) /* records are numbered on: an interrupted log is as a whole one */
            run->folder.next_seq = run->state.next_seq;
    }
    run->first_step = run->state.step;
    stepper_count_from(run->s.step, run->first_step);
    status st = stepper_upload(run->s.step, &run->host, err);
    if (run->comm->rank != 0) /* rank 0 needs them for checkpoints */
        free_host_state(run);
    return comm_agree(run->comm, st, err);
}

/* ---- the run folder (rank 0) ---- */

/* Prints the result of a job that has nothing left to train; false where there is none (the run
 * ended between its last checkpoint and its result). */
static bool print_done(train_run *run, const char *checkpoint_path)
{
    char *target = realpath(checkpoint_path, NULL), path[4096];
    char *slash = target ? strrchr(target, '/') : NULL;
    if (slash)
        *slash = '\0';
    snprintf(path, sizeof path, "%s/result.json", target ? target : run->s.spec.out);
    free(target);
    char *text = NULL;
    size_t length = 0;
    errbuf ignored = {0};
    if (file_read_all(path, RESULT_MAX_BYTES, &text, &length, &ignored) != STATUS_OK)
        return false;
    if (run->options->json)
        fwrite(text, 1, length, stdout);
    else
        printf("job %s is done already: %s\n", run->s.job_id, path);
    free(text);
    return true;
}

/* Is the job in `out` finished? Looked at before an attempt is made. */
static status find_done(train_run *run, resume *r, errbuf *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/last.safetensors", run->s.spec.out);
    if (run->options->attempt_path || access(path, R_OK) != 0)
        return STATUS_OK;
    checkpoint_head head = {0};
    errbuf ignored = {0};
    if (checkpoint_read_head(path, &head, &ignored) != STATUS_OK)
        return STATUS_OK; /* the search for a resume will say what is wrong with it */
    char *results = NULL;
    status st = spec_dump_results(&run->s.spec, &results, err);
    if (st == STATUS_OK && head.state.step == run->total_steps &&
        strcmp(results, head.results) == 0 && strcmp(run->s.data_hash, head.data_hash) == 0)
        r->at.is_done = print_done(run, path);
    free(results);
    checkpoint_head_fini(&head);
    return st;
}

static status open_folder(train_run *run, errbuf *err)
{
    char *json = NULL;
    if (run->has_attempt && strcmp(run->attempt.job, run->s.job_id) != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "--attempt is one of job %s, but this spec and its data are job %s: "
                          "the spec or the images have changed since it was submitted",
                          run->attempt.job, run->s.job_id);
    TRY(spec_dump(&run->s.spec, true, &json, err));
    status st;
    if (run->has_attempt)
        st = run_folder_open_attempt(&run->folder, run->attempt.folder, run->s.job_id,
                                     run->attempt.number, json, err);
    else
        st = run_folder_open(&run->folder, run->s.spec.out, run->s.job_id, json, err);
    free(json);
    run->has_folder = st == STATUS_OK;
    return st;
}

/* The newest valid checkpoint of an earlier attempt, judged against this job. */
static status find_resume(train_run *run, resume *r, errbuf *err)
{
    checkpoint_head head = {0};
    char *notes = NULL, *results = NULL;
    TRY(run_folder_find_checkpoint(&run->folder, &r->path, &r->at.attempt, &head, &notes, err));
    if (notes)
        progress_say(&run->progress, "%s", notes);
    free(notes);
    if (!r->path)
        return STATUS_OK;
    status st = spec_dump_results(&run->s.spec, &results, err);
    if (st == STATUS_OK)
        st = checkpoint_compare(results, run->s.data_hash, &head, r->path, err);
    if (st == STATUS_OK) {
        r->at.has_checkpoint = 1;
        r->at.state = head.state;
        r->plan = head.plan;
        head.plan = NULL;
    }
    free(results);
    checkpoint_head_fini(&head);
    return st;
}

static status find_beginning(train_run *run, resume *r, errbuf *err)
{
    status st = STATUS_OK;
    if (run->comm->rank == 0) {
        st = find_done(run, r, err);
        if (st == STATUS_OK && !r->at.is_done)
            st = open_folder(run, err);
        if (st == STATUS_OK && !r->at.is_done)
            st = find_resume(run, r, err);
    }
    TRY(comm_agree(run->comm, st, err));
    TRY(run->comm->ops->broadcast(run->comm, &r->at, sizeof r->at, 0, err));
    return plan_share(run->comm, &r->plan, err);
}

/* ---- plan of a resume (FORMATS 7, backend.on_plan_change) ---- */

static status judge_plan(train_run *run, resume *r, errbuf *err)
{
    if (!r->at.has_checkpoint || strcmp(r->plan, run->s.plan) == 0)
        return STATUS_OK;
    char *lines = NULL, shown[512];
    TRY(spec_diff_results(run->s.plan, r->plan, &lines, err));
    checkpoint_fold_diff(lines, shown, sizeof shown);
    free(lines);
    switch (run->s.spec.backend.on_plan_change) {
    case PLAN_CHANGE_CONTINUE:
        progress_say(&run->progress, "going on under another plan (%s): bits will differ", shown);
        return STATUS_OK;
    case PLAN_CHANGE_RESTART:
        progress_say(&run->progress, "the plan differs (%s): starting again from step 0", shown);
        r->at.has_checkpoint = 0;
        return STATUS_OK;
    default:
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "the checkpoint was made under another plan (%s): resume where it was "
                          "made, or set backend.on_plan_change to continue or restart",
                          shown);
    }
}

static status open_compute(train_run *run, resume *r, errbuf *err)
{
    bool follow = r->at.has_checkpoint && run->s.spec.backend.on_plan_change == PLAN_CHANGE_HOLD;
    status st = session_open_compute(&run->s, follow ? r->plan : NULL, true, err);
    if (st != STATUS_OK) {
        if (follow)
            errbuf_prefix(err, "following the checkpoint's plan");
        return st;
    }
    return comm_agree(run->comm, judge_plan(run, r, err), err); /* one plan: all judge alike */
}

/* ---- run.json and result.json ---- */

static cJSON *resumed_from(const resume *r)
{
    if (!r->at.has_checkpoint)
        return cJSON_CreateNull();
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "attempt", (double)r->at.attempt);
    cJSON_AddNumberToObject(o, "step", (double)r->at.state.step);
    cJSON_AddNumberToObject(o, "next_seq", (double)r->at.state.next_seq);
    return o;
}

static status write_run(train_run *run, const resume *r, errbuf *err)
{
    struct utsname host;
    uname(&host);
    cJSON *o = cJSON_CreateObject(), *plan = NULL;
    status st = json_parse(run->s.plan, strlen(run->s.plan), "plan", &plan, err);
    if (st != STATUS_OK) {
        cJSON_Delete(o);
        return st;
    }
    cJSON_AddItemToObject(o, "plan", plan);
    cJSON_AddStringToObject(o, "version", RINGMASTER_VERSION);
    cJSON_AddStringToObject(o, "revision", RINGMASTER_REVISION);
    cJSON_AddStringToObject(o, "host", host.nodename);
    cJSON_AddStringToObject(o, "system", host.release);
    cJSON_AddStringToObject(o, "backend", run->s.be->ops->name);
    cJSON_AddNumberToObject(o, "device", run->s.be->options.device);
    cJSON_AddNumberToObject(o, "ranks", run->comm->size);
    cJSON_AddNumberToObject(o, "threads", run->s.threads);
    cJSON_AddStringToObject(o, "data_hash", run->s.data_hash);
    cJSON_AddItemToObject(o, "resumed_from", resumed_from(r));
    st = run_folder_write_run(&run->folder, o, err);
    if (st == STATUS_OK && strcmp(run->s.spec.backend.plan, "tune") == 0) {
        char path[4096];
        snprintf(path, sizeof path, "%s/plan.json", run->folder.attempt_path);
        st = file_write_atomic(path, run->s.plan, strlen(run->s.plan), err);
    }
    cJSON_Delete(o);
    return st;
}

static void add_figures(cJSON *o, const train_run *run)
{
    if (run->has_final) {
        cJSON *f = cJSON_AddObjectToObject(o, "final");
        cJSON_AddNumberToObject(f, "top1", run->final.top1);
        cJSON_AddNumberToObject(f, "top5", run->final.top5);
        if (isfinite(run->final.loss))
            cJSON_AddNumberToObject(f, "loss", run->final.loss);
        else
            cJSON_AddNullToObject(f, "loss");
        cJSON_AddNumberToObject(f, "epoch", (double)run->final.epoch);
    }
    if (run->state.best_top1 >= 0) {
        cJSON *b = cJSON_AddObjectToObject(o, "best");
        cJSON_AddNumberToObject(b, "top1", run->state.best_top1);
        cJSON_AddNumberToObject(b, "epoch", (double)run->state.best_epoch);
        cJSON_AddNumberToObject(b, "step", (double)run->state.best_step);
    }
}

static void add_sizes(cJSON *o, const train_run *run)
{
    net_counts counts;
    net_count(run->s.net, &counts);
    cJSON_AddNumberToObject(o, "ring_size", (double)counts.ring);
    cJSON_AddNumberToObject(o, "ring_used", (double)counts.ring_used);
    cJSON_AddNumberToObject(o, "generated", (double)counts.generated);
    cJSON_AddNumberToObject(o, "dof", (double)counts.dof);
    cJSON_AddNumberToObject(o, "dense_params", (double)counts.dense_total);
    cJSON_AddNumberToObject(o, "wire_floats", (double)stepper_wire_floats(run->s.step));
}

static status write_result(train_run *run, status outcome, const errbuf *cause, errbuf *err)
{
    cJSON *o = cJSON_CreateObject();
    bool stopped = outcome == STATUS_INTERRUPTED || outcome == STATUS_TERMINATED;
    cJSON_AddStringToObject(o, "job", run->folder.job);
    cJSON_AddNumberToObject(o, "attempt", (double)run->folder.attempt);
    cJSON_AddStringToObject(o, "name", run->s.spec.name);
    cJSON_AddStringToObject(o, "outcome",
                            outcome == STATUS_OK ? "done" : (stopped ? "stopped" : "failed"));
    cJSON_AddNumberToObject(o, "exit_code", outcome);
    if (outcome != STATUS_OK && !stopped)
        cJSON_AddStringToObject(o, "error", cause->text);
    cJSON_AddNumberToObject(o, "last_seq", (double)(run->folder.next_seq - 1));
    cJSON_AddNumberToObject(o, "steps", (double)run->state.step);
    cJSON_AddNumberToObject(o, "epochs", (double)run->state.epoch);
    add_figures(o, run);
    double images = (double)((run->state.step - run->first_step) * run->s.spec.train.batch);
    double seconds = run->train_seconds;
    cJSON_AddNumberToObject(o, "images_per_second", seconds > 0 ? images / seconds : 0);
    cJSON_AddNumberToObject(o, "seconds", seconds);
    if (run->has_begun)
        add_sizes(o, run);
    if (run->last_checkpoint)
        cJSON_AddStringToObject(o, "checkpoint", strrchr(run->last_checkpoint, '/') + 1);
    status st = run_folder_write_result(&run->folder, o, err);
    if (st == STATUS_OK && run->options->json) {
        char *text = cJSON_Print(o);
        if (text)
            puts(text);
        free(text);
    }
    cJSON_Delete(o);
    return st;
}

static status link_checkpoints(train_run *run, errbuf *err)
{
    if (run->has_attempt)
        return STATUS_OK; /* the coordinator's, when it accepts the completion */
    char *best = NULL;
    if (run->state.best_top1 >= 0)
        TRY(run_folder_find_step(&run->folder, run->state.best_step, &best, err));
    status st = STATUS_OK;
    if (run->last_checkpoint || best)
        st = run_folder_link(&run->folder, run->last_checkpoint, best, err);
    free(best);
    return st;
}

/* ---- the run ---- */

static void say_beginning(train_run *run, const resume *r)
{
    const spec *sp = &run->s.spec;
    if (r->at.has_checkpoint)
        progress_say(&run->progress, "resumed from %s (step %lld of %lld)", r->path,
                     (long long)run->state.step, (long long)run->total_steps);
    net_counts counts;
    net_count(run->s.net, &counts);
    char weights[96] = "dense";
    if (counts.generated > 0)
        snprintf(weights, sizeof weights, "%lld generated weights from a ring of %lld",
                 (long long)counts.generated, (long long)counts.ring);
    progress_say(&run->progress,
                 "%s: %s, %s, DoF %lld; batch %lld on %d rank%s x %d thread%s, backend %s",
                 sp->name, run->s.net->name, weights, (long long)counts.dof,
                 (long long)sp->train.batch, run->comm->size, run->comm->size == 1 ? "" : "s",
                 run->s.threads, run->s.threads == 1 ? "" : "s", run->s.be->ops->name);
}

static void say_end(train_run *run)
{
    if (run->options->json || !run->has_folder)
        return;
    double images = (double)((run->state.step - run->first_step) * run->s.spec.train.batch);
    printf("%s: top-1 %.2f %% (best %.2f %% after epoch %lld), top-5 %.2f %%, loss %.4f, %.0f "
           "images/s, %s\n",
           run->s.spec.name, 100 * run->final.top1, 100 * run->state.best_top1,
           (long long)run->state.best_epoch, 100 * run->final.top5, run->final.loss,
           run->train_seconds > 0 ? images / run->train_seconds : 0, run->folder.attempt_path);
}

/* What a stop means for the exit code. All ranks get the same: rank 0's signal decides, or that
 * of the lowest rank that had one. */
static status stop_status(train_run *run, errbuf *err)
{
    status mine = run->stop_signal ? signals_status(run->stop_signal) : STATUS_OK;
    errbuf ignored = {0};
    status st = comm_agree(run->comm, mine, &ignored);
    if (st == STATUS_OK)
        st = STATUS_TERMINATED;
    return errbuf_set(err, st,
                      "stopped after step %lld of %lld, checkpoint written to %s; the same command "
                      "resumes",
                      (long long)run->state.step, (long long)run->total_steps,
                      run->last_checkpoint ? run->last_checkpoint : "the run folder");
}

static status train_and_end(train_run *run, const resume *r, errbuf *err)
{
    bool stopped = false;
    status st = run->has_folder ? write_run(run, r, err) : STATUS_OK;
    TRY(comm_agree(run->comm, st, err));
    if (run->comm->rank == 0)
        say_beginning(run, r);
    TRY(train_loop(run, &stopped, err));
    return stopped ? stop_status(run, err) : STATUS_OK;
}

/* What an agent finds where the run ended before it could open its attempt's folder. A folder that
 * holds anything already is of an attempt that ran, or of another job. */
static status write_early_result(const train_run *run, status outcome, const errbuf *cause,
                                 errbuf *err)
{
    const char *folder = run->attempt.folder;
    char path[4096], log[4096];
    snprintf(path, sizeof path, "%s/result.json", folder);
    snprintf(log, sizeof log, "%s/metrics.jsonl", folder);
    if (access(path, F_OK) == 0 || access(log, F_OK) == 0)
        return STATUS_OK;
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "job", run->attempt.job);
    cJSON_AddNumberToObject(o, "attempt", (double)run->attempt.number);
    cJSON_AddStringToObject(o, "outcome", "failed");
    cJSON_AddNumberToObject(o, "exit_code", outcome);
    cJSON_AddStringToObject(o, "error", cause->text);
    cJSON_AddNumberToObject(o, "last_seq", -1);
    cJSON_AddNumberToObject(o, "steps", 0);
    cJSON_AddNumberToObject(o, "epochs", 0);
    char *text = cJSON_Print(o);
    cJSON_Delete(o);
    if (!text)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory writing %s", path);
    status st = file_write_atomic(path, text, strlen(text), err);
    free(text);
    return st;
}

/* The end that every rank reaches: rank 0's result is durable before anybody leaves. */
static status finish(train_run *run, status outcome, errbuf *err)
{
    errbuf local = {0};
    status st = STATUS_OK;
    progress_end(&run->progress);
    if (run->has_folder) {
        st = link_checkpoints(run, &local);
        status wrote = write_result(run, outcome, err, &local);
        if (st == STATUS_OK)
            st = wrote;
    } else if (run->has_attempt && run->comm->rank == 0 && outcome != STATUS_OK) {
        st = write_early_result(run, outcome, err, &local);
    }
    attempt_progress_update(&run->beat, (uint64_t)run->state.step, ATTEMPT_FINISHED);
    st = comm_agree(run->comm, st, &local);
    if (outcome != STATUS_OK)
        return outcome;
    if (st != STATUS_OK)
        return errbuf_set(err, st, "%s", local.text);
    say_end(run);
    return STATUS_OK;
}

static status open_attempt(train_run *run, errbuf *err)
{
    if (!run->options->attempt_path)
        return STATUS_OK;
    TRY(attempt_load(run->options->attempt_path, &run->attempt, err));
    run->has_attempt = true;
    const attempt_file *a = &run->attempt;
    if (a->ranks != run->comm->size)
        return errbuf_set(err, STATUS_BAD_INPUT, "%s lists %d ranks, but %d are launched",
                          run->options->attempt_path, a->ranks, run->comm->size);
    const attempt_rank *me = &a->rank[run->comm->rank];
    if (me->cores > 0)
        TRY(placement_pin(me->core, me->cores, err));
    return attempt_progress_open(&run->beat, a->host_folder, me->local_rank,
                                 attempt_local_ranks(a, run->comm->rank), err);
}

/* A plan file that cannot be read is said before anything is made. */
static status check_plan_file(const train_run *run, const char *path, errbuf *err)
{
    char *text = NULL;
    if (run->comm->rank != 0 || strcmp(path, "default") == 0 || strcmp(path, "tune") == 0)
        return STATUS_OK;
    TRY(plan_load(path, &text, err));
    free(text);
    return STATUS_OK;
}

static status prepare(train_run *run, const spec *given, resume *r, errbuf *err)
{
    int threads = 0;
    TRY(comm_agree(run->comm, open_attempt(run, err), err));
    attempt_progress_update(&run->beat, 0, ATTEMPT_LOADING);
    if (run->has_attempt)
        threads = given->resources.threads > 0 ? (int)given->resources.threads
                                               : run->attempt.rank[run->comm->rank].cores;
    else
        TRY(placement_settle(run->comm, given->resources.threads, &threads, err));
    /* Alone there is nothing to keep yet, and reading the data may take long: a Ctrl-C ends it. */
    const bool is_alone = run->comm->size == 1 && !run->has_attempt;
    run->s.beat = &run->beat;
    if (run->has_attempt) {
        run->s.device = run->attempt.rank[run->comm->rank].device;
        run->s.seat = run->s.device < 0 ? SEAT_CPU : SEAT_DEVICE;
    }
    if (is_alone)
        signals_let_through(&run->signals);
    TRY(session_begin(&run->s, given, threads > 0 ? threads : 1, run->comm, &run->progress, err));
    TRY(session_open_data(&run->s, true, err));
    signals_hold(&run->signals); /* before threads that stay are started */
    TRY(session_open_net(&run->s, err));
    run->total_steps = run->s.spec.train.epochs * run->s.steps_per_epoch;
    TRY(comm_agree(run->comm, check_plan_file(run, run->s.spec.backend.plan, err), err));
    TRY(find_beginning(run, r, err));
    if (r->at.is_done)
        return STATUS_OK;
    TRY(open_compute(run, r, err));
    TRY(load_state(run, r, err));
    run->has_begun = true;
    return STATUS_OK;
}

static void close_run(train_run *run)
{
    if (run->has_folder)
        run_folder_close(&run->folder);
    session_close(&run->s);
    attempt_progress_close(&run->beat);
    if (run->has_attempt)
        attempt_fini(&run->attempt);
    free_host_state(run);
    free(run->last_checkpoint);
}

status train_job(const spec *given, const train_options *options, errbuf *err)
{
    comm *c = NULL;
    resume r = {0};
    train_run run = {
        .options = options, .signals = {.fd = -1}, .state = {.best_top1 = -1}, .last_loss = NAN};
    TRY(signals_open(&run.signals, err)); /* first: a launcher's library starts threads */
    status st = comm_open(&c, err);
    if (st != STATUS_OK) {
        signals_close(&run.signals);
        return st;
    }
    run.comm = c;
    progress_init(&run.progress, c->rank != 0, given->name);
    st = prepare(&run, given, &r, err);
    if (st == STATUS_OK && !r.at.is_done)
        st = train_and_end(&run, &r, err);
    if (!r.at.is_done)
        st = finish(&run, st, err);
    close_run(&run);
    resume_fini(&r);
    comm_close(&c);
    signals_close(&run.signals);
    return st;
}
