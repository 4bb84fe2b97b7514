// Small matrix products on the tensor cores, and the two ways of feeding them. All of them are done by the
// 32 lanes of a warp together: each lane must call them, with its own part of the operands.
//
//   mma_16816<E>(c, a, b)     C (16x8, float) += A (16x16) B (16x8), E = float16 or bfloat16 (from sm_80 on)
//   load_8x8x4(r, row)        four 8x8 tiles of 16-bit elements from shared memory into registers; lane 8i+j
//   load_8x8x4_turned(r, row) gives the address of row j of tile i (16 bytes, aligned); turned: transposed
//   copy_16(to, from, real)   16 bytes from device to shared memory, without waiting; zeros where not `real`
//   copies_end_group(), copies_wait<n>()   until at most n of the groups issued last are still under way
//
// Who holds what (lane = 4 g + t; a pair is two neighbours in one 32-bit register, the first in the low half):
//   A: a[0] row g,   columns 2t, 2t+1      a[1] row g+8, the same columns
//      a[2] row g,   columns 2t+8, 2t+9    a[3] row g+8, the same columns
//   B: b[0] rows 2t, 2t+1, column g        b[1] rows 2t+8, 2t+9, column g
//   C: c[0], c[1] row g, columns 2t, 2t+1  c[2], c[3] row g+8, the same columns
//   a tile: r[i] holds row g, columns 2t, 2t+1 of tile i; turned: column g, rows 2t, 2t+1
// So A comes from one load_8x8x4 (tiles: upper left, lower left, upper right, lower right), and two B of
// neighbouring columns from one load_8x8x4_turned of row-major B, or load_8x8x4 of column-major B.

#ifdef MINITF_EMULATED
template <typename E>
inline void mma_16816(float c[4], const u32 a[4], const u32 b[2]) { emulated_mma_16816<E>(c, a, b); }
inline void load_8x8x4(u32 r[4], const void* row) { emulated_load_8x8x4(r, row, false); }
inline void load_8x8x4_turned(u32 r[4], const void* row) { emulated_load_8x8x4(r, row, true); }
inline void copy_16(void* to, const void* from, bool real = true) { emulated_copy_16(to, from, real); }
inline void copies_end_group() { emulated_copies_end_group(); }
template <int n>
inline void copies_wait() { emulated_copies_wait(n); }
#else

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

template <typename E>
__device__ __forceinline__ void mma_16816(float c[4], const u32 a[4], const u32 b[2]);

template <>
__device__ __forceinline__ void mma_16816<float16>(float c[4], const u32 a[4], const u32 b[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // sm_75 knows the half of it: two steps of 8.
    for (int i = 0; i < 2; i++)
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}

template <>
__device__ __forceinline__ void mma_16816<bfloat16>(float c[4], const u32 a[4], const u32 b[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // No such unit: the launcher does not ask for bfloat16 here.
    __trap();
#endif
}

__device__ __forceinline__ void load_8x8x4(u32 r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void load_8x8x4_turned(u32 r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void copy_16(void* to, const void* from, bool real = true) {
#if __CUDA_ARCH__ >= 800
    int bytes = real ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
#else
    *reinterpret_cast<uint4*>(to) = real ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void copies_end_group() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int n>
__device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}
#endif
