/* Sessions; see session.h. */
#include "trainer/session.h"

#include <cjson/cJSON.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/file.h"
#include "protocol/json.h"
#include "trainer/net/builders.h"
#include "trainer/net/memory_check.h"
#include "trainer/plan.h"

#define EXACT_MAX_SHARDS    64
#define EXACT_DEFAULT_SHARD 32

/* ---- resolving ---- */

/* Exact mode's default: the largest divisor of the batch up to 32 or, where that makes more than
 * 64 shards, the smallest that does not. */
static int64_t default_exact_shard(int64_t batch)
{
    int64_t shard = batch < EXACT_DEFAULT_SHARD ? batch : EXACT_DEFAULT_SHARD;
    while (batch % shard != 0)
        shard--;
    while (batch / shard > EXACT_MAX_SHARDS || batch % shard != 0)
        shard++;
    return shard;
}

static status resolve_shard(spec *s, errbuf *err)
{
    int64_t batch = s->train.batch, workers = s->resources.workers;
    if (s->train.shard == 0 && s->train.exact)
        s->train.shard = default_exact_shard(batch);
    if (s->train.shard == 0) {
        if (batch % workers != 0)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "train.batch %lld cannot be divided among %lld ranks: use a batch "
                              "that is a multiple of %lld",
                              (long long)batch, (long long)workers, (long long)workers);
        s->train.shard = batch / workers;
    }
    int64_t shard = s->train.shard;
    if (batch % shard != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.shard %lld does not divide train.batch %lld", (long long)shard,
                          (long long)batch);
    if ((batch / shard) % workers != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%lld shards (train.batch %lld / train.shard %lld) cannot be divided "
                          "among %lld ranks: use a number of ranks that divides %lld, or another "
                          "train.shard",
                          (long long)(batch / shard), (long long)batch, (long long)shard,
                          (long long)workers, (long long)(batch / shard));
    if (s->train.exact && batch / shard > EXACT_MAX_SHARDS)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.exact allows %d shards, train.batch %lld / train.shard %lld makes "
                          "%lld: raise train.shard",
                          EXACT_MAX_SHARDS, (long long)batch, (long long)shard,
                          (long long)(batch / shard));
    return STATUS_OK;
}

/* Replaces an owned path by its absolute form. */
static status make_absolute(char **path, errbuf *err)
{
    char *absolute = NULL;
    TRY(file_absolute(*path, &absolute, err));
    free(*path);
    *path = absolute;
    return STATUS_OK;
}

static status resolve_paths(spec *s, errbuf *err)
{
    if (s->out[0] == '\0') {
        char text[512];
        snprintf(text, sizeof text, "runs/%s", s->name);
        char *copy = NULL;
        TRY(string_copy(text, &copy, err));
        free(s->out);
        s->out = copy;
    }
    TRY(make_absolute(&s->out, err));
    if (s->data.path[0] != '\0')
        TRY(make_absolute(&s->data.path, err));
    return STATUS_OK;
}

status session_resolve_spec(spec *s, int world, int threads, errbuf *err)
{
    TRY(spec_validate(s, err));
    TRY(resolve_paths(s, err));
    if (s->resources.workers == 0)
        s->resources.workers = world;
    if (s->resources.workers != world)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "resources.workers is %lld, but %d rank%s launched: use mpirun -np %lld",
                          (long long)s->resources.workers, world, world == 1 ? " is" : "s are",
                          (long long)s->resources.workers);
    s->resources.threads = threads;
    TRY(resolve_shard(s, err));
    TRY(spec_resolve_data(s, err));
    return spec_resolve_rings(s, err);
}

/* Rank 0 reads the data for its hash; the others wait. */
static status make_ids(session *s, errbuf *err)
{
    status st = STATUS_OK;
    if (s->comm->rank == 0)
        st = dataset_hash(&s->spec, s->data_hash, err);
    TRY(comm_agree(s->comm, st, err));
    TRY(s->comm->ops->broadcast(s->comm, s->data_hash, sizeof s->data_hash, 0, err));
    return comm_agree(s->comm, spec_job_id(&s->spec, s->data_hash, s->job_id, err), err);
}

status session_begin(session *s, const spec *given, int threads, comm *c, progress *p, errbuf *err)
{
    s->comm = c;
    s->progress = p;
    s->threads = threads;
    omp_set_num_threads(threads); /* start-up too keeps to this rank's cores */
    status st = spec_copy(given, &s->spec, err);
    s->has_spec = st == STATUS_OK;
    if (st == STATUS_OK)
        st = session_resolve_spec(&s->spec, c->size, threads, err);
    TRY(comm_agree(c, st, err));
    return make_ids(s, err);
}

/* ---- data ---- */

static void beat(session *s, attempt_phase phase)
{
    if (s->beat)
        attempt_progress_update(s->beat, 0, phase);
}

static void report_reading(void *ctx, int64_t done, int64_t total)
{
    session *s = ctx;
    beat(s, ATTEMPT_LOADING);
    progress_phase(s->progress, "reading images", done, total);
}

static status open_sets(session *s, bool training, errbuf *err)
{
    TRY(dataset_open(&s->spec, SPLIT_EVAL, report_reading, s, &s->eval_set, err));
    if (!training)
        return STATUS_OK;
    TRY(dataset_open(&s->spec, SPLIT_TRAIN, report_reading, s, &s->train_set, err));
    dataset_info info;
    dataset_describe(s->train_set, &info);
    s->steps_per_epoch = info.count / s->spec.train.batch;
    if (s->steps_per_epoch == 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "train.batch %lld is larger than the training set (%lld images): lower "
                          "it",
                          (long long)s->spec.train.batch, (long long)info.count);
    return STATUS_OK;
}

status session_open_data(session *s, bool training, errbuf *err)
{
    return comm_agree(s->comm, open_sets(s, training, err), err);
}

static status create_feed(session *s, dataset *set, data_split split, bool clean, feed **ret,
                          errbuf *err)
{
    const spec *sp = &s->spec;
    const loader_options images = {
        .set = set,
        .split = split,
        .clean = clean,
        .size = (int)sp->data.size,
        .augment = sp->data.augment,
        .normalise = sp->data.normalise,
        .on_error = sp->data.on_error,
        .seed = sp->train.seed,
        .batch = sp->train.batch,
        .shard = sp->train.shard,
        .rank = s->comm->rank,
        .world = s->comm->size,
        .threads = (int)sp->data.workers,
    };
    const feed_options o = {.loader = images, .be = s->be, .lanes = s->lanes};
    return feed_create(&o, ret, err);
}

static status create_feeds(session *s, errbuf *err)
{
    TRY(create_feed(s, s->eval_set, SPLIT_EVAL, true, &s->eval, err));
    if (!s->train_set)
        return STATUS_OK;
    TRY(create_feed(s, s->train_set, SPLIT_TRAIN, false, &s->train, err));
    if (s->spec.train.train_eval)
        TRY(create_feed(s, s->train_set, SPLIT_TRAIN, true, &s->clean, err));
    return STATUS_OK;
}

/* ---- compute ---- */

/* The backend that the spec and the seat mean. */
static status choose_backend(const session *s, const backend_ops **ret_ops, errbuf *err)
{
    if (s->spec.backend.name == BACKEND_CUDA && s->seat == SEAT_CPU)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "backend.name is cuda, but the seats of this attempt are CPU cores");
    if (s->spec.backend.name == BACKEND_AUTO && s->seat == SEAT_CPU)
        for (const backend_ops *const *b = backend_list(); *b; b++)
            if ((*b)->host_memory && (*b)->available()) {
                *ret_ops = *b;
                return STATUS_OK;
            }
    return backend_choose(spec_find_field("backend.name")->names[s->spec.backend.name], ret_ops,
                          err);
}

static compute_type compute_of(const spec *s)
{
    static const compute_type compute[] = {
        [PRECISION_FP32] = COMPUTE_FP32,
        [PRECISION_TF32] = COMPUTE_TF32,
        [PRECISION_BF16] = COMPUTE_BF16,
    };
    return compute[s->train.precision];
}

static status open_backend(session *s, const char *plan, bool tune, errbuf *err)
{
    const backend_ops *ops = NULL;
    TRY(choose_backend(s, &ops, err));
    cJSON *json = NULL;
    if (plan)
        TRY(json_parse(plan, strlen(plan), "plan", &json, err));
    const spec *sp = &s->spec;
    char cache[PLAN_CACHE_PATH_MAX];
    plan_cache_folder(cache, sizeof cache);
    s->lanes = memory_lanes(sp, !ops->host_memory);
    backend_options options = {
        /* exact: one thread a shard, also where there are more threads than shards */
        .threads = sp->train.exact ? s->lanes : s->threads,
        .lanes = s->lanes,
        .device = s->seat == SEAT_DEVICE ? s->device : s->comm->local_rank,
        .share_devices = s->seat != SEAT_DEVICE,
        .tune = tune,
        .plan = json,
        .compute = compute_of(sp),
        .cache = cache[0] ? cache : NULL,
    };
    status st = backend_open(ops->name, &options, &s->be, err);
    cJSON_Delete(json);
    return st;
}

static status open_step(session *s, const char *plan, bool tune, bool training, errbuf *err)
{
    TRY(open_backend(s, plan, tune, err));
    stepper_options options = {
        .spec = &s->spec,
        .net = s->net,
        .be = s->be,
        .comm = s->comm,
        .lanes = s->lanes,
        .training = training,
    };
    return stepper_create(&options, &s->step, err);
}

/* Rank 0 times the algorithms, the others follow its plan. */
static status open_tuned(session *s, bool training, errbuf *err)
{
    char *plan = NULL;
    status st = STATUS_OK;
    beat(s, ATTEMPT_TUNING);
    if (s->comm->rank == 0) {
        st = open_step(s, NULL, true, training, err);
        if (st == STATUS_OK)
            st = plan_describe(s->be, s->comm, NULL, s->spec.train.exact, &plan, err);
    }
    st = comm_agree(s->comm, st, err);
    if (st == STATUS_OK)
        st = plan_share(s->comm, &plan, err);
    if (st == STATUS_OK && s->comm->rank != 0)
        st = open_step(s, plan, false, training, err);
    free(plan);
    return st;
}

static status open_planned(session *s, const char *plan, bool training, errbuf *err)
{
    const char *word = s->spec.backend.plan;
    if (plan)
        return open_step(s, plan, false, training, err);
    if (strcmp(word, "default") == 0)
        return open_step(s, NULL, false, training, err);
    if (strcmp(word, "tune") == 0)
        return open_tuned(s, training, err);
    char *text = NULL, *here = NULL;
    status st = STATUS_OK;
    if (s->comm->rank == 0)
        st = plan_load(word, &text, err);
    st = comm_agree(s->comm, st, err);
    if (st == STATUS_OK)
        st = plan_share(s->comm, &text, err);
    if (st == STATUS_OK)
        st = open_step(s, text, false, training, err);
    if (st == STATUS_OK)
        st = plan_describe(s->be, s->comm, NULL, s->spec.train.exact, &here, err);
    if (st == STATUS_OK)
        st = plan_check_given(text, here, word, err);
    free(here);
    free(text);
    return st;
}

status session_open_net(session *s, errbuf *err)
{
    dataset_info eval = {0};
    const backend_ops *ops = NULL;
    status chosen = choose_backend(s, &ops, err);
    if (chosen == STATUS_OK)
        chosen = backend_check_compute(ops, compute_of(&s->spec), err);
    TRY(comm_agree(s->comm, chosen, err));
    if (s->eval_set)
        dataset_describe(s->eval_set, &eval);
    memory_run run = {
        .spec = &s->spec,
        .training = s->train_set != NULL,
        .on_device = !ops->host_memory,
        .is_rank_0 = s->comm->rank == 0,
        .ranks = s->comm->local_size,
        .loader_depth = FEED_MIN_DEPTH,
        .train_images = s->steps_per_epoch * s->spec.train.batch,
        .eval_images = eval.count,
    };
    status st = net_build(&s->spec, &s->net, err);
    if (st == STATUS_OK)
        st = memory_check_net(s->net, &run, err);
    return comm_agree(s->comm, st, err);
}

status session_open_compute(session *s, const char *plan, bool training, errbuf *err)
{
    TRY(comm_agree(s->comm, open_planned(s, plan, training, err), err));
    TRY(stepper_connect(s->step, err));
    status st =
        plan_describe(s->be, s->comm, stepper_comm(s->step), s->spec.train.exact, &s->plan, err);
    TRY(comm_agree(s->comm, st, err));
    TRY(plan_settle(s->comm, &s->plan, err));
    return comm_agree(s->comm, create_feeds(s, err), err);
}

void session_close(session *s)
{
    if (!s)
        return;
    stepper_destroy(&s->step); /* its graphs hold addresses of the feeds */
    feed_destroy(&s->train);
    feed_destroy(&s->eval);
    feed_destroy(&s->clean);
    if (s->be)
        s->be->ops->close(s->be);
    net_destroy(&s->net);
    dataset_close(&s->train_set);
    dataset_close(&s->eval_set);
    free(s->plan);
    if (s->has_spec)
        spec_fini(&s->spec);
    memset(s, 0, sizeof *s);
}
