/*
 * The checkpoints of a run folder (run_folder.h): where they lie, which one a new attempt resumes
 * from, which are kept, and the links to the last and the best.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "protocol/file.h"
#include "protocol/strbuf.h"
#include "trainer/run_folder.h"
#include "trainer/run_numbers.h"
#include "trainer/safetensors.h"

#define CHECKPOINT_PREFIX "ckpt-"
#define CHECKPOINT_SUFFIX ".safetensors"
#define KEPT_CHECKPOINTS  2
#define MAX_LISTINGS      100 /* of a folder whose files go while they are opened */

static status checkpoint_path(const run_folder *f, int64_t attempt, int64_t step, char **ret_path,
                              errbuf *err)
{
    return run_path(ret_path, err,
                    "%s/" RUN_ATTEMPT_PREFIX "%lld/" CHECKPOINT_PREFIX "%lld" CHECKPOINT_SUFFIX,
                    f->path, (long long)attempt, (long long)step);
}

static status list_checkpoints(const run_folder *f, int64_t attempt, run_numbers *ret_list,
                               errbuf *err)
{
    char *folder = NULL;
    TRY(run_path(&folder, err, "%s/" RUN_ATTEMPT_PREFIX "%lld", f->path, (long long)attempt));
    status st = run_numbers_list(folder, CHECKPOINT_PREFIX, CHECKPOINT_SUFFIX, ret_list, err);
    free(folder);
    return st;
}

status run_folder_checkpoint_path(const run_folder *f, int64_t step, char **ret_path, errbuf *err)
{
    return checkpoint_path(f, f->attempt, step, ret_path, err);
}

/* What a search for a checkpoint has found. */
typedef struct search {
    char *path; /* NULL = nothing yet */
    int64_t attempt;
    checkpoint_head head;
    strbuf notes;
    bool is_stale; /* a listed file is gone: another attempt's owner is pruning, list again */
} search;

static void search_fini(search *s)
{
    free(s->path);
    checkpoint_head_fini(&s->head);
    strbuf_fini(&s->notes);
    memset(s, 0, sizeof *s);
}

/* Undamaged, so that whatever is wrong with it was meant: to pass it over would throw away work. */
static bool is_intact(const char *path)
{
    safetensors_file *file = NULL;
    const bool is_whole = safetensors_open(path, &file, NULL) == STATUS_OK &&
                          safetensors_verify(file, NULL) == STATUS_OK;
    safetensors_close(&file);
    return is_whole;
}

static status try_checkpoint(const run_folder *f, int64_t attempt, int64_t step, search *s,
                             errbuf *err)
{
    char *path = NULL;
    errbuf why = {0};
    TRY(checkpoint_path(f, attempt, step, &path, err));
    status st = checkpoint_verify(path, &s->head, &why);
    if (st == STATUS_OK) {
        s->path = path;
        s->attempt = attempt;
        return STATUS_OK;
    }
    if (access(path, F_OK) != 0 && errno == ENOENT) {
        s->is_stale = true;
        st = STATUS_OK;
    } else if (st == STATUS_BAD_INPUT && !is_intact(path)) {
        strbuf_add_format(&s->notes, "%s%s; passed over", s->notes.length > 0 ? "\n" : "",
                          why.text);
        st = STATUS_OK;
    } else
        errbuf_set(err, st, "%s", why.text);
    free(path);
    return st;
}

/* One pass over all earlier attempts, newest attempt and step first. */
static status search_once(const run_folder *f, search *s, errbuf *err)
{
    status st = STATUS_OK;
    run_numbers attempts = {0};
    TRY(run_numbers_list(f->path, RUN_ATTEMPT_PREFIX, "", &attempts, err));
    for (size_t a = attempts.count; a-- > 0 && s->path == NULL && !s->is_stale;) {
        run_numbers steps = {0};
        if (attempts.number[a] >= f->attempt)
            continue;
        TRY_GOTO(list_checkpoints(f, attempts.number[a], &steps, err), st, cleanup);
        for (size_t i = steps.count; i-- > 0 && s->path == NULL && !s->is_stale && st == STATUS_OK;)
            st = try_checkpoint(f, attempts.number[a], steps.number[i], s, err);
        run_numbers_fini(&steps);
        if (st != STATUS_OK)
            break;
    }
cleanup:
    run_numbers_fini(&attempts);
    return st;
}

status run_folder_find_checkpoint(const run_folder *f, char **ret_path, int64_t *ret_attempt,
                                  checkpoint_head *ret_head, char **ret_notes, errbuf *err)
{
    status st = STATUS_OK;
    char *notes = NULL;
    search s = {0};
    for (int i = 0; i < MAX_LISTINGS; i++) {
        search_fini(&s);
        TRY_GOTO(search_once(f, &s, err), st, cleanup);
        if (!s.is_stale)
            break;
    }
    if (s.is_stale) {
        st = errbuf_set(err, STATUS_ENVIRONMENT,
                        "%s: checkpoints vanish while they are opened: is another run using it?",
                        f->path);
        goto cleanup;
    }
    if (s.notes.length > 0 || s.notes.is_failed)
        TRY_GOTO(strbuf_take(&s.notes, &notes, err), st, cleanup);
    *ret_path = s.path;
    *ret_notes = notes;
    if (s.path != NULL) {
        *ret_attempt = s.attempt;
        *ret_head = s.head;
    }
    memset(&s, 0, sizeof s);
cleanup:
    search_fini(&s);
    return st;
}

status run_folder_find_step(const run_folder *f, int64_t step, char **ret_path, errbuf *err)
{
    status st = STATUS_OK;
    run_numbers attempts = {0};
    char *found = NULL;
    TRY(run_numbers_list(f->path, RUN_ATTEMPT_PREFIX, "", &attempts, err));
    for (size_t a = attempts.count; a-- > 0 && found == NULL && st == STATUS_OK;) {
        st = checkpoint_path(f, attempts.number[a], step, &found, err);
        if (st == STATUS_OK && access(found, F_OK) != 0) {
            free(found);
            found = NULL;
        }
    }
    run_numbers_fini(&attempts);
    if (st == STATUS_OK)
        *ret_path = found;
    return st;
}

status run_folder_prune(const run_folder *f, int64_t best_step, errbuf *err)
{
    status st = STATUS_OK;
    run_numbers steps = {0};
    TRY(list_checkpoints(f, f->attempt, &steps, err));
    for (size_t i = 0; i + KEPT_CHECKPOINTS < steps.count && st == STATUS_OK; i++) {
        char *path = NULL;
        if (steps.number[i] == best_step)
            continue;
        TRY_GOTO(checkpoint_path(f, f->attempt, steps.number[i], &path, err), st, cleanup);
        if (unlink(path) != 0 && errno != ENOENT)
            st =
                errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot remove: %s", path, strerror(errno));
        free(path);
    }
cleanup:
    run_numbers_fini(&steps);
    return st;
}

/* ---- links ---- */

/* A link that is there is replaced in one go; its target is relative, so that the folder can be
 * moved. */
static status set_link(const run_folder *f, const char *name, const char *target, errbuf *err)
{
    status st = STATUS_OK;
    char *path = NULL, *fresh = NULL;
    const size_t root = strlen(f->path);
    if (strncmp(target, f->path, root) == 0 && target[root] == '/')
        target += root + 1;
    TRY_GOTO(run_path(&path, err, "%s/%s", f->path, name), st, cleanup);
    TRY_GOTO(run_path(&fresh, err, "%s.new-%ld", path, (long)getpid()), st, cleanup);
    unlink(fresh); /* of a process of the same number that died here */
    if (symlink(target, fresh) != 0 || rename(fresh, path) != 0) {
        st = errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot link to %s: %s", path, target,
                        strerror(errno));
        unlink(fresh);
    }
cleanup:
    free(fresh);
    free(path);
    return st;
}

status run_folder_link(const run_folder *f, const char *last, const char *best, errbuf *err)
{
    if (last != NULL)
        TRY(set_link(f, "last.safetensors", last, err));
    if (best != NULL)
        TRY(set_link(f, "best.safetensors", best, err));
    return file_sync_dir(f->path, err);
}
