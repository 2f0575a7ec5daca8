/*
 * From a resolved spec to a finished net: which builder, and how a total ring size is split over
 * the rings.
 */
#include "trainer/net/builders.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/net/resnet.h"

#define MAX_WIDTH   (1 << 16)
#define MAX_CLASSES (1 << 20)
#define MAX_SIZE    (1 << 14)

/* ---- ring sizes ---- */

/* Splits `total` over rings in proportion to m[i], exactly: largest remainder, the earlier ring on
 * a tie. No ring is left empty: one that would get nothing takes an element of the largest. Expects
 * total >= count. */
static void split_total(int64_t total, const int64_t *m, int count, int64_t *ret_size)
{
    __int128 sum = 0;
    int64_t left = total;
    for (int i = 0; i < count; i++)
        sum += m[i];
    for (int i = 0; i < count; i++) {
        ret_size[i] = (int64_t)((__int128)total * m[i] / sum);
        left -= ret_size[i];
    }
    for (; left > 0; left--) { /* fewer than `count` rounds */
        int best = 0;
        __int128 best_rest = -1;
        for (int i = 0; i < count; i++) {
            /* what ring i still lacks, times sum; negative once it was rounded up */
            __int128 rest = (__int128)total * m[i] - (__int128)ret_size[i] * sum;
            if (rest > best_rest) {
                best = i;
                best_rest = rest;
            }
        }
        ret_size[best]++;
    }
    for (int i = 0; i < count; i++) {
        int largest = 0;
        for (int k = 1; k < count; k++)
            if (ret_size[k] > ret_size[largest])
                largest = k;
        if (ret_size[i] == 0) {
            ret_size[i]++;
            ret_size[largest]--;
        }
    }
}

/* Edits (insert, delete, replace a letter) from a to b; names are short. */
static int edit_distance(const char *a, const char *b)
{
    int row[SPEC_MAX_RING_NAME + 1];
    int columns = (int)strnlen(b, SPEC_MAX_RING_NAME);
    for (int k = 0; k <= columns; k++)
        row[k] = k;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int k = 1; k <= columns; k++) {
            int replaced = diagonal + (a[i - 1] != b[k - 1]);
            diagonal = row[k];
            int other = (row[k - 1] < row[k] ? row[k - 1] : row[k]) + 1;
            row[k] = replaced < other ? replaced : other;
        }
    }
    return row[columns];
}

static status unknown_ring(const net *n, const char *name, errbuf *err)
{
    int nearest = 0;
    for (int i = 1; i < n->rings; i++)
        if (edit_distance(name, n->ring[i].name) < edit_distance(name, n->ring[nearest].name))
            nearest = i;
    return errbuf_set(err, STATUS_BAD_INPUT, "rpg.sizes: '%s' is no ring of %s; did you mean '%s'?",
                      name, n->name, n->ring[nearest].name);
}

/* rpg.sizes must name every ring. */
static status named_sizes(const spec *s, const net *n, int64_t *ret_size, errbuf *err)
{
    for (int i = 0; i < n->rings; i++)
        ret_size[i] = 0;
    for (int k = 0; k < s->rpg.sizes.count; k++) {
        const char *name = s->rpg.sizes.entry[k].ring;
        int ring = 0;
        while (ring < n->rings && strcmp(n->ring[ring].name, name) != 0)
            ring++;
        if (ring == n->rings)
            return unknown_ring(n, name, err);
        if (ret_size[ring] != 0)
            return errbuf_set(err, STATUS_BAD_INPUT, "rpg.sizes: '%s' is given twice", name);
        if (s->rpg.sizes.entry[k].size < 1 || s->rpg.sizes.entry[k].size > RING_MAX_M)
            return errbuf_set(err, STATUS_BAD_INPUT, "rpg.sizes.%s: %" PRId64 ", expected 1 to %d",
                              name, s->rpg.sizes.entry[k].size, RING_MAX_M);
        ret_size[ring] = s->rpg.sizes.entry[k].size;
    }
    for (int i = 0; i < n->rings; i++)
        if (ret_size[i] == 0)
            return errbuf_set(err, STATUS_BAD_INPUT,
                              "rpg.sizes: no size for ring '%s'; give one for each of the %d rings",
                              n->ring[i].name, n->rings);
    return STATUS_OK;
}

/* N in total: rpg.size, or rpg.share of M rounded half up, at least 1. */
static status total_size(const spec *s, int64_t generated, int64_t *ret_total, errbuf *err)
{
    double total = (double)s->rpg.size;
    const char *field = "rpg.size";
    if (s->rpg.size == 0) {
        field = "rpg.share";
        total = floor(s->rpg.share * (double)generated + 0.5);
        if (s->rpg.share > 0 && total < 1)
            total = 1;
    }
    if (!(total >= 1))
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "rpg.size: a ring size is needed; give rpg.size or rpg.share, or set "
                          "rpg.scope to none");
    if (total > RING_MAX_M)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "%s: N = %.0f, more than %d, the largest ring; lower %s", field, total,
                          RING_MAX_M, field);
    *ret_total = (int64_t)total;
    return STATUS_OK;
}

/* One N for each ring of an unfinished net. */
static status ring_sizes(const spec *s, const net *n, int64_t *ret_size, errbuf *err)
{
    int64_t m[SPEC_MAX_SIZES] = {0}, generated = 0, total = 0;
    ASSERT(n->rings <= SPEC_MAX_SIZES);
    if (n->rings == 0)
        return STATUS_OK;
    if (s->rpg.sizes.count > 0)
        return named_sizes(s, n, ret_size, err);
    for (int i = 0; i < n->rings; i++) {
        m[i] = n->ring[i].m;
        generated += m[i];
    }
    TRY(total_size(s, generated, &total, err));
    if (total < n->rings && s->rpg.size == 0)
        total = n->rings; /* a share is rounded to what can be had */
    if (total < n->rings)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "rpg.size: %" PRId64 " is less than one element for each of the %d rings "
                          "of rpg.scope block",
                          total, n->rings);
    split_total(total, m, n->rings, ret_size);
    return STATUS_OK;
}

/* ---- nets ---- */

static status check_resolved(const char *field, int64_t value, int64_t max, errbuf *err)
{
    if (value >= 1 && value <= max)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT, "%s: %" PRId64 ", expected 1 to %" PRId64, field,
                      value, max);
}

/* The net that the spec names, not yet finished. */
static status build_open(const spec *s, net **ret_net, errbuf *err)
{
    static const char *const names[] = {
        [ARCH_RESNET18] = "resnet18",
        [ARCH_RESNET34] = "resnet34",
    };
    net *n = NULL;
    ASSERT(s->model.arch >= 0 && s->model.arch < (int)(sizeof names / sizeof names[0]));
    TRY(check_resolved("model.width", s->model.width, MAX_WIDTH, err));
    TRY(check_resolved("model.classes", s->model.classes, MAX_CLASSES, err));
    TRY(check_resolved("data.size", s->data.size, MAX_SIZE, err));
    TRY(net_create(names[s->model.arch], &n, err));
    status st = resnet_build(n, s, err);
    if (st != STATUS_OK) {
        net_destroy(&n);
        return st;
    }
    *ret_net = n;
    return STATUS_OK;
}

status net_build(const spec *s, net **ret_net, errbuf *err)
{
    static const int index[] = {
        [INDEX_EVEN] = RING_INDEX_EVEN,
        [INDEX_RANDOM] = RING_INDEX_RANDOM,
        [INDEX_TILE] = RING_INDEX_TILE,
    };
    int64_t size[SPEC_MAX_SIZES] = {0};
    net_rings rings = {.index = index[s->rpg.index],
                       .permute = s->rpg.permute,
                       .reflect = s->rpg.reflect,
                       .init_std = s->rpg.init_std,
                       .seed = s->rpg.seed_given ? s->rpg.seed : s->train.seed,
                       .size = size};
    status st;
    net *n = NULL;
    TRY(build_open(s, &n, err));
    TRY_GOTO(ring_sizes(s, n, size, err), st, cleanup);
    TRY_GOTO(net_finish(n, &rings, err), st, cleanup);
    *ret_net = n;
    n = NULL;
cleanup:
    net_destroy(&n);
    return st;
}

status spec_resolve_rings(spec *s, errbuf *err)
{
    int64_t size[SPEC_MAX_SIZES] = {0};
    net *n = NULL;
    TRY(build_open(s, &n, err));
    status st = ring_sizes(s, n, size, err);
    if (st == STATUS_OK) {
        if (!s->rpg.seed_given)
            s->rpg.seed = s->train.seed;
        s->rpg.seed_given = true;
        s->rpg.share = 0;
    }
    if (st == STATUS_OK && s->rpg.scope == SCOPE_GLOBAL) {
        s->rpg.size = size[0];
        s->rpg.sizes.count = 0;
    } else if (st == STATUS_OK && s->rpg.scope == SCOPE_BLOCK) {
        s->rpg.size = 0;
        s->rpg.sizes.count = n->rings;
        for (int i = 0; i < n->rings; i++) {
            memset(s->rpg.sizes.entry[i].ring, 0, sizeof s->rpg.sizes.entry[i].ring);
            memcpy(s->rpg.sizes.entry[i].ring, n->ring[i].name, strlen(n->ring[i].name));
            s->rpg.sizes.entry[i].size = size[i];
        }
    }
    net_destroy(&n);
    return st;
}
