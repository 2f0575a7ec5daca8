/*
 * Which of cuDNN's and our own kernels does a batch norm: a part of the plan. By default cuDNN's
 * where it has an engine; tuning times both and keeps what is faster; a given plan is followed.
 *
 * In the plan: "batch_norm": {"bn+add+relu bf16 n128 c64 h32 w32": "cudnn", …}.
 */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/bn_object.h"

#define PLAN_MEMBER "batch_norm"
#define KEY_SIZE    96

static const char *const side_names[BN_SIDES] = {
    [BN_CUDNN] = "cudnn", [BN_MIXED] = "mixed", [BN_OWN] = "own"};

/* ---- the plan ---- */

static void key_of(const backend_bn *b, char key[KEY_SIZE])
{
    const shape x = b->d.x;
    snprintf(key, KEY_SIZE, "bn%s%s%s %s n%d c%d h%d w%d", b->d.residual ? "+add" : "",
             b->d.gradients == 2 ? "+two" : "", b->d.relu ? "+relu" : "",
             cuda_is_bf16(b->be) ? "bf16" : "fp32", x.n, x.c, x.h, x.w);
}

status cuda_bn_take_plan(cuda_backend *be, const cJSON *plan, errbuf *err)
{
    const cJSON *sides = cJSON_GetObjectItemCaseSensitive(plan, PLAN_MEMBER), *side;
    if (!sides)
        return STATUS_OK;
    cJSON_ArrayForEach (side, sides) {
        bool known = false;
        for (int i = 0; i < BN_SIDES; i++)
            known |= cJSON_IsString(side) && strcmp(side->valuestring, side_names[i]) == 0;
        if (!known)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "plan: " PLAN_MEMBER ": \"%s\" is to be cudnn, mixed or own",
                              side->string ? side->string : "");
    }
    be->bn_plan = cJSON_Duplicate(sides, true);
    if (!be->bn_plan)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory reading the plan");
    return STATUS_OK;
}

bool cuda_bn_describe(const cuda_backend *be, cJSON *plan)
{
    cJSON *sides = be->bn_sides ? cJSON_Duplicate(be->bn_sides, true) : cJSON_CreateObject();
    if (sides && cJSON_AddItemToObject(plan, PLAN_MEMBER, sides))
        return true;
    cJSON_Delete(sides);
    return false;
}

void cuda_bn_forget_plan(cuda_backend *be)
{
    cJSON_Delete(be->bn_plan);
    cJSON_Delete(be->bn_sides);
    be->bn_plan = be->bn_sides = NULL;
}

bool bn_is_new(const backend_bn *b)
{
    char key[KEY_SIZE];
    key_of(b, key);
    return !cJSON_GetObjectItemCaseSensitive(b->be->bn_sides, key);
}

bool bn_chosen(const backend_bn *b, bn_sides *ret)
{
    char key[KEY_SIZE];
    key_of(b, key);
    const cJSON *side = cJSON_GetObjectItemCaseSensitive(b->be->bn_sides, key);
    if (!side)
        side = cJSON_GetObjectItemCaseSensitive(b->be->bn_plan, key);
    *ret = BN_CUDNN;
    for (int i = 0; side && i < BN_SIDES; i++)
        if (strcmp(side->valuestring, side_names[i]) == 0)
            *ret = (bn_sides)i;
    return side != NULL;
}

status bn_choose(const backend_bn *b, errbuf *err)
{
    char key[KEY_SIZE];
    cuda_backend *be = b->be;
    key_of(b, key);
    if (!be->bn_sides)
        be->bn_sides = cJSON_CreateObject();
    if (cJSON_GetObjectItemCaseSensitive(be->bn_sides, key) ||
        cJSON_AddStringToObject(be->bn_sides, key, side_names[b->sides]))
        return STATUS_OK;
    return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory for the plan of a batch norm");
}

/* ---- timing ---- */

enum {
    WARM_RUNS = 2,
    ROUNDS = 5,
    RUNS = 6,       /* in a round */
    FILLING = 0x3c, /* 0x3c3c: 0.0115 in bf16 and fp32: no zeros, which draw less power */
    PLACE = 256     /* alignment of a tensor in the scratch */
};

/* Tensors of the scratch; parameters and statistics follow them. */
enum {
    RACE_X,
    RACE_RESIDUAL,
    RACE_Y,
    RACE_DY1,
    RACE_DY2,
    RACE_DZ,
    RACE_DX,
    RACE_TENSORS
};
enum {
    RACE_GAMMA,
    RACE_BETA,
    RACE_SAVED,
    RACE_STATS = RACE_SAVED + 2,
    RACE_DGAMMA = RACE_STATS + 2,
    RACE_DBETA,
    RACE_VECTORS
};

typedef struct race {
    backend_bn *b;
    char *memory;
    cudaEvent_t begin, end;
} race;

static size_t place_after(size_t bytes)
{
    return (bytes + PLACE - 1) / PLACE * PLACE;
}

static size_t tensor_place(const backend_bn *b)
{
    return place_after((size_t)shape_elements(b->d.x) * cuda_element(b->be));
}

static float *tensor_at(const race *r, int which)
{
    return (float *)(void *)(r->memory + (size_t)which * tensor_place(r->b));
}

static float *vector_at(const race *r, int which)
{
    return tensor_at(r, RACE_TENSORS) + (size_t)which * (size_t)r->b->d.x.c;
}

static bool open_race(race *r)
{
    const size_t vectors = (size_t)RACE_VECTORS * (size_t)r->b->d.x.c * sizeof(float);
    const size_t bytes = RACE_TENSORS * tensor_place(r->b) + vectors;
    return cudaMalloc((void **)&r->memory, bytes) == cudaSuccess &&
           cudaMemsetAsync(r->memory, FILLING, bytes, r->b->be->stream) == cudaSuccess &&
           cudaEventCreate(&r->begin) == cudaSuccess && cudaEventCreate(&r->end) == cudaSuccess;
}

static void close_race(race *r)
{
    if (r->begin)
        cudaEventDestroy(r->begin);
    if (r->end)
        cudaEventDestroy(r->end);
    if (r->memory)
        cudaFree(r->memory);
    (void)cudaGetLastError(); /* memory that did not suffice is no error of a later call */
}

/* A forward pass and the kinds of backward pass that will be asked for. */
static status run_passes(const race *r)
{
    float *dy2[] = {NULL, tensor_at(r, RACE_DY2)};
    TRY(cuda_bn_forward_train(r->b, tensor_at(r, RACE_X), tensor_at(r, RACE_RESIDUAL),
                              vector_at(r, RACE_GAMMA), vector_at(r, RACE_BETA),
                              tensor_at(r, RACE_Y), vector_at(r, RACE_SAVED),
                              vector_at(r, RACE_STATS)));
    const int asked = r->b->d.gradients;
    for (int two = asked == 2; two < (asked == 1 ? 1 : 2) && asked >= 0; two++)
        TRY(cuda_bn_backward(
            r->b, tensor_at(r, RACE_X), tensor_at(r, RACE_Y), vector_at(r, RACE_GAMMA),
            vector_at(r, RACE_SAVED), tensor_at(r, RACE_DY1), dy2[two], tensor_at(r, RACE_DZ),
            tensor_at(r, RACE_DX), vector_at(r, RACE_DGAMMA), vector_at(r, RACE_DBETA)));
    return STATUS_OK;
}

/* Milliseconds, or a negative number where it cannot be run. */
static float time_sides(const race *r, bn_sides sides, int runs)
{
    cudaStream_t stream = r->b->be->stream;
    float ms = -1;
    r->b->sides = sides;
    bool ok = cudaEventRecord(r->begin, stream) == cudaSuccess;
    for (int i = 0; ok && i < runs; i++)
        ok = run_passes(r) == STATUS_OK;
    ok = ok && cudaEventRecord(r->end, stream) == cudaSuccess &&
         cudaEventSynchronize(r->end) == cudaSuccess &&
         cudaEventElapsedTime(&ms, r->begin, r->end) == cudaSuccess;
    return ok ? ms : -1;
}

static int compare_floats(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Rounds go over all of them in turn, so that a clock that drifts is shared; the earlier wins a
 * tie. */
bn_sides bn_fastest(backend_bn *b)
{
    race r = {.b = b};
    float ms[BN_SIDES][ROUNDS];
    bool usable[BN_SIDES] = {false};
    if (b->d.gradients < 0) /* training decides how a shape is done */
        return b->sides;
    int best = -1;
    const bool is_open = open_race(&r);
    for (int i = 0; is_open && i < BN_SIDES; i++)
        usable[i] = time_sides(&r, (bn_sides)i, WARM_RUNS) >= 0;
    for (int round = 0; is_open && round < ROUNDS; round++)
        for (int i = 0; i < BN_SIDES; i++) {
            ms[i][round] = usable[i] ? time_sides(&r, (bn_sides)i, RUNS) : -1;
            usable[i] = ms[i][round] >= 0;
        }
    for (int i = 0; i < BN_SIDES; i++) {
        if (!usable[i])
            continue;
        qsort(ms[i], ROUNDS, sizeof **ms, compare_floats);
        if (best < 0 || ms[i][ROUNDS / 2] < ms[best][ROUNDS / 2])
            best = i;
    }
    close_race(&r);
    return best < 0 ? BN_CUDNN : (bn_sides)best;
}
