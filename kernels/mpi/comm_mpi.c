/*
 * comm `mpi`: collectives among ranks through Open MPI, with sums that do not depend on timing.
 *
 * Float sums. MPI_Allreduce promises no order, so ours is built from point-to-point messages: the
 * vector goes in pieces; of each piece rank r owns the r-th part, receives it from every other
 * rank, adds the contributions in a fixed binary tree over ranks, and the parts are gathered. That
 * moves 2 (W-1)/W of the bytes per rank, as a ring would, and every rank gets the owner's bits.
 * Integer sums are associative and go to MPI_Allreduce.
 *
 * Memory: one scratch piece, allocated when the comm is opened; no call allocates.
 */
#include "kernels/mpi/comm_mpi.h"

#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Elements of one piece: 4 MiB of floats, small enough to stay in cache while it is summed. */
#define PIECE_ELEMENTS (1 << 20)

typedef struct comm_mpi {
    comm base;
    float *scratch;        /* [size][part]: the other ranks' contributions to our part */
    MPI_Request *requests; /* [2 * size] */
    int *counts, *offsets; /* [size]: parts of the current piece */
} comm_mpi;

static status from_mpi(int code, const char *call, errbuf *err)
{
    if (code == MPI_SUCCESS)
        return STATUS_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return errbuf_set(err, STATUS_ENVIRONMENT, "%s failed: %s", call, text);
}

static void mpi_close(comm *c)
{
    comm_mpi *m = (comm_mpi *)c;
    free(m->scratch);
    free(m->requests);
    free(m->counts);
    free(m->offsets);
    free(m);
    MPI_Finalize();
}

/* Element range of `rank`'s part of a piece of `count`. */
static void piece_parts(const comm_mpi *m, int count)
{
    for (int r = 0; r < m->base.size; r++) {
        int64_t begin = (int64_t)count * r / m->base.size;
        int64_t end = (int64_t)count * (r + 1) / m->base.size;
        m->offsets[r] = (int)begin;
        m->counts[r] = (int)(end - begin);
    }
}

/* Sums the ranks' contributions to our part pairwise: ((0+1)+(2+3))+... whatever the world's
 * size; the result is left in `own`. */
static void sum_tree(comm_mpi *m, float *own, int part)
{
    int size = m->base.size, rank = m->base.rank;
    float *mine = m->scratch + (size_t)rank * (size_t)part;
    memcpy(mine, own, (size_t)part * sizeof *own);
    for (int stride = 1; stride < size; stride *= 2) {
        for (int r = 0; r + stride < size; r += 2 * stride) {
            float *to = m->scratch + (size_t)r * (size_t)part;
            const float *from = m->scratch + (size_t)(r + stride) * (size_t)part;
            for (int i = 0; i < part; i++)
                to[i] += from[i];
        }
    }
    memcpy(own, m->scratch, (size_t)part * sizeof *own);
}

static status reduce_piece(comm_mpi *m, float *data, int count, errbuf *err)
{
    int size = m->base.size, rank = m->base.rank, requests = 0;
    piece_parts(m, count);
    int part = m->counts[rank];
    for (int step = 1; step < size; step++) {
        int from = (rank + size - step) % size;
        TRY(from_mpi(MPI_Irecv(m->scratch + (size_t)from * (size_t)part, part, MPI_FLOAT, from, 0,
                               MPI_COMM_WORLD, &m->requests[requests++]),
                     "MPI_Irecv", err));
    }
    for (int step = 1; step < size; step++) {
        int to = (rank + step) % size;
        TRY(from_mpi(MPI_Isend(data + m->offsets[to], m->counts[to], MPI_FLOAT, to, 0,
                               MPI_COMM_WORLD, &m->requests[requests++]),
                     "MPI_Isend", err));
    }
    TRY(from_mpi(MPI_Waitall(requests, m->requests, MPI_STATUSES_IGNORE), "MPI_Waitall", err));
    sum_tree(m, data + m->offsets[rank], part);
    return from_mpi(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, data, m->counts, m->offsets,
                                   MPI_FLOAT, MPI_COMM_WORLD),
                    "MPI_Allgatherv", err);
}

static status mpi_all_reduce_float(comm *c, float *data, int64_t count, errbuf *err)
{
    comm_mpi *m = (comm_mpi *)c;
    for (int64_t done = 0; done < count; done += PIECE_ELEMENTS) {
        int64_t left = count - done;
        TRY(reduce_piece(m, data + done, (int)(left < PIECE_ELEMENTS ? left : PIECE_ELEMENTS),
                         err));
    }
    return STATUS_OK;
}

static status mpi_all_reduce_int64(comm *c, int64_t *data, int64_t count, errbuf *err)
{
    (void)c;
    const int64_t most = 1 << 28;
    for (int64_t done = 0; done < count; done += most) {
        int64_t left = count - done;
        TRY(from_mpi(MPI_Allreduce(MPI_IN_PLACE, data + done, (int)(left < most ? left : most),
                                   MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD),
                     "MPI_Allreduce", err));
    }
    return STATUS_OK;
}

static status mpi_all_gather(comm *c, const void *mine, int64_t bytes, void *all, errbuf *err)
{
    ASSERT(bytes * c->size <= INT32_MAX);
    return from_mpi(
        MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, MPI_COMM_WORLD),
        "MPI_Allgather", err);
}

static status mpi_broadcast(comm *c, void *data, int64_t bytes, int root, errbuf *err)
{
    (void)c;
    const int64_t most = 1 << 28;
    for (int64_t done = 0; done < bytes; done += most) {
        int64_t left = bytes - done;
        TRY(from_mpi(MPI_Bcast((char *)data + done, (int)(left < most ? left : most), MPI_BYTE,
                               root, MPI_COMM_WORLD),
                     "MPI_Bcast", err));
    }
    return STATUS_OK;
}

static status mpi_barrier(comm *c, errbuf *err)
{
    (void)c;
    return from_mpi(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier", err);
}

__attribute__((noreturn)) static void mpi_abort(comm *c, int exit_code)
{
    (void)c;
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _Exit(exit_code);
}

static const comm_ops mpi_ops = {
    .name = "mpi",
    .close = mpi_close,
    .all_reduce_float = mpi_all_reduce_float,
    .all_reduce_int64 = mpi_all_reduce_int64,
    .all_gather = mpi_all_gather,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .abort = mpi_abort,
};

/* Rank and size among the ranks of this host. */
static status find_local(comm *c, errbuf *err)
{
    MPI_Comm local;
    TRY(from_mpi(
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &local),
        "MPI_Comm_split_type", err));
    MPI_Comm_rank(local, &c->local_rank);
    MPI_Comm_size(local, &c->local_size);
    MPI_Comm_free(&local);
    return STATUS_OK;
}

status comm_mpi_open(comm **ret_comm, errbuf *err)
{
    /* A killed mpirun leaves its ranks behind unless they ask to go with it. */
    pid_t launcher = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher)
        return errbuf_set(err, STATUS_ENVIRONMENT, "the launcher is gone");

    int provided = 0;
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    TRY(from_mpi(code, "MPI_Init_thread", err));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);

    comm_mpi *m = calloc(1, sizeof *m);
    status st = STATUS_OUT_OF_MEMORY;
    if (m) {
        m->base.ops = &mpi_ops;
        MPI_Comm_rank(MPI_COMM_WORLD, &m->base.rank);
        MPI_Comm_size(MPI_COMM_WORLD, &m->base.size);
        size_t size = (size_t)m->base.size;
        m->scratch = malloc((PIECE_ELEMENTS + size * size) * sizeof *m->scratch);
        m->requests = malloc(2 * size * sizeof *m->requests);
        m->counts = malloc(size * sizeof *m->counts);
        m->offsets = malloc(size * sizeof *m->offsets);
        if (m->scratch && m->requests && m->counts && m->offsets)
            st = find_local(&m->base, err);
    }
    if (st != STATUS_OK) {
        errbuf_set(err, st, "out of memory opening the mpi comm");
        if (m)
            mpi_close(&m->base);
        else
            MPI_Finalize();
        return st;
    }
    *ret_comm = &m->base;
    return STATUS_OK;
}
