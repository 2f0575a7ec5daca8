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
 *
 * Words of ranks that wait (publish, give_up, silent) have a communicator of their own and are sent
 * synchronously: one is on its way to a rank until that rank has taken it, however long it looks
 * away, and one more where this rank gives up. Closing takes those still on their way.
 *
 * MPI's waits have no deadline. With `patience` every collective therefore begins with a barrier
 * that is looked at instead of waited for. What a lost rank leaves unfinished is never freed: the
 * process is about to end.
 */
#include "kernels/mpi/comm_mpi.h"

#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "kernels/comm_wait.h"

/* Elements of one piece: 4 MiB of floats, small enough to stay in cache while it is summed. */
#define PIECE_ELEMENTS (1 << 20)

/* Looks of a wait with patience before it naps between them; some milliseconds. */
#define BUSY_LOOKS 20000

/* Seconds; see leave_after. */
#define LEAVE_AFTER 5

/* Kinds of words. */
enum {
    TAG_STEP,
    TAG_FAREWELL,
    TAGS
};

/* What passes between this rank and another one beside the collectives. */
typedef struct peer_words {
    double heard;  /* when its last word came; at first when the comm was opened */
    uint64_t step; /* the word */
    uint64_t sending;
    errbuf farewell;         /* code STATUS_OK: none */
    MPI_Request sends[TAGS]; /* MPI_REQUEST_NULL: taken */
} peer_words;

typedef struct comm_mpi {
    comm base;
    MPI_Comm words;        /* MPI_COMM_NULL until it is made */
    peer_words *peers;     /* [size] */
    uint64_t step;         /* last published */
    errbuf farewell;       /* of this rank */
    int *sent, *received;  /* [size]: words so far */
    int *announced;        /* [size]: while closing, how many each rank has sent to this one */
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

/* ---- words of ranks that wait ---- */

/* Whether the word of a kind for a peer is taken (or there was none). */
static bool is_taken(peer_words *p, int tag)
{
    int done = 1;
    if (p->sends[tag] != MPI_REQUEST_NULL &&
        MPI_Test(&p->sends[tag], &done, MPI_STATUS_IGNORE) != MPI_SUCCESS)
        p->sends[tag] = MPI_REQUEST_NULL; /* nobody to tell: the collectives will say so */
    return done;
}

/* NOLINTBEGIN(clang-analyzer-optin.mpi.MPI-Checker): close_words waits for these requests */
/* To all who have taken the one before. */
static void send_words(comm_mpi *m, int tag)
{
    for (int r = 0; r < m->base.size; r++) {
        peer_words *p = &m->peers[r];
        if (r == m->base.rank || !is_taken(p, tag))
            continue;
        if (tag == TAG_STEP)
            p->sending = m->step;
        const void *word = tag == TAG_STEP ? (const void *)&p->sending : &m->farewell;
        const size_t bytes = tag == TAG_STEP ? sizeof p->sending : sizeof m->farewell;
        const int code = MPI_Issend(word, (int)bytes, MPI_BYTE, r, tag, m->words, &p->sends[tag]);
        if (code == MPI_SUCCESS)
            m->sent[r]++;
        else
            p->sends[tag] = MPI_REQUEST_NULL;
        (void)is_taken(p, tag); /* sets it going */
    }
}

static void mpi_publish(comm *c, uint64_t step)
{
    comm_mpi *m = (comm_mpi *)c;
    m->step = step;
    send_words(m, TAG_STEP);
}

static void mpi_give_up(comm *c, const errbuf *why)
{
    comm_mpi *m = (comm_mpi *)c;
    if (m->farewell.code != STATUS_OK)
        return;
    m->farewell = *why;
    send_words(m, TAG_FAREWELL);
}

/* NOLINTEND(clang-analyzer-optin.mpi.MPI-Checker) */

/* Takes the words that have come. */
static void take_words(comm_mpi *m)
{
    for (;;) {
        int there = 0;
        MPI_Status from;
        if (MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, m->words, &there, &from) != MPI_SUCCESS ||
            !there)
            return;
        peer_words *p = &m->peers[from.MPI_SOURCE];
        const bool is_step = from.MPI_TAG == TAG_STEP;
        void *to = is_step ? (void *)&p->step : (void *)&p->farewell;
        if (MPI_Recv(to, is_step ? (int)sizeof p->step : (int)sizeof p->farewell, MPI_BYTE,
                     from.MPI_SOURCE, from.MPI_TAG, m->words, MPI_STATUS_IGNORE) != MPI_SUCCESS)
            return;
        m->received[from.MPI_SOURCE]++;
        p->heard = comm_wait_seconds();
    }
}

/* Whether `a` is more to blame than `b`: comm.h's order. */
static bool is_worse(const comm_peer *a, const comm_peer *b, double seconds)
{
    if (b->rank < 0 || !a->farewell != !b->farewell)
        return b->rank < 0 || a->farewell;
    if (a->silence >= seconds || b->silence >= seconds)
        return a->silence > b->silence;
    return a->step < b->step;
}

static void mpi_silent(comm *c, double seconds, comm_peer *ret)
{
    comm_mpi *m = (comm_mpi *)c;
    take_words(m);
    const double now = comm_wait_seconds();
    *ret = (comm_peer){.rank = -1};
    for (int r = 0; r < c->size; r++) {
        const peer_words *p = &m->peers[r];
        const comm_peer peer = {
            .rank = r,
            .step = p->step,
            .silence = now - p->heard,
            .farewell = p->farewell.code != STATUS_OK ? &p->farewell : NULL,
        };
        if (r == c->rank || (!peer.farewell && peer.silence < seconds && peer.step >= m->step))
            continue;
        if (is_worse(&peer, ret, seconds))
            *ret = peer;
    }
}

/* Collective: afterwards no word is on its way. */
static void close_words(comm_mpi *m)
{
    if (m->words == MPI_COMM_NULL)
        return;
    const int size = m->base.size;
    if (MPI_Alltoall(m->sent, 1, MPI_INT, m->announced, 1, MPI_INT, m->words) == MPI_SUCCESS) {
        for (int r = 0; r < size; r++)
            while (m->received[r] < m->announced[r])
                take_words(m);
        for (int r = 0; r < size; r++)
            /* NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): publish began them */
            MPI_Waitall(TAGS, m->peers[r].sends, MPI_STATUSES_IGNORE);
    }
    MPI_Comm_free(&m->words);
}

static status open_words(comm_mpi *m, errbuf *err)
{
    const double now = comm_wait_seconds();
    for (int r = 0; r < m->base.size; r++)
        m->peers[r] = (peer_words){.heard = now, .sends = {MPI_REQUEST_NULL, MPI_REQUEST_NULL}};
    return from_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &m->words), "MPI_Comm_dup", err);
}

/* ---- collectives ---- */

/* Before a collective. With patience: until all ranks have come to it, so that it does not wait. A
 * rank that gave up will not come. */
static status meet(comm *c, errbuf *err)
{
    comm_mpi *m = (comm_mpi *)c;
    if (c->lost)
        return errbuf_set(err, STATUS_ENVIRONMENT, "a rank of this world is lost");
    if (c->patience <= 0)
        return STATUS_OK;
    MPI_Request all_here = MPI_REQUEST_NULL;
    comm_wait w;
    comm_wait_begin(&w, c, c->patience, m->step);
    int done = 0, tries = 0;
    status st = from_mpi(MPI_Ibarrier(m->words, &all_here), "MPI_Ibarrier", err);
    for (int looks = 0; st == STATUS_OK; looks++) {
        st = from_mpi(MPI_Test(&all_here, &done, MPI_STATUS_IGNORE), "MPI_Test", err);
        if (st != STATUS_OK || done)
            break;
        st = comm_wait_look(&w, "waiting for all ranks", err);
        if (looks < BUSY_LOOKS)
            sched_yield();
        else
            comm_wait_nap(&tries);
    }
    if (st != STATUS_OK)
        c->lost = true;
    return st;
}

/* The first rank that leaves without MPI_Finalize ends the world: rank 0 has its files to write,
 * and the others have to hear why this one leaves. */
static void leave_after(comm_mpi *m)
{
    const double begin = comm_wait_seconds();
    int tries = 0;
    while (m->base.rank != 0 && comm_wait_seconds() - begin < LEAVE_AFTER) {
        for (int r = 0; r < m->base.size; r++)
            (void)is_taken(&m->peers[r], TAG_FAREWELL);
        comm_wait_nap(&tries);
    }
}

static void mpi_close(comm *c)
{
    comm_mpi *m = (comm_mpi *)c;
    if (c->lost) { /* words on their way still use this memory */
        leave_after(m);
        return;
    }
    close_words(m);
    free(m->peers);
    free(m->sent);
    free(m->received);
    free(m->announced);
    free(m->scratch);
    free(m->requests);
    free(m->counts);
    free(m->offsets);
    free(m);
    MPI_Finalize(); /* waits for all */
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
    TRY(meet(c, err));
    for (int64_t done = 0; done < count; done += PIECE_ELEMENTS) {
        int64_t left = count - done;
        TRY(reduce_piece(m, data + done, (int)(left < PIECE_ELEMENTS ? left : PIECE_ELEMENTS),
                         err));
    }
    return STATUS_OK;
}

static status mpi_all_reduce_int64(comm *c, int64_t *data, int64_t count, errbuf *err)
{
    const int64_t most = 1 << 28;
    TRY(meet(c, err));
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
    TRY(meet(c, err));
    return from_mpi(
        MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, MPI_COMM_WORLD),
        "MPI_Allgather", err);
}

static status mpi_broadcast(comm *c, void *data, int64_t bytes, int root, errbuf *err)
{
    const int64_t most = 1 << 28;
    TRY(meet(c, err));
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
    TRY(meet(c, err));
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
    .publish = mpi_publish,
    .give_up = mpi_give_up,
    .silent = mpi_silent,
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

static status allocate(comm_mpi *m, errbuf *err)
{
    const size_t size = (size_t)m->base.size;
    m->scratch = malloc((PIECE_ELEMENTS + size * size) * sizeof *m->scratch);
    m->requests = malloc(2 * size * sizeof *m->requests);
    m->counts = malloc(size * sizeof *m->counts);
    m->offsets = malloc(size * sizeof *m->offsets);
    m->peers = calloc(size, sizeof *m->peers);
    m->sent = calloc(size, sizeof *m->sent);
    m->received = calloc(size, sizeof *m->received);
    m->announced = calloc(size, sizeof *m->announced);
    if (!m->scratch || !m->requests || !m->counts || !m->offsets || !m->peers || !m->sent ||
        !m->received || !m->announced)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the mpi comm");
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
    if (!m) {
        MPI_Finalize();
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "out of memory opening the mpi comm");
    }
    m->base.ops = &mpi_ops;
    m->words = MPI_COMM_NULL;
    MPI_Comm_rank(MPI_COMM_WORLD, &m->base.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &m->base.size);
    status st = allocate(m, err);
    if (st == STATUS_OK)
        st = find_local(&m->base, err);
    if (st == STATUS_OK)
        st = open_words(m, err);
    if (st != STATUS_OK) {
        mpi_close(&m->base);
        return st;
    }
    *ret_comm = &m->base;
    return STATUS_OK;
}
