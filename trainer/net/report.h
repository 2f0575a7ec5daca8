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
    int64_t direct_conv;  /* direct conv kernels other than the stem (dense nets), conv biases */
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

/* Bytes that a rank holds while it trains, worked out from the graph alone: every channel a float
 * (a backend that pads channels takes a little more), layouts and tables as the cpu backend keeps
 * them, its scratch memory left out. */
typedef struct net_memory {
    int64_t params, momentum, gradient; /* gradient: the whole flat buffer */
    int64_t tables;                     /* 4 bytes a generated weight to expand, 6 to reduce */
    int64_t weights;          /* all conv kernels, expanded, for forward and for backward */
    int64_t weight_gradients; /* of all lanes */
    int64_t activations;      /* and their gradients, packed, of all lanes */
    int64_t total;
} net_memory;

/* Of a pass over `shard` images on each of `lanes` lanes. */
CHECK_RESULT status net_estimate_memory(const net *n, int shard, int lanes, net_memory *ret,
                                        errbuf *err);

struct cJSON;
/* Counts and rings: what a sweep's cell is asked for. Caller deletes. */
CHECK_RESULT status net_summary_json(const net *n, struct cJSON **ret, errbuf *err);
/* The summary, every kernel and the number of distinct ones. Caller deletes. */
CHECK_RESULT status net_report_json(const net *n, struct cJSON **ret, errbuf *err);
CHECK_RESULT status net_memory_json(const net_memory *m, struct cJSON **ret, errbuf *err);
/* The report as a table for people; `m` may be NULL. Caller frees. */
CHECK_RESULT status net_report_text(const net *n, const net_memory *m, char **ret, errbuf *err);

#endif
