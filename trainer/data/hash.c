/*
 * The content hash of a data set (FORMATS 2), over training and validation split together:
 *
 *   cifar, binary   lines "<file name> <bytes> <SHA-256 of the file>", training files first
 *   image folders   lines "<path below the root> <bytes> <SHA-256 of the first 4 KiB>", sorted
 *   synthetic       one line with the version of the drawing code and all parameters
 *
 * The hash is the SHA-256 of those lines, each ended by a newline, after a line that names the
 * kind. Files are hashed side by side; the lines' order does not depend on that.
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

typedef struct file_digest {
    int64_t bytes;
    char hex[SHA256_HEX_SIZE];
} file_digest;

/* Size of the file and the hash of its first `limit` bytes. */
static status hash_open_file(int fd, const char *path, int64_t limit, file_digest *ret, errbuf *err)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return errbuf_set(err, STATUS_DATA, "%s: %s", path, strerror(errno));
    size_t piece = limit < PIECE_BYTES ? (size_t)limit : PIECE_BYTES;
    uint8_t *bytes = malloc(piece);
    if (!bytes)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for hashing the data");
    sha256 h;
    sha256_init(&h);
    ssize_t n = 0;
    for (int64_t left = limit; left > 0; left -= n) {
        n = read(fd, bytes, left < (int64_t)piece ? (size_t)left : piece);
        if (n < 0 && errno == EINTR)
            n = 0;
        else if (n <= 0)
            break;
        else
            sha256_update(&h, bytes, (size_t)n);
    }
    int code = errno;
    free(bytes);
    if (n < 0)
        return errbuf_set(err, STATUS_DATA, "%s: cannot be read: %s", path, strerror(code));
    ret->bytes = info.st_size;
    sha256_final_hex(&h, ret->hex);
    return STATUS_OK;
}

static status hash_file(const char *path, int64_t limit, file_digest *ret, errbuf *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errbuf_set(err, STATUS_DATA, "%s: cannot be opened: %s", path, strerror(errno));
    status st = hash_open_file(fd, path, limit, ret, err);
    close(fd);
    return st;
}

static void add_line(sha256 *h, const char *name, const file_digest *digest)
{
    char tail[SHA256_HEX_SIZE + 40];
    int n = snprintf(tail, sizeof tail, " %" PRId64 " %s\n", digest->bytes, digest->hex);
    sha256_update(h, name, strlen(name));
    sha256_update(h, tail, (size_t)n);
}

/* -- binary -- */

typedef struct binary_job {
    const cifar_layout *layout;
    file_digest digest[8];
} binary_job;

static status hash_binary_file(void *ctx, int64_t i, errbuf *err)
{
    binary_job *job = ctx;
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", job->layout->root, job->layout->files[i]);
    return hash_file(path, INT64_MAX, &job->digest[i], err);
}

static status hash_binary(const cifar_layout *l, sha256 *h, errbuf *err)
{
    binary_job job = {.layout = l};
    TRY(parallel_for(l->train_files + 1, 1, 0, hash_binary_file, &job, NULL, err));
    for (int i = 0; i <= l->train_files; i++)
        add_line(h, l->files[i], &job.digest[i]);
    return STATUS_OK;
}

/* -- folders -- */

typedef struct folder_job {
    const char *root;
    const folder_list *list;
    file_digest *digest;
} folder_job;

/* Path of image i below the root. */
static void image_path(const folder_list *l, int64_t i, char *ret, size_t size)
{
    snprintf(ret, size, "%s/%s/%s", l->split_name, l->classes[l->label[i]], l->text + l->offset[i]);
}

static status hash_image(void *ctx, int64_t i, errbuf *err)
{
    folder_job *job = ctx;
    char below[600], path[PATH_SIZE];
    image_path(job->list, i, below, sizeof below);
    snprintf(path, sizeof path, "%s/%s", job->root, below);
    return hash_file(path, FOLDER_BYTES, &job->digest[i], err);
}

static status hash_split(const char *root, data_split split, sha256 *h, errbuf *err)
{
    folder_list list = {0};
    void *digest = NULL;
    status st = STATUS_OK;
    TRY_GOTO(folder_scan(root, split, &list, err), st, cleanup);
    TRY_GOTO(bytes_alloc("hashing the data", list.count, sizeof(file_digest), 1, &digest, err), st,
             cleanup);
    folder_job job = {.root = root, .list = &list, .digest = digest};
    TRY_GOTO(parallel_for(list.count, 64, 0, hash_image, &job, NULL, err), st, cleanup);
    for (int64_t i = 0; i < list.count; i++) {
        char below[600];
        image_path(&list, i, below, sizeof below);
        add_line(h, below, &job.digest[i]);
    }
cleanup:
    free(digest);
    folder_list_fini(&list);
    return st;
}

/* "test" sorts before "train", "val" after it; training comes first all the same: the order only
 * has to be fixed. */
static status hash_folder(const char *root, sha256 *h, errbuf *err)
{
    TRY(hash_split(root, SPLIT_TRAIN, h, err));
    return hash_split(root, SPLIT_EVAL, h, err);
}

/* -- any kind -- */

static void hash_synthetic(const spec *s, sha256 *h)
{
    char line[300];
    int n = snprintf(line, sizeof line,
                     "version %d seed %" PRIu64 " train %" PRId64 " eval %" PRId64 " size %" PRId64
                     " classes %d\n",
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
    static const char *const names[] = {[DATA_SYNTHETIC] = "synthetic\n",
                                        [DATA_CIFAR10] = "cifar10\n",
                                        [DATA_CIFAR100] = "cifar100\n",
                                        [DATA_FOLDER] = "folder\n"};
    sha256 h;
    status st = STATUS_OK;
    ASSERT(s->data.kind >= DATA_SYNTHETIC && s->data.kind <= DATA_FOLDER);
    sha256_init(&h);
    sha256_update(&h, names[s->data.kind], strlen(names[s->data.kind]));
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
