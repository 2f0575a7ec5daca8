/* Positions in JSON text and the lexical check; see json_positions.h. */
#include "protocol/json_positions.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* cJSON copies a number into a buffer of 64 bytes. */
#define MAX_NUMBER_LENGTH 63

json_position json_position_at(const char *text, size_t length, size_t offset)
{
    json_position at = {.offset = offset, .value = offset, .line = 1, .column = 1};
    for (size_t i = 0; i < offset && i < length; i++) {
        if (text[i] == '\n') {
            at.line += at.line < INT_MAX;
            at.column = 1;
        } else {
            at.column += at.column < INT_MAX;
        }
    }
    return at;
}

/* Length of the UTF-8 sequence at `s`, 0 where it is malformed (overlong, surrogate, cut). */
static size_t utf8_length(const unsigned char *s, size_t room)
{
    if (s[0] < 0x80)
        return 1;
    size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n > room)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

const char *json_show(const char *text, size_t length, char *ret, size_t size)
{
    size_t out = 0;
    for (size_t i = 0, n; i < length; i += n) {
        unsigned char c = (unsigned char)text[i];
        /* Eight bytes are kept for a character or "\xNN", then "…" and the NUL. */
        if (out + 8 > size) {
            memcpy(ret + out, "…", strlen("…"));
            out += strlen("…");
            break;
        }
        n = utf8_length((const unsigned char *)text + i, length - i);
        if (n == 0 || c < 0x20 || c == 0x7f) {
            out += (size_t)snprintf(ret + out, size - out, "\\x%02x", c);
            n = 1;
        } else {
            memcpy(ret + out, text + i, n);
            out += n;
        }
    }
    ret[out] = '\0';
    return ret;
}

bool json_is_utf8(const char *text, size_t length)
{
    for (size_t i = 0, n; i < length; i += n) {
        n = utf8_length((const unsigned char *)text + i, length - i);
        if (n == 0)
            return false;
    }
    return true;
}

static bool is_digit(const char *text, size_t length, size_t i)
{
    return i < length && text[i] >= '0' && text[i] <= '9';
}

/* JSON's number grammar, stricter than cJSON's. *i: first byte on entry, behind it on return. */
static const char *check_number(const char *text, size_t length, size_t *i)
{
    size_t start = *i, k = *i;
    if (text[k] == '-')
        k++;
    if (!is_digit(text, length, k))
        return "a number needs a digit here";
    if (text[k] == '0' && is_digit(text, length, k + 1))
        return "a number must not begin with 0";
    while (is_digit(text, length, k))
        k++;
    if (k < length && text[k] == '.') {
        if (!is_digit(text, length, ++k))
            return "a number needs a digit behind its point";
        while (is_digit(text, length, k))
            k++;
    }
    if (k < length && (text[k] == 'e' || text[k] == 'E')) {
        k++;
        if (k < length && (text[k] == '+' || text[k] == '-'))
            k++;
        if (!is_digit(text, length, k))
            return "a number needs a digit in its exponent";
        while (is_digit(text, length, k))
            k++;
    }
    if (k - start > MAX_NUMBER_LENGTH)
        return "a number has more than 63 characters";
    *i = k;
    return NULL;
}

/* *i: the opening quote on entry, behind the closing one on return. */
static const char *check_string(const char *text, size_t length, size_t *i)
{
    size_t k = *i + 1;
    while (k < length && text[k] != '"') {
        unsigned char c = (unsigned char)text[k];
        if (c == '\\') {
            /* cJSON would end the string here and keep the rest out of sight. */
            if (k + 5 < length && memcmp(text + k, "\\u0000", 6) == 0) {
                *i = k;
                return "a string must not hold the NUL character";
            }
            k += 2; /* past the end where the text ends in a backslash */
            continue;
        }
        size_t n = utf8_length((const unsigned char *)text + k, length - k);
        if (c < 0x20 || n == 0) {
            *i = k;
            return c == 0     ? "a NUL byte is not JSON"
                   : c < 0x20 ? "a string must not hold a raw line break or control character"
                              : "not valid UTF-8";
        }
        k += n;
    }
    if (k >= length)
        return "this string has no closing quote";
    *i = k + 1;
    return NULL;
}

static status lexical_error(const char *text, size_t length, size_t offset, const char *source,
                            const char *what, errbuf *err)
{
    json_position at = json_position_at(text, length, offset);
    return errbuf_set(err, STATUS_BAD_INPUT, "%s:%d:%d: not valid JSON: %s", source, at.line,
                      at.column, what);
}

static size_t skip_bom(const char *text, size_t length)
{
    return length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}

status json_check_text(const char *text, size_t length, const char *source, errbuf *err)
{
    int depth = 0;
    bool is_blank = true;
    for (size_t i = skip_bom(text, length); i < length;) {
        const char *wrong = NULL;
        char c = text[i];
        is_blank = is_blank && (c == ' ' || c == '\t' || c == '\r' || c == '\n');
        if (c == '"') {
            wrong = check_string(text, length, &i);
        } else if (c == '-' || is_digit(text, length, i)) {
            wrong = check_number(text, length, &i);
        } else if (c == '\0') {
            wrong = "a NUL byte is not JSON";
        } else if ((unsigned char)c >= 0x80) {
            wrong = "a character that is not ASCII stands outside a string";
        } else {
            depth += (c == '{' || c == '[') - (c == '}' || c == ']');
            if (depth > JSON_MAX_DEPTH)
                wrong = "nested more than 64 levels deep";
            else
                i++;
        }
        if (wrong)
            return lexical_error(text, length, i, source, wrong, err);
    }
    if (is_blank)
        return errbuf_set(err, STATUS_BAD_INPUT, "%s is empty: expected a JSON object", source);
    return STATUS_OK;
}

/* -- walking parsed text -- */

static size_t skip_blank(const char *text, size_t length, size_t i)
{
    while (i < length && (text[i] == ' ' || text[i] == '\t' || text[i] == '\r' || text[i] == '\n'))
        i++;
    return i;
}

/* Behind the string that begins at i. */
static size_t skip_string(const char *text, size_t length, size_t i)
{
    for (i++; i < length && text[i] != '"'; i++)
        i += text[i] == '\\';
    return i < length ? i + 1 : length;
}

/* Behind the value that begins at i: brackets are counted, so no recursion. */
static size_t skip_value(const char *text, size_t length, size_t i)
{
    int depth = 0;
    while (i < length) {
        char c = text[i];
        if (c == '"') {
            i = skip_string(text, length, i);
            if (depth == 0)
                return i;
            continue;
        }
        if (depth == 0 &&
            (c == ',' || c == '}' || c == ']' || c == ' ' || c == '\t' || c == '\r' || c == '\n'))
            return i;
        i++;
        if (c == '{' || c == '[')
            depth++;
        if (c == '}' || c == ']') {
            depth--;
            if (depth == 0)
                return i;
        }
    }
    return length;
}

bool json_position_find(const char *text, size_t length, const int *ordinals, int depth,
                        json_position *ret)
{
    size_t i = skip_blank(text, length, skip_bom(text, length));
    size_t begin = i;
    for (int d = 0; d < depth; d++) {
        if (i >= length || (text[i] != '{' && text[i] != '['))
            return false;
        bool is_object = text[i] == '{';
        i = skip_blank(text, length, i + 1);
        for (int n = 0;; n++) {
            if (i >= length || text[i] == '}' || text[i] == ']')
                return false;
            begin = i;
            if (is_object) {
                i = skip_blank(text, length, skip_string(text, length, i));
                i = skip_blank(text, length, i + 1); /* the colon */
            }
            if (n == ordinals[d])
                break;
            i = skip_blank(text, length, skip_value(text, length, i));
            if (i < length && text[i] == ',')
                i = skip_blank(text, length, i + 1);
        }
    }
    if (i >= length)
        return false;
    *ret = json_position_at(text, length, begin);
    ret->value = i;
    return true;
}
