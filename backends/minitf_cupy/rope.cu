// Rotary positions: pairs of coordinates turned by an angle that grows with the position.
//
// One thread for each pair of x (B, H, N, d). cos and sin come from a table with a row for each position, or
// for each position of each batch element. The gradient is turned back by the same angle: sign = -1.
//
// variant: float16
// variant: float32
// variant: float64
#include "common.cuh"

extern "C" __global__ void rotate(const REAL* x, const REAL* cosines, const REAL* sines, REAL* y, i64 pairs,
                                  int heads, int tokens, int half, int by_batch, int interleaved, double sign) {
    for (i64 p = (i64)blockIdx.x * blockDim.x + threadIdx.x; p < pairs; p += (i64)gridDim.x * blockDim.x) {
        int j = p % half;
        i64 row = p / half, token = row % tokens;
        if (by_batch) token += row / tokens / heads * tokens;
        SUM c = (SUM)cosines[token * half + j], s = (SUM)sines[token * half + j] * (SUM)sign;
        i64 first = row * 2 * half + (interleaved ? 2 * j : j), second = first + (interleaved ? 1 : half);
        SUM a = (SUM)x[first], b = (SUM)x[second];
        y[first] = (REAL)(a * c - b * s);
        y[second] = (REAL)(a * s + b * c);
    }
}
