/* comm `mpi`: host buffers over Open MPI, deterministic sums. */
#ifndef RINGMASTER_KERNELS_MPI_COMM_MPI_H
#define RINGMASTER_KERNELS_MPI_COMM_MPI_H

#include "kernels/comm.h"

/* Initialises MPI (MPI_THREAD_FUNNELED: only the main thread calls it) and takes MPI_COMM_WORLD;
 * close finalises it. This process dies with its launcher (PR_SET_PDEATHSIG, SERVICE 4.1). */
CHECK_RESULT status comm_mpi_open(comm **ret_comm, errbuf *err);

#endif
