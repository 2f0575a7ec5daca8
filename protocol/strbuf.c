/* A growing string; see strbuf.h. */
#include "protocol/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for `more` bytes and a NUL behind what is there. */
static bool strbuf_reserve(strbuf *b, size_t more)
{
    if (b->is_failed)
        return false;
    if (more < b->capacity - b->length)
        return true;
    size_t capacity = b->capacity ? b->capacity : 128;
    while (capacity - b->length <= more)
        capacity *= 2;
    char *data = realloc(b->data, capacity);
    if (!data) {
        b->is_failed = true;
        return false;
    }
    b->data = data;
    b->capacity = capacity;
    return true;
}

void strbuf_add_bytes(strbuf *b, const char *bytes, size_t length)
{
    if (!strbuf_reserve(b, length))
        return;
    memcpy(b->data + b->length, bytes, length);
    b->length += length;
    b->data[b->length] = '\0';
}

void strbuf_add(strbuf *b, const char *text)
{
    strbuf_add_bytes(b, text, strlen(text));
}

void strbuf_add_format(strbuf *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (length < 0) {
        b->is_failed = true;
        return;
    }
    if (!strbuf_reserve(b, (size_t)length))
        return;
    va_start(args, format);
    vsnprintf(b->data + b->length, (size_t)length + 1, format, args);
    va_end(args);
    b->length += (size_t)length;
}

status strbuf_take(strbuf *b, char **ret_text, errbuf *err)
{
    strbuf_add_bytes(b, "", 0);
    if (b->is_failed) {
        strbuf_fini(b);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory building a text");
    }
    *ret_text = b->data;
    memset(b, 0, sizeof *b);
    return STATUS_OK;
}

void strbuf_fini(strbuf *b)
{
    if (!b)
        return;
    free(b->data);
    memset(b, 0, sizeof *b);
}

status string_copy(const char *from, char **ret_copy, errbuf *err)
{
    char *copy = strdup(from);
    if (!copy)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory copying a text");
    *ret_copy = copy;
    return STATUS_OK;
}
