/* Paths and numbered names in a folder; see run_numbers.h. */
#include "trainer/run_numbers.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DIGITS 18

status run_path(char **ret_path, errbuf *err, const char *format, ...)
{
    char *path = NULL;
    va_list args;
    va_start(args, format);
    const int length = vasprintf(&path, format, args);
    va_end(args);
    if (length < 0)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a path");
    *ret_path = path;
    return STATUS_OK;
}

void run_numbers_fini(run_numbers *l)
{
    free(l->number);
    memset(l, 0, sizeof *l);
}

bool run_numbers_parse(const char *name, const char *prefix, const char *suffix, int64_t *ret)
{
    const size_t skip = strlen(prefix);
    if (strncmp(name, prefix, skip) != 0)
        return false;
    const char *digits = name + skip;
    const size_t length = strspn(digits, "0123456789");
    if (length == 0 || length > MAX_DIGITS || (digits[0] == '0' && length > 1) ||
        strcmp(digits + length, suffix) != 0)
        return false;
    *ret = strtoll(digits, NULL, 10);
    return true;
}

static int compare_numbers(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static status add_number(run_numbers *l, int64_t number, errbuf *err)
{
    if ((l->count & (l->count - 1)) == 0) { /* room for a power of two: full when at one */
        int64_t *grown = realloc(l->number, (l->count > 0 ? 2 * l->count : 1) * sizeof *grown);
        if (grown == NULL)
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a list of files");
        l->number = grown;
    }
    l->number[l->count++] = number;
    return STATUS_OK;
}

status run_numbers_list(const char *folder, const char *prefix, const char *suffix,
                        run_numbers *ret_list, errbuf *err)
{
    status st = STATUS_OK;
    run_numbers list = {0};
    int64_t number = 0;
    DIR *dir = opendir(folder);
    if (dir == NULL && errno != ENOENT)
        return errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot list: %s", folder, strerror(errno));
    while (dir != NULL) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL)
            break;
        if (run_numbers_parse(entry->d_name, prefix, suffix, &number))
            TRY_GOTO(add_number(&list, number, err), st, cleanup);
    }
    if (dir != NULL && errno != 0) {
        st = errbuf_set(err, STATUS_ENVIRONMENT, "%s: cannot list: %s", folder, strerror(errno));
        goto cleanup;
    }
    if (list.count > 0)
        qsort(list.number, list.count, sizeof *list.number, compare_numbers);
    *ret_list = list;
    memset(&list, 0, sizeof list);
cleanup:
    run_numbers_fini(&list);
    if (dir != NULL)
        closedir(dir);
    return st;
}
