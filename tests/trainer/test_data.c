/*
 * Opening image sets: layouts that are accepted, every kind of damage with its line and status,
 * subsets, content hashes, and what resolving a spec fills in.
 */
#include "protocol/file.h"
#include "protocol/sha256.h"
#include "trainer/data_testing.h"

#define CIFAR_PIXELS 3072

/* `count` records with labels first, first + 1, … mod classes; pixels tell the record. */
static uint8_t *make_records(int count, int classes, size_t *ret_length)
{
    size_t head = classes == 100 ? 2 : 1, record = head + CIFAR_PIXELS;
    uint8_t *bytes = malloc((size_t)count * record);
    for (int i = 0; i < count; i++) {
        uint8_t *r = bytes + (size_t)i * record;
        r[0] = (uint8_t)(head == 2 ? 19 : i % classes); /* a coarse label says nothing */
        r[head - 1] = (uint8_t)(i % classes);
        for (int p = 0; p < CIFAR_PIXELS; p++)
            r[head + (size_t)p] = (uint8_t)(i * 31 + p);
    }
    *ret_length = (size_t)count * record;
    return bytes;
}

static void put_records(const char *name, int count, int classes)
{
    size_t length = 0;
    uint8_t *bytes = make_records(count, classes, &length);
    put_file(name, bytes, length);
    free(bytes);
}

static void put_cifar10(const char *below)
{
    for (int i = 1; i <= 6; i++) {
        char name[100];
        snprintf(name, sizeof name, i < 6 ? "%sdata_batch_%d.bin" : "%stest_batch.bin", below, i);
        put_records(name, i < 6 ? 10 + i : 7, 10);
    }
}

static void check_record(dataset *set, int64_t i, int in_file, int classes)
{
    image im = {0};
    int32_t label = -1;
    assert_ok(dataset_read(set, i, 0, &im, &label, &err));
    ck_assert_int_eq(label, in_file % classes);
    ck_assert_int_eq(im.w, 32);
    ck_assert_int_eq(im.h, 32);
    for (int p = 0; p < CIFAR_PIXELS; p++)
        ck_assert_int_eq(im.pixels[p], (uint8_t)(in_file * 31 + p));
    image_fini(&im);
}

static dataset *open_set(const spec *s, data_split split, dataset_info *ret)
{
    dataset *set = NULL;
    assert_ok(dataset_open(s, split, NULL, NULL, &set, &err));
    dataset_describe(set, ret);
    return set;
}

#define assert_open_fails(s, split, code, ...)                                             \
    do {                                                                                   \
        dataset *none_ = NULL;                                                             \
        assert_fails(dataset_open(s, split, NULL, NULL, &none_, &err), code, __VA_ARGS__); \
        ck_assert_ptr_null(none_);                                                         \
    } while (0)

/* -- CIFAR -- */

START_TEST(cifar10_joins_its_five_files)
{
    static const char *const below[] = {"", "cifar-10-batches-bin/", "cifar10/"};
    dataset_info info;
    make_folder();
    put_cifar10(below[_i]);
    spec s = data_spec(DATA_CIFAR10, folder);
    dataset *set = open_set(&s, SPLIT_TRAIN, &info);
    ck_assert_int_eq(info.count, 11 + 12 + 13 + 14 + 15);
    ck_assert_int_eq(info.classes, 10);
    ck_assert_int_eq(info.w, 32);
    ck_assert(info.is_resident);
    check_record(set, 0, 0, 10);
    check_record(set, 10, 10, 10);
    check_record(set, 11, 0, 10);
    check_record(set, 64, 14, 10);
    ck_assert_str_eq(dataset_class_name(set, 3), "3"); /* no list of names is there */
    ck_assert_str_eq(dataset_class_name(set, 10), "?");
    dataset_close(&set);
    ck_assert_ptr_null(set);
    dataset_close(&set);
    set = open_set(&s, SPLIT_EVAL, &info);
    ck_assert_int_eq(info.count, 7);
    check_record(set, 6, 6, 10);
    dataset_close(&set);
    remove_folder();
}
END_TEST

START_TEST(cifar100_takes_the_fine_label_and_the_names)
{
    dataset_info info;
    make_folder();
    put_records("train.bin", 150, 100);
    put_records("test.bin", 120, 100);
    put_file("fine_label_names.txt", "apple\naquarium_fish\r\n", 22);
    spec s = data_spec(DATA_CIFAR100, folder);
    dataset *set = open_set(&s, SPLIT_TRAIN, &info);
    ck_assert_int_eq(info.count, 150);
    ck_assert_int_eq(info.classes, 100);
    check_record(set, 0, 0, 100);
    check_record(set, 149, 149, 100);
    ck_assert_str_eq(dataset_class_name(set, 0), "apple");
    ck_assert_str_eq(dataset_class_name(set, 1), "aquarium_fish");
    ck_assert_str_eq(dataset_class_name(set, 99), "99");
    dataset_close(&set);
    remove_folder();
}
END_TEST

START_TEST(damaged_cifar_files_are_named_with_what_was_expected)
{
    make_folder();
    put_cifar10("");
    spec s = data_spec(DATA_CIFAR10, folder);
    size_t length = 0;
    uint8_t *bytes = make_records(13, 10, &length);
    put_file("data_batch_3.bin", bytes, length - 1);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "data_batch_3.bin", "39948 bytes", "truncated",
                      "3073", "30730000");
    put_file("data_batch_3.bin", bytes, 0);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "data_batch_3.bin", "empty");
    bytes[5 * 3073] = 10;
    put_file("data_batch_3.bin", bytes, length);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "data_batch_3.bin", "record 5", "label 10",
                      "0 to 9");
    free(bytes);
    bytes = calloc(1, 2 * 3073 + 100);
    put_file("data_batch_3.bin", bytes, 2 * 3073 + 100);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "data_batch_3.bin", "oversized",
                      "2 records and 100 bytes");
    free(bytes);
    char path[600];
    make_parents("data_batch_3.bin", path);
    unlink(path);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "data_batch_3.bin", "No such file");
    dataset_info info; /* the other split is whole */
    dataset *set = open_set(&s, SPLIT_EVAL, &info);
    dataset_close(&set);
    remove_folder();
}
END_TEST

START_TEST(paths_without_a_set_are_named_with_what_belongs_there)
{
    char path[300];
    make_folder();
    snprintf(path, sizeof path, "%s/nowhere", folder);
    spec s = data_spec(DATA_CIFAR10, path);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "data.path", path, "No such file");
    put_file("nowhere", "x", 1);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "data.path", path, "not a folder");
    s.data.path = folder;
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "CIFAR-10", folder, "data_batch_1.bin");
    put_folder("cifar-10-batches-py");
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "Python version");
    s.data.kind = DATA_CIFAR100;
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "CIFAR-100", "train.bin");
    s.data.path = path + strlen(path);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "data.path", "not given");
    s.data.kind = DATA_FOLDER;
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "data.path", "not given");
    remove_folder();
}
END_TEST

/* -- folders -- */

static void put_class(const char *split, const char *class_name, int images)
{
    for (int i = 0; i < images; i++) {
        char name[200];
        snprintf(name, sizeof name, "%s/%s/%c.png", split, class_name, 'a' + i);
        put_encoded(name, encode_rgb_png(6 + i, 5, 0));
    }
}

START_TEST(folders_are_sorted_and_pass_over_what_is_no_image)
{
    dataset_info info;
    make_folder();
    put_class("train", "zebra", 2);
    put_class("train", "ant", 3);
    put_class("val", "ant", 1);
    put_class("val", "zebra", 1);
    put_encoded("train/ant/B.JPG", encode_rgb_jpeg(20, 10)); /* 'B' sorts before 'a' */
    put_encoded("train/zebra/z.Jpeg", encode_rgb_jpeg(30, 10));
    put_file("train/ant/notes.txt", "x", 1);
    put_file("train/ant/.hidden.png", "x", 1);
    put_file("train/ant/png", "x", 1);
    put_folder("train/ant/below.png");
    put_folder("train/.git");
    put_file("train/readme.png", "x", 1);
    spec s = data_spec(DATA_FOLDER, folder);
    dataset *set = open_set(&s, SPLIT_TRAIN, &info);
    ck_assert_int_eq(info.count, 7);
    ck_assert_int_eq(info.classes, 2);
    ck_assert_str_eq(dataset_class_name(set, 0), "ant");
    ck_assert_str_eq(dataset_class_name(set, 1), "zebra");
    static const int width[] = {20, 6, 7, 8, 6, 7, 30}, label[] = {0, 0, 0, 0, 1, 1, 1};
    image im = {0};
    for (int round = 0; round < 2; round++) /* decoded, then from memory */
        for (int i = 0; i < 7; i++) {
            int32_t got = -1;
            assert_ok(dataset_read(set, i, 0, &im, &got, &err));
            ck_assert_int_eq(im.w, width[i]);
            ck_assert_int_eq(got, label[i]);
            if (i == 3)
                ck_assert_int_eq(at(&im, 1, 7, 4), pixel_value(7, 4, 1));
        }
    image_fini(&im);
    dataset_close(&set);
    remove_folder();
}
END_TEST

START_TEST(an_image_is_decoded_again_for_another_size)
{
    dataset_info info;
    image im = {0};
    int32_t label;
    make_folder();
    put_encoded("train/a/1.jpg", encode_rgb_jpeg(64, 64));
    put_encoded("train/b/1.jpg", encode_rgb_jpeg(64, 64));
    spec s = data_spec(DATA_FOLDER, folder);
    dataset *set = open_set(&s, SPLIT_TRAIN, &info);
    static const int asked[] = {16, 16, 0, 16, 32}, side[] = {16, 16, 64, 16, 32};
    for (int i = 0; i < 5; i++) {
        assert_ok(dataset_read(set, 0, asked[i], &im, &label, &err));
        ck_assert_int_eq(im.w, side[i]);
    }
    image_fini(&im);
    dataset_close(&set);
    remove_folder();
}
END_TEST

START_TEST(a_damaged_image_is_named_by_its_path)
{
    dataset_info info;
    image im = {0};
    int32_t label = 7;
    make_folder();
    put_class("train", "a", 1);
    put_file("train/b/empty.jpg", "", 0);
    put_file("train/c/text.jpg", "no image", 8);
    encoded e = encode_rgb_jpeg(32, 32);
    put_file("train/d/cut.jpg", e.bytes, e.length / 2);
    free(e.bytes);
    spec s = data_spec(DATA_FOLDER, folder);
    dataset *set = open_set(&s, SPLIT_TRAIN, &info);
    assert_fails(dataset_read(set, 1, 0, &im, &label, &err), STATUS_DATA, folder,
                 "/train/b/empty.jpg: ", "empty");
    assert_fails(dataset_read(set, 2, 0, &im, &label, &err), STATUS_DATA,
                 "/train/c/text.jpg: ", "neither");
    assert_fails(dataset_read(set, 3, 0, &im, &label, &err), STATUS_DATA,
                 "/train/d/cut.jpg: ", "damaged JPEG");
    ck_assert_int_eq(label, 7);
    char path[600];
    make_parents("train/a/a.png", path);
    unlink(path); /* gone after the listing */
    assert_fails(dataset_read(set, 0, 0, &im, &label, &err), STATUS_DATA, path, "No such file");
    image_fini(&im);
    dataset_close(&set);
    remove_folder();
}
END_TEST

START_TEST(folders_that_are_no_set_are_named)
{
    make_folder();
    spec s = data_spec(DATA_FOLDER, folder);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "data.path", folder, "no folder train");
    put_folder("train");
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "/train holds no class folders");
    put_class("train", "cat", 1);
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "/train holds one class only (cat)");
    put_folder("train/dog");
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "/train/dog: an empty class");
    put_class("train", "dog", 1);
    assert_open_fails(&s, SPLIT_EVAL, STATUS_BAD_INPUT, "no folder val, validation or test");
    put_class("test", "cat", 1);
    put_class("test", "cow", 1);
    assert_open_fails(&s, SPLIT_EVAL, STATUS_DATA, "class cow is in test, but not in train");
    put_class("test", "dog", 1);
    put_class("train", "cow", 1);
    put_class("train", "ant", 1);
    assert_open_fails(&s, SPLIT_EVAL, STATUS_DATA, "class ant is in train, but not in test");
    s.data.kind = DATA_CIFAR10;
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_DATA, "4 classes", "10 of CIFAR-10");
    remove_folder();
}
END_TEST

START_TEST(cifar_is_accepted_as_an_image_folder)
{
    dataset_info info;
    make_folder();
    for (int c = 0; c < 10; c++) {
        char name[20] = {(char)('a' + c), 0};
        put_class("train", name, 2);
        put_class("test", name, 1);
    }
    spec s = data_spec(DATA_CIFAR10, folder);
    dataset *set = open_set(&s, SPLIT_TRAIN, &info);
    ck_assert_int_eq(info.count, 20);
    ck_assert_int_eq(info.classes, 10);
    dataset_close(&set);
    set = open_set(&s, SPLIT_EVAL, &info);
    ck_assert_int_eq(info.count, 10);
    dataset_close(&set);
    remove_folder();
}
END_TEST

/* -- parts, hashes, resolving -- */

START_TEST(a_subset_is_fixed_spread_out_and_without_repeats)
{
    dataset_info info;
    make_folder();
    put_records("train.bin", 250, 100);
    put_records("test.bin", 90, 100);
    spec s = data_spec(DATA_CIFAR100, folder);
    int first[60];
    for (int round = 0; round < 2; round++) {
        s.data.subset = 60;
        s.train.seed = (uint64_t)round; /* of no account */
        dataset *set = open_set(&s, SPLIT_TRAIN, &info);
        ck_assert_int_eq(info.count, 60);
        image im = {0};
        int upper = 0, before = -1;
        for (int i = 0; i < 60; i++) {
            int32_t label;
            assert_ok(dataset_read(set, i, 0, &im, &label, &err));
            int record = 0; /* found again by pixel and label */
            while (!((uint8_t)(record * 31) == im.pixels[0] && record % 100 == label))
                record++;
            ck_assert_int_gt(record, before);
            before = record;
            upper += record >= 125;
            if (round == 0)
                first[i] = record;
            ck_assert_int_eq(first[i], record);
        }
        ck_assert_int_gt(upper, 15);
        ck_assert_int_lt(upper, 45);
        image_fini(&im);
        dataset_close(&set);
    }
    s.data.eval_subset = 90;
    dataset *set = open_set(&s, SPLIT_EVAL, &info);
    ck_assert_int_eq(info.count, 90);
    dataset_close(&set);
    s.data.subset = 251;
    assert_open_fails(&s, SPLIT_TRAIN, STATUS_BAD_INPUT, "data.subset is 251", "250 images");
    s.data.eval_subset = 91;
    assert_open_fails(&s, SPLIT_EVAL, STATUS_BAD_INPUT, "data.eval_subset is 91", "90 images");
    remove_folder();
}
END_TEST

static void hash_of(const spec *s, char ret[65])
{
    assert_ok(dataset_hash(s, ret, &err));
    ck_assert_uint_eq(strlen(ret), 64);
    ck_assert_uint_eq(strspn(ret, "0123456789abcdef"), 64);
}

/* SHA-256 of the bytes of put_cifar10's files, one after another (FORMATS 2). */
static void hash_of_bytes(char ret[65])
{
    static const char *const files[] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                        "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};
    sha256 h;
    sha256_init(&h);
    for (int i = 0; i < 6; i++) {
        char path[600], *bytes = NULL;
        size_t length = 0;
        make_parents(files[i], path);
        assert_ok(file_read_all(path, 1 << 20, &bytes, &length, &err));
        sha256_update(&h, bytes, length);
        free(bytes);
    }
    sha256_final_hex(&h, ret);
}

START_TEST(the_hash_of_a_binary_set_is_that_of_its_bytes_wherever_it_lies)
{
    char a[65], b[65];
    make_folder();
    put_cifar10("");
    put_cifar10("sub/cifar-10-batches-bin/");
    spec s = data_spec(DATA_CIFAR10, folder);
    hash_of(&s, a);
    hash_of_bytes(b);
    ck_assert_str_eq(a, b);
    char path[600];
    make_parents("sub", path);
    s.data.path = path;
    hash_of(&s, b);
    ck_assert_str_eq(a, b);
    size_t length = 0;
    uint8_t *bytes = make_records(7, 10, &length);
    bytes[length - 1] ^= 1;
    put_file("sub/cifar-10-batches-bin/test_batch.bin", bytes, length);
    free(bytes);
    hash_of(&s, b);
    ck_assert_str_ne(a, b);
    make_parents("sub/cifar-10-batches-bin/data_batch_2.bin", path);
    unlink(path);
    make_parents("sub", path);
    strcpy(b, "untouched");
    assert_fails(dataset_hash(&s, b, &err), STATUS_DATA, "data_batch_2.bin");
    ck_assert_str_eq(b, "untouched");
    remove_folder();
}
END_TEST

START_TEST(the_hash_of_a_folder_sees_names_sizes_and_first_bytes_of_both_splits)
{
    char base[65], now[65];
    uint8_t bytes[8192] = {1, 2, 3};
    make_folder();
    put_file("train/a/1.png", bytes, 5000);
    put_file("train/b/1.png", bytes, 5000);
    put_file("test/a/1.png", bytes, 5000);
    put_file("test/b/1.png", bytes, 5000);
    spec s = data_spec(DATA_FOLDER, folder);
    hash_of(&s, base);
    put_file("test/b/1.png", bytes, 5001);
    hash_of(&s, now);
    ck_assert_str_ne(base, now);
    bytes[4095] = 9;
    put_file("test/b/1.png", bytes, 5000);
    hash_of(&s, now);
    ck_assert_str_ne(base, now);
    bytes[4095] = 0;
    bytes[4096] = 9; /* beyond what is looked at */
    put_file("test/b/1.png", bytes, 5000);
    hash_of(&s, now);
    ck_assert_str_eq(base, now);
    put_file("train/b/2.png", bytes, 5000);
    hash_of(&s, now);
    ck_assert_str_ne(base, now);
    remove_folder();
}
END_TEST

START_TEST(the_hash_of_the_procedural_set_is_that_of_its_parameters)
{
    char base[65], now[65];
    spec s = data_spec(DATA_SYNTHETIC, folder);
    hash_of(&s, base);
    int64_t *const field[] = {&s.data.train_count, &s.data.eval_count, &s.data.size,
                              &s.model.classes, (int64_t *)&s.data.seed};
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
        int64_t before = *field[i];
        *field[i] = 77;
        hash_of(&s, now);
        ck_assert_msg(strcmp(base, now) != 0, "field %zu", i);
        *field[i] = before;
    }
    s.data.size = 32; /* the same, said openly */
    s.model.classes = 10;
    s.data.subset = 50; /* of the spec, not of the data */
    hash_of(&s, now);
    ck_assert_str_eq(base, now);
}
END_TEST

START_TEST(resolving_fills_in_what_is_auto_and_nothing_else)
{
    static const struct {
        int kind, classes, size, augment, normalise;
    } row[] = {{DATA_SYNTHETIC, 10, 32, AUGMENT_CROP, NORMALISE_CIFAR10},
               {DATA_CIFAR10, 10, 32, AUGMENT_CROP, NORMALISE_CIFAR10},
               {DATA_CIFAR100, 100, 32, AUGMENT_CROP, NORMALISE_CIFAR100},
               {DATA_FOLDER, 3, 224, AUGMENT_RRC, NORMALISE_IMAGENET}};
    make_folder();
    put_class("train", "x", 1);
    put_class("train", "y", 1);
    put_class("train", "z", 1);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        spec s = data_spec(row[i].kind, folder);
        assert_ok(spec_resolve_data(&s, &err));
        ck_assert_int_eq(s.model.classes, row[i].classes);
        ck_assert_int_eq(s.data.size, row[i].size);
        ck_assert_int_eq(s.data.augment, row[i].augment);
        ck_assert_int_eq(s.data.normalise, row[i].normalise);
        assert_ok(spec_resolve_data(&s, &err)); /* a resolved spec stays as it is */
        s.data.size = 16;
        s.data.augment = AUGMENT_NONE;
        s.data.normalise = NORMALISE_NONE;
        assert_ok(spec_resolve_data(&s, &err));
        ck_assert_int_eq(s.data.size, 16);
        ck_assert_int_eq(s.data.augment, AUGMENT_NONE);
        ck_assert_int_eq(s.data.normalise, NORMALISE_NONE);
    }
    spec s = data_spec(DATA_FOLDER, folder);
    s.model.classes = 5;
    assert_fails(spec_resolve_data(&s, &err), STATUS_BAD_INPUT, "model.classes is 5", "has 3");
    ck_assert_int_eq(s.data.size, 0);
    s.data.kind = DATA_SYNTHETIC; /* has as many as are asked for */
    assert_ok(spec_resolve_data(&s, &err));
    ck_assert_int_eq(s.model.classes, 5);
    remove_folder();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("data");
    TCase *cifar = tcase_create("cifar");
    tcase_add_loop_test(cifar, cifar10_joins_its_five_files, 0, 3);
    tcase_add_test(cifar, cifar100_takes_the_fine_label_and_the_names);
    tcase_add_test(cifar, damaged_cifar_files_are_named_with_what_was_expected);
    tcase_add_test(cifar, paths_without_a_set_are_named_with_what_belongs_there);
    tcase_add_test(cifar, cifar_is_accepted_as_an_image_folder);
    suite_add_tcase(suite, cifar);
    TCase *folders = tcase_create("folders");
    tcase_add_test(folders, folders_are_sorted_and_pass_over_what_is_no_image);
    tcase_add_test(folders, an_image_is_decoded_again_for_another_size);
    tcase_add_test(folders, a_damaged_image_is_named_by_its_path);
    tcase_add_test(folders, folders_that_are_no_set_are_named);
    suite_add_tcase(suite, folders);
    TCase *whole = tcase_create("whole");
    tcase_add_test(whole, a_subset_is_fixed_spread_out_and_without_repeats);
    tcase_add_test(whole, the_hash_of_a_binary_set_is_that_of_its_bytes_wherever_it_lies);
    tcase_add_test(whole, the_hash_of_a_folder_sees_names_sizes_and_first_bytes_of_both_splits);
    tcase_add_test(whole, the_hash_of_the_procedural_set_is_that_of_its_parameters);
    tcase_add_test(whole, resolving_fills_in_what_is_auto_and_nothing_else);
    suite_add_tcase(suite, whole);
    return run_suite(suite);
}
