/* comm `self`: a world of one. No collective does anything; no library is called. */
#ifndef RINGMASTER_KERNELS_COMM_SELF_H
#define RINGMASTER_KERNELS_COMM_SELF_H

#include "kernels/comm.h"

CHECK_RESULT status comm_self_open(comm **ret_comm, errbuf *err);

#endif
