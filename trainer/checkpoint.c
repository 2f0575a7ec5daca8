/*
 * Checkpoints (checkpoint.h): a net's vectors cut into named tensors, and the metadata that says
 * which run they belong to. Tensors stand in the order of the parameter table, then the norms'
 * statistics, then the optimiser's states; metadata keys are sorted. Both orders, and with them
 * the bytes, are functions of the net and of the content alone.
 */
#include "trainer/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/json.h"
#include "protocol/json_canonical.h"
#include "protocol/spec.h"
#include "protocol/strbuf.h"
#include "trainer/safetensors.h"

#define FORMAT_NAME    "ringmaster-checkpoint"
#define FORMAT_VERSION 1
#define ENTRY_NAME_MAX (2 * NET_NAME_MAX + 16)
#define DIGITS_MAX     24
#define SHOWN_FIELDS   6 /* differing fields that a message names */

/* ---- the tensors of a net ---- */

/* `tensor` describes them for the file; values[i] is where tensor[i] lies in the checkpoint. */
typedef struct tensor_list {
    safetensors_tensor *tensor;
    float **values;
    char (*name)[ENTRY_NAME_MAX];
    size_t count;
} tensor_list;

static void list_fini(tensor_list *l)
{
    free(l->tensor);
    free(l->values);
    free(l->name);
    memset(l, 0, sizeof *l);
}

static safetensors_tensor *list_add(tensor_list *l, float *values)
{
    const size_t i = l->count++;
    l->values[i] = values;
    l->tensor[i] =
        (safetensors_tensor){.name = l->name[i], .dtype = SAFETENSORS_F32, .data = values};
    return &l->tensor[i];
}

static void add_param(tensor_list *l, const net_param *p, const char *state, float *vector)
{
    char *name = l->name[l->count];
    safetensors_tensor *t = list_add(l, vector + p->offset);
    if (state != NULL)
        snprintf(name, ENTRY_NAME_MAX, "optim.%s.%s", state, p->name);
    else
        snprintf(name, ENTRY_NAME_MAX, "%s", p->name);
    t->dims = p->dims;
    for (int d = 0; d < p->dims; d++)
        t->dim[d] = p->dim[d];
}

static void add_statistic(tensor_list *l, const net_norm *norm, const char *what, float *values)
{
    snprintf(l->name[l->count], ENTRY_NAME_MAX, "%s.%s", norm->name, what);
    safetensors_tensor *t = list_add(l, values);
    t->dims = 1;
    t->dim[0] = norm->channels;
}

static status list_make(const checkpoint *c, tensor_list *ret_list, errbuf *err)
{
    const net *n = c->net;
    const size_t count = (size_t)n->params * (1 + (size_t)c->optims) + 2 * (size_t)n->norms;
    tensor_list l = {.tensor = calloc(count + 1, sizeof *l.tensor),
                     .values = calloc(count + 1, sizeof *l.values),
                     .name = calloc(count + 1, sizeof *l.name)};
    if (l.tensor == NULL || l.values == NULL || l.name == NULL) {
        list_fini(&l);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a list of %zu tensors", count);
    }
    for (int i = 0; i < n->params; i++)
        add_param(&l, &n->param[i], NULL, c->params);
    for (int i = 0; i < n->norms; i++) {
        const net_norm *norm = &n->norm[i];
        add_statistic(&l, norm, "running_mean", c->running + norm->running);
        add_statistic(&l, norm, "running_var", c->running + norm->running + norm->channels);
    }
    for (int o = 0; o < c->optims; o++)
        for (int i = 0; i < n->params; i++)
            add_param(&l, &n->param[i], c->optim[o].name, c->optim[o].values);
    ASSERT(l.count == count);
    *ret_list = l;
    return STATUS_OK;
}

/* ---- metadata texts ---- */

static status add_slot(cJSON *table, const net *n, const net_kernel *k, errbuf *err)
{
    const int sides[4] = {k->shape.out, k->shape.in, k->shape.kh, k->shape.kw};
    cJSON *slot = cJSON_CreateObject();
    if (cJSON_AddStringToObject(slot, "name", k->name) == NULL ||
        cJSON_AddNumberToObject(slot, "offset", (double)k->first) == NULL ||
        cJSON_AddStringToObject(slot, "ring", n->ring[k->ring].name) == NULL ||
        !cJSON_AddItemToObject(slot, "shape", cJSON_CreateIntArray(sides, 4)) ||
        !cJSON_AddItemToArray(table, slot)) {
        cJSON_Delete(slot);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for the slot table");
    }
    return STATUS_OK;
}

/* Ring-backed kernels in construction order: what position of which ring's weights is whose. */
static status slots_json(const net *n, cJSON **ret_table, errbuf *err)
{
    cJSON *table = cJSON_CreateArray();
    if (table == NULL)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for the slot table");
    for (int i = 0; i < n->kernels; i++) {
        status st = n->kernel[i].ring < 0 ? STATUS_OK : add_slot(table, n, &n->kernel[i], err);
        if (st != STATUS_OK) {
            cJSON_Delete(table);
            return st;
        }
    }
    *ret_table = table;
    return STATUS_OK;
}

static status slots_text(const net *n, char **ret_text, errbuf *err)
{
    cJSON *table = NULL;
    TRY(slots_json(n, &table, err));
    status st = json_canonical(table, ret_text, err);
    cJSON_Delete(table);
    return st;
}

/* The text of an object; consumes it, also on failure. `is_whole`: every member could be added. */
static status object_text(cJSON *object, bool is_whole, char **ret_text, errbuf *err)
{
    status st = is_whole ? json_canonical(object, ret_text, err)
                         : errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for the metadata");
    cJSON_Delete(object);
    return st;
}

static status best_text(const train_state *s, char **ret_text, errbuf *err)
{
    cJSON *best = cJSON_CreateObject();
    const bool is_whole = cJSON_AddNumberToObject(best, "epoch", (double)s->best_epoch) != NULL &&
                          cJSON_AddNumberToObject(best, "step", (double)s->best_step) != NULL &&
                          cJSON_AddNumberToObject(best, "top1", s->best_top1) != NULL;
    return object_text(best, is_whole, ret_text, err);
}

static status train_text(const sample_sums *s, char **ret_text, errbuf *err)
{
    cJSON *sums = cJSON_CreateObject();
    const bool is_whole = cJSON_AddNumberToObject(sums, "count", (double)s->count) != NULL &&
                          cJSON_AddNumberToObject(sums, "loss", s->loss) != NULL &&
                          cJSON_AddNumberToObject(sums, "skipped", (double)s->skipped) != NULL &&
                          cJSON_AddNumberToObject(sums, "top1", (double)s->top1) != NULL &&
                          cJSON_AddNumberToObject(sums, "top5", (double)s->top5) != NULL;
    return object_text(sums, is_whole, ret_text, err);
}

/* ---- writing ---- */

/* Texts of the metadata that are made for the file. */
typedef struct made_texts {
    char *slots, *best, *train;
} made_texts;

static status write_tensors(const checkpoint *c, const tensor_list *l, const made_texts *made,
                            const char *path, errbuf *err)
{
    char number[5][DIGITS_MAX];
    snprintf(number[0], DIGITS_MAX, "%lld", (long long)c->state.epoch);
    snprintf(number[1], DIGITS_MAX, "%d", FORMAT_VERSION);
    snprintf(number[2], DIGITS_MAX, "%d", RING_MAP_VERSION);
    snprintf(number[3], DIGITS_MAX, "%lld", (long long)c->state.next_seq);
    snprintf(number[4], DIGITS_MAX, "%lld", (long long)c->state.step);
    const safetensors_string metadata[] = {
        {"best", made->best},          {"data_hash", c->data_hash},
        {"epoch", number[0]},          {"format", FORMAT_NAME},
        {"format_version", number[1]}, {"map_version", number[2]},
        {"next_seq", number[3]},       {"plan", c->plan},
        {"results", c->results},       {"slots", made->slots},
        {"step", number[4]},           {"train", made->train},
    };
    return safetensors_write(path, metadata, sizeof metadata / sizeof metadata[0], l->tensor,
                             l->count, err);
}

status checkpoint_write(const checkpoint *c, const char *path, errbuf *err)
{
    status st = STATUS_OK;
    tensor_list list = {0};
    made_texts made = {0};
    ASSERT(c->results != NULL && c->plan != NULL);
    TRY_GOTO(slots_text(c->net, &made.slots, err), st, cleanup);
    TRY_GOTO(best_text(&c->state, &made.best, err), st, cleanup);
    TRY_GOTO(train_text(&c->state.train, &made.train, err), st, cleanup);
    TRY_GOTO(list_make(c, &list, err), st, cleanup);
    st = write_tensors(c, &list, &made, path, err);
cleanup:
    list_fini(&list);
    free(made.train);
    free(made.best);
    free(made.slots);
    return st;
}

/* ---- reading the metadata ---- */

static status want_string(const safetensors_file *file, const char *key, const char **ret,
                          errbuf *err)
{
    const char *value = safetensors_metadata(&file->header, key);
    if (value == NULL)
        return errbuf_set(err, STATUS_BAD_INPUT, "metadata has no '%s'", key);
    *ret = value;
    return STATUS_OK;
}

static status want_number(const safetensors_file *file, const char *key, int64_t *ret, errbuf *err)
{
    const char *text = NULL;
    int64_t value = 0;
    TRY(want_string(file, key, &text, err));
    const size_t length = strspn(text, "0123456789");
    if (length == 0 || length > 18 || text[length] != '\0')
        return errbuf_set(err, STATUS_BAD_INPUT, "metadata '%s' is not a number", key);
    for (size_t i = 0; i < length; i++)
        value = value * 10 + (text[i] - '0');
    *ret = value;
    return STATUS_OK;
}

/* The file is sealed, a checkpoint, and of the versions that this program reads. */
static status check_format(const safetensors_file *file, errbuf *err)
{
    int64_t format = 0, map = 0;
    const char *name = safetensors_metadata(&file->header, "format");
    if (!file->header.sealed || name == NULL || strcmp(name, FORMAT_NAME) != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "not a checkpoint of ringtrain, or damaged: metadata lacks its format or "
                          "hashes");
    TRY(want_number(file, "format_version", &format, err));
    TRY(want_number(file, "map_version", &map, err));
    if (format != FORMAT_VERSION)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "checkpoint format version %lld, this ringtrain reads %d",
                          (long long)format, FORMAT_VERSION);
    if (map != RING_MAP_VERSION)
        return errbuf_set(
            err, STATUS_BAD_INPUT,
            "ring map version %lld, this ringtrain has %d: its weights would be others",
            (long long)map, RING_MAP_VERSION);
    return STATUS_OK;
}

/* The JSON that a metadata string holds. The caller deletes it. */
static status want_json(const safetensors_file *file, const char *key, cJSON **ret, errbuf *err)
{
    const char *text = NULL;
    TRY(want_string(file, key, &text, err));
    return json_parse(text, strlen(text), key, ret, err);
}

static status want_real(const cJSON *object, const char *name, const char *where, double *ret,
                        errbuf *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsNumber(item))
        return errbuf_set(err, STATUS_BAD_INPUT, "%s%s: expected a number", where, name);
    *ret = item->valuedouble;
    return STATUS_OK;
}

static status read_best(const safetensors_file *file, train_state *s, errbuf *err)
{
    status st = STATUS_OK;
    cJSON *best = NULL;
    TRY_GOTO(want_json(file, "best", &best, err), st, cleanup);
    TRY_GOTO(json_read_int(best, "epoch", -1, JSON_MAX_EXACT, "best.", &s->best_epoch, err), st,
             cleanup);
    TRY_GOTO(json_read_int(best, "step", -1, JSON_MAX_EXACT, "best.", &s->best_step, err), st,
             cleanup);
    TRY_GOTO(want_real(best, "top1", "best.", &s->best_top1, err), st, cleanup);
cleanup:
    cJSON_Delete(best);
    return st;
}

static status read_train(const safetensors_file *file, sample_sums *s, errbuf *err)
{
    status st = STATUS_OK;
    cJSON *sums = NULL;
    const struct {
        const char *name;
        int64_t *to;
    } counts[] = {
        {"count", &s->count}, {"skipped", &s->skipped}, {"top1", &s->top1}, {"top5", &s->top5}};
    TRY_GOTO(want_json(file, "train", &sums, err), st, cleanup);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        TRY_GOTO(
            json_read_int(sums, counts[i].name, 0, JSON_MAX_EXACT, "train.", counts[i].to, err), st,
            cleanup);
    TRY_GOTO(want_real(sums, "loss", "train.", &s->loss, err), st, cleanup);
cleanup:
    cJSON_Delete(sums);
    return st;
}

static status read_state(const safetensors_file *file, train_state *ret_state, errbuf *err)
{
    train_state s = {0};
    TRY(want_number(file, "step", &s.step, err));
    TRY(want_number(file, "epoch", &s.epoch, err));
    TRY(want_number(file, "next_seq", &s.next_seq, err));
    TRY(read_best(file, &s, err));
    TRY(read_train(file, &s.train, err));
    *ret_state = s;
    return STATUS_OK;
}

static status read_metadata(const safetensors_file *file, checkpoint_head *ret, errbuf *err)
{
    status st = STATUS_OK;
    checkpoint_head h = {0};
    const char *results = NULL, *plan = NULL, *data_hash = NULL;
    TRY(check_format(file, err));
    TRY(read_state(file, &h.state, err));
    TRY(want_string(file, "results", &results, err));
    TRY(want_string(file, "plan", &plan, err));
    TRY(want_string(file, "data_hash", &data_hash, err));
    if (strlen(data_hash) >= sizeof h.data_hash)
        return errbuf_set(err, STATUS_BAD_INPUT, "metadata 'data_hash' is too long");
    memcpy(h.data_hash, data_hash, strlen(data_hash));
    TRY_GOTO(string_copy(results, &h.results, err), st, fail);
    TRY_GOTO(string_copy(plan, &h.plan, err), st, fail);
    *ret = h;
    return STATUS_OK;
fail:
    checkpoint_head_fini(&h);
    return st;
}

static status read_head(const safetensors_file *file, checkpoint_head *ret, errbuf *err)
{
    const status st = read_metadata(file, ret, err);
    if (st != STATUS_OK)
        errbuf_prefix(err, "%s", file->path);
    return st;
}

void checkpoint_head_fini(checkpoint_head *h)
{
    if (h == NULL)
        return;
    free(h->results);
    free(h->plan);
    memset(h, 0, sizeof *h);
}

status checkpoint_read_head(const char *path, checkpoint_head *ret, errbuf *err)
{
    safetensors_file *file = NULL;
    TRY(safetensors_open(path, &file, err));
    status st = read_head(file, ret, err);
    safetensors_close(&file);
    return st;
}

status checkpoint_verify(const char *path, checkpoint_head *ret, errbuf *err)
{
    status st = STATUS_OK;
    checkpoint_head head = {0};
    safetensors_file *file = NULL;
    TRY(safetensors_open(path, &file, err));
    TRY_GOTO(read_head(file, &head, err), st, cleanup);
    TRY_GOTO(safetensors_verify(file, err), st, cleanup);
    *ret = head;
    memset(&head, 0, sizeof head);
cleanup:
    checkpoint_head_fini(&head);
    safetensors_close(&file);
    return st;
}

/* ---- reading the tensors ---- */

static status refuse_slot(const char *path, int number, const cJSON *here, const cJSON *there,
                          errbuf *err)
{
    char *mine = NULL, *its = NULL;
    status st = here == NULL ? STATUS_OK : json_canonical(here, &mine, err);
    if (st == STATUS_OK && there != NULL)
        st = json_canonical(there, &its, err);
    if (st == STATUS_OK)
        st = errbuf_set(err, STATUS_BAD_INPUT,
                        "%s: slot table of another network: slot %d is %.150s in the file, %.150s "
                        "here",
                        path, number, its != NULL ? its : "missing",
                        mine != NULL ? mine : "missing");
    free(mine);
    free(its);
    return st;
}

static status compare_slots(const safetensors_file *file, const cJSON *here, const cJSON *there,
                            errbuf *err)
{
    const cJSON *mine = here->child, *its = cJSON_IsArray(there) ? there->child : NULL;
    for (int i = 0; mine != NULL || its != NULL; i++) {
        if (!cJSON_Compare(mine, its, true))
            return refuse_slot(file->path, i, mine, its, err);
        mine = mine != NULL ? mine->next : NULL;
        its = its != NULL ? its->next : NULL;
    }
    return STATUS_OK;
}

static status check_slots(const safetensors_file *file, const net *n, errbuf *err)
{
    status st = STATUS_OK;
    cJSON *here = NULL, *there = NULL;
    TRY(slots_json(n, &here, err));
    st = want_json(file, "slots", &there, err);
    if (st != STATUS_OK)
        errbuf_prefix(err, "%s", file->path);
    else
        st = compare_slots(file, here, there, err);
    cJSON_Delete(here);
    cJSON_Delete(there);
    return st;
}

static bool same_shape(const safetensors_tensor *a, const safetensors_tensor *b)
{
    return a->dtype == b->dtype && a->dims == b->dims &&
           memcmp(a->dim, b->dim, (size_t)a->dims * sizeof a->dim[0]) == 0;
}

static bool is_listed(const tensor_list *l, const char *name)
{
    for (size_t i = 0; i < l->count; i++)
        if (strcmp(l->name[i], name) == 0)
            return true;
    return false;
}

/* Every tensor of the list is in the file with its shape, and no other is; a list without
 * optimiser states does not care for the file's. */
static status check_tensors(const safetensors_file *file, const tensor_list *l, bool has_optim,
                            errbuf *err)
{
    for (size_t i = 0; i < l->count; i++) {
        const safetensors_tensor *want = &l->tensor[i],
                                 *got = safetensors_find(&file->header, want->name);
        if (got == NULL)
            return errbuf_set(err, STATUS_BAD_INPUT, "%s: tensor '%s' is missing", file->path,
                              want->name);
        if (!same_shape(want, got)) {
            char here[120], there[120];
            safetensors_describe(want, here, sizeof here);
            safetensors_describe(got, there, sizeof there);
            return errbuf_set(err, STATUS_BAD_INPUT, "%s: tensor '%s' is %s, this network has %s",
                              file->path, want->name, there, here);
        }
    }
    if (file->header.tensors == l->count)
        return STATUS_OK;
    for (size_t i = 0; i < file->header.tensors; i++) {
        const char *name = file->header.tensor[i].name;
        const bool is_passed_over = !has_optim && strncmp(name, "optim.", 6) == 0;
        if (!is_passed_over && !is_listed(l, name))
            return errbuf_set(err, STATUS_BAD_INPUT, "%s: tensor '%.100s' is not of this network",
                              file->path, name);
    }
    return STATUS_OK;
}

static status read_tensors(const checkpoint *c, const safetensors_file *file, errbuf *err)
{
    status st = STATUS_OK;
    tensor_list l = {0};
    TRY_GOTO(list_make(c, &l, err), st, cleanup);
    TRY_GOTO(check_tensors(file, &l, c->optims > 0, err), st, cleanup);
    TRY_GOTO(safetensors_verify(file, err), st, cleanup);
    for (size_t i = 0; i < l.count; i++)
        TRY_GOTO(
            safetensors_read(file, safetensors_find(&file->header, l.name[i]), l.values[i], err),
            st, cleanup);
cleanup:
    list_fini(&l);
    return st;
}

status checkpoint_read(checkpoint *c, const char *path, errbuf *err)
{
    status st = STATUS_OK;
    checkpoint_head head = {0};
    safetensors_file *file = NULL;
    TRY_GOTO(safetensors_open(path, &file, err), st, cleanup);
    TRY_GOTO(read_head(file, &head, err), st, cleanup);
    TRY_GOTO(check_slots(file, c->net, err), st, cleanup);
    TRY_GOTO(read_tensors(c, file, err), st, cleanup);
    checkpoint_fini(c);
    c->state = head.state;
    c->results = head.results;
    c->plan = head.plan;
    memcpy(c->data_hash, head.data_hash, sizeof c->data_hash);
    memset(&head, 0, sizeof head);
cleanup:
    checkpoint_head_fini(&head);
    safetensors_close(&file);
    return st;
}

void checkpoint_fini(checkpoint *c)
{
    if (c == NULL)
        return;
    free(c->results);
    free(c->plan);
    c->results = NULL;
    c->plan = NULL;
}

/* ---- comparing ---- */

void checkpoint_fold_diff(const char *lines, char *ret_text, size_t size)
{
    size_t at = 0;
    int count = 0, more = 0;
    ret_text[0] = '\0';
    while (*lines != '\0') {
        const size_t length = strcspn(lines, "\n");
        if (length > 0 && count++ >= SHOWN_FIELDS)
            more++;
        else if (length > 0 && at < size)
            at += (size_t)snprintf(ret_text + at, size - at, "%s%.*s", at > 0 ? "; " : "",
                                   (int)(length < 120 ? length : 120), lines);
        lines += length + (lines[length] == '\n');
    }
    if (more > 0 && at < size)
        snprintf(ret_text + at, size - at, "; and %d more", more);
}

status checkpoint_compare(const char *results, const char *data_hash, const checkpoint_head *file,
                          const char *path, errbuf *err)
{
    char *lines = NULL, text[800];
    TRY(spec_diff_results(results, file->results, &lines, err));
    checkpoint_fold_diff(lines, text, sizeof text);
    free(lines);
    if (text[0] != '\0')
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: checkpoint of another spec: %s", path, text);
    if (strcmp(data_hash, file->data_hash) != 0)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%s: checkpoint of a run on other data: content hash %.12s here, %.12s "
                          "there",
                          path, data_hash, file->data_hash);
    return STATUS_OK;
}
