// Attention over listed blocks of keys, and inside the windows of a grid.
//
// Both say for each query which keys it sees, as a list, and for each key which queries see it; the score of a pair
// is a rule. What is done along a list is the same. A warp owns a row and takes 32 rows of the other side at a time,
// a lane for each:
//     forward, a warp for each query     S_j = score(q . k_j), P_j = exp(S_j - top), o = o exp(old top - top) + P_j v_j
//     kept                               top, and inverse = 1 / sum_j P_j: a log-sum-exp would round large scores
//     dq, a warp for each query          dS_j = P_j (g . v_j - delta), delta = o . g;   dq = scale sum_j dS_j k_j
//     dk and dv, a warp for each key     dk = scale sum_i dS_i q_i,   dv = sum_i P_i g_i
//     dbias, a thread for each place     sum of dS over a part of the windows, which the launcher sums
// The 32 scores are a lane's own; then their weights go round by shuffles, and lane l sums columns l, l + 32, ...
// Every sum has a fixed order.
//
// Lists of blocks: entry t of a list is row t % size of its block t / size. The launcher transposes them for the keys.
// A window has the same cells as queries and as keys.
//
// The launcher defines WIDTH, at least d and dv: a multiple of 32.
//
// variant: float32 WIDTH=32
// variant: float32 WIDTH=256
// variant: float64 WIDTH=128
// variant: float16 WIDTH=64
#include "common.cuh"

#define NOTHING (-(SUM)INFINITE)
constexpr int OWN = WIDTH / 32;

// One head: its rows of q, k and v, and the number of its first query among all.
struct Head {
    const REAL *q, *k, *v;
    i64 queries;
    int d, dv;

    __device__ Head(
        const REAL* q, const REAL* k, const REAL* v, i64 own, i64 kv, int n_queries, int n_keys, int d, int dv)
        : q(q + own * n_queries * d),
          k(k + kv * n_keys * d),
          v(v + kv * n_keys * dv),
          queries(own * n_queries),
          d(d),
          dv(dv) {}
};

// What the backward kernels know of the queries.
struct Kept {
    const REAL* g;
    const SUM *top, *inverse, *delta;
};

// Always in the same order, so that equal rows give equal bits.
__device__ __forceinline__ SUM dot(const REAL* a, const REAL* b, int n) {
    SUM sum = 0;
    for (int e = 0; e < n; e++) sum += (SUM)a[e] * (SUM)b[e];
    return sum;
}

// sum += weight of lane u times the row that lane u names, for the first `count` lanes. Row -1: none.
__device__ __forceinline__ void gather(SUM (&sum)[OWN], SUM weight, int row, int count, const REAL* rows, int width) {
    const int lane = threadIdx.x % 32;
    for (int u = 0; u < count; u++) {
        const SUM w = __shfl_sync(0xffffffffu, weight, u);
        const int r = __shfl_sync(0xffffffffu, row, u);
        // A row that is not seen adds nothing, even if it is not a number.
        if (r < 0) continue;
        for (int c = 0; c < OWN; c++)
            if (lane + 32 * c < width) sum[c] += w * (SUM)rows[(i64)r * width + lane + 32 * c];
    }
}

__device__ __forceinline__ void store(REAL* row, const SUM (&sum)[OWN], SUM factor, int width) {
    const int lane = threadIdx.x % 32;
    for (int c = 0; c < OWN; c++)
        if (lane + 32 * c < width) row[lane + 32 * c] = (REAL)(sum[c] * factor);
}

template <typename List, typename Rule>
__device__ void attend(const Head& at, const List& list, const Rule& rule, int i, REAL* o, SUM* top, SUM* inverse) {
    const int lane = threadIdx.x % 32;
    SUM out[OWN] = {}, best = NOTHING, sum = 0;
    for (int t = 0; t < list.length; t += 32) {
        int j = t + lane < list.length ? list.at(t + lane) : -1;
        const SUM s = j < 0 ? NOTHING : rule.score(i, j, dot(at.q + (i64)i * at.d, at.k + (i64)j * at.d, at.d));
        if (s == NOTHING) j = -1;
        const SUM most = warp_max(s), before = best;
        // A NaN stays.
        best = most > best || most != most ? most : best;
        // A row that has seen nothing yet: exp(-inf - 0) = 0.
        const SUM shift = best == NOTHING ? (SUM)0 : best, shrink = exp(before - shift), weight = exp(s - shift);
        sum = sum * shrink + weight;
        for (int c = 0; c < OWN; c++) out[c] *= shrink;
        gather(out, weight, j, min(32, list.length - t), at.v, at.dv);
    }
    const SUM total = warp_sum(sum), factor = total == 0 ? (SUM)0 : 1 / total;
    const i64 row = at.queries + i;
    store(o + row * at.dv, out, factor, at.dv);
    if (lane == 0) top[row] = best, inverse[row] = factor;
}

// P and dS of one pair. False: it is not seen.
template <typename Rule>
__device__ __forceinline__ bool pair(
    const Head& at, const Rule& rule, const Kept& kept, int i, int j, SUM delta, SUM* weight, SUM* change) {
    const SUM s = rule.score(i, j, dot(at.q + (i64)i * at.d, at.k + (i64)j * at.d, at.d));
    if (s == NOTHING) return false;
    const i64 row = at.queries + i;
    *weight = exp(s - kept.top[row]) * kept.inverse[row];
    *change = *weight * (dot(kept.g + row * at.dv, at.v + (i64)j * at.dv, at.dv) - delta);
    return true;
}

template <typename List, typename Rule>
__device__ void query_gradient(
    const Head& at, const List& list, const Rule& rule, const Kept& kept, const REAL* o, int i, REAL* dq, SUM* delta) {
    const int lane = threadIdx.x % 32;
    const i64 row = at.queries + i;
    // As `pair` sums g . v, so that dS is exactly 0 where a query sees one key only.
    const SUM mean = dot(kept.g + row * at.dv, o + row * at.dv, at.dv);
    SUM sum[OWN] = {};
    for (int t = 0; t < list.length; t += 32) {
        int j = t + lane < list.length ? list.at(t + lane) : -1;
        SUM weight = 0, change = 0;
        if (j >= 0 && !pair(at, rule, kept, i, j, mean, &weight, &change)) j = -1;
        gather(sum, change, j, min(32, list.length - t), at.k, at.d);
    }
    store(dq + row * at.d, sum, rule.scale, at.d);
    if (lane == 0) delta[row] = mean;
}

// Adds what the queries of one head give to key j.
template <typename List, typename Rule>
__device__ void key_gradient(
    const Head& at, const List& list, const Rule& rule, const Kept& kept, int j, SUM (&sum_k)[OWN], SUM (&sum_v)[OWN]) {
    const int lane = threadIdx.x % 32;
    for (int t = 0; t < list.length; t += 32) {
        int i = t + lane < list.length ? list.at(t + lane) : -1;
        SUM weight = 0, change = 0;
        if (i >= 0 && !pair(at, rule, kept, i, j, kept.delta[at.queries + i], &weight, &change)) i = -1;
        const int count = min(32, list.length - t);
        gather(sum_k, change, i, count, at.q, at.d);
        gather(sum_v, weight, i, count, kept.g + at.queries * at.dv, at.dv);
    }
}

// ---- Listed blocks ----

// The rows of the blocks that list number `at` names; starts (lists + 1,).
struct Blocks {
    const int* listed;
    int size, end, length;

    __device__ Blocks(const i64* starts, const int* blocks, i64 at, int size, int end)
        : listed(blocks + starts[at]), size(size), end(end), length((int)(starts[at + 1] - starts[at]) * size) {}

    __device__ int at(int t) const {
        const int row = listed[t / size] * size + t % size;
        return row < end ? row : -1;
    }
};

// Scores of one head. `mask` may be null; mask_i and mask_j are its strides.
struct Shown {
    SUM scale;
    // A query sees no key further on than this; without the causal rule all.
    int causal, ahead;
    const bool* mask;
    int mask_i, mask_j;

    __device__ SUM score(int i, int j, SUM product) const {
        if (causal && j > i + ahead) return NOTHING;
        if (mask && !mask[(i64)i * mask_i + (i64)j * mask_j]) return NOTHING;
        return scale * product;
    }
};

// pattern_b and pattern_h: strides of a head's pattern, 0 where it is shared.
#define LIST_OF(batch, head, rows, row, size) \
    (((i64)(batch) * pattern_b + (head) * pattern_h) * (((rows) + (size)-1) / (size)) + (row) / (size))
#define HEAD_OF(batch, head)                                                                                  \
    Head(                                                                                                     \
        q, k, v, (i64)(batch) * heads + (head), (i64)(batch) * kv_heads + (head) / (heads / kv_heads), n_queries, \
        n_keys, d, dv)
#define SHOWN_OF(batch, head)                                                                                   \
    Shown {                                                                                                     \
        (SUM) scale, causal, n_keys - n_queries, mask ? mask + (i64)(batch) * mask_b + (i64)(head) * mask_h : mask, \
            mask_i, mask_j                                                                                      \
    }

extern "C" __global__ void __launch_bounds__(128) block_sparse_forward(
    const REAL* q, const REAL* k, const REAL* v, int rows, int heads, int kv_heads, int d, int dv, int n_queries,
    int n_keys, int causal, double scale, const bool* mask, int mask_b, int mask_h, int mask_i, int mask_j,
    int pattern_b, int pattern_h, int block_q, int block_k, const i64* starts, const int* blocks, REAL* o, SUM* top,
    SUM* inverse) {
    const i64 row = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    const int i = row % n_queries, h = row / n_queries % heads, b = row / n_queries / heads;
    const Blocks list(starts, blocks, LIST_OF(b, h, n_queries, i, block_q), block_k, n_keys);
    attend(HEAD_OF(b, h), list, SHOWN_OF(b, h), i, o, top, inverse);
}

extern "C" __global__ void __launch_bounds__(128) block_sparse_queries(
    const REAL* q, const REAL* k, const REAL* v, int rows, int heads, int kv_heads, int d, int dv, int n_queries,
    int n_keys, int causal, double scale, const bool* mask, int mask_b, int mask_h, int mask_i, int mask_j,
    int pattern_b, int pattern_h, int block_q, int block_k, const i64* starts, const int* blocks, const REAL* o,
    const REAL* g, const SUM* top, const SUM* inverse, REAL* dq, SUM* delta) {
    const i64 row = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    const int i = row % n_queries, h = row / n_queries % heads, b = row / n_queries / heads;
    const Blocks list(starts, blocks, LIST_OF(b, h, n_queries, i, block_q), block_k, n_keys);
    query_gradient(HEAD_OF(b, h), list, SHOWN_OF(b, h), Kept{g, top, inverse, delta}, o, i, dq, delta);
}

// The lists are those of the blocks of keys: which blocks of queries see them. rows: the keys.
extern "C" __global__ void __launch_bounds__(128) block_sparse_keys(
    const REAL* q, const REAL* k, const REAL* v, int rows, int heads, int kv_heads, int d, int dv, int n_queries,
    int n_keys, int causal, double scale, const bool* mask, int mask_b, int mask_h, int mask_i, int mask_j,
    int pattern_b, int pattern_h, int block_q, int block_k, const i64* starts, const int* blocks, const REAL* g,
    const SUM* top, const SUM* inverse, const SUM* delta, REAL* dk, REAL* out_v) {
    const i64 row = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    const int j = row % n_keys, b = row / n_keys / kv_heads, group = heads / kv_heads;
    const int first = row / n_keys % kv_heads * group;
    SUM sum_k[OWN] = {}, sum_v[OWN] = {};
    for (int h = first; h < first + group; h++) {
        const Blocks list(starts, blocks, LIST_OF(b, h, n_keys, j, block_k), block_q, n_queries);
        key_gradient(HEAD_OF(b, h), list, SHOWN_OF(b, h), Kept{g, top, inverse, delta}, j, sum_k, sum_v);
    }
    store(dk + row * d, sum_k, (SUM)scale, d);
    store(out_v + row * dv, sum_v, (SUM)1, dv);
}

// ---- Windows of a grid ----

// The grid, and its windows: the first has `above` rows and `left` columns outside.
struct Grid {
    int rows, columns, height, width, above, left;

    // The place of a cell in its window.
    __device__ int place(int cell) const {
        return (cell / columns + above) % height * width + (cell % columns + left) % width;
    }
    // The cell of a place in window (down, across), or -1: outside.
    __device__ int cell(int down, int across, int place) const {
        const int r = down * height - above + place / width, c = across * width - left + place % width;
        return r < 0 || r >= rows || c < 0 || c >= columns ? -1 : r * columns + c;
    }
};

// The cells of the window that a cell lies in.
struct Window {
    int columns, top, left, width, length;

    __device__ Window(const Grid& grid, int cell) : columns(grid.columns) {
        const int r = (cell / columns + grid.above) / grid.height * grid.height - grid.above;
        const int c = (cell % columns + grid.left) / grid.width * grid.width - grid.left;
        top = max(r, 0), left = max(c, 0);
        width = min(c + grid.width, columns) - left;
        length = (min(r + grid.height, grid.rows) - top) * width;
    }

    __device__ int at(int t) const { return (top + t / width) * columns + left + t % width; }
};

// Scores of one head. `bias` may be null.
struct Biased {
    SUM scale;
    const REAL* bias;
    Grid grid;

    __device__ SUM score(int i, int j, SUM product) const {
        const SUM s = scale * product;
        return bias ? s + (SUM)bias[(i64)grid.place(i) * grid.height * grid.width + grid.place(j)] : s;
    }
};

#define GRID \
    { rows, columns, height, width, above, left }
#define BIASED_OF(head) \
    Biased { (SUM) scale, bias ? bias + (i64)(head) * height * width * height * width : bias, grid }

extern "C" __global__ void __launch_bounds__(128) window_forward(
    const REAL* q, const REAL* k, const REAL* v, int all, int heads, int d, int dv, int rows, int columns, int height,
    int width, int above, int left, double scale, const REAL* bias, REAL* o, SUM* top, SUM* inverse) {
    const i64 row = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= all) return;
    const Grid grid = GRID;
    const int n = rows * columns, i = row % n;
    const Head at(q, k, v, row / n, row / n, n, n, d, dv);
    attend(at, Window(grid, i), BIASED_OF(row / n % heads), i, o, top, inverse);
}

extern "C" __global__ void __launch_bounds__(128) window_queries(
    const REAL* q, const REAL* k, const REAL* v, int all, int heads, int d, int dv, int rows, int columns, int height,
    int width, int above, int left, double scale, const REAL* bias, const REAL* o, const REAL* g, const SUM* top,
    const SUM* inverse, REAL* dq, SUM* delta) {
    const i64 row = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= all) return;
    const Grid grid = GRID;
    const int n = rows * columns, i = row % n;
    const Head at(q, k, v, row / n, row / n, n, n, d, dv);
    const Kept kept{g, top, inverse, delta};
    query_gradient(at, Window(grid, i), BIASED_OF(row / n % heads), kept, o, i, dq, delta);
}

extern "C" __global__ void __launch_bounds__(128) window_keys(
    const REAL* q, const REAL* k, const REAL* v, int all, int heads, int d, int dv, int rows, int columns, int height,
    int width, int above, int left, double scale, const REAL* bias, const REAL* g, const SUM* top, const SUM* inverse,
    const SUM* delta, REAL* dk, REAL* out_v) {
    const i64 row = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= all) return;
    const Grid grid = GRID;
    const int n = rows * columns, j = row % n;
    const Head at(q, k, v, row / n, row / n, n, n, d, dv);
    const Kept kept{g, top, inverse, delta};
    SUM sum_k[OWN] = {}, sum_v[OWN] = {};
    key_gradient(at, Window(grid, j), BIASED_OF(row / n % heads), kept, j, sum_k, sum_v);
    store(dk + row * d, sum_k, (SUM)scale, d);
    store(out_v + row * dv, sum_v, (SUM)1, dv);
}

// partial (parts, H, n, n): the sum of dS over the part's windows of all `images`. Blocks go over the pairs first.
extern "C" __global__ void __launch_bounds__(128) window_bias(
    const REAL* q, const REAL* k, const REAL* v, int all, int heads, int d, int dv, int rows, int columns, int height,
    int width, int above, int left, double scale, const REAL* bias, const REAL* g, const SUM* top, const SUM* inverse,
    const SUM* delta, int images, int parts, SUM* partial) {
    const Grid grid = GRID;
    const i64 places = (i64)height * width, pairs = heads * places * places;
    const int tiles = gridDim.x / parts, part = blockIdx.x / tiles;
    const i64 own = (i64)(blockIdx.x % tiles) * 128 + threadIdx.x;
    if (own >= pairs) return;
    const int h = own / (places * places), from = own / places % places, to = own % places;
    const int n = rows * columns;
    const int down = (above + rows + height - 1) / height, across = (left + columns + width - 1) / width;
    const i64 windows = (i64)images * down * across;
    const Kept kept{g, top, inverse, delta};
    const Biased rule = BIASED_OF(h);
    SUM sum = 0;
    for (i64 w = windows * part / parts; w < windows * (part + 1) / parts; w++) {
        const int y = w / across % down, x = w % across;
        const int i = grid.cell(y, x, from), j = grid.cell(y, x, to);
        if (i < 0 || j < 0) continue;
        const i64 head = w / across / down * heads + h;
        const Head at(q, k, v, head, head, n, n, d, dv);
        SUM weight, change;
        if (pair(at, rule, kept, i, j, delta[at.queries + i], &weight, &change)) sum += change;
    }
    partial[part * pairs + own] = sum;
}
