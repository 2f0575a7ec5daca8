/* Nearest valid names for the job spec's messages, by edit distance. */
#include <stdio.h>
#include <string.h>

#include "protocol/spec_internal.h"

#define MAX_WORD 64

static int min3(int a, int b, int c)
{
    int least = a < b ? a : b;
    return least < c ? least : c;
}

/* Insertions, deletions, substitutions and swaps of neighbours; words of at most MAX_WORD. */
static int edit_distance(const char *a, const char *b)
{
    int rows[3][MAX_WORD + 1];
    int n = (int)strlen(a), m = (int)strlen(b);
    int *before = rows[0], *last = rows[1], *row = rows[2];
    for (int j = 0; j <= m; j++)
        last[j] = j;
    for (int i = 1; i <= n; i++) {
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            row[j] = min3(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = min3(row[j], before[j - 2] + 1, row[j]);
        }
        int *oldest = before;
        before = last;
        last = row;
        row = oldest;
    }
    return last[m];
}

/* The best candidate so far. */
typedef struct nearest {
    const char *word;
    char best[MAX_WORD + 1];
    int distance; /* of best; what is not nearer than this is no help */
} nearest;

static void consider(nearest *n, const char *candidate)
{
    if (strlen(candidate) > MAX_WORD)
        return;
    int distance = edit_distance(n->word, candidate);
    /* The beginning of a name, however much is missing behind it. */
    size_t length = strlen(n->word);
    if (length >= 3 && strncmp(n->word, candidate, length) == 0 && distance > 1)
        distance = 1;
    if (distance < n->distance) {
        n->distance = distance;
        snprintf(n->best, sizeof n->best, "%s", candidate);
    }
}

static nearest nearest_begin(const char *word)
{
    int length = (int)strlen(word);
    return (nearest){.word = word, .distance = length < 6 ? 3 : length / 3 + 1};
}

static void suggest(const nearest *n, char ret[SPEC_MAX_SUGGEST])
{
    ret[0] = '\0';
    if (n->best[0])
        snprintf(ret, SPEC_MAX_SUGGEST, "; did you mean %s?", n->best);
}

void spec_suggest_path(const char *path, char ret[SPEC_MAX_SUGGEST])
{
    ret[0] = '\0';
    if (strlen(path) > MAX_WORD)
        return;
    nearest n = nearest_begin(path);
    size_t count;
    const spec_field *fields = spec_fields(&count);
    const char *dot = strrchr(path, '.');
    const char *leaf = dot ? dot + 1 : path;
    for (size_t i = 0; i < count; i++) {
        consider(&n, fields[i].path);
        const char *own = strchr(fields[i].path, '.');
        if (!own)
            continue;
        /* The right leaf in the wrong group, or in none. */
        if (strcmp(own + 1, leaf) == 0 && n.distance > 1) {
            n.distance = 1;
            snprintf(n.best, sizeof n.best, "%s", fields[i].path);
        }
        char group[MAX_WORD + 1];
        snprintf(group, sizeof group, "%.*s", (int)(own - fields[i].path), fields[i].path);
        if (!dot)
            consider(&n, group);
    }
    suggest(&n, ret);
}

void spec_suggest_name(const char *word, const char *const *names, char ret[SPEC_MAX_SUGGEST])
{
    ret[0] = '\0';
    if (strlen(word) > MAX_WORD)
        return;
    nearest n = nearest_begin(word);
    for (int i = 0; names[i]; i++)
        consider(&n, names[i]);
    suggest(&n, ret);
}
