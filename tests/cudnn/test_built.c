/*
 * One graph of each kind built to the end for an A100, an H200 and a B200, under the fake driver;
 * what was chosen, the kernels' names and the architecture they are compiled for go into a table
 * (CUDNN_BUILT_TABLE). And what plans and the cache of compiled plans do.
 *
 * Precompiled engines do not tell their kernels' names before they run, but their knobs tell the
 * generation: those for sm_90 and later choose clusters of blocks (tile_cga_*).
 */
#include <ctype.h>
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cudnn_testing.h"

/* ---- the kinds ---- */

enum {
    MAX_KINDS = 24
};

static graph_case conv_case(int kind, dnn_type type, conv_desc conv)
{
    return (graph_case){
        .kind = kind, .conv = conv, .channels = conv.x.c < 8 ? 8 : conv.x.c, .type = type};
}

static graph_case bn_case(int kind, dnn_type type, bool relu, bool residual, bool two)
{
    return (graph_case){
        .is_bn = true,
        .kind = kind,
        .bn = {.x = {128, 128, 16, 16}, .eps = 1e-5f, .relu = relu, .residual = residual},
        .two_gradients = two,
        .type = type};
}

static int all_kinds(int device, graph_case ret[MAX_KINDS])
{
    int n = 0;
    for (int kind = DNN_CONV_FORWARD; kind <= DNN_CONV_BACKWARD_WEIGHTS; kind++) {
        ret[n++] = conv_case(kind, DNN_BF16, square_conv(128, 128, 16, 128, 3, 1));
        ret[n++] = conv_case(kind, DNN_FP32, square_conv(128, 128, 16, 128, 3, 1));
    }
    ret[n++] = conv_case(DNN_CONV_FORWARD, DNN_BF16, square_conv(128, 3, 32, 64, 3, 1));
    ret[n++] = conv_case(DNN_CONV_BACKWARD_DATA, DNN_BF16, square_conv(128, 64, 32, 128, 3, 2));
    ret[n++] = conv_case(DNN_CONV_BACKWARD_WEIGHTS, DNN_BF16, square_conv(128, 64, 32, 128, 1, 2));
    ret[n++] =
        conv_case(DNN_CONV_BACKWARD_DATA_ADD, DNN_BF16, square_conv(128, 128, 16, 128, 3, 1));
    if (device == B200) /* of an older generation there, unlike the one before */
        ret[n++] =
            conv_case(DNN_CONV_BACKWARD_DATA_ADD, DNN_BF16, square_conv(128, 64, 32, 128, 3, 2));
    ret[n++] =
        conv_case(DNN_CONV_BACKWARD_WEIGHTS_SCALED, DNN_BF16, square_conv(128, 128, 16, 128, 3, 1));
    ret[n++] = bn_case(DNN_BN_FORWARD, DNN_BF16, false, false, false);
    ret[n++] = bn_case(DNN_BN_FORWARD, DNN_BF16, true, false, false);
    ret[n++] = bn_case(DNN_BN_FORWARD, DNN_BF16, true, true, false);
    ret[n++] = bn_case(DNN_BN_FORWARD, DNN_FP32, true, true, false);
    ret[n++] = bn_case(DNN_BN_BACKWARD, DNN_BF16, false, false, false);
    ret[n++] = bn_case(DNN_BN_BACKWARD, DNN_BF16, true, false, false);
    ret[n++] = bn_case(DNN_BN_BACKWARD, DNN_BF16, true, true, true);
    ret[n++] = bn_case(DNN_BN_BACKWARD, DNN_FP32, true, true, true);
    ck_assert_int_le(n, MAX_KINDS);
    return n;
}

/* Written by cuDNN's runtime compiler; the rest is in the library. */
static bool is_compiled(const graph_case *c)
{
    return c->is_bn || c->kind == DNN_CONV_BACKWARD_DATA_ADD ||
           c->kind == DNN_CONV_BACKWARD_WEIGHTS_SCALED;
}

static dnn_op *create_op(dnn *d, const graph_case *c)
{
    dnn_op *op = NULL;
    if (c->is_bn)
        MUST(dnn_bn_create(d, (dnn_bn_kind)c->kind, &c->bn, c->two_gradients, c->type, &op, err));
    else
        MUST(dnn_conv_create(d, (dnn_conv_kind)c->kind, &c->conv, c->channels, c->type, &op, err));
    ck_assert_msg(op, "%s", dnn_missing(d));
    return op;
}

/* ---- reading a compiled plan ---- */

static cJSON *read_plan(const dnn_plan *p)
{
    size_t length = 0;
    char *text = dnn_plan_text(p->plan, &length);
    ck_assert_ptr_nonnull(text);
    cJSON *json = cJSON_Parse(text); /* it ends with a NUL */
    ck_assert_msg(json, "%s: the plan is no JSON", p->key);
    free(text);
    return json;
}

static int base64_value(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : 0;
}

/* The architecture of an ELF that holds GPU code: 90 for sm_90. */
static int cubin_architecture(const char *base64)
{
    enum {
        ABI = 8,
        FLAGS = 48,
        HEADER = 64
    };
    unsigned char header[HEADER] = {0};
    ck_assert_uint_ge(strlen(base64), HEADER * 4 / 3 + 4);
    for (int i = 0; i < HEADER; i++) {
        const char *four = base64 + i / 3 * 4;
        unsigned value = (unsigned)base64_value(four[0]) << 18 |
                         (unsigned)base64_value(four[1]) << 12 |
                         (unsigned)base64_value(four[2]) << 6 | (unsigned)base64_value(four[3]);
        header[i] = (unsigned char)(value >> (16 - i % 3 * 8));
    }
    ck_assert_msg(memcmp(header, "\177ELF", 4) == 0, "the cubin is no ELF");
    return header[ABI] >= 8 ? header[FLAGS + 1] : header[FLAGS];
}

/* The names of the kernels that a plan carries, or "precompiled". *ret_architecture is 0 then. */
static void kernel_names(const cJSON *plan, char *ret, size_t size, int *ret_architecture)
{
    const cJSON *engine = cJSON_GetObjectItemCaseSensitive(plan, "engine");
    const cJSON *payload = cJSON_GetObjectItemCaseSensitive(engine, "payload");
    const cJSON *kernels = cJSON_GetObjectItemCaseSensitive(payload, "kernels"), *kernel;
    size_t used = 0;
    *ret_architecture = 0;
    snprintf(ret, size, "precompiled");
    cJSON_ArrayForEach (kernel, kernels) {
        const char *name =
            cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(kernel, "kernelName"));
        const char *cubin = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(kernel, "cubin"));
        ck_assert(name && cubin && used < size);
        used += (size_t)snprintf(ret + used, size - used, "%s%s", used ? ", " : "", name);
        *ret_architecture = cubin_architecture(cubin);
    }
}

/* The engine and knobs that cuDNN says it built are those that were asked for. */
static void check_engine(const dnn_plan *p, const cJSON *plan)
{
    const cJSON *engine = cJSON_GetObjectItemCaseSensitive(plan, "engine");
    const cJSON *choices = cJSON_GetObjectItemCaseSensitive(engine, "knobChoices"), *knob;
    cJSON *choice = dnn_choice_write(&p->choice);
    ck_assert_int_eq(cJSON_GetObjectItemCaseSensitive(engine, "engineId")->valueint,
                     (int)p->choice.engine);
    cJSON_ArrayForEach (knob, cJSON_GetObjectItemCaseSensitive(choice, "knobs")) {
        char name[80];
        int used = snprintf(name, sizeof name, "CUDNN_KNOB_TYPE_%s", knob->string);
        for (int i = 0; i < used; i++)
            name[i] = (char)toupper((unsigned char)name[i]);
        const cJSON *built = cJSON_GetObjectItemCaseSensitive(choices, name);
        ck_assert_msg(built && built->valueint == knob->valueint, "%s: %s is not %d", p->key, name,
                      knob->valueint);
    }
    cJSON_Delete(choice);
}

static bool has_knob(const dnn_plan *p, cudnnBackendKnobType_t knob)
{
    for (int i = 0; i < p->choice.knobs; i++)
        if (p->choice.knob[i] == (int64_t)knob)
            return true;
    return false;
}

/* A heuristic that lists the choice says that it is deterministic. */
static void check_notes(const dnn *d, const dnn_graph *g, const dnn_plan *p)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_B,
                                                   CUDNN_HEUR_MODE_FALLBACK};
    bool is_listed = false;
    for (int m = 0; m < COUNT(modes) && !is_listed; m++) {
        dnn_candidate *list = NULL;
        int count = 0;
        MUST(dnn_candidates(d, g, modes[m], &list, &count, err));
        for (int i = 0; i < count && !is_listed; i++) {
            is_listed = dnn_choice_equal(&list[i].choice, &p->choice);
            ck_assert(!is_listed || !(list[i].notes & 1u << CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC));
        }
        free(list);
    }
    ck_assert_msg(is_listed, "%s: no heuristic lists what was chosen", g->key);
}

/* ---- the table ---- */

static void check_built(dnn *d, int device, const graph_case *c, FILE *table)
{
    static const int architectures[] = {80, 90, 100};
    char names[300];
    int architecture = 0;
    double begin = seconds_now();
    dnn_graph *g = make_graph(d, c);
    dnn_op *op = create_op(d, c);
    double seconds = seconds_now() - begin;
    const dnn_plan *p = d->plans; /* the newest */
    cJSON *plan = read_plan(p), *choice = dnn_choice_write(&p->choice);
    char *engine = cJSON_PrintUnformatted(choice);
    ck_assert_str_eq(p->key, g->key);
    check_engine(p, plan);
    check_notes(d, g, p);
    kernel_names(plan, names, sizeof names, &architecture);
    bool clusters = has_knob(p, CUDNN_KNOB_TYPE_TILE_CGA_M);
    if (architecture == 0)
        snprintf(names, sizeof names, "precompiled, %s",
                 clusters ? "clusters: sm_90 or later" : "no clusters");
    fprintf(table, "%s  %-66s %8.1f KiB %5.2f s  sm_%d %s  %s\n", device_names[device], p->key,
            (double)p->workspace / 1024, seconds, architecture, names, engine);
    ck_assert_msg(architecture == 0 || architecture == architectures[device],
                  "%s: compiled for sm_%d", p->key, architecture);
    ck_assert_msg(is_compiled(c) == (architecture != 0), "%s: %s", p->key, names);
    /* the device's own generation, not the one before; but for the stem, whose 8 channels are few
     */
    if (!is_compiled(c) && c->channels > 8)
        ck_assert_msg(clusters == (device != A100), "%s: %s", p->key, engine);
    free(engine);
    cJSON_Delete(choice);
    cJSON_Delete(plan);
    dnn_op_destroy(&op);
    free_graph(g);
}

START_TEST(every_kind_is_built)
{
    graph_case kinds[MAX_KINDS];
    int count = all_kinds(_i, kinds);
    dnn *d = open_device(_i, true, NULL, NULL);
    FILE *table = fopen(CUDNN_BUILT_TABLE, "a");
    ck_assert_ptr_nonnull(table);
    for (int i = 0; i < count; i++)
        check_built(d, _i, &kinds[i], table);
    fclose(table);
    dnn_close(&d);
}
END_TEST

/* Without TF32 no product of fp32 numbers is rounded on its way in. */
START_TEST(fp32_keeps_off_tensor_cores)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_B,
                                                   CUDNN_HEUR_MODE_FALLBACK};
    dnn *d = open_device(_i, false, NULL, NULL);
    for (int kind = DNN_CONV_FORWARD; kind <= DNN_CONV_BACKWARD_WEIGHTS; kind++) {
        graph_case c = conv_case(kind, DNN_FP32, square_conv(128, 128, 16, 128, 3, 1));
        dnn_op *op = create_op(d, &c);
        dnn_graph *g = make_graph(d, &c);
        int same = 0;
        for (int m = 0; m < COUNT(modes); m++) {
            dnn_candidate *list = NULL;
            int count = 0;
            MUST(dnn_candidates(d, g, modes[m], &list, &count, err));
            for (int i = 0; i < count; i++) {
                if (!dnn_choice_equal(&list[i].choice, &d->plans->choice))
                    continue;
                same++;
                ck_assert_uint_eq(list[i].notes & (1u << CUDNN_NUMERICAL_NOTE_TENSOR_CORE |
                                                   1u << CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS |
                                                   1u << CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC),
                                  0);
            }
            free(list);
        }
        ck_assert_int_gt(same, 0);
        free_graph(g);
        dnn_op_destroy(&op);
    }
    dnn_close(&d);
}
END_TEST

START_TEST(there_is_nothing_to_run_it_on)
{
    graph_case c = conv_case(DNN_CONV_FORWARD, DNN_BF16, square_conv(8, 64, 8, 64, 3, 1));
    dnn *d = open_device(H200, true, NULL, NULL);
    dnn_op *op = create_op(d, &c);
    void *pointers[3] = {NULL};
    ck_assert_int_eq(dnn_run(op, pointers), STATUS_ENVIRONMENT);
    ck_assert_ptr_nonnull(strstr(dnn_last_error(d), "conv.forward"));
    dnn_op_destroy(&op);
    dnn_op_destroy(&op);
    dnn_close(&d);
    dnn_close(&d);
}
END_TEST

START_TEST(device_properties_are_read)
{
    static const char *const bad[] = {"", "{}", "[", "{\"deviceVer\": 900}"};
    for (int i = 0; i < COUNT(bad); i++) {
        dnn_options options = {.device_json = bad[i], .device_name = "none"};
        dnn *d = NULL;
        errbuf err = {.code = STATUS_OK};
        ck_assert_msg(dnn_open(&options, &d, &err) == STATUS_ENVIRONMENT, "\"%s\"", bad[i]);
        ck_assert_ptr_null(d);
        ck_assert_ptr_nonnull(strstr(err.text, "cuDNN"));
    }
    dnn_options real = {.device_name = "none"}; /* the fake driver has no device */
    errbuf err = {.code = STATUS_OK};
    dnn *d = NULL;
    ck_assert_int_eq(dnn_open(&real, &d, &err), STATUS_ENVIRONMENT);
}
END_TEST

/* ---- plans ---- */

static cJSON *describe(const dnn *d)
{
    cJSON *plan = NULL;
    MUST(dnn_describe(d, &plan, err));
    ck_assert_str_eq(cJSON_GetObjectItemCaseSensitive(plan, "version")->valuestring, dnn_version());
    return plan;
}

static cJSON *entry_of(const cJSON *plan, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(plan, "engines"), key);
}

START_TEST(a_plan_is_followed)
{
    graph_case c = conv_case(DNN_CONV_FORWARD, DNN_BF16, square_conv(128, 64, 32, 64, 3, 1));
    dnn *d = open_device(H200, true, NULL, NULL);
    dnn_graph *g = make_graph(d, &c);
    dnn_candidate *list = NULL;
    int count = 0;
    MUST(dnn_candidates(d, g, CUDNN_HEUR_MODE_A, &list, &count, err));
    ck_assert_int_gt(count, 5);
    cJSON *plan = cJSON_CreateObject();
    cJSON_AddItemToObject(cJSON_AddObjectToObject(plan, "engines"), g->key,
                          dnn_choice_write(&list[5].choice));
    dnn *follower = open_device(H200, true, plan, NULL);
    dnn_op *op = create_op(d, &c), *same = create_op(d, &c), *other = create_op(follower, &c);
    cJSON *first = describe(d), *second = describe(follower);
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(first, "engines")), 1);
    ck_assert(cJSON_Compare(entry_of(plan, g->key), entry_of(second, g->key), true));
    ck_assert(!cJSON_Compare(entry_of(first, g->key), entry_of(second, g->key), true));
    dnn_op_destroy(&op);
    dnn_op_destroy(&same);
    dnn_op_destroy(&other);
    cJSON_Delete(first);
    cJSON_Delete(second);
    free(list);
    free_graph(g);
    dnn_close(&follower);
    dnn_close(&d);
    cJSON_Delete(plan);
}
END_TEST

/* entry: of the graph's key, as text; "" for none. */
static void check_bad_entry(const char *entry, const char *complaint)
{
    graph_case c = conv_case(DNN_CONV_FORWARD, DNN_BF16, square_conv(128, 64, 32, 64, 3, 1));
    cJSON *plan = cJSON_CreateObject(), *engines = cJSON_AddObjectToObject(plan, "engines");
    dnn *d = open_device(H200, true, plan, NULL);
    dnn_graph *g = make_graph(d, &c);
    dnn_op *op = NULL;
    errbuf err = {.code = STATUS_OK};
    if (*entry)
        cJSON_AddItemToObject(engines, g->key, cJSON_Parse(entry));
    status st = dnn_conv_create(d, DNN_CONV_FORWARD, &c.conv, c.channels, c.type, &op, &err);
    ck_assert_msg(st == STATUS_BAD_INPUT && strstr(err.text, complaint) && strstr(err.text, g->key),
                  "%s: %d %s", entry, (int)st, err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
    free_graph(g);
    dnn_close(&d);
    cJSON_Delete(plan);
}

START_TEST(a_plan_that_does_not_fit_is_refused)
{
    check_bad_entry("", "is not in it");
    check_bad_entry("3", "is expected");
    check_bad_entry("{\"engine\": \"3\", \"knobs\": {}}", "is expected");
    check_bad_entry("{\"engine\": 3, \"knobs\": {\"no_such\": 1}}", "is expected");
    check_bad_entry("{\"engine\": 1e300, \"knobs\": {}}", "is expected");
    check_bad_entry("{\"engine\": 9999, \"knobs\": {}}", "cannot build");
    check_bad_entry("{\"engine\": 1, \"knobs\": {\"tile_size\": 99999}}", "cannot build");
}
END_TEST

START_TEST(a_plan_may_say_that_there_is_none)
{
    graph_case c = conv_case(DNN_CONV_FORWARD, DNN_BF16, square_conv(128, 64, 32, 64, 3, 1));
    cJSON *plan = cJSON_CreateObject(), *engines = cJSON_AddObjectToObject(plan, "engines");
    dnn *d = open_device(H200, true, plan, NULL);
    dnn_graph *g = make_graph(d, &c);
    dnn_op *op = NULL;
    cJSON_AddNullToObject(engines, g->key);
    MUST(dnn_conv_create(d, DNN_CONV_FORWARD, &c.conv, c.channels, c.type, &op, err));
    ck_assert_ptr_null(op);
    free_graph(g);
    dnn_close(&d);
    cJSON_Delete(plan);
}
END_TEST

/* ---- the cache ---- */

static char cache[] = "cudnn_cache_XXXXXX", entry_path[400];

static void make_cache(void)
{
    ck_assert_ptr_nonnull(mkdtemp(cache));
}

/* The path of the cache's only file, or NULL. */
static const char *only_entry(int *ret_count)
{
    DIR *folder = opendir(cache);
    ck_assert_ptr_nonnull(folder);
    *ret_count = 0;
    for (struct dirent *e; (e = readdir(folder));) {
        if (e->d_name[0] == '.')
            continue;
        ++*ret_count;
        snprintf(entry_path, sizeof entry_path, "%s/%s", cache, e->d_name);
    }
    closedir(folder);
    return *ret_count == 1 ? entry_path : NULL;
}

static void remove_cache(void)
{
    int count;
    while (only_entry(&count), count > 0)
        unlink(entry_path);
    rmdir(cache);
}

/* A graph whose plan is compiled, and one that takes no time. */
static const graph_case *slow_case(void)
{
    static graph_case c;
    c = bn_case(DNN_BN_FORWARD, DNN_BF16, true, true, false);
    return &c;
}

static const graph_case *quick_case(void)
{
    static graph_case c;
    c = conv_case(DNN_CONV_FORWARD, DNN_BF16, square_conv(128, 64, 32, 64, 3, 1));
    return &c;
}

/* The text of the plan that is built with the cache. */
static char *build_cached(const graph_case *c, int device, const char *folder, size_t *ret_length)
{
    dnn *d = open_device(device, true, NULL, folder);
    dnn_op *op = create_op(d, c);
    char *text = dnn_plan_text(d->plans->plan, ret_length);
    ck_assert_ptr_nonnull(text);
    dnn_op_destroy(&op);
    dnn_close(&d);
    return text;
}

static void check_cached(const graph_case *c, const char *expect, size_t expect_length)
{
    size_t length = 0;
    char *text = build_cached(c, H200, cache, &length);
    ck_assert_uint_eq(length, expect_length);
    ck_assert(memcmp(text, expect, length) == 0);
    free(text);
}

START_TEST(compiled_plans_are_kept)
{
    size_t length = 0;
    struct stat before, after;
    int count = 0;
    double begin = seconds_now();
    char *text = build_cached(slow_case(), H200, cache, &length);
    double built = seconds_now() - begin;
    ck_assert_msg(only_entry(&count), "%d files", count);
    ck_assert_int_eq(stat(entry_path, &before), 0);
    begin = seconds_now();
    check_cached(slow_case(), text, length);
    printf("a batch norm: %.3f s to build, %.3f s from the cache of %zu bytes\n", built,
           seconds_now() - begin, length);
    ck_assert_int_eq(stat(only_entry(&count), &after), 0);
    ck_assert(before.st_ino == after.st_ino);              /* not written again */
    free(build_cached(slow_case(), B200, cache, &length)); /* another device: another file */
    only_entry(&count);
    ck_assert_int_eq(count, 2);
    free(text);
}
END_TEST

/* Cut short, a byte changed at several places, empty, another file's content. */
START_TEST(damage_is_repaired)
{
    size_t length = 0, size = 0;
    int count = 0;
    char *text = build_cached(quick_case(), H200, cache, &length), *good = NULL;
    MUST(file_read_all(only_entry(&count), (size_t)1 << 24, &good, &size, err));
    for (int round = 0; round < 6; round++) {
        size_t keep = round == 0 ? size / 2 : round == 1 ? 0 : round == 2 ? 40 : size;
        char *bad = malloc(size + 1), *repaired = NULL;
        size_t repaired_size = 0;
        ck_assert_ptr_nonnull(bad);
        memcpy(bad, good, size);
        if (round > 2) /* in the name, the hash, the plan */
            bad[round == 3 ? 30 : round == 4 ? 100 : size / 2] ^= 1;
        MUST(file_write_atomic(entry_path, bad, keep, err));
        check_cached(quick_case(), text, length);
        MUST(file_read_all(only_entry(&count), (size_t)1 << 24, &repaired, &repaired_size, err));
        ck_assert_msg(repaired_size == size && memcmp(repaired, good, size) == 0, "round %d",
                      round);
        free(repaired);
        free(bad);
    }
    free(good);
    free(text);
}
END_TEST

START_TEST(a_folder_that_cannot_be_written_costs_time_only)
{
    size_t length = 0;
    free(build_cached(quick_case(), H200, "/dev/null/cache", &length));
}
END_TEST

int main(void)
{
    if (!has_fake_driver())
        return 77;
    remove(CUDNN_BUILT_TABLE);
    Suite *suite = suite_create("cudnn.built");
    TCase *built = tcase_create("built"), *plans = tcase_create("plans"),
          *kept = tcase_create("cache");
    tcase_add_loop_test(built, every_kind_is_built, 0, DEVICES);
    tcase_add_loop_test(built, fp32_keeps_off_tensor_cores, 0, DEVICES);
    tcase_add_test(built, there_is_nothing_to_run_it_on);
    tcase_add_test(built, device_properties_are_read);
    tcase_add_test(plans, a_plan_is_followed);
    tcase_add_test(plans, a_plan_that_does_not_fit_is_refused);
    tcase_add_test(plans, a_plan_may_say_that_there_is_none);
    tcase_add_checked_fixture(kept, make_cache, remove_cache);
    tcase_add_test(kept, compiled_plans_are_kept);
    tcase_add_test(kept, damage_is_repaired);
    tcase_add_test(kept, a_folder_that_cannot_be_written_costs_time_only);
    suite_add_tcase(suite, built);
    suite_add_tcase(suite, plans);
    suite_add_tcase(suite, kept);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
