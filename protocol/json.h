/*
 * JSON in and out, on top of cJSON: strict parsing with positions in the errors, typed reading of
 * members, and one writer whose numbers read back equal.
 */
#ifndef RINGMASTER_PROTOCOL_JSON_H
#define RINGMASTER_PROTOCOL_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "protocol/status.h"
#include "protocol/strbuf.h"

/* 2^53: beyond it a double no longer tells neighbouring integers apart. */
#define JSON_MAX_EXACT  9007199254740992LL
#define JSON_NUMBER_MAX 32

/* Parses a whole document; the text need not be NUL-ended. Refused, with source:line:column:
 * syntax errors, more than 64 levels, duplicate keys in any object, numbers beyond double, NUL
 * characters, malformed UTF-8, anything behind the document. Free with cJSON_Delete. */
CHECK_RESULT status json_parse(const char *text, size_t length, const char *source,
                               cJSON **ret_json, errbuf *err);

/* Members by exact name; the error says where ("attempt.json: ranks[0].host: expected …"). `where`
 * is the prefix of the path, "" at the top. A number must be integral and in [min, max]. */
CHECK_RESULT status json_read_int(const cJSON *object, const char *name, int64_t min, int64_t max,
                                  const char *where, int64_t *ret_value, errbuf *err);
/* Points into `object`. */
CHECK_RESULT status json_read_string(const cJSON *object, const char *name, const char *where,
                                     const char **ret_text, errbuf *err);

/* "a number", "true", "a string", …: what a value is, for messages. */
const char *json_kind(const cJSON *value);

/* The shortest text that reads back as the same double; integers below 1e15 in decimal. The value
 * must be finite. */
void json_format_double(double value, char ret[JSON_NUMBER_MAX]);
/* A string with its quotes and escapes. */
void json_add_string(strbuf *b, const char *text);
/* A value on one line, members in their order; non-finite numbers become null. */
void json_add_value(strbuf *b, const cJSON *value);

#endif
