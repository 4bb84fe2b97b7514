// Dropout whose mask is computed from a key, not stored: the gradient is the same function of its gradient.
//
// One thread for each element, numbered in C order: the hash (SplitMix64, see minitf/ops/random.py) of the key
// and the number decides whether the element stays, divided by the share that stays.
//
// variant: float16
// variant: float32
// variant: float64
#include "common.cuh"

extern "C" __global__ void dropout(const REAL* x, REAL* y, int n, u64 key, u64 threshold, double stays) {
    SUM scale = 1 / (SUM)stays;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
        u64 z = key + ((u64)i + 1) * 0x9E3779B97F4A7C15ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        y[i] = (REAL)((SUM)x[i] * (z >= threshold ? scale : (SUM)0));
    }
}
