// Softmax attention for every architecture and type: nothing of size Nq x Nk is ever stored.
//
// Forward. A block of 256 threads owns ROWS queries of one head and walks over the keys in tiles of COLUMNS.
//     S = q k^T, P = exp(S - top), o = o exp(old top - top) + P v, sum likewise; top = largest score of a row so far
// Backward. P is computed again from the kept log-sum-exp; with delta = sum(o g) - (cotangent of the log-sum-exp):
//     dS = P (g v^T - delta),   dv = P^T g,   dk = (dS s)^T q,   dq = (dS s) k,   s = derivative of S by q k^T
// One kernel owns keys and walks over queries (dk, dv; all query heads of a key head), one owns queries and walks
// over keys (dq), one owns pairs and walks over what the bias is repeated over (dbias): every sum has a fixed order.
//
// Threads stand in 16 rows (y) of 16 (x). In a tile, thread (y, x) computes rows y, y + 16, ... and columns
// x, x + 16, ...: the 16 threads that share a row are half a warp and reduce it by shuffles.
//
// The launcher defines WIDTH (at least d and dv), ROWS and COLUMNS (forward) and SIDE (both, backward): multiples
// of 16, as large as 48 KB of shared memory allow.
//
// variant: float32 WIDTH=32 ROWS=64 COLUMNS=64 SIDE=32
// variant: float32 WIDTH=128 ROWS=32 COLUMNS=32 SIDE=16
// variant: float64 WIDTH=80 ROWS=32 COLUMNS=16 SIDE=16
// variant: float16 WIDTH=64 ROWS=64 COLUMNS=32 SIDE=32
#include "common.cuh"
#include "attention_rules.cuh"

// tile[r][c] = rows[first + r][c], and zeros beyond n rows of `width`.
template <int R>
__device__ void load(SUM (&tile)[R][WIDTH + 1], const REAL* rows, int first, int n, int width) {
    for (int at = threadIdx.x; at < R * WIDTH; at += 256) {
        const int r = at / WIDTH, c = at % WIDTH;
        tile[r][c] = first + r < n && c < width ? (SUM)rows[(i64)(first + r) * width + c] : (SUM)0;
    }
}

// rows[first + ...] = value, of a tile that lies in the registers of the threads.
template <int R>
__device__ void store(REAL* rows, SUM (&value)[R][WIDTH / 16], int first, int n, int width) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int r = 0; r < R; r++)
        for (int c = 0; c < WIDTH / 16; c++) {
            const int i = first + y + 16 * r, e = x + 16 * c;
            if (i < n && e < width) rows[(i64)i * width + e] = (REAL)value[r][c];
        }
}

// s = a b^T over `width` columns.
template <int R, int C>
__device__ void products(
    SUM (&s)[R / 16][C / 16], SUM (&a)[R][WIDTH + 1], SUM (&b)[C][WIDTH + 1], int width) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int r = 0; r < R / 16; r++)
        for (int c = 0; c < C / 16; c++) s[r][c] = 0;
#pragma unroll 4
    for (int e = 0; e < width; e++)
        for (int r = 0; r < R / 16; r++)
            for (int c = 0; c < C / 16; c++) s[r][c] += a[y + 16 * r][e] * b[x + 16 * c][e];
}

// sum += a b, or with TURNED a^T b.
template <bool TURNED, int R, int A, int N, int B>
__device__ void accumulate(SUM (&sum)[R][WIDTH / 16], SUM (&a)[A][N], SUM (&b)[B][WIDTH + 1]) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 4
    for (int e = 0; e < B; e++)
        for (int r = 0; r < R; r++)
            for (int c = 0; c < WIDTH / 16; c++)
                sum[r][c] += (TURNED ? a[e][y + 16 * r] : a[y + 16 * r][e]) * b[e][x + 16 * c];
}

__device__ SUM largest_of_16(SUM value) {
    for (int step = 8; step > 0; step /= 2) {
        const SUM other = __shfl_xor_sync(0xffffffffu, value, step);
        value = other > value ? other : value;
    }
    return value;
}

__device__ SUM sum_of_16(SUM value) {
    for (int step = 8; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

extern "C" __global__ void __launch_bounds__(256, 2) attention_forward(
    const REAL* q, const REAL* k, const REAL* v, int heads, int kv_heads, int d, int dv, int n_queries, int n_keys,
    int causal, int window, const int* starts, const int* ends, double scale, double softcap, const REAL* slopes,
    const REAL* bias, int bias_b, int bias_h, int bias_i, int bias_j, const bool* mask, int mask_b, int mask_h,
    int mask_i, int mask_j, REAL* o, SUM* lse) {
    __shared__ SUM qs[ROWS][WIDTH + 1], kv[COLUMNS][WIDTH + 1], weights[ROWS][COLUMNS + 1];
    constexpr int R = ROWS / 16, C = COLUMNS / 16, E = WIDTH / 16;
    const Problem p = PROBLEM;
    const int tiles = (n_queries + ROWS - 1) / ROWS, index = blockIdx.x / tiles;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    // Under a causal rule the last queries have the most keys: they start first.
    const int i0 = (tiles - 1 - (int)blockIdx.x % tiles) * ROWS;
    const Head at(p, index / heads, index % heads);
    SUM top[R], sum[R], out[R][E];
    for (int r = 0; r < R; r++) {
        top[r] = NOTHING, sum[r] = 0;
        for (int c = 0; c < E; c++) out[r][c] = 0;
    }
    load(qs, q + at.rows_q, i0, n_queries, d);
    const Range all = p.visible.keys(i0, min(i0 + ROWS, n_queries) - 1);
    for (int j0 = all.lo / COLUMNS * COLUMNS; j0 < all.hi; j0 += COLUMNS) {
        SUM s[R][C];
        __syncthreads();
        load(kv, k + at.rows_k, j0, n_keys, d);
        __syncthreads();
        products<ROWS, COLUMNS>(s, qs, kv, d);
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int i = min(i0 + y + 16 * r, n_queries - 1);
            const Range seen = p.visible.keys(i);
            SUM best = top[r], slope;
            for (int c = 0; c < C; c++) {
                const int j = j0 + x + 16 * c;
                s[r][c] = seen.lo <= j && j < seen.hi ? score(p, at, i, j, s[r][c], &slope) : NOTHING;
                best = s[r][c] > best ? s[r][c] : best;
            }
            best = largest_of_16(best);
            // A row that has seen nothing yet: exp(-inf - 0) = 0.
            const SUM shift = best == NOTHING ? (SUM)0 : best, shrink = exp(top[r] - shift);
            top[r] = best;
            sum[r] *= shrink;
            for (int c = 0; c < C; c++) {
                const SUM weight = exp(s[r][c] - shift);
                sum[r] += weight;
                weights[y + 16 * r][x + 16 * c] = weight;
            }
            for (int c = 0; c < E; c++) out[r][c] *= shrink;
        }
        __syncthreads();
        load(kv, v + at.rows_v, j0, n_keys, dv);
        __syncthreads();
        accumulate<false>(out, weights, kv);
    }
    for (int r = 0; r < R; r++) {
        const int i = i0 + y + 16 * r;
        const SUM total = sum_of_16(sum[r]);
        for (int c = 0; c < E; c++) out[r][c] = total == 0 ? (SUM)0 : out[r][c] / total;
        if (x == 0 && i < n_queries) lse[at.queries + i] = total == 0 ? NOTHING : top[r] + log(total);
    }
    store(o + at.rows_o, out, i0, n_queries, dv);
}

// What a pair gives to the gradients, for a tile of pairs: P, dS and the derivative of S by q.k.
struct Pairs {
    SUM weight[SIDE / 16][SIDE / 16], change[SIDE / 16][SIDE / 16], slope[SIDE / 16][SIDE / 16];

    __device__ Pairs(
        const Problem& p, const Head& at, int i0, int j0, SUM (&q)[SIDE][WIDTH + 1], SUM (&k)[SIDE][WIDTH + 1],
        SUM (&g)[SIDE][WIDTH + 1], SUM (&v)[SIDE][WIDTH + 1], const SUM* lse, const SUM* delta) {
        const int x = threadIdx.x % 16, y = threadIdx.x / 16;
        products<SIDE, SIDE>(weight, q, k, p.d);
        products<SIDE, SIDE>(change, g, v, p.dv);
        for (int r = 0; r < SIDE / 16; r++) {
            const int i = i0 + y + 16 * r;
            const bool inside = i < p.visible.n_queries;
            const Range seen = inside ? p.visible.keys(i) : Range{0, 0};
            const SUM total = inside ? lse[at.queries + i] : (SUM)0, mean = inside ? delta[at.queries + i] : (SUM)0;
            for (int c = 0; c < SIDE / 16; c++) {
                const int j = j0 + x + 16 * c;
                SUM s = NOTHING;
                slope[r][c] = 0;
                if (seen.lo <= j && j < seen.hi) s = score(p, at, i, j, weight[r][c], &slope[r][c]);
                weight[r][c] = s == NOTHING ? (SUM)0 : exp(s - total);
                change[r][c] = s == NOTHING ? (SUM)0 : weight[r][c] * (change[r][c] - mean);
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(256) attention_keys(
    const REAL* q, const REAL* k, const REAL* v, int heads, int kv_heads, int d, int dv, int n_queries, int n_keys,
    int causal, int window, const int* starts, const int* ends, double scale, double softcap, const REAL* slopes,
    const REAL* bias, int bias_b, int bias_h, int bias_i, int bias_j, const bool* mask, int mask_b, int mask_h,
    int mask_i, int mask_j, const REAL* g, const SUM* lse, const SUM* delta, REAL* out_k, REAL* out_v) {
    __shared__ SUM qs[SIDE][WIDTH + 1], gs[SIDE][WIDTH + 1], ks[SIDE][WIDTH + 1], vs[SIDE][WIDTH + 1];
    __shared__ SUM weights[SIDE][SIDE + 1], changes[SIDE][SIDE + 1];
    const Problem p = PROBLEM;
    const int tiles = (n_keys + SIDE - 1) / SIDE, index = blockIdx.x / tiles, j0 = blockIdx.x % tiles * SIDE;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int group = heads / kv_heads, batch = index / kv_heads, first = index % kv_heads * group;
    const Head own(p, batch, first);
    SUM sum_k[SIDE / 16][WIDTH / 16] = {}, sum_v[SIDE / 16][WIDTH / 16] = {};
    load(ks, k + own.rows_k, j0, n_keys, d);
    load(vs, v + own.rows_v, j0, n_keys, dv);
    const Range all = p.visible.queries(j0, min(j0 + SIDE, n_keys) - 1);
    for (int h = first; h < first + group; h++) {
        const Head at(p, batch, h);
        for (int i0 = all.lo / SIDE * SIDE; i0 < all.hi; i0 += SIDE) {
            __syncthreads();
            load(qs, q + at.rows_q, i0, n_queries, d);
            load(gs, g + at.rows_o, i0, n_queries, dv);
            __syncthreads();
            const Pairs pairs(p, at, i0, j0, qs, ks, gs, vs, lse, delta);
            for (int r = 0; r < SIDE / 16; r++)
                for (int c = 0; c < SIDE / 16; c++) {
                    weights[y + 16 * r][x + 16 * c] = pairs.weight[r][c];
                    changes[y + 16 * r][x + 16 * c] = pairs.change[r][c] * pairs.slope[r][c];
                }
            __syncthreads();
            accumulate<true>(sum_v, weights, gs);
            accumulate<true>(sum_k, changes, qs);
        }
    }
    store(out_k + own.rows_k, sum_k, j0, n_keys, d);
    store(out_v + own.rows_v, sum_v, j0, n_keys, dv);
}

// `far` (may be null) receives sum_j dS |distance| of every query: minus the gradient of its head's slope. Distances
// are large, so what delta is off by matters: the sum of dS shows it, which should be g_lse (null: 0).
extern "C" __global__ void __launch_bounds__(256) attention_queries(
    const REAL* q, const REAL* k, const REAL* v, int heads, int kv_heads, int d, int dv, int n_queries, int n_keys,
    int causal, int window, const int* starts, const int* ends, double scale, double softcap, const REAL* slopes,
    const REAL* bias, int bias_b, int bias_h, int bias_i, int bias_j, const bool* mask, int mask_b, int mask_h,
    int mask_i, int mask_j, const REAL* g, const SUM* lse, const SUM* delta, REAL* out_q, SUM* far,
    const SUM* g_lse) {
    __shared__ SUM qs[SIDE][WIDTH + 1], gs[SIDE][WIDTH + 1], ks[SIDE][WIDTH + 1], vs[SIDE][WIDTH + 1];
    __shared__ SUM changes[SIDE][SIDE + 1];
    const Problem p = PROBLEM;
    const int tiles = (n_queries + SIDE - 1) / SIDE, index = blockIdx.x / tiles;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, i0 = (tiles - 1 - (int)blockIdx.x % tiles) * SIDE;
    const Head at(p, index / heads, index % heads);
    SUM sum[SIDE / 16][WIDTH / 16] = {}, distant[SIDE / 16] = {}, reach[SIDE / 16] = {}, rest[SIDE / 16] = {};
    load(qs, q + at.rows_q, i0, n_queries, d);
    load(gs, g + at.rows_o, i0, n_queries, dv);
    const Range all = p.visible.keys(i0, min(i0 + SIDE, n_queries) - 1);
    for (int j0 = all.lo / SIDE * SIDE; j0 < all.hi; j0 += SIDE) {
        __syncthreads();
        load(ks, k + at.rows_k, j0, n_keys, d);
        load(vs, v + at.rows_v, j0, n_keys, dv);
        __syncthreads();
        const Pairs pairs(p, at, i0, j0, qs, ks, gs, vs, lse, delta);
        for (int r = 0; r < SIDE / 16; r++)
            for (int c = 0; c < SIDE / 16; c++) {
                const int i = i0 + y + 16 * r, j = j0 + x + 16 * c;
                const SUM distance = abs(p.visible.position(i) - j);
                distant[r] += pairs.change[r][c] * distance;
                reach[r] += pairs.weight[r][c] * distance;
                rest[r] += pairs.change[r][c];
                changes[y + 16 * r][x + 16 * c] = pairs.change[r][c] * pairs.slope[r][c];
            }
        __syncthreads();
        accumulate<false>(sum, changes, ks);
    }
    store(out_q + at.rows_q, sum, i0, n_queries, d);
    for (int r = 0; r < SIDE / 16; r++) {
        const int i = i0 + y + 16 * r;
        const SUM total = sum_of_16(distant[r]), mean = sum_of_16(reach[r]), off = sum_of_16(rest[r]);
        if (far && x == 0 && i < n_queries)
            far[at.queries + i] = total - (g_lse ? off - g_lse[at.queries + i] : off) * mean;
    }
}

// The gradient of the bias for every pair, (1 or B, 1 or H, Nq, Nk): summed over the batch entries and heads that
// share the bias (stride 0).
extern "C" __global__ void __launch_bounds__(256) attention_bias(
    const REAL* q, const REAL* k, const REAL* v, int heads, int kv_heads, int d, int dv, int n_queries, int n_keys,
    int causal, int window, const int* starts, const int* ends, double scale, double softcap, const REAL* slopes,
    const REAL* bias, int bias_b, int bias_h, int bias_i, int bias_j, const bool* mask, int mask_b, int mask_h,
    int mask_i, int mask_j, const REAL* g, const SUM* lse, const SUM* delta, int batch, SUM* out_bias) {
    __shared__ SUM qs[SIDE][WIDTH + 1], gs[SIDE][WIDTH + 1], ks[SIDE][WIDTH + 1], vs[SIDE][WIDTH + 1];
    const Problem p = PROBLEM;
    const int rows = (n_queries + SIDE - 1) / SIDE, columns = (n_keys + SIDE - 1) / SIDE;
    const int i0 = blockIdx.x / columns % rows * SIDE, j0 = blockIdx.x % columns * SIDE;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int slice = blockIdx.x / columns / rows, slices = bias_h ? heads : 1;
    const int b0 = bias_b ? slice / slices : 0, b1 = bias_b ? b0 + 1 : batch;
    const int h0 = bias_h ? slice % slices : 0, h1 = bias_h ? h0 + 1 : heads;
    SUM sum[SIDE / 16][SIDE / 16] = {};
    const Range all = p.visible.keys(i0, min(i0 + SIDE, n_queries) - 1);
    const bool any = all.lo < j0 + SIDE && j0 < all.hi;
    for (int b = b0; b < b1 && any; b++)
        for (int h = h0; h < h1; h++) {
            const Head at(p, b, h);
            __syncthreads();
            load(qs, q + at.rows_q, i0, n_queries, d);
            load(gs, g + at.rows_o, i0, n_queries, dv);
            load(ks, k + at.rows_k, j0, n_keys, d);
            load(vs, v + at.rows_v, j0, n_keys, dv);
            __syncthreads();
            const Pairs pairs(p, at, i0, j0, qs, ks, gs, vs, lse, delta);
            for (int r = 0; r < SIDE / 16; r++)
                for (int c = 0; c < SIDE / 16; c++) sum[r][c] += pairs.change[r][c];
        }
    for (int r = 0; r < SIDE / 16; r++)
        for (int c = 0; c < SIDE / 16; c++) {
            const int i = i0 + y + 16 * r, j = j0 + x + 16 * c;
            if (i < n_queries && j < n_keys) out_bias[((i64)slice * n_queries + i) * n_keys + j] = sum[r][c];
        }
}
