// One vector register and the tile sizes of the instruction set this unit is compiled for.
//
// Everything here has internal linkage: code compiled with AVX-512 must not be merged by the linker with
// code that runs without it. For the same reason the kernels use no inline functions of the std headers.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define NST_INLINE static inline __attribute__((always_inline))

namespace nst::NST_PATH {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 8;  // 16 accumulators
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kTileRows = 4;  // 8 accumulators
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 4;
#endif
constexpr int kTileVecs = 2;
constexpr Index kPanel = kLanes * kTileVecs;  // columns of a tile, width of a packed panel

using Vec = float __attribute__((vector_size(4 * kLanes)));
using VecMemory = float __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
using Bits = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Half = std::uint16_t __attribute__((vector_size(2 * kLanes)));
using HalfMemory = std::uint16_t __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

NST_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecMemory*>(p); }
NST_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecMemory*>(p) = v; }
NST_INLINE Vec splat(float x) { return x - Vec{}; }

NST_INLINE Vec square_root(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);  // the plain one warns in GCC 12
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (Vec)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// The lanes added in double, as a tree.
NST_INLINE double sum(Vec v) {
  using Wide = double __attribute__((vector_size(8 * kLanes)));
  Wide lanes = __builtin_convertvector(v, Wide);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// A NaN stays a NaN.
NST_INLINE Vec clamped(Vec v, Vec low, Vec high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

// bfloat16: the upper half of a float32.
NST_INLINE Vec load_half(const std::uint16_t* p) {
  const Half half = *reinterpret_cast<const HalfMemory*>(p);
  return (Vec)(__builtin_convertvector(half, Bits) << 16);
}
NST_INLINE float wide(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
// Rounds to nearest, ties to even; returns the float32 of what was stored.
NST_INLINE Vec store_half(std::uint16_t* p, Vec v) {
  Bits bits = (Bits)v;
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  bits = v == v ? bits : Bits{} + 0x7fc0u;  // the rounding carry would turn some NaN into 0
  *reinterpret_cast<HalfMemory*>(p) = __builtin_convertvector(bits, Half);
  return (Vec)(bits << 16);
}

NST_INLINE Index smaller(Index a, Index b) { return a < b ? a : b; }
NST_INLINE Index larger(Index a, Index b) { return a > b ? a : b; }
NST_INLINE Index divide_up(Index a, Index b) { return (a + b - 1) / b; }
NST_INLINE Index round_up(Index a, Index b) { return divide_up(a, b) * b; }

template <class T>
NST_INLINE void copy(T* to, const T* from, Index count) {
  for (Index i = 0; i < count; ++i) to[i] = from[i];
}

// acc[r][v] += Σ_k a[k·stride + r] · b[k·kPanel + v·kLanes ...]: the one multiplication kernel.
template <int kVecs>
NST_INLINE void multiply_tile(const float* a, Index stride, const float* b, Index depth,
                              Vec (&acc)[kTileRows][kVecs]) {
  for (Index k = 0; k < depth; ++k, a += stride, b += kPanel) {
    Vec column[kVecs];
    for (int v = 0; v < kVecs; ++v) column[v] = load(b + v * kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      const Vec row = splat(a[r]);
      for (int v = 0; v < kVecs; ++v) acc[r][v] += row * column[v];
    }
  }
}

}  // namespace

// The kernels of this instruction set, of the types that the table has.
#define NST_DECLARE(kernel) std::remove_pointer_t<decltype(Kernels::kernel)> kernel;
NST_KERNELS(NST_DECLARE)
#undef NST_DECLARE

}  // namespace nst::NST_PATH
