// The selective scan of Mamba: x_t = exp(dt_t a) x_{t-1} + dt_t u_t b_t,  y_t = x_t . c_t.
//
// One thread for each channel e and state s: LANES neighbouring threads (a power of two, at least the number
// of states) hold the states of a channel in registers and walk along the tokens; the dot products are sums
// over these lanes. A block of 128 threads has 128 / LANES channels of one batch element.
//
//   selective_scan           also keeps x before every CHUNK-th token
//   selective_scan_backward  chunk by chunk from the last: computes the states of the chunk again from the kept
//                            one, then walks back through them. db and dc are sums over channels: over those of
//                            the block here, over blocks by the launcher; da is summed over tokens here
//
// variant: float32 LANES=16
// variant: float32 LANES=1
// variant: float64 LANES=32
#include "common.cuh"

#ifndef LANES
#define LANES 16
#endif
#define CHUNK 16
#define THREADS 128
#define CHANNELS (THREADS / LANES)

__device__ __forceinline__ SUM over_lanes(SUM x) {
    for (int other = LANES / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
}

extern "C" __global__ void selective_scan(const REAL* u, const REAL* dt, const REAL* a, const REAL* b, const REAL* c,
                                          const REAL* state, REAL* y, REAL* last, SUM* kept, int tokens, int width,
                                          int n) {
    int s = threadIdx.x % LANES, e = blockIdx.x * CHANNELS + threadIdx.x / LANES;
    i64 z = blockIdx.y;
    // Threads without a channel or a state go along with zeros, for the sums need whole warps.
    bool mine = e < width && s < n;
    i64 own = ((z * width + e) * n) + s;
    SUM rate = mine ? (SUM)a[(i64)e * n + s] : 0, x = mine && state ? (SUM)state[own] : 0;
    int chunks = (tokens + CHUNK - 1) / CHUNK;
    for (int t = 0; t < tokens; t++) {
        if (t % CHUNK == 0 && mine) kept[((z * chunks + t / CHUNK) * width + e) * n + s] = x;
        i64 at = (z * tokens + t) * width + e, row = (z * tokens + t) * n + s;
        SUM step = e < width ? (SUM)dt[at] : 0, in = e < width ? (SUM)u[at] : 0;
        x = exp(step * rate) * x + step * in * (mine ? (SUM)b[row] : 0);
        SUM out = over_lanes(mine ? x * (SUM)c[row] : 0);
        if (s == 0 && e < width) y[at] = (REAL)out;
    }
    if (mine) last[own] = (REAL)x;
}

extern "C" __global__ void selective_scan_backward(const REAL* g, const REAL* g_last, const REAL* u, const REAL* dt,
                                                   const REAL* a, const REAL* b, const REAL* c, const SUM* kept,
                                                   REAL* du, REAL* ddt, SUM* da, SUM* db, SUM* dc, REAL* dstate,
                                                   int tokens, int width, int n) {
    __shared__ SUM parts[2][CHUNK][THREADS];
    int s = threadIdx.x % LANES, e = blockIdx.x * CHANNELS + threadIdx.x / LANES;
    i64 z = blockIdx.y;
    bool mine = e < width && s < n;
    i64 own = (z * width + e) * n + s;
    SUM rate = mine ? (SUM)a[(i64)e * n + s] : 0, dx = mine && g_last ? (SUM)g_last[own] : 0, drate = 0;
    int chunks = (tokens + CHUNK - 1) / CHUNK;
    for (int m = chunks - 1; m >= 0; m--) {
        // before[i]: the state before token i of the chunk.
        SUM before[CHUNK + 1];
        before[0] = mine ? kept[((z * chunks + m) * width + e) * n + s] : 0;
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            int t = m * CHUNK + i;
            bool real = mine && t < tokens;
            i64 at = (z * tokens + t) * width + e, row = (z * tokens + t) * n + s;
            SUM step = real ? (SUM)dt[at] : 0;
            before[i + 1] = exp(step * rate) * before[i] + (real ? step * (SUM)u[at] * (SUM)b[row] : 0);
        }
#pragma unroll
        for (int i = CHUNK - 1; i >= 0; i--) {
            int t = m * CHUNK + i;
            bool real = mine && t < tokens;
            i64 at = (z * tokens + t) * width + e, row = (z * tokens + t) * n + s;
            SUM step = real ? (SUM)dt[at] : 0, in = real ? (SUM)u[at] : 0, up = real && g ? (SUM)g[at] : 0;
            SUM map = real ? (SUM)b[row] : 0, decay = exp(step * rate);
            if (real) dx += up * (SUM)c[row];
            parts[0][i][threadIdx.x] = dx * step * in;
            parts[1][i][threadIdx.x] = up * before[i + 1];
            SUM through = dx * decay * before[i];
            SUM write = over_lanes(real ? dx * map : 0), turn = over_lanes(real ? through * rate : 0);
            if (real && s == 0) {
                du[at] = (REAL)(step * write);
                ddt[at] = (REAL)(in * write + turn);
            }
            drate += through * step;
            dx *= decay;
        }
        __syncthreads();
        for (int k = threadIdx.x; k < 2 * CHUNK * LANES; k += THREADS) {
            int which = k / (CHUNK * LANES), i = k / LANES % CHUNK, state = k % LANES, t = m * CHUNK + i;
            SUM total = 0;
            for (int channel = 0; channel < CHANNELS; channel++) total += parts[which][i][channel * LANES + state];
            if (state < n && t < tokens)
                (which ? dc : db)[(((i64)blockIdx.x * gridDim.y + z) * tokens + t) * n + state] = total;
        }
        __syncthreads();
    }
    if (!mine) return;
    da[own] = drate;
    if (dstate) dstate[own] = (REAL)dx;
}
