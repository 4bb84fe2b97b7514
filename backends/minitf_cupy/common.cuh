// What every kernel shares: element types, sums over warps and blocks.
//
// A file is compiled once for each type of element. REAL is how an element is stored, SUM how it is computed
// with: float for everything up to 32 bits, double for double. `(SUM)x[i]` reads and `(REAL)value` writes.
// Nothing is included, so NVRTC needs no headers. With MINITF_EMULATED the same text runs on a CPU: the
// tests' emulated.h stands in for the compiler's own names (threadIdx, __shfl_xor_sync and so on).

#ifndef REAL
#define REAL float
#endif
#ifndef SUM
#define SUM float
#endif

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;
typedef unsigned long long u64;

#ifndef MINITF_EMULATED
// Shared memory whose size the launcher chooses: DYNAMIC_SHARED(float, tile); then tile[i].
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(128) unsigned char dynamic_[];  \
    type* name = reinterpret_cast<type*>(dynamic_)

__device__ __forceinline__ u16 bits_of_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ __forceinline__ float half_of_bits(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_of(u32 bits) { return __uint_as_float(bits); }
#endif

#define INFINITE float_of(0x7f800000u)

// Storage in 16 bits. A value is converted to float and back, to the nearest, ties to even.
struct float16 {
    u16 bits;
    float16() = default;
    __device__ explicit float16(float x) : bits(bits_of_half(x)) {}
    __device__ operator float() const { return half_of_bits(bits); }
};

struct bfloat16 {
    u16 bits;
    bfloat16() = default;
    __device__ explicit bfloat16(float x) {
        u32 b = bits_of(x);
        bits = x != x ? 0x7fff : (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    }
    __device__ operator float() const { return float_of((u32)bits << 16); }
};

// The sum (the largest) over the 32 lanes of a warp, in every lane. Always in the same order.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
    for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
}
template <typename T>
__device__ __forceinline__ T warp_max(T x) {
    for (int other = 16; other > 0; other /= 2) {
        T y = __shfl_xor_sync(0xffffffffu, x, other);
        // A NaN wins, so that it is seen.
        x = (y > x || y != y) ? y : x;
    }
    return x;
}

// The same over a block of whole warps, in every thread. `scratch`: 32 elements of shared memory.
template <typename T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : (T)0);
}
template <typename T>
__device__ __forceinline__ T block_max(T x, T* scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? scratch[lane] : -(T)INFINITE);
}
