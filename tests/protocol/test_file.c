/* Files written whole: nothing half-written, the file before survives, no temporary stays. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "protocol/file.h"
#include "suite.h"

static char *folder, *path;
static errbuf err;

static void setup(void)
{
    memset(&err, 0, sizeof err);
    folder = suite_folder();
    path = suite_path(folder, "file");
}

static void teardown(void)
{
    free(path);
    suite_remove(folder);
}

static int count_entries(const char *name)
{
    DIR *dir = opendir(name);
    int count = 0;
    ck_assert_ptr_nonnull(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static void check_content(const char *expected)
{
    char *bytes = NULL;
    size_t length = 0;
    ck_assert_ok(file_read_all(path, 1000, &bytes, &length, &err));
    ck_assert_uint_eq(length, strlen(expected));
    ck_assert_str_eq(bytes, expected);
    free(bytes);
}

START_TEST(written_and_replaced)
{
    ck_assert_ok(file_write_atomic(path, "old", 3, &err));
    check_content("old");
    ck_assert_ok(file_write_atomic(path, "newer", 5, &err));
    check_content("newer");
    ck_assert_ok(file_write_atomic(path, "", 0, &err));
    check_content("");
    ck_assert_int_eq(count_entries(folder), 1);
}
END_TEST

START_TEST(not_there_before_commit)
{
    atomic_file *f = NULL;
    ck_assert_ok(file_write_atomic(path, "old", 3, &err));
    ck_assert_ok(atomic_file_open(path, &f, &err));
    ck_assert_ok(atomic_file_write(&f, "ne", 2, &err));
    ck_assert_ok(atomic_file_write(&f, "w", 1, &err));
    check_content("old");
    ck_assert_ok(atomic_file_commit(&f, &err));
    ck_assert_ptr_null(f);
    check_content("new");
    ck_assert_int_eq(count_entries(folder), 1);
}
END_TEST

START_TEST(discarded)
{
    atomic_file *f = NULL;
    ck_assert_ok(file_write_atomic(path, "old", 3, &err));
    ck_assert_ok(atomic_file_open(path, &f, &err));
    ck_assert_ok(atomic_file_write(&f, "new", 3, &err));
    atomic_file_discard(&f);
    atomic_file_discard(&f);
    atomic_file_discard(NULL);
    check_content("old");
    ck_assert_int_eq(count_entries(folder), 1);
}
END_TEST

START_TEST(killed_before_commit)
{
    int probe = open(folder, O_TMPFILE | O_WRONLY, 0600);
    if (probe < 0)
        return; /* a file system whose files all have names */
    close(probe);
    ck_assert_ok(file_write_atomic(path, "old", 3, &err));
    pid_t writer = fork();
    ck_assert_int_ge(writer, 0);
    if (writer == 0) {
        atomic_file *f = NULL;
        if (atomic_file_open(path, &f, &err) == STATUS_OK &&
            atomic_file_write(&f, "new", 3, &err) == STATUS_OK)
            raise(SIGKILL);
        _exit(1);
    }
    int how = 0;
    ck_assert_int_eq(waitpid(writer, &how, 0), writer);
    ck_assert(WIFSIGNALED(how));
    check_content("old");
    ck_assert_int_eq(count_entries(folder), 1);
}
END_TEST

START_TEST(two_writers_do_not_meet)
{
    atomic_file *a = NULL, *b = NULL;
    ck_assert_ok(atomic_file_open(path, &a, &err));
    ck_assert_ok(atomic_file_open(path, &b, &err));
    ck_assert_ok(atomic_file_write(&a, "aaaa", 4, &err));
    ck_assert_ok(atomic_file_write(&b, "b", 1, &err));
    ck_assert_ok(atomic_file_commit(&b, &err));
    check_content("b");
    ck_assert_ok(atomic_file_commit(&a, &err));
    check_content("aaaa");
}
END_TEST

/* A full disk, as a process can bring it about for itself: the limit on a file's size. */
START_TEST(disk_full)
{
    static char big[100000];
    struct rlimit limit = {50000, 50000};
    ck_assert_ok(file_write_atomic(path, "old", 3, &err));
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_fails(file_write_atomic(path, big, sizeof big, &err), STATUS_ENVIRONMENT,
                    "disk full writing");
    ck_assert_fails(file_write_atomic(path, big, sizeof big, &err), STATUS_ENVIRONMENT,
                    "the file before is kept");
    atomic_file *f = NULL;
    ck_assert_ok(atomic_file_open(path, &f, &err));
    ck_assert_ok(atomic_file_write(&f, big, 50000, &err));
    ck_assert_fails(atomic_file_write(&f, big, 1, &err), STATUS_ENVIRONMENT, path);
    ck_assert_ptr_null(f);
    check_content("old");
    ck_assert_int_eq(count_entries(folder), 1);
}
END_TEST

START_TEST(the_full_device)
{
    FILE *full = fopen("/dev/full", "w");
    if (!full)
        return;
    ck_assert_fails(file_write_fd(fileno(full), "x", "abc", 3, &err), STATUS_ENVIRONMENT,
                    "disk full writing x (No space left on device)");
    fclose(full);
}
END_TEST

START_TEST(impossible_paths)
{
    char *below = suite_path(path, "child"), *missing = suite_path(folder, "no/such");
    ck_assert_ok(file_write_atomic(path, "old", 3, &err));
    ck_assert_fails(file_write_atomic(below, "x", 1, &err), STATUS_BAD_INPUT, "Not a directory");
    ck_assert_fails(file_write_atomic(missing, "x", 1, &err), STATUS_ENVIRONMENT, "No such file");
    /* A folder stands where the file should go: seen at the rename only. */
    ck_assert_ok(file_make_dirs(missing, &err));
    int before = count_entries(folder);
    char *taken = suite_path(folder, "no");
    ck_assert_fails(file_write_atomic(taken, "x", 1, &err), STATUS_BAD_INPUT, "Is a directory");
    ck_assert_int_eq(count_entries(folder), before);
    free(below), free(missing), free(taken);
}
END_TEST

START_TEST(reading)
{
    char *bytes = (char *)"untouched";
    size_t length = 77;
    ck_assert_fails(file_read_all(path, 10, &bytes, &length, &err), STATUS_BAD_INPUT,
                    "No such file");
    ck_assert_fails(file_read_all(folder, 10, &bytes, &length, &err), STATUS_BAD_INPUT,
                    "Is a directory");
    ck_assert_ok(file_write_atomic(path, "0123456789", 10, &err));
    ck_assert_fails(file_read_all(path, 9, &bytes, &length, &err), STATUS_BAD_INPUT,
                    "larger than 9 bytes");
    ck_assert_str_eq(bytes, "untouched");
    ck_assert_uint_eq(length, 77);
    ck_assert_ok(file_read_all(path, 10, &bytes, &length, &err));
    ck_assert_str_eq(bytes, "0123456789");
    free(bytes);
    /* Files of /proc say that their size is 0. */
    ck_assert_ok(file_read_all("/proc/self/status", 1 << 20, &bytes, &length, &err));
    ck_assert_uint_gt(length, 100);
    free(bytes);
}
END_TEST

START_TEST(large_file_comes_back_whole)
{
    enum {
        SIZE = 3000001
    };
    char *bytes = malloc(SIZE), *back = NULL;
    size_t length = 0;
    for (int i = 0; i < SIZE; i++)
        bytes[i] = (char)(i * 31 + i / 257);
    ck_assert_ok(file_write_atomic(path, bytes, SIZE, &err));
    ck_assert_ok(file_read_all(path, SIZE, &back, &length, &err));
    ck_assert_uint_eq(length, SIZE);
    ck_assert_int_eq(memcmp(bytes, back, SIZE), 0);
    ck_assert_int_eq(back[SIZE], 0);
    free(bytes);
    free(back);
}
END_TEST

START_TEST(folders)
{
    struct stat info;
    char *deep = suite_path(folder, "a//b/c/"), *under_file = suite_path(folder, "file/x");
    ck_assert_ok(file_make_dirs(deep, &err));
    ck_assert_int_eq(stat(deep, &info), 0);
    ck_assert(S_ISDIR(info.st_mode));
    ck_assert_ok(file_make_dirs(deep, &err));
    ck_assert_ok(file_make_dirs("/", &err));
    ck_assert_ok(file_sync_dir(deep, &err));
    ck_assert_ok(file_write_atomic(path, "x", 1, &err));
    ck_assert_fails(file_make_dirs(path, &err), STATUS_BAD_INPUT, "Not a directory");
    ck_assert_fails(file_make_dirs(under_file, &err), STATUS_BAD_INPUT, "Not a directory");
    ck_assert_fails(file_make_dirs("", &err), STATUS_BAD_INPUT, "without a name");
    ck_assert_fails(file_sync_dir(under_file, &err), STATUS_ENVIRONMENT, "durable");
    free(deep), free(under_file);
}
END_TEST

static const struct {
    const char *path, *parent, *absolute; /* NULL: below the current folder */
} names[] = {
    {"/a/b", "/a", "/a/b"},
    {"/a/b/", "/a", "/a/b"},
    {"/a", "/", "/a"},
    {"/", "/", "/"},
    {"a", ".", NULL},
    {"a/b", "a", NULL},
    {"//a//./b/.", "//a//./b", "/a/b"},
    {"/a/../b", "/a/..", "/a/../b"},
};

START_TEST(path_parts)
{
    char *text = NULL;
    ck_assert_ok(file_parent(names[_i].path, &text, &err));
    ck_assert_str_eq(text, names[_i].parent);
    free(text);
    ck_assert_ok(file_absolute(names[_i].path, &text, &err));
    if (names[_i].absolute) {
        ck_assert_str_eq(text, names[_i].absolute);
    } else {
        char *here = getcwd(NULL, 0), *expected = suite_path(here, names[_i].path);
        ck_assert_str_eq(text, expected);
        free(here), free(expected);
    }
    free(text);
}
END_TEST

START_TEST(relative_names_work)
{
    ck_assert_int_eq(chdir(folder), 0);
    ck_assert_ok(file_write_atomic("here", "1", 1, &err));
    ck_assert_ok(file_make_dirs("x/y", &err));
    ck_assert_ok(file_write_atomic("x/y/z", "1", 1, &err));
    ck_assert_int_eq(access("x/y/z", R_OK), 0);
    ck_assert_int_eq(chdir("/"), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("file");
    TCase *tc = tcase_create("file");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, written_and_replaced);
    tcase_add_test(tc, not_there_before_commit);
    tcase_add_test(tc, discarded);
    tcase_add_test(tc, killed_before_commit);
    tcase_add_test(tc, two_writers_do_not_meet);
    tcase_add_test(tc, disk_full);
    tcase_add_test(tc, the_full_device);
    tcase_add_test(tc, impossible_paths);
    tcase_add_test(tc, reading);
    tcase_add_test(tc, large_file_comes_back_whole);
    tcase_add_test(tc, folders);
    tcase_add_loop_test(tc, path_parts, 0, sizeof names / sizeof names[0]);
    tcase_add_test(tc, relative_names_work);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
