/* Whole runs of every kind of network, schedule and recipe; what they write; that they learn. */
#include <math.h>

#include "process_testing.h"

static process train(const char *out, const char *const sets[])
{
    const char *command[MAX_ARGUMENTS] = {RINGTRAIN, "train", in_folder("job.json"), "--set",
                                          text("out=%s", out)};
    int count = 5;
    for (int i = 0; sets[i]; i++) {
        command[count++] = "--set";
        command[count++] = sets[i];
    }
    command[count] = NULL;
    return run_command((launch){0}, command);
}
#define TRAIN(out, ...) train(out, (const char *const[]){__VA_ARGS__, NULL})

/* The mean loss of each step record. */
static int step_losses(const char *out, double losses[], int most)
{
    int count = 0;
    cJSON *record = NULL;
    records r = merged_records(out);
    cJSON_ArrayForEach (record, r.all) {
        if (strcmp(json_string(record, "kind"), "step") == 0 && count < most)
            losses[count++] = json_number(record, "loss");
    }
    cJSON_Delete(r.all);
    return count;
}

static const char *const kinds[][6] = {
    {"rpg.scope=none", "rpg.size=0"},
    {"rpg.scope=block"},
    {"rpg.scope=block", "rpg.size=0",
     "rpg.sizes={\"layer1\":100,\"layer2\":200,\"layer3\":300,\"layer4\":50}"},
    {"rpg.size=0", "rpg.share=0.25"},
    {"rpg.size=100000"}, /* more than is generated */
    {"rpg.size=1"},
    {"rpg.include_stem=true"},
    {"model.stem=imagenet", "data.size=32"},
    {"model.arch=resnet34"},
    {"rpg.index=tile"},
    {"rpg.index=random"},
    {"rpg.permute=false"},
    {"rpg.reflect=false"},
    {"train.schedule=exp", "train.decay_epochs=1"},
    {"train.schedule=cosine", "train.warmup=1"},
    {"train.schedule=multistep", "train.milestones=[1]", "train.warmup=0.5"},
    {"train.nesterov=true"},
    {"train.decay_on=weights"},
    {"train.decay_on=ring"},
    {"train.momentum=0"},
    {"train.train_eval=true"},
    {"train.exact=true", "train.shard=4"},
    {"train.shard=4"},
    {"data.augment=none", "data.normalise=none"},
    {"data.augment=rrc"},
    {"data.subset=40", "data.eval_subset=7"},
    {"data.workers=3"},
};
#define KINDS (sizeof kinds / sizeof *kinds)

START_TEST(every_kind)
{
    for (size_t i = 0; i < KINDS; i++) {
        const char *out = in_folder(text("kind-%zu", i)), *sets[10] = {"train.epochs=2"};
        for (int k = 0; k < 6 && kinds[i][k]; k++)
            sets[k + 1] = kinds[i][k];
        process p = train(out, sets);
        assert_code(&p, 0);
        assert_result(out, "done", 0);
        ck_assert_int_eq(count_leftovers(out), 0);
        ck_assert_msg(exists(text("%s/last.safetensors", out)), "%s", kinds[i][0]);
        ck_assert_msg(exists(text("%s/best.safetensors", out)), "%s", kinds[i][0]);
        double losses[10];
        int steps = step_losses(out, losses, 10);
        ck_assert_int_eq(steps, strncmp(kinds[i][0], "data.subset", 11) == 0 ? 4 : 8);
        for (int k = 0; k < steps; k++)
            ck_assert_msg(losses[k] > 0 && losses[k] < 50, "%s: loss %g", kinds[i][0], losses[k]);
    }
}
END_TEST

/* Each field that is said to change the result does: the other way round, one that is not read. */
START_TEST(recipes_differ)
{
    static const char *const ones[] = {
        "train.lr=0.06",  "train.momentum=0.8",  "train.weight_decay=0.1",
        "train.seed=2",   "rpg.seed=2",          "rpg.reflect=false",
        "rpg.index=tile", "train.nesterov=true", "train.milestones=[1]",
        "train.warmup=1", "data.seed=2",         "data.augment=none",
        "train.shard=8",  "rpg.init_std=0.5",    "train.decay_on=ring",
        "rpg.size=499",
    };
    process p = TRAIN(in_folder("base"), "train.epochs=2");
    assert_code(&p, 0);
    double base[10], other[10];
    int steps = step_losses(in_folder("base"), base, 10);
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) {
        const char *out = in_folder(text("other-%zu", i));
        p = TRAIN(out, "train.epochs=2", ones[i]);
        assert_code(&p, 0);
        ck_assert_int_eq(step_losses(out, other, 10), steps);
        ck_assert_msg(other[steps - 1] != base[steps - 1], "%s changes nothing", ones[i]);
    }
}
END_TEST

/* What the log and the result must hold, for each kind of record. */
START_TEST(records_are_complete)
{
    const char *out = in_folder("out");
    process p = TRAIN(out, "train.train_eval=true", "train.log_every=2", "train.eval_every=2");
    assert_code(&p, 0);
    assert_whole_log(out);
    int steps = 0, epochs = 0, validations = 0, trainings = 0, last_seq = -1;
    double top1 = -1;
    cJSON *record = NULL;
    records r = merged_records(out);
    cJSON *result = read_attempt(out, 1, "result.json");
    cJSON_ArrayForEach (record, r.all) {
        const char *kind = json_string(record, "kind");
        int step = (int)json_number(record, "step"), epoch = (int)json_number(record, "epoch");
        ck_assert_str_eq(json_string(record, "job"), json_string(result, "job"));
        ck_assert_int_eq((int)json_number(record, "attempt"), 1);
        ck_assert_int_eq(strlen(json_string(record, "time")), strlen("2026-01-01T00:00:00.000Z"));
        ck_assert_double_gt(json_number(record, "loss"), 0);
        last_seq = (int)json_number(record, "seq");
        if (strcmp(kind, "step") == 0) {
            ck_assert_int_eq(step, 2 * ++steps);
            ck_assert_double_eq_tol(json_number(record, "lr"), step <= 12 ? 0.05 : 0.005, 1e-9);
            continue;
        }
        ck_assert_int_eq(step, 4 * epoch);
        ck_assert_double_le(json_number(record, "top1"), json_number(record, "top5"));
        if (strcmp(kind, "epoch") == 0) {
            ck_assert_int_eq(epoch, ++epochs);
            ck_assert_double_gt(json_number(record, "images_per_second"), 0);
            continue;
        }
        ck_assert_str_eq(kind, "eval");
        bool is_training = strcmp(json_string(record, "split"), "train") == 0;
        ck_assert_int_eq((int)json_number(record, "images"), is_training ? 64 : 24);
        *(is_training ? &trainings : &validations) += 1;
        if (!is_training)
            top1 = json_number(record, "top1");
    }
    ck_assert_int_eq(steps, 10);
    ck_assert_int_eq(epochs, 5);
    ck_assert_int_eq(validations, 3); /* after epochs 2, 4 and the last */
    ck_assert_int_eq(trainings, 3);
    ck_assert_int_eq((int)json_number(result, "last_seq"), last_seq);
    ck_assert_int_eq((int)json_number(result, "steps"), JOB_STEPS);
    ck_assert_double_eq(json_number(cJSON_GetObjectItem(result, "final"), "top1"), top1);
}
END_TEST

/* The newest two checkpoints and the best are kept. */
START_TEST(checkpoints_are_pruned)
{
    const char *out = in_folder("out");
    process p = TRAIN(out, "train.checkpoint_every=1");
    assert_code(&p, 0);
    cJSON *result = read_attempt(out, 1, "result.json");
    int best = (int)json_number(cJSON_GetObjectItem(result, "best"), "step"), kept = 0;
    for (int step = 1; step <= JOB_STEPS; step++) {
        bool is_there = exists(text("%s/attempt-1/ckpt-%d.safetensors", out, step));
        ck_assert_int_eq(is_there, step >= JOB_STEPS - 1 || step == best);
        kept += is_there;
    }
    ck_assert_int_ge(kept, 2);
    assert_same_file(text("%s/best.safetensors", out),
                     text("%s/attempt-1/ckpt-%d.safetensors", out, best));
    assert_same_file(text("%s/last.safetensors", out),
                     text("%s/attempt-1/ckpt-%d.safetensors", out, JOB_STEPS));
}
END_TEST

/* The same 32 images over and over: their loss must go towards zero. */
START_TEST(overfits_one_batch)
{
    const char *out = in_folder("out");
    process p = TRAIN(out, text("backend.name=%s", test_backend(_i)), "data.train_count=32",
                      "data.size=16", "data.eval_count=8", "train.batch=32", "train.epochs=60",
                      "train.milestones=[40]", "data.augment=none", "rpg.size=3000",
                      "model.width=8", "train.weight_decay=0", "train.eval_every=60");
    assert_code(&p, 0);
    double losses[60];
    ck_assert_int_eq(step_losses(out, losses, 60), 60);
    ck_assert_double_gt(losses[0], 1);
    ck_assert_msg(losses[59] < 0.1, "the last loss is %g", losses[59]);
}
END_TEST

/* Two steps of the fast backend are two steps of the oracle. */
START_TEST(backends_agree)
{
    static const char *const jobs[][2] = {{"model.stem=cifar", "rpg.scope=global"},
                                          {"model.stem=imagenet", "rpg.scope=block"}};
    if (test_backend_count() < 2)
        return;
    for (int job = 0; job < 2; job++) {
        double losses[2][2];
        for (int i = 0; i < 2; i++) {
            const char *out = in_folder(text("%d-%s", job, test_backend(i)));
            process p = TRAIN(out, text("backend.name=%s", test_backend(i)), "data.size=32",
                              "train.batch=32", "train.epochs=1", "data.eval_count=8", jobs[job][0],
                              jobs[job][1]);
            assert_code(&p, 0);
            ck_assert_int_eq(step_losses(out, losses[i], 2), 2);
        }
        for (int step = 0; step < 2; step++)
            ck_assert_msg(fabs(losses[0][step] - losses[1][step]) < 1e-4 * losses[1][step],
                          "step %d: %.9g and %.9g", step, losses[0][step], losses[1][step]);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("train");
    TCase *tcase = process_case("runs", setup_job);
    tcase_add_test(tcase, every_kind);
    tcase_add_test(tcase, recipes_differ);
    tcase_add_test(tcase, records_are_complete);
    tcase_add_test(tcase, checkpoints_are_pruned);
    tcase_add_loop_test(tcase, overfits_one_batch, 0, test_backend_count());
    tcase_add_test(tcase, backends_agree);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
