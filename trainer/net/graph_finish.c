/*
 * Ending a net: ring sizes and maps, alpha, where each parameter lies; its initial values; and the
 * count of hidden ties.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/net/graph.h"

/* ---- what a finished net must hold ---- */

static bool tensor_is_used(const net *n, int tensor)
{
    for (int i = 0; i < n->outputs; i++)
        if (n->output[i] == tensor)
            return true;
    for (int i = 0; i < n->nodes; i++)
        for (int k = 0; k < n->node[i].inputs; k++)
            if (n->node[i].input[k] == tensor)
                return true;
    return false;
}

/* An object that no node uses would have no gradient. */
static status check_all_used(const net *n, errbuf *err)
{
    for (int i = 0; i < n->tensors; i++)
        if (!tensor_is_used(n, i))
            return errbuf_set(
                err, STATUS_BAD_INPUT, "network '%s': nothing reads the output of '%s'", n->name,
                n->tensor[i].producer < 0 ? "an input" : n->node[n->tensor[i].producer].name);
    for (int i = 0; i < n->kernels; i++) {
        bool used = false;
        for (int k = 0; k < n->nodes && !used; k++)
            used = n->node[k].kind == NODE_CONV && n->node[k].kernel == i;
        if (!used)
            return errbuf_set(err, STATUS_BAD_INPUT, "network '%s': no node uses kernel '%s'",
                              n->name, n->kernel[i].name);
    }
    for (int i = 0; i < n->norms; i++) {
        bool used = false;
        for (int k = 0; k < n->nodes && !used; k++)
            used = n->node[k].kind == NODE_BN && n->node[k].norm == i;
        if (!used)
            return errbuf_set(err, STATUS_BAD_INPUT, "network '%s': no node uses norm '%s'",
                              n->name, n->norm[i].name);
    }
    return STATUS_OK;
}

static status check_ring(const net_ring *r, int64_t size, errbuf *err)
{
    if (r->m == 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "no kernel draws from ring '%s'", r->name);
    if (r->m > RING_MAX_TABLE)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "ring '%s' would generate %" PRId64 " weights (M), more than the %d for "
                          "which tables are made; lower model.width or use a smaller rpg.scope",
                          r->name, r->m, RING_MAX_TABLE);
    if (size < 1 || size > RING_MAX_M)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "ring '%s' has a size of %" PRId64 ", expected 1 to %d", r->name, size,
                          RING_MAX_M);
    return STATUS_OK;
}

static double ring_sigma(const net *n, const net_rings *rings)
{
    int out_max = 1;
    if (rings->init_std > 0)
        return rings->init_std;
    for (int i = 0; i < n->kernels; i++)
        if (n->kernel[i].ring >= 0 && n->kernel[i].shape.out > out_max)
            out_max = n->kernel[i].shape.out;
    return sqrt(2.0 / (9.0 * out_max));
}

/* ---- net_finish ---- */

static status make_maps(const net *n, const net_rings *rings, ring_map *maps, errbuf *err)
{
    for (int i = 0; i < n->rings; i++) {
        ring_map_params p = {.index = rings->index,
                             .permute = rings->permute,
                             .reflect = rings->reflect,
                             .m = n->ring[i].m,
                             .n = rings->size[i],
                             .seed = rings->seed,
                             .ring = (uint32_t)i};
        TRY(check_ring(&n->ring[i], rings->size[i], err));
        TRY(ring_map_init(&maps[i], &p, err));
    }
    return STATUS_OK;
}

/* [ring 0 | ring 1 | … | direct parameters in creation order], nothing between them. */
static void place_params(net *n)
{
    int64_t offset = 0;
    for (int i = 0; i < n->rings; i++) {
        net_param *p = &n->param[n->ring[i].param];
        p->dim[0] = (int)n->ring[i].n;
        p->elements = n->ring[i].n;
        p->bound = n->ring[i].sigma;
        p->offset = offset;
        offset += p->elements;
    }
    for (int i = 0; i < n->params; i++) {
        if (n->param[i].kind == PARAM_RING)
            continue;
        n->param[i].offset = offset;
        offset += n->param[i].elements;
    }
    n->param_elements = offset;
}

static void set_alpha(net *n, double sigma)
{
    for (int i = 0; i < n->kernels; i++) {
        net_kernel *k = &n->kernel[i];
        if (k->ring >= 0)
            k->alpha =
                (float)(sqrt(2.0 / ((double)k->shape.out * k->shape.kh * k->shape.kw)) / sigma);
    }
}

status net_finish(net *n, const net_rings *rings, errbuf *err)
{
    status st = STATUS_OK;
    ring_map *maps = NULL;
    double sigma = ring_sigma(n, rings);
    if (n->outputs < 1)
        return errbuf_set(err, STATUS_BAD_INPUT, "network '%s' has no output", n->name);
    TRY(check_all_used(n, err));
    maps = calloc((size_t)n->rings + 1, sizeof *maps);
    if (!maps)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for %d ring maps", n->rings);
    TRY_GOTO(make_maps(n, rings, maps, err), st, fail);
    for (int i = 0; i < n->rings; i++) {
        n->ring[i].n = rings->size[i];
        n->ring[i].sigma = sigma;
        n->ring[i].map = maps[i];
    }
    n->ring_seed = rings->seed;
    set_alpha(n, sigma);
    place_params(n);
    free(maps);
    return STATUS_OK;
fail:
    for (int i = 0; i < n->rings; i++)
        ring_map_fini(&maps[i]);
    free(maps);
    return st;
}

/* ---- initial values ---- */

#define DIRECT_STREAM                                                          \
    0x44495200u /* "DIR": keeps direct parameters apart from rings of one seed \
                 */

/* Elements 2 * pair and 2 * pair + 1 of a direct parameter. */
static void draw_pair(uint64_t seed, int param, int64_t pair, init_kind kind, double bound,
                      double ret[2])
{
    philox_block b = philox4x32((uint32_t)pair, (uint32_t)param, DIRECT_STREAM,
                                (uint32_t)(pair >> 32), (uint32_t)seed, (uint32_t)(seed >> 32));
    uint64_t u = ((uint64_t)b.word[0] << 32 | b.word[1]) >> 11;
    uint64_t v = ((uint64_t)b.word[2] << 32 | b.word[3]) >> 11;
    if (kind == INIT_UNIFORM) {
        ret[0] = bound * (2 * ((double)u * 0x1p-53) - 1);
        ret[1] = bound * (2 * ((double)v * 0x1p-53) - 1);
    } else { /* Box-Muller; u + 1 lies in (0, 2^53] */
        double radius = bound * sqrt(-2 * log((double)(u + 1) * 0x1p-53));
        double angle = 6.283185307179586476925 * ((double)v * 0x1p-53);
        ret[0] = radius * cos(angle);
        ret[1] = radius * sin(angle);
    }
}

static void draw_param(uint64_t seed, int param, const net_param *p, float *ret_values)
{
#pragma omp parallel for schedule(static)
    for (int64_t pair = 0; pair < (p->elements + 1) / 2; pair++) {
        double value[2];
        draw_pair(seed, param, pair, p->init, p->bound, value);
        ret_values[2 * pair] = (float)value[0];
        if (2 * pair + 1 < p->elements)
            ret_values[2 * pair + 1] = (float)value[1];
    }
}

static void fill(float *values, int64_t count, float value)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = value;
}

void net_init_params(const net *n, uint64_t seed, float *ret_params, float *ret_running)
{
    for (int i = 0; i < n->params; i++) {
        const net_param *p = &n->param[i];
        float *values = ret_params + p->offset;
        ASSERT(p->offset >= 0); /* net_finish has run */
        switch (p->init) {
        case INIT_ZERO:
            fill(values, p->elements, 0);
            break;
        case INIT_ONE:
            fill(values, p->elements, 1);
            break;
        case INIT_NORMAL:
        case INIT_UNIFORM:
            draw_param(seed, i, p, values);
            break;
        case INIT_RING:
            break; /* below */
        }
    }
    for (int i = 0; i < n->rings; i++)
        ring_init_values(n->ring_seed, (uint32_t)i, n->ring[i].sigma, n->ring[i].n,
                         ret_params + n->param[n->ring[i].param].offset);
    for (int i = 0; i < n->norms; i++) {
        fill(ret_running + n->norm[i].running, n->norm[i].channels, 0);
        fill(ret_running + n->norm[i].running + n->norm[i].channels, n->norm[i].channels, 1);
    }
}

/* ---- hidden ties ---- */

/* Two slots of one ring and one shape have the same alpha, so that they are one kernel exactly
 * where their table entries (element and sign) are equal. Permuted slots differ at once. */
static bool same_kernel(const net *n, const net_kernel *a, const net_kernel *b)
{
    if (a->ring != b->ring || memcmp(&a->shape, &b->shape, sizeof a->shape) != 0)
        return false;
    const ring_map *map = &n->ring[a->ring].map;
    for (int64_t j = 0; j < kernel_elements(a->shape); j++)
        if (ring_map_entry(map, (uint32_t)(a->first + j)) !=
            ring_map_entry(map, (uint32_t)(b->first + j)))
            return false;
    return true;
}

status net_count_distinct_kernels(const net *n, int *ret_distinct, errbuf *err)
{
    int distinct = 0;
    if (n->param_elements == 0)
        return errbuf_set(err, STATUS_BAD_INPUT, "network '%s' is not finished", n->name);
    for (int i = 0; i < n->kernels; i++) {
        bool is_new = n->kernel[i].ring >= 0;
        for (int k = 0; k < i && is_new; k++)
            is_new = !same_kernel(n, &n->kernel[k], &n->kernel[i]);
        distinct += is_new;
    }
    *ret_distinct = distinct;
    return STATUS_OK;
}
