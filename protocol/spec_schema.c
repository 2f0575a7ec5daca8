/* The table of fields as JSON Schema (draft 2020-12) and as help text. */
#include <string.h>

#include "protocol/json.h"
#include "protocol/spec_internal.h"

/* -- JSON Schema -- */

static void add_bounds(strbuf *b, const spec_field *f)
{
    char low[JSON_NUMBER_MAX], high[JSON_NUMBER_MAX];
    json_format_double(f->min, low);
    json_format_double(f->max, high);
    strbuf_add_format(b, ", \"%s\": %s, \"%s\": %s",
                      f->flags & SPEC_LOWER_OPEN ? "exclusiveMinimum" : "minimum", low,
                      f->flags & SPEC_UPPER_OPEN ? "exclusiveMaximum" : "maximum", high);
}

static void add_type(strbuf *b, const spec_field *f)
{
    switch (f->type) {
    case SPEC_INT:
        strbuf_add(b, "\"type\": \"integer\"");
        add_bounds(b, f);
        break;
    case SPEC_SEED:
        strbuf_add_format(b,
                          "\"anyOf\": [{\"type\": \"integer\", \"minimum\": 0, \"maximum\": %lld}, "
                          "{\"type\": \"string\", \"pattern\": \"^[0-9]{1,20}$\"}]",
                          JSON_MAX_EXACT);
        break;
    case SPEC_DOUBLE:
        strbuf_add(b, "\"type\": \"number\"");
        add_bounds(b, f);
        break;
    case SPEC_BOOL:
        strbuf_add(b, "\"type\": \"boolean\"");
        break;
    case SPEC_STRING:
        strbuf_add_format(b, "\"type\": \"string\", \"maxLength\": %d",
                          f->flags & SPEC_LABEL ? SPEC_MAX_LABEL : SPEC_MAX_TEXT);
        if (f->flags & SPEC_LABEL)
            strbuf_add(b, ", \"pattern\": \"^[A-Za-z0-9_][A-Za-z0-9._-]*$\"");
        break;
    case SPEC_ENUM:
        strbuf_add(b, "\"enum\": [");
        for (int i = 0; f->names[i]; i++) {
            strbuf_add(b, i ? ", " : "");
            json_add_string(b, f->names[i]);
        }
        strbuf_add(b, "]");
        break;
    case SPEC_SIZES:
        strbuf_add_format(b,
                          "\"type\": \"object\", \"maxProperties\": %d, "
                          "\"additionalProperties\": {\"type\": \"integer\"",
                          SPEC_MAX_SIZES);
        add_bounds(b, f);
        strbuf_add(b, "}");
        break;
    case SPEC_MILESTONES:
        strbuf_add_format(b,
                          "\"type\": \"array\", \"maxItems\": %d, \"items\": {\"type\": \"number\"",
                          SPEC_MAX_MILESTONES);
        add_bounds(b, f);
        strbuf_add(b, "}");
        break;
    }
}

/* `x-` members are ours: what the sweep service and the web page want to know. */
static void add_property(strbuf *b, const spec_field *f, const char *name, const char *indent)
{
    strbuf_add_format(b, "%s\"%s\": {", indent, name);
    add_type(b, f);
    if (f->preset)
        strbuf_add_format(b, ", \"default\": %s", f->preset);
    strbuf_add_format(b, ", \"x-sweepable\": %s, \"x-affects-results\": %s, \"description\": ",
                      f->flags & SPEC_SWEEPABLE ? "true" : "false",
                      f->flags & SPEC_AFFECTS_RESULTS ? "true" : "false");
    json_add_string(b, f->help);
    strbuf_add(b, "}");
}

status spec_schema(char **ret_text, errbuf *err)
{
    size_t count, open = 0; /* length of the group that is open */
    const spec_field *fields = spec_fields(&count);
    strbuf b = {0};
    strbuf_add_format(&b,
                      "{\n  \"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n"
                      "  \"title\": \"Ringmaster job spec, version %d\",\n"
                      "  \"type\": \"object\",\n  \"additionalProperties\": false,\n"
                      "  \"properties\": {",
                      SPEC_VERSION);
    for (size_t i = 0; i < count; i++) {
        const spec_field *f = &fields[i];
        const char *dot = strchr(f->path, '.');
        size_t length = dot ? (size_t)(dot - f->path) : 0;
        bool is_same = i > 0 && length > 0 && length == open &&
                       strncmp(f->path, fields[i - 1].path, length + 1) == 0;
        if (!is_same && open > 0)
            strbuf_add(&b, "\n    }}");
        strbuf_add(&b, i ? ",\n" : "\n");
        if (!is_same && length > 0)
            strbuf_add_format(&b,
                              "    \"%.*s\": {\"type\": \"object\", \"additionalProperties\": "
                              "false, \"properties\": {\n",
                              (int)length, f->path);
        open = length;
        add_property(&b, f, dot ? dot + 1 : f->path, dot ? "      " : "    ");
    }
    strbuf_add(&b, open ? "\n    }}\n  }\n}\n" : "\n  }\n}\n");
    return strbuf_take(&b, ret_text, err);
}

/* -- help -- */

#define NAME_WIDTH 26

static void add_values(strbuf *b, const spec_field *f)
{
    char expected[SPEC_MAX_EXPECT];
    if (f->type != SPEC_ENUM) {
        spec_expect(f, expected);
        strbuf_add(b, expected);
        return;
    }
    for (int i = 0; f->names[i]; i++)
        strbuf_add_format(b, "%s%s", i ? " | " : "", f->names[i]);
}

status spec_help(char **ret_text, errbuf *err)
{
    size_t count;
    const spec_field *fields = spec_fields(&count);
    strbuf b = {0};
    strbuf_add(&b, "Fields of a job spec, for the JSON file (groups are nested objects) and for "
                   "--set FIELD=value.\n'+' marks what the result and the job id depend on.\n");
    for (size_t i = 0; i < count; i++) {
        const spec_field *f = &fields[i];
        strbuf_add_format(&b, "\n%c %-*s%s\n%*s", f->flags & SPEC_AFFECTS_RESULTS ? '+' : ' ',
                          NAME_WIDTH - 2, f->path, f->help, NAME_WIDTH, "");
        add_values(&b, f);
        if (f->preset)
            strbuf_add_format(&b, "; default %s", f->preset);
        strbuf_add(&b, "\n");
    }
    return strbuf_take(&b, ret_text, err);
}
