// What attention on the tensor cores needs beside tiles.cuh: tiles in shared memory and their products.
//
// A tile is rows of WIDTH 16-bit elements without padding. Its pieces of 16 bytes are swizzled: piece p of row r lies
// at place p ^ (r % 8), so that the eight rows that one 8x8 load touches lie in different banks.

#ifdef MINITF_EMULATED
inline float exp2_of(float x) { return exp2(x); }
template <typename E>
inline u32 pair_of(float low, float high) { return E(low).bits | (u32)E(high).bits << 16; }
#else
__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
template <typename E>
__device__ __forceinline__ u32 pair_of(float low, float high);
template <>
__device__ __forceinline__ u32 pair_of<float16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <>
__device__ __forceinline__ u32 pair_of<bfloat16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

#define LANE ((int)threadIdx.x % 32)

struct Tile {
    REAL* memory;

    // `column` is a multiple of 8.
    __device__ REAL* operator()(int row, int column) const {
        return memory + row * WIDTH + ((column / 8) ^ (row % 8)) * 8;
    }
    // Start copying R rows from `first` on, by 128 threads; zeros beyond row n.
    // Not unrolled: the addresses would take registers that the sums need.
    template <int R>
    __device__ void fill(const REAL* rows, int first, int n) const {
#pragma unroll 1
        for (int step = 0; step < R * WIDTH / 8 / 128; step++) {
            const int piece = step * 128 + threadIdx.x, row = piece / (WIDTH / 8), column = piece % (WIDTH / 8) * 8;
            const bool real = first + row < n;
            copy_16((*this)(row, column), rows + (real ? (i64)(first + row) * WIDTH + column : 0), real);
        }
    }
};

// s = A B^T: A are 16 M rows of `a` from `row` on, B the first N rows of `b`.
template <int M, int N>
__device__ __forceinline__ void scores(float (&s)[M][N / 8][4], Tile a, int row, Tile b) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
#pragma unroll 2
    for (int e = 0; e < WIDTH; e += 16) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_8x8x4(left[m], a(row + 16 * m + LANE % 16, e + LANE / 16 * 8));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 right[4];
            load_8x8x4(right, b(16 * n + LANE / 16 * 8 + LANE % 8, e + LANE / 8 % 2 * 8));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16816<REAL>(s[m][2 * n], left[m], right);
                mma_16816<REAL>(s[m][2 * n + 1], left[m], right + 2);
            }
        }
    }
}

// sum += S B, B the first N rows of `b`. An accumulator of two products side by side lies in the lanes just as the
// left operand of the next product must: S is rounded to 16 bits where it is.
template <int M, int N>
__device__ __forceinline__ void accumulate(float (&sum)[M][WIDTH / 8][4], float (&s)[M][N / 8][4], Tile b) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                left[m][i] = pair_of<REAL>(s[m][2 * k + i / 2][i % 2 * 2], s[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int e = 0; e < WIDTH; e += 16) {
            u32 right[4];
            load_8x8x4_turned(right, b(16 * k + LANE % 16, e + LANE / 16 * 8));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16816<REAL>(sum[m][e / 8], left[m], right);
                mma_16816<REAL>(sum[m][e / 8 + 1], left[m], right + 2);
            }
        }
    }
}

// rows[i] = value[h] * factor for the two rows that a lane has in 16 accumulated rows from `first` on.
__device__ __forceinline__ void store(
    REAL* rows, float (&value)[WIDTH / 8][4], int first, int n, float upper, float lower) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = first + LANE / 4 + 8 * h;
        const float factor = h ? lower : upper;
        if (i >= n) continue;
#pragma unroll
        for (int e = 0; e < WIDTH / 8; e++)
            *reinterpret_cast<u32*>(rows + (i64)i * WIDTH + 8 * e + LANE % 4 * 2) =
                pair_of<REAL>(value[e][2 * h] * factor, value[e][2 * h + 1] * factor);
    }
}
