/*
 * Reading run folders for compare.h, and the table as text and JSON. Drawing: compare_plot.c.
 */
#include "trainer/compare.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE ((size_t)16 << 20) /* a result.json or job.json above that is damaged */

/* Reads and parses one file. *ret_json NULL where it does not exist. Caller deletes. */
static status read_json(const char *path, cJSON **ret_json, errbuf *err)
{
    FILE *f = fopen(path, "rb");
    if (!f && (errno == ENOENT || errno == ENOTDIR)) {
        *ret_json = NULL;
        return STATUS_OK;
    }
    if (!f)
        return errbuf_set(err, STATUS_BAD_INPUT, "%s cannot be read: %s", path, strerror(errno));
    char *text = NULL;
    size_t length = 0, capacity = 0, got = 0;
    do {
        length += got;
        if (capacity - length < 4096) {
            capacity += 65536;
            char *grown = capacity <= MAX_FILE ? realloc(text, capacity) : NULL;
            if (!grown) {
                free(text);
                fclose(f);
                return errbuf_set(err, STATUS_BAD_INPUT, "%s is too large", path);
            }
            text = grown;
        }
        got = fread(text + length, 1, capacity - length, f);
    } while (got > 0);
    const int failed = ferror(f);
    fclose(f);
    cJSON *json = failed ? NULL : cJSON_ParseWithLength(text, length);
    free(text);
    if (!json)
        return errbuf_set(err, STATUS_BAD_INPUT, "%s is not valid JSON", path);
    *ret_json = json;
    return STATUS_OK;
}

/* A count that must be there: a whole number of 0..2^53. */
static status get_count(const cJSON *json, const char *path, const char *key, int64_t *ret,
                        errbuf *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 0x1p53) ||
        item->valuedouble != floor(item->valuedouble))
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: '%s' is missing or not a count", path, key);
    *ret = (int64_t)item->valuedouble;
    return STATUS_OK;
}

/* A number that may be missing or null: `fallback` then. */
static double get_number(const cJSON *json, const char *key, double fallback)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsNumber(item) && isfinite(item->valuedouble) ? item->valuedouble : fallback;
}

/* An attempt that failed before its network was built has nothing to compare. */
static bool has_figures(const cJSON *result)
{
    return cJSON_GetObjectItemCaseSensitive(result, "dof") != NULL;
}

/* The accuracy in `final` or `best`; -1 where nothing was measured. An attempt that ended before
 * its first evaluation may have written zeros. */
static double measured_top1(const cJSON *result, const char *key)
{
    const cJSON *figures = cJSON_GetObjectItemCaseSensitive(result, key);
    const double top1 = get_number(figures, "top1", -1);
    return top1 >= 0 && get_number(figures, "epoch", 1) >= 1 ? top1 : -1;
}

/* How much an attempt has to show: a later one that was refused or stopped before it evaluated does
 * not hide what an earlier one measured. */
static int worth(const cJSON *result)
{
    if (!result)
        return 0;
    if (!has_figures(result))
        return 1;
    return measured_top1(result, "final") >= 0 ? 3 : 2;
}

/* The best result of a run folder so far; all zero = none. */
typedef struct found_result {
    cJSON *json;
    char *file;
    long attempt;
} found_result;

static void found_result_fini(found_result *f)
{
    cJSON_Delete(f->json);
    free(f->file);
    *f = (found_result){0};
}

/* Whether `a` beats `b`: by worth; of two that measured nothing, the one that got further; else the
 * higher attempt, as a number. */
static bool is_better(const found_result *a, const found_result *b)
{
    const int mine = worth(a->json), theirs = worth(b->json);
    if (mine != theirs)
        return mine > theirs;
    const double steps = get_number(a->json, "steps", 0), others = get_number(b->json, "steps", 0);
    if (mine == 2 && steps != others)
        return steps > others;
    return a->attempt > b->attempt;
}

/* Looks at one entry of the run folder; takes its result where it beats what was found. */
static status consider(const char *path, const char *entry, found_result *best, errbuf *err)
{
    char *end = NULL;
    found_result here = {0};
    if (strncmp(entry, "attempt-", 8) != 0 || entry[8] < '1' || entry[8] > '9')
        return STATUS_OK;
    here.attempt = strtol(entry + 8, &end, 10);
    if (*end != '\0')
        return STATUS_OK;
    if (asprintf(&here.file, "%s/%s/result.json", path, entry) < 0)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a path");
    const status st = read_json(here.file, &here.json, err);
    if (here.json && is_better(&here, best)) {
        found_result_fini(best);
        *best = here;
    } else {
        found_result_fini(&here);
    }
    return st;
}

static status find_result(const char *path, found_result *best, errbuf *err)
{
    DIR *dir = opendir(path);
    if (!dir)
        return errbuf_set(err, STATUS_BAD_INPUT, "run folder %s cannot be opened: %s", path,
                          strerror(errno));
    status st = STATUS_OK;
    for (const struct dirent *e = readdir(dir); e && st == STATUS_OK; e = readdir(dir))
        st = consider(path, e->d_name, best, err);
    closedir(dir);
    if (st == STATUS_OK && !best->json)
        st = errbuf_set(err, STATUS_BAD_INPUT,
                        "%s has no attempt with a result.json: no run has ended there", path);
    return st;
}

/* The spec's name where job.json has one, else the last part of the path. */
static status run_name(const char *path, char **ret_name, errbuf *err)
{
    char *file = NULL;
    cJSON *job = NULL;
    if (asprintf(&file, "%s/job.json", path) < 0)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a path");
    const status st = read_json(file, &job, err);
    free(file);
    TRY(st);
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(job, "name"));
    char *copy;
    if (name && *name) {
        copy = strdup(name);
    } else {
        size_t end = strlen(path);
        while (end > 1 && path[end - 1] == '/')
            end--;
        size_t start = end;
        while (start > 0 && path[start - 1] != '/')
            start--;
        copy = strndup(path + start, end - start);
    }
    cJSON_Delete(job);
    if (!copy)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a name");
    *ret_name = copy;
    return STATUS_OK;
}

/* Takes the figures out of a result. */
static status read_result(const cJSON *json, const char *file, compare_run *r, errbuf *err)
{
    int64_t generated = 0, ring_used = 0, wire_floats = 0;
    const char *error = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "error"));
    if (error && !has_figures(json))
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: the run failed: %s", file, error);
    TRY(get_count(json, file, "dof", &r->dof, err));
    TRY(get_count(json, file, "ring_size", &r->ring_size, err));
    TRY(get_count(json, file, "generated", &generated, err));
    TRY(get_count(json, file, "wire_floats", &wire_floats, err));
    TRY(get_count(json, file, "epochs", &r->epochs, err));
    ring_used = r->ring_size < generated ? r->ring_size : generated;
    /* Of several rings some may be larger than what they generate: their sum cannot tell. Results
     * of older versions have no more than the sum. */
    if (cJSON_GetObjectItemCaseSensitive(json, "ring_used"))
        TRY(get_count(json, file, "ring_used", &ring_used, err));
    /* What a ring-backed net would have were every generated weight free. */
    r->dense_dof = r->ring_size > 0 ? r->dof - ring_used + generated : r->dof;
    r->wire_bytes = wire_floats * (int64_t)sizeof(float);
    r->top1 = measured_top1(json, "final");
    r->best_top1 = measured_top1(json, "best");
    r->images_per_second = get_number(json, "images_per_second", 0);
    const char *outcome = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "outcome"));
    snprintf(r->outcome, sizeof r->outcome, "%s", outcome ? outcome : "unknown");
    return STATUS_OK;
}

static status load_run(const char *path, compare_run *r, errbuf *err)
{
    found_result found = {0};
    status st;
    TRY_GOTO(find_result(path, &found, err), st, cleanup);
    TRY_GOTO(read_result(found.json, found.file, r, err), st, cleanup);
    TRY_GOTO(run_name(path, &r->name, err), st, cleanup);
    r->path = strdup(path);
    if (!r->path)
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a path");
cleanup:
    found_result_fini(&found);
    return st;
}

static int by_dof(const void *a, const void *b)
{
    const compare_run *x = a, *y = b;
    if (x->dof != y->dof)
        return x->dof < y->dof ? -1 : 1;
    return strcmp(x->name, y->name);
}

status compare_load(const char *const *paths, int count, compare_table *ret, errbuf *err)
{
    compare_table t = {.run = calloc((size_t)count + 1, sizeof *t.run)};
    if (!t.run)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for %d runs", count);
    for (int i = 0; i < count; i++) {
        t.runs++;
        const status st = load_run(paths[i], &t.run[i], err);
        if (st != STATUS_OK) {
            compare_fini(&t);
            return st;
        }
    }
    qsort(t.run, (size_t)t.runs, sizeof *t.run, by_dof);
    *ret = t;
    return STATUS_OK;
}

void compare_fini(compare_table *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->runs; i++) {
        free(t->run[i].path);
        free(t->run[i].name);
    }
    free(t->run);
    *t = (compare_table){0};
}

/* 1234567 as "1,234,567". */
static const char *with_commas(int64_t n, char buffer[32])
{
    char digits[24];
    const int length = snprintf(digits, sizeof digits, "%lld", (long long)n);
    char *out = buffer;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0 && digits[i - 1] != '-')
            *out++ = ',';
        *out++ = digits[i];
    }
    *out = '\0';
    return buffer;
}

static const char *as_percent(double share, char buffer[32])
{
    if (share < 0)
        snprintf(buffer, 32, "-");
    else
        snprintf(buffer, 32, "%.1f %%", 100 * share);
    return buffer;
}

static void print_rows(const compare_table *t, FILE *out)
{
    int width = 3;
    for (int i = 0; i < t->runs; i++) {
        const int length = (int)strlen(t->run[i].name);
        width = length > width ? length : width;
    }
    width = width > 40 ? 40 : width;
    fprintf(out, "%-*s  %11s  %11s  %8s  %8s  %8s  %6s  %8s  %14s\n", width, "", "", "", "share of",
            "accuracy", "", "", "", "bytes all-");
    fprintf(out, "%-*s  %11s  %11s  %8s  %8s  %8s  %6s  %8s  %14s\n", width, "run", "ring size",
            "DoF", "dense", "at end", "best", "epochs", "images/s", "reduced a step");
    for (int i = 0; i < t->runs; i++) {
        const compare_run *r = &t->run[i];
        char ring[32], dof[32], share[32], top1[32], best[32], wire[32];
        fprintf(out, "%-*.*s  %11s  %11s  %8s  %8s  %8s  %6lld  %8.0f  %14s", width, width, r->name,
                r->ring_size > 0 ? with_commas(r->ring_size, ring) : "dense",
                with_commas(r->dof, dof),
                as_percent(r->dense_dof > 0 ? (double)r->dof / (double)r->dense_dof : -1, share),
                as_percent(r->top1, top1), as_percent(r->best_top1, best), (long long)r->epochs,
                r->images_per_second, with_commas(r->wire_bytes, wire));
        if (strcmp(r->outcome, "done") != 0)
            fprintf(out, "  (%s)", r->outcome);
        fputc('\n', out);
    }
}

status compare_text(const compare_table *t, char **ret_text, errbuf *err)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a table");
    print_rows(t, out);
    if (fclose(out) != 0) {
        free(text);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a table");
    }
    *ret_text = text;
    return STATUS_OK;
}

static bool add_run(cJSON *array, const compare_run *r)
{
    cJSON *o = cJSON_CreateObject();
    if (!o || !cJSON_AddItemToArray(array, o)) {
        cJSON_Delete(o);
        return false;
    }
    bool ok = cJSON_AddStringToObject(o, "name", r->name) &&
              cJSON_AddStringToObject(o, "path", r->path) &&
              cJSON_AddStringToObject(o, "outcome", r->outcome) &&
              cJSON_AddNumberToObject(o, "ring_size", (double)r->ring_size) &&
              cJSON_AddNumberToObject(o, "dof", (double)r->dof) &&
              cJSON_AddNumberToObject(o, "dense_dof", (double)r->dense_dof) &&
              cJSON_AddNumberToObject(o, "epochs", (double)r->epochs) &&
              cJSON_AddNumberToObject(o, "images_per_second", r->images_per_second) &&
              cJSON_AddNumberToObject(o, "wire_bytes", (double)r->wire_bytes);
    if (r->top1 >= 0)
        ok = ok && cJSON_AddNumberToObject(o, "top1", r->top1);
    if (r->best_top1 >= 0)
        ok = ok && cJSON_AddNumberToObject(o, "best_top1", r->best_top1);
    return ok;
}

status compare_json(const compare_table *t, char **ret_text, errbuf *err)
{
    cJSON *array = cJSON_CreateArray();
    bool ok = array != NULL;
    for (int i = 0; i < t->runs && ok; i++)
        ok = add_run(array, &t->run[i]);
    char *text = ok ? cJSON_Print(array) : NULL;
    cJSON_Delete(array);
    if (!text)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for JSON");
    *ret_text = text;
    return STATUS_OK;
}
