/*
 * Image folders: files are decoded when they are read, and kept where the set is small.
 *
 * The cache holds decoded images within a fixed budget, so that a set like CIFAR as JPEG is decoded
 * once and not once an epoch. An image is kept only if a whole set of its size would fit: a part of
 * a large set would take memory and save nothing. An entry is published by one compare-and-swap and
 * never changes or goes before the set is closed, so that readers need no lock.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/data/source.h"

#define FOLDER_CACHE_BYTES ((int64_t)1 << 30)
#define FOLDER_FILE_LIMIT  ((size_t)256 << 20)

typedef struct cached_image {
    int w, h;
    int short_side; /* that it was decoded for */
    uint8_t pixels[];
} cached_image;

typedef struct folder_set {
    dataset base;
    folder_list list;
    char *root;
    _Atomic(cached_image *) *cache; /* [list.count]; NULL = not kept */
    atomic_int_fast64_t cached_bytes;
} folder_set;

static void folder_close(dataset *base)
{
    folder_set *set = (folder_set *)base;
    for (int64_t i = 0; set->cache && i < set->list.count; i++)
        free(atomic_load_explicit(&set->cache[i], memory_order_relaxed));
    free(set->cache);
    free(set->root);
    if (set->base.names == set->list.classes)
        set->base.names = NULL; /* they are the list's */
    folder_list_fini(&set->list);
}

/* Keeps a copy if the budget allows it. Failing to is no error. */
static void keep(folder_set *set, int64_t i, int short_side, const image *im)
{
    size_t bytes = (size_t)im->w * (size_t)im->h * 3;
    int64_t cost = (int64_t)(bytes + sizeof(cached_image));
    if (cost > FOLDER_CACHE_BYTES / set->list.count)
        return;
    if (atomic_fetch_add(&set->cached_bytes, cost) + cost > FOLDER_CACHE_BYTES)
        goto give_back;
    cached_image *copy = malloc(sizeof *copy + bytes);
    if (!copy)
        goto give_back;
    *copy = (cached_image){.w = im->w, .h = im->h, .short_side = short_side};
    memcpy(copy->pixels, im->pixels, bytes);
    cached_image *none = NULL;
    if (atomic_compare_exchange_strong(&set->cache[i], &none, copy))
        return;
    free(copy); /* another thread was faster */
give_back:
    atomic_fetch_sub(&set->cached_bytes, cost);
}

static status decode_file(const folder_set *set, int64_t i, int short_side, image *im, errbuf *err)
{
    char path[PATH_SIZE];
    uint8_t *bytes = NULL;
    size_t length = 0;
    int n = snprintf(path, sizeof path, "%s/%s/%s/%s", set->root, set->list.split_name,
                     set->list.classes[set->list.label[i]], set->list.text + set->list.offset[i]);
    ASSERT(n > 0 && (size_t)n < sizeof path); /* the root is bounded, names are file names */
    TRY(file_read(path, FOLDER_FILE_LIMIT, &bytes, &length, err));
    status st = image_decode(bytes, length, short_side, im, err);
    free(bytes);
    if (st != STATUS_OK)
        errbuf_prefix(err, "%s", path);
    return st;
}

static status folder_read(dataset *base, int64_t i, int short_side, image *im, int32_t *ret_label,
                          errbuf *err)
{
    folder_set *set = (folder_set *)base;
    const cached_image *kept = atomic_load_explicit(&set->cache[i], memory_order_acquire);
    if (kept && kept->short_side == short_side) {
        TRY(image_reserve(im, kept->w, kept->h, err));
        memcpy(im->pixels, kept->pixels, (size_t)kept->w * (size_t)kept->h * 3);
    } else {
        TRY(decode_file(set, i, short_side, im, err));
        if (!kept)
            keep(set, i, short_side, im);
    }
    *ret_label = set->list.label[i];
    return STATUS_OK;
}

static status fill_folder(folder_set *set, const char *root, data_split split, errbuf *err)
{
    TRY(folder_scan(root, split, &set->list, err));
    set->base.names = set->list.classes;
    set->base.info = (dataset_info){.count = set->list.count, .classes = set->list.class_count};
    set->root = strdup(root);
    set->cache = calloc((size_t)set->list.count, sizeof *set->cache);
    if (!set->root || !set->cache)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a data set");
    return STATUS_OK;
}

status folder_open(const spec *s, const char *root, data_split split, dataset **ret_set,
                   errbuf *err)
{
    (void)s;
    folder_set *set = calloc(1, sizeof *set);
    if (!set)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a data set");
    set->base.read = folder_read;
    set->base.close = folder_close;
    dataset *base = &set->base;
    status st = fill_folder(set, root, split, err);
    if (st != STATUS_OK)
        dataset_close(&base);
    else
        *ret_set = base;
    return st;
}
