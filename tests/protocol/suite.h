/* What the suites of protocol/ share: a folder of their own, and the main of a Check program. */
#ifndef RINGMASTER_TESTS_PROTOCOL_SUITE_H
#define RINGMASTER_TESTS_PROTOCOL_SUITE_H

#include <check.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/status.h"

/* The call succeeds; its error line is the message where it does not. Needs `errbuf err`. */
#define ck_assert_ok(call)                                          \
    do {                                                            \
        status ok_ = (call);                                        \
        ck_assert_msg(ok_ == STATUS_OK, "%s: %s", #call, err.text); \
    } while (0)

/* The call fails with `code` and one line that holds `part`. Clears err. */
#define ck_assert_fails(call, expected_code, part)                                                \
    do {                                                                                          \
        errbuf_clear(&err);                                                                       \
        status failed_ = (call);                                                                  \
        ck_assert_msg(failed_ == (expected_code), "%s: %d, \"%s\"", #call, failed_, err.text);    \
        ck_assert_int_eq(err.code, (expected_code));                                              \
        ck_assert_msg(strstr(err.text, (part)) != NULL, "no \"%s\" in \"%s\"", (part), err.text); \
        ck_assert_msg(strpbrk(err.text, "\n\t") == NULL, "more than a line: \"%s\"", err.text);   \
        errbuf_clear(&err);                                                                       \
    } while (0)

/* A fresh folder in TMPDIR; the caller removes it with suite_remove. */
static inline char *suite_folder(void)
{
    const char *parent = getenv("TMPDIR");
    char *path = NULL;
    ck_assert_int_gt(asprintf(&path, "%s/ringmaster-test-XXXXXX", parent ? parent : "/tmp"), 0);
    ck_assert_ptr_nonnull(mkdtemp(path));
    return path;
}

static inline int suite_remove_entry(const char *path, const struct stat *info, int kind,
                                     struct FTW *walk)
{
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

static inline void suite_remove(char *folder)
{
    nftw(folder, suite_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(folder);
}

/* "folder/name"; caller frees. */
static inline char *suite_path(const char *folder, const char *name)
{
    char *path = NULL;
    ck_assert_int_gt(asprintf(&path, "%s/%s", folder, name), 0);
    return path;
}

static inline int suite_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

#endif
