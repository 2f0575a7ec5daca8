/* ResNet-18 and -34: METHODS' sizes to the digit, names, slot order, ring sizes, alpha. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/net/builders.h"

/* A spec with only what net_build reads. */
static spec net_spec(int arch, int stem, int scope, int64_t size)
{
    spec s;
    memset(&s, 0, sizeof s);
    s.model.arch = arch;
    s.model.stem = stem;
    s.model.width = 64;
    s.model.classes = 10;
    s.data.size = stem == STEM_IMAGENET ? 224 : 32;
    s.rpg.scope = scope;
    s.rpg.size = size;
    s.rpg.permute = s.rpg.reflect = true;
    s.train.seed = 7;
    return s;
}

static net *build(const spec *s)
{
    net *n = NULL;
    errbuf err = {0};
    status st = net_build(s, &n, &err);
    ck_assert_msg(st == STATUS_OK, "%s", err.text);
    return n;
}

static int64_t kernel_total(const net *n, bool ring_backed)
{
    int64_t total = 0;
    for (int i = 0; i < n->kernels; i++)
        if ((n->kernel[i].ring >= 0) == ring_backed)
            total += kernel_elements(n->kernel[i].shape);
    return total;
}

static int64_t param_total(const net *n, param_kind kind)
{
    int64_t total = 0;
    for (int i = 0; i < n->params; i++)
        if (n->param[i].kind == kind)
            total += n->param[i].elements;
    return total;
}

/* METHODS 1.3 */
static const struct {
    int arch, stem, classes;
    int64_t conv, ring_m, bn, fc, total;
} sizes[] = {
    {ARCH_RESNET18, STEM_CIFAR, 10, 11159232, 11157504, 9600, 5130, 11173962},
    {ARCH_RESNET18, STEM_CIFAR, 100, 11159232, 11157504, 9600, 51300, 11220132},
    {ARCH_RESNET34, STEM_CIFAR, 10, 21259968, 21258240, 17024, 5130, 21282122},
    {ARCH_RESNET34, STEM_CIFAR, 100, 21259968, 21258240, 17024, 51300, 21328292},
    {ARCH_RESNET18, STEM_IMAGENET, 1000, 11166912, 11157504, 9600, 513000, 11689512},
    {ARCH_RESNET34, STEM_IMAGENET, 1000, 21267648, 21258240, 17024, 513000, 21797672},
};

START_TEST(sizes_are_the_published_ones)
{
    spec s = net_spec(sizes[_i].arch, sizes[_i].stem, SCOPE_GLOBAL, 2359296);
    s.model.classes = sizes[_i].classes;
    net *n = build(&s);
    ck_assert_int_eq(n->rings, 1);
    ck_assert_int_eq(n->ring[0].m, sizes[_i].ring_m);
    ck_assert_int_eq(kernel_total(n, true), sizes[_i].ring_m);
    ck_assert_int_eq(kernel_total(n, true) + kernel_total(n, false), sizes[_i].conv);
    ck_assert_int_eq(param_total(n, PARAM_GAMMA) + param_total(n, PARAM_BETA), sizes[_i].bn);
    ck_assert_int_eq(param_total(n, PARAM_FC) + param_total(n, PARAM_BIAS), sizes[_i].fc);
    ck_assert_int_eq(n->running_elements, sizes[_i].bn);
    ck_assert_int_eq(n->param_elements,
                     2359296 + sizes[_i].total - sizes[_i].ring_m); /* ring for M */
    net_destroy(&n);

    s.rpg.scope = SCOPE_NONE;
    s.rpg.size = 0;
    n = build(&s);
    ck_assert_int_eq(n->rings, 0);
    ck_assert_int_eq(n->param_elements, sizes[_i].total);
    net_destroy(&n);
}
END_TEST

/* METHODS 1.3, ring M per stage */
START_TEST(stage_rings_hold_the_published_weights)
{
    static const int64_t m[2][4] = {{147456, 524288, 2097152, 8388608},
                                    {221184, 1114112, 6815744, 13107200}};
    static const char *const names[4] = {"layer1", "layer2", "layer3", "layer4"};
    spec s = net_spec(_i ? ARCH_RESNET34 : ARCH_RESNET18, STEM_CIFAR, SCOPE_BLOCK, 100000);
    net *n = build(&s);
    int64_t total = 0;
    ck_assert_int_eq(n->rings, 4);
    for (int i = 0; i < 4; i++) {
        ck_assert_str_eq(n->ring[i].name, names[i]);
        ck_assert_int_eq(n->ring[i].m, m[_i][i]);
        total += n->ring[i].n;
    }
    ck_assert_int_eq(total, 100000);
    net_destroy(&n);
}
END_TEST

/* METHODS 1.4: .525 of R34's M, an exact split; the tie at .6 goes to the earlier ring. */
START_TEST(block_sizes_are_split_by_largest_remainder)
{
    static const int64_t expected[4] = {116122, 584909, 3578265, 6881280};
    spec s = net_spec(ARCH_RESNET34, STEM_CIFAR, SCOPE_BLOCK, 0);
    errbuf err = {0};
    s.rpg.share = 0.525;
    ck_assert_int_eq(spec_resolve_rings(&s, &err), STATUS_OK);
    ck_assert_int_eq(s.rpg.size, 0);
    ck_assert(s.rpg.share == 0);
    ck_assert_int_eq(s.rpg.sizes.count, 4);
    int64_t total = 0;
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(s.rpg.sizes.entry[i].size, expected[i]);
        total += expected[i];
    }
    ck_assert_int_eq(total, 11160576);
    ck_assert_str_eq(s.rpg.sizes.entry[3].ring, "layer4");
    ck_assert_uint_eq(s.rpg.seed, 7);

    spec again = s; /* a resolved spec resolves to itself */
    ck_assert_int_eq(spec_resolve_rings(&again, &err), STATUS_OK);
    ck_assert_mem_eq(&again, &s, sizeof s);
    net *n = build(&s);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(n->ring[i].n, expected[i]);
    net_destroy(&n);
}
END_TEST

START_TEST(every_split_is_exact_and_leaves_no_ring_empty)
{
    static const int64_t totals[] = {4, 5, 7, 20, 100, 997, 4096, 36864, 11157504, 2147483647};
    spec s = net_spec(ARCH_RESNET18, STEM_CIFAR, SCOPE_BLOCK, totals[_i]);
    errbuf err = {0};
    ck_assert_int_eq(spec_resolve_rings(&s, &err), STATUS_OK);
    int64_t total = 0;
    for (int i = 0; i < 4; i++) {
        int64_t size = s.rpg.sizes.entry[i].size;
        static const double m[4] = {147456, 524288, 2097152, 8388608};
        ck_assert_int_ge(size, 1);
        if (totals[_i] >= 100) /* within one of proportion */
            ck_assert(fabs((double)size - (double)totals[_i] * m[i] / 11157504) < 1);
        total += size;
    }
    ck_assert_int_eq(total, totals[_i]);
}
END_TEST

START_TEST(share_is_rounded_half_up)
{
    static const struct {
        double share; /* of M = 174,336 */
        int64_t size;
    } cases[] = {{1e-9, 1}, {1.5 / 174336, 2}, {1.4 / 174336, 1}, {0.5, 87168}, {2, 348672}};
    spec s = net_spec(ARCH_RESNET18, STEM_CIFAR, SCOPE_GLOBAL, 0);
    errbuf err = {0};
    s.model.width = 8;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        s.rpg.size = 0;
        s.rpg.share = cases[i].share;
        ck_assert_int_eq(spec_resolve_rings(&s, &err), STATUS_OK);
        ck_assert_int_eq(s.rpg.size, cases[i].size);
        ck_assert(s.rpg.share == 0);
    }
}
END_TEST

static const char *resolve_error(spec *s)
{
    static errbuf err;
    memset(&err, 0, sizeof err);
    spec before = *s;
    ck_assert_int_eq(spec_resolve_rings(s, &err), STATUS_BAD_INPUT);
    ck_assert_mem_eq(&before, s, sizeof before);
    ck_assert(strchr(err.text, '\n') == NULL);
    return err.text;
}

static void set_size(spec *s, const char *ring, int64_t size)
{
    int i = s->rpg.sizes.count++;
    strcpy(s->rpg.sizes.entry[i].ring, ring);
    s->rpg.sizes.entry[i].size = size;
}

START_TEST(bad_ring_sizes_are_refused_by_name)
{
    spec s = net_spec(ARCH_RESNET18, STEM_CIFAR, SCOPE_BLOCK, 0);
    ck_assert_ptr_nonnull(strstr(resolve_error(&s), "rpg.size"));
    s.rpg.size = 3;
    ck_assert_ptr_nonnull(strstr(resolve_error(&s), "4 rings"));
    s.rpg.size = 0;
    s.rpg.share = 1000;
    ck_assert_ptr_nonnull(strstr(resolve_error(&s), "lower rpg.share"));
    s.rpg.share = 0;
    set_size(&s, "layer1", 10);
    set_size(&s, "layer2", 10);
    set_size(&s, "layr3", 10);
    ck_assert_ptr_nonnull(strstr(resolve_error(&s), "'layr3' is no ring of resnet18; did you mean "
                                                    "'layer3'?"));
    strcpy(s.rpg.sizes.entry[2].ring, "layer2");
    ck_assert_ptr_nonnull(strstr(resolve_error(&s), "twice"));
    strcpy(s.rpg.sizes.entry[2].ring, "layer3");
    ck_assert_ptr_nonnull(strstr(resolve_error(&s), "no size for ring 'layer4'"));
    set_size(&s, "layer4", 0);
    ck_assert_ptr_nonnull(strstr(resolve_error(&s), "rpg.sizes.layer4"));
    s.rpg.sizes.entry[3].size = 5;
    errbuf err = {0};
    ck_assert_int_eq(spec_resolve_rings(&s, &err), STATUS_OK);
}
END_TEST

START_TEST(nets_beyond_the_limits_are_refused)
{
    errbuf err = {0};
    net *n = NULL;
    spec s = net_spec(ARCH_RESNET34, STEM_CIFAR, SCOPE_GLOBAL, 1000);
    s.model.width = 256; /* M = 16 * 21 million > 2^27 */
    ck_assert_int_eq(net_build(&s, &n, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_null(n);
    ck_assert_ptr_nonnull(strstr(err.text, "tables"));
    errbuf_clear(&err);
    s.model.width = 1024; /* > 2^31 - 1 */
    ck_assert_int_eq(net_build(&s, &n, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "2147483647"));
    errbuf_clear(&err);
    s.model.width = 0;
    ck_assert_int_eq(net_build(&s, &n, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "model.width"));
    errbuf_clear(&err);
    s.model.width = 8;
    s.model.classes = 0;
    ck_assert_int_eq(net_build(&s, &n, &err), STATUS_BAD_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "model.classes"));
    ck_assert_ptr_null(n);
}
END_TEST

/* torchvision's resnet18 state_dict, less num_batches_tracked. */
static const char *const golden[] = {
#define BN(p)    p ".weight", p ".bias"
#define PLAIN(p) p ".conv1.weight", BN(p ".bn1"), p ".conv2.weight", BN(p ".bn2")
#define DOWN(p)  PLAIN(p), p ".downsample.0.weight", BN(p ".downsample.1")
    "conv1.weight",   BN("bn1"),         PLAIN("layer1.0"), PLAIN("layer1.1"),
    DOWN("layer2.0"), PLAIN("layer2.1"), DOWN("layer3.0"),  PLAIN("layer3.1"),
    DOWN("layer4.0"), PLAIN("layer4.1"), "fc.weight",       "fc.bias",
};

START_TEST(tensors_have_torchvision_names)
{
    spec s = net_spec(ARCH_RESNET18, STEM_IMAGENET, SCOPE_NONE, 0);
    net *n = build(&s);
    ck_assert_int_eq(n->params, (int)(sizeof golden / sizeof golden[0]));
    for (int i = 0; i < n->params; i++) {
        bool is_found = false;
        for (int k = 0; k < n->params; k++)
            is_found |= strcmp(golden[i], n->param[k].name) == 0;
        ck_assert_msg(is_found, "%s", golden[i]);
    }
    net_destroy(&n);
}
END_TEST

/* METHODS 1.1: downsample, conv1, conv2 of a block, block after block. */
START_TEST(slots_follow_the_construction_order)
{
    static const char *const order[] = {"layer1.0.conv1.weight",        "layer1.0.conv2.weight",
                                        "layer1.1.conv1.weight",        "layer1.1.conv2.weight",
                                        "layer2.0.downsample.0.weight", "layer2.0.conv1.weight"};
    spec s = net_spec(ARCH_RESNET18, STEM_CIFAR, SCOPE_GLOBAL, 1000);
    net *n = build(&s);
    int64_t next = 0;
    int slot = 0;
    for (int i = 0; i < n->kernels; i++) {
        if (n->kernel[i].ring < 0)
            continue;
        if (slot < 6)
            ck_assert_str_eq(n->kernel[i].name, order[slot]);
        ck_assert_int_eq(n->kernel[i].first, next);
        next += kernel_elements(n->kernel[i].shape);
        slot++;
    }
    ck_assert_int_eq(slot, 19);
    ck_assert_int_eq(next, n->ring[0].m);
    net_destroy(&n);
}
END_TEST

START_TEST(a_stem_that_is_included_comes_first)
{
    spec s = net_spec(ARCH_RESNET18, STEM_CIFAR, _i ? SCOPE_BLOCK : SCOPE_GLOBAL, 1000);
    s.rpg.include_stem = true;
    net *n = build(&s);
    ck_assert_str_eq(n->kernel[0].name, "conv1.weight");
    ck_assert_int_eq(n->kernel[0].ring, 0);
    ck_assert_int_eq(n->kernel[0].first, 0);
    ck_assert_int_eq(n->kernel[1].first, 1728);
    ck_assert_int_eq(n->ring[0].m, (_i ? 147456 : 11157504) + 1728);
    ck_assert_int_eq(param_total(n, PARAM_CONV), 0);
    net_destroy(&n);
}
END_TEST

/* METHODS 1.1's alpha table, and the standard deviation that alpha is there for. */
START_TEST(alpha_is_the_published_table)
{
    static const struct {
        const char *kernel;
        double alpha;
    } table[] = {{"layer1.0.conv1.weight", 2.8284271},  {"layer2.0.conv1.weight", 2.0},
                 {"layer3.0.conv1.weight", 1.4142136},  {"layer4.0.conv1.weight", 1.0},
                 {"layer2.0.downsample.0.weight", 6.0}, {"layer3.0.downsample.0.weight", 4.2426407},
                 {"layer4.0.downsample.0.weight", 3.0}};
    spec s = net_spec(ARCH_RESNET34, STEM_CIFAR, SCOPE_BLOCK, 36864);
    net *n = build(&s);
    int found = 0;
    ck_assert(fabs(n->ring[2].sigma - 0.0208333333) < 1e-9);
    for (int i = 0; i < n->kernels; i++)
        for (size_t k = 0; k < sizeof table / sizeof table[0]; k++)
            if (strcmp(n->kernel[i].name, table[k].kernel) == 0) {
                ck_assert(fabs(n->kernel[i].alpha - table[k].alpha) < 1e-6);
                found++;
            }
    ck_assert_int_eq(found, 7);
    ck_assert(n->kernel[0].alpha == 1); /* the direct stem */
    net_destroy(&n);

    s.rpg.init_std = 0.01;
    n = build(&s);
    ck_assert(n->ring[0].sigma == 0.01);
    for (int i = 0; i < n->kernels; i++) {
        kernel_shape k = n->kernel[i].shape;
        if (n->kernel[i].ring >= 0)
            ck_assert(fabs(n->kernel[i].alpha * 0.01 - sqrt(2.0 / (k.out * k.kh * k.kw))) < 1e-8);
    }
    net_destroy(&n);
}
END_TEST

/* METHODS 1.1: at N = 9 out_max^2 and without permutation, R34's five 512x512 convs are one and its
 * eleven 256x256 four; at any other N, or permuted, all 35 differ. Width 8: 36,864. */
START_TEST(hidden_ties_are_counted)
{
    static const struct {
        int arch;
        int64_t size;
        bool permute, reflect;
        int distinct;
    } cases[] = {
        {ARCH_RESNET34, 36864, false, false, 24}, {ARCH_RESNET34, 36864, true, false, 35},
        {ARCH_RESNET34, 36864, false, true, 35},  {ARCH_RESNET34, 36865, false, false, 35},
        {ARCH_RESNET18, 36864, false, false, 17},
    };
    spec s = net_spec(cases[_i].arch, STEM_CIFAR, SCOPE_GLOBAL, cases[_i].size);
    errbuf err = {0};
    int distinct = -1;
    s.model.width = 8;
    s.rpg.permute = cases[_i].permute;
    s.rpg.reflect = cases[_i].reflect;
    net *n = build(&s);
    ck_assert_int_eq(net_count_distinct_kernels(n, &distinct, &err), STATUS_OK);
    ck_assert_int_eq(distinct, cases[_i].distinct);
    net_destroy(&n);
}
END_TEST

/* A ring as large as M is legal and used once a weight; so is one larger, and one of a single
 * element. */
START_TEST(any_ring_size_builds)
{
    static const int64_t n_of[] = {1, 174336, 174337, 400000};
    spec s = net_spec(ARCH_RESNET18, STEM_CIFAR, SCOPE_GLOBAL, n_of[_i % 4]);
    s.model.width = 8;
    s.rpg.index = _i / 4 ? INDEX_TILE : INDEX_EVEN;
    net *n = build(&s);
    const ring_map *map = &n->ring[0].map;
    unsigned char *uses = calloc((size_t)n_of[_i % 4], 1);
    ck_assert_ptr_nonnull(uses);
    uint32_t largest = 0;
    int most = 0;
    for (uint32_t j = 0; j < n->ring[0].m; j++) {
        uint32_t index = ring_map_index(map, j);
        largest = index > largest ? index : largest;
        if (index < n_of[_i % 4] && ++uses[index] > most)
            most = uses[index];
    }
    ck_assert_uint_lt(largest, (uint32_t)n_of[_i % 4]);
    if (_i % 4 > 0)
        ck_assert_int_eq(most, 1); /* N >= M: nothing is shared */
    free(uses);
    net_destroy(&n);
}
END_TEST

START_TEST(the_narrowest_net_builds)
{
    spec s = net_spec(ARCH_RESNET34, _i ? STEM_IMAGENET : STEM_CIFAR, SCOPE_BLOCK, 4);
    s.model.width = s.model.classes = s.data.size = 1;
    net *n = build(&s);
    ck_assert_int_eq(n->norm[n->norms - 1].channels, 8);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(n->ring[i].n, 1);
    net_destroy(&n);
}
END_TEST

START_TEST(image_shapes_follow_the_stem)
{
    spec s = net_spec(ARCH_RESNET18, _i ? STEM_IMAGENET : STEM_CIFAR, SCOPE_GLOBAL, 100);
    net *n = build(&s);
    const net_node *last = NULL, *pool = NULL;
    for (int i = 0; i < n->nodes; i++) {
        if (n->node[i].kind == NODE_POOL && n->node[i].pool.kind == POOL_GLOBAL_AVG)
            pool = &n->node[i];
        if (n->node[i].kind == NODE_FC)
            last = &n->node[i];
    }
    ck_assert_ptr_nonnull(pool);
    ck_assert_ptr_nonnull(last);
    ck_assert_int_eq(pool->pool.x.h, _i ? 7 : 4);
    ck_assert_int_eq(pool->pool.x.w, _i ? 7 : 4);
    ck_assert_int_eq(pool->pool.x.c, 512);
    ck_assert_int_eq(n->outputs, 1);
    ck_assert_int_eq(n->output[0], last->output);
    ck_assert_int_eq(last->fc.in, 512);
    ck_assert_int_eq(last->fc.out, 10);
    net_destroy(&n);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("net_resnet");
    TCase *tc = tcase_create("resnet");
    tcase_add_loop_test(tc, sizes_are_the_published_ones, 0, 6);
    tcase_add_loop_test(tc, stage_rings_hold_the_published_weights, 0, 2);
    tcase_add_test(tc, block_sizes_are_split_by_largest_remainder);
    tcase_add_loop_test(tc, every_split_is_exact_and_leaves_no_ring_empty, 0, 10);
    tcase_add_test(tc, share_is_rounded_half_up);
    tcase_add_test(tc, bad_ring_sizes_are_refused_by_name);
    tcase_add_test(tc, nets_beyond_the_limits_are_refused);
    tcase_add_test(tc, tensors_have_torchvision_names);
    tcase_add_test(tc, slots_follow_the_construction_order);
    tcase_add_loop_test(tc, a_stem_that_is_included_comes_first, 0, 2);
    tcase_add_test(tc, alpha_is_the_published_table);
    tcase_add_loop_test(tc, hidden_ties_are_counted, 0, 5);
    tcase_add_loop_test(tc, any_ring_size_builds, 0, 8);
    tcase_add_loop_test(tc, the_narrowest_net_builds, 0, 2);
    tcase_add_loop_test(tc, image_shapes_follow_the_stem, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
