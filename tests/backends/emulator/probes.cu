// Kernels that try the emulation itself.
//
// variant: float16
// variant: bfloat16
#include "common.cuh"
#include "tiles.cuh"

// C (16x8) = A (16x16) B (16x8), both row-major, through shared memory as a real kernel would do it.
extern "C" __global__ void product(const REAL* a, const REAL* b, float* c) {
    __shared__ __align__(16) REAL tile_a[16][16];
    __shared__ __align__(16) REAL tile_b[16][16];
    int lane = threadIdx.x;
    copy_16(&tile_a[lane / 2][lane % 2 * 8], a + lane * 8);
    copy_16(&tile_b[lane / 2][lane % 2 * 8], b + lane / 2 * 8, lane % 2 == 0);
    copies_end_group();
    copies_wait<0>();
    __syncthreads();
    u32 ra[4], rb[4];
    float rc[4] = {0, 0, 0, 0};
    load_8x8x4(ra, &tile_a[lane % 16][lane / 16 * 8]);
    load_8x8x4_turned(rb, &tile_b[lane % 16][lane / 16 * 8]);
    mma_16816<REAL>(rc, ra, rb);
    int g = lane / 4, t = lane % 4 * 2;
    c[g * 8 + t] = rc[0];
    c[g * 8 + t + 1] = rc[1];
    c[(g + 8) * 8 + t] = rc[2];
    c[(g + 8) * 8 + t + 1] = rc[3];
}

// Copies that nobody waits for: what is read is what was there before.
extern "C" __global__ void impatient(const REAL* a, REAL* c) {
    __shared__ __align__(16) REAL tile[256];
    copy_16(&tile[threadIdx.x * 8], a + threadIdx.x * 8);
    copies_end_group();
    __syncthreads();
    for (int i = 0; i < 8; i++) c[threadIdx.x * 8 + i] = tile[threadIdx.x * 8 + i];
}

// One thread leaves, the others wait for it.
extern "C" __global__ void deserted(float* c) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    c[threadIdx.x] = 1;
}

// Two barriers where there should be one.
extern "C" __global__ void parted(float* c) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    c[threadIdx.x] = 1;
}

// Reads what a neighbour writes, with no barrier between: a race.
extern "C" __global__ void racing(float* c) {
    __shared__ float x[64];
    x[threadIdx.x] = (float)threadIdx.x;
    c[threadIdx.x] = x[(threadIdx.x + 1) % 64];
}

extern "C" __global__ void too_far(float* c, int n) { c[(int)threadIdx.x + n] = 1; }

// Warp exchanges, block sums, rounding to storage.
extern "C" __global__ void sums(const float* x, REAL* rounded, float* y) {
    __shared__ float scratch[32];
    float v = x[threadIdx.x];
    float all = block_sum(v, scratch), most = block_max(v, scratch);
    float below = __shfl_up_sync(0xffffffffu, v, 1), first = __shfl_sync(0xffffffffu, v, 0);
    rounded[threadIdx.x] = (REAL)v;
    float* row = y + threadIdx.x * 4;
    row[0] = all;
    row[1] = most;
    row[2] = below;
    row[3] = first;
}
