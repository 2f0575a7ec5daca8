/*
 * Decoding JPEG and PNG: every pixel format becomes the same planes, damaged files give a line and
 * nothing on stderr, and headers that promise too much are refused before memory is taken.
 */
#include "trainer/data_testing.h"

#include <fcntl.h>
#include <zlib.h>

static status decode(encoded e, int short_side, image *im, errbuf *err)
{
    return image_decode(e.bytes, e.length, short_side, im, err);
}

static void assert_near(int value, int expected, int tolerance)
{
    ck_assert_int_le(abs(value - expected), tolerance);
}

START_TEST(jpeg_becomes_planes)
{
    bool progressive = _i;
    encoded e = encode_jpeg(61, 37, JCS_RGB, 3, progressive);
    image im = {0};
    assert_ok(decode(e, 0, &im, &err));
    ck_assert_int_eq(im.w, 61);
    ck_assert_int_eq(im.h, 37);
    for (int y = 0; y < 37; y++)
        for (int x = 0; x < 61; x++) {
            assert_near(at(&im, 0, x, y), 40 + 160 * x / 61, 8);
            assert_near(at(&im, 1, x, y), 40 + 160 * y / 37, 8);
            assert_near(at(&im, 2, x, y), 40 + 160 * y / 37, 8);
        }
    image_fini(&im);
    free(e.bytes);
}
END_TEST

START_TEST(grey_jpeg_becomes_three_equal_planes)
{
    encoded e = encode_jpeg(33, 20, JCS_GRAYSCALE, 1, false);
    image im = {0};
    assert_ok(decode(e, 0, &im, &err));
    for (int x = 0; x < 33; x++) {
        assert_near(at(&im, 0, x, 9), 40 + 160 * x / 33, 6);
        ck_assert_int_eq(at(&im, 0, x, 9), at(&im, 1, x, 9));
        ck_assert_int_eq(at(&im, 0, x, 9), at(&im, 2, x, 9));
    }
    image_fini(&im);
    free(e.bytes);
}
END_TEST

START_TEST(cmyk_jpeg_is_refused)
{
    encoded e = encode_jpeg(16, 16, JCS_CMYK, 4, false);
    image im = {0};
    assert_fails(decode(e, 0, &im, &err), STATUS_DATA, "CMYK", "RGB");
    image_fini(&im);
    free(e.bytes);
}
END_TEST

START_TEST(jpeg_is_decoded_smaller_where_that_is_enough)
{
    static const struct {
        int short_side, w, h;
    } row[] = {{0, 128, 64}, {64, 128, 64}, {33, 128, 64}, {32, 64, 32},
               {17, 64, 32}, {16, 32, 16},  {8, 16, 8},    {1, 16, 8}};
    encoded e = encode_rgb_jpeg(128, 64);
    image im = {0};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        assert_ok(decode(e, row[i].short_side, &im, &err));
        ck_assert_int_eq(im.w, row[i].w);
        ck_assert_int_eq(im.h, row[i].h);
        assert_near(at(&im, 0, im.w / 2, im.h / 2), 120, 10);
    }
    image_fini(&im);
    free(e.bytes);
}
END_TEST

START_TEST(png_rgb_is_exact)
{
    encoded e = encode_rgb_png(29, 23, _i ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE);
    image im = {0}, expected = make_image(29, 23);
    assert_ok(decode(e, 0, &im, &err));
    ck_assert_int_eq(im.w, 29);
    ck_assert_int_eq(im.h, 23);
    ck_assert_mem_eq(im.pixels, expected.pixels, 3 * 29 * 23);
    image_fini(&im);
    image_fini(&expected);
    free(e.bytes);
}
END_TEST

START_TEST(png_alpha_is_dropped)
{
    uint8_t rows[] = {10, 20, 30, 0, 40, 50, 60, 128};
    encoded e = encode_png(2, 1, PNG_COLOR_TYPE_RGBA, 8, 0, NULL, 0, rows, 8);
    image im = {0};
    assert_ok(decode(e, 0, &im, &err));
    uint8_t planes[] = {10, 40, 20, 50, 30, 60};
    ck_assert_mem_eq(im.pixels, planes, 6);
    image_fini(&im);
    free(e.bytes);
}
END_TEST

START_TEST(png_grey_of_any_depth_becomes_rgb)
{
    static const struct {
        int type, depth;
        uint8_t row[4];
        uint8_t value[2];
    } row[] = {{PNG_COLOR_TYPE_GRAY, 1, {0x40}, {0, 255}},
               {PNG_COLOR_TYPE_GRAY, 2, {0x60}, {85, 170}},
               {PNG_COLOR_TYPE_GRAY, 4, {0x1f}, {17, 255}},
               {PNG_COLOR_TYPE_GRAY, 8, {3, 200}, {3, 200}},
               {PNG_COLOR_TYPE_GRAY, 16, {3, 3, 200, 200}, {3, 200}},
               {PNG_COLOR_TYPE_GRAY_ALPHA, 8, {3, 0, 200, 9}, {3, 200}}};
    image im = {0};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        encoded e = encode_png(2, 1, row[i].type, row[i].depth, 0, NULL, 0, row[i].row, 4);
        assert_ok(decode(e, 0, &im, &err));
        for (int c = 0; c < 3; c++) {
            ck_assert_int_eq(at(&im, c, 0, 0), row[i].value[0]);
            ck_assert_int_eq(at(&im, c, 1, 0), row[i].value[1]);
        }
        free(e.bytes);
    }
    image_fini(&im);
}
END_TEST

START_TEST(png_palette_and_sixteen_bit_become_rgb)
{
    png_color palette[] = {{1, 2, 3}, {250, 128, 7}};
    uint8_t indexed[] = {0x40}, deep[] = {250, 250, 128, 128, 7, 7};
    image im = {0};
    encoded e = encode_png(2, 1, PNG_COLOR_TYPE_PALETTE, 1, 0, palette, 2, indexed, 1);
    assert_ok(decode(e, 0, &im, &err));
    uint8_t planes[] = {1, 250, 2, 128, 3, 7}, one[] = {250, 128, 7};
    ck_assert_mem_eq(im.pixels, planes, 6);
    free(e.bytes);
    e = encode_png(1, 1, PNG_COLOR_TYPE_RGB, 16, 0, NULL, 0, deep, 6);
    assert_ok(decode(e, 0, &im, &err));
    ck_assert_mem_eq(im.pixels, one, 3);
    free(e.bytes);
    image_fini(&im);
}
END_TEST

/* -- damage -- */

START_TEST(every_truncated_file_is_an_error_and_nothing_is_printed)
{
    make_folder();
    encoded files[] = {encode_rgb_jpeg(48, 48), encode_jpeg(48, 48, JCS_RGB, 3, true),
                       encode_rgb_png(20, 20, 0), encode_rgb_png(20, 20, PNG_INTERLACE_ADAM7)};
    char path[300];
    snprintf(path, sizeof path, "%s/stderr", folder);
    int printed = open(path, O_CREAT | O_RDWR, 0600), before = dup(2);
    ck_assert_int_ge(dup2(printed, 2), 0);
    image im = {0};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        for (size_t n = 0; n < files[i].length; n++) {
            /* A copy of just that length, so that a sanitizer sees reading beyond it. */
            uint8_t *part = malloc(n + 1);
            memcpy(part, files[i].bytes, n);
            errbuf err = {0};
            status st = image_decode(part, n, 0, &im, &err);
            ck_assert_msg(st == STATUS_DATA, "file %zu cut to %zu of %zu bytes was read", i, n,
                          files[i].length);
            ck_assert_int_ne(err.text[0], 0);
            free(part);
        }
        free(files[i].bytes);
    }
    dup2(before, 2);
    struct stat info;
    ck_assert_int_eq(fstat(printed, &info), 0);
    ck_assert_int_eq(info.st_size, 0);
    close(printed);
    close(before);
    image_fini(&im);
    remove_folder();
}
END_TEST

START_TEST(flipped_bits_never_do_harm)
{
    encoded files[] = {encode_rgb_jpeg(40, 40), encode_jpeg(40, 40, JCS_RGB, 3, true),
                       encode_rgb_png(16, 16, 0)};
    image im = {0};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        int refused = 0;
        for (size_t n = 0; n < files[i].length; n++) {
            errbuf err = {0};
            files[i].bytes[n] ^= (uint8_t)(1 << n % 8);
            status st = decode(files[i], 0, &im, &err);
            ck_assert(st == STATUS_OK || st == STATUS_DATA);
            refused += st != STATUS_OK;
            files[i].bytes[n] ^= (uint8_t)(1 << n % 8);
        }
        ck_assert_int_gt(refused, (int)files[i].length / 20);
        free(files[i].bytes);
    }
    image_fini(&im);
}
END_TEST

START_TEST(a_png_with_a_wrong_checksum_is_an_error)
{
    encoded e = encode_rgb_png(16, 16, 0);
    image im = {0};
    e.bytes[e.length - 12 - 6] ^= 1; /* inside IDAT's last bytes */
    assert_fails(decode(e, 0, &im, &err), STATUS_DATA, "PNG");
    image_fini(&im);
    free(e.bytes);
}
END_TEST

START_TEST(what_is_no_image_is_named)
{
    image im = {0};
    uint8_t text[] = "GIF89a, not an image that is read";
    assert_fails(image_decode(text, 0, 0, &im, &err), STATUS_DATA, "empty");
    assert_fails(image_decode(text, sizeof text, 0, &im, &err), STATUS_DATA, "neither a JPEG");
    assert_fails(image_decode(text, 1, 0, &im, &err), STATUS_DATA, "neither a JPEG");
    ck_assert_ptr_null(im.pixels);
}
END_TEST

/* -- sizes -- */

static void put_big_endian(uint8_t *to, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(v >> (24 - 8 * i));
}

START_TEST(a_png_that_promises_too_much_is_refused_before_memory_is_taken)
{
    static const uint32_t side[] = {20000, 65000, 2000000000};
    image im = {0};
    for (size_t i = 0; i < sizeof side / sizeof *side; i++) {
        encoded e = encode_rgb_png(4, 4, 0);
        put_big_endian(e.bytes + 16, side[i]);
        put_big_endian(e.bytes + 20, side[i]);
        put_big_endian(e.bytes + 29, (uint32_t)crc32(0, e.bytes + 12, 17));
        assert_fails(decode(e, 0, &im, &err), STATUS_DATA, "");
        ck_assert_ptr_null(im.pixels);
        free(e.bytes);
    }
}
END_TEST

START_TEST(a_jpeg_that_promises_too_much_is_refused_before_memory_is_taken)
{
    encoded e = encode_rgb_jpeg(16, 16);
    image im = {0};
    size_t i = 2;
    while (!(e.bytes[i] == 0xff && e.bytes[i + 1] == 0xc0)) /* the frame header */
        i++;
    memset(e.bytes + i + 5, 0xf0, 4);
    assert_fails(decode(e, 8, &im, &err), STATUS_DATA, "61680 x 61680", "at most");
    ck_assert_ptr_null(im.pixels);
    free(e.bytes);
}
END_TEST

START_TEST(reserve_grows_only_and_has_bounds)
{
    image im = {0};
    assert_ok(image_reserve(&im, 30, 20, &err));
    uint8_t *pixels = im.pixels;
    ck_assert_uint_ge(im.capacity, 1800);
    assert_ok(image_reserve(&im, 20, 30, &err));
    assert_ok(image_reserve(&im, 2, 3, &err));
    ck_assert_ptr_eq(im.pixels, pixels);
    ck_assert_int_eq(im.w, 2);
    assert_fails(image_reserve(&im, 1 << 15, (1 << 13) + 1, &err), STATUS_DATA, "32768 x 8193");
    assert_fails(image_reserve(&im, 0, 5, &err), STATUS_DATA, "0 x 5");
    ck_assert_int_eq(im.w, 2);
    image_fini(&im);
    image_fini(&im);
    image_fini(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("image");
    TCase *formats = tcase_create("formats");
    tcase_add_loop_test(formats, jpeg_becomes_planes, 0, 2);
    tcase_add_test(formats, grey_jpeg_becomes_three_equal_planes);
    tcase_add_test(formats, cmyk_jpeg_is_refused);
    tcase_add_test(formats, jpeg_is_decoded_smaller_where_that_is_enough);
    tcase_add_loop_test(formats, png_rgb_is_exact, 0, 2);
    tcase_add_test(formats, png_alpha_is_dropped);
    tcase_add_test(formats, png_grey_of_any_depth_becomes_rgb);
    tcase_add_test(formats, png_palette_and_sixteen_bit_become_rgb);
    suite_add_tcase(suite, formats);
    TCase *damage = tcase_create("damage");
    tcase_add_test(damage, every_truncated_file_is_an_error_and_nothing_is_printed);
    tcase_add_test(damage, flipped_bits_never_do_harm);
    tcase_add_test(damage, a_png_with_a_wrong_checksum_is_an_error);
    tcase_add_test(damage, what_is_no_image_is_named);
    suite_add_tcase(suite, damage);
    TCase *sizes = tcase_create("sizes");
    tcase_add_test(sizes, a_png_that_promises_too_much_is_refused_before_memory_is_taken);
    tcase_add_test(sizes, a_jpeg_that_promises_too_much_is_refused_before_memory_is_taken);
    tcase_add_test(sizes, reserve_grows_only_and_has_bounds);
    suite_add_tcase(suite, sizes);
    return run_suite(suite);
}
