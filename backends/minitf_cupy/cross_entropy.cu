// The loss of a classifier without its probabilities, and the gradient.
//
// One block of 256 threads for each row of logits z.
//
//   cross_entropy            top = max(z), total = sum exp(z - top): the two passes read the row from the cache
//                            the second time; loss = log(total) + (top - z[target]), 0 where ignored
//   cross_entropy_backward   dz = (exp(z - top) / total - [target]) scale
//
// z - top is exact for the largest logits, which z - log-sum-exp is not. A target out of range sets `wrong`.
//
// variant: float16
// variant: float32
// variant: float64
#include "common.cuh"

extern "C" __global__ void cross_entropy(const REAL* z, const i64* targets, int width, int skip, i64 ignore,
                                         SUM* tops, SUM* totals, SUM* losses, int* wrong) {
    __shared__ SUM scratch[32];
    int row = blockIdx.x;
    i64 target = targets[row];
    z += (i64)row * width;
    if (skip && target == ignore) {
        if (threadIdx.x == 0) tops[row] = totals[row] = losses[row] = 0;
        return;
    }
    SUM top = -INFINITE;
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
        SUM x = (SUM)z[j];
        top = x > top || x != x ? x : top;
    }
    top = block_max(top, scratch);
    // A row without a finite largest logit is summed as it is.
    if (!(top > -INFINITE && top < INFINITE)) top = 0;
    SUM total = 0;
    for (int j = threadIdx.x; j < width; j += blockDim.x) total += exp((SUM)z[j] - top);
    total = block_sum(total, scratch);
    if (threadIdx.x > 0) return;
    bool known = target >= 0 && target < width;
    if (!known) *wrong = 1;
    tops[row] = top;
    totals[row] = total;
    losses[row] = known ? log(total) + (top - (SUM)z[target]) : 0;
}

extern "C" __global__ void cross_entropy_backward(const SUM* scale, const REAL* z, const i64* targets, int width,
                                                  int skip, i64 ignore, const SUM* tops, const SUM* totals,
                                                  REAL* dz) {
    int row = blockIdx.x;
    i64 target = targets[row];
    z += (i64)row * width;
    dz += (i64)row * width;
    bool ignored = skip && target == ignore;
    SUM top = tops[row], share = totals[row] != 0 ? *scale / totals[row] : 0;
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
        SUM d = ignored ? 0 : exp((SUM)z[j] - top) * share;
        if (!ignored && j == target) d -= *scale;
        dz[j] = (REAL)d;
    }
}
