/* The job spec: defaults, parsing with good errors, --set, relations, round trips, help. */
#include <limits.h>
#include <stdint.h>

#include "protocol/json.h"
#include "protocol/spec.h"
#include "suite.h"

static spec s;
static errbuf err;

static void setup(void)
{
    memset(&err, 0, sizeof err);
    ck_assert_ok(spec_init(&s, &err));
}

static void teardown(void)
{
    spec_fini(&s);
}

static status parse(const char *text)
{
    return spec_parse(&s, text, strlen(text), "job.json", &err);
}

static char *dump(const spec *from)
{
    char *text = NULL;
    ck_assert_ok(spec_dump(from, false, &text, &err));
    return text;
}

START_TEST(defaults)
{
    ck_assert_str_eq(s.name, "job");
    ck_assert_int_eq(s.model.arch, ARCH_RESNET18);
    ck_assert_int_eq(s.model.width, 64);
    ck_assert_int_eq(s.rpg.scope, SCOPE_GLOBAL);
    ck_assert(s.rpg.permute && s.rpg.reflect && !s.rpg.seed_given);
    ck_assert_int_eq(s.rpg.size, 0);
    ck_assert_int_eq(s.data.kind, DATA_SYNTHETIC);
    ck_assert_int_eq(s.data.train_count, 20000);
    ck_assert_int_eq(s.train.batch, 128);
    ck_assert(s.train.lr == 0.1 && s.train.momentum == 0.9 && s.train.weight_decay == 5e-4);
    ck_assert_int_eq(s.train.milestones.count, 3);
    ck_assert(s.train.milestones.epoch[2] == 160);
    ck_assert_uint_eq(s.train.seed, 1);
    ck_assert_str_eq(s.backend.plan, "default");
    ck_assert_str_eq(s.out, "");
    ck_assert_fails(spec_validate(&s, &err), STATUS_BAD_INPUT, "no ring size");
}
END_TEST

START_TEST(fini_is_idempotent)
{
    spec_fini(&s);
    spec_fini(&s);
    spec_fini(NULL);
}
END_TEST

START_TEST(enum_order_matches_the_struct)
{
    /* The names of the table stand in the order of the enums of spec.h. */
    ck_assert_ok(spec_set(&s, "model.stem=imagenet", &err));
    ck_assert_int_eq(s.model.stem, STEM_IMAGENET);
    ck_assert_ok(spec_set(&s, "rpg.scope=block", &err));
    ck_assert_int_eq(s.rpg.scope, SCOPE_BLOCK);
    ck_assert_ok(spec_set(&s, "rpg.index=tile", &err));
    ck_assert_int_eq(s.rpg.index, INDEX_TILE);
    ck_assert_ok(spec_set(&s, "data.kind=folder", &err));
    ck_assert_int_eq(s.data.kind, DATA_FOLDER);
    ck_assert_ok(spec_set(&s, "data.augment=rrc", &err));
    ck_assert_int_eq(s.data.augment, AUGMENT_RRC);
    ck_assert_ok(spec_set(&s, "data.normalise=imagenet", &err));
    ck_assert_int_eq(s.data.normalise, NORMALISE_IMAGENET);
    ck_assert_ok(spec_set(&s, "data.on_error=skip", &err));
    ck_assert_int_eq(s.data.on_error, ON_ERROR_SKIP);
    ck_assert_ok(spec_set(&s, "train.decay_on=ring", &err));
    ck_assert_int_eq(s.train.decay_on, DECAY_RING);
    ck_assert_ok(spec_set(&s, "train.schedule=cosine", &err));
    ck_assert_int_eq(s.train.schedule, SCHEDULE_COSINE);
    ck_assert_ok(spec_set(&s, "train.precision=bf16", &err));
    ck_assert_int_eq(s.train.precision, PRECISION_BF16);
    ck_assert_ok(spec_set(&s, "backend.name=reference", &err));
    ck_assert_int_eq(s.backend.name, BACKEND_REFERENCE);
    ck_assert_ok(spec_set(&s, "backend.on_plan_change=restart", &err));
    ck_assert_int_eq(s.backend.on_plan_change, PLAN_CHANGE_RESTART);
}
END_TEST

START_TEST(parses_over_what_is_there)
{
    ck_assert_ok(parse("{\"train\": {\"lr\": 1}, \"rpg\": {\"size\": 1e3}}"));
    ck_assert_ok(parse("{\"name\": \"b\", \"train\": {\"epochs\": 30.0, \"exact\": true}}"));
    ck_assert(s.train.lr == 1);
    ck_assert_int_eq(s.rpg.size, 1000);
    ck_assert_int_eq(s.train.epochs, 30);
    ck_assert(s.train.exact);
    ck_assert_str_eq(s.name, "b");
    ck_assert_ok(spec_validate(&s, &err));
    ck_assert_ok(parse("{}"));
    ck_assert_str_eq(s.name, "b");
}
END_TEST

/* Every one of these leaves the spec as it was, and says what, where and what instead. */
static const struct {
    const char *text, *part;
} refused[] = {
    {"", "job.json is empty"},
    {"[]", "job.json: expected a JSON object, not an array"},
    {"3", "job.json: expected a JSON object, not a number"},
    {"{\"name\": \"x\"", "job.json:1:"},
    /* unknown and duplicate keys */
    {"{\n \"rpg\": {\n  \"shre\": 1\n }\n}",
     "unknown key rpg.shre at job.json:3; did you mean rpg.share?"},
    {"{\"modle\": {}}", "unknown key modle at job.json:1; did you mean model?"},
    {"{\"nmae\": \"x\"}", "did you mean name?"},
    {"{\"lr\": 1}", "unknown key lr at job.json:1; did you mean train.lr?"},
    {"{\"model\": {\"lr\": 1}}", "unknown key model.lr at job.json:1; did you mean train.lr?"},
    {"{\"train.lr\": 1}", "write it nested: {\"train\": {\"lr\": …}}"},
    {"{\"train\": {\"a.b\": 1}}", "unknown key train.a.b at job.json:1"},
    {"{\"train\": {\"weight_d\": 1}}", "did you mean train.weight_decay?"},
    {"{\"\": 1}", "unknown key  at job.json:1"},
    {"{\"zzzzzzzzzzzzzzzzzzzz\": 1}", "unknown key zzzzzzzzzzzzzzzzzzzz at job.json:1"},
    {"{\"Name\": \"x\"}", "unknown key Name at job.json:1; did you mean name?"},
    {"{\"a\\nb\": 1}", "unknown key a\\x0ab at job.json:1"},
    {"{\"name\": \"a\",\n\"name\": \"a\"}", "duplicate key name at job.json:2:1"},
    {"{\"train\": {\"lr\": 1,\n\"lr\": 1}}", "duplicate key train.lr at job.json:2:1"},
    {"{\"train\": {},\n\"train\": {}}", "duplicate key train at job.json:2:1"},
    {"{\"rpg\": {\"sizes\": {\"layer1\": 1,\n \"layer1\": 2}}}",
     "duplicate key rpg.sizes.layer1 at job.json:2:2"},
    /* wrong types */
    {"{\"train\": 3}", "train at job.json:1: expected an object, not a number"},
    {"{\"train\": null}", "train at job.json:1: expected an object, not null"},
    {"{\n\"train\": {\n\"epochs\": true}}",
     "train.epochs at job.json:3: expected an integer in [1, 1000000], not true"},
    {"{\"train\": {\"epochs\": \"5\"}}", "not \"5\""},
    {"{\"train\": {\"epochs\": 1.5}}", "not 1.5"},
    {"{\"train\": {\"epochs\": null}}", "not null"},
    {"{\"train\": {\"lr\": \"fast\"}}", "expected a number in [0, 1000], not \"fast\""},
    {"{\"train\": {\"lr\": false}}", "not false"},
    {"{\"train\": {\"exact\": 1}}", "expected true or false, not 1"},
    {"{\"train\": {\"exact\": \"true\"}}", "expected true or false"},
    {"{\"name\": 7}", "expected 1 to 128 letters"},
    {"{\"data\": {\"path\": []}}", "expected a string in UTF-8 without control characters"},
    {"{\"train\": {\"schedule\": 0}}", "expected one of multistep, exp, cosine, not 0"},
    {"{\"train\": {\"schedule\": \"cosin\"}}", "not \"cosin\"; did you mean cosine?"},
    {"{\"rpg\": {\"scope\": \"layer\"}}", "expected one of none, global, block"},
    {"{\"backend\": {\"name\": \"gpu\"}}",
     "expected one of auto, cpu, cuda, reference, not \"gpu\""},
    {"{\"train\": {\"milestones\": 60}}", "expected an array of at most 32 ascending numbers"},
    {"{\"train\": {\"milestones\": [60, \"x\"]}}", "element 2"},
    {"{\"train\": {\"milestones\": [60, 60]}}", "element 2"},
    {"{\"train\": {\"milestones\": [-1]}}", "element 1"},
    {"{\"rpg\": {\"sizes\": [1]}}", "expected an object of at most 64 ring names"},
    {"{\"rpg\": {\"sizes\": {\"layer1\": 0}}}", "rpg.sizes at job.json:1: \"layer1\": expected"},
    {"{\"rpg\": {\"sizes\": {\"layer1\": 1.5}}}", "\"layer1\": expected"},
    {"{\"rpg\": {\"sizes\": {\"\": 5}}}", "is not a ring's name"},
    {"{\"rpg\": {\"sizes\": {\"a b\": 5}}}", "\"a b\" is not a ring's name"},
    /* out of range */
    {"{\"train\": {\"epochs\": 0}}", "expected an integer in [1, 1000000], not 0"},
    {"{\"train\": {\"epochs\": -1}}", "not -1"},
    {"{\"train\": {\"epochs\": 1e300}}", "not 1e+300"},
    {"{\"rpg\": {\"size\": 2147483648}}", "expected an integer in [0, 2147483647]"},
    {"{\"rpg\": {\"share\": -0.1}}", "expected a number in [0, 1024], not -0.1"},
    {"{\"train\": {\"momentum\": 1}}", "expected a number in [0, 1), not 1"},
    {"{\"train\": {\"gamma\": 0}}", "expected a number in (0, 10], not 0"},
    {"{\"train\": {\"lr\": 1e400}}", "this number is too large"},
    {"{\"train\": {\"lr\": NaN}}", "job.json:1:"},
    {"{\"name\": \"\"}", "expected 1 to 128 letters"},
    {"{\"name\": \"../x\"}", "not \"../x\""},
    {"{\"name\": \"a/b\"}", "not \"a/b\""},
    {"{\"out\": \"a\\nb\"}", "not \"a\\x0ab\""},
    /* seeds */
    {"{\"train\": {\"seed\": 9007199254740993}}", "write the seed in quotes"},
    {"{\"train\": {\"seed\": 18446744073709551615}}", "write the seed in quotes"},
    {"{\"train\": {\"seed\": 1e16}}", "write the seed in quotes"},
    {"{\"train\": {\"seed\": 9007199254740993.0}}", "write the seed in quotes"},
    {"{\"train\": {\"seed\": \"18446744073709551616\"}}", "below 2^64 in quotes"},
    {"{\"train\": {\"seed\": \"12x\"}}", "not \"12x\""},
    {"{\"train\": {\"seed\": \"\"}}", "not \"\""},
    {"{\"train\": {\"seed\": -1}}", "not -1"},
    {"{\"train\": {\"seed\": 0.5}}", "not 0.5"},
    {"{\"train\": {\"seed\": true}}", "not true"},
};

START_TEST(refused_in_one_line)
{
    char *before = dump(&s), *after;
    char text[300];
    ck_assert_fails(parse(refused[_i].text), STATUS_BAD_INPUT, refused[_i].part);
    after = dump(&s);
    ck_assert_str_eq(before, after);
    free(after);
    /* Nor is half of it taken where the wrong part comes last. */
    if (refused[_i].text[0] == '{' && !strstr(refused[_i].text, "\"train\"")) {
        snprintf(text, sizeof text, "{\"train\": {\"lr\": 9}, %s", refused[_i].text + 1);
        ck_assert_int_eq(parse(text), STATUS_BAD_INPUT);
        after = dump(&s);
        ck_assert_str_eq(before, after);
        free(after);
    }
    free(before);
}
END_TEST

START_TEST(hostile_text)
{
    enum {
        DEEP = 10000
    };
    char *text = malloc(7 * DEEP + 1);
    text[0] = '\0';
    for (int i = 0; i < DEEP; i++)
        memcpy(text + 7 * i, "{\"rpg\":", 7);
    ck_assert_fails(spec_parse(&s, text, 7 * DEEP, "job.json", &err), STATUS_BAD_INPUT,
                    "nested more than 64 levels");
    memset(text, 'k', 7 * DEEP);
    memcpy(text, "{\"", 2);
    memcpy(text + 7 * DEEP - 5, "\": 1}", 5);
    ck_assert_fails(spec_parse(&s, text, 7 * DEEP, "job.json", &err), STATUS_BAD_INPUT,
                    "unknown key kkkk");
    free(text);
    static const char nul[] = "{\"name\": \"a\0b\"}";
    ck_assert_fails(spec_parse(&s, nul, sizeof nul - 1, "job.json", &err), STATUS_BAD_INPUT,
                    "NUL byte");
    ck_assert_fails(parse("{\"name\": \"a\\u0000b\"}"), STATUS_BAD_INPUT, "NUL character");
    ck_assert_fails(parse("{\"data\": {\"path\": \"\xc3\"}}"), STATUS_BAD_INPUT, "not valid UTF-8");
}
END_TEST

START_TEST(seeds_keep_64_bits)
{
    ck_assert_ok(parse("{\"train\": {\"seed\": \"18446744073709551615\"}}"));
    ck_assert_uint_eq(s.train.seed, UINT64_MAX);
    ck_assert_ok(parse("{\"train\": {\"seed\": 9007199254740992}}"));
    ck_assert_uint_eq(s.train.seed, (uint64_t)1 << 53);
    ck_assert_ok(parse("{\"train\": {\"seed\": \"9007199254740993\"}}"));
    ck_assert_uint_eq(s.train.seed, ((uint64_t)1 << 53) + 1);
    ck_assert_ok(parse("{\"train\": {\"seed\": 1e3}}"));
    ck_assert_uint_eq(s.train.seed, 1000);
    /* On the command line the digits are text anyway. */
    ck_assert_ok(spec_set(&s, "train.seed=18446744073709551614", &err));
    ck_assert_uint_eq(s.train.seed, UINT64_MAX - 1);
    ck_assert_ok(spec_set(&s, "train.seed=\"5\"", &err));
    ck_assert_uint_eq(s.train.seed, 5);
    ck_assert_fails(spec_set(&s, "train.seed=18446744073709551616", &err), STATUS_BAD_INPUT,
                    "--set train.seed: expected an integer");
}
END_TEST

START_TEST(ring_seed_is_given_or_not)
{
    char *text = dump(&s);
    ck_assert_ptr_null(strstr(text, "\"init_std\":0,\"seed\""));
    free(text);
    ck_assert_ok(parse("{\"rpg\": {\"seed\": 0}}"));
    ck_assert(s.rpg.seed_given);
    text = dump(&s);
    ck_assert_ptr_nonnull(strstr(text, "\"init_std\":0,\"seed\":0}"));
    free(text);
}
END_TEST

static const struct {
    const char *assignment, *part; /* NULL = fine */
} sets[] = {
    {"train.lr=0.05", NULL},
    {"train.lr=.05", "--set train.lr: expected a number in [0, 1000], not \".05\""},
    {"train.lr=", "not \"\""},
    {"train.lr=0x10", "not \"0x10\""},
    {"train.lr=inf", "not \"inf\""},
    {"train.lr", "--set train.lr: expected key=value"},
    {"=5", "expected key=value"},
    {"", "expected key=value"},
    {"train.lrr=1", "--set: unknown key train.lrr; did you mean train.lr?"},
    {"train=1", "--set train: this is a group of fields; set one of them, train.FIELD=value"},
    {"train.epochs=1e3", NULL},
    {"train.exact=true", NULL},
    {"train.exact=yes", "expected true or false, not \"yes\""},
    {"train.schedule=cosine", NULL},
    {"train.schedule=\"exp\"", NULL},
    {"train.schedule=cos", "not \"cos\"; did you mean cosine?"},
    {"train.milestones=[1,2.5]", NULL},
    {"train.milestones=1,2.5", NULL},
    {"train.milestones=", NULL},
    {"train.milestones=2,1", "element 2"},
    {"rpg.sizes={\"layer1\":100}", NULL},
    {"rpg.sizes={\"layer1\":100,\"layer1\":1}", "expected an object"},
    {"data.path=/a b/=c", NULL},
    {"data.path=\"x\"", NULL},
    {"data.path=\"x", NULL}, /* a word that begins with a quote */
    {"data.path=x\x8a", "expected a string in UTF-8"},
    {"out=\xc3\xa4", NULL},
    {"name=5", NULL},
    {"name=a b", "not \"a b\""},
};

START_TEST(set_words)
{
    if (!sets[_i].part) {
        ck_assert_ok(spec_set(&s, sets[_i].assignment, &err));
        return;
    }
    char *before = dump(&s);
    ck_assert_fails(spec_set(&s, sets[_i].assignment, &err), STATUS_BAD_INPUT, sets[_i].part);
    char *after = dump(&s);
    ck_assert_str_eq(before, after);
    free(before);
    free(after);
}
END_TEST

START_TEST(set_takes_what_it_says)
{
    ck_assert_ok(spec_set(&s, "data.path=/a b/=c", &err));
    ck_assert_str_eq(s.data.path, "/a b/=c");
    ck_assert_ok(spec_set(&s, "data.path=\"x\"", &err));
    ck_assert_str_eq(s.data.path, "x");
    ck_assert_ok(spec_set(&s, "train.milestones=1,2.5", &err));
    ck_assert_int_eq(s.train.milestones.count, 2);
    ck_assert(s.train.milestones.epoch[1] == 2.5);
    ck_assert_ok(spec_set(&s, "train.milestones=", &err));
    ck_assert_int_eq(s.train.milestones.count, 0);
    ck_assert_ok(spec_set(&s, "rpg.sizes={\"layer2\":7}", &err));
    ck_assert_str_eq(s.rpg.sizes.entry[0].ring, "layer2");
    ck_assert_int_eq(s.rpg.sizes.entry[0].size, 7);
    ck_assert_ok(spec_set(&s, "name=5", &err));
    ck_assert_str_eq(s.name, "5");
}
END_TEST

/* Assignments, separated by spaces, to the defaults with rpg.size=100; then the error. */
static const struct {
    const char *assignments, *part;
} relations[] = {
    {"", NULL},
    {"rpg.size=0", "give exactly one of rpg.size (elements) or rpg.share"},
    {"rpg.size=0 rpg.scope=block", "rpg.sizes (one a ring)"},
    {"rpg.share=0.5", "rpg.size and rpg.share are both given"},
    {"rpg.scope=block rpg.sizes={\"layer1\":5}", "rpg.size and rpg.sizes are both given"},
    {"rpg.size=0 rpg.scope=block rpg.share=1 rpg.sizes={\"layer1\":5}",
     "rpg.share and rpg.sizes are both given"},
    {"rpg.size=0 rpg.sizes={\"layer1\":5}", "needs rpg.scope block"},
    {"rpg.size=0 rpg.scope=block rpg.sizes={\"layer1\":5}", NULL},
    {"rpg.size=0 rpg.scope=block rpg.share=0.5", NULL},
    {"rpg.scope=none", "rpg.scope none has no ring, but rpg.size is given"},
    {"rpg.scope=none rpg.size=0 rpg.share=0.5", "but rpg.share is given"},
    {"rpg.scope=none rpg.size=0", NULL},
    {"rpg.scope=none rpg.size=0 train.decay_on=ring", "train.decay_on ring needs a ring"},
    {"rpg.permute=false", NULL},
    {"rpg.permute=false rpg.index=tile", "rpg.permute false goes with rpg.index even only"},
    {"rpg.permute=false rpg.index=random", "even only"},
    {"data.kind=cifar10", "data.kind cifar10 needs data.path"},
    {"data.kind=folder", "data.kind folder needs data.path"},
    {"data.kind=cifar10 data.path=x", NULL},
    {"data.subset=20001", "data.subset 20001 is more than data.train_count 20000"},
    {"data.eval_subset=4001", "data.eval_subset 4001 is more than data.eval_count 4000"},
    {"data.kind=cifar100 data.path=x data.subset=20001", NULL},
    {"model.classes=1", "model.classes 1"},
    {"train.shard=48", "train.batch 128 is not a multiple of train.shard 48"},
    {"train.shard=64 resources.workers=4", "do not divide by resources.workers 4"},
    {"train.shard=32 resources.workers=4", NULL},
    {"resources.workers=3", "train.batch 128 does not divide by resources.workers 3"},
    {"train.exact=true train.shard=1", "train.exact sums at most 64 shards"},
    {"train.exact=true train.shard=2", NULL},
    {"train.shard=1", NULL},
    {"train.warmup=201", "train.warmup 201 is longer than train.epochs 200"},
    {"train.warmup=200", NULL},
    {"train.nesterov=true train.momentum=0", "train.nesterov needs train.momentum above 0"},
    {"train.precision=bf16 backend.name=cpu", "train.precision bf16 needs a GPU"},
    {"train.precision=tf32 backend.name=reference", "backend.name reference computes in fp32 only"},
    {"train.precision=tf32", NULL},
    {"backend.plan=", "backend.plan is empty"},
};

START_TEST(related_fields)
{
    char *words = strdup(relations[_i].assignments);
    ck_assert_ok(spec_set(&s, "rpg.size=100", &err));
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " "))
        ck_assert_ok(spec_set(&s, word, &err));
    if (relations[_i].part)
        ck_assert_fails(spec_validate(&s, &err), STATUS_BAD_INPUT, relations[_i].part);
    else
        ck_assert_ok(spec_validate(&s, &err));
    free(words);
}
END_TEST

START_TEST(validate_judges_hand_made_structs)
{
    s.rpg.size = 100;
    s.train.epochs = 0;
    ck_assert_fails(spec_validate(&s, &err), STATUS_BAD_INPUT, "train.epochs: expected");
    s.train.epochs = 1;
    s.train.schedule = 3;
    ck_assert_fails(spec_validate(&s, &err), STATUS_BAD_INPUT, "train.schedule: expected one of");
    s.train.schedule = 0;
    s.train.milestones.epoch[1] = 1;
    ck_assert_fails(spec_validate(&s, &err), STATUS_BAD_INPUT, "train.milestones: expected");
    s.train.milestones.count = 1;
    ck_assert_ok(spec_validate(&s, &err));
}
END_TEST

/* Sets a field to something that is not its default. */
static void set_unusual(spec *to, const spec_field *f, int salt)
{
    void *at = (char *)to + f->offset;
    int names = 0;
    switch (f->type) {
    case SPEC_INT:
        *(int64_t *)at = (int64_t)f->max - salt % 2;
        break;
    case SPEC_SEED:
        *(uint64_t *)at = salt % 2 ? UINT64_MAX - (uint64_t)salt : ((uint64_t)1 << 53) - 1;
        to->rpg.seed_given = true;
        break;
    case SPEC_DOUBLE:
        *(double *)at = f->max / (3.0 + salt);
        break;
    case SPEC_BOOL:
        *(bool *)at = !*(bool *)at;
        break;
    case SPEC_STRING:
        free(*(char **)at);
        *(char **)at =
            strdup(f->flags & SPEC_LABEL ? "a.B_c-9" : "/p \"q\" \\ \xe2\x82\xac/\xc3\xa4");
        break;
    case SPEC_ENUM:
        while (f->names[names])
            names++;
        *(int *)at = names - 1;
        break;
    case SPEC_SIZES:
        *(spec_sizes *)at = (spec_sizes){2, {{"layer1", 1}, {"layer4", INT_MAX}}};
        break;
    case SPEC_MILESTONES:
        *(spec_milestones *)at = (spec_milestones){3, {0, 0.1, 1.0 / 3}};
        break;
    }
}

START_TEST(dump_reads_back_every_field)
{
    size_t count;
    const spec_field *fields = spec_fields(&count);
    for (int pretty = 0; pretty < 2; pretty++) {
        for (size_t i = 0; i <= count; i++) { /* one field at a time, then all */
            spec from, to;
            char *text = NULL;
            ck_assert_ok(spec_init(&from, &err));
            ck_assert_ok(spec_init(&to, &err));
            char *plain = dump(&from);
            for (size_t k = 0; k < count; k++)
                if (k == i || i == count)
                    set_unusual(&from, &fields[k], (int)k);
            ck_assert_ok(spec_dump(&from, pretty, &text, &err));
            ck_assert_ok(spec_parse(&to, text, strlen(text), "dump", &err));
            char *a = dump(&from), *b = dump(&to);
            ck_assert_str_eq(a, b);
            if (i < count && strcmp(fields[i].path, "train.optimiser") != 0)
                ck_assert_msg(strcmp(a, plain) != 0, "%s is not in the dump", fields[i].path);
            for (size_t k = 0; k < count; k++) { /* values, not only their text */
                size_t size = fields[k].type == SPEC_DOUBLE || fields[k].type == SPEC_SEED ||
                                      fields[k].type == SPEC_INT
                                  ? 8
                                  : 0;
                ck_assert(memcmp((char *)&from + fields[k].offset, (char *)&to + fields[k].offset,
                                 size) == 0);
            }
            free(a), free(b), free(text), free(plain);
            spec_fini(&from), spec_fini(&to);
        }
    }
}
END_TEST

START_TEST(copy_is_deep)
{
    spec copy;
    ck_assert_ok(spec_set(&s, "data.path=/a", &err));
    ck_assert_ok(spec_copy(&s, &copy, &err));
    ck_assert_ok(spec_set(&s, "data.path=/b", &err));
    ck_assert_str_eq(copy.data.path, "/a");
    spec_fini(&copy);
}
END_TEST

START_TEST(load_names_the_file)
{
    char *folder = suite_folder(), *path = suite_path(folder, "job.json");
    ck_assert_fails(spec_load(&s, path, &err), STATUS_BAD_INPUT, "No such file");
    ck_assert_fails(spec_load(&s, folder, &err), STATUS_BAD_INPUT, "Is a directory");
    FILE *file = fopen(path, "w");
    fputs("{\"train\": {\n\"lr\": 0.25,\n\"oops\": 1}}", file);
    fclose(file);
    ck_assert_fails(spec_load(&s, path, &err), STATUS_BAD_INPUT, "job.json:3");
    file = fopen(path, "w");
    fputs("{\"train\": {\"lr\": 0.25}}\n", file);
    fclose(file);
    ck_assert_ok(spec_load(&s, path, &err));
    ck_assert(s.train.lr == 0.25);
    ck_assert_int_eq(truncate(path, 2 << 20), 0);
    ck_assert_fails(spec_load(&s, path, &err), STATUS_BAD_INPUT, "larger than 1048576 bytes");
    free(path);
    suite_remove(folder);
}
END_TEST

START_TEST(schema_holds_every_field)
{
    char *text = NULL;
    size_t count;
    const spec_field *fields = spec_fields(&count);
    cJSON *schema = NULL;
    ck_assert_ok(spec_schema(&text, &err));
    ck_assert_ok(json_parse(text, strlen(text), "schema", &schema, &err));
    for (size_t i = 0; i < count; i++) {
        char path[100];
        const cJSON *at = schema;
        snprintf(path, sizeof path, "%s", fields[i].path);
        for (char *part = strtok(path, "."); part; part = strtok(NULL, ".")) {
            ck_assert(cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(at, "additionalProperties")));
            at = cJSON_GetObjectItemCaseSensitive(at, "properties");
            at = cJSON_GetObjectItemCaseSensitive(at, part);
        }
        ck_assert_msg(cJSON_IsObject(at), "%s", fields[i].path);
        ck_assert_str_eq(cJSON_GetObjectItemCaseSensitive(at, "description")->valuestring,
                         fields[i].help);
        ck_assert_int_eq(cJSON_HasObjectItem(at, "default"), fields[i].preset != NULL);
    }
    const cJSON *train = cJSON_GetObjectItem(cJSON_GetObjectItem(schema, "properties"), "train");
    const cJSON *momentum =
        cJSON_GetObjectItem(cJSON_GetObjectItem(train, "properties"), "momentum");
    ck_assert(cJSON_GetObjectItem(momentum, "exclusiveMaximum")->valuedouble == 1);
    cJSON_Delete(schema);
    free(text);
}
END_TEST

START_TEST(help_holds_every_field)
{
    char *text = NULL;
    size_t count;
    const spec_field *fields = spec_fields(&count);
    ck_assert_ok(spec_help(&text, &err));
    for (size_t i = 0; i < count; i++) {
        ck_assert_ptr_nonnull(strstr(text, fields[i].path));
        ck_assert_ptr_nonnull(strstr(text, fields[i].help));
    }
    ck_assert_ptr_nonnull(strstr(text, "multistep | exp | cosine; default \"multistep\""));
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        ck_assert_msg(strlen(line) <= 110, "a line too long to read: %s", line);
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("spec");
    TCase *tc = tcase_create("spec");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, defaults);
    tcase_add_test(tc, fini_is_idempotent);
    tcase_add_test(tc, enum_order_matches_the_struct);
    tcase_add_test(tc, parses_over_what_is_there);
    tcase_add_loop_test(tc, refused_in_one_line, 0, sizeof refused / sizeof refused[0]);
    tcase_add_test(tc, hostile_text);
    tcase_add_test(tc, seeds_keep_64_bits);
    tcase_add_test(tc, ring_seed_is_given_or_not);
    tcase_add_loop_test(tc, set_words, 0, sizeof sets / sizeof sets[0]);
    tcase_add_test(tc, set_takes_what_it_says);
    tcase_add_loop_test(tc, related_fields, 0, sizeof relations / sizeof relations[0]);
    tcase_add_test(tc, validate_judges_hand_made_structs);
    tcase_add_test(tc, dump_reads_back_every_field);
    tcase_add_test(tc, copy_is_deep);
    tcase_add_test(tc, load_names_the_file);
    tcase_add_test(tc, schema_holds_every_field);
    tcase_add_test(tc, help_holds_every_field);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
