// A matrix of memory S (dk x dv) for each head, token by token: the gated scan, and with DELTA the delta rule.
//
//   S' = diag(exp(g_t)) S        u = v_t, with DELTA u = beta_t (v_t - k_t S')
//   S  = S' + k_t^T u            o_t = q_t S
//
// Columns of S do not know of each other: a block of 8 warps has 32 columns of one head, lane l column l, and
// warp p has ROWS rows of them in registers, so S never leaves the chip. Products with q_t and k_t are sums over
// the rows of a thread, then over the 8 warps through shared memory. The tokens come in tiles of CHUNK, which
// all threads load together.
//
//   matrix_scan            also keeps S before every tile
//   matrix_scan_backward   tile by tile from the last: computes the states within the tile again from the kept
//                          one, then walks back with dS, the gradient of S, in registers:
//                              dS += q^T do        dq = S do          du = k dS
//                              gated:  dv = du     dk = dS u          dS' = dS
//                              delta:  dv = beta du    dbeta = du (v - k S')    dk = dS u - S' dv
//                                      dS' = dS - k^T dv
//                              dg = the sums over columns of dS' * S'           dS = diag(exp(g)) dS'
//                          Sums over the 32 columns are taken here, over blocks of columns by the launcher.
//
// variant: float16 DELTA=0 ROWS=8 CHUNK=16
// variant: float32 DELTA=0 ROWS=16 CHUNK=16
// variant: float32 DELTA=1 ROWS=8 CHUNK=16
// variant: float64 DELTA=1 ROWS=16 CHUNK=8
#include "common.cuh"

#ifndef ROWS
#define ROWS 8
#define CHUNK 16
#define DELTA 0
#endif
#define WARPS 8
#define COLUMNS 32
#define DEPTH (WARPS * ROWS)

// What a block has in shared memory. The launcher counts on this: 3 CHUNK DEPTH + 2 CHUNK COLUMNS + CHUNK
// + 2 WARPS COLUMNS numbers.
struct Tile {
    SUM q[CHUNK][DEPTH], k[CHUNK][DEPTH], decay[CHUNK][DEPTH];
    SUM v[CHUNK][COLUMNS], go[CHUNK][COLUMNS];
    SUM beta[CHUNK];
    SUM parts[2][WARPS][COLUMNS];
};

struct Sizes {
    int tokens, dk, dv, per_channel;
};

// Tokens from `first` on; zeros, and decays of 1, where there is nothing. go may be null.
__device__ __forceinline__ void load(Tile& tile, const REAL* q, const REAL* k, const REAL* v, const REAL* g,
                                     const REAL* beta, const REAL* go, i64 head, int first, Sizes s) {
    __syncthreads();
    for (int at = threadIdx.x; at < CHUNK * DEPTH; at += WARPS * 32) {
        int i = at / DEPTH, c = at % DEPTH;
        i64 token = head * s.tokens + first + i;
        bool real = first + i < s.tokens && c < s.dk;
        tile.q[i][c] = real ? (SUM)q[token * s.dk + c] : 0;
        tile.k[i][c] = real ? (SUM)k[token * s.dk + c] : 0;
        tile.decay[i][c] = real && g ? exp((SUM)g[s.per_channel ? token * s.dk + c : token]) : 1;
    }
    for (int at = threadIdx.x; at < CHUNK * COLUMNS; at += WARPS * 32) {
        int i = at / COLUMNS, j = blockIdx.y * COLUMNS + at % COLUMNS;
        i64 token = head * s.tokens + first + i;
        bool real = first + i < s.tokens && j < s.dv;
        tile.v[i][at % COLUMNS] = real ? (SUM)v[token * s.dv + j] : 0;
        tile.go[i][at % COLUMNS] = real && go ? (SUM)go[token * s.dv + j] : 0;
    }
    if (threadIdx.x < CHUNK)
        tile.beta[threadIdx.x] =
            beta && first + (int)threadIdx.x < s.tokens ? (SUM)beta[head * s.tokens + first + threadIdx.x] : 1;
    __syncthreads();
}

// The sum over the warps, in every thread. Two places take turns, so that one barrier is enough.
__device__ __forceinline__ SUM over_warps(SUM x, Tile& tile, int& turn) {
    int lane = threadIdx.x % 32;
    tile.parts[turn][threadIdx.x / 32][lane] = x;
    __syncthreads();
    SUM total = 0;
    for (int p = 0; p < WARPS; p++) total += tile.parts[turn][p][lane];
    turn ^= 1;
    return total;
}

// One token: `memory` goes from S before it to S after it. Returns v - k S' (v without DELTA); u is beta times it.
__device__ __forceinline__ SUM step(SUM memory[ROWS], Tile& tile, int i, int& turn) {
    int lane = threadIdx.x % 32, top = threadIdx.x / 32 * ROWS;
    SUM part = 0;
    for (int r = 0; r < ROWS; r++) {
        memory[r] *= tile.decay[i][top + r];
        part += tile.k[i][top + r] * memory[r];
    }
    SUM missing = tile.v[i][lane];
    if (DELTA) missing -= over_warps(part, tile, turn);
    for (int r = 0; r < ROWS; r++) memory[r] += tile.k[i][top + r] * (tile.beta[i] * missing);
    return missing;
}

extern "C" __global__ void __launch_bounds__(256)
    matrix_scan(const REAL* q, const REAL* k, const REAL* v, const REAL* g, const REAL* beta, const REAL* state,
                REAL* o, REAL* last, SUM* kept, int tokens, int dk, int dv, int per_channel) {
    DYNAMIC_SHARED(Tile, tiles);
    Tile& tile = tiles[0];
    int lane = threadIdx.x % 32, top = threadIdx.x / 32 * ROWS, j = blockIdx.y * COLUMNS + lane, turn = 0;
    i64 head = blockIdx.x, chunks = (tokens + CHUNK - 1) / CHUNK;
    SUM memory[ROWS];
    for (int r = 0; r < ROWS; r++) {
        bool real = state && top + r < dk && j < dv;
        memory[r] = real ? (SUM)state[(head * dk + top + r) * dv + j] : 0;
    }
    for (int first = 0; first < tokens; first += CHUNK) {
        for (int r = 0; r < ROWS; r++)
            if (top + r < dk && j < dv) kept[((head * chunks + first / CHUNK) * dk + top + r) * dv + j] = memory[r];
        load(tile, q, k, v, g, beta, nullptr, head, first, {tokens, dk, dv, per_channel});
        for (int i = 0; i < CHUNK && first + i < tokens; i++) {
            step(memory, tile, i, turn);
            SUM part = 0;
            for (int r = 0; r < ROWS; r++) part += tile.q[i][top + r] * memory[r];
            part = over_warps(part, tile, turn);
            if (top == 0 && j < dv) o[(head * tokens + first + i) * dv + j] = (REAL)part;
        }
    }
    for (int r = 0; r < ROWS; r++)
        if (top + r < dk && j < dv) last[(head * dk + top + r) * dv + j] = (REAL)memory[r];
}

// dq, dk, dg are (blocks of columns, heads, tokens, dk), dbeta is (blocks of columns, heads, tokens).
extern "C" __global__ void __launch_bounds__(256)
    matrix_scan_backward(const REAL* go, const REAL* g_last, const REAL* q, const REAL* k, const REAL* v,
                         const REAL* g, const REAL* beta, const SUM* kept, SUM* dq, SUM* dk_, SUM* dg, SUM* dbeta,
                         REAL* dv_, REAL* dstate, int tokens, int dk, int dv, int per_channel) {
    DYNAMIC_SHARED(Tile, tiles);
    Tile& tile = tiles[0];
    int lane = threadIdx.x % 32, top = threadIdx.x / 32 * ROWS, j = blockIdx.y * COLUMNS + lane, turn = 0;
    i64 head = blockIdx.x, chunks = (tokens + CHUNK - 1) / CHUNK;
    // dS, and S before each token of the tile (in local memory, which the cache holds).
    SUM grad[ROWS], before[CHUNK][ROWS], missing[CHUNK];
    for (int r = 0; r < ROWS; r++) {
        bool real = g_last && top + r < dk && j < dv;
        grad[r] = real ? (SUM)g_last[(head * dk + top + r) * dv + j] : 0;
    }
    for (int first = (int)(chunks - 1) * CHUNK; first >= 0; first -= CHUNK) {
        load(tile, q, k, v, g, beta, go, head, first, {tokens, dk, dv, per_channel});
        int count = min(CHUNK, tokens - first);
        SUM memory[ROWS];
        for (int r = 0; r < ROWS; r++) {
            bool real = top + r < dk && j < dv;
            memory[r] = real ? kept[((head * chunks + first / CHUNK) * dk + top + r) * dv + j] : 0;
        }
        for (int i = 0; i < count; i++) {
            for (int r = 0; r < ROWS; r++) before[i][r] = memory[r];
            missing[i] = step(memory, tile, i, turn);
        }
        for (int i = count - 1; i >= 0; i--) {
            i64 token = head * tokens + first + i, at = ((i64)blockIdx.y * gridDim.x + head) * tokens + first + i;
            SUM up = tile.go[i][lane], u = tile.beta[i] * missing[i], part = 0;
            for (int r = 0; r < ROWS; r++) {
                grad[r] += tile.q[i][top + r] * up;
                part += tile.k[i][top + r] * grad[r];
            }
            SUM du = over_warps(part, tile, turn), dv_here = tile.beta[i] * du;
            if (top == 0 && j < dv) dv_[token * dv + j] = (REAL)dv_here;
            if (DELTA && top == 0) {
                SUM total = warp_sum(du * missing[i]);
                if (lane == 0) dbeta[at] = total;
            }
            for (int r = 0; r < ROWS; r++) {
                SUM key = tile.k[i][top + r], decay = tile.decay[i][top + r], faded = decay * before[i][r];
                SUM of_q = (faded + key * u) * up, of_k = grad[r] * u;
                if (DELTA) {
                    of_k -= faded * dv_here;
                    grad[r] -= key * dv_here;
                }
                SUM of_g = warp_sum(grad[r] * faded);
                of_q = warp_sum(of_q);
                of_k = warp_sum(of_k);
                if (lane == 0 && top + r < dk) {
                    dq[at * dk + top + r] = of_q;
                    dk_[at * dk + top + r] = of_k;
                    if (g) dg[at * dk + top + r] = of_g;
                }
                grad[r] *= decay;
            }
        }
    }
    if (!dstate) return;
    for (int r = 0; r < ROWS; r++)
        if (top + r < dk && j < dv) dstate[(head * dk + top + r) * dv + j] = (REAL)grad[r];
}
