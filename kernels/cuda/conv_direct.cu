/*
 * Convolution and its two gradients as tiled matrix products whose operands are gathered from the
 * tensors where they lie. Per group, with m x n results and sums over `depth`:
 *     forward            y [n p q][k]  = sum over (r s c) of x[n, p * stride - pad + r, ...][c] * w
 *     backward data      dx[n h w][c]  = sum over (r s k) of dy[n, (h + pad - r) / stride, ...] * w
 *     backward weights   dw[r s c][k]  = sum over (n p q) of x[n, p * stride - pad + r, ...] * dy
 * x, dy: NHWC; w, dw: KRSC; float or bf16, products and sums in fp32.
 *
 * A block makes one tile of the result. It goes through the depth in steps of DEPTH: both operands
 * of a step lie in shared memory, the next step's are loaded meanwhile. Sums are moved to a second
 * accumulator every FLUSH steps, so that long ones keep their last digits. Weight gradients are few
 * and their sums long, so these are cut into `splits` parts, by shape alone; a second kernel adds
 * the parts in order, in double. Bytes moved: each operand once per tile row or column, mostly from
 * the L2 cache.
 *
 * Same bits every time: each result is one thread's sum in the order of the depth.
 */
#include "kernels/cuda/conv_direct.h"

#include "kernels/cuda/launch.cuh"

enum {
    THREADS = 256,
    DEPTH = 16,  /* of a step */
    FLUSH = 32,  /* steps between two moves of the sums */
    ROWS = 4,    /* of the result, a thread */
    WIDE_M = 64, /* tile of a result with many columns */
    WIDE_N = 64,
    NARROW_M = 128, /* and with few */
    NARROW_N = 16,
    FEW_COLUMNS = 32, /* at most: narrow */
    BLOCKS = 512,     /* that weight gradients are cut into, roughly */
    LEAST_PART = 512, /* pixels of a part of their sums, at least */
    OUTSIDE = 1 << 29 /* a coordinate that no tap brings back inside */
};

namespace
{

struct geometry {
    int n, h, w, oh, ow, taps, kw;
    int stride_h, stride_w, pad_h, pad_w, dilation;
    int in, out;
    int x_pitch, y_pitch, w_pitch;
};

/* ---- operands: value(outer, depth); outer is a row or column of the result. DEEP: neighbours in
 * memory differ in depth, so neighbouring threads take neighbouring depths. ---- */

/* The window of an output pixel: its image's first row, and its corner. */
struct window {
    int rows, h, w;
};

/* One tap and channel of windows, relative to the corner. */
struct tap {
    int h, w, c;
};

static __device__ __forceinline__ window window_at(const geometry &g, int pixel)
{
    window at = {0, -OUTSIDE, -OUTSIDE};
    const int q = pixel % g.ow, row = pixel / g.ow, p = row % g.oh, image = row / g.oh;
    if (image < g.n) {
        at.rows = image * g.h;
        at.h = p * g.stride_h - g.pad_h;
        at.w = q * g.stride_w - g.pad_w;
    }
    return at;
}

/* Tap j of kh * kw * channels, channels running fastest. */
static __device__ __forceinline__ tap tap_at(const geometry &g, int j, int channels)
{
    const int rs = j / channels;
    tap t = {-OUTSIDE, -OUTSIDE, 0};
    if (rs < g.taps) {
        t.h = rs / g.kw * g.dilation;
        t.w = rs % g.kw * g.dilation;
        t.c = j % channels;
    }
    return t;
}

template <typename T>
static __device__ __forceinline__ float value_of_x(const geometry &g, const T *x, const window &at,
                                                   const tap &t)
{
    const int h = at.h + t.h, w = at.w + t.w;
    if (h < 0 || h >= g.h || w < 0 || w >= g.w)
        return 0;
    return to_float(x[((int64_t)(at.rows + h) * g.w + w) * g.x_pitch + t.c]);
}

/* Forward: x by output pixel and (r, s, c). */
template <typename T> struct x_by_window {
    static constexpr bool DEEP = true;
    geometry g;
    const T *x;

    typedef window outer_at;
    typedef tap depth_at;
    __device__ void select(int group, int)
    {
        x += (int64_t)group * g.in;
    }
    __device__ window outer(int i) const
    {
        return window_at(g, i);
    }
    __device__ tap depth(int j) const
    {
        return tap_at(g, j, g.in);
    }
    __device__ float value(const window &at, const tap &t) const
    {
        return value_of_x(g, x, at, t);
    }
};

/* Weight gradient: x by (r, s, c) and output pixel. */
template <typename T> struct x_by_tap {
    static constexpr bool DEEP = false;
    geometry g;
    const T *x;

    typedef tap outer_at;
    typedef window depth_at;
    __device__ void select(int group, int)
    {
        x += (int64_t)group * g.in;
    }
    __device__ tap outer(int j) const
    {
        return tap_at(g, j, g.in);
    }
    __device__ window depth(int i) const
    {
        return window_at(g, i);
    }
    __device__ float value(const tap &t, const window &at) const
    {
        return value_of_x(g, x, at, t);
    }
};

/* Backward data: dy by input pixel and (r, s, k). */
template <typename T> struct dy_by_pixel {
    static constexpr bool DEEP = true;
    geometry g;
    const T *dy;

    typedef window outer_at; /* of dy: its image's first row; the pixel, padding counted */
    typedef tap depth_at;
    __device__ void select(int group, int)
    {
        dy += (int64_t)group * g.out;
    }
    __device__ window outer(int i) const
    {
        window at = {0, -2 * OUTSIDE, -2 * OUTSIDE}; /* less a tap that is outside, too: < 0 */
        const int w = i % g.w, row = i / g.w, h = row % g.h, image = row / g.h;
        if (image < g.n) {
            at.rows = image * g.oh;
            at.h = h + g.pad_h;
            at.w = w + g.pad_w;
        }
        return at;
    }
    __device__ tap depth(int j) const
    {
        return tap_at(g, j, g.out);
    }
    __device__ float value(const window &at, const tap &t) const
    {
        const int h = at.h - t.h, w = at.w - t.w;
        const int p = g.stride_h == 1 ? h : h / g.stride_h;
        const int q = g.stride_w == 1 ? w : w / g.stride_w;
        if (h < 0 || w < 0 || p >= g.oh || q >= g.ow || p * g.stride_h != h || q * g.stride_w != w)
            return 0;
        return to_float(dy[((int64_t)(at.rows + p) * g.ow + q) * g.y_pitch + t.c]);
    }
};

/* An operand that is addressed by a sum of two offsets; a negative one: outside, 0. */
template <typename T>
static __device__ __forceinline__ float value_or_zero(const T *from, int64_t outer, int64_t depth)
{
    return outer < 0 || depth < 0 ? 0 : to_float(from[outer + depth]);
}

/* Forward: w by k and (r, s, c). */
template <typename T> struct w_by_output {
    static constexpr bool DEEP = true;
    geometry g;
    const T *w;

    typedef int64_t outer_at;
    typedef int64_t depth_at;
    __device__ void select(int group, int)
    {
        w += (int64_t)group * g.out * g.taps * g.w_pitch;
    }
    __device__ int64_t outer(int k) const
    {
        return k < g.out ? (int64_t)k * g.taps * g.w_pitch : -1;
    }
    __device__ int64_t depth(int j) const
    {
        const int rs = j / g.in;
        return rs < g.taps ? rs * g.w_pitch + j % g.in : -1;
    }
    __device__ float value(int64_t outer, int64_t depth) const
    {
        return value_or_zero(w, outer, depth);
    }
};

/* Backward data: w by c and (r, s, k). */
template <typename T> struct w_by_input {
    static constexpr bool DEEP = false;
    geometry g;
    const T *w;

    typedef int64_t outer_at;
    typedef int64_t depth_at;
    __device__ void select(int group, int)
    {
        w += (int64_t)group * g.out * g.taps * g.w_pitch;
    }
    __device__ int64_t outer(int c) const
    {
        return c < g.in ? c : -1;
    }
    __device__ int64_t depth(int j) const
    {
        const int rs = j / g.out, k = j % g.out;
        return rs < g.taps ? ((int64_t)k * g.taps + rs) * g.w_pitch : -1;
    }
    __device__ float value(int64_t outer, int64_t depth) const
    {
        return value_or_zero(w, outer, depth);
    }
};

/* Weight gradient: dy by k and output pixel. */
template <typename T> struct dy_by_output {
    static constexpr bool DEEP = false;
    geometry g;
    const T *dy;

    typedef int64_t outer_at;
    typedef int64_t depth_at;
    __device__ void select(int group, int)
    {
        dy += (int64_t)group * g.out;
    }
    __device__ int64_t outer(int k) const
    {
        return k < g.out ? k : -1;
    }
    __device__ int64_t depth(int pixel) const
    {
        return pixel < g.n * g.oh * g.ow ? (int64_t)pixel * g.y_pitch : -1;
    }
    __device__ float value(int64_t outer, int64_t depth) const
    {
        return value_or_zero(dy, outer, depth);
    }
};

/* ---- results ---- */

/* Rows of pixels, `group_columns` of them a group. */
template <typename T> struct to_pixels {
    T *to;
    int pitch, group_columns;

    __device__ void select(int group, int)
    {
        to += (int64_t)group * group_columns;
    }
    __device__ void put(int m, int n, float value) const
    {
        to[(int64_t)m * pitch + n] = from_float<T>(value);
    }
};

/* Parts of a weight gradient: [splits][groups][k][r s c]. */
struct to_parts {
    float *to;
    int groups, out, weights; /* weights of one output channel */

    __device__ void select(int group, int split)
    {
        to += ((int64_t)split * groups + group) * out * weights;
    }
    __device__ void put(int m, int n, float value) const
    {
        to[(int64_t)n * weights + m] = value;
    }
};

/* ---- the product ---- */

struct alignas(16) four {
    float at[4];
};

/* What one thread loads of an operand's side of a step: SIDE x DEPTH elements a block. */
template <typename P, int SIDE> struct side {
    static constexpr int EACH = SIDE * DEPTH / THREADS;
    static constexpr int OUTERS = P::DEEP ? EACH : 1;
    static constexpr int PITCH = SIDE + 4; /* in shared memory, of a depth */
    typename P::outer_at outer[OUTERS];
    float value[EACH];

    static __device__ int outer_of(int i)
    {
        const int t = (int)threadIdx.x;
        return P::DEEP ? t / DEPTH + i * (THREADS / DEPTH) : t % SIDE;
    }
    static __device__ int depth_of(int i)
    {
        const int t = (int)threadIdx.x;
        return P::DEEP ? t % DEPTH : t / SIDE + i * (THREADS / SIDE);
    }
    __device__ void begin(const P &p, int first)
    {
        for (int i = 0; i < OUTERS; i++)
            outer[i] = p.outer(first + outer_of(i));
    }
    __device__ void fetch(const P &p, int first)
    {
        if constexpr (P::DEEP) {
            const typename P::depth_at depth = p.depth(first + depth_of(0));
            for (int i = 0; i < EACH; i++)
                value[i] = p.value(outer[i], depth);
        } else {
            for (int i = 0; i < EACH; i++)
                value[i] = p.value(outer[0], p.depth(first + depth_of(i)));
        }
    }
    __device__ void put(float *shared) const
    {
        for (int i = 0; i < EACH; i++)
            shared[depth_of(i) * PITCH + outer_of(i)] = value[i];
    }
};

template <int COLUMNS> struct sums {
    float at[ROWS][COLUMNS];

    __device__ void clear(void)
    {
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLUMNS; j++)
                at[i][j] = 0;
    }
    __device__ void add(const sums &other)
    {
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLUMNS; j++)
                at[i][j] += other.at[i][j];
    }
    /* One step; a and b: this thread's rows and columns of the two sides. */
    template <int A_PITCH, int B_PITCH> __device__ void step(const float *a, const float *b)
    {
        for (int d = 0; d < DEPTH; d++)
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < COLUMNS; j++)
                    at[i][j] = fmaf(a[d * A_PITCH + i], b[d * B_PITCH + j], at[i][j]);
    }
};

} // namespace

/* One block owns a tile of M x N results of one group and one part of the depth; one thread ROWS
 * rows and a few columns of it. */
template <int M, int N, typename A, typename B, typename C>
static __global__ void product_kernel(A a, B b, C c, int m, int n, int depth, int splits)
{
    constexpr int ACROSS = THREADS / (M / ROWS), COLUMNS = N / ACROSS; /* threads side by side */
    constexpr int A_PITCH = side<A, M>::PITCH, B_PITCH = side<B, N>::PITCH;
    SHARED(four, a_memory, DEPTH * A_PITCH / 4);
    SHARED(four, b_memory, DEPTH * B_PITCH / 4);
    float *const a_shared = a_memory[0].at, *const b_shared = b_memory[0].at;
    const int group = (int)blockIdx.z / splits, split = (int)blockIdx.z % splits;
    const int part = ((depth + splits - 1) / splits + DEPTH - 1) / DEPTH * DEPTH;
    const int from = split * part, to = from + part < depth ? from + part : depth;
    const int row = (int)threadIdx.x / ACROSS * ROWS, column = (int)threadIdx.x % ACROSS * COLUMNS;
    const int first_m = (int)blockIdx.x * M, first_n = (int)blockIdx.y * N;
    side<A, M> a_side;
    side<B, N> b_side;
    sums<COLUMNS> total, sum;
    a.select(group, split);
    b.select(group, split);
    c.select(group, split);
    a_side.begin(a, first_m);
    b_side.begin(b, first_n);
    a_side.fetch(a, from);
    b_side.fetch(b, from);
    total.clear();
    sum.clear();
    for (int at = from, steps = 1; at < to; at += DEPTH, steps++) {
        a_side.put(a_shared);
        b_side.put(b_shared);
        block_sync();
        if (at + DEPTH < to) {
            a_side.fetch(a, at + DEPTH);
            b_side.fetch(b, at + DEPTH);
        }
        sum.template step<A_PITCH, B_PITCH>(a_shared + row, b_shared + column);
        if (steps % FLUSH == 0) {
            total.add(sum);
            sum.clear();
        }
        block_sync();
    }
    total.add(sum);
    for (int i = 0; i < ROWS && first_m + row + i < m; i++)
        for (int j = 0; j < COLUMNS && first_n + column + j < n; j++)
            c.put(first_m + row + i, first_n + column + j, total.at[i][j]);
}

template <typename A, typename B, typename C>
static status launch_product(cuda_backend *be, const char *name, A a, B b, C c, int m, int n,
                             int depth, int groups, int splits)
{
    const bool narrow = n <= FEW_COLUMNS;
    const int tile_m = narrow ? NARROW_M : WIDE_M, tile_n = narrow ? NARROW_N : WIDE_N;
    const dim3 grid(blocks_for(m, tile_m), blocks_for(n, tile_n),
                    (unsigned int)groups * (unsigned int)splits);
    if (narrow)
        return cuda_launch(be, name, product_kernel<NARROW_M, NARROW_N, A, B, C>, grid,
                           dim3(THREADS), 0, a, b, c, m, n, depth, splits);
    return cuda_launch(be, name, product_kernel<WIDE_M, WIDE_N, A, B, C>, grid, dim3(THREADS), 0, a,
                       b, c, m, n, depth, splits);
}

/* ---- the three passes ---- */

static geometry geometry_of(const direct_conv *c)
{
    const conv_desc *d = &c->d;
    geometry g;
    g.n = d->x.n;
    g.h = d->x.h;
    g.w = d->x.w;
    g.oh = c->y.h;
    g.ow = c->y.w;
    g.taps = d->kh * d->kw;
    g.kw = d->kw;
    g.stride_h = d->stride_h;
    g.stride_w = d->stride_w;
    g.pad_h = d->pad_h;
    g.pad_w = d->pad_w;
    g.dilation = d->dilation;
    g.in = c->in;
    g.out = c->out;
    g.x_pitch = c->x_pitch;
    g.y_pitch = d->out;
    g.w_pitch = c->w_pitch;
    return g;
}

/* Parts of a weight gradient's sum: enough blocks to fill a device, parts that are worth it. */
static int split_count(const direct_conv *c)
{
    const int64_t weights = (int64_t)c->d.kh * c->d.kw * c->in;
    const int64_t pixels = (int64_t)c->y.n * c->y.h * c->y.w;
    const bool narrow = c->out <= FEW_COLUMNS;
    const int64_t tiles = (int64_t)blocks_for(weights, narrow ? NARROW_M : WIDE_M) *
                          blocks_for(c->out, narrow ? NARROW_N : WIDE_N) * c->d.groups;
    int64_t splits = (BLOCKS + tiles - 1) / tiles;
    const int64_t most = (pixels + LEAST_PART - 1) / LEAST_PART;
    splits = splits < most ? splits : most;
    return splits > 1 ? (int)splits : 1;
}

extern "C" status direct_conv_init(direct_conv *c, const conv_desc *desc, int x_pitch, int w_pitch,
                                   bool bf16, errbuf *err)
{
    const shape y = conv_output(desc);
    const int64_t most = 1 << 30, taps = (int64_t)desc->kh * desc->kw;
    if ((int64_t)desc->x.n * desc->x.h * desc->x.w > most || (int64_t)y.n * y.h * y.w > most ||
        taps * desc->x.c > most || taps * desc->out > most)
        return errbuf_set(
            err, STATUS_BAD_INPUT,
            "a conv of %d images of %dx%dx%d has more than 2^30 pixels: lower the batch "
            "size",
            desc->x.n, desc->x.c, desc->x.h, desc->x.w);
    c->d = *desc;
    c->y = y;
    c->in = desc->x.c / desc->groups;
    c->out = desc->out / desc->groups;
    c->x_pitch = x_pitch;
    c->w_pitch = w_pitch;
    c->bf16 = bf16;
    c->splits = split_count(c);
    return STATUS_OK;
}

template <typename T>
static status forward(cuda_backend *be, const direct_conv *c, const T *x, const T *w, T *y)
{
    const geometry g = geometry_of(c);
    const x_by_window<T> a = {g, x};
    const w_by_output<T> b = {g, w};
    const to_pixels<T> to = {y, g.y_pitch, g.out};
    return launch_product(be, "direct convolution", a, b, to, g.n * g.oh * g.ow, g.out,
                          g.taps * g.in, c->d.groups, 1);
}

extern "C" status direct_conv_forward(cuda_backend *be, const direct_conv *c, const void *x,
                                      const void *w, void *y)
{
    if (c->bf16)
        return forward(be, c, (const bf16 *)x, (const bf16 *)w, (bf16 *)y);
    return forward(be, c, (const float *)x, (const float *)w, (float *)y);
}

/* With one group the padding channels are columns of their own, whose weights count as 0. */
template <typename T>
static status backward_data(cuda_backend *be, const direct_conv *c, const T *dy, const T *w, T *dx)
{
    const geometry g = geometry_of(c);
    const dy_by_pixel<T> a = {g, dy};
    const w_by_input<T> b = {g, w};
    const to_pixels<T> to = {dx, g.x_pitch, g.in};
    return launch_product(be, "direct convolution, data", a, b, to, g.n * g.h * g.w,
                          c->d.groups == 1 ? g.x_pitch : g.in, g.taps * g.out, c->d.groups, 1);
}

extern "C" status direct_conv_backward_data(cuda_backend *be, const direct_conv *c, const void *dy,
                                            const void *w, void *dx)
{
    if (c->bf16)
        return backward_data(be, c, (const bf16 *)dy, (const bf16 *)w, (bf16 *)dx);
    return backward_data(be, c, (const float *)dy, (const float *)w, (float *)dx);
}

/* One thread owns a weight: its parts, in order, and what was there. */
template <typename T>
static __global__ void join_kernel(const float *parts, int splits, int64_t n, int in, int pitch,
                                   bool adds, T *dw)
{
    const int64_t i = grid_index();
    if (i >= n)
        return;
    T *const to = dw + i / in * pitch + i % in;
    double sum = adds ? to_float(*to) : 0.0;
    for (int s = 0; s < splits; s++)
        sum += parts[s * n + i];
    *to = from_float<T>((float)sum);
}

template <typename T>
static status backward_weights(cuda_backend *be, const direct_conv *c, const T *x, const T *dy,
                               T *dw, float *scratch, bool adds)
{
    const geometry g = geometry_of(c);
    const x_by_tap<T> a = {g, x};
    const dy_by_output<T> b = {g, dy};
    const int weights = g.taps * g.in;
    const to_parts to = {scratch, c->d.groups, g.out, weights};
    const int64_t n = (int64_t)c->d.out * weights;
    TRY(launch_product(be, "direct convolution, weights", a, b, to, weights, g.out,
                       g.n * g.oh * g.ow, c->d.groups, c->splits));
    return cuda_launch(be, "direct convolution, weights", join_kernel<T>,
                       dim3(blocks_for(n, THREADS)), dim3(THREADS), 0, scratch, c->splits, n, g.in,
                       g.w_pitch, adds, dw);
}

extern "C" status direct_conv_backward_weights(cuda_backend *be, const direct_conv *c,
                                               const void *x, const void *dy, void *dw,
                                               float *scratch, bool adds)
{
    if (c->bf16)
        return backward_weights(be, c, (const bf16 *)x, (const bf16 *)dy, (bf16 *)dw, scratch,
                                adds);
    return backward_weights(be, c, (const float *)x, (const float *)dy, (float *)dw, scratch, adds);
}

extern "C" size_t direct_conv_scratch(const direct_conv *c)
{
    const size_t weights = (size_t)c->d.kh * (size_t)c->d.kw * (size_t)c->in;
    return (size_t)c->splits * (size_t)c->d.out * weights * sizeof(float);
}
