/*
 * The table of fields of the job spec: the one place that knows their names, types, ranges,
 * defaults and meaning. Presets are the CIFAR recipe of the paper (METHODS 1.6); one never changes
 * within a spec version. A field that is marked SPEC_AFFECTS_RESULTS is part of the job id: what
 * a run's bits or its choice of the best checkpoint depend on, given its data's content hash.
 */
#include <string.h>

#include "protocol/spec_internal.h"

static const char *const arch_names[] = {"resnet18", "resnet34", NULL};
static const char *const stem_names[] = {"cifar", "imagenet", NULL};
static const char *const scope_names[] = {"none", "global", "block", NULL};
static const char *const index_names[] = {"even", "random", "tile", NULL};
static const char *const kind_names[] = {"synthetic", "cifar10", "cifar100", "folder", NULL};
static const char *const augment_names[] = {"auto", "none", "crop", "rrc", NULL};
static const char *const normalise_names[] = {"auto",     "none",     "cifar10",
                                              "cifar100", "imagenet", NULL};
static const char *const on_error_names[] = {"fail", "skip", NULL};
static const char *const optimiser_names[] = {"sgd", NULL};
static const char *const decay_names[] = {"all", "weights", "ring", NULL};
static const char *const schedule_names[] = {"multistep", "exp", "cosine", NULL};
static const char *const precision_names[] = {"fp32", "tf32", "bf16", NULL};
static const char *const backend_names[] = {"auto", "cpu", "cuda", "reference", NULL};
static const char *const plan_change_names[] = {"hold", "continue", "restart", NULL};

/* Counts of images, steps and ring elements are indices of 31 bits somewhere below. */
#define COUNT_MAX 2147483647.0
/* What most fields are: something to sweep, that changes the result. */
#define RESULT     (SPEC_SWEEPABLE | SPEC_AFFECTS_RESULTS)

#define AT(member) offsetof(spec, member)
#define INT(path, member, lo, hi, preset, flags, help)                \
    {                                                                 \
        path, SPEC_INT, AT(member), lo, hi, preset, NULL, help, flags \
    }
#define REAL(path, member, lo, hi, preset, flags, help)                  \
    {                                                                    \
        path, SPEC_DOUBLE, AT(member), lo, hi, preset, NULL, help, flags \
    }
#define SEED(path, member, preset, flags, help)                      \
    {                                                                \
        path, SPEC_SEED, AT(member), 0, 0, preset, NULL, help, flags \
    }
#define BOOL(path, member, preset, flags, help)                      \
    {                                                                \
        path, SPEC_BOOL, AT(member), 0, 0, preset, NULL, help, flags \
    }
#define TEXT(path, member, preset, flags, help)                        \
    {                                                                  \
        path, SPEC_STRING, AT(member), 0, 0, preset, NULL, help, flags \
    }
#define ENUM(path, member, names, preset, flags, help)                \
    {                                                                 \
        path, SPEC_ENUM, AT(member), 0, 0, preset, names, help, flags \
    }

/* Fields of one group stand together: spec_dump opens and closes a group once. */
static const spec_field fields[] = {
    TEXT("name", name, "\"job\"", SPEC_LABEL, "label of the run; letters, digits, '.', '_', '-'"),
    INT("repeat", repeat, 0, 1e6, "0", SPEC_AFFECTS_RESULTS,
        "0 = the job itself, k = its k-th repetition with the same bits"),

    ENUM("model.arch", model.arch, arch_names, "\"resnet18\"", RESULT, "network"),
    ENUM("model.stem", model.stem, stem_names, "\"cifar\"", RESULT,
         "cifar: 3x3 conv; imagenet: 7x7 conv of stride 2 and max pool"),
    INT("model.width", model.width, 1, 4096, "64", RESULT, "channels of layer1; the paper's is 64"),
    INT("model.classes", model.classes, 0, 1e6, "0", RESULT, "0 = as many as the data has"),

    ENUM("rpg.scope", rpg.scope, scope_names, "\"global\"", RESULT,
         "which convs share a ring: none (dense), global, block (one a stage)"),
    INT("rpg.size", rpg.size, 0, COUNT_MAX, NULL, RESULT,
        "ring size N in total; this, share or sizes is needed (0 = not given)"),
    REAL("rpg.share", rpg.share, 0, 1024, NULL, RESULT,
         "ring size as a share of the generated weights M (0 = not given)"),
    {"rpg.sizes", SPEC_SIZES, AT(rpg.sizes), 1, COUNT_MAX, NULL, NULL,
     "scope block: ring sizes by name, {\"layer1\": n, ...} ({} = not given)", RESULT},
    BOOL("rpg.permute", rpg.permute, "true", RESULT, "false: index(j) = j mod N (ablation)"),
    BOOL("rpg.reflect", rpg.reflect, "true", RESULT, "false: all signs +1 (ablation)"),
    ENUM("rpg.index", rpg.index, index_names, "\"even\"", RESULT,
         "ring map: even (the paper's), random (with replacement), tile (fast)"),
    BOOL("rpg.include_stem", rpg.include_stem, "false", RESULT, "the stem conv is ring-backed too"),
    REAL("rpg.init_std", rpg.init_std, 0, 1000, "0", RESULT,
         "standard deviation of the ring at start; 0 = sqrt(2 / (9 out_max))"),
    SEED("rpg.seed", rpg.seed, NULL, RESULT, "of ring map and signs; default: train.seed"),

    ENUM("data.kind", data.kind, kind_names, "\"synthetic\"", RESULT, "image set"),
    TEXT("data.path", data.path, "\"\"", SPEC_SWEEPABLE,
         "folder of the CIFAR binaries, or with train/ and val/ of one folder a class"),
    INT("data.size", data.size, 0, 4096, "0", RESULT,
        "side of the network's square input; 0 = 32, for folders 224"),
    INT("data.subset", data.subset, 0, COUNT_MAX, "0", RESULT,
        "training images used, a fixed choice; 0 = all"),
    INT("data.eval_subset", data.eval_subset, 0, COUNT_MAX, "0", RESULT,
        "validation images used; 0 = all"),
    INT("data.train_count", data.train_count, 1, COUNT_MAX, "20000", RESULT,
        "training images of the synthetic set"),
    INT("data.eval_count", data.eval_count, 1, COUNT_MAX, "4000", RESULT,
        "validation images of the synthetic set"),
    SEED("data.seed", data.seed, "1", RESULT, "of the synthetic set"),
    ENUM("data.augment", data.augment, augment_names, "\"auto\"", RESULT,
         "crop: pad 4, crop, flip; rrc: random resized crop, flip; auto: by kind"),
    ENUM("data.normalise", data.normalise, normalise_names, "\"auto\"", RESULT,
         "whose mean and standard deviation; auto: by kind"),
    ENUM("data.on_error", data.on_error, on_error_names, "\"fail\"", RESULT,
         "an image that cannot be read: fail, or skip it"),
    INT("data.workers", data.workers, 1, 256, "1", 0, "loader threads of a rank"),

    INT("resources.workers", resources.workers, 0, 65536, "0", 0,
        "ranks; 0 = the world's size; given and not that: refused"),
    INT("resources.threads", resources.threads, 0, 1024, "0", 0,
        "compute threads a rank; 0 = the cores that it may use"),

    INT("train.epochs", train.epochs, 1, 1e6, "200", RESULT, "passes over the data"),
    INT("train.batch", train.batch, 1, 1 << 24, "128", RESULT, "images a step, over all ranks"),
    ENUM("train.optimiser", train.optimiser, optimiser_names, "\"sgd\"", RESULT, "optimiser"),
    REAL("train.lr", train.lr, 0, 1000, "0.1", RESULT, "learning rate at the start"),
    REAL("train.momentum", train.momentum, 0, 1, "0.9", RESULT | SPEC_UPPER_OPEN, "momentum"),
    BOOL("train.nesterov", train.nesterov, "false", RESULT, "Nesterov momentum"),
    REAL("train.weight_decay", train.weight_decay, 0, 10, "0.0005", RESULT, "weight decay"),
    ENUM("train.decay_on", train.decay_on, decay_names, "\"all\"", RESULT,
         "what decays: all (as the authors), weights (no BN, no bias), ring"),
    ENUM("train.schedule", train.schedule, schedule_names, "\"multistep\"", RESULT,
         "learning rate over the epochs"),
    {"train.milestones", SPEC_MILESTONES, AT(train.milestones), 0, 1e6, "[60, 120, 160]", NULL,
     "multistep: epochs at which the rate is multiplied by gamma", RESULT},
    REAL("train.gamma", train.gamma, 0, 10, "0.1", RESULT | SPEC_LOWER_OPEN,
         "multistep and exp: the factor"),
    REAL("train.decay_epochs", train.decay_epochs, 0, 1e6, "45", RESULT | SPEC_LOWER_OPEN,
         "exp: rate = lr * gamma^(epoch / decay_epochs)"),
    REAL("train.warmup", train.warmup, 0, 1e6, "0", RESULT, "epochs of linear warm-up"),
    SEED("train.seed", train.seed, "1", RESULT, "of initial values, sample order, augmentation"),
    BOOL("train.exact", train.exact, "false", RESULT,
         "the same bits for any number of ranks and threads"),
    INT("train.shard", train.shard, 0, 1 << 24, "0", RESULT,
        "images that share BN statistics; 0 = batch / workers, exact: at most 32"),
    INT("train.eval_every", train.eval_every, 1, 1e6, "1", RESULT, "epochs between evaluations"),
    INT("train.checkpoint_every", train.checkpoint_every, 0, COUNT_MAX, "0", 0,
        "steps between checkpoints; 0 = at each evaluation"),
    INT("train.log_every", train.log_every, 1, COUNT_MAX, "50", 0, "steps between step records"),
    BOOL("train.train_eval", train.train_eval, "false", 0,
         "measure clean accuracy on the training set too"),
    ENUM("train.precision", train.precision, precision_names, "\"fp32\"", RESULT,
         "of convolutions; tf32 and bf16 need a GPU"),

    ENUM("backend.name", backend.name, backend_names, "\"auto\"", RESULT, "who computes"),
    TEXT("backend.plan", backend.plan, "\"default\"", 0,
         "default (a fixed choice), tune (times and writes a plan), or a plan file"),
    ENUM("backend.on_plan_change", backend.on_plan_change, plan_change_names, "\"hold\"", 0,
         "a resume on a machine of another plan: hold (stop), continue, restart"),

    TEXT("out", out, "\"\"", 0, "run folder; empty = runs/NAME"),
};

const spec_field *spec_fields(size_t *ret_count)
{
    *ret_count = sizeof fields / sizeof fields[0];
    return fields;
}

const spec_field *spec_find_field(const char *path)
{
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (strcmp(fields[i].path, path) == 0)
            return &fields[i];
    return NULL;
}

bool spec_is_group(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (strncmp(fields[i].path, name, length) == 0 && fields[i].path[length] == '.')
            return true;
    return false;
}

bool spec_is_given(const spec *s, const spec_field *f)
{
    if (f->offset == AT(rpg.size))
        return s->rpg.size != 0;
    if (f->offset == AT(rpg.share))
        return s->rpg.share != 0;
    if (f->offset == AT(rpg.sizes))
        return s->rpg.sizes.count != 0;
    if (f->offset == AT(rpg.seed))
        return s->rpg.seed_given;
    return true;
}
