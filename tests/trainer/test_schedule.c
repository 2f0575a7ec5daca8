/* Learning-rate schedules against their formulas, at the steps where they change. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "trainer/schedule.h"

static spec recipe(int schedule)
{
    spec s = {0};
    s.train.schedule = schedule;
    s.train.lr = 0.1;
    s.train.gamma = 0.2;
    s.train.epochs = 10;
    s.train.decay_epochs = 4;
    s.train.milestones.count = 2;
    s.train.milestones.epoch[0] = 3;
    s.train.milestones.epoch[1] = 7;
    return s;
}

#define ASSERT_LR(s, step, expected) \
    ck_assert_double_eq_tol(schedule_lr(s, step, 5), expected, 1e-15)

START_TEST(multistep)
{
    spec s = recipe(SCHEDULE_MULTISTEP);
    ASSERT_LR(&s, 0, 0.1);
    ASSERT_LR(&s, 14, 0.1);
    ASSERT_LR(&s, 15, 0.02); /* epoch 3 begins */
    ASSERT_LR(&s, 34, 0.02);
    ASSERT_LR(&s, 35, 0.004);
    ASSERT_LR(&s, 49, 0.004);
    s.train.milestones.count = 0;
    ASSERT_LR(&s, 49, 0.1);
}
END_TEST

/* True division: the rate falls every epoch, not every decay_epochs epochs. */
START_TEST(exponential)
{
    spec s = recipe(SCHEDULE_EXP);
    ASSERT_LR(&s, 0, 0.1);
    ASSERT_LR(&s, 4, 0.1);
    ASSERT_LR(&s, 5, 0.1 * pow(0.2, 0.25));
    ASSERT_LR(&s, 20, 0.02);
    ASSERT_LR(&s, 49, 0.1 * pow(0.2, 2.25));
}
END_TEST

START_TEST(cosine)
{
    spec s = recipe(SCHEDULE_COSINE);
    ASSERT_LR(&s, 0, 0.1);
    ASSERT_LR(&s, 25, 0.05);
    ASSERT_LR(&s, 49, 0.1 * 0.5 * (1 + cos(acos(-1) * 49 / 50)));
    for (int64_t step = 1; step < 50; step++)
        ck_assert_double_lt(schedule_lr(&s, step, 5), schedule_lr(&s, step - 1, 5));
}
END_TEST

START_TEST(warm_up)
{
    spec s = recipe(SCHEDULE_MULTISTEP);
    s.train.warmup = 4; /* 20 steps, over the milestone at 15 */
    ASSERT_LR(&s, 0, 0.1 / 20);
    ASSERT_LR(&s, 9, 0.05);
    ASSERT_LR(&s, 15, 0.02 * 16 / 20);
    ASSERT_LR(&s, 19, 0.02);
    ASSERT_LR(&s, 20, 0.02);
    s = recipe(SCHEDULE_EXP);
    s.train.warmup = 0.5; /* 2 whole steps */
    ASSERT_LR(&s, 0, 0.05);
    ASSERT_LR(&s, 1, 0.1);
    ASSERT_LR(&s, 2, 0.1);
    s = recipe(SCHEDULE_COSINE);
    s.train.warmup = 2;
    ASSERT_LR(&s, 4, 0.05);
    ASSERT_LR(&s, 9, 0.1);
    ASSERT_LR(&s, 10, 0.1); /* the cosine begins after warm-up */
    ASSERT_LR(&s, 30, 0.05);
    s.train.warmup = 10; /* nothing but warm-up */
    ASSERT_LR(&s, 49, 0.1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("schedule");
    TCase *tcase = tcase_create("schedules");
    tcase_add_test(tcase, multistep);
    tcase_add_test(tcase, exponential);
    tcase_add_test(tcase, cosine);
    tcase_add_test(tcase, warm_up);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
