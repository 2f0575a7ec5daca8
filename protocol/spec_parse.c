/* A spec's life: defaults, copying, parsing JSON text, and --set. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/file.h"
#include "protocol/json.h"
#include "protocol/json_positions.h"
#include "protocol/spec_internal.h"

#define MAX_SPEC_BYTES ((size_t)1 << 20)
#define MAX_PATH       96  /* of a dotted key that is shown in a message */
#define MAX_WHERE      400 /* "rpg.share at job.json:7" */

status spec_init(spec *s, errbuf *err)
{
    size_t count;
    const spec_field *fields = spec_fields(&count);
    spec fresh;
    memset(&fresh, 0, sizeof fresh);
    status st = STATUS_OK;
    for (size_t i = 0; i < count && st == STATUS_OK; i++) {
        if (!fields[i].preset)
            continue;
        cJSON *value = NULL;
        st = json_parse(fields[i].preset, strlen(fields[i].preset), fields[i].path, &value, err);
        if (st == STATUS_OK)
            st = spec_set_value(&fresh, &fields[i], value, fields[i].preset, fields[i].path, err);
        cJSON_Delete(value);
    }
    if (st != STATUS_OK) {
        spec_fini(&fresh);
        return st;
    }
    *s = fresh;
    return STATUS_OK;
}

void spec_fini(spec *s)
{
    if (!s)
        return;
    size_t count;
    const spec_field *fields = spec_fields(&count);
    for (size_t i = 0; i < count; i++)
        if (fields[i].type == SPEC_STRING)
            free(*(char **)spec_at(s, &fields[i]));
    memset(s, 0, sizeof *s);
}

status spec_copy(const spec *from, spec *ret_to, errbuf *err)
{
    size_t count;
    const spec_field *fields = spec_fields(&count);
    spec copy = *from;
    for (size_t i = 0; i < count; i++)
        if (fields[i].type == SPEC_STRING)
            *(char **)spec_at(&copy, &fields[i]) = NULL;
    for (size_t i = 0; i < count; i++) {
        if (fields[i].type != SPEC_STRING)
            continue;
        status st = string_copy(*(char *const *)spec_at_const(from, &fields[i]),
                                spec_at(&copy, &fields[i]), err);
        if (st != STATUS_OK) {
            spec_fini(&copy);
            return st;
        }
    }
    *ret_to = copy;
    return STATUS_OK;
}

/* -- parsing -- */

/* The document being read and the ordinals of the member being looked at. */
typedef struct reader {
    spec *s;
    const char *text, *source;
    size_t length;
    int ordinals[2];
    errbuf *err;
} reader;

static json_position reader_position(const reader *r, int depth)
{
    json_position at = {.line = 1, .column = 1};
    json_position_find(r->text, r->length, r->ordinals, depth, &at);
    return at;
}

static status refuse_key(const reader *r, const char *path, int depth)
{
    char suggestion[SPEC_MAX_SUGGEST], shown[MAX_PATH];
    spec_suggest_path(path, suggestion);
    json_show(path, strlen(path), shown, sizeof shown);
    const char *dot = strchr(path, '.');
    if (depth == 1 && dot && spec_find_field(path))
        return errbuf_set(r->err, STATUS_BAD_INPUT,
                          "unknown key \"%s\" at %s:%d; write it nested: {\"%.*s\": {\"%s\": …}}",
                          shown, r->source, reader_position(r, depth).line, (int)(dot - path), path,
                          dot + 1);
    return errbuf_set(r->err, STATUS_BAD_INPUT, "unknown key %s at %s:%d%s", shown, r->source,
                      reader_position(r, depth).line, suggestion);
}

static status read_field(const reader *r, const spec_field *f, const cJSON *value, int depth)
{
    char where[MAX_WHERE];
    json_position at = reader_position(r, depth);
    snprintf(where, sizeof where, "%s at %s:%d", f->path, r->source, at.line);
    /* The text ends in '}', so that a scan over digits ends inside it. */
    return spec_set_value(r->s, f, value, r->text + at.value, where, r->err);
}

static status read_group(reader *r, const cJSON *group)
{
    if (!cJSON_IsObject(group))
        return errbuf_set(r->err, STATUS_BAD_INPUT, "%s at %s:%d: expected an object, not %s",
                          group->string, r->source, reader_position(r, 1).line, json_kind(group));
    r->ordinals[1] = 0;
    const cJSON *child;
    cJSON_ArrayForEach (child, group) {
        strbuf joined = {0};
        char *path = NULL;
        strbuf_add_format(&joined, "%s.%s", group->string, child->string);
        TRY(strbuf_take(&joined, &path, r->err));
        const spec_field *f = spec_find_field(path);
        status st = f ? read_field(r, f, child, 2) : refuse_key(r, path, 2);
        free(path);
        TRY(st);
        r->ordinals[1]++;
    }
    return STATUS_OK;
}

static status read_document(reader *r, const cJSON *json)
{
    if (!cJSON_IsObject(json))
        return errbuf_set(r->err, STATUS_BAD_INPUT, "%s: expected a JSON object, not %s", r->source,
                          json_kind(json));
    const cJSON *child;
    cJSON_ArrayForEach (child, json) {
        const spec_field *f = strchr(child->string, '.') ? NULL : spec_find_field(child->string);
        if (f)
            TRY(read_field(r, f, child, 1));
        else if (spec_is_group(child->string))
            TRY(read_group(r, child));
        else
            return refuse_key(r, child->string, 1);
        r->ordinals[0]++;
    }
    return STATUS_OK;
}

status spec_parse(spec *s, const char *text, size_t length, const char *source, errbuf *err)
{
    cJSON *json = NULL;
    spec parsed;
    TRY(json_parse(text, length, source, &json, err));
    status st = spec_copy(s, &parsed, err);
    if (st == STATUS_OK) {
        reader r = {.s = &parsed, .text = text, .source = source, .length = length, .err = err};
        st = read_document(&r, json);
        spec unused = st == STATUS_OK ? *s : parsed;
        if (st == STATUS_OK)
            *s = parsed;
        spec_fini(&unused);
    }
    cJSON_Delete(json);
    return st;
}

status spec_load(spec *s, const char *path, errbuf *err)
{
    char *text = NULL;
    size_t length = 0;
    TRY(file_read_all(path, MAX_SPEC_BYTES, &text, &length, err));
    status st = spec_parse(s, text, length, path, err);
    free(text);
    return st;
}

/* -- --set -- */

/* The JSON that a --set value stands for: words and seeds are strings without their quotes, a list
 * goes without its brackets. What is no JSON comes back as a string, for the setter to refuse. */
static cJSON *set_value(const spec_field *f, const char *text)
{
    cJSON *value = NULL;
    bool is_word = f->type == SPEC_STRING || f->type == SPEC_ENUM || f->type == SPEC_SEED;
    if (!is_word || text[0] == '"') {
        errbuf ignored = {0};
        strbuf json = {0};
        char *list = NULL;
        bool is_bare = f->type == SPEC_MILESTONES && text[0] != '[';
        strbuf_add_format(&json, is_bare ? "[%s]" : "%s", text);
        if (strbuf_take(&json, &list, NULL) == STATUS_OK &&
            json_parse(list, strlen(list), f->path, &value, &ignored) != STATUS_OK)
            value = NULL;
        free(list);
    }
    return value ? value : cJSON_CreateString(text);
}

status spec_set(spec *s, const char *assignment, errbuf *err)
{
    char path[MAX_PATH], where[MAX_WHERE], shown[MAX_PATH], suggestion[SPEC_MAX_SUGGEST];
    const char *equals = strchr(assignment, '=');
    size_t length = equals ? (size_t)(equals - assignment) : 0;
    json_show(assignment, equals ? length : strlen(assignment), shown, sizeof shown);
    if (length == 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "--set %s: expected key=value", shown);
    snprintf(path, sizeof path, "%.*s", length < sizeof path ? (int)length : 0, assignment);
    const spec_field *f = spec_find_field(path);
    if (!f && spec_is_group(path))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "--set %s: this is a group of fields; set one of them, %s.FIELD=value",
                          shown, path);
    if (!f) {
        spec_suggest_path(path, suggestion);
        return errbuf_set(err, STATUS_BAD_INPUT, "--set: unknown key %s%s", shown, suggestion);
    }
    snprintf(where, sizeof where, "--set %s", f->path);
    cJSON *value = set_value(f, equals + 1);
    if (!value)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory reading --set");
    status st = spec_set_value(s, f, value, NULL, where, err);
    cJSON_Delete(value);
    return st;
}
