/*
 * Listing an image folder: <root>/train/<class>/<image> and <root>/{val,validation,test}/…
 *
 * Classes and images are sorted by name, byte by byte, so that numbers do not depend on the file
 * system. Hidden entries, folders inside class folders and files with other extensions are passed
 * over.
 */
#include "trainer/data/source.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

/* Names under construction: text grows, so that they are known by their offset. */
typedef struct name_list {
    char *text;
    size_t used, capacity;
    int64_t *offset;
    int64_t count, room;
} name_list;

static void name_list_fini(name_list *l)
{
    free(l->text);
    free(l->offset);
    *l = (name_list){0};
}

static status name_list_add(name_list *l, const char *name, errbuf *err)
{
    size_t length = strlen(name) + 1;
    if (l->used + length > l->capacity) {
        size_t capacity = 2 * (l->used + length) + 4096;
        char *text = realloc(l->text, capacity);
        if (!text)
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a list of images");
        l->text = text;
        l->capacity = capacity;
    }
    if (l->count == l->room) {
        int64_t room = 2 * l->room + 256;
        int64_t *offset = realloc(l->offset, (size_t)room * sizeof *offset);
        if (!offset)
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a list of images");
        l->offset = offset;
        l->room = room;
    }
    memcpy(l->text + l->used, name, length);
    l->offset[l->count++] = (int64_t)l->used;
    l->used += length;
    return STATUS_OK;
}

static int by_name(const void *a, const void *b, void *text)
{
    return strcmp((char *)text + *(const int64_t *)a, (char *)text + *(const int64_t *)b);
}

static void name_list_sort(name_list *l, int64_t from)
{
    if (l->count > from)
        qsort_r(l->offset + from, (size_t)(l->count - from), sizeof *l->offset, by_name, l->text);
}

static bool is_image_name(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot &&
           (!strcasecmp(dot, ".jpg") || !strcasecmp(dot, ".jpeg") || !strcasecmp(dot, ".png"));
}

/* Is the entry a folder? Links count as what they point to. */
static bool is_folder(DIR *dir, const struct dirent *entry)
{
    struct stat info;
    if (entry->d_type != DT_UNKNOWN && entry->d_type != DT_LNK)
        return entry->d_type == DT_DIR;
    return fstatat(dirfd(dir), entry->d_name, &info, 0) == 0 && S_ISDIR(info.st_mode);
}

/* Adds the folders (or else the images) in `path` to the list, sorted. */
static status list_entries(const char *path, bool folders, name_list *l, errbuf *err)
{
    DIR *dir = opendir(path);
    int64_t from = l->count;
    if (!dir)
        return access_failed(path, "listed", errno, err);
    status st = STATUS_OK;
    struct dirent *entry;
    for (errno = 0; st == STATUS_OK && (entry = readdir(dir)); errno = 0) {
        if (entry->d_name[0] == '.' || (!folders && !is_image_name(entry->d_name)))
            continue;
        if (is_folder(dir, entry) == folders)
            st = name_list_add(l, entry->d_name, err);
    }
    if (st == STATUS_OK && errno != 0)
        st = access_failed(path, "listed", errno, err);
    closedir(dir);
    name_list_sort(l, from);
    return st;
}

status folder_check(const char *path, errbuf *err)
{
    struct stat info;
    if (!path[0])
        return errbuf_set(err, STATUS_BAD_INPUT, "data.path is not given: name the folder of data");
    if (strlen(path) > 4000)
        return errbuf_set(err, STATUS_BAD_INPUT, "data.path is longer than 4000 characters");
    if (stat(path, &info) != 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "data.path: %s: %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return errbuf_set(err, STATUS_BAD_INPUT, "data.path: %s: not a folder", path);
    return STATUS_OK;
}

/* Name of the split's folder. Validation comes before test: test sets often have no classes. */
static status find_split(const char *root, data_split split, char ret_name[16], errbuf *err)
{
    static const char *const train[] = {"train", NULL};
    static const char *const eval[] = {"val", "validation", "test", NULL};
    TRY(folder_check(root, err));
    for (const char *const *name = split == SPLIT_TRAIN ? train : eval; *name; name++) {
        char path[PATH_SIZE];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", root, *name);
        if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
            snprintf(ret_name, 16, "%s", *name);
            return STATUS_OK;
        }
    }
    return errbuf_set(err, STATUS_BAD_INPUT, "data.path: %s has no folder %s", root,
                      split == SPLIT_TRAIN ? "train" : "val, validation or test");
}

/* Class folders of a split, sorted. */
static status list_classes(const char *root, const char *split_name, name_list *ret, errbuf *err)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", root, split_name);
    TRY(list_entries(path, true, ret, err));
    if (ret->count == 0)
        return errbuf_set(err, STATUS_DATA,
                          "%s holds no class folders: expected %s/<class>/<image>", path, path);
    if (ret->count == 1)
        return errbuf_set(err, STATUS_DATA, "%s holds one class only (%s): at least two are needed",
                          path, ret->text);
    if (ret->count > 1000000)
        return errbuf_set(err, STATUS_DATA, "%s holds %" PRId64 " folders: too many classes", path,
                          ret->count);
    return STATUS_OK;
}

/* Both splits must have the same classes, as a label is a class's place in the list. */
static status match_classes(const char *root, const char *split_name, const name_list *train,
                            const name_list *other, errbuf *err)
{
    int64_t i = 0;
    while (i < train->count && i < other->count &&
           !strcmp(train->text + train->offset[i], other->text + other->offset[i]))
        i++;
    if (i == train->count && i == other->count)
        return STATUS_OK;
    const char *in_train = i < train->count ? train->text + train->offset[i] : NULL;
    const char *in_other = i < other->count ? other->text + other->offset[i] : NULL;
    bool lacks = !in_other || (in_train && strcmp(in_train, in_other) < 0);
    return errbuf_set(
        err, STATUS_DATA, "%s: class %s is in %s, but not in %s: both need the same classes", root,
        lacks ? in_train : in_other, lacks ? "train" : split_name, lacks ? split_name : "train");
}

static status check_against_train(const char *root, const char *split_name,
                                  const name_list *classes, errbuf *err)
{
    name_list train = {0};
    status st = STATUS_OK;
    TRY_GOTO(list_classes(root, "train", &train, err), st, cleanup);
    st = match_classes(root, split_name, &train, classes, err);
cleanup:
    name_list_fini(&train);
    return st;
}

/* Images of all classes; *ret takes over the files' text. */
static status list_images(const char *root, const name_list *classes, name_list *files,
                          folder_list *ret, errbuf *err)
{
    int64_t room = 0;
    for (int64_t c = 0; c < classes->count; c++) {
        char path[PATH_SIZE];
        int64_t before = files->count;
        snprintf(path, sizeof path, "%s/%s/%s", root, ret->split_name,
                 classes->text + classes->offset[c]);
        TRY(list_entries(path, false, files, err));
        if (files->count == before)
            return errbuf_set(err, STATUS_DATA,
                              "%s: an empty class: it holds no .jpg, .jpeg or .png file", path);
        if (files->count > DATASET_MAX_COUNT)
            return errbuf_set(err, STATUS_DATA, "%s/%s: more than %d images", root, ret->split_name,
                              DATASET_MAX_COUNT);
        if (files->count > room) {
            room = 2 * files->count;
            int32_t *label = realloc(ret->label, (size_t)room * sizeof *label);
            if (!label)
                return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a list of images");
            ret->label = label;
        }
        for (int64_t i = before; i < files->count; i++)
            ret->label[i] = (int32_t)c;
    }
    ret->text = files->text;
    ret->offset = files->offset;
    ret->count = files->count;
    *files = (name_list){0};
    return STATUS_OK;
}

static status copy_classes(const name_list *classes, folder_list *ret, errbuf *err)
{
    ret->classes = calloc((size_t)classes->count, sizeof *ret->classes);
    ret->class_count = (int)classes->count;
    bool made = ret->classes;
    for (int64_t c = 0; made && c < classes->count; c++) {
        ret->classes[c] = strdup(classes->text + classes->offset[c]);
        made = ret->classes[c];
    }
    return made ? STATUS_OK
                : errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a list of classes");
}

status folder_scan(const char *root, data_split split, folder_list *ret, errbuf *err)
{
    name_list classes = {0}, files = {0};
    folder_list made = {0};
    status st = STATUS_OK;
    TRY_GOTO(find_split(root, split, made.split_name, err), st, cleanup);
    TRY_GOTO(list_classes(root, made.split_name, &classes, err), st, cleanup);
    if (split != SPLIT_TRAIN)
        TRY_GOTO(check_against_train(root, made.split_name, &classes, err), st, cleanup);
    TRY_GOTO(copy_classes(&classes, &made, err), st, cleanup);
    TRY_GOTO(list_images(root, &classes, &files, &made, err), st, cleanup);
    *ret = made;
    made = (folder_list){0};
cleanup:
    folder_list_fini(&made);
    name_list_fini(&files);
    name_list_fini(&classes);
    return st;
}

void folder_list_fini(folder_list *l)
{
    names_free(l->classes, l->class_count);
    free(l->text);
    free(l->offset);
    free(l->label);
    *l = (folder_list){0};
}

status folder_classes(const char *root, int *ret_classes, errbuf *err)
{
    char split_name[16];
    name_list classes = {0};
    TRY(find_split(root, SPLIT_TRAIN, split_name, err));
    status st = list_classes(root, split_name, &classes, err);
    if (st == STATUS_OK)
        *ret_classes = (int)classes.count;
    name_list_fini(&classes);
    return st;
}
