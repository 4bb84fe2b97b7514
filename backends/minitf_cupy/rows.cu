// Rows of a table by number, and sums of rows that share a number: embedding, and the way back from experts.
//
//   gather        y[i] = table[ids[i]]: a thread for each element; an id out of range sets `wrong`
//   sum_rows      out[m] = sum of weights[i] y[i] over the places i that name m, in their order: the launcher
//                 sorts the places by what they name, so that those of m stand between starts[m] and
//                 starts[m + 1]. A thread for each column of each m: no atomics, the same bits every time.
//   spread        the way back: dy[i] = weights[i] g[rows[i]],  dweights[i] = y[i] . g[rows[i]]; a warp for each i
//
// variant: float16
// variant: float32
// variant: float64
#include "common.cuh"

extern "C" __global__ void gather(const i64* ids, const REAL* table, REAL* y, int count, int height, int width,
                                  int* wrong) {
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < (i64)count * width;
         at += (i64)gridDim.x * blockDim.x) {
        i64 id = ids[at / width];
        if (id >= 0 && id < height)
            y[at] = table[id * width + at % width];
        else
            *wrong = 1;
    }
}

extern "C" __global__ void sum_rows(const REAL* y, const REAL* weights, const i64* places, const i64* starts,
                                    REAL* out, int width) {
    i64 m = blockIdx.x;
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= width) return;
    SUM total = 0;
    for (i64 s = starts[m]; s < starts[m + 1]; s++) {
        SUM x = (SUM)y[places[s] * width + j];
        total += weights ? (SUM)weights[places[s]] * x : x;
    }
    out[m * width + j] = (REAL)total;
}

extern "C" __global__ void spread(const REAL* g, const i64* rows, const REAL* y, const REAL* weights, REAL* dy,
                                  REAL* dweights, int count, int width) {
    int i = blockIdx.x * 4 + threadIdx.x / 32;
    if (i >= count) return;
    SUM weight = (SUM)weights[i], total = 0;
    for (int j = threadIdx.x % 32; j < width; j += 32) {
        SUM up = (SUM)g[rows[i] * width + j];
        total += up * (SUM)y[(i64)i * width + j];
        dy[(i64)i * width + j] = (REAL)(weight * up);
    }
    total = warp_sum(total);
    if (threadIdx.x % 32 == 0) dweights[i] = (REAL)total;
}
