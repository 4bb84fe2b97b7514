// Depthwise convolution over a grid of one or two axes (one axis: height 1), channels last.
//
//   y[o, c] = bias[c] + sum over taps k of w[k, c] x[o stride + k dilation - before, c]
//
//   convolve           a thread for each output and channel; neighbours in a warp are neighbouring channels
//   convolve_backward  dx: a thread for each input and channel gathers from the outputs that have seen it
//   convolve_weights   dw: a block has 32 channels, one tap and a share of the outputs, 8 at a time; the shares
//                      are added by the launcher
//
// variant: float16
// variant: float32
// variant: float64
#include "common.cuh"

// By value, in this order: sizes of input, output, kernel; stride, dilation and zeros before, each two numbers.
struct Grid {
    int height, width, out_height, out_width, kernel_height, kernel_width;
    int stride_down, stride_across, dilation_down, dilation_across, before_down, before_across;
};

__device__ __forceinline__ Grid grid_of(const int* sizes) {
    Grid s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
              sizes[6], sizes[7], sizes[8], sizes[9], sizes[10], sizes[11]};
    return s;
}

extern "C" __global__ void convolve(const REAL* x, const REAL* weight, const REAL* bias, REAL* y,
                                    const int* sizes, int channels, i64 count) {
    Grid s = grid_of(sizes);
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (i64)gridDim.x * blockDim.x) {
        int c = at % channels;
        i64 place = at / channels;
        int across = place % s.out_width, down = place / s.out_width % s.out_height;
        i64 batch = place / s.out_width / s.out_height;
        SUM total = bias ? (SUM)bias[c] : 0;
        for (int p = 0; p < s.kernel_height; p++) {
            int i = down * s.stride_down + p * s.dilation_down - s.before_down;
            if (i < 0 || i >= s.height) continue;
            for (int q = 0; q < s.kernel_width; q++) {
                int j = across * s.stride_across + q * s.dilation_across - s.before_across;
                if (j < 0 || j >= s.width) continue;
                total += (SUM)weight[(p * s.kernel_width + q) * channels + c] *
                         (SUM)x[((batch * s.height + i) * s.width + j) * channels + c];
            }
        }
        y[at] = (REAL)total;
    }
}

extern "C" __global__ void convolve_backward(const REAL* g, const REAL* weight, REAL* dx, const int* sizes,
                                             int channels, i64 count) {
    Grid s = grid_of(sizes);
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (i64)gridDim.x * blockDim.x) {
        int c = at % channels;
        i64 place = at / channels;
        int j = place % s.width, i = place / s.width % s.height;
        i64 batch = place / s.width / s.height;
        SUM total = 0;
        for (int p = 0; p < s.kernel_height; p++) {
            int down = i + s.before_down - p * s.dilation_down;
            if (down < 0 || down % s.stride_down || down / s.stride_down >= s.out_height) continue;
            for (int q = 0; q < s.kernel_width; q++) {
                int across = j + s.before_across - q * s.dilation_across;
                if (across < 0 || across % s.stride_across || across / s.stride_across >= s.out_width) continue;
                i64 out = (batch * s.out_height + down / s.stride_down) * s.out_width + across / s.stride_across;
                total += (SUM)weight[(p * s.kernel_width + q) * channels + c] * (SUM)g[out * channels + c];
            }
        }
        dx[at] = (REAL)total;
    }
}

extern "C" __global__ void convolve_weights(const REAL* g, const REAL* x, SUM* dweight, const int* sizes,
                                            int channels, int places, int share) {
    __shared__ SUM sums[8][32];
    Grid s = grid_of(sizes);
    int lane = threadIdx.x % 32, part = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    int tap = blockIdx.y, p = tap / s.kernel_width, q = tap % s.kernel_width;
    int end = min(places, (int)(blockIdx.z + 1) * share);
    SUM total = 0;
    if (c < channels)
        for (int place = blockIdx.z * share + part; place < end; place += 8) {
            int across = place % s.out_width, down = place / s.out_width % s.out_height;
            i64 batch = place / s.out_width / s.out_height;
            int i = down * s.stride_down + p * s.dilation_down - s.before_down;
            int j = across * s.stride_across + q * s.dilation_across - s.before_across;
            if (i < 0 || i >= s.height || j < 0 || j >= s.width) continue;
            total += (SUM)g[(i64)place * channels + c] * (SUM)x[((batch * s.height + i) * s.width + j) * channels + c];
        }
    sums[part][lane] = total;
    __syncthreads();
    if (part > 0 || c >= channels) return;
    for (int other = 1; other < 8; other++) total += sums[other][lane];
    dweight[((i64)blockIdx.z * gridDim.y + tap) * channels + c] = total;
}
