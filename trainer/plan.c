/* Plans; see plan.h. */
#include "trainer/plan.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/file.h"
#include "protocol/json.h"
#include "protocol/json_canonical.h"
#include "protocol/spec.h"
#include "protocol/strbuf.h"
#include "trainer/checkpoint.h"

#define PLAN_MAX_BYTES (16 << 20)

/* The words of the collectives, one by one. */
static status add_collectives(cJSON *plan, const comm_device *reduce, errbuf *err)
{
    cJSON *words = NULL;
    TRY(reduce->ops->describe(reduce, &words, err));
    for (cJSON *word = words->child; word;) {
        cJSON *next = word->next;
        cJSON_AddItemToObject(plan, word->string, cJSON_DetachItemViaPointer(words, word));
        word = next;
    }
    cJSON_Delete(words);
    return STATUS_OK;
}

status plan_describe(backend *be, const comm *c, const comm_device *reduce, bool exact,
                     char **ret_text, errbuf *err)
{
    cJSON *plan = NULL;
    status st = STATUS_OK;
    TRY(be->ops->describe(be, &plan, err));
    if (exact) {
        cJSON_DeleteItemFromObjectCaseSensitive(plan, "lanes");
        cJSON_DeleteItemFromObjectCaseSensitive(plan, "threads");
        cJSON_AddNumberToObject(plan, "threads", 1);
    } else {
        cJSON_AddNumberToObject(plan, "ranks_per_host", c->local_size);
        if (reduce)
            st = add_collectives(plan, reduce, err);
        else
            cJSON_AddStringToObject(plan, "all_reduce", c->size > 1 ? "mpi-tree-1" : "self");
    }
    if (st == STATUS_OK)
        st = json_canonical(plan, ret_text, err);
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

status plan_check_given(const char *given, const char *plan, const char *path, errbuf *err)
{
    static const char *const fields[] = {"backend", "isa",        "onednn",  "threads",
                                         "device",  "capability", "compute", "cuda"};
    cJSON *theirs = NULL, *ours = NULL;
    status st = json_parse(given, strlen(given), path, &theirs, err);
    if (st == STATUS_OK)
        st = json_parse(plan, strlen(plan), "plan", &ours, err);
    for (size_t i = 0; i < sizeof fields / sizeof *fields && st == STATUS_OK; i++) {
        const cJSON *a = cJSON_GetObjectItemCaseSensitive(theirs, fields[i]);
        const cJSON *b = cJSON_GetObjectItemCaseSensitive(ours, fields[i]);
        if (!a || !b || cJSON_Compare(a, b, true))
            continue;
        char *was = cJSON_PrintUnformatted(a), *is = cJSON_PrintUnformatted(b);
        st =
            errbuf_set(err, STATUS_BAD_INPUT,
                       "%s: the plan is for %s %s, this is %s: run as it was made, or make another "
                       "with backend.plan=tune",
                       path, fields[i], was ? was : "?", is ? is : "?");
        free(was);
        free(is);
    }
    cJSON_Delete(theirs);
    cJSON_Delete(ours);
    return st;
}

/* The text without what ranks may differ in. */
static status comparable(const char *text, char **ret_text, errbuf *err)
{
    cJSON *plan = NULL;
    TRY(json_parse(text, strlen(text), "plan", &plan, err));
    cJSON_DeleteItemFromObjectCaseSensitive(plan, "ranks_per_host");
    status st = json_canonical(plan, ret_text, err);
    cJSON_Delete(plan);
    return st;
}

static status compare_plans(const char *mine, const char *first, errbuf *err)
{
    char *a = NULL, *b = NULL, *lines = NULL, shown[512];
    status st = comparable(mine, &a, err);
    if (st == STATUS_OK)
        st = comparable(first, &b, err);
    if (st == STATUS_OK && strcmp(a, b) != 0) {
        st = spec_diff_results(a, b, &lines, err);
        if (st == STATUS_OK) {
            checkpoint_fold_diff(lines, shown, sizeof shown);
            st = errbuf_set(err, STATUS_BAD_INPUT,
                            "computes otherwise than rank 0 (%s): use hosts of one kind and with "
                            "the same libraries, or ONEDNN_MAX_CPU_ISA to hold all to one "
                            "instruction set",
                            shown);
        }
    }
    free(a);
    free(b);
    free(lines);
    return st;
}

status plan_settle(comm *c, char **plan, errbuf *err)
{
    char *first = NULL;
    if (c->size == 1)
        return STATUS_OK;
    status st = c->rank == 0 ? string_copy(*plan, &first, err) : STATUS_OK;
    TRY(comm_agree(c, st, err));
    st = plan_share(c, &first, err);
    ASSERT(st != STATUS_OK || first); /* rank 0 has one */
    if (st == STATUS_OK)
        st = comm_agree(c, compare_plans(*plan, first, err), err);
    if (st != STATUS_OK) {
        free(first);
        return st;
    }
    free(*plan);
    *plan = first;
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

void plan_cache_folder(char *path, size_t size)
{
    const char *given = getenv("RINGMASTER_CACHE"), *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    int length = -1;
    if (given)
        length = snprintf(path, size, "%s", given);
    else if (xdg && xdg[0] == '/')
        length = snprintf(path, size, "%s/ringmaster/plans", xdg);
    else if (home && home[0] == '/')
        length = snprintf(path, size, "%s/.cache/ringmaster/plans", home);
    if (length < 0 || (size_t)length >= size)
        path[0] = '\0';
}
