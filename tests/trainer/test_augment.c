/*
 * Resizing against Pillow's numbers, and augmentation: what it does to an image, that it depends on
 * (seed, epoch, sample) alone, and how its choices are distributed.
 */
#include "trainer/data_testing.h"

#include <math.h>

#include "trainer/data/resample.h"

static uint64_t fnv1a(const uint8_t *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i++)
        h = (h ^ bytes[i]) * 0x100000001b3;
    return h;
}

/* Made by tests/golden/resize.py. */
static const struct {
    int w, h;
    image_region region;
    int out_w, out_h;
    uint64_t hash;
    uint8_t first[3][4];
} golden[] = {
    {61,
     37,
     {0, 0, 61, 37},
     24,
     19,
     0xeaa10cbdaa0f79c7,
     {{17, 34, 53, 72}, {74, 91, 110, 129}, {131, 148, 167, 186}}},
    {61,
     37,
     {5, 3, 31, 30},
     16,
     16,
     0x0be1a444ee1635c6,
     {{93, 105, 118, 129}, {150, 162, 175, 186}, {207, 219, 230, 215}}},
    {13,
     11,
     {0, 0, 13, 11},
     32,
     40,
     0xa7835e17bd2730ca,
     {{0, 1, 4, 6}, {57, 58, 61, 63}, {114, 115, 118, 120}}},
    {40,
     30,
     {7, 2, 9, 28},
     20,
     20,
     0xf6326cf3a1faeee1,
     {{85, 86, 88, 91}, {142, 143, 145, 148}, {199, 200, 202, 205}}},
    {200,
     150,
     {11, 20, 160, 120},
     32,
     32,
     0x23dc83003118a574,
     {{124, 156, 191, 205}, {181, 202, 158, 53}, {186, 80, 49, 85}}},
    {64,
     64,
     {0, 0, 64, 64},
     64,
     20,
     0x294bed02043c0703,
     {{18, 27, 35, 43}, {75, 84, 92, 100}, {132, 141, 149, 157}}},
    {300,
     1,
     {0, 0, 300, 1},
     7,
     3,
     0x25c068b82d971b31,
     {{116, 131, 129, 127}, {133, 126, 126, 128}, {136, 125, 126, 126}}},
};

START_TEST(bilinear_equals_pillow)
{
    image from = make_image(golden[_i].w, golden[_i].h), to = {0};
    resample_scratch scratch = {0};
    int w = golden[_i].out_w, h = golden[_i].out_h;
    assert_ok(resample_bilinear(&from, golden[_i].region, w, h, &scratch, &to, &err));
    ck_assert_int_eq(to.w, w);
    ck_assert_int_eq(to.h, h);
    for (int c = 0; c < 3; c++)
        for (int x = 0; x < 4; x++)
            ck_assert_int_eq(at(&to, c, x, 0), golden[_i].first[c][x]);
    ck_assert_uint_eq(fnv1a(to.pixels, 3 * (size_t)w * (size_t)h), golden[_i].hash);
    resample_scratch_fini(&scratch);
    image_fini(&from);
    image_fini(&to);
}
END_TEST

START_TEST(box_averages_blocks_and_rounds)
{
    image from = make_image(12, 8), to = {0};
    assert_ok(resample_box(&from, 4, &to, &err));
    ck_assert_int_eq(to.w, 3);
    ck_assert_int_eq(to.h, 2);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < 2; y++)
            for (int x = 0; x < 3; x++) {
                int sum = 0;
                for (int i = 0; i < 16; i++)
                    sum += at(&from, c, 4 * x + i % 4, 4 * y + i / 4);
                ck_assert_int_eq(at(&to, c, x, y), (sum + 8) / 16);
            }
    image_fini(&from);
    image_fini(&to);
}
END_TEST

/* -- augmentation -- */

static loader_options options_for(int size, int augment, data_split split)
{
    return (loader_options){
        .split = split, .size = size, .augment = augment, .normalise = NORMALISE_NONE, .seed = 5};
}

/* The augmented image as bytes, which normalise none leaves recoverable. */
static void run(const loader_options *o, int64_t epoch, int64_t sample, const image *im,
                uint8_t *ret)
{
    static float out[3 * 64 * 64];
    image scratch = {0};
    size_t n = 3 * (size_t)o->size * (size_t)o->size;
    ck_assert_uint_le(n, 3 * 64 * 64);
    assert_ok(augment_image(o, epoch, sample, im, &scratch, out, &err));
    for (size_t i = 0; i < n; i++)
        ret[i] = (uint8_t)lrintf(out[i] * 255);
    image_fini(&scratch);
}

START_TEST(each_normalisation_has_its_constants)
{
    static const struct {
        int normalise;
        double mean[3], deviation[3];
    } row[] = {{NORMALISE_NONE, {0, 0, 0}, {1, 1, 1}},
               {NORMALISE_CIFAR10, {.4914, .4822, .4465}, {.2023, .1994, .2010}},
               {NORMALISE_CIFAR100, {.507075, .486549, .440918}, {.267334, .256438, .276150}},
               {NORMALISE_IMAGENET, {.485, .456, .406}, {.229, .224, .225}}};
    image im = make_image(8, 8), scratch = {0};
    float out[3 * 8 * 8];
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        loader_options o = options_for(8, AUGMENT_NONE, SPLIT_TRAIN);
        o.normalise = row[i].normalise;
        assert_ok(augment_image(&o, 0, 0, &im, &scratch, out, &err));
        for (int c = 0; c < 3; c++)
            for (int p = 0; p < 64; p++)
                ck_assert_float_eq_tol(
                    out[c * 64 + p],
                    (float)((im.pixels[c * 64 + p] / 255.0 - row[i].mean[c]) / row[i].deviation[c]),
                    1e-6f);
    }
    image_fini(&im);
    image_fini(&scratch);
}
END_TEST

START_TEST(evaluation_and_clean_training_leave_the_image_alone)
{
    image im = make_image(32, 32);
    uint8_t out[3 * 32 * 32];
    loader_options o = options_for(32, AUGMENT_CROP, SPLIT_EVAL);
    run(&o, 3, 4, &im, out);
    ck_assert_mem_eq(out, im.pixels, sizeof out);
    o.split = SPLIT_TRAIN;
    o.clean = true;
    run(&o, 3, 4, &im, out);
    ck_assert_mem_eq(out, im.pixels, sizeof out);
    image_fini(&im);
}
END_TEST

START_TEST(a_multiple_of_the_size_is_averaged)
{
    image im = make_image(32, 32), box = {0};
    uint8_t out[3 * 16 * 16];
    loader_options o = options_for(16, AUGMENT_CROP, SPLIT_EVAL);
    run(&o, 0, 0, &im, out);
    assert_ok(resample_box(&im, 2, &box, &err));
    ck_assert_mem_eq(out, box.pixels, sizeof out);
    image_fini(&im);
    image_fini(&box);
}
END_TEST

START_TEST(long_images_lose_their_ends)
{
    image im = make_image(41, 20);
    uint8_t out[3 * 20 * 20];
    loader_options o = options_for(20, AUGMENT_CROP, SPLIT_EVAL);
    run(&o, 0, 0, &im, out);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < 20; y++)
            for (int x = 0; x < 20; x++) /* 10.5 rounds to even */
                ck_assert_int_eq(out[(c * 20 + y) * 20 + x], at(&im, c, x + 10, y));
    image_fini(&im);
}
END_TEST

/* Pixel of the crop by (dx, dy), mirrored or not, of the image padded with black. */
static uint8_t cropped(const image *im, int c, int x, int y, int dx, int dy, bool mirrored)
{
    int sx = (mirrored ? im->w - 1 - x : x) + dx, sy = y + dy;
    return sx < 0 || sy < 0 || sx >= im->w || sy >= im->h ? 0 : at(im, c, sx, sy);
}

static bool is_crop(const image *im, const uint8_t *out, int dx, int dy, bool mirrored)
{
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < im->h; y++)
            for (int x = 0; x < im->w; x++)
                if (out[(c * im->h + y) * im->w + x] != cropped(im, c, x, y, dx, dy, mirrored))
                    return false;
    return true;
}

/* Finds the one (dx, dy, mirrored) that explains the output. */
static void explain(const image *im, int pad, const uint8_t *out, int *ret_dx, int *ret_dy,
                    int *ret_mirrored)
{
    int found = 0;
    for (int dy = -pad; dy <= pad; dy++)
        for (int dx = -pad; dx <= pad; dx++)
            for (int m = 0; m < 2; m++)
                if (is_crop(im, out, dx, dy, m)) {
                    found++;
                    *ret_dx = dx;
                    *ret_dy = dy;
                    *ret_mirrored = m;
                }
    ck_assert_int_eq(found, 1);
}

START_TEST(crop_pads_with_black_shifts_evenly_and_mirrors_every_second)
{
    enum {
        DRAWS = 5400
    };
    int size = _i ? 16 : 32, pad = size / 8, places = 2 * pad + 1;
    int at_x[9] = {0}, at_y[9] = {0}, mirrored = 0, both = 0;
    image im = make_image(size, size);
    uint8_t out[3 * 32 * 32];
    loader_options o = options_for(size, AUGMENT_CROP, SPLIT_TRAIN);
    for (int i = 0; i < DRAWS; i++) {
        int dx = 0, dy = 0, m = 0;
        run(&o, i % 3, i / 3, &im, out);
        explain(&im, pad, out, &dx, &dy, &m);
        at_x[dx + pad]++;
        at_y[dy + pad]++;
        mirrored += m;
        both += m && dx > 0;
    }
    double expected = (double)DRAWS / places, chi_x = 0, chi_y = 0;
    for (int i = 0; i < places; i++) {
        chi_x += pow(at_x[i] - expected, 2) / expected;
        chi_y += pow(at_y[i] - expected, 2) / expected;
    }
    /* 8 degrees of freedom at most: 26.1 is the 0.1 % point. Five deviations for the coins. */
    ck_assert_double_lt(chi_x, 26.1);
    ck_assert_double_lt(chi_y, 26.1);
    ck_assert_double_lt(fabs(mirrored - DRAWS / 2.0), 5 * sqrt(DRAWS / 4.0));
    double half = DRAWS * .5 * pad / places;
    ck_assert_double_lt(fabs(both - half), 5 * sqrt(half));
    image_fini(&im);
}
END_TEST

START_TEST(choices_depend_on_seed_epoch_and_sample_alone)
{
    int augment = _i ? AUGMENT_RRC : AUGMENT_CROP, same[3] = {0};
    image im = make_image(32, 32);
    uint8_t a[3 * 32 * 32], b[3 * 32 * 32];
    loader_options o = options_for(32, augment, SPLIT_TRAIN), other = o;
    other.batch = 64; /* nothing that augmentation may look at */
    other.rank = 3;
    other.threads = 7;
    for (int i = 0; i < 50; i++) {
        run(&o, 7, i, &im, a);
        run(&other, 7, i, &im, b);
        ck_assert_mem_eq(a, b, sizeof a);
        run(&o, 8, i, &im, b);
        same[0] += !memcmp(a, b, sizeof a);
        run(&o, 7, i + 1, &im, b);
        same[1] += !memcmp(a, b, sizeof a);
        other.seed = 6;
        run(&other, 7, i, &im, b);
        same[2] += !memcmp(a, b, sizeof a);
        other.seed = 5;
    }
    for (int i = 0; i < 3; i++)
        ck_assert_int_lt(same[i], 8);
    image_fini(&im);
}
END_TEST

/* An image whose red tells x and whose green tells y. */
static image make_ramp(int w, int h)
{
    image im = make_image(w, h);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            size_t p = (size_t)y * (size_t)w + (size_t)x, plane = (size_t)w * (size_t)h;
            im.pixels[p] = (uint8_t)(x * 256 / w);
            im.pixels[plane + p] = (uint8_t)(y * 256 / h);
            im.pixels[2 * plane + p] = 77;
        }
    return im;
}

START_TEST(rrc_takes_rectangles_of_the_right_size_and_shape)
{
    enum {
        SIZE = 32,
        DRAWS = 2000
    };
    image im = make_ramp(256, 256);
    uint8_t out[3 * SIZE * SIZE];
    loader_options o = options_for(SIZE, AUGMENT_RRC, SPLIT_TRAIN);
    double area_sum = 0, ratio_sum = 0, x_sum = 0;
    int mirrored = 0;
    for (int i = 0; i < DRAWS; i++) {
        run(&o, 0, i, &im, out);
        const uint8_t *red = out, *green = out + SIZE * SIZE;
        int middle = SIZE / 2 * SIZE;
        double across = (red[middle + SIZE - 2] - red[middle + 1]) * (double)SIZE / (SIZE - 3);
        double down = (green[SIZE * (SIZE - 2)] - green[SIZE]) * (double)SIZE / (SIZE - 3);
        mirrored += across < 0;
        double w = fabs(across), h = down, area = w * h / 65536, ratio = w / h;
        ck_assert_int_eq(out[2 * SIZE * SIZE + i % (SIZE * SIZE)], 77);
        ck_assert_double_gt(area, .07);
        ck_assert_double_lt(area, 1.03);
        ck_assert_double_gt(ratio, .72);
        ck_assert_double_lt(ratio, 1.39);
        area_sum += area;
        ratio_sum += log(ratio);
        x_sum += red[middle + SIZE / 2];
    }
    /* Large areas do not always fit, which takes the mean a little below .54. */
    ck_assert_double_gt(area_sum / DRAWS, .45);
    ck_assert_double_lt(area_sum / DRAWS, .55);
    ck_assert_double_lt(fabs(ratio_sum / DRAWS), .02);
    ck_assert_double_lt(fabs(x_sum / DRAWS - 127.5), 4);
    ck_assert_double_lt(fabs(mirrored - DRAWS / 2.0), 5 * sqrt(DRAWS / 4.0));
    image_fini(&im);
}
END_TEST

START_TEST(rrc_takes_the_middle_of_images_that_are_too_long)
{
    image im = make_ramp(256, 4);
    uint8_t out[3 * 8 * 8];
    loader_options o = options_for(8, AUGMENT_RRC, SPLIT_TRAIN);
    int middles = 0;
    for (int i = 0; i < 40; i++) {
        run(&o, 0, i, &im, out);
        /* The fallback is 5 x 4 pixels from x = 125: red from 125 to 129, plus or minus rounding.
         */
        bool is_middle = true;
        for (int p = 0; p < 64; p++)
            is_middle &= out[p] >= 124 && out[p] <= 130;
        middles += is_middle;
    }
    ck_assert_int_ge(middles, 20);
    image_fini(&im);
}
END_TEST

START_TEST(rrc_evaluates_the_centre_of_the_resized_image)
{
    image im = make_image(96, 64), resized = {0};
    resample_scratch scratch = {0};
    uint8_t out[3 * 28 * 28];
    loader_options o = options_for(28, AUGMENT_RRC, SPLIT_EVAL);
    run(&o, 0, 0, &im, out);
    assert_ok(
        resample_bilinear(&im, (image_region){0, 0, 96, 64}, 48, 32, &scratch, &resized, &err));
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < 28; y++)
            for (int x = 0; x < 28; x++)
                ck_assert_int_eq(out[(c * 28 + y) * 28 + x], at(&resized, c, x + 10, y + 2));
    resample_scratch_fini(&scratch);
    image_fini(&im);
    image_fini(&resized);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("augment");
    TCase *resizing = tcase_create("resizing");
    tcase_add_loop_test(resizing, bilinear_equals_pillow, 0, sizeof golden / sizeof *golden);
    tcase_add_test(resizing, box_averages_blocks_and_rounds);
    suite_add_tcase(suite, resizing);
    TCase *fixed = tcase_create("fixed");
    tcase_add_test(fixed, each_normalisation_has_its_constants);
    tcase_add_test(fixed, evaluation_and_clean_training_leave_the_image_alone);
    tcase_add_test(fixed, a_multiple_of_the_size_is_averaged);
    tcase_add_test(fixed, long_images_lose_their_ends);
    tcase_add_test(fixed, rrc_evaluates_the_centre_of_the_resized_image);
    suite_add_tcase(suite, fixed);
    TCase *chance = tcase_create("chance");
    tcase_add_loop_test(chance, crop_pads_with_black_shifts_evenly_and_mirrors_every_second, 0, 2);
    tcase_add_loop_test(chance, choices_depend_on_seed_epoch_and_sample_alone, 0, 2);
    tcase_add_test(chance, rrc_takes_rectangles_of_the_right_size_and_shape);
    tcase_add_test(chance, rrc_takes_the_middle_of_images_that_are_too_long);
    suite_add_tcase(suite, chance);
    return run_suite(suite);
}
