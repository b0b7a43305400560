// The words of CUDA that need no other thread: qualifiers, vector types, indices, bits of numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#define NST_KERNEL static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("nst_shared")))
#define NST_DYNAMIC_SHARED(name) char* const name = shim::dynamic

namespace shim {

// Shared memory beside what kernels declare; a launch says how much of it there is.
constexpr int kMostDynamic = 96 * 1024;
alignas(128) inline char dynamic[kMostDynamic];
inline int dynamic_bytes;

}  // namespace shim

struct uint3 {
    unsigned x, y, z;
};
template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T x, y;
};
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Quad {
    T x, y, z, w;
};
using ushort2 = Pair<unsigned short>;
using uint2 = Pair<unsigned>;
using int2 = Pair<int>;
using float2 = Pair<float>;
using double2 = Pair<double>;
using ushort4 = Quad<unsigned short>;
using uint4 = Quad<unsigned>;
using int4 = Quad<int>;
using float4 = Quad<float>;

static uint3 threadIdx, blockIdx, blockDim, gridDim;

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

inline unsigned __float_as_uint(float value)
{
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned short float_to_half(float value)
{
    const _Float16 half = value;
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

inline float half_to_float(unsigned short bits)
{
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return half;
}

// Nearest, ties away from 0.
inline unsigned float_to_tf32(float value)
{
    const unsigned bits = __float_as_uint(value);
    if (isnan(value)) return bits | 0x400000;
    return isinf(value) ? bits : (bits + 0x1000) & ~0x1FFFu;
}
