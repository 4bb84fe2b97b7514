// The k largest of every row and where they are; among equals the lower position first, NaN above all.
//
// One block of 32 to 256 threads for each row, k rounds. In a round every thread looks through its share of the row
// for the best element that ranks after the one found last; then the block compares the shares' best. The row
// stays in the cache. For small k this is one pass for each element found, without sorting the rest.
//
//   topk            values and positions, the best first
//   topk_backward   dx = 0 but for the positions, where it is g
//
// variant: float16
// variant: float32
// variant: float64
#include "common.cuh"

// Whether (x, i) ranks before (y, j).
__device__ __forceinline__ bool before(SUM x, i64 i, SUM y, i64 j) {
    if (x != x || y != y) return x != x && (y == y || i < j);
    return x > y || (x == y && i < j);
}

extern "C" __global__ void topk(const REAL* x, REAL* values, i64* index, int n, int k) {
    __shared__ SUM best_value[32];
    __shared__ i64 best_index[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    i64 row = blockIdx.x;
    x += row * n;
    SUM last = 0;
    i64 last_at = -1;
    for (int round = 0; round < k; round++) {
        SUM value = 0;
        // n: nothing found yet.
        i64 at = n;
        for (i64 j = threadIdx.x; j < n; j += blockDim.x) {
            SUM candidate = (SUM)x[j];
            bool left = last_at < 0 || before(last, last_at, candidate, j);
            if (left && (at == n || before(candidate, j, value, at))) value = candidate, at = j;
        }
        for (int step = 0; step < 2; step++) {
            for (int other = 16; other > 0; other /= 2) {
                SUM their_value = __shfl_xor_sync(0xffffffffu, value, other);
                i64 their_at = __shfl_xor_sync(0xffffffffu, at, other);
                if (their_at < n && (at == n || before(their_value, their_at, value, at)))
                    value = their_value, at = their_at;
            }
            if (step == 1) break;
            if (lane == 0) best_value[warp] = value, best_index[warp] = at;
            __syncthreads();
            value = best_value[lane < warps ? lane : 0];
            at = best_index[lane < warps ? lane : 0];
            __syncthreads();
        }
        last = value;
        last_at = at;
        if (threadIdx.x == 0) {
            values[row * k + round] = x[at];
            index[row * k + round] = at;
        }
    }
}

extern "C" __global__ void topk_backward(const REAL* g, const i64* index, REAL* dx, int n, int k) {
    i64 row = blockIdx.x;
    for (int j = threadIdx.x; j < n; j += blockDim.x) dx[row * n + j] = (REAL)0.0f;
    __syncthreads();
    for (int s = threadIdx.x; s < k; s += blockDim.x) dx[row * n + index[row * k + s]] = g[row * k + s];
}
