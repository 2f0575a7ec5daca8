/* Progress display; see progress.h. */
#include "trainer/progress.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "trainer/clock.h"

#define BAR_CELLS 24

void progress_init(progress *p, bool is_silent, const char *label)
{
    memset(p, 0, sizeof *p);
    p->is_silent = is_silent;
    p->is_live = !is_silent && isatty(STDERR_FILENO);
    snprintf(p->label, sizeof p->label, "%s", label);
}

static void clear_line(const progress *p)
{
    if (p->is_live)
        fputs("\r\033[K", stderr);
}

void progress_say(progress *p, const char *format, ...)
{
    if (p->is_silent)
        return;
    clear_line(p);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

/* Draws one line, cut to the terminal's width so that it never wraps. */
static void draw(const char *line)
{
    struct winsize size = {0};
    int columns = 100;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 10)
        columns = size.ws_col - 1;
    fprintf(stderr, "\r%.*s\033[K", columns, line);
    fflush(stderr);
}

static bool is_due(progress *p)
{
    double now = clock_seconds();
    if (!p->is_live || now - p->last_drawn < 0.1)
        return false;
    p->last_drawn = now;
    return true;
}

void progress_phase(progress *p, const char *what, int64_t done, int64_t total)
{
    if (!is_due(p))
        return;
    char line[160];
    snprintf(line, sizeof line, "%s  %s %lld/%lld", p->label, what, (long long)done,
             (long long)total);
    draw(line);
}

void progress_start(progress *p, int64_t epochs, int64_t steps, int64_t images_per_step,
                    int64_t first_step)
{
    p->epochs = epochs;
    p->steps = steps;
    p->images_per_step = images_per_step;
    p->first_step = first_step;
    p->began = clock_seconds();
}

static void format_duration(double seconds, char text[48])
{
    long s = (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, 48, "%ldh%02ldm", s / 3600, s % 3600 / 60);
    else
        snprintf(text, 48, "%ldm%02lds", s / 60, s % 60);
}

void progress_step(progress *p, int64_t step, double loss)
{
    if (!is_due(p) || p->steps == 0)
        return;
    double seconds = clock_seconds() - p->began;
    int64_t done = step + 1 - p->first_step, total = p->epochs * p->steps;
    double rate = seconds > 0 ? (double)done / seconds : 0;
    double part = (double)(step % p->steps + 1) / (double)p->steps;
    char bar[BAR_CELLS + 1], left[48], known[32] = "", line[320];
    int full = (int)(part * BAR_CELLS + 0.5);
    for (int i = 0; i < BAR_CELLS; i++)
        bar[i] = i < full ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    format_duration(rate > 0 ? (double)(total - step - 1) / rate : 0, left);
    if (!isnan(loss))
        snprintf(known, sizeof known, "  loss %.3f", loss);
    snprintf(line, sizeof line, "%s  epoch %lld/%lld [%s] %3.0f%%%s  %.0f images/s  %s left",
             p->label, (long long)(step / p->steps + 1), (long long)p->epochs, bar, 100 * part,
             known, rate * (double)p->images_per_step, left);
    draw(line);
}

void progress_end(progress *p)
{
    clear_line(p);
    fflush(stderr);
}
