/*
 * Runs the blocks of a kernel: threads as fibres, barriers and shuffles among them. See simt.h.
 *
 * A fibre starts one thread of the block after another. Where a thread waits, its fibre leaves it
 * and the scheduler (run_block) goes on with another fibre, which starts the threads that are left;
 * what the last thread to arrive sets free is resumed later. So a block needs as many fibres as it
 * has threads that wait at one time, and a kernel without barriers needs one, entered once a block.
 *
 * Fibres are kept for the next block. makecontext makes one; after that _setjmp and _longjmp
 * switch, because swapcontext asks the system for the signal mask each time.
 */
#undef _FORTIFY_SOURCE /* whose longjmp refuses to change stacks */
#include "simt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <mutex>
#include <vector>

#include "simt_runtime.h"
#include "simt_testing.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

uint3 threadIdx, blockIdx, blockDim, gridDim;
uint64_t simt_block;

namespace
{

enum {
    STACK_BYTES = 256 << 10,
    GUARD_PAGE = 4096,
    LANES = 32,
    MOST_THREADS = 1024,
    MOST_SHARED = 48 << 10, /* what a kernel gets without asking for more */
    SHARED_GUARD = 64,
    SHUFFLED_BYTES = 16,
};
const unsigned char GUARD = 0xa5;

/* A stack and where it was left. The scheduler's own has no memory of ours. */
struct context {
    jmp_buf at;
    ucontext_t first; /* how a fibre begins */
    bool begun;
    char *stack;
    size_t stack_bytes;
    void *asan_fake;
};

enum thread_state {
    NOT_WAITING,
    AT_BARRIER,
    AT_SHUFFLE,
    READY,
};

struct place {
    const char *file;
    int line;
};

struct thread_record {
    thread_state state;
    context *on;
    uint3 index;
};

/* Values lie in two sets that take turns: a thread that has left a shuffle may bring its value for
 * the next one before the others have read theirs, but cannot be two ahead. */
struct warp_record {
    int size, arrived, turn;
    simt_shuffle_kind kind;
    int by;
    place at;
    unsigned char value[2][LANES][SHUFFLED_BYTES];
};

struct machine {
    std::mutex busy;
    std::function<void()> *body;
    context scheduler;
    context *now; /* the fibre that runs, or &scheduler */
    std::vector<context *> fibres, idle, ready;
    thread_record thread[MOST_THREADS];
    warp_record warp[MOST_THREADS / LANES];
    int threads, next, current; /* of the block; to be started next; that runs */
    int ended, at_barrier;
    place barrier;
    std::vector<char> shared;
    size_t shared_bytes;
    bool reverse; /* threads and blocks in descending order */
    long kernels;
    cudaError_t refuse;
    ~machine();
};

machine m;

void misuse(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

void misuse(const char *format, ...)
{
    va_list args;
    fprintf(stderr, "kernel misuse, block (%u, %u, %u) of %u threads: ", blockIdx.x, blockIdx.y,
            blockIdx.z, blockDim.x * blockDim.y * blockDim.z);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

/* ---- fibres ---- */

/* The sanitizer is told that `on` runs. Fibres come from the scheduler only: they learn from it
 * which stack that has. */
void arrived(context *on)
{
#if SANITIZED
    const void *bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(on->asan_fake, &bottom, &size);
    if (on != &m.scheduler) {
        m.scheduler.stack = static_cast<char *>(const_cast<void *>(bottom));
        m.scheduler.stack_bytes = size;
    }
#else
    (void)on;
#endif
}

/* Leaves `from` for `to`; returns when something goes back to `from`. */
__attribute__((noinline)) void go(context *from, context *to)
{
    m.now = to;
#if SANITIZED
    __sanitizer_start_switch_fiber(&from->asan_fake, to->stack, to->stack_bytes);
#endif
    if (_setjmp(from->at) == 0) {
        if (to->begun)
            _longjmp(to->at, 1);
        to->begun = true;
        setcontext(&to->first);
        abort(); /* it does not return */
    }
    arrived(from);
}

void thread_ended(void);

/* What every fibre does for ever. */
void fibre_main(void)
{
    arrived(m.now);
    for (;;) {
        while (m.next < m.threads) {
            const int t = m.reverse ? m.threads - 1 - m.next : m.next;
            m.next++;
            m.current = t;
            threadIdx = m.thread[t].index;
            (*m.body)();
            thread_ended();
        }
        context *self = m.now;
        m.idle.push_back(self);
        go(self, &m.scheduler);
    }
}

context *fibre_new(void)
{
    context *f = new context();
    f->stack_bytes = STACK_BYTES;
    char *memory =
        static_cast<char *>(mmap(nullptr, STACK_BYTES + GUARD_PAGE, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory, GUARD_PAGE, PROT_NONE) != 0 ||
        getcontext(&f->first) != 0) {
        perror("simt: a fibre's stack");
        abort();
    }
    f->stack = memory + GUARD_PAGE;
    f->first.uc_stack.ss_sp = f->stack;
    f->first.uc_stack.ss_size = f->stack_bytes;
    f->first.uc_link = nullptr;
    makecontext(&f->first, fibre_main, 0);
    m.fibres.push_back(f);
    return f;
}

machine::~machine()
{
    for (context *f : fibres) {
        munmap(f->stack - GUARD_PAGE, STACK_BYTES + GUARD_PAGE);
        delete f;
    }
}

/* This thread waits in `state` until release() has seen to it. */
void leave(thread_state state)
{
    const int t = m.current;
    m.thread[t].state = state;
    m.thread[t].on = m.now;
    go(m.now, &m.scheduler);
    m.thread[t].state = NOT_WAITING;
    m.current = t;
    threadIdx = m.thread[t].index;
}

void release(int first, int end, thread_state state)
{
    for (int t = first; t < end; t++) {
        if (m.thread[t].state == state) {
            m.thread[t].state = READY;
            m.ready.push_back(m.thread[t].on);
        }
    }
}

/* ---- barriers ---- */

bool release_barrier(void)
{
    if (m.at_barrier + m.ended < m.threads)
        return false;
    m.at_barrier = 0;
    release(0, m.threads, AT_BARRIER);
    return true;
}

void thread_ended(void)
{
    m.ended++;
    if (m.at_barrier > 0)
        release_barrier();
}

/* ---- blocks ---- */

void explain_deadlock(void)
{
    int at_shuffle = 0, first = -1;
    for (int t = 0; t < m.threads; t++) {
        if (m.thread[t].state == AT_SHUFFLE) {
            at_shuffle++;
            first = first < 0 ? t : first;
        }
    }
    if (first < 0)
        misuse("%d threads wait at a barrier (%s:%d) for ever", m.at_barrier, m.barrier.file,
               m.barrier.line);
    const place at = m.warp[first / LANES].at;
    misuse("%d threads wait at a shuffle that not the whole warp reaches (%s:%d, warp %d); %d wait "
           "at a barrier, %d have ended",
           at_shuffle, at.file, at.line, first / LANES, m.at_barrier, m.ended);
}

void begin_block(void)
{
    simt_block++;
    m.next = m.ended = m.at_barrier = 0;
    for (int w = 0; w * LANES < m.threads; w++)
        m.warp[w].arrived = 0;
    if (m.shared_bytes > 0) {
        memset(m.shared.data(), 0xff, m.shared_bytes);
        memset(m.shared.data() + m.shared_bytes, GUARD, SHARED_GUARD);
    }
}

void run_block(void)
{
    begin_block();
    for (;;) {
        context *next = nullptr;
        if (!m.ready.empty()) {
            next = m.ready.back();
            m.ready.pop_back();
        } else if (m.next < m.threads) {
            if (m.idle.empty())
                m.idle.push_back(fibre_new());
            next = m.idle.back();
            m.idle.pop_back();
        } else {
            break;
        }
        go(&m.scheduler, next);
    }
    if (m.ended < m.threads)
        explain_deadlock();
    for (int i = 0; m.shared_bytes > 0 && i < SHARED_GUARD; i++)
        if (static_cast<unsigned char>(m.shared[m.shared_bytes + static_cast<size_t>(i)]) != GUARD)
            misuse("wrote past the end of its %zu bytes of shared memory", m.shared_bytes);
}

/* Threads are numbered x first, then y, then z. */
void number_threads(dim3 block)
{
    int t = 0;
    for (unsigned int z = 0; z < block.z; z++)
        for (unsigned int y = 0; y < block.y; y++)
            for (unsigned int x = 0; x < block.x; x++)
                m.thread[t++] = {NOT_WAITING, nullptr, {x, y, z}};
    m.threads = t;
    for (int w = 0; w * LANES < t; w++)
        m.warp[w].size = t - w * LANES < LANES ? t - w * LANES : LANES;
}

void run_grid(dim3 grid, dim3 block, size_t shared, std::function<void()> body)
{
    std::lock_guard<std::mutex> lock(m.busy);
    const char *reverse = getenv("RINGMASTER_SIMT_REVERSE");
    m.reverse = reverse && strcmp(reverse, "1") == 0;
    m.kernels++;
    m.body = &body;
    m.scheduler.begun = true;
    m.shared_bytes = shared;
    if (m.shared.size() < shared + SHARED_GUARD)
        m.shared.resize(shared + SHARED_GUARD);
    gridDim = {grid.x, grid.y, grid.z};
    blockDim = {block.x, block.y, block.z};
    number_threads(block);
    const int64_t row = grid.x, plane = row * grid.y, blocks = plane * grid.z;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t b = m.reverse ? blocks - 1 - i : i;
        blockIdx = {static_cast<unsigned int>(b % row), static_cast<unsigned int>(b % plane / row),
                    static_cast<unsigned int>(b / plane)};
        run_block();
    }
}

} // namespace

/* ---- what kernels call ---- */

void *simt_shared(void)
{
    if (m.shared_bytes == 0)
        misuse("asks for shared memory, was launched with none");
    return m.shared.data();
}

void simt_wait(const char *file, int line)
{
    if (m.at_barrier == 0)
        m.barrier = {file, line};
    else if (m.barrier.line != line || strcmp(m.barrier.file, file) != 0)
        misuse("thread %d reaches the barrier at %s:%d while others wait at %s:%d", m.current, file,
               line, m.barrier.file, m.barrier.line);
    m.at_barrier++;
    if (!release_barrier())
        leave(AT_BARRIER);
}

void simt_shuffle(simt_shuffle_kind kind, int by, const void *value, void *ret, size_t size,
                  const char *file, int line)
{
    warp_record *w = &m.warp[m.current / LANES];
    const int lane = m.current % LANES, turn = w->turn;
    if (size > SHUFFLED_BYTES)
        misuse("shuffles %zu bytes at once (%s:%d), at most %d are possible", size, file, line,
               SHUFFLED_BYTES);
    if (w->arrived == 0) {
        w->kind = kind;
        w->by = by;
        w->at = {file, line};
    } else if (w->kind != kind || w->by != by || w->at.line != line ||
               strcmp(w->at.file, file) != 0) {
        misuse("thread %d reaches the shuffle at %s:%d (by %d) while others of its warp wait at "
               "%s:%d (by %d)",
               m.current, file, line, by, w->at.file, w->at.line, w->by);
    }
    memcpy(w->value[turn][lane], value, size);
    if (++w->arrived == w->size) {
        w->arrived = 0;
        w->turn = !turn;
        const int first = m.current / LANES * LANES;
        release(first, first + w->size, AT_SHUFFLE);
    } else {
        leave(AT_SHUFFLE);
    }
    int from = kind == SIMT_XOR ? lane ^ by : lane + by;
    if (from >= LANES)
        from = lane;
    if (from < w->size)
        memcpy(ret, w->value[turn][from], size);
    else
        memset(ret, 0xff, size);
}

/* ---- launching ---- */

void simt_launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared,
                 std::function<void()> body)
{
    const unsigned int most_yz = 65535;
    const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    if (m.refuse != cudaSuccess) {
        simt_error(m.refuse);
        return;
    }
    if (threads < 1 || threads > MOST_THREADS || block.z > 64 || grid.x < 1 || grid.x > INT32_MAX ||
        grid.y < 1 || grid.y > most_yz || grid.z < 1 || grid.z > most_yz) {
        simt_error(cudaErrorInvalidConfiguration);
        return;
    }
    if (shared > MOST_SHARED) {
        simt_error(cudaErrorInvalidValue);
        return;
    }
    simt_submit(stream, [=]() { run_grid(grid, block, shared, body); });
}

void simt_fail_launches(cudaError_t error)
{
    m.refuse = error;
}

long simt_kernels(void)
{
    return m.kernels;
}
