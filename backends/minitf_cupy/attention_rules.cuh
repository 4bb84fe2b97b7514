// What all attention kernels share: which pairs are seen, their scores, where the arrays of a head begin.
//
// Which keys a query sees, as far as that is a range: causal, window, packed segments. Masks are not.
//
// Query i stands at position i + (Nk - Nq) among the keys. Both ends of its range grow with i (or stay), so the
// keys that a tile of queries needs go from the range of its first query to the range of its last. The same holds
// for the queries that see a key.
struct Range {
    int lo, hi;
};

struct Visible {
    int n_queries, n_keys;
    int causal;
    // Keys at this distance or further are hidden.
    int window;
    // First position and end of the segment that every position lies in; null: one segment.
    const int *starts, *ends;

    __device__ int position(int query) const { return query + n_keys - n_queries; }

    __device__ Range keys(int query) const {
        const int here = position(query);
        return clip(here - window + 1, causal ? here + 1 : here + window, n_keys, query);
    }

    __device__ Range queries(int key) const {
        const int here = key - (n_keys - n_queries);
        return clip(causal ? here : here - window + 1, here + window, n_queries, key);
    }

    __device__ Range clip(int lo, int hi, int n, int at) const {
        const int first = starts ? starts[at] : 0;
        const int end = starts ? ends[at] : n;
        return {lo > first ? lo : first, hi < end ? hi : end};
    }

    // The keys that some query of first..last sees, and the queries that see some key of first..last.
    __device__ Range keys(int first, int last) const { return {keys(first).lo, keys(last).hi}; }
    __device__ Range queries(int first, int last) const { return {queries(first).lo, queries(last).hi}; }
};

#define NOTHING (-(SUM)INFINITE)

// What a kernel is told. Arrays are contiguous, (B, H or Hkv, N, d or dv).
struct Problem {
    const REAL *q, *k, *v;
    int heads, kv_heads, d, dv;
    Visible visible;
    SUM scale, softcap;
    const REAL* slopes;
    const REAL* bias;
    // Strides along batch, head, query, key; 0 where it is repeated.
    int bias_b, bias_h, bias_i, bias_j;
    const bool* mask;
    int mask_b, mask_h, mask_i, mask_j;
};

// The Problem, from parameters of these names.
#define PROBLEM                                                                                              \
    {                                                                                                        \
        q, k, v, heads, kv_heads, d, dv, {n_queries, n_keys, causal, window, starts, ends}, (SUM)scale,      \
            (SUM)softcap, slopes, bias, bias_b, bias_h, bias_i, bias_j, mask, mask_b, mask_h, mask_i, mask_j \
    }

// One query head: where its arrays begin.
struct Head {
    int batch, head;
    i64 queries, rows_q, rows_k, rows_v, rows_o;

    __device__ Head(const Problem& p, int batch, int head) : batch(batch), head(head) {
        const i64 kv = (i64)batch * p.kv_heads + head / (p.heads / p.kv_heads);
        queries = ((i64)batch * p.heads + head) * p.visible.n_queries;
        rows_q = queries * p.d;
        rows_o = queries * p.dv;
        rows_k = kv * p.visible.n_keys * p.d;
        rows_v = kv * p.visible.n_keys * p.dv;
    }
};

// S of one pair from its q.k; `slope` becomes the derivative. -inf where the mask hides the pair.
__device__ SUM score(const Problem& p, const Head& at, int i, int j, SUM product, SUM* slope) {
    if (p.mask && !p.mask[at.batch * p.mask_b + at.head * p.mask_h + i * p.mask_i + j * p.mask_j]) return NOTHING;
    SUM s = p.scale * product;
    *slope = p.scale;
    if (p.softcap > 0) {
        const SUM t = tanh(s / p.softcap);
        s = p.softcap * t;
        *slope *= 1 - t * t;
    }
    if (p.bias) s += (SUM)p.bias[at.batch * p.bias_b + at.head * p.bias_h + i * p.bias_i + j * p.bias_j];
    if (p.slopes) s -= (SUM)p.slopes[at.head] * abs(p.visible.position(i) - j);
    return s;
}

// delta = sum(o g) - g_lse, a thread for each query: in the order in which a kernel sums g v, so that dS is exactly 0
// where a query sees one key only. g_lse may be null.
extern "C" __global__ void attention_delta(
    const REAL* o, const REAL* g, const SUM* g_lse, SUM* delta, int rows, int width) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    SUM sum = 0;
    for (int e = 0; e < width; e++) sum += (SUM)g[(i64)row * width + e] * (SUM)o[(i64)row * width + e];
    delta[row] = g_lse ? sum - g_lse[row] : sum;
}
