/* comm_device `self` (a world of one) and `host` (through the host's collectives). */
#ifndef RINGMASTER_KERNELS_COMM_DEVICE_HOST_H
#define RINGMASTER_KERNELS_COMM_DEVICE_HOST_H

#include "kernels/comm_device.h"

CHECK_RESULT status comm_device_self_open(const comm_device_options *options, comm_device **ret,
                                          errbuf *err);
CHECK_RESULT status comm_device_host_open(const comm_device_options *options, comm_device **ret,
                                          errbuf *err);

#endif
