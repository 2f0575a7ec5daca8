/* Canonical JSON; see json_canonical.h. */
#include "protocol/json_canonical.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/json.h"

static status add_canonical(strbuf *b, const cJSON *value, errbuf *err);

static int key_compare(const void *a, const void *b)
{
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

static status add_object(strbuf *b, const cJSON *object, errbuf *err)
{
    size_t count = (size_t)cJSON_GetArraySize(object), n = 0;
    const cJSON **members = calloc(count + 1, sizeof(*members));
    if (!members)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory sorting JSON keys");
    const cJSON *child;
    cJSON_ArrayForEach (child, object)
        members[n++] = child;
    qsort(members, n, sizeof(*members), key_compare);
    status st = STATUS_OK;
    strbuf_add(b, "{");
    for (size_t i = 0; i < n && st == STATUS_OK; i++) {
        if (i > 0 && key_compare(&members[i - 1], &members[i]) == 0) {
            st = errbuf_set(err, STATUS_BAD_INPUT, "duplicate key \"%s\"", members[i]->string);
            break;
        }
        if (i > 0)
            strbuf_add(b, ",");
        json_add_string(b, members[i]->string);
        strbuf_add(b, ":");
        st = add_canonical(b, members[i], err);
    }
    strbuf_add(b, "}");
    free(members);
    return st;
}

static status add_number(strbuf *b, double value, errbuf *err)
{
    if (!isfinite(value))
        return errbuf_set(err, STATUS_BAD_INPUT, "a number that is not finite has no JSON form");
    if (value == trunc(value) && fabs(value) <= (double)JSON_MAX_EXACT)
        strbuf_add_format(b, "%lld", (long long)value);
    else
        strbuf_add_format(b, "%.17g", value);
    return STATUS_OK;
}

static status add_canonical(strbuf *b, const cJSON *value, errbuf *err)
{
    if (cJSON_IsNumber(value))
        return add_number(b, value->valuedouble, err);
    if (cJSON_IsObject(value))
        return add_object(b, value, err);
    if (!cJSON_IsArray(value)) {
        json_add_value(b, value);
        return STATUS_OK;
    }
    strbuf_add(b, "[");
    for (const cJSON *child = value->child; child; child = child->next) {
        TRY(add_canonical(b, child, err));
        if (child->next)
            strbuf_add(b, ",");
    }
    strbuf_add(b, "]");
    return STATUS_OK;
}

status json_canonical(const cJSON *value, char **ret_text, errbuf *err)
{
    strbuf b = {0};
    status st = add_canonical(&b, value, err);
    if (st != STATUS_OK) {
        strbuf_fini(&b);
        return st;
    }
    return strbuf_take(&b, ret_text, err);
}
