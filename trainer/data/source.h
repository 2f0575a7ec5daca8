/*
 * What the kinds of image sets share among themselves; nobody outside trainer/data includes it.
 *
 * A kind fills in a `dataset`: it allocates its own struct that begins with one, sets `info`,
 * `names` and the two functions, and leaves `pick` to dataset_open.
 */
#ifndef RINGMASTER_TRAINER_DATA_SOURCE_H
#define RINGMASTER_TRAINER_DATA_SOURCE_H

#include <stddef.h>

#include "trainer/data/dataset.h"

struct dataset {
    /* Sample i of the whole split, 0..info.count-1 as the kind's opener left it. */
    status (*read)(dataset *set, int64_t i, int short_side, image *im, int32_t *ret_label,
                   errbuf *err);
    void (*close)(dataset *set); /* frees what the kind owns, not the struct; half-built is fine */
    dataset_info info;           /* of the part that subset or eval_subset chose */
    char **names;                /* one a class */
    int64_t *pick;               /* info.count numbers within the split; NULL = all in order */
};

typedef struct dataset_progress {
    void (*report)(void *ctx, int64_t done, int64_t total); /* may be NULL */
    void *ctx;
} dataset_progress;

#define PATH_SIZE         8192 /* of buffers for paths: a root of 4000, two file names and slashes */

#define DATASET_MAX_COUNT INT32_MAX /* images of a split: what the order's bijection covers */

/* The kinds. On failure nothing is left behind. */
CHECK_RESULT status cifar_open(const spec *s, data_split split, dataset **ret_set, errbuf *err);
CHECK_RESULT status folder_open(const spec *s, const char *root, data_split split,
                                dataset **ret_set, errbuf *err);
CHECK_RESULT status synthetic_open(const spec *s, data_split split,
                                   const dataset_progress *progress, dataset **ret_set,
                                   errbuf *err);

/* Which of data.path and its usual subfolders holds the set, and how. */
typedef struct cifar_layout {
    bool is_binary;           /* else an image folder */
    bool has_coarse;          /* CIFAR-100: two label bytes, the second counts */
    int classes;              /* 10 or 100 */
    char root[4096];          /* the folder that holds the files */
    int train_files;          /* 5 or 1 */
    const char *const *files; /* training files, then the test file */
} cifar_layout;
CHECK_RESULT status cifar_find(const spec *s, cifar_layout *ret, errbuf *err);

/* The files of an image folder: what scanning it gives. */
typedef struct folder_list {
    char **classes; /* sorted by name */
    int class_count;
    char split_name[16];
    char *text;      /* all file names, NUL-ended, one after another */
    int64_t *offset; /* [count] into text */
    int32_t *label;  /* [count], ascending */
    int64_t count;
} folder_list;
/* Lists <root>/<split>/<class>/<image>, sorted by class, then by name. */
CHECK_RESULT status folder_scan(const char *root, data_split split, folder_list *ret, errbuf *err);
void folder_list_fini(folder_list *l);
/* STATUS_BAD_INPUT, naming data.path, unless `path` is a folder. */
CHECK_RESULT status folder_check(const char *path, errbuf *err);
/* Class folders of the training split alone. */
CHECK_RESULT status folder_classes(const char *root, int *ret_classes, errbuf *err);

/* Part of the content hash: counted up when the code draws other pixels. */
#define SYNTHETIC_VERSION 1
/* Classes and side of the procedural set: the spec's, or 10 and 32 where it says 0. */
int synthetic_classes(const spec *s);
int64_t synthetic_side(const spec *s);

/* Frees `count` strings and the array. */
void names_free(char **names, int count);
/* "PATH: cannot be WHAT: ...": STATUS_DATA where the file itself is the cause; what the machine is
 * short of, or a disk that fails, is STATUS_OUT_OF_MEMORY or STATUS_ENVIRONMENT: on_error = skip
 * must not step over it, and another host may do better. */
CHECK_RESULT status access_failed(const char *path, const char *what, int error, errbuf *err);
/* Reads a whole file of at most `limit` bytes; caller frees. Fails as access_failed says. */
CHECK_RESULT status file_read(const char *path, size_t limit, uint8_t **ret_bytes,
                              size_t *ret_length, errbuf *err);

/* Runs body(ctx, i) for i in [0, count) on up to `threads` threads (0 = the affinity mask), in
 * pieces of `grain`. Every i runs whatever fails; the failure of the lowest i is returned, so that
 * the answer does not depend on timing. */
typedef status (*parallel_body)(void *ctx, int64_t i, errbuf *err);
CHECK_RESULT status parallel_for(int64_t count, int64_t grain, int threads, parallel_body body,
                                 void *ctx, const dataset_progress *progress, errbuf *err);

/* a * b * c bytes; STATUS_OUT_OF_MEMORY (saying `what`) where that overflows or does not fit. */
CHECK_RESULT status bytes_alloc(const char *what, int64_t a, int64_t b, int64_t c, void **ret,
                                errbuf *err);

#endif
