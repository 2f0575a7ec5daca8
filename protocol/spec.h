/*
 * The job spec: what one training run is, as a C struct and as JSON (FORMATS 1).
 *
 * One table of fields (spec_fields) drives parsing, validation, --set, --help, the JSON Schema,
 * the docs and the job id. A spec is *resolved* once every default that depends on something
 * else (auto values, seeds, sizes from shares) has been replaced; only resolved specs are stored.
 */
#ifndef RINGMASTER_PROTOCOL_SPEC_H
#define RINGMASTER_PROTOCOL_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/status.h"

#define SPEC_VERSION        1
#define SPEC_MAX_SIZES      64
#define SPEC_MAX_MILESTONES 32
#define SPEC_MAX_RING_NAME  64

enum spec_arch {
    ARCH_RESNET18,
    ARCH_RESNET34
};
enum spec_stem {
    STEM_CIFAR,
    STEM_IMAGENET
};
enum spec_scope {
    SCOPE_NONE,
    SCOPE_GLOBAL,
    SCOPE_BLOCK
};
enum spec_index {
    INDEX_EVEN,
    INDEX_RANDOM,
    INDEX_TILE
};
enum spec_data_kind {
    DATA_SYNTHETIC,
    DATA_CIFAR10,
    DATA_CIFAR100,
    DATA_FOLDER
};
enum spec_augment {
    AUGMENT_AUTO,
    AUGMENT_NONE,
    AUGMENT_CROP,
    AUGMENT_RRC
};
enum spec_normalise {
    NORMALISE_AUTO,
    NORMALISE_NONE,
    NORMALISE_CIFAR10,
    NORMALISE_CIFAR100,
    NORMALISE_IMAGENET
};
enum spec_on_error {
    ON_ERROR_FAIL,
    ON_ERROR_SKIP
};
enum spec_optimiser {
    OPTIMISER_SGD
};
enum spec_decay_on {
    DECAY_ALL,
    DECAY_WEIGHTS,
    DECAY_RING
};
enum spec_schedule {
    SCHEDULE_MULTISTEP,
    SCHEDULE_EXP,
    SCHEDULE_COSINE
};
enum spec_precision {
    PRECISION_FP32,
    PRECISION_TF32,
    PRECISION_BF16
};
enum spec_backend {
    BACKEND_AUTO,
    BACKEND_CPU,
    BACKEND_CUDA,
    BACKEND_REFERENCE
};
enum spec_plan_change {
    PLAN_CHANGE_HOLD,
    PLAN_CHANGE_CONTINUE,
    PLAN_CHANGE_RESTART
};

/* rpg.sizes: ring name ("layer1" … "layer4") -> N. */
typedef struct spec_sizes {
    int count;
    struct {
        char ring[SPEC_MAX_RING_NAME];
        int64_t size;
    } entry[SPEC_MAX_SIZES];
} spec_sizes;

typedef struct spec_milestones {
    int count;
    double epoch[SPEC_MAX_MILESTONES]; /* ascending */
} spec_milestones;

/* Enums are stored as int, so that one setter can serve all of them. Strings are owned by the
 * spec (spec_fini frees them) and never NULL after spec_init. */
typedef struct spec {
    char *name;     /* label only: letters, digits, '.', '_', '-' */
    int64_t repeat; /* 0 = the job itself; k = the k-th repetition of the same bits */
    struct {
        int arch, stem;  /* enum spec_arch, spec_stem */
        int64_t width;   /* channels of layer1; 64 is the paper's */
        int64_t classes; /* 0 = as many as the data has */
    } model;
    struct {
        int scope;    /* enum spec_scope */
        int64_t size; /* N in total; 0 = not given */
        double share; /* of M; 0 = not given; resolved specs hold size or sizes */
        spec_sizes sizes;
        bool permute, reflect;
        int index;         /* enum spec_index */
        bool include_stem; /* stem conv is ring-backed too */
        double init_std;   /* 0 = sqrt(2 / (9 out_max)) */
        uint64_t seed;     /* defaults to train.seed */
        bool seed_given;   /* not a field: rpg.seed was set */
    } rpg;
    struct {
        int kind; /* enum spec_data_kind */
        char *path;
        int64_t size;                     /* side of the square network input; 0 = 32, folder 224 */
        int64_t subset;                   /* training images used, a fixed choice; 0 = all */
        int64_t eval_subset;              /* validation images used; 0 = all */
        int64_t train_count, eval_count;  /* images of the synthetic set */
        uint64_t seed;                    /* of the synthetic set */
        int augment, normalise, on_error; /* enums; auto is resolved by kind */
        int64_t workers;                  /* loader threads of a rank */
    } data;
    struct {
        int64_t workers; /* ranks; 0 = the world's size */
        int64_t threads; /* a rank; 0 = affinity mask / local ranks */
    } resources;
    struct {
        int64_t epochs;
        int64_t batch; /* global */
        int optimiser; /* enum spec_optimiser */
        double lr, momentum;
        bool nesterov;
        double weight_decay;
        int decay_on;               /* enum spec_decay_on: all | weights (no BN, no bias) | ring */
        int schedule;               /* enum spec_schedule */
        spec_milestones milestones; /* multistep, in epochs */
        double gamma;               /* multistep and exp: the factor */
        double decay_epochs;        /* exp: lr = lr0 * gamma^(epoch / decay_epochs), by the epoch */
        double warmup;              /* epochs of linear warm-up, 0 = none */
        uint64_t seed;
        bool exact;
        int64_t shard;            /* images a BN shard; 0 = FORMATS 1 default */
        int64_t eval_every;       /* epochs */
        int64_t checkpoint_every; /* steps; 0 = at the end of every epoch that evaluates */
        int64_t log_every;        /* steps between `step` records */
        bool train_eval;          /* also measure clean accuracy on the training set */
        int precision;            /* enum spec_precision */
    } train;
    struct {
        int name;   /* enum spec_backend */
        char *plan; /* default | tune | PATH */
        int on_plan_change;
    } backend;
    char *out; /* run folder */
} spec;

typedef enum spec_type {
    SPEC_INT,    /* int64_t, range [min, max] */
    SPEC_SEED,   /* uint64_t: JSON string of decimal digits, or an integer up to 2^53 */
    SPEC_DOUBLE, /* range [min, max] */
    SPEC_BOOL,
    SPEC_STRING,
    SPEC_ENUM,
    SPEC_SIZES,
    SPEC_MILESTONES,
} spec_type;

enum spec_flags {
    SPEC_SWEEPABLE = 1,
    SPEC_AFFECTS_RESULTS = 2, /* part of the job id and of the checkpoint's metadata */
    SPEC_LOWER_OPEN = 4,      /* min itself is not allowed */
    SPEC_UPPER_OPEN = 8,      /* max itself is not allowed */
    SPEC_LABEL = 16,          /* a string of letters, digits, '.', '_', '-', not empty */
};

/* One row of the table. */
typedef struct spec_field {
    const char *path; /* dotted: "rpg.size" */
    spec_type type;
    size_t offset;            /* in struct spec */
    double min, max;          /* numbers */
    const char *preset;       /* the default as JSON text; NULL = none: zero, not shown in a dump */
    const char *const *names; /* SPEC_ENUM: NULL-ended, in enum order */
    const char *help;
    unsigned flags;
} spec_field;

/* The table, in file order. */
const spec_field *spec_fields(size_t *ret_count);
const spec_field *spec_find_field(const char *path); /* NULL = none */

/* All defaults. Free with spec_fini (NULL-safe, idempotent). */
CHECK_RESULT status spec_init(spec *s, errbuf *err);
void spec_fini(spec *s);
CHECK_RESULT status spec_copy(const spec *from, spec *ret_to, errbuf *err);

/* Parses JSON text (any length, need not be NUL-ended) over the defaults into an initialised
 * spec. `source` names it in messages ("job.json"); an error names source:line, the JSON path,
 * what was expected and the nearest valid name. Unknown and duplicate keys are errors. On
 * failure *s is as it was. */
CHECK_RESULT status spec_parse(spec *s, const char *text, size_t length, const char *source,
                               errbuf *err);
CHECK_RESULT status spec_load(spec *s, const char *path, errbuf *err);

/* "train.lr=0.05", also "rpg.sizes={\"layer1\":100}" and bare strings; of a set path=value. */
CHECK_RESULT status spec_set(spec *s, const char *assignment, errbuf *err);

/* Relations between fields that need neither data, net nor world: exactly one of size, share,
 * sizes unless scope is none; permute=false only with even; warm-up <= epochs; a path where kind
 * needs one, precision that the backend knows, … */
CHECK_RESULT status spec_validate(const spec *s, errbuf *err);

/* The spec as JSON text, keys in table order, doubles as shortest text that reads back equal,
 * seeds as integers where < 2^53, else strings. Caller frees. `pretty` indents. */
CHECK_RESULT status spec_dump(const spec *s, bool pretty, char **ret_text, errbuf *err);
/* The fields marked 'affects results' alone, compact, sorted keys, doubles %.17g (FORMATS 2):
 * what the id hashes and checkpoints hold. `repeat` only where it is not 0. */
CHECK_RESULT status spec_dump_results(const spec *s, char **ret_text, errbuf *err);
/* One line a differing field, "train.lr: 0.1 here, 0.05 there"; "" when equal. Caller frees. */
CHECK_RESULT status spec_diff_results(const char *here, const char *there, char **ret_text,
                                      errbuf *err);
/* JSON Schema (draft 2020-12) and the help table of all fields. Caller frees. */
CHECK_RESULT status spec_schema(char **ret_text, errbuf *err);
CHECK_RESULT status spec_help(char **ret_text, errbuf *err);

/* Job id (FORMATS 2): 32 hex digits and NUL over spec_dump_results, version, data hash (hex). */
CHECK_RESULT status spec_job_id(const spec *s, const char *data_hash, char ret_id[33], errbuf *err);

#endif
