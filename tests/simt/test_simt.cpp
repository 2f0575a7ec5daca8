/*
 * The shim itself: threads, barriers, shuffles and shared memory do what a device's do, misuse ends
 * the program, and the stand-in runtime records, replays, fails and refuses as it should.
 */
#include <check.h>
#include <signal.h>
#include <stdlib.h>

#include "kernels/cuda/portable.cuh"
#include "simt_testing.h"

/* ---- threads ---- */

/* One thread writes one element. */
static __global__ void number_kernel(int64_t n, int64_t *to)
{
    const int64_t i = grid_index();
    if (i >= n)
        return;
    to[i] += i;
}

START_TEST(every_thread_runs_once)
{
    const int64_t n = 1000;
    int64_t to[1000] = {0};
    simt_launch(nullptr, 8, 128, 0, [&]() { number_kernel(n, to); });
    for (int64_t i = 0; i < n; i++)
        ck_assert_int_eq(to[i], i);
}
END_TEST

START_TEST(three_dimensions)
{
    int seen[2 * 3 * 4 * 5 * 6 * 7] = {0};
    simt_launch(nullptr, dim3(2, 3, 4), dim3(5, 6, 7), 0, [&]() {
        const unsigned int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        const unsigned int thread =
            (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        seen[block * (5 * 6 * 7) + thread]++;
    });
    for (int count : seen)
        ck_assert_int_eq(count, 1);
}
END_TEST

/* A kernel without barriers costs about what its work costs: this would take minutes with a switch
 * of stacks through the system each. */
START_TEST(many_threads)
{
    int64_t count = 0;
    simt_launch(nullptr, 1 << 16, 256, 0, [&]() { count++; });
    ck_assert_int_eq(count, (int64_t)256 << 16);
}
END_TEST

static cudaError_t error_of(dim3 grid, dim3 block, size_t shared)
{
    simt_launch(nullptr, grid, block, shared, []() { abort(); });
    const cudaError_t error = cudaGetLastError();
    ck_assert_int_eq(cudaGetLastError(), cudaSuccess);
    return error;
}

START_TEST(sizes_that_no_device_has)
{
    ck_assert_int_eq(error_of(0, 32, 0), cudaErrorInvalidConfiguration);
    ck_assert_int_eq(error_of(1, 0, 0), cudaErrorInvalidConfiguration);
    ck_assert_int_eq(error_of(1, 1025, 0), cudaErrorInvalidConfiguration);
    ck_assert_int_eq(error_of(1, dim3(32, 64), 0), cudaErrorInvalidConfiguration);
    ck_assert_int_eq(error_of(dim3(1, 65536), 32, 0), cudaErrorInvalidConfiguration);
    ck_assert_int_eq(error_of(0x80000000u, 32, 0), cudaErrorInvalidConfiguration);
    ck_assert_int_eq(error_of(1, 32, 49153), cudaErrorInvalidValue);
}
END_TEST

/* ---- barriers, shuffles, shared memory ---- */

/* One block turns its part of an array round, many times. */
static __global__ void turn_kernel(int rounds, int *values)
{
    SHARED(int, copy, 1024);
    const int t = (int)threadIdx.x, n = (int)blockDim.x;
    int *mine = values + (int64_t)blockIdx.x * n;
    for (int k = 0; k < rounds; k++) {
        copy[t] = mine[t];
        block_sync();
        mine[t] = copy[n - 1 - t] + 1;
        block_sync();
    }
}

static const int block_sizes[] = {1, 2, 31, 32, 33, 96, 256, 1000, 1024};

START_TEST(barriers)
{
    const int n = block_sizes[_i], blocks = 3, rounds = 7;
    int *values = (int *)calloc((size_t)(n * blocks), sizeof *values);
    for (int i = 0; i < n * blocks; i++)
        values[i] = i;
    simt_launch(nullptr, blocks, n, 0, [=]() { turn_kernel(rounds, values); });
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < n; i++)
            ck_assert_int_eq(values[b * n + i], b * n + (n - 1 - i) + rounds);
    free(values);
}
END_TEST

/* Threads that have ended are not waited for. */
START_TEST(barrier_after_some_have_ended)
{
    int after = 0;
    simt_launch(nullptr, 2, 100, 0, [&]() {
        if (threadIdx.x % 3 == 0)
            return;
        block_sync();
        after++;
    });
    ck_assert_int_eq(after, 2 * 66);
}
END_TEST

/* Every warp: down by each distance, and xor by each mask. */
START_TEST(shuffles)
{
    int wrong = 0;
    simt_launch(nullptr, 2, 96, 0, [&]() {
        const int t = (int)threadIdx.x, lane = t % WARP;
        for (int by = 1; by < WARP; by++) {
            const int down = shuffle_down(t * 3, by);
            const double other = shuffle_xor((double)t, by);
            wrong += down != (lane + by < WARP ? t + by : t) * 3;
            wrong += other != (double)(t ^ by);
        }
    });
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* Whole warps may go different ways. */
START_TEST(shuffles_of_some_warps)
{
    int sums[4] = {0};
    simt_launch(nullptr, 1, 128, 0, [&]() {
        const int warp = (int)threadIdx.x / WARP;
        if (warp == 1)
            return;
        for (int k = 0; k <= warp; k++) {
            const int sum = warp_sum(1 + warp);
            if (threadIdx.x % WARP == 0)
                sums[warp] += sum;
        }
        block_sync();
    });
    ck_assert_int_eq(sums[0], 32);
    ck_assert_int_eq(sums[1], 0);
    ck_assert_int_eq(sums[2], 3 * 3 * 32);
    ck_assert_int_eq(sums[3], 4 * 4 * 32);
}
END_TEST

static __global__ void sum_kernel(const float *x, float *sums)
{
    SHARED(float, scratch, WARP);
    const float sum = block_sum(x[grid_index()], scratch);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

START_TEST(block_sums)
{
    static const int sizes[] = {32, 64, 96, 256, 1024};
    float x[2 * 1024], sums[2];
    const int n = sizes[_i];
    for (int i = 0; i < 2 * n; i++)
        x[i] = (float)(i % 17) - 5;
    simt_launch(nullptr, 2, n, 0, [&]() { sum_kernel(x, sums); });
    for (int b = 0; b < 2; b++) {
        float expect = 0;
        for (int i = 0; i < n; i++)
            expect += x[b * n + i];
        ck_assert_float_eq(sums[b], expect);
    }
}
END_TEST

/* What an earlier block left is not there. */
START_TEST(shared_memory_begins_as_junk)
{
    int clean = 0;
    for (int round = 0; round < 2; round++)
        simt_launch(nullptr, 3, 64, 64 * sizeof(float), [&]() {
            SHARED(float, fixed, 64);
            SHARED_AT_LAUNCH(float, sized);
            clean += !isnan(fixed[threadIdx.x]) + !isnan(sized[threadIdx.x]);
            block_sync();
            fixed[threadIdx.x] = sized[threadIdx.x] = 1;
        });
    ck_assert_int_eq(clean, 0);
}
END_TEST

/* ---- misuse: each of these must end the program ---- */

START_TEST(shuffle_in_part_of_a_warp)
{
    simt_launch(nullptr, 1, 64, 0, []() {
        if (threadIdx.x != 40)
            shuffle_down(1, 1);
    });
}
END_TEST

START_TEST(barrier_that_a_warp_never_reaches)
{
    simt_launch(nullptr, 1, 64, 0, []() {
        if (threadIdx.x < 33)
            block_sync();
        else
            shuffle_down(1, 1);
    });
}
END_TEST

START_TEST(two_barriers_at_once)
{
    simt_launch(nullptr, 1, 64, 0, []() {
        if (threadIdx.x < 32) {
            block_sync();
        } else {
            block_sync();
        }
    });
}
END_TEST

START_TEST(two_shuffles_at_once)
{
    simt_launch(nullptr, 1, 32, 0, []() { shuffle_down(1, threadIdx.x < 16 ? 1 : 2); });
}
END_TEST

#ifndef __SANITIZE_ADDRESS__ /* which sees it first */
START_TEST(write_past_shared_memory)
{
    simt_launch(nullptr, 1, 64, 63 * sizeof(int), []() {
        SHARED_AT_LAUNCH(int, sized);
        sized[threadIdx.x] = 1;
    });
}
END_TEST

START_TEST(write_past_device_memory)
{
    void *memory = nullptr;
    ck_assert_int_eq(cudaMalloc(&memory, 100), cudaSuccess);
    ((char *)memory)[100] = 0;
    cudaFree(memory);
}
END_TEST
#endif

START_TEST(shared_memory_that_was_not_asked_for)
{
    simt_launch(nullptr, 1, 1, 0, []() {
        SHARED_AT_LAUNCH(int, sized);
        sized[0] = 1;
    });
}
END_TEST

/* ---- runtime ---- */

#define OK(call) ck_assert_int_eq((call), cudaSuccess)

START_TEST(memory_and_copies)
{
    const long before = simt_allocations(), live = simt_live_allocations();
    unsigned char *device = nullptr, *shared = nullptr, host[64] = {7};
    OK(cudaMalloc((void **)&device, 64));
    OK(cudaHostAlloc((void **)&shared, 64, cudaHostAllocMapped | cudaHostAllocPortable));
    ck_assert_uint_eq((uintptr_t)device % 256, 0);
    ck_assert_int_eq(simt_allocations(), before + 2);
    ck_assert_int_eq(simt_live_allocations(), live + 2);
    OK(cudaMemcpy(host, device, 64, cudaMemcpyDeviceToHost));
    ck_assert_int_eq(host[0], 0xff);
    OK(cudaMemset(device, 3, 64));
    OK(cudaMemcpy(host, device, 64, cudaMemcpyDeviceToHost));
    ck_assert_int_eq(host[63], 3);
    ck_assert_int_eq(cudaMemcpy(device + 1, host, 64, cudaMemcpyHostToDevice),
                     cudaErrorInvalidValue);
    ck_assert_int_eq(cudaMemcpy(host, host, 64, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    ck_assert_int_eq(cudaMemset(device + 64, 0, 1), cudaErrorInvalidValue);
    ck_assert_int_eq(cudaFree(shared), cudaErrorInvalidValue);
    OK(cudaFreeHost(shared));
    OK(cudaFree(device));
    ck_assert_int_eq(cudaFree(device), cudaErrorInvalidValue);
    OK(cudaFree(nullptr));
    ck_assert_int_eq(simt_live_allocations(), live);
}
END_TEST

START_TEST(memory_that_is_not_there)
{
    void *memory = nullptr;
    size_t available = 0, total = 0;
    OK(cudaMemGetInfo(&available, &total));
    ck_assert_int_eq(cudaMalloc(&memory, available + 1), cudaErrorMemoryAllocation);
    ck_assert_int_eq(cudaGetLastError(), cudaErrorMemoryAllocation);
    simt_fail_allocation(2);
    OK(cudaMalloc(&memory, 8));
    ck_assert_int_eq(cudaMalloc(&memory, 8), cudaErrorMemoryAllocation);
    OK(cudaFree(memory));
    OK(cudaMalloc(&memory, 8));
    OK(cudaFree(memory));
}
END_TEST

START_TEST(capture_and_replay)
{
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    int *a = nullptr, *b = nullptr, host[2] = {0};
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudaMalloc((void **)&a, sizeof *a));
    OK(cudaMalloc((void **)&b, sizeof *b));
    OK(cudaMemset(a, 0, sizeof *a));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(cudaMemsetAsync(b, 0, sizeof *b, stream));
    simt_launch(stream, 1, 32, 0, [=]() {
        if (threadIdx.x == 0)
            ++*a;
    });
    OK(cudaGetLastError());
    OK(cudaMemcpyAsync(b, a, sizeof *a, cudaMemcpyDeviceToDevice, stream));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    OK(cudaMemcpy(host, a, sizeof *a, cudaMemcpyDeviceToHost));
    ck_assert_int_eq(host[0], 0);
    for (int k = 1; k <= 3; k++) {
        OK(cudaGraphLaunch(exec, stream));
        OK(cudaStreamSynchronize(stream));
        OK(cudaMemcpy(host, a, sizeof *a, cudaMemcpyDeviceToHost));
        OK(cudaMemcpy(host + 1, b, sizeof *b, cudaMemcpyDeviceToHost));
        ck_assert_int_eq(host[0], k);
        ck_assert_int_eq(host[1], k);
    }
    OK(cudaGraphExecDestroy(exec));
    OK(cudaFree(a));
    OK(cudaFree(b));
    OK(cudaStreamDestroy(stream));
}
END_TEST

/* What ends a capture, by number. */
static cudaError_t forbidden_call(int which, cudaStream_t stream, cudaEvent_t event, void *memory)
{
    void *other = nullptr;
    int host = 0;
    switch (which) {
    case 0:
        return cudaMalloc(&other, 8);
    case 1:
        return cudaFree(memory);
    case 2:
        return cudaStreamSynchronize(stream);
    case 3:
        return cudaMemcpy(&host, memory, sizeof host, cudaMemcpyDeviceToHost);
    case 4:
        return cudaDeviceSynchronize();
    case 5:
        return cudaStreamWaitEvent(stream, event, 0);
    case 6:
        return cudaHostAlloc(&other, 8, cudaHostAllocMapped);
    default:
        return cudaEventQuery(event);
    }
}

START_TEST(calls_that_a_capture_forbids)
{
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaEvent_t event = nullptr;
    void *memory = nullptr;
    OK(cudaMalloc(&memory, 8));
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    OK(cudaEventRecord(event, stream));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(cudaMemsetAsync(memory, 0, 8, stream));
    ck_assert_int_ge(forbidden_call(_i, stream, event, memory), cudaErrorStreamCaptureUnsupported);
    ck_assert_int_eq(cudaMemsetAsync(memory, 0, 8, stream), cudaErrorStreamCaptureInvalidated);
    ck_assert_int_eq(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    ck_assert_ptr_null(graph);
    cudaGetLastError();
    OK(cudaMemset(memory, 0, 8));
    OK(cudaEventQuery(event));
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(stream));
    OK(cudaFree(memory));
}
END_TEST

START_TEST(launches_that_fail)
{
    simt_fail_launches(cudaErrorLaunchFailure);
    simt_launch(nullptr, 1, 1, 0, []() { abort(); });
    ck_assert_int_eq(cudaGetLastError(), cudaErrorLaunchFailure);
    simt_fail_launches(cudaSuccess);
    const long before = simt_kernels();
    simt_launch(nullptr, 1, 1, 0, []() {});
    OK(cudaGetLastError());
    ck_assert_int_eq(simt_kernels(), before + 1);
}
END_TEST

/* All again in the opposite order of blocks and threads. */
static void reverse(void)
{
    setenv("RINGMASTER_SIMT_REVERSE", "1", 1);
}

static TCase *order_case(const char *name, void (*setup)(void))
{
    TCase *tc = tcase_create(name);
    if (setup)
        tcase_add_checked_fixture(tc, setup, nullptr);
    tcase_add_test(tc, every_thread_runs_once);
    tcase_add_test(tc, three_dimensions);
    tcase_add_test(tc, many_threads);
    tcase_add_loop_test(tc, barriers, 0, (int)(sizeof block_sizes / sizeof *block_sizes));
    tcase_add_test(tc, barrier_after_some_have_ended);
    tcase_add_test(tc, shuffles);
    tcase_add_test(tc, shuffles_of_some_warps);
    tcase_add_loop_test(tc, block_sums, 0, 5);
    tcase_add_test(tc, shared_memory_begins_as_junk);
    return tc;
}

int main(void)
{
    Suite *suite = suite_create("simt");
    suite_add_tcase(suite, order_case("kernels", nullptr));
    suite_add_tcase(suite, order_case("kernels in reverse", reverse));

    TCase *tc = tcase_create("misuse");
    tcase_add_test_raise_signal(tc, shuffle_in_part_of_a_warp, SIGABRT);
    tcase_add_test_raise_signal(tc, barrier_that_a_warp_never_reaches, SIGABRT);
    tcase_add_test_raise_signal(tc, two_barriers_at_once, SIGABRT);
    tcase_add_test_raise_signal(tc, two_shuffles_at_once, SIGABRT);
#ifndef __SANITIZE_ADDRESS__
    tcase_add_test_raise_signal(tc, write_past_shared_memory, SIGABRT);
    tcase_add_test_raise_signal(tc, write_past_device_memory, SIGABRT);
#endif
    tcase_add_test_raise_signal(tc, shared_memory_that_was_not_asked_for, SIGABRT);
    suite_add_tcase(suite, tc);

    tc = tcase_create("runtime");
    tcase_add_test(tc, sizes_that_no_device_has);
    tcase_add_test(tc, memory_and_copies);
    tcase_add_test(tc, memory_that_is_not_there);
    tcase_add_test(tc, capture_and_replay);
    tcase_add_loop_test(tc, calls_that_a_capture_forbids, 0, 8);
    tcase_add_test(tc, launches_that_fail);
    suite_add_tcase(suite, tc);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
