/*
 * Which engine serves a graph, and compiling it.
 *
 * A heuristic only lists configurations: that one is listed does not say that it can be built. So
 * each is reduced to engine and knobs, which is what a plan records, and built again from those;
 * the first that builds is taken. A plan that is followed takes the very same way.
 */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/dnn_internal.h"

typedef cudnnBackendDescriptor_t descriptor;

static void destroy_all(descriptor *list, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (list[i])
            cudnnBackendDestroyDescriptor(list[i]);
}

static cudnnStatus_t create_all(cudnnBackendDescriptorType_t type, descriptor *list, int64_t count)
{
    cudnnStatus_t st = CUDNN_STATUS_SUCCESS;
    for (int64_t i = 0; i < count; i++) {
        list[i] = NULL;
        if (st == CUDNN_STATUS_SUCCESS)
            st = cudnnBackendCreateDescriptor(type, &list[i]);
    }
    return st;
}

static cudnnStatus_t get(descriptor from, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t room, int64_t *ret_count,
                         void *ret)
{
    return cudnnBackendGetAttribute(from, name, type, room, ret_count, ret);
}

/* ---- reading a configuration ---- */

static cudnnStatus_t read_engine(descriptor config, descriptor engine, dnn_candidate *ret)
{
    int64_t count = 0, notes = 0, behaviours = 0;
    cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT] = {0};
    cudnnBackendBehaviorNote_t behaviour[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT] = {0};
    cudnnStatus_t st =
        get(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine);
    if (st == CUDNN_STATUS_SUCCESS)
        st = get(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count,
                 &ret->choice.engine);
    if (st == CUDNN_STATUS_SUCCESS)
        st = get(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                 CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &notes, note);
    if (st == CUDNN_STATUS_SUCCESS)
        st = get(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                 CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &behaviours, behaviour);
    for (int64_t i = 0; st == CUDNN_STATUS_SUCCESS && i < notes; i++)
        ret->notes |= 1u << note[i];
    for (int64_t i = 0; st == CUDNN_STATUS_SUCCESS && i < behaviours; i++)
        ret->is_compiled |= behaviour[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
    return st;
}

static cudnnStatus_t read_knobs(descriptor config, dnn_choice *ret)
{
    descriptor knob[DNN_MAX_KNOBS];
    int64_t count = 0, one = 0;
    cudnnStatus_t st = create_all(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, knob, DNN_MAX_KNOBS);
    if (st == CUDNN_STATUS_SUCCESS)
        st = get(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                 DNN_MAX_KNOBS, &count, knob);
    for (int64_t i = 0; st == CUDNN_STATUS_SUCCESS && i < count; i++) {
        cudnnBackendKnobType_t type = 0;
        st = get(knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &one, &type);
        ret->knob[i] = (int64_t)type;
        if (st == CUDNN_STATUS_SUCCESS)
            st = get(knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &one,
                     &ret->value[i]);
    }
    ret->knobs = (int)count;
    destroy_all(knob, DNN_MAX_KNOBS);
    return st;
}

static cudnnStatus_t read_candidate(descriptor config, dnn_candidate *ret)
{
    descriptor engine;
    *ret = (dnn_candidate){.notes = 0};
    cudnnStatus_t st = create_all(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine, 1);
    if (st == CUDNN_STATUS_SUCCESS)
        st = read_engine(config, engine, ret);
    destroy_all(&engine, 1);
    return st == CUDNN_STATUS_SUCCESS ? read_knobs(config, &ret->choice) : st;
}

/* ---- heuristics ---- */

static cudnnStatus_t ask_heuristic(const dnn *d, const dnn_graph *g, cudnnBackendHeurMode_t mode,
                                   descriptor heuristic, descriptor *configs, int64_t *ret_count)
{
    cudnnStatus_t st = dnn_set(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                               CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->graph);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (st == CUDNN_STATUS_SUCCESS && d->device)
        st = dnn_set(heuristic, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                     &d->device);
    if (st == CUDNN_STATUS_SUCCESS)
        st = cudnnBackendFinalize(heuristic);
    if (st == CUDNN_STATUS_SUCCESS)
        st = create_all(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, configs, DNN_MAX_CANDIDATES);
    if (st == CUDNN_STATUS_SUCCESS)
        st = get(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                 DNN_MAX_CANDIDATES, ret_count, configs);
    if (*ret_count > DNN_MAX_CANDIDATES)
        *ret_count = DNN_MAX_CANDIDATES;
    return st;
}

status dnn_candidates(const dnn *d, const dnn_graph *g, cudnnBackendHeurMode_t mode,
                      dnn_candidate **ret, int *ret_count, errbuf *err)
{
    descriptor heuristic = NULL, *configs = calloc(DNN_MAX_CANDIDATES, sizeof *configs);
    dnn_candidate *list = calloc(DNN_MAX_CANDIDATES, sizeof *list);
    int64_t listed = 0;
    int count = 0;
    if (!configs || !list) {
        free(configs);
        free(list);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory choosing a cuDNN engine");
    }
    cudnnStatus_t st = create_all(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heuristic, 1);
    if (st == CUDNN_STATUS_SUCCESS)
        st = ask_heuristic(d, g, mode, heuristic, configs, &listed);
    for (int64_t i = 0; st == CUDNN_STATUS_SUCCESS && i < listed; i++) {
        /* one that cannot be read is passed over */
        count += read_candidate(configs[i], &list[count]) == CUDNN_STATUS_SUCCESS;
    }
    destroy_all(configs, DNN_MAX_CANDIDATES);
    destroy_all(&heuristic, 1);
    free(configs);
    if (st != CUDNN_STATUS_SUCCESS && !dnn_is_unsupported(st)) {
        free(list);
        return dnn_failed(st, "list engines", err);
    }
    *ret = list;
    *ret_count = count;
    return STATUS_OK;
}

bool dnn_candidate_allowed(const dnn_graph *g, const dnn_candidate *c)
{
    unsigned bad = 1u << CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC |
                   1u << CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION;
    if (g->strict)
        bad |=
            1u << CUDNN_NUMERICAL_NOTE_TENSOR_CORE | 1u << CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS;
    return (c->notes & bad) == 0;
}

/* ---- compiling ---- */

static cudnnStatus_t make_engine(const dnn *d, const dnn_graph *g, int64_t index, descriptor engine)
{
    cudnnStatus_t st = dnn_set(engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH,
                               CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g->graph);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &index);
    if (st == CUDNN_STATUS_SUCCESS && d->device)
        st = dnn_set(engine, CUDNN_ATTR_ENGINE_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                     &d->device);
    return st == CUDNN_STATUS_SUCCESS ? cudnnBackendFinalize(engine) : st;
}

static cudnnStatus_t make_knob(int64_t knob, int64_t value, descriptor to)
{
    cudnnBackendKnobType_t type = (cudnnBackendKnobType_t)knob;
    cudnnStatus_t st =
        dnn_set(to, CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(to, CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &value);
    return st == CUDNN_STATUS_SUCCESS ? cudnnBackendFinalize(to) : st;
}

static cudnnStatus_t make_config(const dnn_choice *c, descriptor engine, descriptor config)
{
    descriptor knob[DNN_MAX_KNOBS] = {NULL};
    cudnnStatus_t st = create_all(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, knob, c->knobs);
    for (int i = 0; i < c->knobs && st == CUDNN_STATUS_SUCCESS; i++)
        st = make_knob(c->knob[i], c->value[i], knob[i]);
    if (st == CUDNN_STATUS_SUCCESS)
        st =
            dnn_set(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine);
    if (st == CUDNN_STATUS_SUCCESS && c->knobs > 0)
        st = dnn_set(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                     c->knobs, knob);
    if (st == CUDNN_STATUS_SUCCESS)
        st = cudnnBackendFinalize(config);
    destroy_all(knob, c->knobs);
    return st;
}

/* The plan of an engine and its knobs, compiled. */
static cudnnStatus_t build(const dnn *d, const dnn_graph *g, const dnn_choice *choice,
                           descriptor *ret)
{
    enum {
        ENGINE,
        CONFIG,
        PLAN,
        PARTS
    };
    static const cudnnBackendDescriptorType_t types[PARTS] = {
        CUDNN_BACKEND_ENGINE_DESCRIPTOR, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
        CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR};
    descriptor part[PARTS] = {NULL};
    cudnnStatus_t st = CUDNN_STATUS_SUCCESS;
    for (int i = 0; i < PARTS && st == CUDNN_STATUS_SUCCESS; i++)
        st = cudnnBackendCreateDescriptor(types[i], &part[i]);
    if (st == CUDNN_STATUS_SUCCESS)
        st = make_engine(d, g, choice->engine, part[ENGINE]);
    if (st == CUDNN_STATUS_SUCCESS)
        st = make_config(choice, part[ENGINE], part[CONFIG]);
    if (st == CUDNN_STATUS_SUCCESS && d->handle)
        st =
            dnn_set(part[PLAN], CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &d->handle);
    if (st == CUDNN_STATUS_SUCCESS)
        st = dnn_set(part[PLAN], CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part[CONFIG]);
    if (st == CUDNN_STATUS_SUCCESS)
        st = cudnnBackendFinalize(part[PLAN]);
    if (st == CUDNN_STATUS_SUCCESS) {
        *ret = part[PLAN];
        part[PLAN] = NULL;
    }
    destroy_all(part, PARTS);
    return st;
}

static cudnnStatus_t workspace_of(descriptor plan, int64_t *ret)
{
    int64_t count = 0;
    return get(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, ret);
}

bool dnn_plan_compile(const dnn *d, const dnn_graph *g, const dnn_choice *choice, dnn_plan *p)
{
    char text[DNN_WHY_SIZE - 60];
    cudnnStatus_t st = CUDNN_STATUS_SUCCESS;
    descriptor plan = dnn_cache_load(d, g, choice);
    p->workspace = 0;
    bool is_new = !plan;
    if (is_new)
        st = build(d, g, choice, &plan);
    if (st == CUDNN_STATUS_SUCCESS)
        st = workspace_of(plan, &p->workspace);
    if (st != CUDNN_STATUS_SUCCESS) {
        dnn_explain(st, text, sizeof text);
        snprintf(p->why, sizeof p->why, "engine %lld: %s", (long long)choice->engine, text);
    } else if (p->workspace > DNN_WORKSPACE_LIMIT) {
        snprintf(p->why, sizeof p->why, "engine %lld wants %lld MiB of scratch, the limit is %lld",
                 (long long)choice->engine, (long long)(p->workspace >> 20),
                 (long long)(DNN_WORKSPACE_LIMIT >> 20));
        st = CUDNN_STATUS_NOT_SUPPORTED;
    }
    if (st != CUDNN_STATUS_SUCCESS) {
        destroy_all(&plan, 1);
        return false;
    }
    if (is_new)
        dnn_cache_store(d, g, choice, plan);
    p->plan = plan;
    p->choice = *choice;
    return true;
}

/* ---- choosing ---- */

static status new_plan(const dnn_graph *g, dnn_plan **ret, errbuf *err)
{
    dnn_plan *p = calloc(1, sizeof *p);
    if (!p)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory choosing a cuDNN engine");
    snprintf(p->key, sizeof p->key, "%s", g->key);
    *ret = p;
    return STATUS_OK;
}

void dnn_plan_destroy(dnn_plan **p)
{
    if (!p || !*p)
        return;
    destroy_all(&(*p)->plan, 1);
    free(*p);
    *p = NULL;
}

static bool is_found_already(dnn_plan *const *found, int count, const dnn_choice *choice)
{
    for (int i = 0; i < count; i++)
        if (dnn_choice_equal(&found[i]->choice, choice))
            return true;
    return false;
}

/* Adds those of one heuristic's candidates that build to found[], up to `want` in all. The reason
 * why the last one does not is left in `why`. */
static status collect(const dnn *d, const dnn_graph *g, cudnnBackendHeurMode_t mode, int want,
                      dnn_plan **found, int *count, char *why, errbuf *err)
{
    dnn_candidate *list = NULL;
    int listed = 0, allowed = 0;
    status st = STATUS_OK;
    TRY(dnn_candidates(d, g, mode, &list, &listed, err));
    for (int i = 0; i < listed && *count < want && st == STATUS_OK; i++) {
        dnn_plan *p = NULL;
        if (!dnn_candidate_allowed(g, &list[i]) || is_found_already(found, *count, &list[i].choice))
            continue;
        allowed++;
        st = new_plan(g, &p, err);
        if (st == STATUS_OK && dnn_plan_compile(d, g, &list[i].choice, p)) {
            found[(*count)++] = p;
        } else if (st == STATUS_OK) {
            snprintf(why, DNN_WHY_SIZE, "%s", p->why);
            dnn_plan_destroy(&p);
        }
    }
    if (allowed == 0 && why[0] == '\0')
        snprintf(why, DNN_WHY_SIZE, "%d listed, none that may be used", listed);
    free(list);
    return st;
}

/* The first that builds of modes A, B and FALLBACK; tuning: the fastest of the first of A and of
 * those that B adds. */
static status search(const dnn *d, const dnn_graph *g, dnn_plan **ret, errbuf *err)
{
    static const struct {
        cudnnBackendHeurMode_t mode;
        int want, want_tuning;
    } stages[] = {{CUDNN_HEUR_MODE_A, 1, DNN_TUNE_FIRST},
                  {CUDNN_HEUR_MODE_B, 1, DNN_TUNE_CANDIDATES},
                  {CUDNN_HEUR_MODE_FALLBACK, 1, 1}};
    dnn_plan *found[DNN_TUNE_CANDIDATES] = {NULL};
    char why[DNN_WHY_SIZE] = "";
    int count = 0, best = 0;
    status st = STATUS_OK;
    for (int i = 0; i < 3 && st == STATUS_OK; i++) {
        int want = d->options.tune ? stages[i].want_tuning : stages[i].want;
        if (count < want)
            st = collect(d, g, stages[i].mode, want, found, &count, why, err);
    }
    if (st == STATUS_OK && count > 0 && d->options.tune)
        st = dnn_fastest(d, g, found, count, &best, err);
    if (st == STATUS_OK && count == 0) {
        st = new_plan(g, &found[0], err);
        if (st == STATUS_OK)
            snprintf(found[0]->why, sizeof found[0]->why, "%s", why);
    }
    if (st == STATUS_OK) {
        *ret = found[best];
        found[best] = NULL;
    }
    for (int i = 0; i < DNN_TUNE_CANDIDATES; i++)
        dnn_plan_destroy(&found[i]);
    return st;
}

/* A given plan settles all: what is not in it had no engine when it was made. */
static status follow(const dnn *d, const dnn_graph *g, dnn_plan **ret, errbuf *err)
{
    const cJSON *engines = cJSON_GetObjectItemCaseSensitive(d->options.plan, "engines");
    const cJSON *entry = cJSON_GetObjectItemCaseSensitive(engines, g->key);
    dnn_choice choice = {.knobs = 0};
    dnn_plan *p = NULL;
    if (!entry)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "plan: cuDNN's \"%s\" is not in it: the plan is for another network, "
                          "batch or device",
                          g->key);
    if (!cJSON_IsNull(entry) && !dnn_choice_read(entry, &choice))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "plan: cuDNN's \"%s\": {\"engine\": number, \"knobs\": {name: number}} "
                          "or null is expected",
                          g->key);
    TRY(new_plan(g, &p, err));
    if (cJSON_IsNull(entry)) {
        snprintf(p->why, sizeof p->why, "the plan has none");
    } else if (!dnn_plan_compile(d, g, &choice, p)) {
        status st =
            errbuf_set(err, STATUS_BAD_INPUT,
                       "plan: cuDNN %s cannot build \"%s\" with the plan's engine: %s; train "
                       "without the plan (backend.on_plan_change) or with the plan's cuDNN",
                       dnn_version(), g->key, p->why);
        dnn_plan_destroy(&p);
        return st;
    }
    *ret = p;
    return STATUS_OK;
}

status dnn_plan_make(const dnn *d, const dnn_graph *g, dnn_plan **ret, errbuf *err)
{
    if (!g->graph) {
        TRY(new_plan(g, ret, err));
        memcpy((*ret)->why, g->why, sizeof g->why);
        return STATUS_OK;
    }
    return d->options.plan ? follow(d, g, ret, err) : search(d, g, ret, err);
}

/* ---- choices ---- */

bool dnn_choice_equal(const dnn_choice *a, const dnn_choice *b)
{
    return a->engine == b->engine && a->knobs == b->knobs &&
           memcmp(a->knob, b->knob, sizeof *a->knob * (size_t)a->knobs) == 0 &&
           memcmp(a->value, b->value, sizeof *a->value * (size_t)a->knobs) == 0;
}

/* cudnnBackendKnobType_t, in order; a later one is written as its number. */
static const char *const knob_names[] = {"split_k",
                                         "swizzle",
                                         "tile_size",
                                         "use_tex",
                                         "edge",
                                         "kblock",
                                         "ldga",
                                         "ldgb",
                                         "chunk_k",
                                         "split_h",
                                         "wino_tile",
                                         "multiply",
                                         "split_k_buf",
                                         "tilek",
                                         "stages",
                                         "reduction_mode",
                                         "cta_split_k_mode",
                                         "split_k_slc",
                                         "idx_mode",
                                         "sliced",
                                         "split_rs",
                                         "singlebuffer",
                                         "ldgc",
                                         "specfilt",
                                         "kernel_cfg",
                                         "workspace",
                                         "tile_cga",
                                         "tile_cga_m",
                                         "tile_cga_n",
                                         "block_size",
                                         "occupancy",
                                         "array_size_per_thread",
                                         "num_c_per_block",
                                         "split_cols",
                                         "tile_rows",
                                         "tile_cols",
                                         "load_size",
                                         "cta_count",
                                         "stream_k",
                                         "split_p_slc",
                                         "tile_m",
                                         "tile_n",
                                         "warp_spec_cfg",
                                         "swap_ab"};
enum {
    KNOB_NAMES = sizeof knob_names / sizeof *knob_names
};

static void knob_name(int64_t knob, char ret[32])
{
    if (knob >= 0 && knob < KNOB_NAMES)
        snprintf(ret, 32, "%s", knob_names[knob]);
    else
        snprintf(ret, 32, "%lld", (long long)knob);
}

static int64_t knob_number(const char *name)
{
    for (int i = 0; i < KNOB_NAMES; i++)
        if (strcmp(name, knob_names[i]) == 0)
            return i;
    char *end = NULL;
    long number = strtol(name, &end, 10);
    return *name && *end == '\0' && number >= 0 ? number : -1;
}

cJSON *dnn_choice_write(const dnn_choice *c)
{
    cJSON *json = cJSON_CreateObject();
    bool ok = cJSON_AddNumberToObject(json, "engine", (double)c->engine) != NULL;
    cJSON *knobs = ok ? cJSON_AddObjectToObject(json, "knobs") : NULL;
    ok = knobs != NULL;
    for (int i = 0; ok && i < c->knobs; i++) {
        char name[32];
        knob_name(c->knob[i], name);
        ok = cJSON_AddNumberToObject(knobs, name, (double)c->value[i]) != NULL;
    }
    if (!ok) {
        cJSON_Delete(json);
        return NULL;
    }
    return json;
}

static bool is_whole(const cJSON *number, double least)
{
    double v = cJSON_IsNumber(number) ? number->valuedouble : least - 1;
    return v >= least && v <= INT32_MAX && v == (double)(int64_t)v;
}

bool dnn_choice_read(const cJSON *json, dnn_choice *ret)
{
    const cJSON *engine = cJSON_GetObjectItemCaseSensitive(json, "engine");
    const cJSON *knobs = cJSON_GetObjectItemCaseSensitive(json, "knobs"), *knob;
    if (!is_whole(engine, 0) || !cJSON_IsObject(knobs))
        return false;
    *ret = (dnn_choice){.engine = (int64_t)engine->valuedouble};
    cJSON_ArrayForEach (knob, knobs) {
        if (!is_whole(knob, INT32_MIN) || ret->knobs == DNN_MAX_KNOBS ||
            knob_number(knob->string) < 0)
            return false;
        ret->knob[ret->knobs] = knob_number(knob->string);
        ret->value[ret->knobs++] = (int64_t)knob->valuedouble;
    }
    return true;
}
