/* `ringtrain eval`: a checkpoint's accuracy on the validation (or training) set. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/strbuf.h"
#include "trainer/checkpoint.h"
#include "trainer/command.h"
#include "trainer/placement.h"
#include "trainer/session.h"

static const command_flag flags[] = {{"split", true}};

/* A run folder means its best checkpoint, or its last where there is no best. */
static status find_file(const char *path, char *file, size_t size, errbuf *err)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: no such checkpoint or run folder", path);
    if (!S_ISDIR(info.st_mode)) {
        snprintf(file, size, "%s", path);
        return STATUS_OK;
    }
    static const char *const links[] = {"best.safetensors", "last.safetensors"};
    for (int i = 0; i < 2; i++) {
        snprintf(file, size, "%s/%s", path, links[i]);
        if (stat(file, &info) == 0)
            return STATUS_OK;
    }
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "%s holds neither best.safetensors nor last.safetensors: name a "
                      "checkpoint, e.g. %s/attempt-1/ckpt-<step>.safetensors",
                      path, path);
}

/* Where the job.json of a checkpoint's run lies: beside it, or, for one in an attempt's folder,
 * above that; links are followed first. "" = it lies in no run folder. */
static void find_job(const char *file, char *job, size_t size)
{
    job[0] = '\0';
    char *folder = realpath(file, NULL);
    char *slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) {
        *slash = '\0';
        slash = strrchr(folder, '/');
        if (slash && strncmp(slash + 1, "attempt-", 8) == 0)
            *slash = '\0';
        int length = snprintf(job, size, "%s/job.json", folder);
        if (length < 0 || (size_t)length >= size || access(job, F_OK) != 0)
            job[0] = '\0';
    }
    free(folder);
}

/* A checkpoint holds only what affects results: where the images lie is in its run's job.json. */
static status take_data_path(spec *s, const char *file, errbuf *err)
{
    char path[4096], *copy = NULL;
    spec job;
    if (s->data.kind == DATA_SYNTHETIC || s->data.path[0] != '\0')
        return STATUS_OK;
    find_job(file, path, sizeof path);
    if (path[0] == '\0')
        return STATUS_OK;
    TRY(spec_init(&job, err));
    status st = spec_load(&job, path, err);
    if (st == STATUS_OK && job.data.kind == s->data.kind)
        st = string_copy(job.data.path, &copy, err);
    if (st == STATUS_OK && copy) {
        free(s->data.path);
        s->data.path = copy;
    }
    spec_fini(&job);
    return st;
}

/* The spec that the checkpoint was made with, with what the user set on top. */
static status load_spec(const command_options *o, const checkpoint_head *head, const char *file,
                        spec *ret, errbuf *err)
{
    spec s;
    TRY(spec_init(&s, err));
    status st = spec_parse(&s, head->results, strlen(head->results), file, err);
    for (int i = 0; i < o->sets && st == STATUS_OK; i++)
        st = spec_set(&s, o->set[i], err);
    if (st == STATUS_OK)
        st = take_data_path(&s, file, err);
    if (st != STATUS_OK) {
        spec_fini(&s);
        return st;
    }
    s.train.train_eval = false;
    s.resources.workers = 0;
    *ret = s;
    return STATUS_OK;
}

static status upload(session *s, const char *file, errbuf *err)
{
    stepper_state host = {
        .params = calloc((size_t)s->net->param_elements + 1, sizeof(float)),
        .running = calloc((size_t)s->net->running_elements + 1, sizeof(float)),
        .momentum = calloc((size_t)s->net->param_elements + 1, sizeof(float)),
    };
    status st = STATUS_OK;
    if (!host.params || !host.running || !host.momentum) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for the parameters");
    } else {
        optim_state momentum = {"momentum", host.momentum};
        checkpoint c = {.net = s->net,
                        .params = host.params,
                        .running = host.running,
                        .optim = &momentum,
                        .optims = 1};
        st = checkpoint_read(&c, file, err);
        if (st == STATUS_OK)
            checkpoint_fini(&c);
    }
    if (st == STATUS_OK)
        st = stepper_upload(s->step, &host, err);
    free(host.params);
    free(host.running);
    free(host.momentum);
    return st;
}

static void print_figures(const command_options *o, const char *file, const char *split,
                          const checkpoint_head *head, const sample_sums *sums)
{
    double count = (double)sums->count, loss = sums->loss / count;
    double top1 = (double)sums->top1 / count, top5 = (double)sums->top5 / count;
    if (!o->json) {
        printf("%s, step %lld, %s: top-1 %.2f %%, top-5 %.2f %%, loss %.4f over %lld images\n",
               file, (long long)head->state.step, split, 100 * top1, 100 * top5, loss,
               (long long)sums->count);
        if (sums->skipped > 0)
            printf("%lld damaged images were replaced by others (data.on_error)\n",
                   (long long)sums->skipped);
        return;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "checkpoint", file);
    cJSON_AddStringToObject(json, "split", split);
    cJSON_AddNumberToObject(json, "step", (double)head->state.step);
    cJSON_AddNumberToObject(json, "epoch", (double)head->state.epoch);
    cJSON_AddNumberToObject(json, "top1", top1);
    cJSON_AddNumberToObject(json, "top5", top5);
    if (isfinite(loss))
        cJSON_AddNumberToObject(json, "loss", loss);
    else
        cJSON_AddNullToObject(json, "loss");
    cJSON_AddNumberToObject(json, "images", (double)sums->count);
    cJSON_AddNumberToObject(json, "skipped", (double)sums->skipped);
    char *text = cJSON_Print(json);
    if (text)
        puts(text);
    free(text);
    cJSON_Delete(json);
}

static void report(void *ctx, int64_t done, int64_t total)
{
    progress_phase(ctx, "evaluating, shard", done, total);
}

static status evaluate(const command_options *o, session *s, const char *file,
                       const checkpoint_head *head, errbuf *err)
{
    const char *split = command_extra(o, "split") ? command_extra(o, "split") : "validation";
    bool on_train = strcmp(split, "train") == 0;
    if (!on_train && strcmp(split, "validation") != 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "--split %s: validation or train is expected",
                          split);
    s->spec.train.train_eval = on_train;
    TRY(session_open_net(s, err)); /* before a training set is open: nothing is trained */
    TRY(session_open_data(s, on_train, err));
    TRY(session_open_compute(s, NULL, false, err));
    TRY(comm_agree(s->comm, upload(s, file, err), err));
    sample_sums sums = {0};
    TRY(stepper_evaluate(s->step, on_train ? s->clean : s->eval, &sums, report, s->progress, err));
    progress_end(s->progress);
    if (s->comm->rank == 0)
        print_figures(o, file, split, head, &sums);
    return STATUS_OK;
}

static status run_with(const command_options *o, comm *c, const char *file,
                       const checkpoint_head *head, errbuf *err)
{
    spec given = {0};
    progress p;
    session s = {0};
    int threads = 0;
    status st = comm_agree(c, load_spec(o, head, file, &given, err), err);
    progress_init(&p, c->rank != 0, "eval");
    if (st == STATUS_OK)
        st = placement_settle(c, given.resources.threads, &threads, err);
    if (st == STATUS_OK)
        st = session_begin(&s, &given, threads, c, &p, err);
    if (st == STATUS_OK && strcmp(s.data_hash, head->data_hash) != 0)
        progress_say(&p, "note: these are not the images that the checkpoint was trained beside");
    if (st == STATUS_OK)
        st = evaluate(o, &s, file, head, err);
    progress_end(&p);
    session_close(&s);
    spec_fini(&given);
    return st;
}

static status run(const command_options *o, errbuf *err)
{
    char file[4096];
    if (o->args != 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "one checkpoint or run folder is needed; see `ringtrain eval --help`");
    TRY(find_file(o->arg[0], file, sizeof file, err));
    comm *c = NULL;
    checkpoint_head head = {0};
    TRY(comm_open(&c, err));
    status st = comm_agree(c, checkpoint_read_head(file, &head, err), err);
    if (st == STATUS_OK)
        st = run_with(o, c, file, &head, err);
    checkpoint_head_fini(&head);
    comm_close(&c);
    return st;
}

const command command_eval = {
    .name = "eval",
    .summary = "measure a checkpoint on the validation or training set",
    .help = "Usage: ringtrain eval CHECKPOINT|RUN-FOLDER [options]\n"
            "\n"
            "Evaluates a checkpoint with the spec that it holds. A run folder means its best\n"
            "checkpoint. The images are looked for where the run's job.json says; they may lie\n"
            "elsewhere by now: --set data.path=DIR.\n"
            "\n"
            "  --split NAME      validation (default) or train (without augmentation)\n"
            "\n"
            "Examples:\n"
            "  ringtrain eval runs/a\n"
            "  ringtrain eval runs/a/last.safetensors --set data.path=/data/cifar10 --json\n",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .run = run,
};
