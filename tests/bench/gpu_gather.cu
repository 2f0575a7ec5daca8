/*
 * The unknowns of a GPU that decide between designs of expand and reduce: how fast elements are
 * gathered at random places (from rings of several sizes, from bf16 and fp32, from all of the ring
 * or from a tile in shared memory), and how fast memory is copied, which everything is held
 * against. Needs only the CUDA runtime. Prints one JSON object; times are medians.
 *
 *     gpu_gather [--rounds 9] [--weights 11157504]     measure
 *     gpu_gather --device                              the device and its versions only
 *     gpu_gather --leave MIB --seconds S               takes all of the device's memory but MIB,
 *                                                      says so, and keeps it for S seconds
 *
 * Bytes moved, M weights from a ring of N: expand reads 4 M (index, sign in bit 31; tile: 2 M) and
 * the ring, and writes 2 M (bf16); reduce reads 4 M (places of an element's uses) and M gradients,
 * and writes 4 N. A gather of 2 or 4 bytes moves a sector of 32 from L2, so rates are in gathers.
 */
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_ROUNDS 99
#define LAUNCHES   20 /* between two events */
#define BLOCK      256
#define TILE       2048
#define COPY_BYTES ((size_t)1 << 30)

#define SIGN       0x80000000u

typedef struct options {
    int rounds;
    int64_t weights;
    long leave, seconds;
    bool device;
} options;

static void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "gpu_gather: %s: %s\n", what, cudaGetErrorString(error));
    exit(error == cudaErrorMemoryAllocation ? 6 : 5);
}

static void *device_bytes(size_t bytes)
{
    void *memory = NULL;
    must(cudaMalloc(&memory, bytes), "cudaMalloc");
    must(cudaMemset(memory, 0, bytes), "cudaMemset");
    return memory;
}

/* ---- kernels ---- */

static __host__ __device__ __forceinline__ uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* One thread owns one entry: a random place below n, a random sign. */
static __global__ void fill_places_kernel(int64_t m, uint32_t n, uint32_t *index)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= m)
        return;
    uint32_t word = mix((uint32_t)i + 0x9e3779b9u);
    index[i] = (uint32_t)((uint64_t)word * n >> 32) | (mix(word) & SIGN);
}

/* One thread owns one entry of a tile: 11 bits of place, the sign in bit 15. */
static __global__ void fill_local_kernel(int64_t m, uint16_t *index)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < m)
        index[i] = (uint16_t)(mix((uint32_t)i) & (0x8000u | (TILE - 1)));
}

static __device__ __forceinline__ float value_of(float x)
{
    return x;
}

static __device__ __forceinline__ float value_of(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

static __device__ __forceinline__ float with_sign(float x, uint32_t sign)
{
    return sign ? -x : x;
}

typedef struct __align__(8) four_bf16
{
    __nv_bfloat16 at[4];
}
four_bf16;

/* One thread owns four weights: four gathers in flight. */
template <typename T>
static __global__ void expand_kernel(int64_t m, const uint32_t *index, const T *ring,
                                     __nv_bfloat16 *out)
{
    int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= m)
        return;
    uint4 at = *(const uint4 *)(const void *)(index + i);
    const uint32_t place[4] = {at.x, at.y, at.z, at.w};
    float got[4];
    for (int k = 0; k < 4; k++)
        got[k] = value_of(ring[place[k] & ~SIGN]);
    four_bf16 result;
    for (int k = 0; k < 4; k++)
        result.at[k] = __float2bfloat16(with_sign(got[k], place[k] & SIGN));
    *(four_bf16 *)(void *)(out + i) = result;
}

/* One block owns TILE weights, all from one tile of the ring, which it holds in shared memory. */
template <typename T>
static __global__ void expand_tile_kernel(int64_t tiles, const uint16_t *index, const T *ring,
                                          __nv_bfloat16 *out)
{
    __shared__ float tile[TILE];
    const int64_t from = (int64_t)(mix(blockIdx.x) % (uint32_t)tiles) * TILE;
    for (int i = (int)threadIdx.x; i < TILE; i += BLOCK)
        tile[i] = value_of(ring[from + i]);
    __syncthreads();
    const int64_t first = (int64_t)blockIdx.x * TILE;
    for (int i = 4 * (int)threadIdx.x; i < TILE; i += 4 * BLOCK) {
        ushort4 at = *(const ushort4 *)(const void *)(index + first + i);
        const uint32_t place[4] = {at.x, at.y, at.z, at.w};
        four_bf16 result;
        for (int k = 0; k < 4; k++)
            result.at[k] = __float2bfloat16(with_sign(tile[place[k] % TILE], place[k] & 0x8000u));
        *(four_bf16 *)(void *)(out + first + i) = result;
    }
}

/* One thread owns one ring element: its uses, places [use][n], from the gradients of all weights.
 */
template <typename T>
static __global__ void reduce_kernel(int64_t n, int uses, const uint32_t *places, const T *dw,
                                     float *grad)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    float sum = 0;
#pragma unroll 4
    for (int k = 0; k < uses; k++) {
        uint32_t place = places[(int64_t)k * n + i];
        sum += with_sign(value_of(dw[place & ~SIGN]), place & SIGN);
    }
    grad[i] = sum;
}

/* One thread owns four weights and adds them to the ring atomically: the order is not fixed, so
 * this is here to be compared with, never to be used. */
template <typename T>
static __global__ void scatter_kernel(int64_t m, const uint32_t *index, const T *dw, float *grad)
{
    int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= m)
        return;
    uint4 at = *(const uint4 *)(const void *)(index + i);
    const uint32_t place[4] = {at.x, at.y, at.z, at.w};
    for (int k = 0; k < 4; k++)
        atomicAdd(&grad[place[k] & ~SIGN], with_sign(value_of(dw[i + k]), place[k] & SIGN));
}

/* One thread owns 16 bytes. */
static __global__ void copy_kernel(int64_t n, const uint4 *from, uint4 *to)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        to[i] = from[i];
}

/* ---- timing ---- */

static unsigned int blocks_for(int64_t n, int per_block)
{
    return (unsigned int)((n + per_block - 1) / per_block);
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Median milliseconds of one call of `work`, which launches one kernel or copy. */
template <typename F> static double median_ms(const options *o, F work)
{
    float ms[MAX_ROUNDS];
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin), "cudaEventCreate");
    must(cudaEventCreate(&end), "cudaEventCreate");
    for (int round = -2; round < o->rounds; round++) {
        must(cudaEventRecord(begin), "cudaEventRecord");
        for (int i = 0; i < LAUNCHES; i++)
            work();
        must(cudaGetLastError(), "a launch");
        must(cudaEventRecord(end), "cudaEventRecord");
        must(cudaEventSynchronize(end), "a kernel");
        if (round >= 0)
            must(cudaEventElapsedTime(&ms[round], begin, end), "cudaEventElapsedTime");
    }
    must(cudaEventDestroy(begin), "cudaEventDestroy");
    must(cudaEventDestroy(end), "cudaEventDestroy");
    qsort(ms, (size_t)o->rounds, sizeof *ms, compare_floats);
    return ms[o->rounds / 2] / (double)LAUNCHES;
}

static void print_row(const char *what, const char *type, int64_t n, double ms, int64_t gathers,
                      double bytes)
{
    static bool more;
    printf("%s\n  {\"what\": \"%s\", \"type\": \"%s\", \"n\": %lld, \"us\": %.2f, "
           "\"giga_gathers_per_second\": %.2f, \"gigabytes_per_second\": %.1f}",
           more ? "," : "", what, type, (long long)n, 1e3 * ms, (double)gathers / ms / 1e6,
           bytes / ms / 1e6);
    more = true;
}

/* ---- what is measured ---- */

template <typename T> static void measure_type(const options *o, const char *type)
{
    static const int64_t sizes[] = {100000, 2359296, 11160576};
    const int64_t m = o->weights / TILE * TILE;
    uint32_t *index = (uint32_t *)device_bytes((size_t)m * sizeof *index);
    uint16_t *local = (uint16_t *)device_bytes((size_t)m * sizeof *local);
    __nv_bfloat16 *out = (__nv_bfloat16 *)device_bytes((size_t)m * sizeof *out);
    T *dw = (T *)device_bytes((size_t)m * sizeof *dw);
    fill_local_kernel<<<blocks_for(m, BLOCK), BLOCK>>>(m, local);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const int64_t n = sizes[s];
        const int uses = m > n ? (int)(m / n) : 1;
        const int64_t used = (int64_t)uses * n <= m ? n : m;
        const double ring = (double)n * sizeof(T), all = (double)m;
        T *values = (T *)device_bytes((size_t)n * sizeof *values);
        float *grad = (float *)device_bytes((size_t)n * sizeof *grad);
        fill_places_kernel<<<blocks_for(m, BLOCK), BLOCK>>>(m, (uint32_t)n, index);
        double ms = median_ms(o, [&]() {
            expand_kernel<T><<<blocks_for(m, 4 * BLOCK), BLOCK>>>(m, index, values, out);
        });
        print_row("expand, all of the ring", type, n, ms, m, 6 * all + ring);
        ms = median_ms(o, [&]() {
            expand_tile_kernel<T><<<blocks_for(m, TILE), BLOCK>>>(n / TILE, local, values, out);
        });
        print_row("expand, tiles", type, n, ms, m, (4 + sizeof(T)) * all);
        ms = median_ms(o, [&]() {
            scatter_kernel<T><<<blocks_for(m, 4 * BLOCK), BLOCK>>>(m, index, dw, grad);
        });
        print_row("reduce, atomic scatter", type, n, ms, m,
                  (4 + sizeof(T)) * all + 4.0 * (double)n);
        fill_places_kernel<<<blocks_for(m, BLOCK), BLOCK>>>(m, (uint32_t)m, index);
        ms = median_ms(o, [&]() {
            reduce_kernel<T><<<blocks_for(used, BLOCK), BLOCK>>>(used, uses, index, dw, grad);
        });
        print_row("reduce, gather by element", type, n, ms, (int64_t)uses * used,
                  (4 + sizeof(T)) * (double)(uses * used) + 4.0 * (double)used);
        must(cudaFree(values), "cudaFree");
        must(cudaFree(grad), "cudaFree");
    }
    must(cudaFree(index), "cudaFree");
    must(cudaFree(local), "cudaFree");
    must(cudaFree(out), "cudaFree");
    must(cudaFree(dw), "cudaFree");
}

static void measure_copy(const options *o)
{
    void *from = device_bytes(COPY_BYTES), *to = device_bytes(COPY_BYTES);
    const int64_t n = (int64_t)(COPY_BYTES / sizeof(uint4));
    double ms = median_ms(o, [&]() {
        copy_kernel<<<blocks_for(n, BLOCK), BLOCK>>>(n, (const uint4 *)from, (uint4 *)to);
    });
    print_row("copy, kernel", "bytes", (int64_t)COPY_BYTES, ms, 0, 2.0 * (double)COPY_BYTES);
    ms = median_ms(o, [&]() {
        must(cudaMemcpyAsync(to, from, COPY_BYTES, cudaMemcpyDeviceToDevice, 0), "cudaMemcpyAsync");
    });
    print_row("copy, cudaMemcpyAsync", "bytes", (int64_t)COPY_BYTES, ms, 0,
              2.0 * (double)COPY_BYTES);
    must(cudaFree(from), "cudaFree");
    must(cudaFree(to), "cudaFree");
}

static void print_device(void)
{
    cudaDeviceProp p;
    int driver = 0, runtime = 0;
    size_t free_bytes = 0, total = 0;
    must(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");
    must(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    must(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    must(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
    printf("{\"device\": \"%s\", \"capability\": \"%d.%d\", \"multiprocessors\": %d,\n"
           " \"l2_bytes\": %d, \"memory_bytes\": %zu, \"free_bytes\": %zu,\n"
           " \"driver_cuda\": \"%d.%d\", \"runtime_cuda\": \"%d.%d\"",
           p.name, p.major, p.minor, p.multiProcessorCount, p.l2CacheSize, total, free_bytes,
           driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

/* In pieces: what is free need not be one piece. */
static void hold_memory(const options *o)
{
    size_t free_bytes = 0, total = 0, piece = (size_t)1 << 30, leave = (size_t)o->leave << 20;
    must(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
    while (piece >= (size_t)16 << 20) {
        void *memory = NULL;
        must(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
        if (free_bytes < leave + piece || cudaMalloc(&memory, piece) != cudaSuccess)
            piece /= 2;
    }
    (void)cudaGetLastError();
    must(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
    printf("{\"free_bytes\": %zu}\n", free_bytes);
    fflush(stdout);
    sleep((unsigned int)o->seconds);
}

static bool read_option(options *o, const char *name, const char *value)
{
    const long number = strtol(value, NULL, 10);
    if (strcmp(name, "--rounds") == 0)
        o->rounds = (int)number;
    else if (strcmp(name, "--weights") == 0)
        o->weights = number;
    else if (strcmp(name, "--leave") == 0)
        o->leave = number;
    else if (strcmp(name, "--seconds") == 0)
        o->seconds = number;
    else
        return false;
    return number > 0 && o->rounds <= MAX_ROUNDS && o->weights < INT32_MAX;
}

int main(int argc, char **argv)
{
    options o = {9, 11157504, 0, 60, false};
    for (int i = 1; i < argc; i += 2) {
        if (strcmp(argv[i], "--device") == 0)
            o.device = true, i--;
        else if (i + 1 >= argc || !read_option(&o, argv[i], argv[i + 1])) {
            fprintf(stderr, "gpu_gather: %s: unknown option or bad value\n", argv[i]);
            return 2;
        }
    }
    if (o.leave) {
        hold_memory(&o);
        return 0;
    }
    print_device();
    if (!o.device) {
        printf(",\n \"weights\": %lld, \"rounds\": %d, \"rows\": [", (long long)o.weights,
               o.rounds);
        measure_copy(&o);
        measure_type<__nv_bfloat16>(&o, "bf16");
        measure_type<float>(&o, "fp32");
        printf("]");
    }
    printf("}\n");
    return 0;
}
