/*
 * Fuzzes the job spec: JSON text, then `--set` assignments in lines of their own
 * ("\n--set train.lr=0.1"). What is accepted must dump to text that reads back as the same spec;
 * what is refused must say so in one line and leave the spec as it was.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/spec.h"

#define SEPARATOR "\n--set "

static char *dump(const spec *s)
{
    char *text = NULL;
    ASSERT(spec_dump(s, false, &text, NULL) == STATUS_OK);
    return text;
}

static void check_line(const errbuf *err, status st)
{
    ASSERT(err->code == st && err->text[0] != '\0' && strchr(err->text, '\n') == NULL);
}

/* dump -> parse -> dump is the identity, indented or not; results and id come along. */
static void check_round_trip(const spec *s)
{
    spec again;
    char *pretty = NULL, *first = dump(s), *second, *results[2] = {NULL, NULL};
    char id[2][33];
    errbuf err = {0};
    ASSERT(spec_init(&again, &err) == STATUS_OK);
    ASSERT(spec_dump(s, true, &pretty, &err) == STATUS_OK);
    ASSERT(spec_parse(&again, pretty, strlen(pretty), "dump", &err) == STATUS_OK);
    second = dump(&again);
    ASSERT(strcmp(first, second) == 0);
    ASSERT(spec_dump_results(s, &results[0], &err) == STATUS_OK);
    ASSERT(spec_dump_results(&again, &results[1], &err) == STATUS_OK);
    ASSERT(strcmp(results[0], results[1]) == 0);
    ASSERT(spec_job_id(s, "00", id[0], &err) == STATUS_OK);
    ASSERT(spec_job_id(&again, "00", id[1], &err) == STATUS_OK);
    ASSERT(strcmp(id[0], id[1]) == 0);
    free(results[0]);
    free(results[1]);
    free(pretty);
    free(first);
    free(second);
    spec_fini(&again);
}

/* Part 0 is the text, the others are assignments. True: accepted, and `*dumped` is out of date. */
static bool apply(spec *s, int part, const char *text, size_t length, char **dumped)
{
    errbuf err = {0};
    char *copy = strndup(text, length); /* an assignment is NUL-ended */
    ASSERT(copy != NULL);
    const status st =
        part == 0 ? spec_parse(s, text, length, "input", &err) : spec_set(s, copy, &err);
    free(copy);
    char *after = dump(s);
    if (st != STATUS_OK) {
        check_line(&err, st);
        ASSERT(strcmp(*dumped, after) == 0);
    }
    free(*dumped);
    *dumped = after;
    return st == STATUS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *at = (const char *)data, *end = at + size;
    const size_t gap = sizeof SEPARATOR - 1;
    bool is_accepted = false;
    spec s;
    errbuf err = {0};
    ASSERT(spec_init(&s, &err) == STATUS_OK);
    char *dumped = dump(&s);
    for (int part = 0; at != NULL; part++) {
        const char *next = size > 0 ? memmem(at, (size_t)(end - at), SEPARATOR, gap) : NULL;
        const size_t length = (size_t)((next != NULL ? next : end) - at);
        is_accepted |= apply(&s, part, at, length, &dumped);
        at = next != NULL ? next + gap : NULL;
    }
    if (is_accepted) {
        const status st = spec_validate(&s, &err);
        if (st != STATUS_OK)
            check_line(&err, st);
        check_round_trip(&s);
    }
    free(dumped);
    spec_fini(&s);
    return 0;
}
