/*
 * Positions in JSON text, which cJSON does not keep.
 *
 * json_check_text refuses, before cJSON sees the text, what cJSON would silently let through (NUL
 * characters, malformed UTF-8, "01", control characters in strings) or recurse on (depth).
 * json_position_find walks text that has already been parsed and says where a value lies; a path
 * is a list of ordinals (the n-th member of an object, the n-th element of an array), so that
 * escapes in keys and duplicate keys need no care here.
 */
#ifndef RINGMASTER_PROTOCOL_JSON_POSITIONS_H
#define RINGMASTER_PROTOCOL_JSON_POSITIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "protocol/status.h"

#define JSON_MAX_DEPTH 64

typedef struct json_position {
    size_t offset;    /* of the value's first byte; of the key's where the value has one */
    size_t value;     /* of the value's first byte */
    int line, column; /* of `offset`, from 1; columns are bytes */
} json_position;

/* Lexical check of the whole text; the error names source:line:column. */
CHECK_RESULT status json_check_text(const char *text, size_t length, const char *source,
                                    errbuf *err);

/* Where the value at ordinals[0..depth-1] lies; depth 0 is the document. The text must have been
 * parsed. False where there is no such value. */
bool json_position_find(const char *text, size_t length, const int *ordinals, int depth,
                        json_position *ret);

/* Line and column of a byte. */
json_position json_position_at(const char *text, size_t length, size_t offset);

/* Well-formed UTF-8 throughout. */
bool json_is_utf8(const char *text, size_t length);

/* Shows text in a message: printable, at most size-1 bytes, "…" where cut. Returns `ret`. */
const char *json_show(const char *text, size_t length, char *ret, size_t size);

#endif
