/* What the subcommands share; see command.h. */
#include "trainer/command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/comm.h"
#include "protocol/strbuf.h"

#define STDIN_MAX_BYTES ((size_t)16 << 20)

const char *command_extra(const command_options *o, const char *name)
{
    for (int i = 0; i < o->extras; i++)
        if (strcmp(o->extra[i].name, name) == 0)
            return o->extra[i].value ? o->extra[i].value : "";
    return NULL;
}

status command_read_stdin(size_t max_bytes, char **ret_text, size_t *ret_length, errbuf *err)
{
    strbuf text = {0};
    char buffer[1 << 16];
    size_t got;
    while (text.length <= max_bytes && (got = fread(buffer, 1, sizeof buffer, stdin)) > 0)
        strbuf_add_bytes(&text, buffer, got);
    status st = STATUS_OK;
    if (ferror(stdin))
        st = errbuf_set(err, STATUS_ENVIRONMENT, "stdin cannot be read: %s", strerror(errno));
    else if (text.length > max_bytes)
        st = errbuf_set(err, STATUS_BAD_INPUT, "stdin: more than %zu MiB", max_bytes >> 20);
    if (st == STATUS_OK) {
        *ret_length = text.length;
        return strbuf_take(&text, ret_text, err);
    }
    strbuf_fini(&text);
    return st;
}

/* A launcher hands its standard input to rank 0 alone. */
static status load_stdin(spec *s, errbuf *err)
{
    const long ranks = comm_launched_size();
    char *json = NULL;
    size_t length;
    if (ranks > 1)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "-: standard input reaches only rank 0 of %ld: give a file", ranks);
    TRY(command_read_stdin(STDIN_MAX_BYTES, &json, &length, err));
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
