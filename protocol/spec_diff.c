/* What differs between two texts of spec_dump_results, field by field. */
#include <stdlib.h>
#include <string.h>

#include "protocol/json.h"
#include "protocol/spec_internal.h"

static void add_side(strbuf *b, const cJSON *value, const char *side)
{
    if (!value) {
        strbuf_add_format(b, "not set %s", side);
        return;
    }
    if (cJSON_IsString(value))
        strbuf_add(b, value->valuestring);
    else
        json_add_value(b, value);
    strbuf_add_format(b, " %s", side);
}

static void add_difference(strbuf *b, const char *path, const cJSON *here, const cJSON *there)
{
    if (b->length > 0)
        strbuf_add(b, "\n");
    strbuf_add_format(b, "%s: ", path);
    add_side(b, here, "here");
    strbuf_add(b, ", ");
    add_side(b, there, "there");
}

/* Groups are compared member by member; rpg.sizes is a value although it is an object. */
static status diff_objects(strbuf *b, const char *prefix, const cJSON *here, const cJSON *there,
                           errbuf *err);

static status diff_member(strbuf *b, const char *prefix, const char *name, const cJSON *here,
                          const cJSON *there, errbuf *err)
{
    strbuf joined = {0};
    char *path = NULL;
    strbuf_add_format(&joined, "%s%s%s", prefix, prefix[0] ? "." : "", name);
    TRY(strbuf_take(&joined, &path, err));
    status st = STATUS_OK;
    bool is_group =
        !prefix[0] && (!here || cJSON_IsObject(here)) && (!there || cJSON_IsObject(there));
    if (is_group)
        st = diff_objects(b, path, here, there, err);
    else if (!here || !there || !cJSON_Compare(here, there, true))
        add_difference(b, path, here, there);
    free(path);
    return st;
}

static status diff_objects(strbuf *b, const char *prefix, const cJSON *here, const cJSON *there,
                           errbuf *err)
{
    for (const cJSON *h = here ? here->child : NULL; h; h = h->next)
        TRY(diff_member(b, prefix, h->string, h, cJSON_GetObjectItemCaseSensitive(there, h->string),
                        err));
    for (const cJSON *t = there ? there->child : NULL; t; t = t->next)
        if (!cJSON_GetObjectItemCaseSensitive(here, t->string))
            TRY(diff_member(b, prefix, t->string, NULL, t, err));
    return STATUS_OK;
}

status spec_diff_results(const char *here, const char *there, char **ret_text, errbuf *err)
{
    cJSON *h = NULL, *t = NULL;
    strbuf b = {0};
    status st;
    TRY_GOTO(json_parse(here, strlen(here), "the spec here", &h, err), st, cleanup);
    TRY_GOTO(json_parse(there, strlen(there), "the spec there", &t, err), st, cleanup);
    if (!cJSON_IsObject(h) || !cJSON_IsObject(t)) {
        st = errbuf_set(err, STATUS_BAD_INPUT, "the spec %s is not a JSON object",
                        cJSON_IsObject(h) ? "there" : "here");
        goto cleanup;
    }
    TRY_GOTO(diff_objects(&b, "", h, t, err), st, cleanup);
    st = strbuf_take(&b, ret_text, err);
cleanup:
    strbuf_fini(&b);
    cJSON_Delete(h);
    cJSON_Delete(t);
    return st;
}
