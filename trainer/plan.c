/* Plans; see plan.h. */
#include "trainer/plan.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/file.h"
#include "protocol/json.h"
#include "protocol/json_canonical.h"

#define PLAN_MAX_BYTES (16 << 20)

status plan_describe(backend *be, const comm *c, bool exact, char **ret_text, errbuf *err)
{
    cJSON *plan = NULL;
    TRY(be->ops->describe(be, &plan, err));
    if (exact) {
        cJSON_DeleteItemFromObjectCaseSensitive(plan, "lanes");
        cJSON_DeleteItemFromObjectCaseSensitive(plan, "threads");
        cJSON_AddNumberToObject(plan, "threads", 1);
    } else {
        cJSON_AddNumberToObject(plan, "ranks_per_host", c->local_size);
        cJSON_AddStringToObject(plan, "all_reduce", c->size > 1 ? "mpi-tree-1" : "self");
    }
    status st = json_canonical(plan, ret_text, err);
    cJSON_Delete(plan);
    return st;
}

status plan_load(const char *path, char **ret_text, errbuf *err)
{
    char *text = NULL;
    size_t length = 0;
    TRY(file_read_all(path, PLAN_MAX_BYTES, &text, &length, err));
    cJSON *plan = NULL;
    status st = json_parse(text, length, path, &plan, err);
    if (st == STATUS_OK && !cJSON_IsObject(plan))
        st = errbuf_set(err, STATUS_BAD_INPUT, "%s: a plan is a JSON object", path);
    cJSON_Delete(plan);
    if (st != STATUS_OK) {
        free(text);
        return st;
    }
    *ret_text = text;
    return STATUS_OK;
}

status plan_share(comm *c, char **text, errbuf *err)
{
    if (c->size == 1)
        return STATUS_OK;
    int64_t length = *text ? (int64_t)strlen(*text) : -1;
    TRY(c->ops->broadcast(c, &length, sizeof length, 0, err));
    if (length < 0)
        return STATUS_OK;
    const bool receives = c->rank != 0;
    char *copy = receives ? calloc((size_t)length + 1, 1) : *text;
    status st =
        copy ? STATUS_OK : errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory sharing the plan");
    st = comm_agree(c, st, err);
    if (st == STATUS_OK)
        st = c->ops->broadcast(c, copy, length, 0, err);
    if (receives && st == STATUS_OK) {
        free(*text);
        *text = copy;
    } else if (receives) {
        free(copy);
    }
    return st;
}
