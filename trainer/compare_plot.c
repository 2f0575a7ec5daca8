/*
 * Accuracy against degrees of freedom, drawn by gnuplot (compare.h).
 *
 * gnuplot gets its program through its standard input and draws to its standard output, which we
 * have opened ourselves: no path and no shell is involved, and the names of runs are reduced to
 * characters that mean nothing to gnuplot.
 */
#include "trainer/compare.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Puts a name into a data line: letters, digits, and punctuation that is harmless in quotes. */
static void print_name(const char *name, FILE *out)
{
    fputc('"', out);
    for (const char *c = name; *c; c++)
        fputc(isalnum((unsigned char)*c) || strchr(" ._-+,%=()", *c) ? *c : '_', out);
    fputc('"', out);
}

/* Lines "dof accuracy best label" of the measured runs, dense or ring-backed. */
static int print_points(const compare_table *t, bool dense, FILE *out)
{
    int points = 0;
    for (int i = 0; i < t->runs; i++) {
        const compare_run *r = &t->run[i];
        if (r->top1 < 0 || r->dof < 1 || (r->ring_size == 0) != dense)
            continue;
        fprintf(out, "%lld %.4f ", (long long)r->dof, 100 * r->top1);
        print_name(r->name, out);
        fprintf(out, " \"%.1f %%\"\n", 100 * r->top1);
        points++;
    }
    return points;
}

/* Ranges with room for the labels: around all points on both axes. */
static void print_ranges(const compare_table *t, FILE *out)
{
    double low = INFINITY, high = 0, bottom = 100, top = 0;
    for (int i = 0; i < t->runs; i++) {
        const compare_run *r = &t->run[i];
        if (r->top1 < 0 || r->dof < 1)
            continue;
        low = fmin(low, (double)r->dof);
        high = fmax(high, (double)r->dof);
        bottom = fmin(bottom, 100 * r->top1);
        top = fmax(top, 100 * r->top1);
    }
    const double room = fmax(3, 0.2 * (top - bottom));
    fprintf(out, "set xrange [%.6g:%.6g]\n", low / 2, high * 2.2);
    fprintf(out, "set yrange [%.6g:%.6g]\n", fmax(0, bottom - room), fmin(100, top + room));
    fprintf(out, "dense_from = %.6g\ndense_to = %.6g\n", low / 2, high * 2.2);
}

static const char style[] = "set encoding utf8\n"
                            "set title 'Accuracy against degrees of freedom' font ',15'\n"
                            "set xlabel 'degrees of freedom of the backbone (log scale)'\n"
                            "set ylabel 'validation top-1 at the last epoch (%)'\n"
                            "set logscale x\n"
                            "set format x '%.0s %c'\n"
                            "set border 3 lc rgb '#555555'\n"
                            "set tics nomirror out textcolor rgb '#333333'\n"
                            "set grid xtics ytics lc rgb '#d8d8d8' lw 1\n"
                            "set key bottom right box lc rgb '#dddddd' opaque spacing 1.2\n"
                            "set style line 1 lc rgb '#1f5fa8' lw 2.5 pt 7 ps 1.4\n"
                            "set style line 2 lc rgb '#c0392b' lw 1.8 dt 2 pt 5 ps 1.4\n";

/* One label a point, its name over its accuracy: below and right of a rising curve, above a level.
 */
#define LABELS     "using 1:2:(sprintf(\"%s\\n%s\", strcol(3), strcol(4))) with labels noenhanced "
#define LABEL_TEXT "font ',10' textcolor rgb '#333333' notitle"
static const char ring_labels[] = LABELS "left offset 0.9,-0.9 " LABEL_TEXT;
static const char dense_labels[] = LABELS "offset 0,1.6 " LABEL_TEXT;

/* The plot command: rings as a line through labelled points, the dense net as a level. */
static void print_plot(int rings, int denses, FILE *out)
{
    if (denses > 0)
        fprintf(out,
                "plot $dense using (dense_from):2:(dense_to-dense_from):(0) with vectors nohead "
                "ls 2 notitle, $dense using 1:2 with points ls 2 title 'dense', $dense %s",
                dense_labels);
    if (rings > 0)
        fprintf(out, "%s $ring using 1:2 with linespoints ls 1 title 'ring-backed', $ring %s",
                denses > 0 ? "," : "plot", ring_labels);
    fputc('\n', out);
}

status compare_script(const compare_table *t, compare_format format, char **ret_text, errbuf *err)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a plot");
    fputs(format == COMPARE_SVG ? "set terminal svg size 860,540 font 'Helvetica,12' background "
                                  "'#ffffff'\n"
                                : "set terminal pngcairo size 1290,810 font 'Helvetica,12' "
                                  "fontscale 1.4 linewidth 1.4 pointscale 1.4\n",
          out);
    fputs(style, out);
    fputs("$ring << END_OF_DATA\n", out);
    const int rings = print_points(t, false, out);
    fputs("END_OF_DATA\n$dense << END_OF_DATA\n", out);
    const int denses = print_points(t, true, out);
    fputs("END_OF_DATA\n", out);
    if (rings + denses > 0) {
        print_ranges(t, out);
        print_plot(rings, denses, out);
    }
    if (fclose(out) != 0) {
        free(text);
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a plot");
    }
    if (rings + denses == 0) {
        free(text);
        return errbuf_set(err, STATUS_BAD_INPUT, "nothing to plot: no run has been evaluated");
    }
    *ret_text = text;
    return STATUS_OK;
}

/* Sends all of `text`; a reader that is gone is seen by its exit code, not by SIGPIPE. */
static void send_all(int fd, const char *text)
{
    size_t left = strlen(text);
    while (left > 0) {
        const ssize_t sent = send(fd, text, left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return;
        text += sent;
        left -= (size_t)sent;
    }
}

/* Runs gnuplot with stdin from `input` and stdout to `output`. */
static status spawn_gnuplot(int input, int output, pid_t *ret_pid, errbuf *err)
{
    posix_spawn_file_actions_t actions;
    if (posix_spawn_file_actions_init(&actions) != 0)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory to start gnuplot");
    char name[] = "gnuplot", dash[] = "-";
    char *const arguments[] = {name, dash, NULL};
    int code = posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    if (code == 0)
        code = posix_spawnp(ret_pid, "gnuplot", &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (code == ENOENT)
        return errbuf_set(err, STATUS_ENVIRONMENT,
                          "no plot drawn: gnuplot is not installed (Debian: gnuplot-nox)");
    if (code != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "gnuplot cannot be started: %s", strerror(code));
    return STATUS_OK;
}

static status run_gnuplot(const char *script, int output, errbuf *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "no pipe to gnuplot: %s", strerror(errno));
    pid_t pid = 0;
    const status st = spawn_gnuplot(pair[1], output, &pid, err);
    close(pair[1]);
    if (st == STATUS_OK)
        send_all(pair[0], script);
    close(pair[0]);
    TRY(st);
    int code = 0;
    while (waitpid(pid, &code, 0) < 0) {
        if (errno != EINTR)
            return errbuf_set(err, STATUS_ENVIRONMENT, "gnuplot was lost: %s", strerror(errno));
    }
    if (!WIFEXITED(code) || WEXITSTATUS(code) != 0)
        return errbuf_set(err, STATUS_ENVIRONMENT, "gnuplot failed, see its message above");
    return STATUS_OK;
}

static status plot_file(const compare_table *t, const char *prefix, compare_format format,
                        errbuf *err)
{
    char *path = NULL, *temporary = NULL, *script = NULL;
    int fd = -1;
    status st = STATUS_OUT_OF_MEMORY;
    if (asprintf(&path, "%s.%s", prefix, format == COMPARE_SVG ? "svg" : "png") < 0)
        return errbuf_set(err, st, "no memory for a path");
    if (asprintf(&temporary, "%s.tmp.%ld", path, (long)getpid()) < 0) {
        temporary = NULL;
        errbuf_set(err, st, "no memory for a path");
        goto cleanup;
    }
    TRY_GOTO(compare_script(t, format, &script, err), st, cleanup);
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        st = errbuf_set(err, STATUS_BAD_INPUT, "%s cannot be written: %s", path, strerror(errno));
        goto cleanup;
    }
    TRY_GOTO(run_gnuplot(script, fd, err), st, cleanup);
    if (rename(temporary, path) != 0)
        st = errbuf_set(err, STATUS_ENVIRONMENT, "%s cannot be written: %s", path, strerror(errno));
cleanup:
    if (fd >= 0)
        close(fd);
    if (st != STATUS_OK && temporary && fd >= 0)
        unlink(temporary);
    free(script);
    free(temporary);
    free(path);
    return st;
}

status compare_plot(const compare_table *t, const char *prefix, errbuf *err)
{
    TRY(plot_file(t, prefix, COMPARE_SVG, err));
    return plot_file(t, prefix, COMPARE_PNG, err);
}
