/*
 * The loader: every epoch is a bijection of the set, shards hold what a plain loop over
 * loader_sample, dataset_read and augment_image gives, whatever the world, the threads and the
 * depth, and errors reach the consumer in order.
 */
#include "trainer/data_testing.h"

#include <pthread.h>
#include <signal.h>

#define SIDE   8
#define PIXELS (3 * SIDE * SIDE)

static dataset *open_synthetic(int64_t count)
{
    spec s = data_spec(DATA_SYNTHETIC, NULL);
    dataset *set = NULL;
    s.data.size = SIDE;
    s.data.train_count = s.data.eval_count = count;
    assert_ok(dataset_open(&s, SPLIT_TRAIN, NULL, NULL, &set, &err));
    return set;
}

static loader_options options_for(dataset *set)
{
    return (loader_options){.set = set,
                            .split = SPLIT_TRAIN,
                            .size = SIDE,
                            .augment = AUGMENT_CROP,
                            .normalise = NORMALISE_CIFAR10,
                            .on_error = ON_ERROR_FAIL,
                            .seed = 11,
                            .batch = 24,
                            .shard = 6,
                            .world = 1,
                            .threads = 2,
                            .depth = 3};
}

static loader *make_loader(const loader_options *o)
{
    loader *l = NULL;
    assert_ok(loader_create(o, &l, &err));
    return l;
}

/* -- order -- */

START_TEST(every_epoch_visits_every_sample_once)
{
    static const int64_t sizes[] = {1, 2, 31, 100, 1000, 4097};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            int64_t n = sizes[i];
            char *seen = calloc((size_t)n, 1);
            for (int64_t p = 0; p < n; p++) {
                int64_t sample = loader_sample(9, epoch, n, p);
                ck_assert_int_ge(sample, 0);
                ck_assert_int_lt(sample, n);
                ck_assert_int_eq(seen[sample]++, 0);
            }
            free(seen);
        }
}
END_TEST

START_TEST(orders_differ_by_epoch_and_seed_and_leave_little_in_place)
{
    int same_epoch = 0, same_seed = 0, in_place = 0;
    for (int64_t p = 0; p < 1000; p++) {
        int64_t sample = loader_sample(9, 0, 1000, p);
        same_epoch += sample == loader_sample(9, 1, 1000, p);
        same_seed += sample == loader_sample(10, 0, 1000, p);
        in_place += sample == p;
    }
    ck_assert_int_lt(same_epoch, 8);
    ck_assert_int_lt(same_seed, 8);
    ck_assert_int_lt(in_place, 8);
}
END_TEST

START_TEST(the_order_never_changes)
{
    /* Runs that were begun with one version must go on with the next. */
    static const int64_t expected[8] = {36434, 38911, 49156, 10081, 2487, 27931, 19215, 29688};
    for (int p = 0; p < 8; p++)
        ck_assert_int_eq(loader_sample(1, 2, 50000, p), expected[p]);
}
END_TEST

/* -- contents -- */

/* What must stand at a place of an epoch. */
static void expect_row(const loader_options *o, int64_t epoch, int64_t sample, float *out,
                       int32_t *ret_label)
{
    image im = {0}, scratch = {0};
    assert_ok(dataset_read(o->set, sample, 0, &im, ret_label, &err));
    assert_ok(augment_image(o, epoch, sample, &im, &scratch, out, &err));
    image_fini(&im);
    image_fini(&scratch);
}

static void check_training_shard(const loader_options *o, int64_t count, int64_t epoch,
                                 const loader_shard *shard)
{
    float expected[PIXELS];
    int32_t label;
    ck_assert_int_eq(shard->valid, o->shard);
    ck_assert_int_eq(shard->skipped, 0);
    for (int64_t r = 0; r < o->shard; r++) {
        int64_t sample = loader_sample(o->seed, epoch, count, shard->index * o->shard + r);
        expect_row(o, epoch, sample, expected, &label);
        ck_assert_int_eq(shard->labels[r], label);
        ck_assert_mem_eq(shard->images + r * PIXELS, expected, sizeof expected);
    }
}

/* Goes through the rest of an epoch; returns how many shards came. */
static int64_t check_epoch(loader *l, const loader_options *o, int64_t count, int64_t epoch,
                           int64_t first_step)
{
    int64_t per_batch = o->batch / o->shard, mine = per_batch / o->world;
    int64_t n = loader_shards(l) - first_step * mine;
    assert_ok(loader_start(l, epoch, first_step, &err));
    for (int64_t j = 0; j < n; j++) {
        loader_shard shard = {0};
        assert_ok(loader_next(l, &shard, &err));
        int64_t step = first_step + j / mine;
        ck_assert_int_eq(shard.index, step * per_batch + o->rank * mine + j % mine);
        check_training_shard(o, count, epoch, &shard);
        loader_release(l, &shard);
        ck_assert_ptr_null(shard.images);
    }
    return n;
}

START_TEST(shards_are_the_same_for_any_world_threads_and_depth)
{
    static const struct {
        int world, threads, depth;
        int64_t shard;
    } row[] = {{1, 1, 2, 6}, {1, 4, 3, 6},  {2, 1, 4, 6}, {2, 3, 2, 6},
               {4, 2, 2, 6}, {1, 2, 1, 24}, {4, 1, 5, 3}, {1, 3, 2, 1}};
    int64_t count = 110; /* 4 batches of 24, 14 left over */
    dataset *set = open_synthetic(count);
    for (int rank = 0; rank < row[_i].world; rank++) {
        loader_options o = options_for(set);
        o.world = row[_i].world;
        o.rank = rank;
        o.threads = row[_i].threads;
        o.depth = row[_i].depth;
        o.shard = row[_i].shard;
        loader *l = make_loader(&o);
        ck_assert_int_eq(loader_steps(l), 4);
        ck_assert_int_eq(loader_shards(l), 4 * 24 / o.shard / o.world);
        for (int64_t epoch = 0; epoch < 3; epoch++)
            ck_assert_int_eq(check_epoch(l, &o, count, epoch, 0), loader_shards(l));
        ck_assert_double_ge(loader_waited(l), 0);
        loader_destroy(&l);
        ck_assert_ptr_null(l);
    }
    dataset_close(&set);
}
END_TEST

START_TEST(resuming_in_the_middle_continues_the_epoch)
{
    dataset *set = open_synthetic(110);
    loader_options o = options_for(set);
    loader *l = make_loader(&o);
    for (int64_t step = 0; step <= 4; step++)
        ck_assert_int_eq(check_epoch(l, &o, 110, 5, step), (4 - step) * 4);
    assert_fails(loader_start(l, 5, 5, &err), STATUS_BAD_INPUT, "step 5", "4 steps");
    assert_fails(loader_start(l, -1, 0, &err), STATUS_BAD_INPUT, "epoch -1");
    ck_assert_int_eq(check_epoch(l, &o, 110, 6, 3), 4); /* a refused start does no harm */
    loader_destroy(&l);
    dataset_close(&set);
}
END_TEST

START_TEST(an_epoch_can_be_left_and_a_loader_destroyed_at_any_point)
{
    dataset *set = open_synthetic(110);
    loader_options o = options_for(set);
    o.threads = 3;
    for (int taken = 0; taken < 6; taken++) {
        loader *l = make_loader(&o);
        loader_shard shard[2] = {{0}};
        for (int64_t epoch = 0; epoch < 5; epoch++) {
            assert_ok(loader_start(l, epoch, 0, &err));
            for (int j = 0; j < taken; j++) {
                assert_ok(loader_next(l, &shard[0], &err));
                check_training_shard(&o, 110, epoch, &shard[0]);
                loader_release(l, &shard[0]);
            }
        }
        assert_ok(loader_start(l, 9, 0, &err));
        assert_ok(loader_next(l, &shard[0], &err)); /* two held at once, released crosswise */
        assert_ok(loader_next(l, &shard[1], &err));
        loader_release(l, &shard[1]);
        check_training_shard(&o, 110, 9, &shard[0]);
        loader_release(l, &shard[0]);
        loader_release(l, &shard[0]); /* twice does nothing */
        loader_destroy(&l);
        loader_destroy(&l);
    }
    dataset_close(&set);
}
END_TEST

START_TEST(evaluation_covers_each_sample_once_in_order_and_pads_with_zeros)
{
    int64_t count = 50, shard_size = 6; /* nine shards, the last of two */
    bool clean = _i % 2;
    int world = 1 + _i / 2;
    int seen[50] = {0};
    dataset *set = open_synthetic(count);
    for (int rank = 0; rank < world; rank++) {
        loader_options o = options_for(set);
        o.split = clean ? SPLIT_TRAIN : SPLIT_EVAL;
        o.clean = clean;
        o.batch = 1000; /* of no account here */
        o.world = world;
        o.rank = rank;
        loader *l = make_loader(&o);
        for (int round = 0; round < 2; round++) {
            assert_ok(loader_start(l, 0, 0, &err));
            for (int64_t j = 0; j < loader_shards(l); j++) {
                loader_shard shard;
                float expected[PIXELS];
                int32_t label;
                assert_ok(loader_next(l, &shard, &err));
                ck_assert_int_eq(shard.index, j * world + rank);
                ck_assert_int_eq(shard.valid, shard.index == 8 ? 2 : 6);
                for (int r = 0; r < shard_size; r++) {
                    memset(expected, 0, sizeof expected);
                    label = 0;
                    if (r < shard.valid) {
                        seen[shard.index * shard_size + r]++;
                        expect_row(&o, 0, shard.index * shard_size + r, expected, &label);
                    }
                    ck_assert_int_eq(shard.labels[r], label);
                    ck_assert_mem_eq(shard.images + r * PIXELS, expected, sizeof expected);
                }
                loader_release(l, &shard);
            }
        }
        loader_destroy(&l);
    }
    for (int i = 0; i < count; i++)
        ck_assert_int_eq(seen[i], 2);
    dataset_close(&set);
}
END_TEST

START_TEST(a_rank_beyond_the_last_evaluation_shard_gets_none)
{
    dataset *set = open_synthetic(10);
    loader_options o = options_for(set);
    o.split = SPLIT_EVAL;
    o.world = 4;
    o.rank = 3;
    loader *l = make_loader(&o);
    ck_assert_int_eq(loader_shards(l), 0);
    assert_ok(loader_start(l, 0, 0, &err));
    loader_destroy(&l);
    dataset_close(&set);
}
END_TEST

/* -- bad input -- */

START_TEST(batches_that_cannot_be_made_are_named)
{
    dataset *set = open_synthetic(20);
    loader_options o = options_for(set);
    loader *l = NULL;
    assert_fails(loader_create(&o, &l, &err), STATUS_BAD_INPUT, "24", "20 training images");
    o.batch = 20;
    assert_fails(loader_create(&o, &l, &err), STATUS_BAD_INPUT, "batch of 20", "shards of 6");
    o.batch = 18;
    o.world = 2;
    assert_fails(loader_create(&o, &l, &err), STATUS_BAD_INPUT, "2 ranks");
    ck_assert_ptr_null(l);
    dataset_close(&set);
}
END_TEST

/* 2 x 15 images in a folder, those of `broken` cut short. */
static dataset *open_folder_set(const int *broken, int broken_count)
{
    spec s = data_spec(DATA_FOLDER, folder);
    dataset *set = NULL;
    for (int i = 0; i < 30; i++) {
        char name[64];
        encoded e = encode_rgb_png(SIDE + i % 3, SIDE + i % 3, 0);
        for (int b = 0; b < broken_count; b++)
            if (broken[b] == i)
                e.length /= 2;
        snprintf(name, sizeof name, "train/%s/%02d.png", i < 15 ? "a" : "b", i);
        put_encoded(name, e);
    }
    assert_ok(dataset_open(&s, SPLIT_TRAIN, NULL, NULL, &set, &err));
    return set;
}

/* Place of a sample in an epoch of 30. */
static int64_t place_of(uint64_t seed, int64_t epoch, int64_t sample)
{
    for (int64_t p = 0; p < 30; p++)
        if (loader_sample(seed, epoch, 30, p) == sample)
            return p;
    return -1;
}

START_TEST(a_damaged_image_is_an_error_in_its_shard_and_the_earliest_wins)
{
    make_folder();
    int broken[] = {4, 21};
    dataset *set = open_folder_set(broken, 2);
    loader_options o = options_for(set);
    o.batch = o.shard = 10;
    o.threads = 1 + _i;
    loader *l = make_loader(&o);
    for (int64_t epoch = 0; epoch < 6; epoch++) {
        assert_ok(loader_start(l, epoch, 0, &err));
        int64_t p[2] = {place_of(11, epoch, 4), place_of(11, epoch, 21)};
        for (int64_t j = 0; j < 3; j++) {
            loader_shard shard = {0};
            errbuf err = {0};
            bool has[2] = {p[0] / 10 == j, p[1] / 10 == j};
            status st = loader_next(l, &shard, &err);
            if (!has[0] && !has[1]) {
                ck_assert_int_eq(st, STATUS_OK);
                loader_release(l, &shard);
                continue;
            }
            bool first_is_4 = has[0] && (!has[1] || p[0] < p[1]);
            ck_assert_int_eq(st, STATUS_DATA);
            ck_assert_ptr_nonnull(strstr(err.text, first_is_4 ? "04.png" : "21.png"));
            ck_assert_ptr_nonnull(strstr(err.text, first_is_4 ? "sample 4" : "sample 21"));
            ck_assert_ptr_null(shard.images);
        }
    }
    loader_destroy(&l);
    dataset_close(&set);
    remove_folder();
}
END_TEST

START_TEST(skip_takes_the_next_readable_image_and_counts)
{
    make_folder();
    int broken[] = {4, 5, 29};
    static const int64_t instead[30] = {[4] = 6, [5] = 6, [29] = 0};
    dataset *set = open_folder_set(broken, 3);
    loader_options o = options_for(set);
    o.on_error = ON_ERROR_SKIP;
    o.batch = o.shard = 30;
    o.threads = 1 + _i;
    loader *l = make_loader(&o);
    for (int64_t epoch = 0; epoch < 2; epoch++) {
        loader_shard shard;
        assert_ok(loader_start(l, epoch, 0, &err));
        assert_ok(loader_next(l, &shard, &err));
        ck_assert_int_eq(shard.skipped, 3);
        for (int r = 0; r < 30; r++) {
            int64_t sample = loader_sample(11, epoch, 30, r);
            bool is_broken = sample == 4 || sample == 5 || sample == 29;
            float expected[PIXELS];
            int32_t label;
            image im = {0}, scratch = {0};
            assert_ok(
                dataset_read(set, is_broken ? instead[sample] : sample, SIDE, &im, &label, &err));
            assert_ok(augment_image(&o, epoch, sample, &im, &scratch, expected, &err));
            ck_assert_int_eq(shard.labels[r], label);
            ck_assert_mem_eq(shard.images + r * PIXELS, expected, sizeof expected);
            image_fini(&im);
            image_fini(&scratch);
        }
        loader_release(l, &shard);
    }
    loader_destroy(&l);
    dataset_close(&set);
    remove_folder();
}
END_TEST

START_TEST(skip_gives_up_where_nothing_can_be_read)
{
    make_folder();
    int broken[30];
    for (int i = 0; i < 30; i++)
        broken[i] = i;
    dataset *set = open_folder_set(broken, 30);
    loader_options o = options_for(set);
    o.on_error = ON_ERROR_SKIP;
    o.batch = o.shard = 10;
    loader *l = make_loader(&o);
    loader_shard shard;
    assert_ok(loader_start(l, 0, 0, &err));
    assert_fails(loader_next(l, &shard, &err), STATUS_DATA, "not one image", ".png");
    loader_destroy(&l);
    dataset_close(&set);
    remove_folder();
}
END_TEST

static volatile sig_atomic_t handled_by_main;
static pthread_t main_thread;

static void handle(int number)
{
    (void)number;
    handled_by_main = pthread_equal(pthread_self(), main_thread) ? 1 : 2;
}

START_TEST(signals_stay_with_the_training_loop)
{
    dataset *set = open_synthetic(110);
    loader_options o = options_for(set);
    o.threads = 8;
    loader *l = make_loader(&o);
    sigset_t one, before;
    main_thread = pthread_self();
    signal(SIGUSR1, handle);
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &one, &before);
    kill(getpid(), SIGUSR1); /* a producer that did not block it would take it here */
    assert_ok(loader_start(l, 0, 0, &err));
    check_epoch(l, &o, 110, 0, 0);
    ck_assert_int_eq(handled_by_main, 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    ck_assert_int_eq(handled_by_main, 1);
    loader_destroy(&l);
    dataset_close(&set);
}
END_TEST

/* Bytes are what the floats were before the levels: whole images, crops and black borders. */
START_TEST(bytes_become_the_floats)
{
    static const int ways[] = {AUGMENT_NONE, AUGMENT_CROP, AUGMENT_RRC};
    dataset *set = open_synthetic(48);
    float level[3][256];
    loader_options o = options_for(set);
    o.augment = ways[_i];
    loader_levels(&o, level);
    loader *floats = make_loader(&o);
    o.bytes = true;
    loader *bytes = make_loader(&o);
    assert_ok(loader_start(floats, 3, 0, &err));
    assert_ok(loader_start(bytes, 3, 0, &err));
    for (int64_t k = 0; k < loader_shards(floats); k++) {
        loader_shard a, b;
        assert_ok(loader_next(floats, &a, &err));
        assert_ok(loader_next(bytes, &b, &err));
        ck_assert(a.images && !a.bytes && b.bytes && !b.images);
        ck_assert_mem_eq(a.labels, b.labels, (size_t)o.shard * sizeof *a.labels);
        for (int64_t i = 0; i < o.shard * PIXELS; i++)
            ck_assert(a.images[i] == level[i % PIXELS / (SIDE * SIDE)][b.bytes[i]]);
        loader_release(floats, &a);
        loader_release(bytes, &b);
    }
    loader_destroy(&floats);
    loader_destroy(&bytes);
    dataset_close(&set);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loader");
    TCase *order = tcase_create("order");
    tcase_add_test(order, every_epoch_visits_every_sample_once);
    tcase_add_test(order, orders_differ_by_epoch_and_seed_and_leave_little_in_place);
    tcase_add_test(order, the_order_never_changes);
    suite_add_tcase(suite, order);
    TCase *contents = tcase_create("contents");
    tcase_add_loop_test(contents, shards_are_the_same_for_any_world_threads_and_depth, 0, 8);
    tcase_add_test(contents, resuming_in_the_middle_continues_the_epoch);
    tcase_add_test(contents, an_epoch_can_be_left_and_a_loader_destroyed_at_any_point);
    tcase_add_loop_test(contents, evaluation_covers_each_sample_once_in_order_and_pads_with_zeros,
                        0, 8);
    tcase_add_test(contents, a_rank_beyond_the_last_evaluation_shard_gets_none);
    tcase_add_loop_test(contents, bytes_become_the_floats, 0, 3);
    tcase_add_test(contents, signals_stay_with_the_training_loop);
    suite_add_tcase(suite, contents);
    TCase *bad = tcase_create("bad input");
    tcase_add_test(bad, batches_that_cannot_be_made_are_named);
    tcase_add_loop_test(bad, a_damaged_image_is_an_error_in_its_shard_and_the_earliest_wins, 0, 3);
    tcase_add_loop_test(bad, skip_takes_the_next_readable_image_and_counts, 0, 3);
    tcase_add_test(bad, skip_gives_up_where_nothing_can_be_read);
    suite_add_tcase(suite, bad);
    return run_suite(suite);
}
