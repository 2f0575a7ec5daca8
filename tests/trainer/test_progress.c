/* What a person sees: whole lines where stderr is a file, a bar on a terminal, nothing from the
 * other ranks. */
#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "trainer/clock.h"
#include "trainer/progress.h"

static char said[20000];
static bool is_soon; /* this machine did not stall between two steps */

/* Everything that a progress may say, with some steps slow enough to be drawn. */
static void say_all(bool is_silent)
{
    progress p;
    progress_init(&p, is_silent, "job");
    progress_phase(&p, "reading images", 3, 10);
    progress_start(&p, 2, 5, 128, 0);
    progress_step(&p, 0, 2.5);
    progress_say(&p, "epoch %d done", 1);
    usleep(120000);
    const double before = clock_seconds();
    progress_step(&p, 6, 1.25);
    progress_step(&p, 7, 1.0); /* too soon to be drawn again */
    is_soon = clock_seconds() - before < 0.1;
    progress_end(&p);
}

/* Runs it with stderr on `fd`; what was written is read from `from`. */
static void capture(int fd, int from, bool is_silent)
{
    int kept = dup(STDERR_FILENO);
    ck_assert_int_ge(kept, 0);
    fflush(stderr);
    ck_assert_int_ge(dup2(fd, STDERR_FILENO), 0);
    say_all(is_silent);
    fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
    /* a terminal hands on what was written a little later, and in pieces */
    struct pollfd ready = {.fd = from, .events = POLLIN};
    size_t length = 0;
    while (length < sizeof said - 1 && poll(&ready, 1, 200) > 0 && ready.revents & POLLIN) {
        ssize_t got = read(from, said + length, sizeof said - 1 - length);
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    said[length] = '\0';
}

START_TEST(into_a_file)
{
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    capture(ends[1], ends[0], false);
    ck_assert_str_eq(said, "epoch 1 done\n");
}
END_TEST

START_TEST(other_ranks_are_silent)
{
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    capture(ends[1], ends[0], true);
    ck_assert_str_eq(said, "");
}
END_TEST

START_TEST(on_a_terminal)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    ck_assert_int_ge(master, 0);
    ck_assert_int_eq(grantpt(master), 0);
    ck_assert_int_eq(unlockpt(master), 0);
    int terminal = open(ptsname(master), O_RDWR | O_NOCTTY);
    ck_assert_int_ge(terminal, 0);
    struct winsize size = {.ws_row = 24, .ws_col = 60};
    ck_assert_int_eq(ioctl(terminal, TIOCSWINSZ, &size), 0);
    capture(terminal, master, false);
    ck_assert_ptr_nonnull(strstr(said, "reading images 3/10"));
    ck_assert_ptr_nonnull(strstr(said, "epoch 1 done"));
    ck_assert_ptr_nonnull(strstr(said, "epoch 2/2"));
    ck_assert(!is_soon || !strstr(said, "loss 1.000")); /* ten redraws a second */
    /* no drawn line is as wide as the terminal: it would wrap */
    for (char *line = strtok(said, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        char *end = strstr(line, "\033[K");
        ck_assert_int_lt(end ? end - line : (long)strlen(line), 60);
    }
    close(terminal);
    close(master);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("progress");
    TCase *tcase = tcase_create("progress");
    tcase_add_test(tcase, into_a_file);
    tcase_add_test(tcase, other_ranks_are_silent);
    tcase_add_test(tcase, on_a_terminal);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
