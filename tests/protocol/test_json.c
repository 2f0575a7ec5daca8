/* Strict parsing with positions, canonical text, numbers that read back. */
#include <float.h>
#include <math.h>

#include "protocol/json.h"
#include "protocol/json_canonical.h"
#include "protocol/json_positions.h"
#include "suite.h"

static status parse(const char *text, size_t length, errbuf *err)
{
    cJSON *json = NULL;
    status st = json_parse(text, length, "a.json", &json, err);
    if (st != STATUS_OK)
        ck_assert_ptr_null(json);
    cJSON_Delete(json);
    return st;
}

static const struct {
    const char *text, *part;
} refused[] = {
    {"", "a.json is empty"},
    {" \n\t\r\n", "a.json is empty"},
    {"{", "a.json:1:"},
    {"{\n  \"a\": 1,\n  \"b\" 2\n}", "a.json:3:"},
    {"{\"a\": 1,}", "a.json:1:"},
    {"{\"a\": tru}", "a.json:1:"},
    {"{} {}", "a.json:1:4: not valid JSON: text behind the document"},
    {"[1] x", "text behind the document"},
    {"{\"a\": \"b\n\"}", "a.json:1:9: not valid JSON: a string must not hold a raw line break"},
    {"{\"a\": \"b", "no closing quote"},
    {"{\"a\": \"b\\", "no closing quote"},
    {"{\"a\": \"x\\u0000y\"}", "NUL character"},
    {"{\"a\": \"\\ud800\"}", "a.json:1:"},
    {"{\"a\": \"\xff\"}", "a.json:1:8: not valid JSON: not valid UTF-8"},
    {"{\"a\": \"\xc0\xaf\"}", "not valid UTF-8"},
    {"{\"a\": \"\xed\xa0\x80\"}", "not valid UTF-8"},
    {"{\"a\": \"\xe2\x82\"}", "not valid UTF-8"},
    {"{\"a\": \xc3\xa4}", "not ASCII"},
    {"{\"a\": 01}", "must not begin with 0"},
    {"{\"a\": 1.}", "digit behind its point"},
    {"{\"a\": -}", "needs a digit"},
    {"{\"a\": 1e}", "digit in its exponent"},
    {"{\"a\": .5}", "a.json:1:"},
    {"{\"a\": +1}", "a.json:1:"},
    {"{\"a\": NaN}", "a.json:1:"},
    {"{\"a\": Infinity}", "a.json:1:"},
    {"{\"a\":\n [0, -1e999]}", "a.json:2:6: this number is too large"},
    {"{\"a\": 1000000000000000000000000000000000000000000000000000000000000000}", "63 characters"},
    {"{\"a\": 1, \"b\": 2,\n\"a\": 3}", "duplicate key a at a.json:2:1"},
    {"{\"a\": 1, \"\\u0061\": 3}", "duplicate key a at a.json:1:10"},
    {"{\"x\": [0, {\"y\": {\"k\": 1,\n \"j\": [], \"k\": {}}}]}",
     "duplicate key x[1].y.k at a.json:2:11"},
    {"{\"q\\\"\\n\": 1, \"q\\\"\\n\": 1}", "duplicate key q\"\\x0a at a.json:1:14"},
};

START_TEST(refused_with_position)
{
    errbuf err = {0};
    ck_assert_fails(parse(refused[_i].text, strlen(refused[_i].text), &err), STATUS_BAD_INPUT,
                    refused[_i].part);
}
END_TEST

START_TEST(accepted)
{
    static const char *const texts[] = {
        "{}",
        " [ ] \n",
        "0",
        "\"a\"",
        "-0.5e-3",
        "\xef\xbb\xbf{\"a\":1}",
        "{\"a\":\"\\\\u0000\"}", /* a backslash and five letters, not a NUL */
        "{\"\xf0\x9f\x98\x80\":\"\xe2\x82\xac\"}",
        "{\"a\":{\"a\":{\"a\":1}},\"b\":[{\"a\":1},{\"a\":1}]}",
        "123456789012345678901234567890123456789012345678901234567890123",
    };
    errbuf err = {0};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        ck_assert_ok(parse(texts[i], strlen(texts[i]), &err));
}
END_TEST

START_TEST(nul_bytes)
{
    errbuf err = {0};
    static const char outside[] = "{\"a\": 1}\0{\"a\": 2}", inside[] = "{\"a\": \"b\0c\"}";
    ck_assert_fails(parse(outside, sizeof outside - 1, &err), STATUS_BAD_INPUT,
                    "a.json:1:9: not valid JSON: a NUL byte");
    ck_assert_fails(parse(inside, sizeof inside - 1, &err), STATUS_BAD_INPUT, "a NUL byte");
}
END_TEST

START_TEST(the_text_need_not_end)
{
    /* On the heap, so that a sanitizer sees a read behind the end. */
    errbuf err = {0};
    const char *text = "{\"a\": [true, \"x\", 12.5e1]}";
    for (size_t length = 0; length <= strlen(text); length++) {
        char *exact = malloc(length + 1);
        memcpy(exact, text, length);
        exact[length] = 'X';
        char *shrunk = realloc(exact, length ? length : 1);
        errbuf_clear(&err);
        status st = parse(shrunk, length, &err);
        ck_assert_int_eq(st == STATUS_OK, length == strlen(text));
        free(shrunk);
    }
}
END_TEST

START_TEST(depth_is_bounded)
{
    errbuf err = {0};
    enum {
        DEEP = 10000
    };
    char *text = malloc(2 * DEEP);
    memset(text, '[', DEEP);
    memset(text + DEEP, ']', DEEP);
    ck_assert_fails(parse(text, 2 * DEEP, &err), STATUS_BAD_INPUT,
                    "a.json:1:65: not valid JSON: nested more than 64 levels");
    ck_assert_ok(parse(text + DEEP - JSON_MAX_DEPTH, 2 * JSON_MAX_DEPTH, &err));
    ck_assert_fails(parse(text + DEEP - JSON_MAX_DEPTH - 1, 2 * JSON_MAX_DEPTH + 2, &err),
                    STATUS_BAD_INPUT, "64 levels");
    free(text);
}
END_TEST

START_TEST(positions)
{
    const char *text =
        "{\n \"a{\\\"\": [10, {\"b\": \"}]\"}],\n\t\"c\" : {\"d\": -1.5 , \"e\":[]}\n}";
    json_position at;
    ck_assert(json_position_find(text, strlen(text), (int[]){0}, 1, &at));
    ck_assert_int_eq(at.line, 2);
    ck_assert_int_eq(at.column, 2);
    ck_assert_int_eq(text[at.value], '[');
    ck_assert(json_position_find(text, strlen(text), (int[]){0, 1, 0}, 3, &at));
    ck_assert_int_eq(strncmp(text + at.value, "\"}]\"", 4), 0);
    ck_assert(json_position_find(text, strlen(text), (int[]){1, 0}, 2, &at));
    ck_assert_int_eq(at.line, 3);
    ck_assert_int_eq(strncmp(text + at.offset, "\"d\"", 3), 0);
    ck_assert_int_eq(strncmp(text + at.value, "-1.5", 4), 0);
    ck_assert(json_position_find(text, strlen(text), (int[]){1, 1}, 2, &at));
    ck_assert_int_eq(strncmp(text + at.offset, "\"e\"", 3), 0);
    ck_assert(!json_position_find(text, strlen(text), (int[]){2}, 1, &at));
    ck_assert(!json_position_find(text, strlen(text), (int[]){1, 1, 0}, 3, &at));
    ck_assert(!json_position_find(text, strlen(text), (int[]){1, 0, 0}, 3, &at));
    ck_assert(json_position_find(text, strlen(text), NULL, 0, &at));
    ck_assert_uint_eq(at.value, 0);
}
END_TEST

START_TEST(shown_text_is_one_line)
{
    char shown[16];
    ck_assert_str_eq(json_show("a\nb", 3, shown, sizeof shown), "a\\x0ab");
    ck_assert_str_eq(json_show("\xe2\x82\xac\xff", 4, shown, sizeof shown), "\xe2\x82\xac\\xff");
    json_show("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 32, shown, sizeof shown);
    ck_assert_uint_lt(strlen(shown), sizeof shown);
    ck_assert_ptr_nonnull(strstr(shown, "…"));
}
END_TEST

START_TEST(numbers_read_back)
{
    static const double values[] = {0.1,
                                    1.0 / 3,
                                    5e-4,
                                    1e300,
                                    DBL_MIN,
                                    DBL_MAX,
                                    DBL_EPSILON,
                                    1e15,
                                    123456.0,
                                    -2.5,
                                    4.9406564584124654e-324,
                                    0.30000000000000004,
                                    9007199254740993.0,
                                    -1e22};
    char text[JSON_NUMBER_MAX];
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        json_format_double(values[i], text);
        ck_assert(strtod(text, NULL) == values[i]);
    }
    json_format_double(0.1, text);
    ck_assert_str_eq(text, "0.1");
    json_format_double(100000, text);
    ck_assert_str_eq(text, "100000");
    json_format_double(-0.0, text);
    ck_assert_str_eq(text, "0");
}
END_TEST

static void check_canonical(const char *text, const char *expected)
{
    errbuf err = {0};
    cJSON *json = NULL;
    char *canonical = NULL;
    ck_assert_ok(json_parse(text, strlen(text), "a.json", &json, &err));
    ck_assert_ok(json_canonical(json, &canonical, &err));
    ck_assert_str_eq(canonical, expected);
    free(canonical);
    cJSON_Delete(json);
}

START_TEST(canonical_text)
{
    check_canonical("{ \"b\": 1.0, \"a\": [ 0.1, -0.0, 1e3 ], \"B\": {} }",
                    "{\"B\":{},\"a\":[0.10000000000000001,0,1000],\"b\":1}");
    check_canonical("{\"a\":9007199254740992,\"ab\":1e16,\"a.\":true,\"\":null}",
                    "{\"\":null,\"a\":9007199254740992,\"a.\":true,\"ab\":10000000000000000}");
    /* Sorted by bytes, not letters; solidus and non-ASCII stay; control characters are escaped. */
    check_canonical("{\"\\u00e9\":\"\\/\\u0001\\n\",\"z\":\"\\u20ac\"}",
                    "{\"z\":\"\xe2\x82\xac\",\"\xc3\xa9\":\"/\\u0001\\n\"}");
}
END_TEST

START_TEST(canonical_refuses)
{
    errbuf err = {0};
    char *text = (char *)"untouched";
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "a", NAN);
    ck_assert_fails(json_canonical(json, &text, &err), STATUS_BAD_INPUT, "not finite");
    cJSON_Delete(json);
    json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "a", 1);
    cJSON_AddNumberToObject(json, "a", 2);
    ck_assert_fails(json_canonical(json, &text, &err), STATUS_BAD_INPUT, "duplicate key \"a\"");
    cJSON_Delete(json);
    ck_assert_str_eq(text, "untouched");
}
END_TEST

START_TEST(typed_members)
{
    errbuf err = {0};
    cJSON *json = cJSON_Parse("{\"i\":12,\"f\":1.5,\"b\":true,\"s\":\"x\",\"big\":1e300}");
    int64_t value = -1;
    const char *text = NULL;
    ck_assert_ok(json_read_int(json, "i", 0, 12, "w.", &value, &err));
    ck_assert_int_eq(value, 12);
    ck_assert_fails(json_read_int(json, "i", 0, 11, "w.", &value, &err), STATUS_BAD_INPUT,
                    "w.i: 12 is not in [0, 11]");
    ck_assert_fails(json_read_int(json, "f", 0, 9, "", &value, &err), STATUS_BAD_INPUT, "f: ");
    ck_assert_fails(json_read_int(json, "b", 0, 9, "", &value, &err), STATUS_BAD_INPUT, "not true");
    ck_assert_fails(json_read_int(json, "big", 0, 9, "", &value, &err), STATUS_BAD_INPUT, "2^53");
    ck_assert_fails(json_read_int(json, "I", 0, 9, "", &value, &err), STATUS_BAD_INPUT, "nothing");
    ck_assert_ok(json_read_string(json, "s", "", &text, &err));
    ck_assert_str_eq(text, "x");
    ck_assert_fails(json_read_string(json, "i", "w.", &text, &err), STATUS_BAD_INPUT,
                    "w.i: expected a string, not a number");
    cJSON_Delete(json);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("json");
    TCase *tc = tcase_create("json");
    tcase_add_loop_test(tc, refused_with_position, 0, sizeof refused / sizeof refused[0]);
    tcase_add_test(tc, accepted);
    tcase_add_test(tc, nul_bytes);
    tcase_add_test(tc, the_text_need_not_end);
    tcase_add_test(tc, depth_is_bounded);
    tcase_add_test(tc, positions);
    tcase_add_test(tc, shown_text_is_one_line);
    tcase_add_test(tc, numbers_read_back);
    tcase_add_test(tc, canonical_text);
    tcase_add_test(tc, canonical_refuses);
    tcase_add_test(tc, typed_members);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
