/*
 * Has cuDNN an engine for every graph that ResNet-18 and 34 need, on an A100, an H200 and a B200?
 * Convolutions come from precompiled engines and are built to the end; batch norms are compiled at
 * runtime, half a second each, so here they only have to be listed (test_built.c builds some).
 *
 * `test_cudnn_support --table [device]` prints what is chosen for ResNet-18 on CIFAR, batch 128.
 */
#include "cudnn_testing.h"

enum {
    MAX_KEYS = 2048
};

/* Graphs of one kind, pass and type on one device. */
typedef struct tally {
    char name[64];
    int graphs, fewest, most; /* configurations that mode A lists and that may be used */
    int beyond;               /* graphs for which mode A has none */
} tally;

typedef struct support {
    dnn *d;
    int device, keys, missing;
    char (*seen)[DNN_KEY_SIZE];
    tally tallies[32];
    int kinds;
} support;

static bool is_new(support *s, const char *key)
{
    for (int i = 0; i < s->keys; i++)
        if (strcmp(s->seen[i], key) == 0)
            return false;
    ck_assert_int_lt(s->keys, MAX_KEYS);
    memcpy(s->seen[s->keys++], key, DNN_KEY_SIZE);
    return true;
}

static int allowed_in(const dnn *d, const dnn_graph *g, cudnnBackendHeurMode_t mode)
{
    dnn_candidate *list = NULL;
    int listed = 0, allowed = 0;
    MUST(dnn_candidates(d, g, mode, &list, &listed, err));
    for (int i = 0; i < listed; i++)
        allowed += dnn_candidate_allowed(g, &list[i]);
    free(list);
    return allowed;
}

static void count_graph(support *s, const char *key, int allowed)
{
    char name[64];
    int i = 0;
    snprintf(name, sizeof name, "%.*s", (int)(strstr(key, " n") - key), key);
    while (i < s->kinds && strcmp(s->tallies[i].name, name) != 0)
        i++;
    ck_assert_int_lt(i, COUNT(s->tallies));
    tally *t = &s->tallies[i];
    if (i == s->kinds) {
        s->kinds++;
        snprintf(t->name, sizeof t->name, "%s", name);
        t->fewest = allowed;
    }
    t->graphs++;
    t->beyond += allowed == 0;
    t->fewest = allowed < t->fewest ? allowed : t->fewest;
    t->most = allowed > t->most ? allowed : t->most;
}

/* Whether an engine can be had. */
static bool is_supported(const dnn *d, const dnn_graph *g, bool is_bn, int listed)
{
    dnn_plan *p = NULL;
    if (is_bn)
        return listed > 0 || allowed_in(d, g, CUDNN_HEUR_MODE_B) > 0 ||
               allowed_in(d, g, CUDNN_HEUR_MODE_FALLBACK) > 0;
    MUST(dnn_plan_make(d, g, &p, err));
    bool ok = p->plan != NULL;
    if (!ok)
        fprintf(stderr, "%s: %s\n", g->key, p->why);
    dnn_plan_destroy(&p);
    return ok;
}

static void check_graph(void *ctx, const graph_case *c)
{
    support *s = ctx;
    dnn_graph *g = make_graph(s->d, c);
    if (is_new(s, g->key)) {
        int listed = g->graph ? allowed_in(s->d, g, CUDNN_HEUR_MODE_A) : 0;
        count_graph(s, g->key, listed);
        if (!g->graph || !is_supported(s->d, g, c->is_bn, listed)) {
            s->missing++;
            fprintf(stderr, "%s: %s: no engine %s\n", device_names[s->device], g->key, g->why);
        }
    }
    free_graph(g);
}

static void print_tallies(const support *s)
{
    for (int i = 0; i < s->kinds; i++) {
        const tally *t = &s->tallies[i];
        printf("%s %-32s %3d graphs, %2d to %2d configurations in mode A", device_names[s->device],
               t->name, t->graphs, t->fewest, t->most);
        if (t->beyond)
            printf(", %d only beyond it", t->beyond);
        printf("\n");
    }
    fflush(stdout);
}

static const struct {
    dnn_type type;
    bool tf32;
} precisions[] = {{DNN_BF16, true}, {DNN_FP32, true}, {DNN_FP32, false}};

START_TEST(every_graph_has_an_engine)
{
    support s = {.device = _i / COUNT(precisions)};
    dnn_type type = precisions[_i % COUNT(precisions)].type;
    s.d = open_device(s.device, precisions[_i % COUNT(precisions)].tf32, NULL, NULL);
    s.seen = calloc(MAX_KEYS, sizeof *s.seen);
    ck_assert_ptr_nonnull(s.seen);
    each_graph(true, 128, type, check_graph, &s);
    each_graph(true, 512, type, check_graph, &s);
    each_graph(false, 256, type, check_graph, &s);
    print_tallies(&s);
    ck_assert_msg(s.missing == 0, "%d graphs have no engine", s.missing);
    free(s.seen);
    dnn_close(&s.d);
}
END_TEST

/* ---- what there is no engine for ---- */

/* With these our own kernels do the work. An engine that a later cuDNN brings is no failure of
 * ours, but worth knowing: the test says so and is to be changed then. */
static const struct {
    const char *why;
    graph_case graph;
} gaps[] = {
    {"channels in eights", {.is_bn = true, .bn = {.x = {32, 12, 8, 8}, .eps = 1e-5f}}},
    {"channels in eights", {.is_bn = true, .bn = {.x = {32, 4, 8, 8}, .eps = 1e-5f, .relu = true}}},
    {"two gradients want the mask",
     {.is_bn = true,
      .kind = DNN_BN_BACKWARD,
      .bn = {.x = {128, 128, 16, 16}, .eps = 1e-5f},
      .two_gradients = true}},
};

START_TEST(a_gap_is_named)
{
    graph_case c = gaps[_i % COUNT(gaps)].graph;
    dnn *d = open_device(_i / COUNT(gaps), true, NULL, NULL);
    cJSON *plan = NULL;
    c.type = DNN_BF16;
    dnn_graph *g = make_graph(d, &c);
    for (int round = 0; round < 2; round++) { /* asked for again, it answers from memory */
        dnn_op *op = (dnn_op *)(void *)d;
        MUST(dnn_bn_create(d, (dnn_bn_kind)c.kind, &c.bn, c.two_gradients, c.type, &op, err));
        ck_assert_msg(!op, "%s has an engine now (%s)", g->key, gaps[_i % COUNT(gaps)].why);
        ck_assert_msg(strstr(dnn_missing(d), g->key), "%s", dnn_missing(d));
        ck_assert_ptr_null(strchr(dnn_missing(d), '\n'));
    }
    MUST(dnn_describe(d, &plan, err));
    ck_assert(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(
        cJSON_GetObjectItemCaseSensitive(plan, "engines"), g->key)));
    cJSON_Delete(plan);
    free_graph(g);
    dnn_close(&d);
}
END_TEST

/* ---- the table ---- */

static void print_choice(void *ctx, const graph_case *c)
{
    support *s = ctx;
    dnn_graph *g = make_graph(s->d, c);
    dnn_plan *p = NULL;
    if (is_new(s, g->key)) {
        double begin = seconds_now();
        MUST(dnn_plan_make(s->d, g, &p, err));
        cJSON *json = p->plan ? dnn_choice_write(&p->choice) : NULL;
        char *text = cJSON_PrintUnformatted(json);
        printf("%-72s %7.1f KiB scratch %5.2f s  %s\n", g->key, (double)p->workspace / 1024,
               seconds_now() - begin, text ? text : p->why);
        free(text);
        cJSON_Delete(json);
        dnn_plan_destroy(&p);
    }
    free_graph(g);
}

/* A test, as what it calls reports through Check. */
static int table_device = H200;

START_TEST(table)
{
    support s = {.device = table_device, .seen = calloc(MAX_KEYS, sizeof *s.seen)};
    ck_assert_ptr_nonnull(s.seen);
    s.d = open_device(s.device, true, NULL, NULL);
    printf("cuDNN %s, %s: ResNet-18, CIFAR, batch 128: the default engines\n", dnn_version(),
           device_names[s.device]);
    each_graph(true, 128, DNN_BF16, print_choice, &s);
    fflush(stdout);
    free(s.seen);
    dnn_close(&s.d);
}
END_TEST

static bool wants_table(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--table") != 0)
        return false;
    for (int i = 0; argc > 2 && i < DEVICES; i++)
        if (strcmp(argv[2], device_names[i]) == 0)
            table_device = i;
    return true;
}

int main(int argc, char **argv)
{
    if (!has_fake_driver())
        return 77;
    Suite *suite = suite_create("cudnn.support");
    TCase *tc = tcase_create("networks");
    if (wants_table(argc, argv)) {
        tcase_add_test(tc, table);
    } else {
        tcase_add_loop_test(tc, every_graph_has_an_engine, 0, DEVICES * COUNT(precisions));
        tcase_add_loop_test(tc, a_gap_is_named, 0, DEVICES * COUNT(gaps));
    }
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
