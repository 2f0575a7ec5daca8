/* The keyed bijection: it is one at every size tried, its inverse is its inverse, it is the one
 * whose vectors are frozen, and tiny sets see all of their permutations equally often. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/feistel.h"

/* Values that are outside, hit twice or not inverted. */
static void check_bijection(uint32_t size, uint64_t seed)
{
    unsigned char *seen = calloc(size, 1);
    ck_assert_ptr_nonnull(seen);
    feistel f = feistel_make(size, seed, 3, 1, 0);
    uint32_t wrong = 0;
    for (uint32_t x = 0; x < size; x++) {
        uint32_t y = feistel_apply(&f, x);
        wrong += y >= size || seen[y]++ || feistel_invert(&f, y) != x;
    }
    free(seen);
    ck_assert_msg(wrong == 0, "size %u: %u values go wrong", size, wrong);
}

START_TEST(bijection_small)
{
    for (uint32_t size = 1; size <= 300; size++)
        for (uint64_t seed = 0; seed < 4; seed++)
            check_bijection(size, seed << 40 | seed);
}
END_TEST

START_TEST(bijection_around_powers_of_two)
{
    for (uint32_t bits = 9; bits <= 20; bits++)
        for (int d = -1; d <= 1; d++)
            check_bijection((1u << bits) + (uint32_t)d, bits);
    check_bijection(1000003, 1);
}
END_TEST

/* Sizes above a table: inside, invertible, different from each other. */
START_TEST(big_sizes)
{
    static const uint32_t sizes[] = {11157504u, 134217729u, 2147483646u, 2147483647u, 1u << 31};
    for (int i = 0; i < 5; i++) {
        feistel f = feistel_make(sizes[i], 9, 0, 1, 0);
        uint32_t wrong = 0;
        for (uint32_t k = 0; k < 20000; k++) {
            uint32_t x = k < 10000 ? k : sizes[i] - 1 - (k - 10000);
            uint32_t y = feistel_apply(&f, x);
            wrong += y >= sizes[i] || feistel_invert(&f, y) != x;
        }
        ck_assert_uint_eq(wrong, 0);
    }
}
END_TEST

/* Part of the file format: these numbers never change (tests/golden/ring_map.py). */
START_TEST(frozen_vectors)
{
    static const struct {
        uint32_t size;
        uint32_t image[8];
    } vectors[] = {
        {10u, {9u, 1u, 0u, 2u, 8u, 7u, 3u, 6u}},
        {64u, {59u, 56u, 61u, 19u, 50u, 35u, 3u, 6u}},
        {65u, {7u, 32u, 61u, 53u, 8u, 50u, 52u, 15u}},
        {2048u, {1832u, 1212u, 1717u, 35u, 1099u, 1466u, 1522u, 1995u}},
        {11157504u,
         {3439894u, 98632u, 6157299u, 1616239u, 6815459u, 10891676u, 6033706u, 2549979u}},
        {2147483647u,
         {2009334758u, 1943714702u, 571147168u, 206112169u, 316770167u, 1114969987u, 1806965519u,
          538877214u}},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        feistel f = feistel_make(vectors[i].size, 1, 0, 1, 0);
        for (uint32_t x = 0; x < 8; x++)
            ck_assert_uint_eq(feistel_apply(&f, x), vectors[i].image[x]);
    }
}
END_TEST

START_TEST(keys_depend_on_everything)
{
    feistel base = feistel_make(1000, 1, 1, 1, 1);
    feistel others[] = {feistel_make(1000, 2, 1, 1, 1),
                        feistel_make(1000, 1 + (1ull << 32), 1, 1, 1),
                        feistel_make(1000, 1, 2, 1, 1), feistel_make(1000, 1, 1, 2, 1),
                        feistel_make(1000, 1, 1, 1, 2)};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        for (int k = 0; k < FEISTEL_ROUNDS; k++)
            ck_assert_uint_ne(base.key[k], others[i].key[k]);
}
END_TEST

/* Chi-square of the permutation that each of many keys gives. */
START_TEST(small_sets_see_all_permutations)
{
    enum {
        N = 5,
        FACTORIAL = 120,
        EACH = 200
    };
    int seen[FACTORIAL] = {0};
    for (uint64_t seed = 0; seed < FACTORIAL * EACH; seed++) {
        feistel f = feistel_make(N, seed * 0x9E3779B97F4A7C15u, 0, 1, 0);
        uint32_t image[N];
        int code = 0;
        for (uint32_t x = 0; x < N; x++)
            image[x] = feistel_apply(&f, x);
        for (int x = 0; x < N; x++) {
            int smaller = 0;
            for (int later = x + 1; later < N; later++)
                smaller += image[later] < image[x];
            code = code * (N - x) + smaller;
        }
        seen[code]++;
    }
    double chi = 0;
    for (int i = 0; i < FACTORIAL; i++)
        chi += (seen[i] - EACH) * (double)(seen[i] - EACH) / EACH;
    ck_assert_double_lt(chi, 205.0); /* 119 degrees of freedom: p = 1e-6 */
    ck_assert_double_gt(chi, 55.0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("feistel");
    TCase *tc = tcase_create("feistel");
    tcase_add_test(tc, bijection_small);
    tcase_add_test(tc, bijection_around_powers_of_two);
    tcase_add_test(tc, big_sizes);
    tcase_add_test(tc, frozen_vectors);
    tcase_add_test(tc, keys_depend_on_everything);
    tcase_add_test(tc, small_sets_see_all_permutations);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
