/*
 * CIFAR-10 and CIFAR-100: the official binary layout, or an image folder with 10 or 100 classes.
 *
 * Binary records are a label (CIFAR-100: a coarse one, then the fine one, which counts) and 32 x 32
 * pixels as planes R, G, B. All files of a split are read into memory when it is opened and every
 * label is checked there, so that training never meets a bad record.
 */
#include "trainer/data/dataset.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "trainer/data/source.h"

#define CIFAR_SIDE   32
#define CIFAR_PIXELS (3 * CIFAR_SIDE * CIFAR_SIDE)
#define CIFAR_LIMIT  ((size_t)1 << 31)

static const char *const cifar10_files[] = {"data_batch_1.bin", "data_batch_2.bin",
                                            "data_batch_3.bin", "data_batch_4.bin",
                                            "data_batch_5.bin", "test_batch.bin"};
static const char *const cifar100_files[] = {"train.bin", "test.bin"};

typedef struct cifar_set {
    dataset base;
    uint8_t *records; /* of all files, one after another */
    int record;       /* bytes of one */
    int label_at;     /* offset of the label that counts; pixels follow it */
} cifar_set;

/* -- where it is -- */

static bool has_file(const char *root, const char *name)
{
    char path[PATH_SIZE];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", root, name);
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

static bool has_folder(const char *root, const char *name)
{
    char path[PATH_SIZE];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", root, name);
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* Any of the files will do: which ones are missing is said when they are read. */
static bool has_binary(const cifar_layout *l, const char *root)
{
    for (int i = 0; i <= l->train_files; i++)
        if (has_file(root, l->files[i]))
            return true;
    return false;
}

static status nothing_found(const char *kind, const char *path, const cifar_layout *l, errbuf *err)
{
    if (l->classes == 10 &&
        (has_folder(path, "cifar-10-batches-py") || has_file(path, "data_batch_1")))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "data.path: %s holds the Python version of CIFAR-10: the binary version "
                          "(data_batch_1.bin …) is needed",
                          path);
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "data.path: no %s in %s: expected %s … %s, or an image folder "
                      "(train/<class>/*.jpg and test/<class>/*.jpg)",
                      kind, path, l->files[0], l->files[l->train_files]);
}

status cifar_find(const spec *s, cifar_layout *ret, errbuf *err)
{
    bool is_10 = s->data.kind == DATA_CIFAR10;
    const char *kind = is_10 ? "CIFAR-10" : "CIFAR-100", *path = s->data.path;
    const char *below[] = {"", is_10 ? "/cifar-10-batches-bin" : "/cifar-100-binary",
                           is_10 ? "/cifar10" : "/cifar100"};
    cifar_layout l = {.has_coarse = !is_10,
                      .classes = is_10 ? 10 : 100,
                      .train_files = is_10 ? 5 : 1,
                      .files = is_10 ? cifar10_files : cifar100_files};
    if (!path[0])
        return errbuf_set(err, STATUS_BAD_INPUT, "data.path: not given: name the folder with %s",
                          kind);
    if (strlen(path) + 32 > sizeof l.root)
        return errbuf_set(err, STATUS_BAD_INPUT, "data.path: longer than %zu characters",
                          sizeof l.root - 32);
    TRY(folder_check(path, err));
    for (size_t i = 0; i < sizeof below / sizeof *below; i++) {
        snprintf(l.root, sizeof l.root, "%s%s", path, below[i]);
        l.is_binary = has_binary(&l, l.root);
        if (l.is_binary || has_folder(l.root, "train")) {
            *ret = l;
            return STATUS_OK;
        }
    }
    return nothing_found(kind, path, &l, err);
}

/* -- binary -- */

static void cifar_close(dataset *base)
{
    free(((cifar_set *)base)->records);
}

static status cifar_read(dataset *base, int64_t i, int short_side, image *im, int32_t *ret_label,
                         errbuf *err)
{
    (void)short_side;
    const cifar_set *set = (const cifar_set *)base;
    const uint8_t *record = set->records + i * set->record;
    TRY(image_reserve(im, CIFAR_SIDE, CIFAR_SIDE, err));
    memcpy(im->pixels, record + set->label_at + 1, CIFAR_PIXELS);
    *ret_label = record[set->label_at];
    return STATUS_OK;
}

/* One file of at most `most` images appended to the set's records. */
static status append_file(cifar_set *set, const char *path, size_t most, errbuf *err)
{
    uint8_t *bytes = NULL;
    size_t length = 0, record = (size_t)set->record;
    TRY(file_read(path, CIFAR_LIMIT, &bytes, &length, err));
    status st = STATUS_OK;
    if (length == 0 || length % record != 0 || length / record > most) {
        size_t whole = length / record;
        st = errbuf_set(err, STATUS_DATA,
                        "%s: %zu bytes: %s CIFAR file: expected whole records of %zu bytes, %zu "
                        "bytes for all %zu images; %zu records and %zu bytes more are there",
                        path, length,
                        length == 0    ? "empty"
                        : whole < most ? "truncated or oversized"
                                       : "oversized",
                        record, record * most, most, whole, length % record);
        goto cleanup;
    }
    for (size_t i = 0; i < length / record; i++) {
        int label = bytes[i * record + (size_t)set->label_at];
        if (label >= set->base.info.classes) {
            st = errbuf_set(err, STATUS_DATA,
                            "%s: record %zu has label %d, expected 0 to %d: not a CIFAR-%d file, "
                            "or a damaged one",
                            path, i, label, set->base.info.classes - 1, set->base.info.classes);
            goto cleanup;
        }
    }
    size_t held = (size_t)set->base.info.count * record;
    set->base.info.count += (int64_t)(length / record);
    if (!set->records) {
        set->records = bytes;
        return STATUS_OK;
    }
    uint8_t *records = realloc(set->records, held + length);
    if (!records) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for the %zu bytes of %s", length,
                        path);
        goto cleanup;
    }
    memcpy(records + held, bytes, length);
    set->records = records;
cleanup:
    free(bytes);
    return st;
}

/* Names from the official lists where they lie beside the files, else numbers. */
static status class_names(const cifar_layout *l, char **names, errbuf *err)
{
    char path[PATH_SIZE], line[256];
    snprintf(path, sizeof path, "%s/%s", l->root,
             l->has_coarse ? "fine_label_names.txt" : "batches.meta.txt");
    FILE *f = fopen(path, "r");
    status st = STATUS_OK;
    for (int i = 0; i < l->classes; i++) {
        line[0] = 0;
        if (f && !fgets(line, sizeof line, f))
            line[0] = 0;
        line[strcspn(line, "\r\n")] = 0;
        if (!line[0])
            snprintf(line, sizeof line, "%d", i);
        names[i] = strdup(line);
        if (!names[i]) {
            st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for class names");
            break;
        }
    }
    if (f)
        fclose(f);
    return st;
}

static status fill_binary(cifar_set *set, const cifar_layout *l, data_split split, errbuf *err)
{
    int first = split == SPLIT_TRAIN ? 0 : l->train_files;
    int last = split == SPLIT_TRAIN ? l->train_files : l->train_files + 1;
    const size_t most = split == SPLIT_TRAIN && l->train_files == 1 ? 50000 : 10000;
    char path[PATH_SIZE];
    for (int i = first; i < last; i++) {
        snprintf(path, sizeof path, "%s/%s", l->root, l->files[i]);
        TRY(append_file(set, path, most, err));
    }
    set->base.names = calloc((size_t)l->classes, sizeof *set->base.names);
    if (!set->base.names)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for class names");
    return class_names(l, set->base.names, err);
}

static status open_binary(const cifar_layout *l, data_split split, dataset **ret_set, errbuf *err)
{
    cifar_set *set = calloc(1, sizeof *set);
    if (!set)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a data set");
    set->label_at = l->has_coarse ? 1 : 0;
    set->record = set->label_at + 1 + CIFAR_PIXELS;
    set->base.read = cifar_read;
    set->base.close = cifar_close;
    set->base.info = (dataset_info){
        .classes = l->classes, .w = CIFAR_SIDE, .h = CIFAR_SIDE, .is_resident = true};
    dataset *base = &set->base;
    status st = fill_binary(set, l, split, err);
    if (st != STATUS_OK)
        dataset_close(&base);
    else
        *ret_set = base;
    return st;
}

status cifar_open(const spec *s, data_split split, dataset **ret_set, errbuf *err)
{
    cifar_layout l;
    TRY(cifar_find(s, &l, err));
    if (l.is_binary)
        return open_binary(&l, split, ret_set, err);
    dataset *set = NULL;
    TRY(folder_open(s, l.root, split, &set, err));
    if (set->info.classes != l.classes) {
        int found = set->info.classes;
        dataset_close(&set);
        return errbuf_set(err, STATUS_DATA,
                          "%s: %d classes, expected the %d of CIFAR-%d; for another image folder "
                          "set data.kind to folder",
                          l.root, found, l.classes, l.classes);
    }
    *ret_set = set;
    return STATUS_OK;
}
