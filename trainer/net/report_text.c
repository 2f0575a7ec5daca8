/* The report of a net as a table for people; see report.h. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "protocol/strbuf.h"
#include "trainer/net/report.h"

#define NUMBER_ROOM 40

/* 11157504 -> "11,157,504". */
static const char *grouped(int64_t value, char ret[NUMBER_ROOM])
{
    char digits[NUMBER_ROOM];
    int length = snprintf(digits, sizeof digits, "%" PRId64, value), out = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0)
            ret[out++] = ',';
        ret[out++] = digits[i];
    }
    ret[out] = '\0';
    return ret;
}

static void add_kernel_row(strbuf *b, const net *n, int kernel)
{
    const net_kernel *k = &n->kernel[kernel];
    char first[NUMBER_ROOM] = "", elements[NUMBER_ROOM], macs[NUMBER_ROOM], form[64];
    char share[16] = "", alpha[16] = "";
    int64_t total = 0;
    for (int i = 0; i < n->nodes; i++)
        if (n->node[i].kind == NODE_CONV && n->node[i].kernel == kernel)
            total += net_node_macs(n, i);
    snprintf(form, sizeof form, "%dx%dx%dx%d", k->shape.out, k->shape.in, k->shape.kh, k->shape.kw);
    if (k->ring >= 0) {
        grouped(k->first, first);
        snprintf(share, sizeof share, "%.2f %%",
                 100.0 * (double)kernel_elements(k->shape) / (double)n->ring[k->ring].m);
        snprintf(alpha, sizeof alpha, "%.5g", (double)k->alpha);
    }
    strbuf_add_format(b, "%-30s %-8s %11s %11s %9s  %-15s %8s %14s\n", k->name,
                      k->ring < 0 ? "direct" : n->ring[k->ring].name, first,
                      grouped(kernel_elements(k->shape), elements), share, form, alpha,
                      grouped(total, macs));
}

static void add_rings(strbuf *b, const net *n)
{
    if (n->rings == 0)
        return;
    strbuf_add_format(b, "\n%-30s %13s %13s %8s %13s %10s\n", "ring", "N", "M", "copies", "rest",
                      "sigma");
    for (int i = 0; i < n->rings; i++) {
        const net_ring *r = &n->ring[i];
        char size[NUMBER_ROOM], generated[NUMBER_ROOM], copies[NUMBER_ROOM], rest[NUMBER_ROOM];
        strbuf_add_format(b, "%-30s %13s %13s %8s %13s %10.6f\n", r->name, grouped(r->n, size),
                          grouped(r->m, generated), grouped(r->m / r->n, copies),
                          grouped(r->m % r->n, rest), r->sigma);
    }
}

static void add_line(strbuf *b, const char *label, int64_t value, const char *note)
{
    char number[NUMBER_ROOM];
    strbuf_add_format(b, "%-44s %16s%s%s\n", label, grouped(value, number), note[0] ? "  " : "",
                      note);
}

static void add_totals(strbuf *b, const net *n, int distinct)
{
    net_counts c;
    char note[96], number[NUMBER_ROOM];
    net_count(n, &c);
    strbuf_add(b, "\n");
    if (n->rings > 0) {
        int slots = 0;
        for (int i = 0; i < n->kernels; i++)
            slots += n->kernel[i].ring >= 0;
        snprintf(note, sizeof note, "%d slots, %d distinct kernels", slots, distinct);
        add_line(b, "generated weights (M)", c.generated, note);
        add_line(b, "ring size (N)", c.ring, "");
    }
    add_line(b, "degrees of freedom (DoF) of the backbone", c.dof,
             "min(N, M) + direct convs + BN + stem");
    if (n->rings > 0)
        add_line(b, "  ring elements in use, min(N, M)", c.ring_used, "");
    if (c.direct_conv > 0)
        add_line(b, "  direct convs", c.direct_conv, "");
    add_line(b, "  BN weight and bias", c.bn, "");
    add_line(b, "  stem", c.stem, c.stem == 0 ? "drawn from the ring" : "");
    add_line(b, "fc", c.fc, "");
    snprintf(note, sizeof note, "%.4g %% of the dense network's %s",
             100.0 * (double)c.dof_total / (double)c.dense_total, grouped(c.dense_total, number));
    add_line(b, "DoF with fc", c.dof_total, note);
    add_line(b, "MACs, one image forward", c.macs, "");
    snprintf(note, sizeof note, "dense: %s, %.4g times as many", grouped(4 * c.wire_dense, number),
             (double)c.wire_dense / (double)c.wire);
    add_line(b, "bytes all-reduced a step", 4 * c.wire, note);
}

static void add_memory(strbuf *b, const net_memory *m)
{
    const struct {
        const char *label;
        int64_t bytes;
    } rows[] = {{"parameters", m->params},
                {"momentum", m->momentum},
                {"flat gradient buffer", m->gradient},
                {"tables", m->tables},
                {"expanded weights", m->weights},
                {"weight gradients", m->weight_gradients},
                {"activations and their gradients", m->activations},
                {"in all", m->total}};
    strbuf_add_format(b, "\n%-44s %16s\n", "memory of a rank in training, estimated", "MiB");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        strbuf_add_format(b, "  %-42s %16.1f\n", rows[i].label, (double)rows[i].bytes / 1048576);
}

status net_report_text(const net *n, const net_memory *m, char **ret, errbuf *err)
{
    strbuf b = {0};
    int distinct;
    TRY(net_count_distinct_kernels(n, &distinct, err));
    strbuf_add_format(&b, "%s", n->name);
    for (int i = 0; i < n->inputs; i++) {
        shape s = n->tensor[n->input[i]].shape;
        strbuf_add_format(&b, ", input %d x %d x %d", s.c, s.h, s.w);
    }
    for (int i = 0; i < n->outputs; i++)
        strbuf_add_format(&b, ", output of %d", n->tensor[n->output[i]].shape.c);
    strbuf_add_format(&b, "\n\n%-30s %-8s %11s %11s %9s  %-15s %8s %14s\n", "kernel", "ring",
                      "first", "weights", "share", "shape", "alpha", "MACs");
    for (int i = 0; i < n->kernels; i++)
        add_kernel_row(&b, n, i);
    add_rings(&b, n);
    add_totals(&b, n, distinct);
    if (m)
        add_memory(&b, m);
    return strbuf_take(&b, ret, err);
}
