/*
 * Safetensors: what is written reads back bit for bit, and nothing that is damaged or malformed
 * gets through.
 */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trainer/safetensors.h"

static char folder[256], path[300];

static void make_folder(void)
{
    const char *root = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/safetensors-XXXXXX", root != NULL ? root : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/a.safetensors", folder);
}

static void remove_folder(void)
{
    unlink(path);
    ck_assert_int_eq(rmdir(folder), 0);
}

static size_t read_file(uint8_t *to, size_t size)
{
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    const size_t n = fread(to, 1, size, f);
    fclose(f);
    return n;
}

static void write_file(const void *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, size, f), size);
    ck_assert_int_eq(fclose(f), 0);
}

/* A file from header text and `data_length` bytes of zeros. */
static void write_raw(const char *header, size_t data_length)
{
    static uint8_t bytes[4096];
    const uint64_t length = strlen(header);
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes, &length, 8);
    for (size_t i = 0; i < length; i++)
        bytes[8 + i] = (uint8_t)header[i];
    write_file(bytes, 8 + length + data_length);
}

/* Opens and verifies; the status, with the line in `err`. */
static status check_file(errbuf *err)
{
    safetensors_file *file = NULL;
    status st = safetensors_open(path, &file, err);
    if (st == STATUS_OK)
        st = safetensors_verify(file, err);
    safetensors_close(&file);
    return st;
}

static const uint32_t odd_floats[6] = {
    0x7fc00001, 0xffa00002, 0x80000000,
    0x00000001, 0x7f800000, 0xff7fffff}; /* NaN payloads, -0, denormal, inf, -max */
static const uint8_t some_bytes[5] = {0, 1, 2, 254, 255};
static const int64_t some_ints[2] = {INT64_MIN, INT64_MAX};

static const safetensors_tensor sample[] = {
    {.name = "z.weight", .dtype = SAFETENSORS_F32, .dims = 2, .dim = {2, 3}, .data = odd_floats},
    {.name = "bytes", .dtype = SAFETENSORS_U8, .dims = 1, .dim = {5}, .data = some_bytes},
    {.name = "empty", .dtype = SAFETENSORS_F16, .dims = 2, .dim = {0, 7}, .data = NULL},
    {.name = "a\"b\\c\n", .dtype = SAFETENSORS_I64, .dims = 1, .dim = {2}, .data = some_ints},
    {.name = "scalar", .dtype = SAFETENSORS_BF16, .dims = 0, .data = some_bytes},
};
static const safetensors_string notes[] = {{"plan", "{\"a\":[1,2]}"},
                                           {"text", "tab\t\u00e9 \"q\""}};

static void write_sample(void)
{
    errbuf err = {0};
    status st = safetensors_write(path, notes, 2, sample, 5, &err);
    ck_assert_msg(st == STATUS_OK, "%s", err.text);
}

START_TEST(round_trip_is_bit_exact)
{
    errbuf err = {0};
    safetensors_file *file = NULL;
    write_sample();
    ck_assert_msg(safetensors_open(path, &file, &err) == STATUS_OK, "%s", err.text);
    ck_assert(file->header.sealed);
    ck_assert_int_eq(safetensors_verify(file, &err), STATUS_OK);
    ck_assert_uint_eq(file->header.tensors, 5);
    ck_assert_uint_eq(file->header.strings, 4);
    ck_assert_str_eq(safetensors_metadata(&file->header, "text"), notes[1].value);
    ck_assert_str_eq(safetensors_metadata(&file->header, "plan"), notes[0].value);
    ck_assert_ptr_null(safetensors_metadata(&file->header, "pla"));
    ck_assert_ptr_null(safetensors_find(&file->header, "z.weigh"));
    ck_assert_uint_eq(file->data_start % SAFETENSORS_ALIGNMENT, 0);
    for (size_t i = 0; i < 5; i++) {
        const safetensors_tensor *t = safetensors_find(&file->header, sample[i].name);
        uint8_t got[64];
        ck_assert_ptr_nonnull(t);
        ck_assert_int_eq(t->dtype, sample[i].dtype);
        ck_assert_int_eq(t->dims, sample[i].dims);
        ck_assert_mem_eq(t->dim, sample[i].dim, sizeof t->dim);
        ck_assert_int_eq(safetensors_read(file, t, got, &err), STATUS_OK);
        if (t->end > t->begin)
            ck_assert_mem_eq(got, sample[i].data, t->end - t->begin);
    }
    safetensors_close(&file);
    ck_assert_ptr_null(file);
}
END_TEST

START_TEST(same_arguments_make_same_bytes)
{
    static uint8_t first[4096], second[4096];
    write_sample();
    const size_t a = read_file(first, sizeof first);
    write_sample();
    const size_t b = read_file(second, sizeof second);
    ck_assert_uint_eq(a, b);
    ck_assert_mem_eq(first, second, a);
}
END_TEST

START_TEST(every_truncation_is_refused)
{
    static uint8_t bytes[4096];
    write_sample();
    const size_t size = read_file(bytes, sizeof bytes);
    for (size_t n = 0; n < size; n++) {
        errbuf err = {0};
        write_file(bytes, n);
        ck_assert_msg(check_file(&err) == STATUS_BAD_INPUT, "%zu of %zu bytes pass", n, size);
        ck_assert_ptr_nonnull(strstr(err.text, path));
    }
    bytes[size] = 0;
    errbuf err = {0};
    write_file(bytes, size + 1);
    ck_assert_int_eq(check_file(&err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "after the last tensor"));
}
END_TEST

START_TEST(every_flipped_bit_is_refused)
{
    static uint8_t bytes[4096];
    write_sample();
    const size_t size = read_file(bytes, sizeof bytes);
    const int fd = open(path, O_WRONLY);
    ck_assert_int_ge(fd, 0);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        const size_t at = bit / 8;
        const uint8_t flipped = bytes[at] ^ (uint8_t)(1 << bit % 8);
        errbuf err = {0};
        ck_assert_int_eq(pwrite(fd, &flipped, 1, (off_t)at), 1);
        if (check_file(&err) != STATUS_BAD_INPUT || strchr(err.text, '\n') != NULL)
            ck_abort_msg("bit %zu of byte %zu passes, or '%s'", bit % 8, at, err.text);
        ck_assert_int_eq(pwrite(fd, &bytes[at], 1, (off_t)at), 1);
    }
    close(fd);
    errbuf err = {0};
    ck_assert_int_eq(check_file(&err), STATUS_OK);
}
END_TEST

/* Headers that must be refused, with a word of the line that says why. */
static const struct {
    const char *header;
    size_t data;
    const char *says;
} malformed[] = {
    {"", 0, "does not begin with"},
    {"[]", 0, "does not begin with"},
    {" {}", 0, "does not begin with"},
    {"{", 0, "JSON"},
    {"{}x", 0, "JSON"},
    {"{}", 1, "belong to none"},
    {"{\"a\":1}", 0, "not an object"},
    {"{\"a\":[1]}", 0, "not an object"},
    {"{\"a\":\"x\"}", 0, "not an object"},
    {"{\"a\":{}}", 0, "dtype, shape and data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "dtype, shape and data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "each once"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "duplicate"},
    {"{\"a\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, "dtype"},
    {"{\"a\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0.5],\"data_offsets\":[0,2]}}", 2, "shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1e300],\"data_offsets\":[0,4]}}", 4, "shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]}}", 4, "shape"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
     "dimensions"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 8, "data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, "truncated"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "does not fill"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "does not fill"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "a hole"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
     4, "an overlap"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
     8, "an overlap"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, "duplicate"},
    {"{\"__metadata__\":[]}", 0, "not a map"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "not a string"},
    {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "duplicate"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate"},
    {"{\"__metadata__\":{\"a\":\"\",\"header_sha256\":\"00\"}}", 0, "does not begin with its hash"},
};

START_TEST(malformed_header_is_refused)
{
    errbuf err = {0};
    write_raw(malformed[_i].header, malformed[_i].data);
    ck_assert_msg(check_file(&err) == STATUS_BAD_INPUT, "passes: %s", malformed[_i].header);
    ck_assert_msg(strstr(err.text, malformed[_i].says) != NULL && strstr(err.text, path) != NULL,
                  "'%s' lacks '%s'", err.text, malformed[_i].says);
}
END_TEST

/* A file of somebody else: no seal, tensors named in another order, padding. */
START_TEST(foreign_file_opens_unsealed)
{
    errbuf err = {0};
    safetensors_file *file = NULL;
    write_raw("{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]},"
              "\"a\":{\"shape\":[],\"data_offsets\":[0,2],\"dtype\":\"BF16\"}}   ",
              6);
    ck_assert_msg(safetensors_open(path, &file, &err) == STATUS_OK, "%s", err.text);
    ck_assert(!file->header.sealed);
    ck_assert_str_eq(file->header.tensor[0].name, "a");
    ck_assert_uint_eq(safetensors_find(&file->header, "b")->begin, 2);
    ck_assert_int_eq(safetensors_verify(file, &err), STATUS_BAD_INPUT);
    safetensors_close(&file);
}
END_TEST

START_TEST(header_length_is_bounded)
{
    const uint64_t lengths[] = {0, 1, 9, SAFETENSORS_MAX_HEADER + 1, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        uint8_t bytes[16] = {0};
        errbuf err = {0};
        memcpy(bytes, &lengths[i], 8);
        write_file(bytes, sizeof bytes);
        ck_assert_int_eq(check_file(&err), STATUS_BAD_INPUT);
    }
}
END_TEST

START_TEST(missing_or_odd_file_is_refused)
{
    errbuf err = {0};
    safetensors_file *file = NULL;
    ck_assert_int_eq(safetensors_open(path, &file, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "No such file"));
    errbuf_clear(&err);
    ck_assert_int_eq(safetensors_open(folder, &file, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "not a regular file"));
    errbuf_clear(&err);
    ck_assert_int_eq(mkfifo(path, 0600), 0); /* must not block */
    ck_assert_int_eq(safetensors_open(path, &file, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_null(file);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safetensors");
    TCase *tc = tcase_create("safetensors");
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_add_test(tc, round_trip_is_bit_exact);
    tcase_add_test(tc, same_arguments_make_same_bytes);
    tcase_add_test(tc, every_truncation_is_refused);
    tcase_add_test(tc, every_flipped_bit_is_refused);
    tcase_add_loop_test(tc, malformed_header_is_refused, 0, sizeof malformed / sizeof malformed[0]);
    tcase_add_test(tc, foreign_file_opens_unsealed);
    tcase_add_test(tc, header_length_is_bounded);
    tcase_add_test(tc, missing_or_odd_file_is_refused);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
