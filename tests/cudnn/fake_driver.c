/*
 * A libcuda.so.1 for tests on machines without a driver: cuDNN looks for one before it lists or
 * compiles an engine of its runtime compiler, and loads what it compiled. Here loading succeeds and
 * gives a handle that nothing can run; all else says CUDA_ERROR_STUB_LIBRARY, as the toolkit's stub
 * does. Only ever on the library path of tests/cudnn's own tests.
 */
#include <stddef.h>

enum {
    SUCCESS = 0,
    STUB_LIBRARY = 34
};

#define EXPORT __attribute__((visibility("default")))
/* Whatever the parameters are: they are not looked at. */
#define ANSWER(name, value) \
    EXPORT int name(void);  \
    EXPORT int name(void)   \
    {                       \
        return value;       \
    }

static int thing; /* what every handle points to */

/* By this the tests know it. */
ANSWER(ringmaster_fake_driver, SUCCESS)

/* ---- what succeeds ---- */

EXPORT int cuLibraryLoadData(void **ret);
EXPORT int cuLibraryLoadData(void **ret)
{
    *ret = &thing;
    return SUCCESS;
}

EXPORT int cuLibraryGetKernel(void **ret);
EXPORT int cuLibraryGetKernel(void **ret)
{
    *ret = &thing;
    return SUCCESS;
}

EXPORT int cuKernelGetFunction(void **ret);
EXPORT int cuKernelGetFunction(void **ret)
{
    *ret = &thing;
    return SUCCESS;
}

EXPORT int cuKernelGetAttribute(int *ret);
EXPORT int cuKernelGetAttribute(int *ret)
{
    *ret = 0;
    return SUCCESS;
}

EXPORT int cuFuncGetAttribute(int *ret);
EXPORT int cuFuncGetAttribute(int *ret)
{
    *ret = 0;
    return SUCCESS;
}

EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *ret);
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *ret)
{
    *ret = 1;
    return SUCCESS;
}

EXPORT int cuOccupancyMaxActiveClusters(int *ret);
EXPORT int cuOccupancyMaxActiveClusters(int *ret)
{
    *ret = 1;
    return SUCCESS;
}

EXPORT int cuOccupancyMaxPotentialClusterSize(int *ret);
EXPORT int cuOccupancyMaxPotentialClusterSize(int *ret)
{
    *ret = 1;
    return SUCCESS;
}

ANSWER(cuKernelSetAttribute, SUCCESS)
ANSWER(cuFuncSetAttribute, SUCCESS)
ANSWER(cuFuncLoad, SUCCESS)
ANSWER(cuLibraryUnload, SUCCESS)

/* ---- what cuDNN and the CUDA runtime look up besides ---- */

ANSWER(cuInit, STUB_LIBRARY)
ANSWER(cuDriverGetVersion, STUB_LIBRARY)
ANSWER(cuGetErrorString, STUB_LIBRARY)
ANSWER(cuGetErrorName, STUB_LIBRARY)
ANSWER(cuGetProcAddress_v2, STUB_LIBRARY)
ANSWER(cuDeviceGet, STUB_LIBRARY)
ANSWER(cuDeviceGetCount, STUB_LIBRARY)
ANSWER(cuDeviceGetAttribute, STUB_LIBRARY)
ANSWER(cuDevicePrimaryCtxRetain, STUB_LIBRARY)
ANSWER(cuDevicePrimaryCtxReset, STUB_LIBRARY)
ANSWER(cuDevicePrimaryCtxRelease, STUB_LIBRARY)
ANSWER(cuCtxGetCurrent, STUB_LIBRARY)
ANSWER(cuCtxGetDevice, STUB_LIBRARY)
ANSWER(cuCtxGetLimit, STUB_LIBRARY)
ANSWER(cuCtxPushCurrent, STUB_LIBRARY)
ANSWER(cuCtxPopCurrent, STUB_LIBRARY)
ANSWER(cuStreamGetCtx, STUB_LIBRARY)
ANSWER(cuStreamSynchronize, STUB_LIBRARY)
ANSWER(cuLaunchKernel, STUB_LIBRARY)
ANSWER(cuLaunchKernelEx, STUB_LIBRARY)
ANSWER(cuLaunchCooperativeKernel, STUB_LIBRARY)
ANSWER(cuLibraryLoadFromFile, STUB_LIBRARY)
ANSWER(cuLinkCreate, STUB_LIBRARY)
ANSWER(cuLinkCreate_v2, STUB_LIBRARY)
ANSWER(cuLinkAddData, STUB_LIBRARY)
ANSWER(cuLinkAddData_v2, STUB_LIBRARY)
ANSWER(cuLinkAddFile_v2, STUB_LIBRARY)
ANSWER(cuLinkComplete, STUB_LIBRARY)
ANSWER(cuLinkDestroy, STUB_LIBRARY)
ANSWER(cuModuleLoadData, STUB_LIBRARY)
ANSWER(cuModuleLoadDataEx, STUB_LIBRARY)
ANSWER(cuModuleLoadFatBinary, STUB_LIBRARY)
ANSWER(cuModuleGetFunction, STUB_LIBRARY)
ANSWER(cuModuleGetGlobal_v2, STUB_LIBRARY)
ANSWER(cuModuleUnload, STUB_LIBRARY)
ANSWER(cuMemcpyDtoH_v2, STUB_LIBRARY)
ANSWER(cuTensorMapEncodeTiled, STUB_LIBRARY)
