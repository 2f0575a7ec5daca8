/*
 * Opening a split of whatever data.kind names, and the part of it that subset chooses.
 */
#include "trainer/data/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/feistel.h"
#include "kernels/random.h"
#include "trainer/data/source.h"

void names_free(char **names, int count)
{
    for (int i = 0; names && i < count; i++)
        free(names[i]);
    free(names);
}

status bytes_alloc(const char *what, int64_t a, int64_t b, int64_t c, void **ret, errbuf *err)
{
    size_t n = 0;
    void *p = NULL;
    if (!__builtin_mul_overflow(a, b, &n) && !__builtin_mul_overflow(n, c, &n))
        p = malloc(n ? n : 1);
    if (!p)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY,
                          "no memory for %s (%" PRId64 " x %" PRId64 " x %" PRId64 " bytes)", what,
                          a, b, c);
    *ret = p;
    return STATUS_OK;
}

/* read(2) until `length` bytes are there or the file ends. */
status access_failed(const char *path, const char *what, int error, errbuf *err)
{
    static const int of_the_file[] = {ENOENT, ENOTDIR, EISDIR, EACCES, EPERM, ELOOP, ENAMETOOLONG};
    status st = error == ENOMEM ? STATUS_OUT_OF_MEMORY : STATUS_ENVIRONMENT;
    for (size_t i = 0; i < sizeof of_the_file / sizeof *of_the_file; i++)
        if (error == of_the_file[i])
            st = STATUS_DATA;
    return errbuf_set(err, st, "%s: cannot be %s: %s", path, what, strerror(error));
}

static ssize_t read_all(int fd, uint8_t *bytes, size_t length)
{
    size_t at = 0;
    while (at < length) {
        ssize_t n = read(fd, bytes + at, length - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        at += (size_t)n;
    }
    return (ssize_t)at;
}

static status read_open_file(int fd, const char *path, size_t limit, uint8_t **ret_bytes,
                             size_t *ret_length, errbuf *err)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return access_failed(path, "read", errno, err);
    if (!S_ISREG(info.st_mode))
        return errbuf_set(err, STATUS_DATA, "%s: not a file", path);
    size_t length = (size_t)info.st_size;
    if (length > limit)
        return errbuf_set(err, STATUS_DATA, "%s: %zu bytes, at most %zu are read", path, length,
                          limit);
    void *bytes = NULL;
    TRY(bytes_alloc(path, (int64_t)length, 1, 1, &bytes, err));
    ssize_t n = read_all(fd, bytes, length);
    if (n < 0 || (size_t)n < length) {
        int code = errno;
        free(bytes);
        return n < 0 ? access_failed(path, "read", code, err)
                     : errbuf_set(err, STATUS_DATA, "%s: it became shorter while being read", path);
    }
    *ret_bytes = bytes;
    *ret_length = length;
    return STATUS_OK;
}

status file_read(const char *path, size_t limit, uint8_t **ret_bytes, size_t *ret_length,
                 errbuf *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return access_failed(path, "opened", errno, err);
    status st = read_open_file(fd, path, limit, ret_bytes, ret_length, err);
    close(fd);
    return st;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Leaves `wanted` of the set's images, in the order in which they stand in it. */
static status take_part(dataset *set, const char *field, int64_t wanted, errbuf *err)
{
    int64_t whole = set->info.count;
    if (wanted == 0 || wanted == whole)
        return STATUS_OK;
    if (wanted > whole)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%s is %" PRId64 ", but there are %" PRId64
                          " images: give at most that, or 0 for all",
                          field, wanted, whole);
    void *pick = NULL;
    TRY(bytes_alloc(field, wanted, sizeof *set->pick, 1, &pick, err));
    set->pick = pick;
    /* A fixed seed: the same images in every run, spread over the whole set. */
    feistel bijection = feistel_make((uint32_t)whole, 0, 0, RANDOM_SUBSET, 0);
    for (int64_t i = 0; i < wanted; i++)
        set->pick[i] = feistel_apply(&bijection, (uint32_t)i);
    qsort(set->pick, (size_t)wanted, sizeof *set->pick, ascending);
    set->info.count = wanted;
    return STATUS_OK;
}

static status open_kind(const spec *s, data_split split, const dataset_progress *progress,
                        dataset **ret_set, errbuf *err)
{
    switch ((enum spec_data_kind)s->data.kind) {
    case DATA_SYNTHETIC:
        return synthetic_open(s, split, progress, ret_set, err);
    case DATA_CIFAR10:
    case DATA_CIFAR100:
        return cifar_open(s, split, ret_set, err);
    case DATA_FOLDER:
        return folder_open(s, s->data.path, split, ret_set, err);
    }
    return errbuf_set(err, STATUS_BAD_INPUT, "data.kind has the unknown value %d", s->data.kind);
}

status dataset_open(const spec *s, data_split split,
                    void (*report)(void *ctx, int64_t done, int64_t total), void *ctx,
                    dataset **ret_set, errbuf *err)
{
    dataset_progress progress = {.report = report, .ctx = ctx};
    dataset *set = NULL;
    TRY(open_kind(s, split, &progress, &set, err));
    status st = split == SPLIT_TRAIN ? take_part(set, "data.subset", s->data.subset, err)
                                     : take_part(set, "data.eval_subset", s->data.eval_subset, err);
    if (st != STATUS_OK)
        dataset_close(&set);
    else
        *ret_set = set;
    return st;
}

void dataset_close(dataset **set)
{
    if (!*set)
        return;
    (*set)->close(*set);
    names_free((*set)->names, (*set)->info.classes);
    free((*set)->pick);
    free(*set);
    *set = NULL;
}

void dataset_describe(const dataset *set, dataset_info *ret)
{
    *ret = set->info;
}

const char *dataset_class_name(const dataset *set, int label)
{
    bool is_known = set->names && label >= 0 && label < set->info.classes;
    return is_known ? set->names[label] : "?";
}

status dataset_read(dataset *set, int64_t i, int short_side, image *im, int32_t *ret_label,
                    errbuf *err)
{
    ASSERT(i >= 0 && i < set->info.count);
    return set->read(set, set->pick ? set->pick[i] : i, short_side, im, ret_label, err);
}
