/* One field of a spec: taking a JSON value, judging its range, saying what it expects. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/json.h"
#include "protocol/json_positions.h"
#include "protocol/spec_internal.h"

/* What labels and ring names are made of. */
static const char word[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

void spec_expect(const spec_field *f, char ret[SPEC_MAX_EXPECT])
{
    char low[JSON_NUMBER_MAX], high[JSON_NUMBER_MAX];
    json_format_double(f->min, low);
    json_format_double(f->max, high);
    const char *open = f->flags & SPEC_LOWER_OPEN ? "(" : "[";
    const char *close = f->flags & SPEC_UPPER_OPEN ? ")" : "]";
    const size_t size = SPEC_MAX_EXPECT;
    int used;
    switch (f->type) {
    case SPEC_INT:
        snprintf(ret, size, "an integer in [%s, %s]", low, high);
        return;
    case SPEC_SEED:
        snprintf(ret, size, "an integer from 0 to 2^53, or one below 2^64 in quotes");
        return;
    case SPEC_DOUBLE:
        snprintf(ret, size, "a number in %s%s, %s%s", open, low, high, close);
        return;
    case SPEC_BOOL:
        snprintf(ret, size, "true or false");
        return;
    case SPEC_STRING:
        if (f->flags & SPEC_LABEL)
            snprintf(ret, size, "1 to %d letters, digits, '.', '_' or '-', no leading '.' or '-'",
                     SPEC_MAX_LABEL);
        else
            snprintf(ret, size, "a string in UTF-8 without control characters, at most %d bytes",
                     SPEC_MAX_TEXT);
        return;
    case SPEC_ENUM:
        used = snprintf(ret, size, "one of %s", f->names[0]);
        for (int i = 1; f->names[i] && used < (int)size; i++)
            used += snprintf(ret + used, size - (size_t)used, ", %s", f->names[i]);
        return;
    case SPEC_SIZES:
        snprintf(ret, size, "an object of at most %d ring names with integers in [%s, %s]",
                 SPEC_MAX_SIZES, low, high);
        return;
    case SPEC_MILESTONES:
        snprintf(ret, size, "an array of at most %d ascending numbers in [%s, %s]",
                 SPEC_MAX_MILESTONES, low, high);
        return;
    }
}

/* "WHERE: expected …, not …". */
static status refuse(const spec_field *f, const cJSON *value, const char *where, errbuf *err)
{
    char expected[SPEC_MAX_EXPECT], number[JSON_NUMBER_MAX], text[80];
    char suggestion[SPEC_MAX_SUGGEST] = "";
    spec_expect(f, expected);
    if (cJSON_IsNumber(value)) {
        json_format_double(value->valuedouble, number);
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: expected %s, not %s", where, expected,
                          number);
    }
    if (!cJSON_IsString(value))
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: expected %s, not %s", where, expected,
                          json_kind(value));
    if (f->type == SPEC_ENUM)
        spec_suggest_name(value->valuestring, f->names, suggestion);
    json_show(value->valuestring, strlen(value->valuestring), text, sizeof text);
    return errbuf_set(err, STATUS_BAD_INPUT, "%s: expected %s, not \"%s\"%s", where, expected, text,
                      suggestion);
}

static bool in_range(const spec_field *f, double value)
{
    return value >= f->min && value <= f->max &&
           !(value == f->min && (f->flags & SPEC_LOWER_OPEN)) &&
           !(value == f->max && (f->flags & SPEC_UPPER_OPEN));
}

/* Integral and exact: 1e3 and 1000.0 are, true and 0.5 are not. */
static bool is_integer(const cJSON *value)
{
    return cJSON_IsNumber(value) && value->valuedouble == trunc(value->valuedouble) &&
           fabs(value->valuedouble) <= (double)JSON_MAX_EXACT;
}

static bool is_text_valid(const spec_field *f, const char *text)
{
    size_t length = strlen(text);
    if (length > (f->flags & SPEC_LABEL ? SPEC_MAX_LABEL : SPEC_MAX_TEXT))
        return false;
    if (f->flags & SPEC_LABEL)
        return length > 0 && text[0] != '.' && text[0] != '-' && strspn(text, word) == length;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return false;
    return json_is_utf8(text, length);
}

/* Decimal digits alone, below 2^64. */
static bool read_digits(const char *text, size_t length, uint64_t *ret_value)
{
    uint64_t value = 0;
    if (length == 0)
        return false;
    for (size_t i = 0; i < length; i++) {
        unsigned digit = (unsigned)(text[i] - '0');
        if (digit > 9 || value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *ret_value = value;
    return true;
}

/* A bare integer is read from its own digits: as a double, 2^53 + 1 is 2^53. */
static status set_seed(uint64_t *seed, const spec_field *f, const cJSON *value, const char *raw,
                       const char *where, errbuf *err)
{
    uint64_t result;
    if (cJSON_IsString(value)) {
        if (!read_digits(value->valuestring, strlen(value->valuestring), &result))
            return refuse(f, value, where, err);
        *seed = result;
        return STATUS_OK;
    }
    if (!cJSON_IsNumber(value) || value->valuedouble < 0 ||
        value->valuedouble != trunc(value->valuedouble))
        return refuse(f, value, where, err);
    size_t digits = raw ? strspn(raw, "0123456789") : 0;
    bool is_plain = raw && digits > 0 && !strchr(".eE", raw[digits] ? raw[digits] : ' ');
    if (is_plain ? !read_digits(raw, digits, &result) || result > (uint64_t)JSON_MAX_EXACT
                 : value->valuedouble >= (double)JSON_MAX_EXACT)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%s: a bare integer above 2^53 loses digits in JSON; write the seed in "
                          "quotes, as a string of digits below 2^64",
                          where);
    *seed = is_plain ? result : (uint64_t)value->valuedouble;
    return STATUS_OK;
}

static status set_sizes(spec_sizes *sizes, const spec_field *f, const cJSON *value,
                        const char *where, errbuf *err)
{
    if (!cJSON_IsObject(value) || cJSON_GetArraySize(value) > SPEC_MAX_SIZES)
        return refuse(f, value, where, err);
    spec_sizes result = {0};
    const cJSON *child;
    cJSON_ArrayForEach (child, value) {
        char shown[80], expected[SPEC_MAX_EXPECT];
        size_t length = strlen(child->string);
        json_show(child->string, length, shown, sizeof shown);
        if (length == 0 || length >= SPEC_MAX_RING_NAME || strspn(child->string, word) < length)
            return errbuf_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is not a ring's name", where,
                              shown);
        if (!is_integer(child) || !in_range(f, child->valuedouble)) {
            spec_expect(f, expected);
            return errbuf_set(err, STATUS_BAD_INPUT, "%s: \"%s\": expected %s", where, shown,
                              expected);
        }
        memcpy(result.entry[result.count].ring, child->string, length + 1);
        result.entry[result.count++].size = (int64_t)child->valuedouble;
    }
    *sizes = result;
    return STATUS_OK;
}

static status set_milestones(spec_milestones *milestones, const spec_field *f, const cJSON *value,
                             const char *where, errbuf *err)
{
    if (!cJSON_IsArray(value) || cJSON_GetArraySize(value) > SPEC_MAX_MILESTONES)
        return refuse(f, value, where, err);
    spec_milestones result = {0};
    const cJSON *child;
    cJSON_ArrayForEach (child, value) {
        if (!cJSON_IsNumber(child) || !in_range(f, child->valuedouble) ||
            (result.count > 0 && child->valuedouble <= result.epoch[result.count - 1])) {
            char expected[SPEC_MAX_EXPECT];
            spec_expect(f, expected);
            return errbuf_set(err, STATUS_BAD_INPUT, "%s: element %d: expected %s", where,
                              result.count + 1, expected);
        }
        result.epoch[result.count++] = child->valuedouble;
    }
    *milestones = result;
    return STATUS_OK;
}

static status set_string(char **text, const char *value, errbuf *err)
{
    char *copy = NULL;
    TRY(string_copy(value, &copy, err));
    free(*text);
    *text = copy;
    return STATUS_OK;
}

status spec_set_value(spec *s, const spec_field *f, const cJSON *value, const char *raw,
                      const char *where, errbuf *err)
{
    void *at = spec_at(s, f);
    switch (f->type) {
    case SPEC_INT:
        if (!is_integer(value) || !in_range(f, value->valuedouble))
            return refuse(f, value, where, err);
        *(int64_t *)at = (int64_t)value->valuedouble;
        break;
    case SPEC_SEED:
        TRY(set_seed(at, f, value, raw, where, err));
        if (f->offset == offsetof(spec, rpg.seed))
            s->rpg.seed_given = true;
        break;
    case SPEC_DOUBLE:
        if (!cJSON_IsNumber(value) || !in_range(f, value->valuedouble))
            return refuse(f, value, where, err);
        *(double *)at = value->valuedouble + 0.0; /* no -0: equal specs have equal text */
        break;
    case SPEC_BOOL:
        if (!cJSON_IsBool(value))
            return refuse(f, value, where, err);
        *(bool *)at = cJSON_IsTrue(value);
        break;
    case SPEC_STRING:
        if (!cJSON_IsString(value) || !is_text_valid(f, value->valuestring))
            return refuse(f, value, where, err);
        return set_string(at, value->valuestring, err);
    case SPEC_ENUM:
        for (int i = 0; cJSON_IsString(value) && f->names[i]; i++) {
            if (strcmp(f->names[i], value->valuestring) == 0) {
                *(int *)at = i;
                return STATUS_OK;
            }
        }
        return refuse(f, value, where, err);
    case SPEC_SIZES:
        return set_sizes(at, f, value, where, err);
    case SPEC_MILESTONES:
        return set_milestones(at, f, value, where, err);
    }
    return STATUS_OK;
}

/* Milestones and sizes of a struct that was filled by hand. */
static bool is_list_valid(const spec_field *f, const void *at)
{
    const spec_milestones *m = at;
    const spec_sizes *sizes = at;
    if (f->type == SPEC_MILESTONES) {
        if (m->count < 0 || m->count > SPEC_MAX_MILESTONES)
            return false;
        for (int i = 0; i < m->count; i++)
            if (!in_range(f, m->epoch[i]) || (i > 0 && m->epoch[i] <= m->epoch[i - 1]))
                return false;
        return true;
    }
    if (sizes->count < 0 || sizes->count > SPEC_MAX_SIZES)
        return false;
    for (int i = 0; i < sizes->count; i++)
        if (!in_range(f, (double)sizes->entry[i].size) || !sizes->entry[i].ring[0])
            return false;
    return true;
}

status spec_check_value(const spec *s, const spec_field *f, const char *where, errbuf *err)
{
    const void *at = spec_at_const(s, f);
    bool is_valid = true;
    int count = 0;
    switch (f->type) {
    case SPEC_INT:
        is_valid = in_range(f, (double)*(const int64_t *)at);
        break;
    case SPEC_DOUBLE:
        is_valid = in_range(f, *(const double *)at);
        break;
    case SPEC_STRING:
        is_valid = *(char *const *)at && is_text_valid(f, *(char *const *)at);
        break;
    case SPEC_ENUM:
        while (f->names[count])
            count++;
        is_valid = *(const int *)at >= 0 && *(const int *)at < count;
        break;
    case SPEC_SIZES:
    case SPEC_MILESTONES:
        is_valid = is_list_valid(f, at);
        break;
    case SPEC_SEED:
    case SPEC_BOOL:
        break;
    }
    if (is_valid)
        return STATUS_OK;
    char expected[SPEC_MAX_EXPECT];
    spec_expect(f, expected);
    return errbuf_set(err, STATUS_BAD_INPUT, "%s: expected %s", where, expected);
}
