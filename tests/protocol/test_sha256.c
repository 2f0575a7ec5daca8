/* SHA-256: FIPS 180-4 vectors on both paths, and both paths and all ways of cutting the input
 * against each other. */
#include "protocol/sha256.h"
#include "suite.h"

static const struct {
    const char *message, *hex;
} vectors[] = {
    {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnop"
     "qrsmnopqrstnopqrstu",
     "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
};

static void hash(bool is_portable, const uint8_t *bytes, size_t length, size_t piece,
                 char hex[SHA256_HEX_SIZE])
{
    sha256 h;
    if (is_portable)
        sha256_init_portable(&h);
    else
        sha256_init(&h);
    for (size_t i = 0; i < length; i += piece)
        sha256_update(&h, bytes + i, piece < length - i ? piece : length - i);
    sha256_final_hex(&h, hex);
}

START_TEST(published_vectors)
{
    char hex[SHA256_HEX_SIZE];
    const uint8_t *message = (const uint8_t *)vectors[_i].message;
    for (int portable = 0; portable < 2; portable++) {
        hash(portable, message, strlen(vectors[_i].message), 1000, hex);
        ck_assert_str_eq(hex, vectors[_i].hex);
        hash(portable, message, strlen(vectors[_i].message), 1, hex);
        ck_assert_str_eq(hex, vectors[_i].hex);
    }
}
END_TEST

START_TEST(a_million_letters)
{
    char hex[SHA256_HEX_SIZE];
    static uint8_t letters[1000000];
    memset(letters, 'a', sizeof letters);
    for (int portable = 0; portable < 2; portable++) {
        hash(portable, letters, sizeof letters, 4093, hex);
        ck_assert_str_eq(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
}
END_TEST

START_TEST(any_length_in_any_pieces)
{
    uint8_t bytes[300];
    char whole[SHA256_HEX_SIZE], cut[SHA256_HEX_SIZE];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 167 + 13);
    for (size_t length = 0; length < sizeof bytes; length++) {
        hash(true, bytes, length, sizeof bytes, whole);
        for (size_t piece = 1; piece < 130; piece += 9) {
            hash(false, bytes, length, piece, cut);
            ck_assert_str_eq(cut, whole);
        }
    }
}
END_TEST

START_TEST(the_portable_path_is_portable)
{
    sha256 h;
    sha256_init_portable(&h);
    ck_assert(!sha256_is_accelerated(&h));
    uint8_t digest[SHA256_BYTES];
    sha256_update(&h, "", 0);
    sha256_final(&h, digest);
    ck_assert_uint_eq(digest[0], 0xe3);
    ck_assert_uint_eq(digest[31], 0x55);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sha256");
    TCase *tc = tcase_create("sha256");
    tcase_add_loop_test(tc, published_vectors, 0, sizeof vectors / sizeof vectors[0]);
    tcase_add_test(tc, a_million_letters);
    tcase_add_test(tc, any_length_in_any_pieces);
    tcase_add_test(tc, the_portable_path_is_portable);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
