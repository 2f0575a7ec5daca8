/*
 * The content hash of a data set (FORMATS 2), over training and validation split together:
 *
 *   cifar, binary   the bytes of the files, training files in their order, then the test file
 *   image folders   lines "<path below the root> <bytes> <SHA-256 of the first 4 KiB>", sorted by
 *                   path as bytes, each ended by a newline
 *   synthetic       one line with the version of the drawing code and all parameters
 *
 * Files of a folder are hashed side by side; the lines' order does not depend on that.
 */
#include "trainer/data/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/sha256.h"
#include "trainer/data/source.h"

#define PIECE_BYTES  (1 << 20)
#define FOLDER_BYTES 4096 /* of each file of a folder */
#define BELOW_SIZE   600  /* of a path below the root */

/* Hands the first `limit` bytes of the file to h. */
static status hash_open_file(int fd, const char *path, int64_t limit, sha256 *h, errbuf *err)
{
    size_t piece = limit < PIECE_BYTES ? (size_t)limit : PIECE_BYTES;
    uint8_t *bytes = malloc(piece);
    if (!bytes)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for hashing the data");
    ssize_t n = 0;
    for (int64_t left = limit; left > 0; left -= n) {
        n = read(fd, bytes, left < (int64_t)piece ? (size_t)left : piece);
        if (n < 0 && errno == EINTR)
            n = 0;
        else if (n <= 0)
            break;
        else
            sha256_update(h, bytes, (size_t)n);
    }
    int code = errno;
    free(bytes);
    if (n < 0)
        return access_failed(path, "read", code, err);
    return STATUS_OK;
}

/* The same by path; *ret_bytes (may be NULL) is the file's size. */
static status hash_file(const char *path, int64_t limit, sha256 *h, int64_t *ret_bytes, errbuf *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) {
        int code = errno;
        if (fd >= 0)
            close(fd);
        return access_failed(path, "opened", code, err);
    }
    status st = hash_open_file(fd, path, limit, h, err);
    close(fd);
    if (st == STATUS_OK && ret_bytes)
        *ret_bytes = info.st_size;
    return st;
}

/* -- binary -- */

static status hash_binary(const cifar_layout *l, sha256 *h, errbuf *err)
{
    for (int i = 0; i <= l->train_files; i++) {
        char path[PATH_SIZE];
        snprintf(path, sizeof path, "%s/%s", l->root, l->files[i]);
        TRY(hash_file(path, INT64_MAX, h, NULL, err));
    }
    return STATUS_OK;
}

/* -- folders -- */

/* One image: its line, but for the newline, once it has been read. */
typedef struct image_line {
    const folder_list *list;
    int64_t number; /* in its list */
    int64_t bytes;
    char hex[SHA256_HEX_SIZE];
} image_line;

typedef struct folder_job {
    const char *root;
    image_line *line;
} folder_job;

/* Path of an image below the root. */
static void image_path(const image_line *line, char ret[BELOW_SIZE])
{
    const folder_list *l = line->list;
    snprintf(ret, BELOW_SIZE, "%s/%s/%s", l->split_name, l->classes[l->label[line->number]],
             l->text + l->offset[line->number]);
}

static int compare_paths(const void *a, const void *b)
{
    char left[BELOW_SIZE], right[BELOW_SIZE];
    image_path(a, left);
    image_path(b, right);
    return strcmp(left, right);
}

static status hash_image(void *ctx, int64_t i, errbuf *err)
{
    folder_job *job = ctx;
    char below[BELOW_SIZE], path[PATH_SIZE];
    image_path(&job->line[i], below);
    snprintf(path, sizeof path, "%s/%s", job->root, below);
    sha256 h;
    sha256_init(&h);
    TRY(hash_file(path, FOLDER_BYTES, &h, &job->line[i].bytes, err));
    sha256_final_hex(&h, job->line[i].hex);
    return STATUS_OK;
}

static status hash_lists(const char *root, const folder_list lists[2], sha256 *h, errbuf *err)
{
    int64_t count = lists[0].count + lists[1].count, at = 0;
    void *memory = NULL;
    TRY(bytes_alloc("hashing the data", count, sizeof(image_line), 1, &memory, err));
    folder_job job = {.root = root, .line = memory};
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < lists[k].count; i++)
            job.line[at++] = (image_line){.list = &lists[k], .number = i};
    qsort(job.line, (size_t)count, sizeof *job.line, compare_paths);
    status st = parallel_for(count, 64, 0, hash_image, &job, NULL, err);
    for (int64_t i = 0; i < count && st == STATUS_OK; i++) {
        char below[BELOW_SIZE], tail[SHA256_HEX_SIZE + 40];
        image_path(&job.line[i], below);
        int n =
            snprintf(tail, sizeof tail, " %" PRId64 " %s\n", job.line[i].bytes, job.line[i].hex);
        sha256_update(h, below, strlen(below));
        sha256_update(h, tail, (size_t)n);
    }
    free(memory);
    return st;
}

static status hash_folder(const char *root, sha256 *h, errbuf *err)
{
    folder_list lists[2] = {{0}, {0}};
    status st = folder_scan(root, SPLIT_TRAIN, &lists[0], err);
    if (st == STATUS_OK)
        st = folder_scan(root, SPLIT_EVAL, &lists[1], err);
    if (st == STATUS_OK)
        st = hash_lists(root, lists, h, err);
    folder_list_fini(&lists[0]);
    folder_list_fini(&lists[1]);
    return st;
}

/* -- any kind -- */

static void hash_synthetic(const spec *s, sha256 *h)
{
    char line[300];
    int n = snprintf(line, sizeof line,
                     "synthetic version %d seed %" PRIu64 " train %" PRId64 " eval %" PRId64
                     " size %" PRId64 " classes %d\n",
                     SYNTHETIC_VERSION, s->data.seed, s->data.train_count, s->data.eval_count,
                     synthetic_side(s), synthetic_classes(s));
    sha256_update(h, line, (size_t)n);
}

static status hash_cifar(const spec *s, sha256 *h, errbuf *err)
{
    cifar_layout l;
    TRY(cifar_find(s, &l, err));
    return l.is_binary ? hash_binary(&l, h, err) : hash_folder(l.root, h, err);
}

status dataset_hash(const spec *s, char ret_hex[65], errbuf *err)
{
    sha256 h;
    status st = STATUS_OK;
    ASSERT(s->data.kind >= DATA_SYNTHETIC && s->data.kind <= DATA_FOLDER);
    sha256_init(&h);
    if (s->data.kind == DATA_SYNTHETIC)
        hash_synthetic(s, &h);
    else if (s->data.kind == DATA_FOLDER)
        st = hash_folder(s->data.path, &h, err);
    else
        st = hash_cifar(s, &h, err);
    if (st == STATUS_OK)
        sha256_final_hex(&h, ret_hex);
    return st;
}
