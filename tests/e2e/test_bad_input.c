/*
 * What goes wrong, each with its exit code, one line that says what and where, and nothing
 * half-written: specs, data, memory, checkpoints, plans, disks, numbers that run away.
 */
#include <png.h>

#include "process_testing.h"

#define JOB in_folder("job.json")
#define RUN in_folder("run")

/* Runs the job with these settings, NULL-ended. */
static process train(launch l, const char *const sets[])
{
    const char *command[MAX_ARGUMENTS] = {RINGTRAIN, "train", JOB};
    int count = 3;
    for (int i = 0; sets[i]; i++) {
        command[count++] = "--set";
        command[count++] = sets[i];
    }
    command[count] = NULL;
    return run_command(l, command);
}
#define TRAIN(...) train((launch){0}, (const char *const[]){__VA_ARGS__, NULL})

/* Refused before anything was written. */
static void assert_untouched(void)
{
    ck_assert_msg(!exists(RUN), "%s was made", RUN);
}

/* ---- specs ---- */

START_TEST(bad_settings)
{
    static const char *const cases[][3] = {
        {"train.epoch=3", "train.epoch", "train.epochs"},
        {"trian.lr=0.1", "trian.lr", "train.lr"},
        {"train.lr=fast", "train.lr", "fast"},
        {"train.epochs=2.5", "train.epochs", "2.5"},
        {"train.epochs=0", "train.epochs", "0"},
        {"train.momentum=1", "train.momentum", "1"},
        {"rpg.scope=globul", "rpg.scope", "global"},
        {"rpg.share=0.5", "rpg.size", "rpg.share"},
        {"rpg.size=0", "rpg.size", "rpg.share"},
        {"train.shard=5", "train.shard", "16"},
        {"train.batch=65", "train.batch", "65"},
        {"resources.workers=2", "resources.workers", "2"},
        {"data.kind=cifar10", "data.path", "cifar10"},
        {"train.precision=bf16", "train.precision", "bf16"},
        {"backend.name=quantum", "backend.name", "cpu"},
        {"name=a/b", "name", "a/b"},
        {"train.lr", "train.lr", "="},
        {"backend.plan=/no/such/plan.json", "plan.json", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        process p = TRAIN(cases[i][0]);
        ASSERT_ERROR(&p, 2, cases[i][1], cases[i][2]);
        ck_assert_msg(count_lines(p.err) == 1, "more than one line: %s", p.err);
        assert_untouched();
    }
}
END_TEST

/* Without a GPU: the spec is right, the machine is not. Corrected, it runs in the same folder. */
START_TEST(precision_of_another_machine)
{
    if (exists("/dev/nvidiactl"))
        return;
    process p = TRAIN("train.precision=bf16", "backend.name=auto");
    ASSERT_ERROR(&p, 2, "train.precision bf16", "GPU");
    assert_untouched();
    p = TRAIN("backend.name=cuda");
    ck_assert_int_ne(p.code, 0);
    assert_untouched();
}
END_TEST

START_TEST(bad_files)
{
    static const char *const cases[][3] = {
        {"{\n \"train\": {\"epochs\": 3,\n \"epoch\": 4}}", ":3", "train.epoch"},
        {"{\"train\": {\"lr\": 0.1, \"lr\": 0.2}}", "train.lr", ""},
        {"{\"train\": {\"lr\": \"0.1\"}}", "train.lr", ""},
        {"{\"train\": 3}", "train", ""},
        {"{\"train\": {\"lr\": 0.1}", ":1", ""},
        {"[]", "job.json", ""},
        {"", "job.json", ""},
        {"{\"train\": {\"seed\": 9007199254740993}}", "train.seed", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text(JOB, cases[i][0]);
        process p = TRAIN(text("out=%s", RUN));
        ASSERT_ERROR(&p, 2, cases[i][1], cases[i][2], "job.json");
        assert_untouched();
    }
}
END_TEST

START_TEST(ring_larger_than_memory)
{
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (memory > 24e9)
        return; /* a ring has at most 2^31 - 1 elements, and here they fit */
    process p = TRAIN("rpg.size=2147483647");
    ASSERT_ERROR(&p, 2, "memory", "rpg.size");
    assert_untouched();
}
END_TEST

/* Not the ring, but what a step computes. */
START_TEST(activations_larger_than_memory)
{
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (memory > 150e9)
        return;
    process p =
        TRAIN("rpg.scope=none", "rpg.size=0", "model.width=512", "data.size=256", "train.batch=64");
    ASSERT_ERROR(&p, 2, "memory", "activations", "train.batch");
    ck_assert_int_eq(count_lines(p.err), 1);
    assert_untouched();
}
END_TEST

START_TEST(out_is_a_file)
{
    write_text(RUN, "mine");
    process p = TRAIN("train.epochs=1");
    ck_assert(p.code == 2 || p.code == 5);
    ASSERT_ERROR(&p, p.code, RUN);
    ck_assert_str_eq(read_file(RUN, NULL), "mine");
}
END_TEST

/* ---- data ---- */

START_TEST(missing_path)
{
    process p = TRAIN("data.kind=cifar10", text("data.path=%s/none", folder), "model.classes=10");
    ASSERT_ERROR(&p, 2, "/none");
    p = TRAIN("data.kind=folder", text("data.path=%s/none", folder));
    ASSERT_ERROR(&p, 2, "/none");
    assert_untouched();
}
END_TEST

static void write_cifar(const char *name, size_t length)
{
    char *bytes = calloc(1, length + 1);
    ck_assert_ptr_nonnull(bytes);
    write_file(text("%s/cifar/%s", folder, name), bytes, length);
    free(bytes);
}

START_TEST(damaged_cifar)
{
    static const size_t whole = 40 * 3073;
    static const struct {
        long off;
        const char *file;
    } cases[] = {
        {-1, "data_batch_3.bin"}, {1, "data_batch_3.bin"}, {1000 - 40 * 3073, "test_batch.bin"}};
    for (int file = 1; file <= 5; file++)
        write_cifar(text("data_batch_%d.bin", file), whole);
    write_cifar("test_batch.bin", whole);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_cifar(cases[i].file, whole + (size_t)cases[i].off);
        process p = TRAIN("data.kind=cifar10", text("data.path=%s/cifar", folder), "data.size=32",
                          "model.classes=10");
        ASSERT_ERROR(&p, 3, cases[i].file, "bytes");
        assert_untouched();
        write_cifar(cases[i].file, whole);
    }
    size_t length = 0;
    char *bytes = read_file(in_folder("cifar/test_batch.bin"), &length);
    bytes[7 * 3073] = 10; /* a label that CIFAR-10 does not have */
    write_file(in_folder("cifar/test_batch.bin"), bytes, length);
    process p = TRAIN("data.kind=cifar10", text("data.path=%s/cifar", folder), "data.size=32",
                      "model.classes=10");
    ASSERT_ERROR(&p, 3, "test_batch.bin", "record 7", "label 10");
    assert_untouched();
}
END_TEST

/* A PNG of 8x8 pixels. */
static void write_image(const char *path, int shade)
{
    png_image image = {
        .version = PNG_IMAGE_VERSION, .width = 8, .height = 8, .format = PNG_FORMAT_RGB};
    unsigned char pixels[8 * 8 * 3];
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (unsigned char)(shade + 3 * (int)i);
    write_text(path, "");
    ck_assert_int_ne(png_image_write_to_file(&image, path, 0, pixels, 0, NULL), 0);
}

/* Two classes with `images` each for training, 4 each for validation. */
static void write_images(int classes, int images)
{
    for (int c = 0; c < classes; c++)
        for (int i = 0; i < images + 4; i++)
            write_image(
                text("%s/images/%s/class%d/%03d.png", folder, i < images ? "train" : "val", c, i),
                40 * c + i);
}
#define IMAGES \
    "data.kind=folder", text("data.path=%s/images", folder), "model.classes=0", "data.size=8"

START_TEST(one_class)
{
    write_images(1, 40);
    process p = TRAIN(IMAGES);
    ASSERT_ERROR(&p, 3, "images", "class");
    assert_untouched();
}
END_TEST

/* What the first epoch's record says. */
static int replaced_in_training(const char *run)
{
    cJSON *record = NULL;
    records r = merged_records(run);
    cJSON_ArrayForEach (record, r.all) {
        if (strcmp(json_string(record, "kind"), "epoch") == 0)
            return (int)json_number(record, "skipped");
    }
    return -1;
}

START_TEST(damaged_images)
{
    static const char *const contents[] = {"", "\x89PNG\r\n\x1a\nnot at all", "plain text"};
    write_images(2, 20);
    const char *victim = in_folder("images/train/class1/007.png");
    for (size_t i = 0; i < sizeof contents / sizeof *contents; i++) {
        write_text(victim, contents[i]);
        const char *out = text("out=%s/%zu", folder, i), *run = in_folder(text("%zu", i));
        process p = TRAIN(IMAGES, out);
        ASSERT_ERROR(&p, 3, "class1/007.png");
        if (exists(run)) { /* found while training */
            assert_result(run, "failed", 3);
            cJSON *result = read_attempt(run, 1, "result.json");
            ck_assert_ptr_nonnull(strstr(json_string(result, "error"), "class1/007.png"));
        }
        const char *skipping = in_folder(text("skip-%zu", i)); /* one step of all 40 images */
        p = TRAIN(IMAGES, text("out=%s", skipping), "data.on_error=skip", "train.epochs=1",
                  "train.batch=40");
        assert_code(&p, 0);
        ck_assert_int_eq(replaced_in_training(skipping), 1);
    }
}
END_TEST

START_TEST(too_few_images)
{
    process p = TRAIN("data.train_count=15");
    ASSERT_ERROR(&p, 2, "train.batch", "15");
    assert_untouched();
}
END_TEST

/* ---- checkpoints ---- */

/* The last two of a whole run's checkpoints are 18 and 20; what is damaged is 20. */
START_TEST(damaged_checkpoint)
{
    process p = TRAIN("train.checkpoint_every=3", text("out=%s/whole", folder));
    assert_code(&p, 0);
    p = TRAIN("train.checkpoint_every=3");
    assert_code(&p, 0);
    unlink(text("%s/last.safetensors", RUN));
    const char *victim = text("%s/attempt-1/ckpt-20.safetensors", RUN);
    size_t length = 0;
    char *bytes = read_file(victim, &length);
    ck_assert_ptr_nonnull(bytes);
    if (_i == 0)
        write_file(victim, bytes, length / 2);
    else if (_i == 1)
        write_file(victim, bytes, 0);
    else {
        size_t at = _i == 2 ? 20 : _i == 3 ? length / 3 : length - 100; /* head, middle, tensors */
        bytes[at] ^= 4;
        write_file(victim, bytes, length);
    }
    p = TRAIN("train.checkpoint_every=3");
    assert_code(&p, 0);
    ck_assert_msg(strstr(p.err, "ckpt-20.safetensors") && strstr(p.err, "passed over"),
                  "no note: %s", p.err);
    ck_assert_ptr_nonnull(strstr(p.err, "(step 18 of 20)"));
    assert_same_file(text("%s/last.safetensors", RUN), in_folder("whole/last.safetensors"));
    assert_same_log(RUN, in_folder("whole"));
    /* and to look at it: refused by name */
    write_file(victim, bytes, length / 2);
    p = RUN_RINGTRAIN("eval", victim);
    ASSERT_ERROR(&p, 2, "ckpt-20.safetensors");
}
END_TEST

/* Put there by somebody: a checkpoint of another spec is refused, not passed over. */
START_TEST(checkpoint_of_another_spec)
{
    process p = TRAIN("train.lr=0.04", text("out=%s/other", folder));
    assert_code(&p, 0);
    p = TRAIN("train.epochs=5");
    assert_code(&p, 0);
    unlink(text("%s/last.safetensors", RUN));
    size_t length = 0;
    char *bytes = read_file(in_folder("other/attempt-1/ckpt-20.safetensors"), &length);
    write_file(text("%s/attempt-1/ckpt-20.safetensors", RUN), bytes, length);
    p = TRAIN("train.epochs=5");
    ASSERT_ERROR(&p, 2, "ckpt-20.safetensors", "train.lr");
    assert_result(RUN, "failed", 2);
}
END_TEST

/* Threads are part of the plan, outside exact mode. */
START_TEST(checkpoint_of_another_plan)
{
    if (strcmp(test_backend(0), "cpu") != 0)
        return; /* the reference has no threads */
    process p = START_RINGTRAIN((launch){0}, "train", JOB, "--set", "train.epochs=100000");
    wait_for_step(&p, RUN, 1, 3);
    process_signal(&p, SIGTERM);
    process_wait(&p, PROCESS_LIMIT);
    assert_code(&p, 143);
    const char *log_before = read_file(text("%s/attempt-1/metrics.jsonl", RUN), NULL);
    p = TRAIN("train.epochs=100000", "resources.threads=2");
    ASSERT_ERROR(&p, 2, "threads", "on_plan_change");
    assert_result(RUN, "failed", 2);
    static const char *const ways[] = {"continue", "restart"};
    for (int i = 0; i < 2; i++) {
        int attempt = last_attempt(RUN) + 1;
        p = START_RINGTRAIN((launch){0}, "train", JOB, "--set", "train.epochs=100000", "--set",
                            "resources.threads=2", "--set",
                            text("backend.on_plan_change=%s", ways[i]), "--set",
                            i == 0 ? "resources.threads=2" : "resources.threads=3");
        wait_for_step(&p, RUN, attempt, 1);
        process_signal(&p, SIGTERM);
        process_wait(&p, PROCESS_LIMIT);
        assert_code(&p, 143);
        cJSON *run = read_attempt(RUN, attempt, "run.json");
        ck_assert_int_eq(cJSON_IsNull(cJSON_GetObjectItem(run, "resumed_from")), i == 1);
    }
    ck_assert_str_eq(read_file(text("%s/attempt-1/metrics.jsonl", RUN), NULL), log_before);
}
END_TEST

/* ---- disks ---- */

/* No file may grow beyond what the records need, less than any checkpoint takes (a number in it may
 * have a digit less than in the last one). */
START_TEST(disk_full_while_checkpointing)
{
    process p = TRAIN(text("out=%s/whole", folder));
    assert_code(&p, 0);
    p = START_RINGTRAIN((launch){0}, "train", JOB);
    wait_for_step(&p, RUN, 1, 4);
    if (!process_has_ended(&p))
        process_signal(&p, SIGTERM);
    process_wait(&p, PROCESS_LIMIT);
    if (p.code == 0)
        return; /* too fast to be stopped: nothing to see */
    assert_code(&p, 143);
    struct stat info;
    ck_assert_int_eq(stat(in_folder("whole/last.safetensors"), &info), 0);
    p = train((launch){.file_limit = info.st_size - 300},
              (const char *const[]){"train.epochs=5", NULL});
    ASSERT_ERROR(&p, 5, "attempt-2/ckpt-");
    assert_result(RUN, "failed", 5);
    ck_assert_int_eq(count_leftovers(RUN), 0);
    p = TRAIN("train.epochs=5");
    assert_code(&p, 0);
    ck_assert_ptr_nonnull(strstr(p.err, "attempt-1/ckpt-"));
    assert_same_file(text("%s/last.safetensors", RUN), in_folder("whole/last.safetensors"));
    assert_same_log(RUN, in_folder("whole"));
}
END_TEST

/* Not even the records fit. */
START_TEST(disk_full_at_once)
{
    process p = train((launch){.file_limit = 600}, (const char *const[]){"train.epochs=5", NULL});
    ASSERT_ERROR(&p, 5, RUN);
    ck_assert_int_eq(count_leftovers(RUN), 0);
    p = TRAIN("train.epochs=5");
    assert_code(&p, 0);
}
END_TEST

/* ---- numbers ---- */

START_TEST(loss_runs_away)
{
    process p = TRAIN("train.lr=1000", "train.milestones=[]", "train.epochs=200",
                      "rpg.init_std=1000", "train.momentum=0.99");
    ASSERT_ERROR(&p, 4, "not finite", "train.lr");
    assert_result(RUN, "failed", 4);
}
END_TEST

START_TEST(exact_refuses_large_gradients)
{
    process p = TRAIN("train.exact=true", "rpg.size=1", "rpg.init_std=0.000000001");
    ASSERT_ERROR(&p, 4, "train.lr");
    assert_result(RUN, "failed", 4);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bad input");
    TCase *tcase = process_case("specs", setup_job);
    tcase_add_test(tcase, bad_settings);
    tcase_add_test(tcase, bad_files);
    tcase_add_test(tcase, precision_of_another_machine);
    tcase_add_test(tcase, ring_larger_than_memory);
    tcase_add_test(tcase, activations_larger_than_memory);
    tcase_add_test(tcase, out_is_a_file);
    suite_add_tcase(suite, tcase);
    tcase = process_case("data", setup_job);
    tcase_add_test(tcase, missing_path);
    tcase_add_test(tcase, damaged_cifar);
    tcase_add_test(tcase, one_class);
    tcase_add_test(tcase, damaged_images);
    tcase_add_test(tcase, too_few_images);
    suite_add_tcase(suite, tcase);
    tcase = process_case("checkpoints", setup_job);
    tcase_add_loop_test(tcase, damaged_checkpoint, 0, 5);
    tcase_add_test(tcase, checkpoint_of_another_spec);
    tcase_add_test(tcase, checkpoint_of_another_plan);
    tcase_add_test(tcase, disk_full_while_checkpointing);
    tcase_add_test(tcase, disk_full_at_once);
    suite_add_tcase(suite, tcase);
    tcase = process_case("numbers", setup_job);
    tcase_add_test(tcase, loss_runs_away);
    tcase_add_test(tcase, exact_refuses_large_gradients);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
