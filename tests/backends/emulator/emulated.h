// CUDA's block and thread model on one CPU core, for kernels at small sizes.
//
// Blocks run one after another. The threads of a block are fibres: one runs until it meets a barrier, or an
// exchange with the other lanes of its warp, then the next. A barrier opens when all have come. So a run is
// the same every time. MINITF_EMULATOR_REVERSE=1 runs blocks and threads in the opposite order, and a kernel
// without data races gives the same bits. Found out and reported:
//
//   a thread that ends, or stands at another barrier, while others wait
//   lanes that exchange under different masks, or a lane that is not in its mask
//   accesses far outside of every array, writes past the end of shared memory
//
// Shared memory is filled with NaN before every block. Tensor-core products exchange the operands between the
// lanes as the PTX manual lays the fragments out.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#define MINITF_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __constant__ static const
#define __shared__ static __attribute__((section("emulated_shared")))
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace emulated {

enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Fibre {
    ucontext_t context;
    jmp_buf at;
    bool started;
    dim3 index;
    State state;
    // At which line it waits, and with which lanes.
    int site;
    unsigned mask;
    // Copies to shared memory that are under way, in groups.
    struct Copy {
        void* to;
        unsigned char bytes[16];
    };
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

constexpr size_t STACK = 256 * 1024, WIDEST = 128, MOST = 1024;
inline std::vector<Fibre> fibres;
inline size_t threads = 0;
inline char* stacks = nullptr;
inline Fibre* current = nullptr;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::string failure;
inline bool reverse = false;
// What each lane of each warp shows the others.
inline std::vector<unsigned char> slots;
inline std::vector<unsigned char> dynamic_memory;

}  // namespace emulated

// Set anew whenever a fibre goes on.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

inline unsigned rank() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

[[noreturn]] inline void fail(const std::string& words) {
    failure = words + " (block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," +
              std::to_string(blockIdx.z) + ", thread " + std::to_string(rank()) + ")";
    _longjmp(scheduler, 2);
}

__attribute__((noinline)) inline void wait(State state, int site, unsigned mask) {
    current->state = state;
    current->site = site;
    current->mask = mask;
    if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

// A fibre lives on after the kernel's end, for the next block: to make one costs system calls.
inline void enter() {
    for (;;) {
        body();
        wait(DONE, 0, 0);
    }
}

// Let one fibre go on until it waits or ends. False: it failed.
__attribute__((noinline)) inline bool resume(Fibre& fibre) {
    current = &fibre;
    threadIdx = fibre.index;
    int code = _setjmp(scheduler);
    if (code == 0) {
        if (current->started) _longjmp(current->at, 1);
        current->started = true;
        setcontext(&current->context);
    }
    return code == 1;
}

// Open the barriers at which all have come. False: none could be opened.
inline bool release() {
    bool opened = false;
    size_t n = threads;
    for (size_t w = 0; w < n; w += 32) {
        size_t end = w + 32 < n ? w + 32 : n;
        unsigned closed = 0;
        for (size_t i = w; i < end; i++) {
            if (fibres[i].state != AT_WARP || fibres[i].mask == closed) continue;
            unsigned mask = fibres[i].mask;
            bool all = true;
            for (unsigned lane = 0; lane < 32; lane++) {
                if (!(mask >> lane & 1)) continue;
                bool here = w + lane < end && fibres[w + lane].state == AT_WARP &&
                            fibres[w + lane].mask == mask && fibres[w + lane].site == fibres[i].site;
                all = all && here;
            }
            if (!all) {
                closed = mask;
                continue;
            }
            for (unsigned lane = 0; lane < 32; lane++)
                if (mask >> lane & 1) fibres[w + lane].state = READY;
            opened = true;
        }
    }
    bool all = true;
    for (size_t i = 0; i < n; i++) all = all && fibres[i].state == AT_BLOCK && fibres[i].site == fibres[0].site;
    if (all) {
        for (size_t i = 0; i < n; i++) fibres[i].state = READY;
        opened = true;
    }
    return opened;
}

inline bool run_block() {
    size_t n = threads;
    for (size_t i = 0; i < n; i++) {
        Fibre& f = fibres[i];
        unsigned t = (unsigned)i;
        f.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
        f.state = READY;
        f.groups.clear();
        f.open.clear();
        if (f.started) continue;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = stacks + i * STACK;
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        makecontext(&f.context, enter, 0);
    }
    for (;;) {
        for (size_t j = 0; j < n; j++) {
            size_t i = reverse ? n - 1 - j : j;
            if (fibres[i].state == READY && !resume(fibres[i])) return false;
        }
        bool done = true;
        for (size_t i = 0; i < n; i++) done = done && fibres[i].state == DONE;
        if (done) return true;
        if (release()) continue;
        int counts[4] = {0, 0, 0, 0};
        for (size_t i = 0; i < n; i++) counts[fibres[i].state]++;
        char words[200];
        snprintf(words, sizeof words,
                 "threads wait for each other for ever: %d at __syncthreads, %d at an exchange of a warp, %d ended "
                 "(block %u,%u,%u)",
                 counts[AT_BLOCK], counts[AT_WARP], counts[DONE], blockIdx.x, blockIdx.y, blockIdx.z);
        failure = words;
        return false;
    }
}

// The linker marks where the section of shared variables starts and ends. It must not be empty.
static unsigned char first_shared __attribute__((section("emulated_shared"), used)) = 0;
extern "C" {
extern unsigned char __start_emulated_shared[] __attribute__((visibility("hidden")));
extern unsigned char __stop_emulated_shared[] __attribute__((visibility("hidden")));
}

inline const char* run(dim3 grid, dim3 block, size_t shared, std::function<void()> kernel) {
    failure.clear();
    threads = (size_t)block.x * block.y * block.z;
    if (!stacks) {
        void* p = mmap(nullptr, MOST * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
        if (p == MAP_FAILED) return "no memory for the stacks";
        stacks = (char*)p;
        fibres.resize(MOST);
    }
    slots.assign((threads + 31) / 32 * 32 * WIDEST, 0);
    dynamic_memory.resize(shared + 256);
    body = std::move(kernel);
    gridDim = grid;
    blockDim = block;
    size_t blocks = (size_t)grid.x * grid.y * grid.z;
    for (size_t j = 0; j < blocks; j++) {
        size_t b = reverse ? blocks - 1 - j : j;
        blockIdx = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
        memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
        memset(dynamic_memory.data(), 0xff, dynamic_memory.size());
        if (!run_block()) {
            // What is left in the middle of the kernel is made anew for the next launch.
            for (Fibre& f : fibres) f.started = false;
            return failure.c_str();
        }
        for (size_t i = shared + 128; i < dynamic_memory.size(); i++)
            if (dynamic_memory[i] != 0xff) {
                failure = "wrote past the end of dynamic shared memory";
                return failure.c_str();
            }
    }
    return nullptr;
}

inline void* dynamic_start() {
    uintptr_t p = (uintptr_t)dynamic_memory.data();
    return (void*)((p + 127) / 128 * 128);
}

template <typename... A, size_t... I>
std::function<void()> bound(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    return [=] { kernel(*(std::remove_cv_t<A>*)args[I]...); };
}

[[noreturn]] inline void outside(int) { fail("reads or writes far outside of every array"); }

template <typename... A>
const char* start(void (*kernel)(A...), const unsigned* sizes, size_t shared, void** args) {
    struct sigaction mine = {}, before;
    mine.sa_handler = outside;
    mine.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &mine, &before);
    const char* failed = run({sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]}, shared,
                             bound(kernel, args, std::index_sequence_for<A...>{}));
    sigaction(SIGSEGV, &before, nullptr);
    return failed;
}

// Show `mine` to the lanes of the warp, and let `use` look at what all of them show.
template <typename T, typename Use>
inline auto exchange(unsigned mask, const T& mine, int site, Use use) {
    static_assert(sizeof(T) <= WIDEST);
    unsigned lane = rank() % 32;
    unsigned char* warp = slots.data() + rank() / 32 * 32 * WIDEST;
    if (!(mask >> lane & 1)) fail("a lane exchanges with others but is not in its own mask");
    memcpy(warp + lane * WIDEST, &mine, sizeof(T));
    wait(AT_WARP, site, mask);
    auto show = [=](unsigned other) {
        T value;
        memcpy(&value, warp + other % 32 * WIDEST, sizeof(T));
        return value;
    };
    auto result = use(show, lane);
    wait(AT_WARP, site, mask);
    return result;
}

}  // namespace emulated

// The line of the caller.
#define EMULATED_LINE int line = __builtin_LINE()
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulated::dynamic_start())

inline void __syncthreads(EMULATED_LINE) { emulated::wait(emulated::AT_BLOCK, line, 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATED_LINE) {
    emulated::wait(emulated::AT_WARP, line, mask);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
inline T __shfl_sync(unsigned mask, T x, int from, int width = 32, EMULATED_LINE) {
    return emulated::exchange(mask, x, line, [=](auto show, unsigned lane) {
        return show(lane / width * width + from % width);
    });
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T x, int other, int width = 32, EMULATED_LINE) {
    return emulated::exchange(mask, x, line, [=](auto show, unsigned lane) {
        unsigned from = lane ^ other;
        return show(from / width == lane / width ? from : lane);
    });
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32, EMULATED_LINE) {
    return emulated::exchange(mask, x, line, [=](auto show, unsigned lane) {
        return show(lane % width + delta < (unsigned)width ? lane + delta : lane);
    });
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, EMULATED_LINE) {
    return emulated::exchange(mask, x, line,
                              [=](auto show, unsigned lane) { return show(lane % width >= delta ? lane - delta : lane); });
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMULATED_LINE) {
    return emulated::exchange(mask, vote, line, [=](auto show, unsigned) {
        unsigned bits = 0;
        for (unsigned i = 0; i < 32; i++)
            if (mask >> i & 1 && show(i)) bits |= 1u << i;
        return bits;
    });
}
inline int __any_sync(unsigned mask, int vote, EMULATED_LINE) {
    return emulated::exchange(mask, vote, line, [=](auto show, unsigned) {
        int any = 0;
        for (unsigned i = 0; i < 32; i++) any |= (mask >> i & 1) && show(i);
        return any;
    });
}
inline int __all_sync(unsigned mask, int vote, EMULATED_LINE) {
    return emulated::exchange(mask, vote, line, [=](auto show, unsigned) {
        int all = 1;
        for (unsigned i = 0; i < 32; i++) all &= !(mask >> i & 1) || show(i);
        return all;
    });
}
inline int __syncthreads_or(int vote, EMULATED_LINE) {
    static int any;
    emulated::wait(emulated::AT_BLOCK, line, 0);
    any = 0;
    emulated::wait(emulated::AT_BLOCK, line, 0);
    any |= vote != 0;
    emulated::wait(emulated::AT_BLOCK, line, 0);
    return any;
}

// Integers only: sums of floats in any order would not be the same twice.
inline int atomicAdd(int* p, int x) {
    int before = *p;
    *p += x;
    return before;
}
inline int atomicMax(int* p, int x) {
    int before = *p;
    *p = x > before ? x : before;
    return before;
}

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline unsigned __float_as_uint(float x) {
    unsigned b;
    memcpy(&b, &x, 4);
    return b;
}
inline float __uint_as_float(unsigned b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}
inline int __float_as_int(float x) { return (int)__float_as_uint(x); }
inline float __int_as_float(int b) { return __uint_as_float((unsigned)b); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
template <typename T>
inline T __ldg(const T* p) { return *p; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
using std::erf;
using std::erfc;
using std::exp;
using std::exp2;
using std::expm1;
using std::fabs;
using std::fma;
using std::fmax;
using std::fmin;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::log;
using std::log1p;
using std::log2;
using std::pow;
using std::sqrt;
using std::tanh;

// The rest is what common.cuh and tiles.cuh ask for.
inline uint32_t bits_of(float x) { return __float_as_uint(x); }
inline float float_of(uint32_t bits) { return __uint_as_float(bits); }
inline uint16_t bits_of_half(float x) {
    _Float16 h = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &h, 2);
    return bits;
}
inline float half_of_bits(uint16_t bits) {
    _Float16 h;
    memcpy(&h, &bits, 2);
    return (float)h;
}

namespace emulated {
struct Operands {
    uint32_t a[4], b[2];
};
template <typename E>
inline float element(uint32_t pair, int which) {
    E e;
    e.bits = (uint16_t)(pair >> 16 * which);
    return (float)e;
}
}  // namespace emulated

template <typename E>
inline void emulated_mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2], EMULATED_LINE) {
    emulated::Operands mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    emulated::exchange(0xffffffffu, mine, line, [=](auto show, unsigned lane) {
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
            // Products of 16-bit numbers are exact in float; the sum is kept in double, as no order is promised.
            double total = c[i];
            for (int k = 0; k < 16; k++) {
                auto left = show(row % 8 * 4 + k % 8 / 2), right = show(column * 4 + k % 8 / 2);
                total += (double)emulated::element<E>(left.a[(row >= 8) + 2 * (k >= 8)], k % 2) *
                         emulated::element<E>(right.b[k >= 8], k % 2);
            }
            c[i] = (float)total;
        }
        return 0;
    });
}

inline void emulated_load_8x8x4(uint32_t r[4], const void* row, bool turned, EMULATED_LINE) {
    if ((uintptr_t)row % 16) emulated::fail("ldmatrix: a row is not aligned to 16 bytes");
    emulated::exchange(0xffffffffu, (const uint16_t*)row, line, [=](auto show, unsigned lane) {
        int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            uint16_t low = turned ? show(8 * i + t)[g] : show(8 * i + g)[t];
            uint16_t high = turned ? show(8 * i + t + 1)[g] : show(8 * i + g)[t + 1];
            r[i] = low | (uint32_t)high << 16;
        }
        return 0;
    });
}

// Copies arrive when they are waited for, and not before.
inline void emulated_copy_16(void* to, const void* from, bool real) {
    if ((uintptr_t)to % 16 || (real && (uintptr_t)from % 16)) emulated::fail("cp.async: not aligned to 16 bytes");
    emulated::Fibre::Copy copy = {to, {}};
    if (real) memcpy(copy.bytes, from, 16);
    emulated::current->open.push_back(copy);
}
inline void emulated_copies_end_group() {
    emulated::current->groups.push_back(std::move(emulated::current->open));
    emulated::current->open.clear();
}
inline void emulated_copies_wait(size_t left) {
    auto& groups = emulated::current->groups;
    while (groups.size() > left) {
        for (auto& copy : groups.front()) memcpy(copy.to, copy.bytes, 16);
        groups.erase(groups.begin());
    }
}

#define EMULATED_KERNEL(name)                                                                                  \
    extern "C" const char* emulated_start_##name(const unsigned* sizes, size_t shared, void** args, int reverse) { \
        emulated::reverse = reverse;                                                                           \
        return emulated::start(name, sizes, shared, args);                                                     \
    }
