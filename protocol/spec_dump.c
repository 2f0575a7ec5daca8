/* A spec as text: the whole of it, and the part that results depend on. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/json.h"
#include "protocol/json_canonical.h"
#include "protocol/spec_internal.h"

static void write_number(strbuf *b, double value)
{
    char text[JSON_NUMBER_MAX];
    json_format_double(value, text);
    strbuf_add(b, text);
}

static void write_value(const spec *s, const spec_field *f, bool pretty, strbuf *b)
{
    const void *at = spec_at_const(s, f);
    const char *comma = pretty ? ", " : ",";
    const spec_sizes *sizes = at;
    const spec_milestones *milestones = at;
    uint64_t seed;
    switch (f->type) {
    case SPEC_INT:
        strbuf_add_format(b, "%" PRId64, *(const int64_t *)at);
        break;
    case SPEC_SEED:
        seed = *(const uint64_t *)at;
        strbuf_add_format(b, seed < JSON_MAX_EXACT ? "%" PRIu64 : "\"%" PRIu64 "\"", seed);
        break;
    case SPEC_DOUBLE:
        write_number(b, *(const double *)at);
        break;
    case SPEC_BOOL:
        strbuf_add(b, *(const bool *)at ? "true" : "false");
        break;
    case SPEC_STRING:
        json_add_string(b, *(char *const *)at);
        break;
    case SPEC_ENUM:
        json_add_string(b, f->names[*(const int *)at]);
        break;
    case SPEC_SIZES:
        strbuf_add(b, "{");
        for (int i = 0; i < sizes->count; i++) {
            strbuf_add(b, i ? comma : "");
            json_add_string(b, sizes->entry[i].ring);
            strbuf_add_format(b, pretty ? ": %" PRId64 : ":%" PRId64, sizes->entry[i].size);
        }
        strbuf_add(b, "}");
        break;
    case SPEC_MILESTONES:
        strbuf_add(b, "[");
        for (int i = 0; i < milestones->count; i++) {
            strbuf_add(b, i ? comma : "");
            write_number(b, milestones->epoch[i]);
        }
        strbuf_add(b, "]");
        break;
    }
}

/* Length of the field's group name, 0 where it has none. */
static size_t group_length(const spec_field *f)
{
    const char *dot = strchr(f->path, '.');
    return dot ? (size_t)(dot - f->path) : 0;
}

void spec_write(const spec *s, unsigned flags, bool pretty, strbuf *b)
{
    size_t count;
    const spec_field *fields = spec_fields(&count);
    const char *group = "";
    size_t group_size = 0;
    bool is_first = true;
    strbuf_add(b, "{");
    for (size_t i = 0; i < count; i++) {
        const spec_field *f = &fields[i];
        if ((f->flags & flags) != flags || !spec_is_given(s, f))
            continue;
        size_t size = group_length(f);
        bool is_same = size == group_size && strncmp(f->path, group, size) == 0;
        if (!is_same && group_size > 0)
            strbuf_add(b, pretty ? "\n  }" : "}");
        strbuf_add(b, is_first ? "" : ",");
        if (!is_same && size > 0) {
            strbuf_add_format(b, pretty ? "\n  \"%.*s\": {" : "\"%.*s\":{", (int)size, f->path);
        }
        group = f->path;
        group_size = size;
        is_first = false;
        if (pretty)
            strbuf_add(b, size > 0 ? "\n    " : "\n  ");
        strbuf_add_format(b, pretty ? "\"%s\": " : "\"%s\":", f->path + (size ? size + 1 : 0));
        write_value(s, f, pretty, b);
    }
    if (group_size > 0)
        strbuf_add(b, pretty ? "\n  }" : "}");
    strbuf_add(b, pretty ? "\n}\n" : "}");
}

status spec_dump(const spec *s, bool pretty, char **ret_text, errbuf *err)
{
    strbuf b = {0};
    spec_write(s, 0, pretty, &b);
    return strbuf_take(&b, ret_text, err);
}

status spec_dump_results(const spec *s, char **ret_text, errbuf *err)
{
    strbuf b = {0};
    char *text = NULL;
    cJSON *json = NULL;
    spec_write(s, SPEC_AFFECTS_RESULTS, false, &b);
    TRY(strbuf_take(&b, &text, err));
    status st = json_parse(text, strlen(text), "the resolved spec", &json, err);
    free(text);
    TRY(st);
    if (s->repeat == 0)
        cJSON_DeleteItemFromObjectCaseSensitive(json, "repeat");
    st = json_canonical(json, ret_text, err);
    cJSON_Delete(json);
    return st;
}
