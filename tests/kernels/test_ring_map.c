/* Ring maps: each element is used evenly, the numbers are the frozen ones of map version 1, tables
 * say what the functions say with any number of threads, positions and signs look random, and
 * generated filters are as near to orthogonal as independent ones (the paper's Appendix B). */
#include <check.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ring_map.h"

static ring_map make(int index, int64_t m, int64_t n, uint64_t seed, uint32_t ring)
{
    ring_map_params p = {index, true, true, m, n, seed, ring};
    ring_map map;
    errbuf err = {0};
    ck_assert_msg(ring_map_init(&map, &p, &err) == STATUS_OK, "%s", err.text);
    return map;
}

static uint32_t *table_of(const ring_map *map)
{
    uint32_t *entries = malloc(sizeof *entries * map->m);
    ck_assert_ptr_nonnull(entries);
    ring_map_table(map, 0, map->m, entries);
    return entries;
}

/* Quantile of chi-square with `df` degrees of freedom at `z` standard deviations (Wilson and
 * Hilferty); z = 4.75 is p = 1e-6. */
static double chi_quantile(double df, double z)
{
    double t = 1 - 2 / (9 * df) + z * sqrt(2 / (9 * df));
    return df * t * t * t;
}

static void check_chi(const char *what, double chi, double df)
{
    ck_assert_msg(chi < chi_quantile(df, 4.75), "%s: chi-square %.1f, df %.0f", what, chi, df);
    ck_assert_msg(chi > chi_quantile(df, -4.75), "%s: chi-square %.1f too even, df %.0f", what, chi,
                  df);
}

/* ---- the file format ---- */

/* Entries at j = i * (m - 1) / 7, i = 0..7; from tests/golden/ring_map.py. Never change. */
static const struct {
    int index;
    bool permute;
    int64_t m, n;
    uint64_t seed;
    uint32_t ring;
    uint32_t entry[8];
} vectors[] = {
    {RING_INDEX_EVEN,
     true,
     1000,
     300,
     0x7u,
     0,
     {0x8000006e, 0x000000d9, 0x8000000f, 0x000000cf, 0x000000db, 0x00000030, 0x800000fb,
      0x0000000c}},
    {RING_INDEX_EVEN,
     true,
     11157504,
     2359296,
     0xfedcba9876543210u,
     3,
     {0x80004917, 0x80015fd8, 0x800a3ca0, 0x00054e86, 0x80109089, 0x80084821, 0x8018a138,
      0x8009a3c2}},
    {RING_INDEX_EVEN,
     true,
     2147483647,
     36864,
     0x1u,
     0,
     {0x800063e6, 0x800033c7, 0x0000665f, 0x80000415, 0x000038d6, 0x8000480e, 0x80004804,
      0x0000189e}},
    {RING_INDEX_EVEN,
     true,
     100,
     1000,
     0x7u,
     1,
     {0x000000be, 0x800000de, 0x00000385, 0x800001d4, 0x00000214, 0x8000012e, 0x00000093,
      0x8000039e}},
    {RING_INDEX_EVEN,
     false,
     1000,
     300,
     0x7u,
     0,
     {0x80000000, 0x0000008e, 0x8000011d, 0x00000080, 0x0000010e, 0x00000071, 0x80000100,
      0x00000063}},
    {RING_INDEX_RANDOM,
     true,
     1000,
     300,
     0x7u,
     0,
     {0x8000009f, 0x000000ff, 0x80000071, 0x00000044, 0x000000c8, 0x000000f2, 0x800000e8,
      0x0000012b}},
    {RING_INDEX_RANDOM,
     true,
     2147483647,
     2147483646,
     0x7u,
     0,
     {0xc3dab5fe, 0x2224e1f1, 0x8255ce90, 0x908ee805, 0x7cdf94c9, 0x46dfaa79, 0x8be4b924,
      0xd0e55f53}},
    {RING_INDEX_TILE,
     true,
     20000,
     5000,
     0x7u,
     0,
     {0x80001125, 0x8000005f, 0x0000088d, 0x80000023, 0x000004a0, 0x800007d7, 0x00000fbf,
      0x00000a6e}},
    {RING_INDEX_TILE,
     true,
     23456,
     5000,
     0x7u,
     2,
     {0x00000968, 0x800009d6, 0x800004f5, 0x00000f1f, 0x00000115, 0x80000609, 0x80000fa4,
      0x800000dc}},
    {RING_INDEX_TILE,
     true,
     5000,
     300,
     0x7u,
     0,
     {0x800000eb, 0x80000118, 0x00000090, 0x800000e1, 0x00000059, 0x800000b0, 0x00000021,
      0x80000047}},
    {RING_INDEX_TILE,
     true,
     3000,
     10000,
     0x7u,
     0,
     {0x80002459, 0x000024ea, 0x800022c4, 0x0000250f, 0x800020df, 0x800000f1, 0x0000070a,
      0x0000070c}},
};

START_TEST(frozen_vectors)
{
    ring_map_params p = {vectors[_i].index, vectors[_i].permute, true, vectors[_i].m, vectors[_i].n,
                         vectors[_i].seed,  vectors[_i].ring};
    ring_map map;
    ck_assert_int_eq(ring_map_init(&map, &p, NULL), STATUS_OK);
    for (int64_t i = 0; i < 8; i++) {
        uint32_t j = (uint32_t)(i * (p.m - 1) / 7), entry;
        ring_map_table(&map, j, 1, &entry);
        ck_assert_uint_eq(ring_map_entry(&map, j), vectors[_i].entry[i]);
        ck_assert_uint_eq(entry, vectors[_i].entry[i]);
    }
    ring_map_fini(&map);
}
END_TEST

/* ---- even use ---- */

static const int64_t pairs[][2] = {
    {1, 1},           {1, 5},           {5, 1},          {7, 3},        {6, 3},
    {64, 64},         {65, 64},         {1000, 300},     {300, 1000},   {2047, 2048},
    {2048, 2048},     {2049, 2048},     {5000, 2049},    {100, 2049},   {4096, 2048},
    {4097, 4096},     {20000, 5000},    {23456, 5000},   {3000, 10000}, {9999, 10000},
    {10001, 10000},   {50000, 1},       {50000, 2},      {50000, 2047}, {1500000, 36864},
    {300000, 147456}, {200000, 199999}, {1000, 1000000}, {99991, 6143}, {6145, 6144},
};

static void check_even_use(int index, int64_t m, int64_t n, uint64_t seed)
{
    ring_map map = make(index, m, n, seed, 1);
    uint32_t *entries = table_of(&map);
    uint32_t *uses = calloc((size_t)n, sizeof *uses);
    ck_assert_ptr_nonnull(uses);
    int64_t outside = 0, uneven = 0, more = 0;
    for (int64_t j = 0; j < m; j++) {
        uint32_t e = entries[j] & ~RING_SIGN_BIT;
        if (e < n)
            uses[e]++;
        else
            outside++;
    }
    for (int64_t e = 0; e < n; e++) {
        uneven += uses[e] != m / n && uses[e] != m / n + 1;
        more += uses[e] == m / n + 1;
    }
    ck_assert_msg(outside == 0 && uneven == 0 && more == m % n,
                  "index %d, m %lld, n %lld: %lld outside, %lld uneven, %lld used once more", index,
                  (long long)m, (long long)n, (long long)outside, (long long)uneven,
                  (long long)more);
    free(uses);
    free(entries);
    ring_map_fini(&map);
}

START_TEST(each_element_is_used_evenly)
{
    for (uint64_t seed = 0; seed < 3; seed++) {
        check_even_use(RING_INDEX_EVEN, pairs[_i][0], pairs[_i][1], seed);
        check_even_use(RING_INDEX_TILE, pairs[_i][0], pairs[_i][1], seed);
    }
}
END_TEST

START_TEST(every_small_pair_is_even)
{
    for (int64_t m = 1; m <= 40; m++)
        for (int64_t n = 1; n <= 40; n++) {
            check_even_use(RING_INDEX_EVEN, m, n, 5);
            check_even_use(RING_INDEX_TILE, m, n, 5);
        }
}
END_TEST

/* The elements that are used once more are another random set for another seed. */
START_TEST(remainder_is_drawn_from_the_whole_ring)
{
    enum {
        M = 1250,
        N = 1000,
        SEEDS = 400
    };
    int extra[N] = {0};
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        ring_map map = make(RING_INDEX_EVEN, M, N, seed, 0);
        int uses[N] = {0};
        for (uint32_t j = 0; j < M; j++)
            uses[ring_map_index(&map, j)]++;
        for (int e = 0; e < N; e++)
            extra[e] += uses[e] == 2;
    }
    double chi = 0, expect = SEEDS / 4.0;
    for (int e = 0; e < N; e++) /* variance of a cell: SEEDS * 1/4 * 3/4 */
        chi += (extra[e] - expect) * (extra[e] - expect) / (expect * 0.75);
    check_chi("remainder", chi, N - 1);
}
END_TEST

START_TEST(without_permutation_wraps_round)
{
    ring_map_params p = {RING_INDEX_EVEN, false, false, 1000, 300, 1, 0};
    ring_map map;
    ck_assert_int_eq(ring_map_init(&map, &p, NULL), STATUS_OK);
    uint32_t *entries = table_of(&map);
    for (uint32_t j = 0; j < 1000; j++) {
        ck_assert_uint_eq(entries[j], j % 300);
        ck_assert_float_eq(ring_map_sign(&map, j), 1.0f);
    }
    free(entries);
}
END_TEST

/* ---- tables ---- */

static const ring_map_params table_cases[] = {
    {RING_INDEX_EVEN, true, true, 30011, 7001, 11, 0},
    {RING_INDEX_EVEN, true, false, 30011, 40000, 11, 0},
    {RING_INDEX_EVEN, false, true, 30011, 7001, 11, 0},
    {RING_INDEX_RANDOM, true, true, 30011, 7001, 11, 0},
    {RING_INDEX_TILE, true, true, 30011, 7001, 11, 0},
    {RING_INDEX_TILE, true, true, 30011, 700, 11, 0},
    {RING_INDEX_TILE, true, false, 30011, 1, 11, 0},
};

START_TEST(table_is_the_functions)
{
    enum {
        M = 30011
    };
    static uint32_t expect[M], got[M];
    ring_map map;
    ck_assert_int_eq(ring_map_init(&map, &table_cases[_i], NULL), STATUS_OK);
    for (uint32_t j = 0; j < M; j++) {
        expect[j] = ring_map_entry(&map, j);
        uint32_t built = ring_map_index(&map, j);
        if (ring_map_sign(&map, j) < 0)
            built |= RING_SIGN_BIT;
        if (built != expect[j])
            ck_abort_msg("entry %u is not its index and sign", j);
    }
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        memset(got, 0xff, sizeof got);
        ring_map_table(&map, 0, M, got);
        ck_assert_msg(memcmp(got, expect, sizeof got) == 0, "table with %d threads", threads);
    }
    static const int parts[][2] = {{0, 1},    {1, 127},      {127, 2},   {129, 5000},
                                   {2047, 2}, {29000, 1011}, {30010, 1}, {500, 0}};
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        int first = parts[k][0], count = parts[k][1];
        memset(got, 0xff, sizeof got);
        ring_map_table(&map, first, count, got);
        ck_assert_int_eq(memcmp(got, expect + first, sizeof *got * (size_t)count), 0);
        ck_assert_uint_eq(got[count], 0xffffffff);
    }
    ring_map_fini(&map);
}
END_TEST

/* ---- big maps: functions only ---- */

static const int64_t big[][2] = {
    {RING_MAX_M, 1},   {RING_MAX_M, 2049},           {RING_MAX_M, 2359296},
    {RING_MAX_M, 100}, {RING_MAX_M, RING_MAX_M},     {RING_MAX_M, RING_MAX_M - 1},
    {1, RING_MAX_M},   {RING_MAX_M - 1, RING_MAX_M}, {1000000000, 2048},
};

START_TEST(big_maps_stay_inside)
{
    for (int index = RING_INDEX_EVEN; index <= RING_INDEX_TILE; index++) {
        ring_map map = make(index, big[_i][0], big[_i][1], 77, 0);
        int64_t m = big[_i][0], wrong = 0;
        for (int64_t k = 0; k < 3000 && k < m; k++) {
            wrong += ring_map_index(&map, (uint32_t)k) >= map.n;
            wrong += ring_map_index(&map, (uint32_t)(m - 1 - k)) >= map.n;
            wrong += ring_map_index(&map, (uint32_t)(k * 715827 % m)) >= map.n;
        }
        ck_assert_int_eq(wrong, 0);
        ring_map_fini(&map);
    }
}
END_TEST

/* Every slot is where the one before ends, is found by its positions, and each tile is drawn from
 * copies or copies + 1 times. */
START_TEST(big_tile_spans_fit_together)
{
    ring_map map = make(RING_INDEX_TILE, big[_i][0], big[_i][1], 78, 0);
    const struct ring_tiles *t = map.tile;
    uint32_t *drawn = calloc(t->count, sizeof *drawn);
    uint32_t limit = t->spans < 300000 ? t->spans : 300000;
    int64_t wrong = 0;
    ck_assert_ptr_nonnull(drawn);
    for (uint32_t slot = 0; slot < limit; slot++) {
        ring_span s = ring_tiles_span(t, feistel_apply(&t->place, slot));
        int64_t start = ring_tiles_start(t, slot), end = start + s.length;
        int64_t next = slot + 1 < t->spans ? ring_tiles_start(t, slot + 1) : map.m;
        wrong += end != next || ring_tiles_slot(t, (uint32_t)start) != slot ||
                 ring_tiles_slot(t, (uint32_t)(end - 1)) != slot || s.tile >= t->count;
        drawn[s.tile]++;
    }
    ck_assert_int_eq(wrong, 0);
    for (uint32_t tile = 0; limit == t->spans && tile < t->count; tile++)
        wrong += drawn[tile] != map.copies && drawn[tile] != map.copies + 1;
    ck_assert_int_eq(wrong, 0);
    free(drawn);
    ring_map_fini(&map);
}
END_TEST

/* ---- chi-square ---- */

enum {
    BLOCKS = 32
};

/* Of cells (block of positions x block of elements); with even use both margins are fixed. */
static double block_chi(const uint32_t *entries, int64_t m, int64_t n)
{
    static double cell[BLOCKS][BLOCKS];
    memset(cell, 0, sizeof cell);
    for (int64_t j = 0; j < m; j++)
        cell[j * BLOCKS / m][(int64_t)(entries[j] & ~RING_SIGN_BIT) * BLOCKS / n]++;
    double chi = 0, expect = (double)m / (BLOCKS * BLOCKS);
    for (int a = 0; a < BLOCKS; a++)
        for (int b = 0; b < BLOCKS; b++)
            chi += (cell[a][b] - expect) * (cell[a][b] - expect) / expect;
    return chi;
}

/* Of cells (block of this position's element x block of the next one's). */
static double serial_chi(const uint32_t *entries, int64_t m, int64_t n)
{
    static double cell[BLOCKS][BLOCKS];
    memset(cell, 0, sizeof cell);
    for (int64_t j = 0; j + 1 < m; j++) {
        int64_t a = entries[j] & ~RING_SIGN_BIT, b = entries[j + 1] & ~RING_SIGN_BIT;
        cell[a * BLOCKS / n][b * BLOCKS / n]++;
    }
    double chi = 0, expect = (double)(m - 1) / (BLOCKS * BLOCKS);
    for (int a = 0; a < BLOCKS; a++)
        for (int b = 0; b < BLOCKS; b++)
            chi += (cell[a][b] - expect) * (cell[a][b] - expect) / expect;
    return chi;
}

START_TEST(positions_look_random)
{
    static const int64_t cases[][2] = {{1 << 20, 1 << 18}, {1 << 19, 36864}, {1 << 18, 1 << 21}};
    for (int c = 0; c < 3; c++)
        for (uint64_t seed = 0; seed < 3; seed++) {
            int64_t m = cases[c][0], n = cases[c][1];
            ring_map even = make(RING_INDEX_EVEN, m, n, seed, 0);
            ring_map random = make(RING_INDEX_RANDOM, m, n, seed, 0);
            uint32_t *entries = table_of(&even);
            double fixed = (BLOCKS - 1) * (BLOCKS - 1);
            check_chi("even", block_chi(entries, m, n), n > m ? fixed + BLOCKS - 1 : fixed);
            check_chi("even, serial", serial_chi(entries, m, n), fixed);
            ring_map_table(&random, 0, m, entries);
            check_chi("random", block_chi(entries, m, n), BLOCKS * (BLOCKS - 1));
            check_chi("random, serial", serial_chi(entries, m, n), BLOCKS * BLOCKS - 1);
            free(entries);
        }
}
END_TEST

/* Elements of i.i.d. sharing are used a Poisson number of times, not evenly. */
START_TEST(random_is_with_replacement)
{
    enum {
        M = 400000,
        N = 100000
    };
    ring_map map = make(RING_INDEX_RANDOM, M, N, 4, 0);
    uint8_t *uses = calloc(N, 1);
    int counts[256] = {0};
    for (uint32_t j = 0; j < M; j++)
        uses[ring_map_index(&map, j)]++;
    for (int e = 0; e < N; e++)
        counts[uses[e]]++;
    double chi = 0, expect = N * exp(-4.0);
    for (int k = 0; k <= 12; k++) {
        chi += (counts[k] - expect) * (counts[k] - expect) / expect;
        expect *= 4.0 / (k + 1);
    }
    check_chi("uses", chi, 12);
    free(uses);
}
END_TEST

/* Over many seeds each slot draws from each tile equally often, and inside a tile each offset
 * lands on each part of it. */
START_TEST(tiles_look_random)
{
    enum {
        TILES = 8,
        SLOTS = 32,
        SEEDS = 1000,
        M = SLOTS * RING_TILE
    };
    static double slot_tile[SLOTS][TILES], inside[BLOCKS][BLOCKS];
    uint32_t *entries = malloc(sizeof *entries * M);
    ck_assert_ptr_nonnull(entries);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        ring_map map = make(RING_INDEX_TILE, M, TILES * RING_TILE, seed, 0);
        for (int s = 0; s < SLOTS; s++)
            slot_tile[s][ring_map_index(&map, (uint32_t)(s * RING_TILE)) / RING_TILE]++;
        if (seed < 20) {
            ring_map_table(&map, 0, M, entries);
            for (int j = 0; j < M; j++)
                inside[j % RING_TILE * BLOCKS / RING_TILE]
                      [(entries[j] & ~RING_SIGN_BIT) % RING_TILE * BLOCKS / RING_TILE]++;
        }
        ring_map_fini(&map);
    }
    double chi = 0, expect = SEEDS / (double)TILES;
    for (int s = 0; s < SLOTS; s++)
        for (int t = 0; t < TILES; t++)
            chi += (slot_tile[s][t] - expect) * (slot_tile[s][t] - expect) / expect;
    check_chi("slot x tile", chi * (SLOTS - 1) / SLOTS, (SLOTS - 1) * (TILES - 1));
    chi = 0;
    expect = 20.0 * M / (BLOCKS * BLOCKS);
    for (int a = 0; a < BLOCKS; a++)
        for (int b = 0; b < BLOCKS; b++)
            chi += (inside[a][b] - expect) * (inside[a][b] - expect) / expect;
    check_chi("inside a tile", chi, (BLOCKS - 1) * (BLOCKS - 1));
    free(entries);
}
END_TEST

/* Signs: bytes of eight in a row are uniform, and have nothing to do with the element. */
START_TEST(signs_look_random)
{
    enum {
        M = 1 << 20,
        N = 1 << 18
    };
    for (uint64_t seed = 0; seed < 3; seed++) {
        ring_map map = make(RING_INDEX_EVEN, M, N, seed, 0);
        uint32_t *entries = table_of(&map);
        static double byte[256], block[BLOCKS][2];
        memset(byte, 0, sizeof byte);
        memset(block, 0, sizeof block);
        for (int j = 0; j < M; j += 8) {
            int bits = 0;
            for (int k = 0; k < 8; k++) {
                uint32_t minus = entries[j + k] >> 31;
                bits |= (int)minus << k;
                block[(int64_t)(entries[j + k] & ~RING_SIGN_BIT) * BLOCKS / N][minus]++;
            }
            byte[bits]++;
        }
        double chi = 0, expect = M / 8 / 256.0;
        for (int i = 0; i < 256; i++)
            chi += (byte[i] - expect) * (byte[i] - expect) / expect;
        check_chi("sign bytes", chi, 255);
        chi = 0;
        expect = M / (2.0 * BLOCKS);
        for (int i = 0; i < BLOCKS; i++)
            for (int s = 0; s < 2; s++)
                chi += (block[i][s] - expect) * (block[i][s] - expect) / expect;
        check_chi("sign x element", chi, BLOCKS);
        free(entries);
    }
}
END_TEST

/* Two rings, two seeds: nothing in common. */
START_TEST(rings_and_seeds_differ)
{
    enum {
        M = 100000,
        N = 50000
    };
    ring_map maps[] = {make(RING_INDEX_EVEN, M, N, 1, 0), make(RING_INDEX_EVEN, M, N, 1, 1),
                       make(RING_INDEX_EVEN, M, N, 2, 0)};
    for (int other = 1; other < 3; other++) {
        int same = 0, signs = 0;
        for (uint32_t j = 0; j < M; j++) {
            same += ring_map_index(&maps[0], j) == ring_map_index(&maps[other], j);
            signs += ring_map_sign(&maps[0], j) == ring_map_sign(&maps[other], j);
        }
        ck_assert_int_lt(same, 15); /* expected: 2 */
        ck_assert_int_lt(abs(signs - M / 2), 800);
    }
}
END_TEST

/* ---- Appendix B: filters ---- */

/* Mean and mean square (times d) of the inner products of normalised filters with `d` weights
 * each, taken from consecutive generated weights from `first` on. */
static void filter_products(const ring_map *map, const float *w, int64_t first, int filters, int d,
                            double *ret_mean, double *ret_square)
{
    uint32_t *entries = malloc(sizeof *entries * (size_t)filters * (size_t)d);
    float *f = malloc(sizeof *f * (size_t)filters * (size_t)d);
    ck_assert(entries && f);
    ring_map_table(map, first, (int64_t)filters * d, entries);
    for (int i = 0; i < filters; i++) {
        double norm = 0;
        for (int k = i * d; k < (i + 1) * d; k++) {
            float v = w[entries[k] & ~RING_SIGN_BIT];
            f[k] = entries[k] & RING_SIGN_BIT ? -v : v;
            norm += (double)f[k] * f[k];
        }
        for (int k = i * d; k < (i + 1) * d; k++)
            f[k] = (float)(f[k] / sqrt(norm));
    }
    double sum = 0, square = 0;
    int64_t products = 0;
    for (int a = 0; a < filters; a++)
        for (int b = a + 1; b < filters; b++, products++) {
            double p = 0;
            for (int k = 0; k < d; k++)
                p += f[a * d + k] * f[b * d + k];
            sum += p;
            square += p * p;
        }
    *ret_mean = sum / (double)products;
    *ret_square = square / (double)products * d;
    free(f);
    free(entries);
}

/* The blocks of a ResNet-34 of width 8, in construction order: consecutive 3x3 convs with the same
 * number of input channels in a row, d = 9 in, N = 9 * 64^2 as in the paper's Figure 5. */
static const struct {
    int64_t first; /* position of the group's first filter */
    int filters, d;
} groups[] = {
    {0, 6 * 8, 9 * 8},
    {6 * 576 + 128 + 1152, 7 * 16, 9 * 16},
    {6 * 576 + 128 + 1152 + 7 * 2304 + 512 + 4608, 11 * 32, 9 * 32},
    {6 * 576 + 128 + 1152 + 7 * 2304 + 512 + 4608 + 11 * 9216 + 2048 + 18432, 5 * 64, 9 * 64},
};

static void check_filters(const ring_map *map, const float *w, int g)
{
    double mean, square;
    filter_products(map, w, groups[g].first, groups[g].filters, groups[g].d, &mean, &square);
    double pairs_of = groups[g].filters * (groups[g].filters - 1.0) / 2;
    /* the mean of that many products has standard deviation 1 / sqrt(pairs * d); their squares
     * vary by about sqrt(2 / pairs) of their mean */
    ck_assert_double_lt(fabs(mean), 5 / sqrt(pairs_of * groups[g].d));
    ck_assert_double_lt(fabs(square - 1), 8 * sqrt(2 / pairs_of));
}

START_TEST(filters_are_nearly_orthogonal)
{
    enum {
        N = 9 * 64 * 64
    };
    float *w = malloc(sizeof *w * N);
    ck_assert_ptr_nonnull(w);
    ring_init_values(3, 0, 0.0625, N, w);
    for (int index = RING_INDEX_EVEN; index <= RING_INDEX_TILE; index++) {
        ring_map map = make(index, 332160, N, 3, 0);
        for (int g = 0; g < 4; g++)
            check_filters(&map, w, g);
        ring_map_fini(&map);
    }
    free(w);
}
END_TEST

/* The ablation fails the same test where rings wrap onto whole kernels: the test can see it. */
START_TEST(filters_without_permutation_are_not)
{
    enum {
        N = 9 * 64 * 64
    };
    float *w = malloc(sizeof *w * N);
    ck_assert_ptr_nonnull(w);
    ring_init_values(3, 0, 0.0625, N, w);
    ring_map_params p = {RING_INDEX_EVEN, false, false, 332160, N, 3, 0};
    ring_map map;
    double mean, square;
    ck_assert_int_eq(ring_map_init(&map, &p, NULL), STATUS_OK);
    filter_products(&map, w, groups[3].first, groups[3].filters, groups[3].d, &mean, &square);
    ck_assert_double_gt(square, 5.0);
    free(w);
}
END_TEST

/* ---- initial values ---- */

START_TEST(initial_values_are_normal)
{
    enum {
        N = 1000001
    };
    float *w = malloc(sizeof *w * N);
    ck_assert_ptr_nonnull(w);
    ring_init_values(5, 0, 0.5, N, w);
    double sum = 0, square = 0, fourth = 0, serial = 0;
    int64_t tail = 0;
    for (int i = 0; i < N; i++) {
        double z = w[i] / 0.5;
        sum += z;
        square += z * z;
        fourth += z * z * z * z;
        serial += i ? z * w[i - 1] / 0.5 : 0;
        tail += fabs(z) > 3;
    }
    ck_assert_double_lt(fabs(sum / N), 5 / sqrt(N));
    ck_assert_double_lt(fabs(serial / N), 5 / sqrt(N));
    ck_assert_double_lt(fabs(square / N - 1), 5 * sqrt(2.0 / N));
    ck_assert_double_lt(fabs(fourth / N - 3), 5 * sqrt(96.0 / N));
    ck_assert_double_lt(fabs((double)tail - 0.0026998 * N), 5 * sqrt(0.0027 * N));
    free(w);
}
END_TEST

/* Element i depends on (seed, ring, i) alone; the values are the written-down ones (computed in
 * double from the same blocks by the Python version). */
START_TEST(initial_values_are_frozen)
{
    static const double expect[] = {0.805382548, -0.409511381, 1.602448084, 1.075364252,
                                    0.494067684, -1.117815338, 0.004606968};
    float w[7], more[1000], other[7];
    ring_init_values(5, 2, 1.0, 7, w);
    for (int i = 0; i < 7; i++)
        ck_assert_double_eq_tol(w[i], expect[i], 1e-6);
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        ring_init_values(5, 2, 1.0, 1000, more);
        ck_assert_int_eq(memcmp(w, more, sizeof w), 0);
    }
    ring_init_values(5, 3, 1.0, 7, other);
    for (int i = 0; i < 7; i++)
        ck_assert_float_ne(w[i], other[i]);
}
END_TEST

/* ---- refusals ---- */

START_TEST(bad_parameters_are_refused)
{
    static const ring_map_params bad[] = {
        {RING_INDEX_EVEN, true, true, 0, 10, 1, 0},
        {RING_INDEX_EVEN, true, true, 10, 0, 1, 0},
        {RING_INDEX_EVEN, true, true, (int64_t)RING_MAX_M + 1, 10, 1, 0},
        {RING_INDEX_EVEN, true, true, 10, (int64_t)RING_MAX_M + 1, 1, 0},
        {RING_INDEX_EVEN, true, true, 10, -5, 1, 0},
        {RING_INDEX_TILE, false, true, 10, 10, 1, 0},
        {RING_INDEX_RANDOM, false, true, 10, 10, 1, 0},
        {9, true, true, 10, 10, 1, 0},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ring_map map, before;
        errbuf err = {0};
        memset(&map, 0x5a, sizeof map);
        memcpy(&before, &map, sizeof map);
        ck_assert_int_eq(ring_map_init(&map, &bad[i], &err), STATUS_BAD_INPUT);
        ck_assert_int_eq(memcmp(&map, &before, sizeof map), 0);
        ck_assert_str_ne(err.text, "");
    }
    ring_map_fini(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ring_map");
    TCase *tc = tcase_create("ring_map");
    tcase_add_loop_test(tc, frozen_vectors, 0, sizeof vectors / sizeof *vectors);
    tcase_add_loop_test(tc, each_element_is_used_evenly, 0, sizeof pairs / sizeof *pairs);
    tcase_add_test(tc, every_small_pair_is_even);
    tcase_add_test(tc, remainder_is_drawn_from_the_whole_ring);
    tcase_add_test(tc, without_permutation_wraps_round);
    tcase_add_loop_test(tc, table_is_the_functions, 0, sizeof table_cases / sizeof *table_cases);
    tcase_add_loop_test(tc, big_maps_stay_inside, 0, sizeof big / sizeof *big);
    tcase_add_loop_test(tc, big_tile_spans_fit_together, 0, sizeof big / sizeof *big);
    tcase_add_test(tc, positions_look_random);
    tcase_add_test(tc, random_is_with_replacement);
    tcase_add_test(tc, tiles_look_random);
    tcase_add_test(tc, signs_look_random);
    tcase_add_test(tc, rings_and_seeds_differ);
    tcase_add_test(tc, filters_are_nearly_orthogonal);
    tcase_add_test(tc, filters_without_permutation_are_not);
    tcase_add_test(tc, initial_values_are_normal);
    tcase_add_test(tc, initial_values_are_frozen);
    tcase_add_test(tc, bad_parameters_are_refused);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
