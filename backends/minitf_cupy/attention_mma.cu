// Softmax attention on the tensor cores, float16 and bfloat16 with sums in float32, head widths 64 and 128.
//
// Every kernel has blocks of 4 warps; a warp owns rows of the block's tile by itself (FlashAttention-2, Dao, 2023,
// arXiv:2307.08691): no warp waits for another's sums. What all of them read lies in shared memory.
//
//     kernel    a block owns       a warp owns             walks over          in tiles of
//     forward   64 TALL queries    16 TALL queries: o        keys and values     64
//     keys      64 keys            16 keys: dk, dv         queries, cotangent  STEP (for all query heads of a key head)
//     queries   64 queries         16 queries: dq          keys and values     STEP
//
// The launcher defines WIDTH and TALL, how many 16 rows a warp owns in the forward: what a warp loads of k and v
// serves all of them. STEP below is what leaves room for two blocks on a processor.
//
// S and P never leave the registers. In 16 rows of an accumulator, lane 4 g + t has rows g and g + 8, and of every 8
// columns 2t and 2t + 1: four lanes share a row. The kernel over keys computes S^T = k q^T, whose rows are keys, so
// that P^T and dS^T are left operands as they are. Both backward kernels compute S and dP again: 7 products where
// atomic additions would need 5, and every sum has a fixed order.
//
// Copies to shared memory are asynchronous, one tile ahead. Forward: k of the next tile arrives during P v, v of this
// one during q k^T, so that neither needs a second buffer. Backward: two buffers that take turns.
//
// chips: sm_80 sm_90
// variant: float16 WIDTH=128 TALL=2
// variant: float16 WIDTH=64 TALL=2
// variant: bfloat16 WIDTH=128 TALL=2
#include "common.cuh"
#include "tiles.cuh"
#include "attention_rules.cuh"
#include "attention_mma.cuh"

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
constexpr int STEP = WIDTH == 64 ? 64 : 32, KEYS = 64;

__device__ __forceinline__ float sum_of_4(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float largest_of_4(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Shared memory: q (ROWS rows), k and v (COLUMNS rows).
extern "C" __global__ void __launch_bounds__(128) attention_mma_forward(
    const REAL* q, const REAL* k, const REAL* v, int heads, int kv_heads, int n_queries, int n_keys, int causal,
    int window, const int* starts, const int* ends, double scale, REAL* o, float* lse) {
    DYNAMIC_SHARED(REAL, memory);
    constexpr int M = TALL, ROWS = 64 * M, COLUMNS = WIDTH * M > 128 ? 32 : 64;
    const Tile qs = {memory}, ks = {memory + ROWS * WIDTH}, vs = {memory + (ROWS + COLUMNS) * WIDTH};
    const Visible visible = {n_queries, n_keys, causal, window, starts, ends};
    const int tiles = (n_queries + ROWS - 1) / ROWS, head = blockIdx.x / tiles;
    // Under a causal rule the last queries have the most keys: they start first.
    const int i0 = (tiles - 1 - (int)blockIdx.x % tiles) * ROWS, row = threadIdx.x / 32 * 16 * M;
    const i64 kv = (i64)(head / heads * kv_heads + head % heads / (heads / kv_heads)) * n_keys * WIDTH;
    k += kv, v += kv;
    const float unit = (float)scale * LOG2E;
    const Range all = visible.keys(i0, min(i0 + ROWS, n_queries) - 1);
    // The keys that every query of this warp sees.
    const int last = n_queries - 1;
    const Range whole = {
        visible.keys(min(i0 + row + 16 * M - 1, last)).lo, visible.keys(min(i0 + row, last)).hi};
    float out[M][WIDTH / 8][4] = {}, top[M][2], sum[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) top[m][0] = top[m][1] = -INFINITE, sum[m][0] = sum[m][1] = 0;

    int j0 = all.lo / COLUMNS * COLUMNS;
    qs.fill<ROWS>(q + (i64)head * n_queries * WIDTH, i0, n_queries);
    ks.fill<COLUMNS>(k, j0, n_keys);
    copies_end_group();
    copies_wait<0>();
    __syncthreads();
    for (; j0 < all.hi; j0 += COLUMNS) {
        float s[M][COLUMNS / 8][4];
        vs.fill<COLUMNS>(v, j0, n_keys);
        copies_end_group();
        scores<M, COLUMNS>(s, qs, row, ks);
        const bool edge = j0 < whole.lo || j0 + COLUMNS > whole.hi;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Range seen = {0, 0};
                if (edge) seen = visible.keys(min(i0 + row + 16 * m + LANE / 4 + 8 * h, last));
                float best = top[m][h];
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float& x = s[m][n][2 * h + c];
                        const int j = j0 + 8 * n + LANE % 4 * 2 + c;
                        x = !edge || (seen.lo <= j && j < seen.hi) ? x * unit : -INFINITE;
                        best = fmaxf(best, x);
                    }
                best = largest_of_4(best);
                // A row that has seen nothing yet: 2^(-inf - 0) = 0.
                const float shift = best == -INFINITE ? 0.0f : best, shrink = exp2_of(top[m][h] - shift);
                top[m][h] = best;
                sum[m][h] *= shrink;
#pragma unroll
                for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float& x = s[m][n][2 * h + c];
                        x = exp2_of(x - shift);
                        sum[m][h] += x;
                    }
#pragma unroll
                for (int e = 0; e < WIDTH / 8; e++) out[m][e][2 * h] *= shrink, out[m][e][2 * h + 1] *= shrink;
            }
        // v is here, and nobody reads k any more.
        copies_wait<0>();
        __syncthreads();
        ks.fill<COLUMNS>(k, j0 + COLUMNS, n_keys);
        copies_end_group();
        accumulate<M, COLUMNS>(out, s, vs);
        // The next k is here, and nobody reads v any more.
        copies_wait<0>();
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        float factor[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float total = sum_of_4(sum[m][h]);
            const int i = i0 + row + 16 * m + LANE / 4 + 8 * h;
            factor[h] = total == 0 ? 0.0f : 1 / total;
            if (LANE % 4 == 0 && i < n_queries)
                lse[(i64)head * n_queries + i] = total == 0 ? -INFINITE : top[m][h] * LN2 + logf(total);
        }
        store(o + (i64)head * n_queries * WIDTH, out[m], i0 + row + 16 * m, n_queries, factor[0], factor[1]);
    }
}

// Log-sum-exp in powers of two. A row that saw nothing: +inf, so that all its weights are 2^-inf = 0.
__device__ __forceinline__ float binary(float lse) { return lse == -INFINITE ? INFINITE : lse * LOG2E; }

// Shared memory: k and v (64 rows), q and g (STEP rows each, twice), log-sum-exp and delta (STEP floats each, twice).
extern "C" __global__ void __launch_bounds__(128) attention_mma_keys(
    const REAL* q, const REAL* k, const REAL* v, int heads, int kv_heads, int n_queries, int n_keys, int causal,
    int window, const int* starts, const int* ends, double scale, const REAL* g, const float* lse,
    const float* delta, REAL* out_k, REAL* out_v) {
    DYNAMIC_SHARED(REAL, memory);
    constexpr int PART = STEP * WIDTH;
    const Tile ks = {memory}, vs = {memory + KEYS * WIDTH};
    REAL* const turns = memory + 2 * KEYS * WIDTH;
    float* const rows = reinterpret_cast<float*>(turns + 4 * PART);
    const Visible visible = {n_queries, n_keys, causal, window, starts, ends};
    const int tiles = (n_keys + KEYS - 1) / KEYS, index = blockIdx.x / tiles, j0 = blockIdx.x % tiles * KEYS;
    const int row = threadIdx.x / 32 * 16, last = n_keys - 1;
    const int group = heads / kv_heads, first = index / kv_heads * heads + index % kv_heads * group;
    const i64 kv = (i64)index * n_keys * WIDTH;
    const float unit = (float)scale * LOG2E;
    const Range all = visible.queries(j0, min(j0 + KEYS, n_keys) - 1);
    const Range whole = {visible.queries(min(j0 + row + 15, last)).lo, visible.queries(min(j0 + row, last)).hi};
    const int start = all.lo / STEP * STEP, steps = all.hi > start ? (all.hi - start + STEP - 1) / STEP : 0;
    float sum_k[1][WIDTH / 8][4] = {}, sum_v[1][WIDTH / 8][4] = {};

    ks.fill<KEYS>(k + kv, j0, n_keys);
    vs.fill<KEYS>(v + kv, j0, n_keys);
    for (int step = -1; step < group * steps; step++) {
        // Turn 1 is filled while turn 0 is read, and the other way round; step -1 only fills.
        const int next = step + 1;
        const bool more = next < group * steps;
        float ahead[2] = {0, 0};
        if (more) {
            const i64 at = (i64)(first + next / steps) * n_queries;
            const int i0 = start + next % steps * STEP, i = i0 + (int)threadIdx.x;
            const Tile qs = {turns + next % 2 * 2 * PART}, gs = {turns + next % 2 * 2 * PART + PART};
            qs.fill<STEP>(q + at * WIDTH, i0, n_queries);
            gs.fill<STEP>(g + at * WIDTH, i0, n_queries);
            if (threadIdx.x < STEP && i < n_queries) ahead[0] = binary(lse[at + i]), ahead[1] = delta[at + i];
        }
        copies_end_group();
        if (step >= 0) {
            const int i0 = start + step % steps * STEP;
            const Tile qs = {turns + step % 2 * 2 * PART}, gs = {turns + step % 2 * 2 * PART + PART};
            const float* const here = rows + step % 2 * 2 * STEP;
            float weight[1][STEP / 8][4], change[1][STEP / 8][4];
            scores<1, STEP>(weight, ks, row, qs);
            scores<1, STEP>(change, vs, row, gs);
            const bool edge = i0 < whole.lo || i0 + STEP > whole.hi;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Range seen = {0, 0};
                if (edge) seen = visible.queries(min(j0 + row + LANE / 4 + 8 * h, last));
#pragma unroll
                for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        const int at = 8 * n + LANE % 4 * 2 + c, i = i0 + at;
                        float &p = weight[0][n][2 * h + c], &s = change[0][n][2 * h + c];
                        const bool sees = !edge || (seen.lo <= i && i < seen.hi);
                        p = sees ? exp2_of(p * unit - here[at]) : 0.0f;
                        s = sees ? p * (s - here[STEP + at]) : 0.0f;
                    }
            }
            accumulate<1, STEP>(sum_v, weight, gs);
            accumulate<1, STEP>(sum_k, change, qs);
        }
        if (more && threadIdx.x < STEP) {
            rows[(next % 2 * 2) * STEP + threadIdx.x] = ahead[0];
            rows[(next % 2 * 2 + 1) * STEP + threadIdx.x] = ahead[1];
        }
        // The next tile is here, and nobody reads this one any more.
        copies_wait<0>();
        __syncthreads();
    }
    store(out_k + kv, sum_k[0], j0 + row, n_keys, (float)scale, (float)scale);
    store(out_v + kv, sum_v[0], j0 + row, n_keys, 1, 1);
}

// Shared memory: q and g (64 rows), k and v (STEP rows each, twice).
extern "C" __global__ void __launch_bounds__(128) attention_mma_queries(
    const REAL* q, const REAL* k, const REAL* v, int heads, int kv_heads, int n_queries, int n_keys, int causal,
    int window, const int* starts, const int* ends, double scale, const REAL* g, const float* lse,
    const float* delta, REAL* out_q) {
    DYNAMIC_SHARED(REAL, memory);
    constexpr int ROWS = 64, PART = STEP * WIDTH;
    const Tile qs = {memory}, gs = {memory + ROWS * WIDTH};
    REAL* const turns = memory + 2 * ROWS * WIDTH;
    const Visible visible = {n_queries, n_keys, causal, window, starts, ends};
    const int tiles = (n_queries + ROWS - 1) / ROWS, head = blockIdx.x / tiles;
    const int i0 = (tiles - 1 - (int)blockIdx.x % tiles) * ROWS, row = threadIdx.x / 32 * 16, last = n_queries - 1;
    const i64 kv = (i64)(head / heads * kv_heads + head % heads / (heads / kv_heads)) * n_keys * WIDTH;
    const i64 at = (i64)head * n_queries;
    const float unit = (float)scale * LOG2E;
    const Range all = visible.keys(i0, min(i0 + ROWS, n_queries) - 1);
    const Range whole = {visible.keys(min(i0 + row + 15, last)).lo, visible.keys(min(i0 + row, last)).hi};
    const int start = all.lo / STEP * STEP, steps = all.hi > start ? (all.hi - start + STEP - 1) / STEP : 0;
    float sum[1][WIDTH / 8][4] = {}, total[2], mean[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = min(i0 + row + LANE / 4 + 8 * h, last);
        total[h] = binary(lse[at + i]), mean[h] = delta[at + i];
    }
    qs.fill<ROWS>(q + at * WIDTH, i0, n_queries);
    gs.fill<ROWS>(g + at * WIDTH, i0, n_queries);
    for (int step = -1; step < steps; step++) {
        const int next = step + 1;
        if (next < steps) {
            const Tile ks = {turns + next % 2 * 2 * PART}, vs = {turns + next % 2 * 2 * PART + PART};
            ks.fill<STEP>(k + kv, start + next * STEP, n_keys);
            vs.fill<STEP>(v + kv, start + next * STEP, n_keys);
        }
        copies_end_group();
        if (step >= 0) {
            const int j0 = start + step * STEP;
            const Tile ks = {turns + step % 2 * 2 * PART}, vs = {turns + step % 2 * 2 * PART + PART};
            float s[1][STEP / 8][4], change[1][STEP / 8][4];
            scores<1, STEP>(s, qs, row, ks);
            scores<1, STEP>(change, gs, row, vs);
            const bool edge = j0 < whole.lo || j0 + STEP > whole.hi;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Range seen = {0, 0};
                if (edge) seen = visible.keys(min(i0 + row + LANE / 4 + 8 * h, last));
#pragma unroll
                for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        const int j = j0 + 8 * n + LANE % 4 * 2 + c;
                        float& x = change[0][n][2 * h + c];
                        const bool sees = !edge || (seen.lo <= j && j < seen.hi);
                        x = sees ? exp2_of(s[0][n][2 * h + c] * unit - total[h]) * (x - mean[h]) : 0.0f;
                    }
            }
            accumulate<1, STEP>(sum, change, ks);
        }
        // The next tile is here, and nobody reads this one any more.
        copies_wait<0>();
        __syncthreads();
    }
    store(out_q + at * WIDTH, sum[0], i0 + row, n_queries, (float)scale, (float)scale);
}
