/*
 * Errors in a world of several ranks: one line, all ranks leave with the same code at the same
 * step, the lowest rank that is to blame is named.
 */
#include <png.h>

#include "process_testing.h"
#include "trainer/data/loader.h"

static process train(int ranks, const char *const sets[])
{
    const char *command[MAX_ARGUMENTS] = {RINGTRAIN, "train", in_folder("job.json")};
    int count = 3;
    for (int i = 0; sets[i]; i++) {
        command[count++] = "--set";
        command[count++] = sets[i];
    }
    command[count] = NULL;
    return run_command((launch){.ranks = ranks}, command);
}
#define TRAIN(ranks, ...) train(ranks, (const char *const[]){__VA_ARGS__, NULL})

/* An error that all ranks find names none of them, and is said once. */
START_TEST(common_errors)
{
    process p = TRAIN(3, "train.epochs=1");
    ASSERT_ERROR(&p, 2, "train.batch 16", "3");
    ck_assert_ptr_null(strstr(p.err, "rank 0:"));
    p = TRAIN(4, "train.shard=8");
    ASSERT_ERROR(&p, 2, "2 shards", "4 ranks");
    p = TRAIN(2, "resources.workers=4");
    ASSERT_ERROR(&p, 2, "resources.workers", "mpirun -np 4");
    p = TRAIN(2, "train.epoch=1");
    ASSERT_ERROR(&p, 2, "train.epochs");
    p = TRAIN(2, "data.kind=cifar10", text("data.path=%s/none", folder), "model.classes=10");
    ASSERT_ERROR(&p, 2, "/none");
    ck_assert(!exists(in_folder("run")));
}
END_TEST

/* Errors that each rank finds before it knows of the others, said once, however they race. */
START_TEST(errors_before_the_world)
{
    for (int i = 0; i < 5; i++) {
        process p = TRAIN(4, "train.epoch=1");
        ASSERT_ERROR(&p, 2, "train.epochs");
    }
    write_text(in_folder("job.json"), "{");
    process p = TRAIN(2, "train.epochs=1");
    ASSERT_ERROR(&p, 2, "job.json");
}
END_TEST

/* A rank that fails alone, while the others wait for it, says so itself. */
START_TEST(error_of_one_rank_before_the_world)
{
    const char *const command[] = {
        "bash", "-c",
        text("exec '%s' train '%s' --set train.epochs=$((OMPI_COMM_WORLD_RANK == 1 ? 0 : 1))",
             RINGTRAIN, in_folder("job.json")),
        NULL};
    process p = run_command((launch){.ranks = 2}, command);
    ASSERT_ERROR(&p, 2, "train.epochs");
    ck_assert(!exists(in_folder("run")));
}
END_TEST

/* A PNG of 8x8 pixels. */
static void write_image(const char *path, int shade)
{
    png_image png = {
        .version = PNG_IMAGE_VERSION, .width = 8, .height = 8, .format = PNG_FORMAT_RGB};
    unsigned char pixels[8 * 8 * 3];
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (unsigned char)(shade + 3 * (int)i);
    write_text(path, "");
    ck_assert_int_ne(png_image_write_to_file(&png, path, 0, pixels, 0, NULL), 0);
}

static void write_images(int images)
{
    for (int c = 0; c < 2; c++)
        for (int i = 0; i < images + 4; i++)
            write_image(
                text("%s/images/%s/class%d/%03d.png", folder, i < images ? "train" : "val", c, i),
                40 * c + i);
}

/* Sample `sample` of the images, in the loader's order. */
static const char *image_path(int sample, int images)
{
    return text("%s/images/train/class%d/%03d.png", folder, sample / images, sample % images);
}

/* Of 64 images, the one at each place of the first epoch in turn is damaged: whose shard it is in
 * and at which step is known from the place alone. */
START_TEST(data_error_on_one_rank)
{
    enum {
        IMAGES = 32,
        SEED = 1
    };
    static const int places[] = {3, 12, 24 + 16, 48 + 4};
    int place = places[_i], step = place / 16, rank = place % 16 / 8;
    write_images(IMAGES);
    int sample = (int)loader_sample(SEED, 0, 2 * IMAGES, place);
    const char *victim = image_path(sample, IMAGES);
    write_text(victim, "no image");
    process p = TRAIN(2, "data.kind=folder", text("data.path=%s/images", folder), "model.classes=0",
                      "data.size=8", "data.augment=none", text("train.seed=%d", SEED));
    ASSERT_ERROR(&p, 3, text("rank %d: sample %d", rank, sample), victim);
    assert_result(in_folder("run"), "failed", 3);
    cJSON *result = read_attempt(in_folder("run"), 1, "result.json");
    ck_assert_int_eq((int)json_number(result, "steps"), step);
    ck_assert_ptr_nonnull(strstr(json_string(result, "error"), victim));
    /* the same world goes on once the image is whole */
    write_image(victim, 5);
    p = TRAIN(2, "data.kind=folder", text("data.path=%s/images", folder), "model.classes=0",
              "data.size=8", "data.augment=none", text("train.seed=%d", SEED),
              text("out=%s/again", folder));
    assert_code(&p, 0);
}
END_TEST

START_TEST(loss_runs_away)
{
    process p = TRAIN(2, "train.lr=1000", "train.milestones=[]", "train.epochs=200",
                      "rpg.init_std=1000", "train.momentum=0.99");
    ASSERT_ERROR(&p, 4, "not finite");
    assert_result(in_folder("run"), "failed", 4);
}
END_TEST

/* Only rank 0 writes, and no file of its may be that large. */
START_TEST(disk_full_while_checkpointing)
{
    const char *const command[] = {RINGTRAIN, "train", in_folder("job.json"), NULL};
    process p = run_command((launch){.ranks = 2, .file_limit = 0}, command);
    assert_code(&p, 0);
    struct stat info;
    ck_assert_int_eq(stat(in_folder("run/last.safetensors"), &info), 0);
    /* bash: mpirun's own files are larger than the limit */
    const char *const limited[] = {"bash", "-c",
                                   text("ulimit -f %ld; exec '%s' train '%s' --set 'out=%s/full'",
                                        (long)(info.st_size - 1) / 1024, RINGTRAIN,
                                        in_folder("job.json"), folder),
                                   NULL};
    p = run_command((launch){.ranks = 2}, limited);
    ASSERT_ERROR(&p, 5, "attempt-1/ckpt-");
    assert_result(in_folder("full"), "failed", 5);
    ck_assert_int_eq(count_leftovers(in_folder("full")), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("failures");
    TCase *tcase = process_case("ranks", setup_job);
    tcase_add_test(tcase, common_errors);
    tcase_add_test(tcase, errors_before_the_world);
    tcase_add_test(tcase, error_of_one_rank_before_the_world);
    tcase_add_loop_test(tcase, data_error_on_one_rank, 0, 4);
    tcase_add_test(tcase, loss_runs_away);
    tcase_add_test(tcase, disk_full_while_checkpointing);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
