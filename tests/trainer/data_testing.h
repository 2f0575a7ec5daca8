/*
 * What the tests of trainer/data share: a scratch folder, files in it, encoded images, specs.
 * Header-only, as every suite is a program of its own.
 */
#ifndef RINGMASTER_TESTS_TRAINER_DATA_TESTING_H
#define RINGMASTER_TESTS_TRAINER_DATA_TESTING_H

#include <check.h>
#include <ftw.h>
#include <png.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jpeglib.h>

#include "trainer/data/loader.h"

static char folder[256];

static inline void make_folder(void)
{
    const char *root = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/data-XXXXXX", root ? root : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static inline int remove_entry(const char *path, const struct stat *info, int type, struct FTW *at)
{
    (void)info;
    (void)type;
    (void)at;
    return remove(path);
}

static inline void remove_folder(void)
{
    ck_assert_int_eq(nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* Makes the folders above <folder>/<name>; ret_path gets the whole path. */
static inline void make_parents(const char *name, char ret_path[600])
{
    snprintf(ret_path, 600, "%s/%s", folder, name);
    for (char *slash = strchr(ret_path + strlen(folder) + 1, '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(ret_path, 0777);
        *slash = '/';
    }
}

static inline void put_file(const char *name, const void *bytes, size_t length)
{
    char path[600];
    make_parents(name, path);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, length, f), length);
    ck_assert_int_eq(fclose(f), 0);
}

static inline void put_folder(const char *name)
{
    char path[600];
    make_parents(name, path);
    mkdir(path, 0777);
}

/* A value for pixel (x, y) of channel c that differs from its neighbours'. */
static inline uint8_t pixel_value(int x, int y, int c)
{
    return (uint8_t)(x * 7 + y * 13 + c * 57 + x * y % 11);
}

/* An encoded file in memory; free() its bytes. */
typedef struct encoded {
    uint8_t *bytes;
    size_t length;
} encoded;

static inline void encoded_write(png_structp png, png_bytep from, size_t count)
{
    encoded *to = png_get_io_ptr(png);
    to->bytes = realloc(to->bytes, to->length + count);
    memcpy(to->bytes + to->length, from, count);
    to->length += count;
}

static inline void encoded_flush(png_structp png)
{
    (void)png;
}

/* w x h rows of raw PNG samples, `stride` bytes each. `palette` may be NULL. */
static inline encoded encode_png(int w, int h, int type, int depth, int interlace,
                                 const png_color *palette, int colours, const uint8_t *rows,
                                 size_t stride)
{
    encoded e = {0};
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_set_write_fn(png, &e, encoded_write, encoded_flush);
    png_set_IHDR(png, info, (png_uint_32)w, (png_uint_32)h, depth, type, interlace,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (palette)
        png_set_PLTE(png, info, palette, colours);
    png_write_info(png, info);
    png_bytep *row = malloc((size_t)h * sizeof *row);
    for (int y = 0; y < h; y++)
        row[y] = (png_bytep)rows + stride * (size_t)y;
    png_write_image(png, row);
    png_write_end(png, NULL);
    free(row);
    png_destroy_write_struct(&png, &info);
    return e;
}

/* 8-bit RGB of pixel_value. */
static inline encoded encode_rgb_png(int w, int h, int interlace)
{
    uint8_t *rows = malloc((size_t)w * (size_t)h * 3);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            for (int c = 0; c < 3; c++)
                rows[((size_t)y * (size_t)w + (size_t)x) * 3 + (size_t)c] = pixel_value(x, y, c);
    encoded e = encode_png(w, h, PNG_COLOR_TYPE_RGB, 8, interlace, NULL, 0, rows, (size_t)w * 3);
    free(rows);
    return e;
}

/* A smooth JPEG, quality 95: channel c of pixel (x, y) is near 40 + 160 * (c == 0 ? x/w : y/h). */
static inline encoded encode_jpeg(int w, int h, J_COLOR_SPACE space, int components,
                                  bool progressive)
{
    struct jpeg_compress_struct codec;
    struct jpeg_error_mgr errors;
    unsigned char *bytes = NULL;
    unsigned long length = 0;
    codec.err = jpeg_std_error(&errors);
    jpeg_create_compress(&codec);
    jpeg_mem_dest(&codec, &bytes, &length);
    codec.image_width = (JDIMENSION)w;
    codec.image_height = (JDIMENSION)h;
    codec.input_components = components;
    codec.in_color_space = space;
    jpeg_set_defaults(&codec);
    jpeg_set_quality(&codec, 95, TRUE);
    if (progressive)
        jpeg_simple_progression(&codec);
    jpeg_start_compress(&codec, TRUE);
    uint8_t *row = malloc((size_t)w * (size_t)components);
    for (int y = 0; y < h; y++) {
        for (int x = 0; x < w; x++)
            for (int c = 0; c < components; c++)
                row[x * components + c] = (uint8_t)(40 + (c == 0 ? 160 * x / w : 160 * y / h));
        jpeg_write_scanlines(&codec, &row, 1);
    }
    free(row);
    jpeg_finish_compress(&codec);
    jpeg_destroy_compress(&codec);
    return (encoded){.bytes = bytes, .length = length};
}

static inline encoded encode_rgb_jpeg(int w, int h)
{
    return encode_jpeg(w, h, JCS_RGB, 3, false);
}

/* Puts an encoded file in place and frees it. */
static inline void put_encoded(const char *name, encoded e)
{
    put_file(name, e.bytes, e.length);
    free(e.bytes);
}

/* An image of pixel_value, planar. */
static inline image make_image(int w, int h)
{
    image im = {0};
    errbuf err = {0};
    ck_assert_int_eq(image_reserve(&im, w, h, &err), STATUS_OK);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++)
                im.pixels[((size_t)c * (size_t)h + (size_t)y) * (size_t)w + (size_t)x] =
                    pixel_value(x, y, c);
    return im;
}

static inline uint8_t at(const image *im, int c, int x, int y)
{
    return im->pixels[((size_t)c * (size_t)im->h + (size_t)y) * (size_t)im->w + (size_t)x];
}

/* A spec of which only the data part is meant. Its strings are not owned by it. */
static inline spec data_spec(int kind, char *path)
{
    spec s;
    memset(&s, 0, sizeof s);
    s.data.kind = kind;
    s.data.path = path;
    s.data.train_count = 100;
    s.data.eval_count = 30;
    s.data.seed = 1;
    return s;
}

/* Asserts a failure whose line holds each of the given parts. */
#define assert_fails(call, expected, ...)                                                  \
    do {                                                                                   \
        errbuf err = {0};                                                                  \
        ck_assert_int_eq(call, expected);                                                  \
        ck_assert_int_eq(err.code, expected);                                              \
        const char *parts_[] = {__VA_ARGS__};                                              \
        for (size_t i_ = 0; i_ < sizeof parts_ / sizeof *parts_; i_++)                     \
            ck_assert_msg(strstr(err.text, parts_[i_]), "'%s' is not in '%s'", parts_[i_], \
                          err.text);                                                       \
    } while (0)

#define assert_ok(call)                                  \
    do {                                                 \
        errbuf err = {0};                                \
        status st_ = (call);                             \
        ck_assert_msg(st_ == STATUS_OK, "%s", err.text); \
    } while (0)

static inline int run_suite(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

#endif
