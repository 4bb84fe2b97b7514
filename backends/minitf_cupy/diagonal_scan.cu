// h_t = a_t h_{t-1} + b_t along the tokens.
//
// One thread for each batch element and column: it walks along the tokens with h in a register, and a warp
// reads 32 neighbouring columns at once. a is (1 or B, 1 or N, E): a stride of 0 stands for an axis of 1.
//
//   diagonal_scan            forward
//   diagonal_scan_backward   from the last token to the first: db_t = g_t + a_{t+1} db_{t+1},
//                            da_t = db_t h_{t-1}, or its sum over t (in double) where a is the same for all
//
// variant: float32
// variant: float64
#include "common.cuh"

extern "C" __global__ void diagonal_scan(const REAL* a, const REAL* b, const REAL* state, REAL* h, int batch,
                                         int tokens, int width, i64 a_batch, i64 a_token) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (i64)batch * width) return;
    i64 z = at / width, j = at % width;
    a += z * a_batch + j;
    b += z * tokens * width + j;
    h += z * tokens * width + j;
    // Without a state the first step adds nothing, not 0 a: a may be infinite.
    SUM now = state ? (SUM)a[0] * (SUM)state[at] + (SUM)b[0] : (SUM)b[0];
    h[0] = (REAL)now;
    for (i64 t = 1; t < tokens; t++) {
        now = (SUM)a[t * a_token] * now + (SUM)b[t * width];
        h[t * width] = (REAL)now;
    }
}

extern "C" __global__ void diagonal_scan_backward(const REAL* g, const REAL* a, const REAL* state, const REAL* h,
                                                  REAL* da, REAL* db, REAL* dstate, int batch, int tokens, int width,
                                                  i64 a_batch, i64 a_token) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (i64)batch * width) return;
    i64 z = at / width, j = at % width;
    a += z * a_batch + j;
    g += z * tokens * width + j;
    h += z * tokens * width + j;
    db += z * tokens * width + j;
    da += (a_token ? z * tokens * width : z * width) + j;
    SUM up = 0;
    double total = 0;
    for (i64 t = tokens - 1; t >= 0; t--) {
        up = (SUM)g[t * width] + (t + 1 < tokens ? (SUM)a[(t + 1) * a_token] * up : 0);
        db[t * width] = (REAL)up;
        SUM before = t > 0 ? (SUM)h[(t - 1) * width] : state ? (SUM)state[at] : 0;
        if (a_token)
            da[t * width] = (REAL)(up * before);
        else
            total += (double)(up * before);
    }
    if (!a_token) da[0] = (REAL)total;
    if (state) dstate[at] = (REAL)((SUM)a[0] * up);
}
