/* Strict JSON parsing, typed reading and writing; see json.h. */
#include "protocol/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/json_positions.h"

typedef struct member {
    const char *key;
    const cJSON *value;
    int ordinal;
} member;

static int member_compare(const void *a, const void *b)
{
    const member *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->ordinal > y->ordinal) - (x->ordinal < y->ordinal);
}

/* The text that is being parsed, and the ordinals down to where the check stands. */
typedef struct checker {
    const char *text, *source;
    size_t length;
    int ordinals[JSON_MAX_DEPTH + 1];
    const cJSON *trail[JSON_MAX_DEPTH + 1]; /* the values at those ordinals */
    errbuf *err;
} checker;

/* "train.lr", "ranks[2].host": the trail down to depth, shortened at the end where it is long. */
static const char *show_path(const checker *c, int depth, char *ret, size_t size)
{
    char shown[80];
    size_t used = 0;
    ret[0] = '\0';
    for (int d = 0; d < depth && used < size; d++) {
        const char *key = c->trail[d]->string;
        int n = key ? snprintf(ret + used, size - used, "%s%s", d ? "." : "",
                               json_show(key, strlen(key), shown, sizeof shown))
                    : snprintf(ret + used, size - used, "[%d]", c->ordinals[d]);
        used += (size_t)n;
    }
    return ret;
}

static json_position position(const checker *c, int depth)
{
    json_position at = {.line = 1, .column = 1};
    json_position_find(c->text, c->length, c->ordinals, depth, &at);
    return at;
}

/* Two members of one name: which one counts would be anybody's guess. */
static status check_duplicates(checker *c, const cJSON *object, int depth)
{
    int count = cJSON_GetArraySize(object);
    if (count < 2)
        return STATUS_OK;
    member *members = calloc((size_t)count, sizeof *members);
    if (!members)
        return errbuf_set(c->err, STATUS_OUT_OF_MEMORY, "out of memory parsing %s", c->source);
    int n = 0;
    const cJSON *child;
    cJSON_ArrayForEach (child, object) {
        members[n] = (member){child->string, child, n};
        n++;
    }
    qsort(members, (size_t)n, sizeof *members, member_compare);
    status st = STATUS_OK;
    for (int i = 1; i < n && st == STATUS_OK; i++) {
        if (strcmp(members[i - 1].key, members[i].key) == 0) {
            char path[400];
            c->ordinals[depth] = members[i].ordinal;
            c->trail[depth] = members[i].value;
            json_position at = position(c, depth + 1);
            st = errbuf_set(c->err, STATUS_BAD_INPUT, "duplicate key %s at %s:%d:%d",
                            show_path(c, depth + 1, path, sizeof path), c->source, at.line,
                            at.column);
        }
    }
    free(members);
    return st;
}

/* Depth is bounded: json_check_text has counted the brackets. */
static status check_tree(checker *c, const cJSON *value, int depth)
{
    if (cJSON_IsNumber(value) && !isfinite(value->valuedouble)) {
        json_position at = position(c, depth);
        return errbuf_set(c->err, STATUS_BAD_INPUT, "%s:%d:%d: this number is too large", c->source,
                          at.line, at.column);
    }
    if (depth >= JSON_MAX_DEPTH || !(cJSON_IsObject(value) || cJSON_IsArray(value)))
        return STATUS_OK;
    if (cJSON_IsObject(value))
        TRY(check_duplicates(c, value, depth));
    int n = 0;
    const cJSON *child;
    cJSON_ArrayForEach (child, value) {
        c->ordinals[depth] = n++;
        c->trail[depth] = child;
        TRY(check_tree(c, child, depth + 1));
    }
    return STATUS_OK;
}

static status syntax_error(const char *text, size_t length, const char *source, const char *end,
                           const char *what, errbuf *err)
{
    size_t offset = end >= text && end <= text + length ? (size_t)(end - text) : length;
    json_position at = json_position_at(text, length, offset);
    char shown[40];
    size_t rest = length - offset < 16 ? length - offset : 16;
    const char *line_end = memchr(text + offset, '\n', rest);
    if (line_end)
        rest = (size_t)(line_end - (text + offset));
    json_show(text + offset, rest, shown, sizeof shown);
    return errbuf_set(err, STATUS_BAD_INPUT, "%s:%d:%d: not valid JSON: %s near \"%s\"", source,
                      at.line, at.column, what, shown);
}

status json_parse(const char *text, size_t length, const char *source, cJSON **ret_json,
                  errbuf *err)
{
    TRY(json_check_text(text, length, source, err));
    const char *end = NULL;
    cJSON *json = cJSON_ParseWithLengthOpts(text, length, &end, false);
    if (!json)
        return syntax_error(text, length, source, end, "unexpected text", err);
    size_t rest = (size_t)(end - text);
    while (rest < length && strchr(" \t\r\n", text[rest]))
        rest++;
    status st = STATUS_OK;
    if (rest < length) {
        st = syntax_error(text, length, source, text + rest, "text behind the document", err);
    } else {
        checker c = {.text = text, .source = source, .length = length, .err = err};
        st = check_tree(&c, json, 0);
    }
    if (st != STATUS_OK) {
        cJSON_Delete(json);
        return st;
    }
    *ret_json = json;
    return STATUS_OK;
}

const char *json_kind(const cJSON *value)
{
    if (!value)
        return "nothing";
    if (cJSON_IsNull(value))
        return "null";
    if (cJSON_IsBool(value))
        return cJSON_IsTrue(value) ? "true" : "false";
    if (cJSON_IsNumber(value))
        return "a number";
    if (cJSON_IsString(value))
        return "a string";
    return cJSON_IsArray(value) ? "an array" : "an object";
}

status json_read_int(const cJSON *object, const char *name, int64_t min, int64_t max,
                     const char *where, int64_t *ret_value, errbuf *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    double value = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    /* The bound keeps the conversion defined; the caller's range is judged on the integer. */
    if (!(fabs(value) <= (double)JSON_MAX_EXACT) || value != trunc(value))
        return errbuf_set(err, STATUS_BAD_INPUT, "%s%s: expected an integer, not %s", where, name,
                          cJSON_IsNumber(item) ? "a fraction or a number beyond 2^53"
                                               : json_kind(item));
    if ((int64_t)value < min || (int64_t)value > max)
        return errbuf_set(err, STATUS_BAD_INPUT, "%s%s: %lld is not in [%lld, %lld]", where, name,
                          (long long)value, (long long)min, (long long)max);
    *ret_value = (int64_t)value;
    return STATUS_OK;
}

status json_read_string(const cJSON *object, const char *name, const char *where,
                        const char **ret_text, errbuf *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsString(item))
        return errbuf_set(err, STATUS_BAD_INPUT, "%s%s: expected a string, not %s", where, name,
                          json_kind(item));
    *ret_text = item->valuestring;
    return STATUS_OK;
}

void json_format_double(double value, char ret[JSON_NUMBER_MAX])
{
    if (value == trunc(value) && fabs(value) < 1e15) {
        /* Adding 0 turns -0 into 0: they are one value to every reader. */
        snprintf(ret, JSON_NUMBER_MAX, "%.0f", value + 0.0);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(ret, JSON_NUMBER_MAX, "%.*g", digits, value);
        if (strtod(ret, NULL) == value)
            return;
    }
}

void json_add_string(strbuf *b, const char *text)
{
    strbuf_add(b, "\"");
    for (const char *p = text; *p; p++) {
        static const char escaped[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
        const char *special = strchr(escaped, *p);
        if (special) {
            char pair[2] = {'\\', letter[special - escaped]};
            strbuf_add_bytes(b, pair, 2);
        } else if ((unsigned char)*p < 0x20) {
            strbuf_add_format(b, "\\u%04x", (unsigned char)*p);
        } else {
            strbuf_add_bytes(b, p, 1);
        }
    }
    strbuf_add(b, "\"");
}

void json_add_value(strbuf *b, const cJSON *value)
{
    char number[JSON_NUMBER_MAX];
    if (cJSON_IsObject(value) || cJSON_IsArray(value)) {
        bool is_object = cJSON_IsObject(value);
        strbuf_add(b, is_object ? "{" : "[");
        for (const cJSON *child = value->child; child; child = child->next) {
            if (is_object) {
                json_add_string(b, child->string);
                strbuf_add(b, ":");
            }
            json_add_value(b, child);
            if (child->next)
                strbuf_add(b, ",");
        }
        strbuf_add(b, is_object ? "}" : "]");
    } else if (cJSON_IsNumber(value) && isfinite(value->valuedouble)) {
        json_format_double(value->valuedouble, number);
        strbuf_add(b, number);
    } else if (cJSON_IsString(value)) {
        json_add_string(b, value->valuestring);
    } else if (cJSON_IsBool(value)) {
        strbuf_add(b, cJSON_IsTrue(value) ? "true" : "false");
    } else {
        strbuf_add(b, "null");
    }
}
