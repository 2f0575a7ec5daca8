/* What the files of the job spec share among themselves; users include protocol/spec.h. */
#ifndef RINGMASTER_PROTOCOL_SPEC_INTERNAL_H
#define RINGMASTER_PROTOCOL_SPEC_INTERNAL_H

#include <cjson/cJSON.h>

#include "protocol/spec.h"
#include "protocol/strbuf.h"

#define SPEC_MAX_TEXT    4095
#define SPEC_MAX_LABEL   128
#define SPEC_MAX_SUGGEST 96
#define SPEC_MAX_EXPECT  400

/* The field's place in a spec. */
static inline void *spec_at(spec *s, const spec_field *f)
{
    return (char *)s + f->offset;
}

static inline const void *spec_at_const(const spec *s, const spec_field *f)
{
    return (const char *)s + f->offset;
}

/* Whether `name` is the first part of a dotted path ("rpg"). */
bool spec_is_group(const char *name);

/* Whether the field holds a value that a dump shows: ring sizes where not 0, rpg.seed where set,
 * every other field always. */
bool spec_is_given(const spec *s, const spec_field *f);

/* Sets one field from JSON. `raw` is the value's text where it is known (seeds need its digits),
 * else NULL. `where` begins the error line. On failure the field is as it was. */
CHECK_RESULT status spec_set_value(spec *s, const spec_field *f, const cJSON *value,
                                   const char *raw, const char *where, errbuf *err);

/* What a field takes, for messages and help: "an integer in [1, 4096]", "one of a, b". */
void spec_expect(const spec_field *f, char ret[SPEC_MAX_EXPECT]);

/* STATUS_BAD_INPUT where a value that is already in the struct is out of its field's range. */
CHECK_RESULT status spec_check_value(const spec *s, const spec_field *f, const char *where,
                                     errbuf *err);

/* "; did you mean X?", or "" where nothing is near. Candidates: the fields' paths and groups. */
void spec_suggest_path(const char *path, char ret[SPEC_MAX_SUGGEST]);
/* The same among the names of an enum. */
void spec_suggest_name(const char *word, const char *const *names, char ret[SPEC_MAX_SUGGEST]);

/* Writes the fields that are given and have all of `flags`. */
void spec_write(const spec *s, unsigned flags, bool pretty, strbuf *b);

#endif
