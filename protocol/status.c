/* Status codes and error text; see status.h. */
#include "protocol/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef errbuf_set
status errbuf_set(errbuf *err, status code, const char *format, ...)
{
    if (err && err->text[0] == '\0') {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        err->code = code;
    }
    return code;
}

void errbuf_prefix(errbuf *err, const char *format, ...)
{
    if (!err || err->text[0] == '\0')
        return;
    char context[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
    size_t used = strnlen(context, sizeof context - 3);
    memcpy(context + used, ": ", 3);
    used += 2;
    size_t room = sizeof context - used;
    size_t length = strnlen(err->text, room - 1);
    memcpy(context + used, err->text, length);
    context[used + length] = '\0';
    memcpy(err->text, context, used + length + 1);
}

void errbuf_clear(errbuf *err)
{
    if (err)
        memset(err, 0, sizeof *err);
}

const char *status_name(status code)
{
    switch (code) {
    case STATUS_OK:
        return "done";
    case STATUS_BAD_INPUT:
        return "bad input";
    case STATUS_DATA:
        return "data error";
    case STATUS_NUMERICAL:
        return "numerical error";
    case STATUS_ENVIRONMENT:
        return "environment error";
    case STATUS_OUT_OF_MEMORY:
        return "out of memory";
    case STATUS_INTERRUPTED:
        return "interrupted";
    case STATUS_TERMINATED:
        return "terminated";
    }
    return "unknown status";
}

void assert_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "ringmaster: internal error: %s does not hold (%s:%d)\n", what, file, line);
    abort();
}
