"""CUDA kernels without a GPU: `emulated.h` runs their text on the CPU, `stand_in` is a CuPy above it."""
