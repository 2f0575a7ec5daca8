/* What the subcommands share; see command.h. */
#include "trainer/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "protocol/strbuf.h"

#define STDIN_MAX_BYTES (16 << 20)

const char *command_extra(const command_options *o, const char *name)
{
    for (int i = 0; i < o->extras; i++)
        if (strcmp(o->extra[i].name, name) == 0)
            return o->extra[i].value ? o->extra[i].value : "";
    return NULL;
}

static status load_stdin(spec *s, errbuf *err)
{
    strbuf text = {0};
    char buffer[4096];
    size_t got;
    while ((got = fread(buffer, 1, sizeof buffer, stdin)) > 0 && text.length < STDIN_MAX_BYTES)
        strbuf_add_bytes(&text, buffer, got);
    size_t length = text.length;
    char *json = NULL;
    TRY(strbuf_take(&text, &json, err));
    status st = spec_parse(s, json, length, "stdin", err);
    free(json);
    return st;
}

status command_load_spec(const command_options *o, const char *path, spec *ret_spec, errbuf *err)
{
    spec s;
    TRY(spec_init(&s, err));
    status st = strcmp(path, "-") == 0 ? load_stdin(&s, err) : spec_load(&s, path, err);
    for (int i = 0; i < o->sets && st == STATUS_OK; i++)
        st = spec_set(&s, o->set[i], err);
    if (st == STATUS_OK)
        st = spec_validate(&s, err);
    if (st != STATUS_OK) {
        spec_fini(&s);
        return st;
    }
    *ret_spec = s;
    return STATUS_OK;
}
