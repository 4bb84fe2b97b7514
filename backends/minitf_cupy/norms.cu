// Layer and RMS normalisation over the last axis, and the gradients.
//
// One warp for each row, four warps in a block. Lane l reads elements l, l+32, ...; sums over a row are taken
// by 32 lanes side by side and then in pairs, so that float is exact enough at any width.
//
//   norm_forward        mean and rstd of the row (kept for the backward), then y = (x - mean) rstd weight + bias;
//                       with r, of s = x + r, which is written too
//   norm_backward       with xh = (x - mean) rstd and gw = g weight:
//                       dx = rstd (gw - mean(gw) - xh mean(gw xh)) + gs     RMS: without mean(gw)
//   norm_backward_params   dweight = sum of g xh, dbias = sum of g over rows: a block has 32 columns and a
//                       share of the rows, 8 rows at a time; the sums of all shares are added by the launcher
//
// variant: float16
// variant: float32
// variant: float64
#include "common.cuh"

extern "C" __global__ void norm_forward(const REAL* x, const REAL* r, const REAL* weight, const REAL* bias, REAL* s,
                                        REAL* y, SUM* mean, SUM* rstd, int rows, int width, double eps, int centre) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (i64)row * width;
    y += (i64)row * width;
    if (r) {
        r += (i64)row * width;
        s += (i64)row * width;
        for (int j = lane; j < width; j += 32) s[j] = (REAL)((SUM)x[j] + (SUM)r[j]);
        // Each lane reads what it has written itself.
        x = s;
    }
    SUM m = 0;
    if (centre) {
        for (int j = lane; j < width; j += 32) m += (SUM)x[j];
        m = warp_sum(m) / width;
    }
    SUM square = 0;
    for (int j = lane; j < width; j += 32) {
        SUM d = (SUM)x[j] - m;
        square += d * d;
    }
    SUM scale = 1 / sqrt(warp_sum(square) / width + (SUM)eps);
    for (int j = lane; j < width; j += 32) {
        SUM out = ((SUM)x[j] - m) * scale;
        if (weight) out *= (SUM)weight[j];
        if (bias) out += (SUM)bias[j];
        y[j] = (REAL)out;
    }
    if (lane == 0) {
        mean[row] = m;
        rstd[row] = scale;
    }
}

extern "C" __global__ void norm_backward(const REAL* g, const REAL* gs, const REAL* x, const REAL* weight,
                                         const SUM* mean, const SUM* rstd, REAL* dx, int rows, int width, int centre) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    g += (i64)row * width;
    x += (i64)row * width;
    dx += (i64)row * width;
    SUM m = mean[row], r = rstd[row], first = 0, second = 0;
    for (int j = lane; j < width; j += 32) {
        SUM gw = (SUM)g[j] * (weight ? (SUM)weight[j] : (SUM)1);
        first += gw;
        second += gw * ((SUM)x[j] - m) * r;
    }
    first = centre ? warp_sum(first) / width : 0;
    second = warp_sum(second) / width;
    for (int j = lane; j < width; j += 32) {
        SUM gw = (SUM)g[j] * (weight ? (SUM)weight[j] : (SUM)1);
        SUM d = r * (gw - first - ((SUM)x[j] - m) * r * second);
        dx[j] = (REAL)(gs ? d + (SUM)gs[(i64)row * width + j] : d);
    }
}

extern "C" __global__ void norm_backward_params(const REAL* g, const REAL* x, const SUM* mean, const SUM* rstd,
                                                SUM* dweight, SUM* dbias, int rows, int width, int share) {
    __shared__ SUM sums[2][8][32];
    int lane = threadIdx.x % 32, part = threadIdx.x / 32, j = blockIdx.x * 32 + lane;
    int end = min(rows, (int)(blockIdx.y + 1) * share);
    SUM weights = 0, biases = 0;
    if (j < width)
        for (int row = blockIdx.y * share + part; row < end; row += 8) {
            i64 at = (i64)row * width + j;
            weights += (SUM)g[at] * ((SUM)x[at] - mean[row]) * rstd[row];
            biases += (SUM)g[at];
        }
    sums[0][part][lane] = weights;
    sums[1][part][lane] = biases;
    __syncthreads();
    if (part > 0 || j >= width) return;
    for (int p = 1; p < 8; p++) {
        weights += sums[0][p][lane];
        biases += sums[1][p][lane];
    }
    dweight[(i64)blockIdx.y * width + j] = weights;
    dbias[(i64)blockIdx.y * width + j] = biases;
}
