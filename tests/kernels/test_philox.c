/* Philox4x32-10 against the published vectors, and the counter layout of sub-seeds. */
#include <check.h>
#include <stdlib.h>

#include "kernels/philox.h"

static void check_block(philox_block b, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3)
{
    ck_assert_uint_eq(b.word[0], w0);
    ck_assert_uint_eq(b.word[1], w1);
    ck_assert_uint_eq(b.word[2], w2);
    ck_assert_uint_eq(b.word[3], w3);
}

START_TEST(published_vectors)
{
    check_block(philox4x32(0, 0, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
    check_block(philox4x32(0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff),
                0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);
    check_block(philox4x32(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0),
                0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1);
}
END_TEST

START_TEST(subseed_layout)
{
    philox_block expect = philox4x32(5, 4, 0x52494E03u, 2, 0x89abcdef, 0x01234567);
    check_block(philox_subseed(0x0123456789abcdefu, 2, 3, 4, 5), expect.word[0], expect.word[1],
                expect.word[2], expect.word[3]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("philox");
    TCase *tc = tcase_create("philox");
    tcase_add_test(tc, published_vectors);
    tcase_add_test(tc, subseed_layout);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
