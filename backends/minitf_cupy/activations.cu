// Activations with the bias before them or the product after them, and the gradients.
//
// One thread for each element, further elements a whole grid apart. The kind is the same for all threads, so
// no warp splits at the switch.
//
//   activate            y = act(x + bias) gate                 bias (width,) and gate (n,) may be null
//   activate_backward   dx = g gate act'(x + bias),  dgate = g act(x)
//
// variant: float16
// variant: float32
// variant: float64
#include "common.cuh"

enum { IDENTITY, RELU, RELU2, GELU, GELU_TANH, SILU, SIGMOID };

__device__ __forceinline__ SUM sigmoid(SUM x) { return 1 / (1 + exp(-x)); }
// The normal distribution function: erfc keeps the digits that 1 + erf loses where x is far below 0.
__device__ __forceinline__ SUM normal(SUM x) { return (SUM)0.5 * erfc(x * (SUM)-0.70710678118654752440); }
// The argument of tanh in the approximate gelu.
__device__ __forceinline__ SUM inner(SUM x) {
    return (SUM)0.79788456080286535588 * (x + (SUM)0.044715 * (x * x * x));
}

__device__ SUM act(SUM x, int kind) {
    switch (kind) {
        case RELU: return x > 0 ? x : x != x ? x : 0;
        case RELU2: return x > 0 ? x * x : x != x ? x : 0;
        case GELU: return x * normal(x);
        case GELU_TANH: return (SUM)0.5 * x * (1 + tanh(inner(x)));
        case SILU: return x * sigmoid(x);
        case SIGMOID: return sigmoid(x);
        default: return x;
    }
}

__device__ SUM slope(SUM x, int kind) {
    switch (kind) {
        case RELU: return x > 0 ? 1 : 0;
        case RELU2: return x > 0 ? 2 * x : x != x ? x : 0;
        case GELU: return normal(x) + x * (SUM)0.39894228040143267794 * exp((SUM)-0.5 * x * x);
        case GELU_TANH: {
            SUM t = tanh(inner(x)), steep = (SUM)0.79788456080286535588 * (1 + (SUM)0.134145 * x * x);
            return (SUM)0.5 * (1 + t) + (SUM)0.5 * x * ((1 - t * t) * steep);
        }
        case SILU: {
            SUM s = sigmoid(x);
            return s * (1 + x * (1 - s));
        }
        case SIGMOID: {
            SUM s = sigmoid(x);
            return s * (1 - s);
        }
        default: return 1;
    }
}

extern "C" __global__ void activate(const REAL* x, const REAL* bias, const REAL* gate, REAL* y, int n, int width,
                                    int kind) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
        SUM z = (SUM)x[i];
        if (bias) z += (SUM)bias[i % width];
        z = act(z, kind);
        y[i] = (REAL)(gate ? z * (SUM)gate[i] : z);
    }
}

extern "C" __global__ void activate_backward(const REAL* g, const REAL* x, const REAL* bias, const REAL* gate,
                                             REAL* dx, REAL* dgate, int n, int width, int kind) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
        SUM z = (SUM)x[i], up = (SUM)g[i];
        if (bias) z += (SUM)bias[i % width];
        if (gate) dgate[i] = (REAL)(up * act(z, kind));
        dx[i] = (REAL)((gate ? up * (SUM)gate[i] : up) * slope(z, kind));
    }
}
