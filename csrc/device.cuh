// What the CUDA kernels share: number formats, sums over a warp or block, matrix products, copies.
// Needs no header: NVRTC compiles it with the kernels behind it, and so does a host compiler, for
// the tests, with tests/cuda_shim/shim.h in front, which defines what is inside the #ifndef.
//
// A kernel is declared NST_KERNEL void name(...), with __launch_bounds__ behind void or without.

#ifndef NST_SHIM

#define NST_KERNEL extern "C" __global__
// As many bytes as the launch says.
#define NST_DYNAMIC_SHARED(name) extern __shared__ __align__(128) char name[]

// float16 is kept as its bits, as bfloat16 is.
__device__ __forceinline__ unsigned short float_to_half(float value)
{
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float half_to_float(unsigned short bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// The fragments of D += A B, (16, 8) += (16, K) (K, 8), spread over a warp as the PTX ISA says for
// mma.m16n8k16 (float16, bfloat16) and mma.m16n8k8 (TF32). Sums are in float32.
__device__ __forceinline__ void mma_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int k = 0; k < 2; ++k)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
            "{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
}

// Below compute capability 8.0 the next three must not run, and the host sees to it.
__device__ __forceinline__ void mma_bfloat(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

__device__ __forceinline__ unsigned float_to_tf32(float value)
{
    unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
    __trap();
#endif
    return bits;
}

__device__ __forceinline__ unsigned shared_address(const void* pointer)
{
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Lane l gives the address of row l % 8, 16 bytes, of matrix l / 8 in shared memory, and gets of
// each matrix the word l % 4 of row l / 4.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same for matrices of 8 by 8 16-bit numbers that are transposed on the way.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&words)[4], const void* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Copy 16 aligned bytes to shared memory, or write zeros there; done after wait_for_copies.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool present)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(present ? 16 : 0)
                 : "memory");
#else
    *static_cast<uint4*>(shared) = present ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}

// Close a group of copies.
__device__ __forceinline__ void commit_copies()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait for this thread's copies, but for the latest `pending` groups.
template <int pending>
__device__ __forceinline__ void wait_for_copies()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

#endif  // NST_SHIM

// Nearest, ties to even; in integers, because cvt.rn.bf16 needs compute capability 8.0.
__device__ __forceinline__ unsigned short float_to_bfloat(float value)
{
    const unsigned bits = __float_as_uint(value);
    if (value != value) return static_cast<unsigned short>(bits >> 16 | 0x40);
    return static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ float bfloat_to_float(unsigned short bits)
{
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

// How numbers are stored, as a template argument.
struct Half {
    using Stored = unsigned short;
    static __device__ __forceinline__ float widen(Stored bits) { return half_to_float(bits); }
    static __device__ __forceinline__ Stored narrow(float value) { return float_to_half(value); }
};

struct Bfloat {
    using Stored = unsigned short;
    static __device__ __forceinline__ float widen(Stored bits) { return bfloat_to_float(bits); }
    static __device__ __forceinline__ Stored narrow(float value) { return float_to_bfloat(value); }
};

struct Float {
    using Stored = float;
    static __device__ __forceinline__ float widen(Stored value) { return value; }
    static __device__ __forceinline__ Stored narrow(float value) { return value; }
};

// Sum over the lanes of a warp, in the same order on every lane; all 32 must call.
template <class T>
__device__ __forceinline__ T warp_sum(T value)
{
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    return value;
}

// Sum over a block of whole warps, at most 1024 threads, in a fixed order, on every thread; all must
// call. `scratch` is 32 doubles in shared memory, free again after the next barrier.
__device__ __forceinline__ double block_sum(double value, double* scratch)
{
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp];
    return sum;
}
