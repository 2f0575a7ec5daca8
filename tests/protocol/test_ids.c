/* Job ids: stable, independent of labels and places, different for whatever changes results. */
#include "protocol/json_canonical.h"
#include "protocol/spec.h"
#include "suite.h"

#define DATA_HASH "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static const char *const golden_sets[] = {
    "model.classes=10",  "rpg.size=2359296",       "rpg.seed=7",
    "data.kind=cifar10", "data.path=/data/cifar",  "data.size=32",
    "data.augment=crop", "data.normalise=cifar10", "train.seed=18446744073709551615",
    "train.shard=128",
};

static void golden_spec(spec *s)
{
    errbuf err = {0};
    ck_assert_ok(spec_init(s, &err));
    for (size_t i = 0; i < sizeof golden_sets / sizeof golden_sets[0]; i++)
        ck_assert_ok(spec_set(s, golden_sets[i], &err));
    ck_assert_ok(spec_validate(s, &err));
}

/* golden_id.py computes both with hashlib alone. */
START_TEST(golden_ids)
{
    errbuf err = {0};
    spec s;
    char id[33];
    golden_spec(&s);
    ck_assert_ok(spec_job_id(&s, DATA_HASH, id, &err));
    ck_assert_str_eq(id, "561c576c78f682b8350d6d8f3b1ae888");
    s.repeat = 3;
    ck_assert_ok(spec_job_id(&s, DATA_HASH, id, &err));
    ck_assert_str_eq(id, "59d24db9deff34e5afcba246e8688858");
    spec_fini(&s);
}
END_TEST

/* A value other than the golden one, for every field. */
static const char *const other_values[] = {
    "name=x",
    "repeat=1",
    "model.arch=resnet34",
    "model.stem=imagenet",
    "model.width=8",
    "model.classes=100",
    "rpg.scope=none",
    "rpg.size=1",
    "rpg.share=0.5",
    "rpg.sizes={\"layer1\":5}",
    "rpg.permute=false",
    "rpg.reflect=false",
    "rpg.index=tile",
    "rpg.include_stem=true",
    "rpg.init_std=0.5",
    "rpg.seed=8",
    "data.kind=cifar100",
    "data.path=/elsewhere",
    "data.size=64",
    "data.subset=10",
    "data.eval_subset=10",
    "data.train_count=10",
    "data.eval_count=10",
    "data.seed=2",
    "data.augment=none",
    "data.normalise=none",
    "data.on_error=skip",
    "data.workers=2",
    "resources.workers=2",
    "resources.threads=2",
    "train.epochs=1",
    "train.batch=256",
    "train.optimiser=sgd", /* there is one only */
    "train.lr=0.2",
    "train.momentum=0",
    "train.nesterov=true",
    "train.weight_decay=0",
    "train.decay_on=ring",
    "train.schedule=cosine",
    "train.milestones=[1]",
    "train.gamma=0.2",
    "train.decay_epochs=30",
    "train.warmup=1",
    "train.seed=2",
    "train.exact=true",
    "train.shard=64",
    "train.eval_every=2",
    "train.checkpoint_every=7",
    "train.log_every=7",
    "train.train_eval=true",
    "train.precision=tf32",
    "backend.name=cpu",
    "backend.plan=tune",
    "backend.on_plan_change=continue",
    "out=/elsewhere",
};

START_TEST(each_field_counts_or_does_not)
{
    errbuf err = {0};
    spec s;
    char before[33], after[33];
    golden_spec(&s);
    ck_assert_ok(spec_job_id(&s, DATA_HASH, before, &err));
    ck_assert_ok(spec_set(&s, other_values[_i], &err));
    ck_assert_ok(spec_job_id(&s, DATA_HASH, after, &err));
    size_t count;
    const spec_field *f = &spec_fields(&count)[_i];
    size_t length = strlen(f->path);
    ck_assert_uint_eq(count, sizeof other_values / sizeof other_values[0]);
    ck_assert_msg(strncmp(other_values[_i], f->path, length) == 0 &&
                      other_values[_i][length] == '=',
                  "row %d is %s, the table has %s", _i, other_values[_i], f->path);
    bool has_other = strcmp(f->path, "train.optimiser") != 0;
    bool differs = strcmp(before, after) != 0;
    ck_assert_msg(differs == (has_other && (f->flags & SPEC_AFFECTS_RESULTS)), "%s", f->path);
    spec_fini(&s);
}
END_TEST

START_TEST(labels_and_places_do_not_count)
{
    /* FORMATS 4: a checkpoint's metadata never holds name, out, host or world size. */
    static const char *const never[] = {
        "name",         "out",         "data.path", "resources.workers", "resources.threads",
        "data.workers", "backend.plan"};
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++)
        ck_assert(!(spec_find_field(never[i])->flags & SPEC_AFFECTS_RESULTS));
}
END_TEST

START_TEST(the_data_counts)
{
    errbuf err = {0};
    spec s;
    char a[33], b[33] = "untouched";
    golden_spec(&s);
    ck_assert_ok(spec_job_id(&s, "00", a, &err));
    ck_assert_fails(spec_job_id(&s, "", b, &err), STATUS_BAD_INPUT, "content hash");
    ck_assert_fails(spec_job_id(&s, "\",\"x", b, &err), STATUS_BAD_INPUT, "content hash");
    ck_assert_str_eq(b, "untouched");
    ck_assert_ok(spec_job_id(&s, "01", b, &err));
    ck_assert_str_ne(a, b);
    spec_fini(&s);
}
END_TEST

START_TEST(results_are_canonical)
{
    errbuf err = {0};
    spec s;
    char *results = NULL, *again = NULL;
    golden_spec(&s);
    ck_assert_ok(spec_dump_results(&s, &results, &err));
    cJSON *json = cJSON_Parse(results);
    ck_assert_ok(json_canonical(json, &again, &err));
    ck_assert_str_eq(results, again);
    ck_assert_ptr_nonnull(strstr(results, "\"lr\":0.10000000000000001"));
    ck_assert_ptr_nonnull(strstr(results, "\"seed\":\"18446744073709551615\""));
    ck_assert_ptr_null(strstr(results, "repeat"));
    ck_assert_ptr_null(strstr(results, "share"));
    cJSON_Delete(json);
    free(results);
    free(again);
    spec_fini(&s);
}
END_TEST

START_TEST(differences_are_named)
{
    errbuf err = {0};
    spec s;
    char *here = NULL, *there = NULL, *text = NULL;
    golden_spec(&s);
    ck_assert_ok(spec_dump_results(&s, &here, &err));
    ck_assert_ok(spec_diff_results(here, here, &text, &err));
    ck_assert_str_eq(text, "");
    free(text);
    ck_assert_ok(spec_set(&s, "train.lr=0.05", &err));
    ck_assert_ok(spec_set(&s, "rpg.scope=block", &err));
    ck_assert_ok(spec_set(&s, "rpg.size=0", &err));
    ck_assert_ok(spec_set(&s, "rpg.sizes={\"layer1\":5}", &err));
    ck_assert_ok(spec_set(&s, "repeat=2", &err));
    ck_assert_ok(spec_dump_results(&s, &there, &err));
    ck_assert_ok(spec_diff_results(here, there, &text, &err));
    ck_assert_str_eq(text, "rpg.scope: global here, block there\n"
                           "rpg.size: 2359296 here, not set there\n"
                           "rpg.sizes: not set here, {\"layer1\":5} there\n"
                           "train.lr: 0.1 here, 0.05 there\n"
                           "repeat: not set here, 2 there");
    free(text);
    text = NULL;
    ck_assert_fails(spec_diff_results(here, "{", &text, &err), STATUS_BAD_INPUT, "the spec there");
    ck_assert_fails(spec_diff_results("[]", there, &text, &err), STATUS_BAD_INPUT, "here is not");
    ck_assert_ptr_null(text);
    free(here);
    free(there);
    spec_fini(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ids");
    TCase *tc = tcase_create("ids");
    tcase_add_test(tc, golden_ids);
    tcase_add_loop_test(tc, each_field_counts_or_does_not, 0,
                        sizeof other_values / sizeof other_values[0]);
    tcase_add_test(tc, labels_and_places_do_not_count);
    tcase_add_test(tc, the_data_counts);
    tcase_add_test(tc, results_are_canonical);
    tcase_add_test(tc, differences_are_named);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
