// AdamW for all parameters of one type in one launch.
//
// `arrays` holds for each parameter the addresses of p, g, m and v and the number of elements; `shares` for
// each block which parameter it works on and from which element: 4096 of them, with 256 threads.
//
//   m <- m + (1 - b1) (g - m)        v <- b2 v + (1 - b2) g^2
//   p <- p keep - m / (sqrt(v) root + eps) rate
//
// with keep = 1 - lr weight_decay, root = 1 / sqrt(1 - b2^t), rate = lr / (1 - b1^t)
//
// variant: float32
// variant: float64
#include "common.cuh"

extern "C" __global__ void adamw(const u64* arrays, const int* shares, double keep, double new1, double b2,
                                 double new2, double root, double eps, double rate) {
    const u64* mine = arrays + 5 * shares[2 * blockIdx.x];
    REAL* p = (REAL*)mine[0];
    const REAL* g = (const REAL*)mine[1];
    REAL* m = (REAL*)mine[2];
    REAL* v = (REAL*)mine[3];
    i64 start = shares[2 * blockIdx.x + 1], end = start + 4096 < (i64)mine[4] ? start + 4096 : (i64)mine[4];
    for (i64 i = start + threadIdx.x; i < end; i += blockDim.x) {
        SUM gi = g[i], mi = m[i] + (gi - m[i]) * (SUM)new1, vi = v[i] * (SUM)b2 + gi * gi * (SUM)new2;
        m[i] = mi;
        v[i] = vi;
        p[i] = p[i] * (SUM)keep - mi / (sqrt(vi) * (SUM)root + (SUM)eps) * (SUM)rate;
    }
}
