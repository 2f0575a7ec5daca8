/*
 * What the files behind dnn.h share: dnn_graph.c describes a graph to cuDNN, dnn_plan.c chooses and
 * compiles an engine for it, dnn_tune.c times engines, dnn_cache.c keeps what was compiled, dnn.c
 * has the public functions and runs.
 */
#ifndef RINGMASTER_KERNELS_CUDA_DNN_INTERNAL_H
#define RINGMASTER_KERNELS_CUDA_DNN_INTERNAL_H

#include <cudnn_backend.h>
#include <stdint.h>

#include "kernels/cuda/dnn.h"

#define DNN_MAX_DESCRIPTORS 40
#define DNN_MAX_OPERATIONS  6
#define DNN_MAX_POINTERS    14
#define DNN_MAX_SCALARS     2
#define DNN_MAX_KNOBS       48
#define DNN_MAX_CANDIDATES  256 /* that one heuristic lists; more are not looked at */
#define DNN_KEY_SIZE        160
#define DNN_WHY_SIZE        400
#define DNN_TUNE_FIRST      8  /* of mode A that are timed */
#define DNN_TUNE_CANDIDATES 12 /* with those that mode B adds */
#define DNN_ALIGNMENT       16
/* An engine that wants more scratch than this is passed over. */
#define DNN_WORKSPACE_LIMIT ((int64_t)1 << 30)

/* ---- dnn_graph.c ---- */

/* What a graph reads and writes when it runs. */
typedef struct dnn_binding {
    /* what dnn_run is given, in its order; a tensor's id is its place + 1 */
    size_t bytes[DNN_MAX_POINTERS];
    int pointers;
    /* what cuDNN reads from the host */
    int64_t scalar_id[DNN_MAX_SCALARS];
    float scalar[DNN_MAX_SCALARS];
    int scalars;
} dnn_binding;

/* A graph and its descriptors. While it is built the first failure stays, and the calls after it do
 * nothing. */
typedef struct dnn_graph {
    char key[DNN_KEY_SIZE]; /* kind, type and shape: same key, same graph */
    bool strict;            /* fp32 products: no engine that rounds its inputs */
    dnn_binding binding;
    cudnnBackendDescriptor_t graph; /* finalised */
    cudnnBackendDescriptor_t owned[DNN_MAX_DESCRIPTORS];
    cudnnBackendDescriptor_t operation[DNN_MAX_OPERATIONS];
    int descriptors, operations;
    int64_t last_id;
    cudnnStatus_t failed;
    char why[DNN_WHY_SIZE];
} dnn_graph;

/* Fills *g, which dnn_graph_fini empties whatever was returned. A graph that cuDNN says it does not
 * do is STATUS_OK with g->graph == NULL and the reason in g->why. */
CHECK_RESULT status dnn_graph_conv(const dnn *d, dnn_conv_kind kind, const conv_desc *desc,
                                   int channels, dnn_type type, dnn_graph *g, errbuf *err);
CHECK_RESULT status dnn_graph_bn(const dnn *d, dnn_bn_kind kind, const bn_desc *desc,
                                 bool two_gradients, dnn_type type, dnn_graph *g, errbuf *err);
void dnn_graph_fini(dnn_graph *g);

/* ---- dnn_plan.c ---- */

/* An engine and its knobs: what a plan records, and all that is needed to build it again. */
typedef struct dnn_choice {
    int64_t engine;
    int64_t knob[DNN_MAX_KNOBS], value[DNN_MAX_KNOBS];
    int knobs;
} dnn_choice;

typedef struct dnn_candidate {
    dnn_choice choice;
    unsigned notes;   /* bit n: cudnnBackendNumericalNote_t n */
    bool is_compiled; /* when its plan is made, by the runtime compiler */
} dnn_candidate;

/* A compiled engine, shared by all ops of the key. plan == NULL: there is none for it. */
typedef struct dnn_plan {
    struct dnn_plan *next;
    char key[DNN_KEY_SIZE];
    dnn_choice choice;
    cudnnBackendDescriptor_t plan;
    int64_t workspace;
    char why[DNN_WHY_SIZE]; /* where there is none */
    float ms;               /* of one run, where tuning timed it */
} dnn_plan;

/* What a heuristic lists, in its order; *ret_count may be 0. Caller frees. */
CHECK_RESULT status dnn_candidates(const dnn *d, const dnn_graph *g, cudnnBackendHeurMode_t mode,
                                   dnn_candidate **ret, int *ret_count, errbuf *err);
/* Whether a plan may use it: deterministic, and precise enough where the graph is strict. */
bool dnn_candidate_allowed(const dnn_graph *g, const dnn_candidate *c);
/* Compiles, or takes it from the cache. false: cuDNN cannot build it, or it wants too much scratch;
 * p->why says so. */
bool dnn_plan_compile(const dnn *d, const dnn_graph *g, const dnn_choice *choice, dnn_plan *p);
/* The given plan's engine, else the default, else (tuning) the fastest. Without an engine
 * (*ret)->plan is NULL. */
CHECK_RESULT status dnn_plan_make(const dnn *d, const dnn_graph *g, dnn_plan **ret, errbuf *err);
void dnn_plan_destroy(dnn_plan **p); /* NULL-safe */
bool dnn_choice_equal(const dnn_choice *a, const dnn_choice *b);
/* {"engine": 3, "knobs": {"tile_size": 2, …}} and back; NULL where memory is out; false where it is
 * no such object. */
struct cJSON *dnn_choice_write(const dnn_choice *c);
bool dnn_choice_read(const struct cJSON *json, dnn_choice *ret);

/* ---- dnn_tune.c ---- */

/* Times `count` plans of one graph on scratch memory: their ms, and the place of the fastest. */
CHECK_RESULT status dnn_fastest(const dnn *d, const dnn_graph *g, dnn_plan *const *plans, int count,
                                int *ret_place, errbuf *err);

/* ---- dnn_cache.c ---- */

/* The compiled plan, finalised, or NULL. Nothing that is wrong with the cache is an error. */
cudnnBackendDescriptor_t dnn_cache_load(const dnn *d, const dnn_graph *g, const dnn_choice *choice);
void dnn_cache_store(const dnn *d, const dnn_graph *g, const dnn_choice *choice,
                     cudnnBackendDescriptor_t plan);
/* A compiled plan as JSON, or NULL. Caller frees. */
char *dnn_plan_text(cudnnBackendDescriptor_t plan, size_t *ret_length);
/* Sets what a plan is built for; restores one from its text. */
cudnnStatus_t dnn_plan_restore(const dnn *d, const char *text, size_t length,
                               cudnnBackendDescriptor_t *ret);

/* ---- dnn.c ---- */

struct dnn {
    dnn_options options;
    cudnnHandle_t handle;            /* NULL in tests without a device */
    cudnnBackendDescriptor_t device; /* its properties, in tests without a device */
    char device_name[256];
    int sms;
    char *cache;
    dnn_plan *plans; /* the newest first */
    void *workspace;
    size_t workspace_bytes;
    char missing[DNN_WHY_SIZE + 512], error[DNN_WHY_SIZE + 256];
};

/* A finalised variant pack. */
cudnnStatus_t dnn_pack(const dnn_binding *b, void *const *pointers, void *workspace,
                       cudnnBackendDescriptor_t *ret);
/* cuDNN's own words for its last failure, on one line. */
void dnn_explain(cudnnStatus_t failed, char *ret, size_t size);
/* A failure of cuDNN's as our status; the line says what was tried. */
status dnn_failed(cudnnStatus_t failed, const char *what, errbuf *err);
static inline bool dnn_is_unsupported(cudnnStatus_t failed)
{
    return CUDNN_STATUS_CATEGORY(failed) == CUDNN_STATUS_NOT_SUPPORTED;
}
/* Adds an attribute of one descriptor; for chains of calls. */
cudnnStatus_t dnn_set(cudnnBackendDescriptor_t to, cudnnBackendAttributeName_t name,
                      cudnnBackendAttributeType_t type, int64_t count, const void *value);

#endif
