/*
 * Safetensors files: a strict reader and a writer whose files notice every flipped bit.
 *
 *     u64 header length, little endian | JSON header, padded with spaces | tensors, back to back
 *
 * The header maps each tensor's name to {dtype, shape, data_offsets} and `__metadata__` to a map of
 * strings. Any file of the format can be read; what is refused: duplicate names, holes, overlaps,
 * spans that are not dtype x shape, bytes that no tensor owns, dtypes other than those below.
 *
 * Seal. Our writer puts two hashes first into the metadata: header_sha256, SHA-256 of the length
 * and the header with that hash's own 64 digits as '0', and tensors_sha256, SHA-256 of everything
 * after the header. The first is verified whenever such a file is opened, the second, which the
 * first protects, by safetensors_verify: together they cover every byte. Whoever depends on it
 * must insist on `sealed`, since a flipped bit in the key itself looks like a file without.
 */
#ifndef RINGMASTER_TRAINER_SAFETENSORS_H
#define RINGMASTER_TRAINER_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/status.h"

#define SAFETENSORS_MAX_DIMS   8
#define SAFETENSORS_MAX_HEADER 100000000 /* bytes: the format's own limit */
#define SAFETENSORS_ALIGNMENT  64        /* of the first tensor in the file, when we write */

typedef enum safetensors_dtype {
    SAFETENSORS_F32,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_I32,
    SAFETENSORS_I64,
    SAFETENSORS_U8,
} safetensors_dtype;

size_t safetensors_dtype_size(safetensors_dtype dtype);
const char *safetensors_dtype_name(safetensors_dtype dtype); /* "F32" */

typedef struct safetensors_tensor {
    const char *name;
    safetensors_dtype dtype;
    int dims; /* 0 = a scalar */
    int64_t dim[SAFETENSORS_MAX_DIMS];
    uint64_t begin, end; /* bytes after the header; reading only */
    const void *data;    /* writing only */
} safetensors_tensor;

typedef struct safetensors_string {
    const char *key, *value;
} safetensors_string;

/* A parsed header. Names and strings live as long as it does. */
typedef struct safetensors_header {
    safetensors_tensor *tensor; /* in data order */
    size_t tensors;
    safetensors_string *metadata; /* sorted by key */
    size_t strings;
    const safetensors_tensor **by_name; /* sorted */
    bool sealed;                        /* carries both hashes, the header's is right */
    void *json;                         /* owns all text */
} safetensors_header;

/* Parses header text (what lies between the length and the data) for a file with `data_length`
 * bytes after it. STATUS_BAD_INPUT: one line without a path. */
CHECK_RESULT status safetensors_parse(const char *text, size_t length, uint64_t data_length,
                                      safetensors_header *ret_header, errbuf *err);
void safetensors_header_fini(safetensors_header *h); /* NULL-safe, idempotent */

/* NULL where there is none. */
const safetensors_tensor *safetensors_find(const safetensors_header *h, const char *name);
const char *safetensors_metadata(const safetensors_header *h, const char *key);

typedef struct safetensors_file {
    char *path;
    int fd;
    uint64_t data_start, data_length;
    safetensors_header header;
} safetensors_file;

/* Opens and parses. Missing, truncated or damaged: STATUS_BAD_INPUT; unreadable:
 * STATUS_ENVIRONMENT; the line begins with the path. */
CHECK_RESULT status safetensors_open(const char *path, safetensors_file **ret_file, errbuf *err);
void safetensors_close(safetensors_file **file); /* NULL-safe */
/* Reads one tensor of the open file, end - begin bytes. */
CHECK_RESULT status safetensors_read(const safetensors_file *file, const safetensors_tensor *tensor,
                                     void *ret_data, errbuf *err);
/* Compares all tensor bytes with the seal; a file without one: STATUS_BAD_INPUT. */
CHECK_RESULT status safetensors_verify(const safetensors_file *file, errbuf *err);

/* Writes `path` atomically, sealed, metadata and tensors in the order given: the same arguments
 * make the same bytes. Nothing is copied but the header. */
CHECK_RESULT status safetensors_write(const char *path, const safetensors_string *metadata,
                                      size_t strings, const safetensors_tensor *tensor,
                                      size_t tensors, errbuf *err);

/* "F32 [64, 3, 3, 3]" for messages; cut to `size`. */
void safetensors_describe(const safetensors_tensor *tensor, char *ret_text, size_t size);

#endif
