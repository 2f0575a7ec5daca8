/* The training loop: steps, epochs, evaluation, checkpoints; see train.h. */
#include <cjson/cJSON.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/clock.h"
#include "trainer/schedule.h"
#include "trainer/train.h"

/* Ends a stretch that only rank 0 worked in: all ranks go on, or none does. */
static status settle(train_run *run, status mine, errbuf *err)
{
    return comm_agree(run->comm, mine, err);
}

static void beat(train_run *run, enum attempt_phase phase)
{
    attempt_progress_update(&run->beat, (uint64_t)run->state.step, phase);
}

/* A number that JSON can hold: a loss may be infinite. */
static void add_number(cJSON *o, const char *name, double value)
{
    if (isfinite(value))
        cJSON_AddNumberToObject(o, name, value);
    else
        cJSON_AddNullToObject(o, name);
}

static status record(train_run *run, const char *kind, cJSON *fields, errbuf *err)
{
    if (!run->has_folder) {
        cJSON_Delete(fields);
        return STATUS_OK;
    }
    return run_folder_record(&run->folder, kind, run->state.epoch, run->state.step, fields, err);
}

/* ---- checkpoints ---- */

static status write_checkpoint(train_run *run, errbuf *err)
{
    char *path = NULL, *results = NULL;
    status st = STATUS_OK;
    run->state.next_seq = run->folder.next_seq;
    optim_state momentum = {"momentum", run->host.momentum};
    checkpoint c = {
        .net = run->s.net,
        .params = run->host.params,
        .running = run->host.running,
        .optim = &momentum,
        .optims = 1,
        .state = run->state,
        .plan = run->s.plan,
    };
    memcpy(c.data_hash, run->s.data_hash, sizeof c.data_hash);
    TRY_GOTO(stepper_download(run->s.step, &run->host, err), st, cleanup);
    TRY_GOTO(spec_dump_results(&run->s.spec, &results, err), st, cleanup);
    c.results = results;
    TRY_GOTO(run_folder_sync(&run->folder, err), st, cleanup);
    TRY_GOTO(run_folder_checkpoint_path(&run->folder, run->state.step, &path, err), st, cleanup);
    TRY_GOTO(checkpoint_write(&c, path, err), st, cleanup);
    TRY_GOTO(run_folder_prune(&run->folder, run->state.best_step, err), st, cleanup);
    free(run->last_checkpoint);
    run->last_checkpoint = path;
    path = NULL;
cleanup:
    free(path);
    free(results);
    return st;
}

static status save(train_run *run, errbuf *err)
{
    beat(run, ATTEMPT_CHECKPOINTING);
    run->checkpoint_due = false;
    status st = run->has_folder ? write_checkpoint(run, err) : STATUS_OK;
    st = settle(run, st, err);
    if (st == STATUS_OK)
        run->saved_step = run->state.step;
    beat(run, ATTEMPT_TRAINING);
    return st;
}

/* ---- losses ---- */

static status collect(train_run *run, errbuf *err)
{
    return stepper_collect(run->s.step, &run->state.train, &run->last_loss, err);
}

/* Whether rank 0 was asked for a checkpoint by its control file: told to all. */
static status share_checkpoint_request(train_run *run, errbuf *err)
{
    int32_t asked = run->checkpoint_asked;
    TRY(run->comm->ops->broadcast(run->comm, &asked, sizeof asked, 0, err));
    run->checkpoint_asked = false;
    run->checkpoint_due |= asked != 0;
    return STATUS_OK;
}

static status log_step(train_run *run, double lr, errbuf *err)
{
    TRY(collect(run, err));
    cJSON *fields = cJSON_CreateObject();
    add_number(fields, "loss", run->last_loss);
    add_number(fields, "lr", lr);
    TRY(settle(run, record(run, "step", fields, err), err));
    return share_checkpoint_request(run, err);
}

/* ---- signals ---- */

/* Whether this rank wants to stop. */
static bool poll_signals(train_run *run)
{
    int signal = signals_poll(&run->signals);
    if (signal == 0)
        return run->stop_signal != 0;
    attempt_control control = ATTEMPT_STOP;
    errbuf unreadable = {0};
    if (signal == SIGUSR1 && run->has_attempt &&
        attempt_control_read(run->attempt.host_folder, &control, &unreadable) == STATUS_OK &&
        control == ATTEMPT_CHECKPOINT) {
        run->checkpoint_asked = true;
        return false;
    }
    run->stop_signal = signal;
    signals_let_through(&run->signals);
    progress_say(&run->progress, "stopping after this step (Ctrl-C again ends at once)");
    return true;
}

/* ---- evaluation ---- */

static void report_evaluation(void *ctx, int64_t done, int64_t total)
{
    train_run *run = ctx;
    beat(run, ATTEMPT_EVALUATING);
    poll_signals(run);
    progress_phase(&run->progress, "evaluating, shard", done, total);
}

status train_evaluate(train_run *run, feed *f, eval_figures *ret, errbuf *err)
{
    sample_sums sums = {0};
    TRY(stepper_evaluate(run->s.step, f, &sums, report_evaluation, run, err));
    double count = (double)sums.count;
    *ret = (eval_figures){
        .top1 = (double)sums.top1 / count,
        .top5 = (double)sums.top5 / count,
        .loss = sums.loss / count,
        .images = sums.count,
        .epoch = run->state.epoch,
        .skipped = sums.skipped,
    };
    return STATUS_OK;
}

static status record_evaluation(train_run *run, const char *split, const eval_figures *f,
                                errbuf *err)
{
    cJSON *fields = cJSON_CreateObject();
    cJSON_AddStringToObject(fields, "split", split);
    add_number(fields, "loss", f->loss);
    add_number(fields, "top1", f->top1);
    add_number(fields, "top5", f->top5);
    cJSON_AddNumberToObject(fields, "images", (double)f->images);
    cJSON_AddNumberToObject(fields, "skipped", (double)f->skipped);
    return record(run, "eval", fields, err);
}

/* Evaluates after an epoch; *ret_improved = a new best. */
static status evaluate_epoch(train_run *run, bool *ret_improved, errbuf *err)
{
    TRY(train_evaluate(run, run->s.eval, &run->final, err));
    run->has_final = true;
    TRY(settle(run, record_evaluation(run, "validation", &run->final, err), err));
    if (run->s.clean) {
        eval_figures clean;
        TRY(train_evaluate(run, run->s.clean, &clean, err));
        TRY(settle(run, record_evaluation(run, "train", &clean, err), err));
    }
    *ret_improved = run->final.top1 > run->state.best_top1;
    if (*ret_improved) {
        run->state.best_top1 = run->final.top1;
        run->state.best_step = run->state.step;
        run->state.best_epoch = run->state.epoch;
    }
    return STATUS_OK;
}

/* ---- epochs ---- */

static status record_epoch(train_run *run, errbuf *err)
{
    train_state *s = &run->state;
    const sample_sums *sums = &s->train;
    double count = (double)sums->count, seconds = clock_seconds() - run->epoch_began;
    int64_t steps = s->step - run->epoch_first_step;
    cJSON *fields = cJSON_CreateObject();
    add_number(fields, "loss", sums->loss / count);
    add_number(fields, "top1", (double)sums->top1 / count);
    add_number(fields, "top5", (double)sums->top5 / count);
    add_number(fields, "skipped", (double)sums->skipped);
    add_number(fields, "seconds", seconds);
    add_number(fields, "images_per_second",
               (double)(steps * run->s.spec.train.batch) / (seconds > 0 ? seconds : 1));
    add_number(fields, "loader_waited", feed_waited(run->s.train));
    return record(run, "epoch", fields, err);
}

static void say_epoch(train_run *run, const sample_sums *train, bool evaluated)
{
    char validation[96] = "", skipped[64] = "";
    const double count = (double)train->count;
    if (train->skipped > 0)
        snprintf(skipped, sizeof skipped, "  %lld damaged images replaced",
                 (long long)train->skipped);
    if (evaluated)
        snprintf(validation, sizeof validation, "  validation top-1 %.2f %%  loss %.3f",
                 100 * run->final.top1, run->final.loss);
    progress_say(&run->progress, "epoch %lld/%lld  train loss %.3f  top-1 %.2f %%%s%s",
                 (long long)run->state.epoch, (long long)run->s.spec.train.epochs,
                 train->loss / count, 100 * (double)train->top1 / count, validation, skipped);
}

static status begin_epoch(train_run *run, errbuf *err)
{
    int64_t spe = run->s.steps_per_epoch;
    run->epoch_began = clock_seconds();
    run->epoch_first_step = run->state.step;
    return feed_start(run->s.train, run->state.step / spe, run->state.step % spe, err);
}

static status end_epoch(train_run *run, errbuf *err)
{
    const spec *sp = &run->s.spec;
    train_state *s = &run->state;
    s->epoch++;
    run->train_seconds += clock_seconds() - run->epoch_began;
    if (stepper_pending(run->s.step) > 0)
        TRY(collect(run, err));
    TRY(settle(run, record_epoch(run, err), err));
    const sample_sums train = s->train;
    s->train = (sample_sums){0};
    bool is_last = s->step == run->total_steps, improved = false;
    bool evaluates = is_last || s->epoch % sp->train.eval_every == 0;
    if (evaluates)
        TRY(evaluate_epoch(run, &improved, err));
    say_epoch(run, &train, evaluates);
    bool every = sp->train.checkpoint_every > 0;
    bool due = every ? s->step % sp->train.checkpoint_every == 0 : evaluates;
    if (due || improved || is_last || run->checkpoint_due)
        TRY(save(run, err));
    return is_last ? STATUS_OK : begin_epoch(run, err);
}

/* ---- the loop ---- */

static status one_step(train_run *run, bool *ret_stop, errbuf *err)
{
    const spec *sp = &run->s.spec;
    train_state *s = &run->state;
    bool stop = poll_signals(run);
    TRY(stepper_ready(run->s.step, ret_stop, err));
    if (*ret_stop)
        return stepper_pending(run->s.step) > 0 ? collect(run, err) : STATUS_OK;
    double lr = schedule_lr(sp, s->step, run->s.steps_per_epoch);
    TRY(stepper_run(run->s.step, run->s.train, lr, stop, err));
    s->step++;
    beat(run, ATTEMPT_TRAINING);
    progress_step(&run->progress, s->step - 1, run->last_loss);
    bool is_epoch_end = s->step % run->s.steps_per_epoch == 0;
    if (s->step % sp->train.log_every == 0)
        TRY(log_step(run, lr, err));
    if (is_epoch_end)
        return end_epoch(run, err);
    bool due = sp->train.checkpoint_every > 0 && s->step % sp->train.checkpoint_every == 0;
    due |= run->checkpoint_due;
    if ((due || stepper_pending(run->s.step) == STEP_MAX_PENDING) &&
        stepper_pending(run->s.step) > 0)
        TRY(collect(run, err));
    return due ? save(run, err) : STATUS_OK;
}

status train_loop(train_run *run, bool *ret_stopped, errbuf *err)
{
    bool stop = false;
    progress_start(&run->progress, run->s.spec.train.epochs, run->s.steps_per_epoch,
                   run->s.spec.train.batch, run->first_step);
    if (run->state.step < run->total_steps)
        TRY(begin_epoch(run, err));
    while (run->state.step < run->total_steps && !stop)
        TRY(one_step(run, &stop, err));
    progress_end(&run->progress);
    *ret_stopped = stop && run->state.step < run->total_steps;
    if (*ret_stopped) {
        run->train_seconds += clock_seconds() - run->epoch_began;
        return run->saved_step == run->state.step ? STATUS_OK : save(run, err);
    }
    if (run->has_final)
        return STATUS_OK;
    /* The checkpoint that this attempt began from was the last: it needs a result beside it. */
    TRY(train_evaluate(run, run->s.eval, &run->final, err));
    run->has_final = true;
    return save(run, err);
}
