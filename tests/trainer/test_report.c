/* Counts: MACs, DoF, the wire formula, memory; JSON and text. */
#include <check.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/net/builders.h"
#include "trainer/net/exec.h"
#include "trainer/net/report.h"

static net *build(int arch, int stem, int classes, int scope, int64_t size)
{
    net *n = NULL;
    errbuf err = {0};
    spec s;
    memset(&s, 0, sizeof s);
    s.model.arch = arch;
    s.model.stem = stem;
    s.model.width = 64;
    s.model.classes = classes;
    s.data.size = stem == STEM_IMAGENET ? 224 : 32;
    s.rpg.scope = scope;
    s.rpg.size = size;
    s.rpg.permute = s.rpg.reflect = true;
    status st = net_build(&s, &n, &err);
    ck_assert_msg(st == STATUS_OK, "%s", err.text);
    return n;
}

/* METHODS 1.3 (224: with a 1000-way fc; 32: the published numbers are those of a 100-way fc), 7.2:
 * conv MACs of ResNet-18 at 224 are 1,813,561,344. */
START_TEST(macs_are_the_published_ones)
{
    static const struct {
        int arch, stem, classes;
        int64_t macs;
    } cases[] = {{ARCH_RESNET18, STEM_IMAGENET, 1000, 1814073344},
                 {ARCH_RESNET34, STEM_IMAGENET, 1000, 3663761408},
                 {ARCH_RESNET18, STEM_CIFAR, 100, 555468800},
                 {ARCH_RESNET34, STEM_CIFAR, 100, 1159448576}};
    net *n = build(cases[_i].arch, cases[_i].stem, cases[_i].classes, SCOPE_GLOBAL, 1000);
    net_counts c;
    net_count(n, &c);
    ck_assert_int_eq(c.macs, cases[_i].macs);
    int64_t convs = 0;
    for (int i = 0; i < n->nodes; i++)
        if (n->node[i].kind == NODE_CONV)
            convs += net_node_macs(n, i);
    ck_assert_int_eq(convs, cases[_i].macs - 512 * cases[_i].classes);
    if (_i == 0)
        ck_assert_int_eq(convs, 1813561344);
    net_destroy(&n);
}
END_TEST

/* PERFORMANCE N1: (M + 16,458 + s) / (N + 16,458 + s), s = 9600 */
START_TEST(bytes_on_the_wire_follow_the_formula)
{
    static const struct {
        int64_t size;
        double ratio, slack;
    } cases[] = {{2359296, 4.69, 0.005}, {100000, 89, 0.5}, {36864, 178, 0.5}};
    net *n = build(ARCH_RESNET18, STEM_CIFAR, 10, SCOPE_GLOBAL, cases[_i].size);
    net_counts c;
    net_count(n, &c);
    ck_assert_int_eq(c.wire, cases[_i].size + 16458 + 9600);
    ck_assert_int_eq(c.wire_dense, 11157504 + 16458 + 9600);
    ck_assert(fabs((double)c.wire_dense / (double)c.wire - cases[_i].ratio) < cases[_i].slack);
    net_destroy(&n);
}
END_TEST

/* METHODS 1.2: "45K" = 36,864 + 9,600 BN (R18), 53,888 (R34), here with the CIFAR stem's 1,728. */
START_TEST(degrees_of_freedom_are_counted_as_defined)
{
    net_counts ring, dense;
    net *n = build(ARCH_RESNET34, STEM_CIFAR, 10, SCOPE_GLOBAL, 36864);
    net_count(n, &ring);
    net_destroy(&n);
    ck_assert_int_eq(ring.dof, 53888 + 1728);
    ck_assert_int_eq(ring.dof_total, ring.dof + 5130);
    ck_assert_int_eq(ring.stem, 1728);
    ck_assert_int_eq(ring.direct_conv, 0);
    n = build(ARCH_RESNET34, STEM_CIFAR, 10, SCOPE_NONE, 0);
    net_count(n, &dense);
    net_destroy(&n);
    ck_assert_int_eq(dense.dof, 21276992); /* METHODS 1.3, backbone */
    ck_assert_int_eq(dense.dof_total, 21282122);
    ck_assert_int_eq(dense.dense_total, dense.dof_total);
    ck_assert_int_eq(ring.dense_total, dense.dof_total);
    ck_assert_int_eq(dense.stem, 1728);
    ck_assert_int_eq(dense.direct_conv, 21258240);
    ck_assert_int_eq(dense.wire, ring.wire_dense);
    ck_assert_int_eq(dense.generated, 0);
    /* N > M: elements that no weight uses are trained by nobody */
    n = build(ARCH_RESNET18, STEM_CIFAR, 10, SCOPE_GLOBAL, 11160576);
    net_count(n, &ring);
    net_destroy(&n);
    ck_assert_int_eq(ring.ring, 11160576);
    ck_assert_int_eq(ring.ring_used, 11157504);
    ck_assert_int_eq(ring.dof, 11168832);
}
END_TEST

/* Without AVX2 oneDNN has no blocked backward passes, and other tables are made. */
static bool is_blocked(backend *be)
{
    cJSON *plan = NULL;
    errbuf err = {0};
    ck_assert_int_eq(be->ops->describe(be, &plan, &err), STATUS_OK);
    const char *isa = cJSON_GetStringValue(cJSON_GetObjectItem(plan, "isa"));
    const bool blocked = isa && (strncmp(isa, "avx2", 4) == 0 || strncmp(isa, "avx512", 6) == 0);
    cJSON_Delete(plan);
    return blocked;
}

/* What is estimated is what an executor takes, ring-backed (near and far) and dense, where backward
 * data has weights and tables of its own or, with Winograd, shares the forward pass's. */
START_TEST(memory_is_what_an_executor_takes)
{
    static const int64_t sizes[] = {36864, 2359296, 0};
    const backend_ops *cpu = backend_find("cpu");
    if (!cpu || !cpu->available())
        return;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        errbuf err = {0};
        net_memory m;
        backend *be = NULL;
        net_exec *e = NULL;
        net *n =
            build(ARCH_RESNET18, STEM_CIFAR, 10, sizes[i] ? SCOPE_GLOBAL : SCOPE_NONE, sizes[i]);
        backend_options options = {.threads = 1, .lanes = 1};
        net_exec_options exec = {.batch = 2, .lanes = 1, .training = true};
        ck_assert_int_eq(net_estimate_memory(n, 2, 1, &m, &err), STATUS_OK);
        ck_assert_int_eq(cpu->open(&options, &be, &err), STATUS_OK);
        if (!is_blocked(be)) {
            cpu->close(be);
            net_destroy(&n);
            return;
        }
        ck_assert_int_eq(net_exec_create(n, be, &exec, &e, &err), STATUS_OK);
        const double taken = (double)net_exec_usage(e).weights;
        const double tables = (double)m.tables * (sizes[i] == 2359296 ? 1 : 10.0 / 14);
        const double least = tables + (double)(m.weights / 2 + m.weight_gradients);
        const double most = (double)(m.tables + m.weights + m.weight_gradients);
        ck_assert_msg(taken > 0.97 * least && taken < 1.03 * most, "ring %lld: %g, not %g to %g",
                      (long long)sizes[i], taken, least, most);
        net_exec_destroy(&e);
        cpu->close(be);
        net_destroy(&n);
    }
}
END_TEST

/* Each part against its own arithmetic; activations at least what the largest op needs, and in
 * proportion to the shard. */
START_TEST(memory_is_estimated_part_by_part)
{
    errbuf err = {0};
    net_memory m, lanes;
    net *n = build(ARCH_RESNET18, STEM_CIFAR, 10, SCOPE_GLOBAL, 2359296);
    ck_assert_int_eq(net_estimate_memory(n, 128, 1, &m, &err), STATUS_OK);
    ck_assert_int_eq(m.params, 4 * (2359296 + 16458));
    ck_assert_int_eq(m.momentum, m.params);
    ck_assert_int_eq(m.gradient, m.params + 4 * (9600 + 2));
    ck_assert_int_eq(m.tables, 6 * 11157504 + 14 * 1728); /* and the stem's */
    ck_assert_int_eq(m.weights, 2 * 4 * 11159232);
    ck_assert_int_eq(m.weight_gradients, 4 * 11159232);
    /* every conv's input and BN's input and output must be kept: 2 tensors a conv */
    int64_t kept = 0;
    for (int i = 0; i < n->nodes; i++)
        if (n->node[i].kind == NODE_CONV)
            kept += 2 * 4 * 128 * shape_elements(conv_output(&n->node[i].conv));
    ck_assert(m.activations > kept * 9 / 10 && m.activations < kept * 3 / 2);
    ck_assert_int_eq(m.total, m.params + m.momentum + m.gradient + m.tables + m.weights +
                                  m.weight_gradients + m.activations);
    ck_assert_int_eq(net_estimate_memory(n, 64, 2, &lanes, &err), STATUS_OK);
    ck_assert_int_eq(lanes.weight_gradients, 2 * m.weight_gradients);
    ck_assert(fabs((double)lanes.activations / (double)m.activations - 1) < 0.01);
    net_destroy(&n);
}
END_TEST

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    ck_assert_msg(cJSON_IsNumber(item), "%s", name);
    return item->valuedouble;
}

START_TEST(json_holds_every_kernel)
{
    errbuf err = {0};
    cJSON *json = NULL;
    net *n = build(ARCH_RESNET18, STEM_CIFAR, 10, SCOPE_BLOCK, 36864);
    ck_assert_int_eq(net_report_json(n, &json, &err), STATUS_OK);
    ck_assert(number(json, "generated") == 11157504);
    ck_assert(number(json, "ring") == 36864);
    ck_assert(number(json, "dof") == 36864 + 9600 + 1728);
    ck_assert(number(json, "distinct_kernels") == 19);
    ck_assert(number(json, "wire_bytes") == 4 * (36864 + 16458 + 9600));
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItem(json, "rings")), 4);
    const cJSON *kernels = cJSON_GetObjectItem(json, "kernels"), *k;
    double total = 0, share = 0, macs = 512 * 10;
    ck_assert_int_eq(cJSON_GetArraySize(kernels), 20);
    cJSON_ArrayForEach (k, kernels) {
        macs += number(k, "macs");
        if (cJSON_IsNull(cJSON_GetObjectItem(k, "ring")))
            continue;
        total += number(k, "elements");
        share += number(k, "share");
    }
    ck_assert(total == 11157504);
    ck_assert(fabs(share - 4) < 1e-12); /* each ring's slots share it out */
    ck_assert(macs == number(json, "macs"));
    cJSON_Delete(json);
    net_destroy(&n);
}
END_TEST

START_TEST(text_is_an_aligned_table)
{
    errbuf err = {0};
    char *text = NULL;
    net_memory m;
    net *n = build(ARCH_RESNET18, STEM_IMAGENET, 1000, SCOPE_GLOBAL, 2359296);
    ck_assert_int_eq(net_estimate_memory(n, 32, 1, &m, &err), STATUS_OK);
    ck_assert_int_eq(net_report_text(n, &m, &text, &err), STATUS_OK);
    ck_assert_ptr_nonnull(strstr(text, "resnet18, input 3 x 224 x 224, output of 1000"));
    ck_assert_ptr_nonnull(strstr(text, "1,814,073,344"));
    ck_assert_ptr_nonnull(strstr(text, "11,157,504"));
    ck_assert_ptr_nonnull(strstr(text, "layer4.0.downsample.0.weight"));
    size_t width = 0; /* the kernels' table: every row as long as the others */
    for (const char *line = strstr(text, "\nkernel") + 1; *line != '\n';) {
        size_t length = strcspn(line, "\n");
        ck_assert(width == 0 || length == width);
        width = length;
        line += length + 1;
    }
    ck_assert_uint_le(width, 120);
    free(text);
    net_destroy(&n);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("report");
    TCase *tc = tcase_create("report");
    tcase_add_loop_test(tc, macs_are_the_published_ones, 0, 4);
    tcase_add_loop_test(tc, bytes_on_the_wire_follow_the_formula, 0, 3);
    tcase_add_test(tc, degrees_of_freedom_are_counted_as_defined);
    tcase_add_test(tc, memory_is_estimated_part_by_part);
    tcase_add_test(tc, memory_is_what_an_executor_takes);
    tcase_add_test(tc, json_holds_every_kernel);
    tcase_add_test(tc, text_is_an_aligned_table);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
