/*
 * A growing string. Appending never fails on the spot: a failed allocation is remembered, and
 * strbuf_take reports it once at the end, so that a writer of many small pieces stays readable.
 */
#ifndef RINGMASTER_PROTOCOL_STRBUF_H
#define RINGMASTER_PROTOCOL_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

#include "protocol/status.h"

/* Zero-initialise before use. */
typedef struct strbuf {
    char *data; /* NUL-terminated once anything was appended */
    size_t length, capacity;
    bool is_failed;
} strbuf;

void strbuf_add(strbuf *b, const char *text);
void strbuf_add_bytes(strbuf *b, const char *bytes, size_t length);
void strbuf_add_format(strbuf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Hands the string over (never NULL; "" where nothing was appended) and empties the buffer.
 * STATUS_OUT_OF_MEMORY where an append failed; the buffer is then freed. */
CHECK_RESULT status strbuf_take(strbuf *b, char **ret_text, errbuf *err);
void strbuf_fini(strbuf *b); /* NULL-safe, idempotent */

/* strdup that reports. */
CHECK_RESULT status string_copy(const char *from, char **ret_copy, errbuf *err);

#endif
