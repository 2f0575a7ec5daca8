/*
 * Safetensors files (safetensors.h). The tree that json_parse makes (no duplicates, valid UTF-8)
 * owns all names and strings of a header.
 */
#include "trainer/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/file.h"
#include "protocol/json.h"
#include "protocol/json_positions.h"
#include "protocol/sha256.h"
#include "protocol/strbuf.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are little endian in the file");

#define LENGTH_BYTES 8
#define DIGITS       64 /* of a hash in hex */
#define SEAL_HEADER  "header_sha256"
#define SEAL_TENSORS "tensors_sha256"
#define SEAL_START   "{\"__metadata__\":{\"" SEAL_HEADER "\":\""
#define READ_CHUNK   (1 << 20)

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [SAFETENSORS_F32] = {"F32", 4},   [SAFETENSORS_F16] = {"F16", 2},
    [SAFETENSORS_BF16] = {"BF16", 2}, [SAFETENSORS_I32] = {"I32", 4},
    [SAFETENSORS_I64] = {"I64", 8},   [SAFETENSORS_U8] = {"U8", 1},
};

size_t safetensors_dtype_size(safetensors_dtype dtype)
{
    return dtypes[dtype].size;
}

const char *safetensors_dtype_name(safetensors_dtype dtype)
{
    return dtypes[dtype].name;
}

void safetensors_describe(const safetensors_tensor *tensor, char *ret_text, size_t size)
{
    int at = snprintf(ret_text, size, "%s [", dtypes[tensor->dtype].name);
    for (int i = 0; i < tensor->dims && at > 0 && (size_t)at < size; i++)
        at += snprintf(ret_text + at, size - (size_t)at, "%s%lld", i > 0 ? ", " : "",
                       (long long)tensor->dim[i]);
    if ((size_t)at < size)
        snprintf(ret_text + at, size - (size_t)at, "]");
}

/* ---- parsing ---- */

/* A name from a file as it may stand in a message: short and on one line. */
typedef struct quoted {
    char text[72];
} quoted;

static quoted quote(const char *name)
{
    quoted q;
    json_show(name, strlen(name), q.text, sizeof q.text);
    return q;
}

/* A JSON number that is a whole one from 0 to 2^53; false = anything else. */
static bool whole_number(const cJSON *item, int64_t *ret)
{
    if (!cJSON_IsNumber(item) ||
        !(item->valuedouble >= 0 && item->valuedouble <= (double)JSON_MAX_EXACT) ||
        item->valuedouble != (double)(int64_t)item->valuedouble)
        return false;
    *ret = (int64_t)item->valuedouble;
    return true;
}

static status parse_dtype(const cJSON *item, safetensors_tensor *t, errbuf *err)
{
    if (cJSON_IsString(item))
        for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
            if (strcmp(item->valuestring, dtypes[i].name) == 0) {
                t->dtype = (safetensors_dtype)i;
                return STATUS_OK;
            }
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "tensor '%s': dtype is not one of F32, F16, BF16, I32, I64, U8",
                      quote(t->name).text);
}

static status parse_shape(const cJSON *item, safetensors_tensor *t, errbuf *err)
{
    const cJSON *dim = NULL;
    if (!cJSON_IsArray(item))
        return errbuf_set(err, STATUS_BAD_INPUT, "tensor '%s': shape is not a list",
                          quote(t->name).text);
    cJSON_ArrayForEach (dim, item) {
        if (t->dims == SAFETENSORS_MAX_DIMS)
            return errbuf_set(err, STATUS_BAD_INPUT, "tensor '%s': more than %d dimensions",
                              quote(t->name).text, SAFETENSORS_MAX_DIMS);
        if (!whole_number(dim, &t->dim[t->dims++]))
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "tensor '%s': shape holds something that is not a size",
                              quote(t->name).text);
    }
    return STATUS_OK;
}

static status parse_span(const cJSON *item, uint64_t data_length, safetensors_tensor *t,
                         errbuf *err)
{
    int64_t begin = 0, end = 0;
    if (!cJSON_IsArray(item) || item->child == NULL || item->child->next == NULL ||
        item->child->next->next != NULL || !whole_number(item->child, &begin) ||
        !whole_number(item->child->next, &end) || begin > end)
        return errbuf_set(err, STATUS_BAD_INPUT, "tensor '%s': data_offsets are not [begin, end]",
                          quote(t->name).text);
    if ((uint64_t)end > data_length)
        return errbuf_set(
            err, STATUS_BAD_INPUT,
            "tensor '%s': ends at byte %lld of the data, the file has %llu (truncated?)",
            quote(t->name).text, (long long)end, (unsigned long long)data_length);
    t->begin = (uint64_t)begin;
    t->end = (uint64_t)end;
    return STATUS_OK;
}

/* Bytes that dtype and shape ask for; false = more than fit 64 bits. */
static bool tensor_bytes(const safetensors_tensor *t, uint64_t *ret)
{
    uint64_t bytes = dtypes[t->dtype].size;
    for (int i = 0; i < t->dims; i++)
        if (__builtin_mul_overflow(bytes, (uint64_t)t->dim[i], &bytes))
            return false;
    *ret = bytes;
    return true;
}

static status parse_tensor(const cJSON *item, uint64_t data_length, safetensors_tensor *ret,
                           errbuf *err)
{
    safetensors_tensor t = {.name = item->string};
    const cJSON *dtype = NULL, *shape = NULL, *span = NULL, *member = NULL;
    int members = 0;
    uint64_t bytes = 0;
    if (!cJSON_IsObject(item)) /* elements of a list have no names */
        return errbuf_set(err, STATUS_BAD_INPUT, "tensor '%s': is %s, not an object",
                          quote(t.name).text, json_kind(item));
    cJSON_ArrayForEach (member, item) {
        members++;
        if (strcmp(member->string, "dtype") == 0)
            dtype = member;
        else if (strcmp(member->string, "shape") == 0)
            shape = member;
        else if (strcmp(member->string, "data_offsets") == 0)
            span = member;
    }
    if (dtype == NULL || shape == NULL || span == NULL || members != 3)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "tensor '%s': wants dtype, shape and data_offsets, each once",
                          quote(t.name).text);
    TRY(parse_dtype(dtype, &t, err));
    TRY(parse_shape(shape, &t, err));
    TRY(parse_span(span, data_length, &t, err));
    if (!tensor_bytes(&t, &bytes) || bytes != t.end - t.begin) {
        char text[120];
        safetensors_describe(&t, text, sizeof text);
        return errbuf_set(err, STATUS_BAD_INPUT, "tensor '%s': %s does not fill %llu bytes",
                          quote(t.name).text, text, (unsigned long long)(t.end - t.begin));
    }
    *ret = t;
    return STATUS_OK;
}

static int compare_spans(const void *a, const void *b)
{
    const safetensors_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_names(const void *a, const void *b)
{
    const safetensors_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int compare_keys(const void *a, const void *b)
{
    const safetensors_string *x = a, *y = b;
    return strcmp(x->key, y->key);
}

/* Tensors in data order fill the data from the first to the last byte. */
static status check_tensors(safetensors_header *h, uint64_t data_length, errbuf *err)
{
    uint64_t at = 0;
    qsort(h->tensor, h->tensors, sizeof *h->tensor, compare_spans);
    for (size_t i = 0; i < h->tensors; i++) {
        const safetensors_tensor *t = &h->tensor[i];
        if (t->begin != at)
            return errbuf_set(
                err, STATUS_BAD_INPUT, "tensor '%s': begins at byte %llu of the data, %s byte %llu",
                quote(t->name).text, (unsigned long long)t->begin,
                t->begin > at ? "a hole from" : "an overlap up to", (unsigned long long)at);
        at = t->end;
        h->by_name[i] = t;
    }
    if (at != data_length)
        return errbuf_set(err, STATUS_BAD_INPUT, "%llu bytes after the last tensor belong to none",
                          (unsigned long long)(data_length - at));
    qsort(h->by_name, h->tensors, sizeof *h->by_name, compare_names);
    return STATUS_OK;
}

static status parse_metadata(const cJSON *map, safetensors_header *h, errbuf *err)
{
    const cJSON *item = NULL;
    size_t count = 0;
    if (!cJSON_IsObject(map))
        return errbuf_set(err, STATUS_BAD_INPUT, "__metadata__ is not a map");
    cJSON_ArrayForEach (item, map) {
        count++;
        if (!cJSON_IsString(item))
            return errbuf_set(err, STATUS_BAD_INPUT, "__metadata__ '%s': not a string",
                              quote(item->string).text);
    }
    h->metadata = calloc(count + 1, sizeof *h->metadata);
    if (h->metadata == NULL)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for %zu strings", count);
    cJSON_ArrayForEach (item, map) {
        h->metadata[h->strings++] =
            (safetensors_string){.key = item->string, .value = item->valuestring};
    }
    qsort(h->metadata, h->strings, sizeof *h->metadata, compare_keys);
    return STATUS_OK;
}

static status parse_members(const cJSON *root, uint64_t data_length, safetensors_header *h,
                            errbuf *err)
{
    const cJSON *item = NULL;
    size_t count = 0;
    cJSON_ArrayForEach (item, root) {
        count++;
    }
    h->tensor = calloc(count + 1, sizeof *h->tensor);
    h->by_name = calloc(count + 1, sizeof *h->by_name);
    if (h->tensor == NULL || h->by_name == NULL)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for %zu tensors", count);
    cJSON_ArrayForEach (item, root) {
        if (strcmp(item->string, "__metadata__") == 0)
            TRY(parse_metadata(item, h, err));
        else
            TRY(parse_tensor(item, data_length, &h->tensor[h->tensors++], err));
    }
    return check_tensors(h, data_length, err);
}

/* The header's text as JSON: an object from the first byte on. */
static status parse_text(const char *text, size_t length, cJSON **ret_root, errbuf *err)
{
    if (length > SAFETENSORS_MAX_HEADER)
        return errbuf_set(err, STATUS_BAD_INPUT, "header of %zu bytes, at most %d are allowed",
                          length, SAFETENSORS_MAX_HEADER);
    if (length == 0 || text[0] != '{')
        return errbuf_set(err, STATUS_BAD_INPUT, "header does not begin with '{'");
    return json_parse(text, length, "header", ret_root, err);
}

/* ---- seal ---- */

/* SHA-256 of length and header, the hash's own digits (they begin at SEAL_START's end) as '0'. */
static void hash_header(const char *text, size_t length, char ret_hex[DIGITS + 1])
{
    const uint64_t prefix = length;
    const size_t start = sizeof SEAL_START - 1;
    char zeros[DIGITS];
    sha256 hash;
    memset(zeros, '0', sizeof zeros);
    sha256_init(&hash);
    sha256_update(&hash, &prefix, sizeof prefix);
    sha256_update(&hash, text, start);
    sha256_update(&hash, zeros, sizeof zeros);
    sha256_update(&hash, text + start + DIGITS, length - start - DIGITS);
    sha256_final_hex(&hash, ret_hex);
}

static status check_seal(const char *text, size_t length, safetensors_header *h, errbuf *err)
{
    const size_t start = sizeof SEAL_START - 1;
    char hex[DIGITS + 1];
    if (safetensors_metadata(h, SEAL_HEADER) == NULL)
        return STATUS_OK;
    if (length < start + DIGITS + 1 || memcmp(text, SEAL_START, start) != 0 ||
        text[start + DIGITS] != '"')
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "header does not begin with its hash: damaged, or rewritten by a tool "
                          "that kept the old hash");
    hash_header(text, length, hex);
    if (memcmp(hex, text + start, DIGITS) != 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "header does not match its hash: damaged");
    h->sealed = safetensors_metadata(h, SEAL_TENSORS) != NULL;
    return STATUS_OK;
}

status safetensors_parse(const char *text, size_t length, uint64_t data_length,
                         safetensors_header *ret_header, errbuf *err)
{
    status st = STATUS_OK;
    safetensors_header h = {0};
    cJSON *root = NULL;
    TRY_GOTO(parse_text(text, length, &root, err), st, cleanup);
    h.json = root;
    TRY_GOTO(parse_members(root, data_length, &h, err), st, cleanup);
    TRY_GOTO(check_seal(text, length, &h, err), st, cleanup);
    *ret_header = h;
    memset(&h, 0, sizeof h);
cleanup:
    safetensors_header_fini(&h);
    return st;
}

void safetensors_header_fini(safetensors_header *h)
{
    if (h == NULL)
        return;
    free(h->by_name);
    free(h->metadata);
    free(h->tensor);
    cJSON_Delete(h->json);
    memset(h, 0, sizeof *h);
}

const safetensors_tensor *safetensors_find(const safetensors_header *h, const char *name)
{
    const safetensors_tensor key = {.name = name}, *wanted = &key;
    const safetensors_tensor **found = h->tensors == 0 ? NULL
                                                       : bsearch(&wanted, h->by_name, h->tensors,
                                                                 sizeof *h->by_name, compare_names);
    return found != NULL ? *found : NULL;
}

const char *safetensors_metadata(const safetensors_header *h, const char *key)
{
    const safetensors_string wanted = {.key = key};
    const safetensors_string *found = h->strings == 0 ? NULL
                                                      : bsearch(&wanted, h->metadata, h->strings,
                                                                sizeof *h->metadata, compare_keys);
    return found != NULL ? found->value : NULL;
}

/* ---- files ---- */

/* Exactly `size` bytes from `offset`. */
static status read_at(int fd, const char *path, uint64_t offset, void *ret, size_t size,
                      errbuf *err)
{
    uint8_t *to = ret;
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, to + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot read: %s", path,
                              strerror(errno));
        if (n == 0)
            return errbuf_set(err, STATUS_BAD_INPUT, "%s: ends at byte %llu, before its tensors do",
                              path, (unsigned long long)(offset + done));
        done += (size_t)n;
    }
    return STATUS_OK;
}

static status open_file(const char *path, int *ret_fd, uint64_t *ret_size, errbuf *err)
{
    struct stat info;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        const bool named_wrong = errno == ENOENT || errno == ENOTDIR || errno == EACCES;
        return errbuf_set(err, named_wrong ? STATUS_BAD_INPUT : STATUS_ENVIRONMENT,
                          "%s: cannot open: %s", path, strerror(errno));
    }
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: not a regular file", path);
    }
    *ret_fd = fd;
    *ret_size = (uint64_t)info.st_size;
    return STATUS_OK;
}

/* Reads the length, then the header into file->header. */
static status read_header(safetensors_file *file, uint64_t size, errbuf *err)
{
    status st = STATUS_OK;
    uint64_t length = 0;
    char *text = NULL;
    if (size < LENGTH_BYTES)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%s: %llu bytes are no safetensors file (truncated?)", file->path,
                          (unsigned long long)size);
    TRY(read_at(file->fd, file->path, 0, &length, sizeof length, err));
    if (length > SAFETENSORS_MAX_HEADER || length > size - LENGTH_BYTES)
        return errbuf_set(
            err, STATUS_BAD_INPUT,
            "%s: says that its header has %llu bytes, the file has %llu (truncated, or "
            "no safetensors file?)",
            file->path, (unsigned long long)length, (unsigned long long)size);
    file->data_start = LENGTH_BYTES + length;
    file->data_length = size - file->data_start;
    text = malloc(length + 1);
    if (text == NULL)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "%s: no memory for a header of %llu bytes",
                          file->path, (unsigned long long)length);
    text[length] = '\0';
    TRY_GOTO(read_at(file->fd, file->path, LENGTH_BYTES, text, length, err), st, cleanup);
    st = safetensors_parse(text, length, file->data_length, &file->header, err);
    if (st != STATUS_OK)
        errbuf_prefix(err, "%s", file->path);
cleanup:
    free(text);
    return st;
}

status safetensors_open(const char *path, safetensors_file **ret_file, errbuf *err)
{
    status st = STATUS_OK;
    uint64_t size = 0;
    safetensors_file *file = calloc(1, sizeof *file);
    if (file == NULL)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "%s: no memory to open it", path);
    file->fd = -1;
    file->path = strdup(path);
    if (file->path == NULL) {
        st = errbuf_set(err, STATUS_OUT_OF_MEMORY, "%s: no memory to open it", path);
        goto cleanup;
    }
    TRY_GOTO(open_file(path, &file->fd, &size, err), st, cleanup);
    TRY_GOTO(read_header(file, size, err), st, cleanup);
    *ret_file = file;
    file = NULL;
cleanup:
    safetensors_close(&file);
    return st;
}

void safetensors_close(safetensors_file **file)
{
    if (file == NULL || *file == NULL)
        return;
    safetensors_header_fini(&(*file)->header);
    if ((*file)->fd >= 0)
        close((*file)->fd);
    free((*file)->path);
    free(*file);
    *file = NULL;
}

status safetensors_read(const safetensors_file *file, const safetensors_tensor *tensor,
                        void *ret_data, errbuf *err)
{
    return read_at(file->fd, file->path, file->data_start + tensor->begin, ret_data,
                   tensor->end - tensor->begin, err);
}

status safetensors_verify(const safetensors_file *file, errbuf *err)
{
    status st = STATUS_OK;
    sha256 hash;
    char hex[DIGITS + 1];
    if (!file->header.sealed)
        return errbuf_set(err, STATUS_BAD_INPUT, "%s: carries no hashes to verify it by",
                          file->path);
    uint8_t *chunk = malloc(READ_CHUNK);
    if (chunk == NULL)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "%s: no memory to verify it", file->path);
    sha256_init(&hash);
    for (uint64_t at = 0; at < file->data_length;) {
        const uint64_t left = file->data_length - at;
        const size_t n = left < READ_CHUNK ? (size_t)left : READ_CHUNK;
        TRY_GOTO(read_at(file->fd, file->path, file->data_start + at, chunk, n, err), st, cleanup);
        sha256_update(&hash, chunk, n);
        at += n;
    }
    sha256_final_hex(&hash, hex);
    if (strcmp(hex, safetensors_metadata(&file->header, SEAL_TENSORS)) != 0)
        st = errbuf_set(err, STATUS_BAD_INPUT, "%s: tensors do not match their hash: damaged",
                        file->path);
cleanup:
    free(chunk);
    return st;
}

/* ---- writing ---- */

static status add_tensors(strbuf *to, const safetensors_tensor *tensor, size_t tensors, errbuf *err)
{
    uint64_t at = 0;
    for (size_t i = 0; i < tensors; i++) {
        const safetensors_tensor *t = &tensor[i];
        uint64_t bytes = 0, end = 0;
        if (!tensor_bytes(t, &bytes) || __builtin_add_overflow(at, bytes, &end))
            return errbuf_set(err, STATUS_BAD_INPUT, "tensor '%s' is too large",
                              quote(t->name).text);
        strbuf_add(to, ",");
        json_add_string(to, t->name);
        strbuf_add_format(to, ":{\"dtype\":\"%s\",\"shape\":[", dtypes[t->dtype].name);
        for (int d = 0; d < t->dims; d++)
            strbuf_add_format(to, "%s%lld", d > 0 ? "," : "", (long long)t->dim[d]);
        strbuf_add_format(to, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                          (unsigned long long)end);
        at = end;
    }
    return STATUS_OK;
}

static void hash_tensors(const safetensors_tensor *tensor, size_t tensors, char ret_hex[DIGITS + 1])
{
    sha256 hash;
    sha256_init(&hash);
    for (size_t i = 0; i < tensors; i++) {
        uint64_t bytes = 0;
        if (tensor_bytes(&tensor[i], &bytes) && bytes > 0)
            sha256_update(&hash, tensor[i].data, bytes);
    }
    sha256_final_hex(&hash, ret_hex);
}

/* The header, padded and sealed; the caller frees it. */
static status make_header(const safetensors_string *metadata, size_t strings,
                          const safetensors_tensor *tensor, size_t tensors, char **ret_text,
                          size_t *ret_length, errbuf *err)
{
    status st = STATUS_OK;
    strbuf to = {0};
    char hex[DIGITS + 1];
    hash_tensors(tensor, tensors, hex);
    strbuf_add_format(&to, "%s%0*d\",\"%s\":\"%s\"", SEAL_START, DIGITS, 0, SEAL_TENSORS, hex);
    for (size_t i = 0; i < strings; i++) {
        strbuf_add(&to, ",");
        json_add_string(&to, metadata[i].key);
        strbuf_add(&to, ":");
        json_add_string(&to, metadata[i].value);
    }
    strbuf_add(&to, "}");
    TRY_GOTO(add_tensors(&to, tensor, tensors, err), st, cleanup);
    strbuf_add(&to, "}");
    while ((LENGTH_BYTES + to.length) % SAFETENSORS_ALIGNMENT != 0 && !to.is_failed)
        strbuf_add(&to, " ");
    if (to.length > SAFETENSORS_MAX_HEADER) {
        st = errbuf_set(err, STATUS_BAD_INPUT, "header of %zu bytes, at most %d are allowed",
                        to.length, SAFETENSORS_MAX_HEADER);
        goto cleanup;
    }
    const size_t length = to.length;
    TRY_GOTO(strbuf_take(&to, ret_text, err), st, cleanup);
    hash_header(*ret_text, length, hex);
    memcpy(*ret_text + sizeof SEAL_START - 1, hex, DIGITS);
    *ret_length = length;
cleanup:
    strbuf_fini(&to);
    return st;
}
status safetensors_write(const char *path, const safetensors_string *metadata, size_t strings,
                         const safetensors_tensor *tensor, size_t tensors, errbuf *err)
{
    status st = STATUS_OK;
    char *header = NULL;
    size_t length = 0;
    atomic_file *file = NULL;
    TRY_GOTO(make_header(metadata, strings, tensor, tensors, &header, &length, err), st, cleanup);
    const uint64_t prefix = length;
    TRY_GOTO(atomic_file_open(path, &file, err), st, cleanup);
    TRY_GOTO(atomic_file_write(&file, &prefix, sizeof prefix, err), st, cleanup);
    TRY_GOTO(atomic_file_write(&file, header, length, err), st, cleanup);
    for (size_t i = 0; i < tensors; i++) {
        uint64_t bytes = 0;
        if (tensor_bytes(&tensor[i], &bytes) && bytes > 0)
            TRY_GOTO(atomic_file_write(&file, tensor[i].data, bytes, err), st, cleanup);
    }
    TRY_GOTO(atomic_file_commit(&file, err), st, cleanup);
cleanup:
    atomic_file_discard(&file);
    free(header);
    return st;
}
