/*
 * What a network costs: counts per slot and in total, memory, bytes on the wire (ringtrain info).
 */
#ifndef RINGMASTER_TRAINER_NET_REPORT_H
#define RINGMASTER_TRAINER_NET_REPORT_H

#include "trainer/net/graph.h"

typedef struct net_counts {
    int64_t generated;    /* M, all rings */
    int64_t ring;         /* sum of N */
    int64_t ring_used;    /* sum of min(N, M) */
    int64_t stem, bn, fc; /* direct conv of the stem; BN weight + bias; fc weight + bias */
    int64_t direct_conv;  /* direct conv kernels other than the stem (dense nets) */
    int64_t dof;          /* backbone: ring_used + direct_conv + bn + stem (DESIGN vocabulary) */
    int64_t dof_total;    /* dof + fc */
    int64_t dense_total;  /* parameters of the dense net of the same shape, fc included */
    int64_t macs;         /* one image forward, convs and fc */
    int64_t statistics;   /* BN statistics, floats */
    int64_t wire;         /* floats all-reduced a step, control word left out (FORMATS 8) */
    int64_t wire_dense;   /* the same for the dense net */
} net_counts;

void net_count(const net *n, net_counts *ret);
int64_t net_node_macs(const net *n, int node); /* one image forward */

struct cJSON;
/* The whole report (slots, totals) as JSON, and as a table for people. Caller deletes / frees. */
CHECK_RESULT status net_report_json(const net *n, struct cJSON **ret, errbuf *err);
CHECK_RESULT status net_report_text(const net *n, char **ret, errbuf *err);

#endif
