// Attention of one query for each head over a long cache, which is cut into parts; the parts are merged.
//
//     part s     o_s = sum_j exp(S_j - lse_s) v_j,   lse_s = log sum_j exp(S_j)       keys j of the part
//     merged     lse = log sum_s exp(lse_s),         o = sum_s exp(lse_s - lse) o_s   always in the order of the parts
//
// A block of 128 threads owns one part of one query head. It has 16 groups of 8 lanes, and a group takes a key at a
// time, KEYS of them in flight: each lane holds an eighth of the query and loads 16 bytes of the key where the row
// allows it, so that a warp reads whole lines. Each group keeps its own largest score, sum and output; they are merged
// at the end. Query heads that share keys are neighbouring blocks: the second one finds them in the cache of the card.
//
// The launcher defines WIDTH (at least d and dv, a multiple of 64) and PIECE, the elements that a load takes: 1, or as
// many as 16 bytes hold if d and dv are multiples of that.
//
// variant: float32 WIDTH=64 PIECE=4
// variant: float64 WIDTH=128 PIECE=1
// variant: float16 WIDTH=128 PIECE=8
#include "common.cuh"
#include "attention_rules.cuh"

// KEYS in flight: as many as fit the registers.
constexpr int GROUPS = 16, KEYS = WIDTH * sizeof(SUM) > 512 ? 2 : 4, OWN = WIDTH / 8;

struct __align__(sizeof(REAL) * PIECE) Piece {
    REAL element[PIECE];
};

// A lane's eighth of a row of `width`: pieces lane, lane + 8, ...; zeros beyond.
__device__ __forceinline__ void load(SUM (&own)[OWN], const REAL* row, int width, bool real) {
    const int lane = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < OWN / PIECE; i++) {
        const int at = (lane + 8 * i) * PIECE;
        Piece piece;
        if (real && at < width) piece = *reinterpret_cast<const Piece*>(row + at);
#pragma unroll
        for (int e = 0; e < PIECE; e++) own[i * PIECE + e] = real && at < width ? (SUM)piece.element[e] : (SUM)0;
    }
}

// exp(x - top), where nothing has been seen 0.
__device__ __forceinline__ SUM share(SUM x, SUM top) { return x == NOTHING ? (SUM)0 : exp(x - top); }

// part_o (B H, parts, dv) and part_lse (B H, parts).
extern "C" __global__ void __launch_bounds__(128) attention_decode(
    const REAL* q, const REAL* k, const REAL* v, int heads, int kv_heads, int d, int dv, int n_queries, int n_keys,
    int causal, int window, const int* starts, const int* ends, double scale, double softcap, const REAL* slopes,
    const REAL* bias, int bias_b, int bias_h, int bias_i, int bias_j, const bool* mask, int mask_b, int mask_h,
    int mask_i, int mask_j, int parts, SUM* part_o, SUM* part_lse) {
    __shared__ SUM outs[GROUPS][WIDTH], tops[GROUPS], sums[GROUPS];
    const Problem p = PROBLEM;
    const int index = blockIdx.x % (gridDim.x / parts), part = blockIdx.x / (gridDim.x / parts);
    const int group = threadIdx.x / 8, lane = threadIdx.x % 8;
    const Head at(p, index / heads, index % heads);
    const Range all = p.visible.keys(0);
    const int length = max(all.hi - all.lo, 0), size = (length + parts - 1) / parts;
    const int first = all.lo + part * size, end = min(first + size, all.hi);
    SUM query[OWN], out[OWN], top = NOTHING, sum = 0;
    load(query, q + at.rows_q, d, true);
    for (int e = 0; e < OWN; e++) out[e] = 0;
    for (int j0 = first; j0 < end; j0 += GROUPS * KEYS) {
        SUM keys[KEYS][OWN], values[KEYS][OWN], s[KEYS], best = top;
#pragma unroll
        for (int u = 0; u < KEYS; u++) {
            const int j = j0 + GROUPS * u + group;
            load(keys[u], k + at.rows_k + (i64)j * d, d, j < end);
            load(values[u], v + at.rows_v + (i64)j * dv, dv, j < end);
        }
#pragma unroll
        for (int u = 0; u < KEYS; u++) {
            const int j = j0 + GROUPS * u + group;
            SUM product = 0, slope;
            for (int e = 0; e < OWN; e++) product += query[e] * keys[u][e];
            for (int step = 4; step > 0; step /= 2) product += __shfl_xor_sync(0xffffffffu, product, step);
            s[u] = j < end ? score(p, at, 0, j, product, &slope) : NOTHING;
            best = s[u] > best ? s[u] : best;
        }
        const SUM shrink = share(top, best);
        top = best;
        sum *= shrink;
        for (int e = 0; e < OWN; e++) out[e] *= shrink;
#pragma unroll
        for (int u = 0; u < KEYS; u++) {
            const SUM weight = share(s[u], best);
            sum += weight;
            // A key that is not seen adds nothing, even if its value is not a number.
            for (int e = 0; e < OWN; e++) out[e] += s[u] == NOTHING ? (SUM)0 : weight * values[u][e];
        }
    }
    for (int i = 0; i < OWN / PIECE; i++)
        for (int e = 0; e < PIECE; e++) outs[group][(lane + 8 * i) * PIECE + e] = out[i * PIECE + e];
    if (lane == 0) tops[group] = top, sums[group] = sum;
    __syncthreads();
    SUM best = NOTHING, total = 0;
    for (int i = 0; i < GROUPS; i++) best = tops[i] > best ? tops[i] : best;
    for (int i = 0; i < GROUPS; i++) total += sums[i] == 0 ? (SUM)0 : sums[i] * share(tops[i], best);
    const i64 row = (i64)index * parts + part;
    for (int e = threadIdx.x; e < dv; e += 128) {
        SUM merged = 0;
        for (int i = 0; i < GROUPS; i++) merged += sums[i] == 0 ? (SUM)0 : outs[i][e] * share(tops[i], best);
        part_o[row * dv + e] = total == 0 ? (SUM)0 : merged / total;
    }
    if (threadIdx.x == 0) part_lse[row] = total == 0 ? NOTHING : best + log(total);
}

// A block for each query head.
extern "C" __global__ void __launch_bounds__(128) attention_merge(
    const SUM* part_o, const SUM* part_lse, REAL* o, SUM* lse, int parts, int dv) {
    part_o += (i64)blockIdx.x * parts * dv;
    part_lse += (i64)blockIdx.x * parts;
    SUM best = NOTHING, total = 0;
    for (int s = 0; s < parts; s++) best = part_lse[s] > best ? part_lse[s] : best;
    for (int s = 0; s < parts; s++) total += share(part_lse[s], best);
    for (int e = threadIdx.x; e < dv; e += 128) {
        SUM merged = 0;
        for (int s = 0; s < parts; s++) merged += share(part_lse[s], best) * part_o[s * dv + e];
        o[(i64)blockIdx.x * dv + e] = (REAL)(total == 0 ? (SUM)0 : merged / total);
    }
    if (threadIdx.x == 0) lse[blockIdx.x] = total == 0 ? NOTHING : best + log(total);
}
