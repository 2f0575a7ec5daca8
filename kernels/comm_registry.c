/*
 * Chooses the comm of this process: the one file that knows which were built. A world of one never
 * touches MPI, so `ringtrain` alone starts without its daemons.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/comm.h"
#include "kernels/comm_self.h"
#ifdef RINGMASTER_MPI
#include "kernels/mpi/comm_mpi.h"
#endif

/* mpirun tells through OMPI_COMM_WORLD_SIZE; srun with PMIx gives every task a PMIX_RANK. */
long comm_launched_size(void)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (!size && getenv("PMIX_RANK"))
        size = getenv("SLURM_NTASKS");
    if (!size)
        return 1;
    long ranks = strtol(size, NULL, 10);
    return ranks > 1 ? ranks : 1;
}

status comm_open(comm **ret_comm, errbuf *err)
{
    long ranks = comm_launched_size();
    if (ranks == 1)
        return comm_self_open(ret_comm, err);
#ifdef RINGMASTER_MPI
    return comm_mpi_open(ret_comm, err);
#else
    return errbuf_set(err, STATUS_ENVIRONMENT,
                      "launched as one of %ld ranks, but this build has no MPI: install "
                      "libopenmpi-dev and configure with -DRINGMASTER_MPI=ON",
                      ranks);
#endif
}

void comm_close(comm **c)
{
    if (!c || !*c)
        return;
    (*c)->ops->close(*c);
    *c = NULL;
}

/* Every rank says the same: then no rank is to blame. */
static bool is_common(const errbuf *all, int size)
{
    for (int r = 1; r < size; r++)
        if (all[r].code != all[0].code || strcmp(all[r].text, all[0].text) != 0)
            return false;
    return true;
}

status comm_agree(comm *c, status mine, errbuf *err)
{
    if (c->size == 1 || (c->lost && mine != STATUS_OK))
        return mine;
    if (c->lost)
        return errbuf_set(err, STATUS_ENVIRONMENT, "a rank of this world is lost");
    errbuf local;
    memset(&local, 0, sizeof local);
    if (mine != STATUS_OK) {
        if (err)
            local = *err;
        local.code = mine;
    }
    errbuf *all = calloc((size_t)c->size, sizeof *all);
    if (!all)
        c->ops->abort(c, STATUS_OUT_OF_MEMORY);
    errbuf comm_err = {0};
    status st = c->ops->all_gather(c, &local, sizeof local, all, &comm_err);
    if (st != STATUS_OK) {
        free(all);
        if (mine != STATUS_OK)
            return mine;
        errbuf_clear(err);
        return errbuf_set(err, st, "%s", comm_err.text);
    }
    for (int r = 0; r < c->size && st == STATUS_OK; r++) {
        if (all[r].code == STATUS_OK)
            continue;
        st = all[r].code;
        const char *text = all[r].text[0] ? all[r].text : status_name(all[r].code);
        errbuf_clear(err);
        if (is_common(all, c->size))
            errbuf_set(err, st, "%s", text);
        else
            errbuf_set(err, st, "rank %d: %s", r, text);
    }
    free(all);
    return st;
}
