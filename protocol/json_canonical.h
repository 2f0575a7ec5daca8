/*
 * Canonical JSON: one text for one value, so that it can be hashed and compared (FORMATS 2, 4, 7).
 * Compact; members sorted by the bytes of their keys; integral numbers up to 2^53 in decimal,
 * others as %.17g; strings as UTF-8 with the shortest escapes.
 */
#ifndef RINGMASTER_PROTOCOL_JSON_CANONICAL_H
#define RINGMASTER_PROTOCOL_JSON_CANONICAL_H

#include <cjson/cJSON.h>

#include "protocol/status.h"

/* Caller frees. STATUS_BAD_INPUT for a non-finite number or duplicate keys. */
CHECK_RESULT status json_canonical(const cJSON *value, char **ret_text, errbuf *err);

#endif
