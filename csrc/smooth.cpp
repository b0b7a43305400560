// The smoothing between the variables of an optimiser and the picture. Compiled once per instruction set.
#include "chunks.h"

namespace nst::NST_PATH {
namespace {

// The first count lanes; the others are 0.
NST_INLINE Vec load_some(const float* p, Index count) {
  if (count == kLanes) return load(p);
  Vec v{};
  for (Index i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

NST_INLINE void store_some(float* p, Vec v, Index count) {
  if (count == kLanes) return store(p, v);
  for (Index i = 0; i < count; ++i) p[i] = v[i];
}

// Position i of a line of n, mirrored at its ends: −1 is 0, n is n − 1.
Index mirrored(Index i, Index n) {
  i %= 2 * n;
  if (i < 0) i += 2 * n;
  return i < n ? i : 2 * n - 1 - i;
}

template <int kCount>
struct Registers {
  static constexpr int count = kCount;
};

// Calls body(registers, offset, lanes) for a row of values: for four registers at a time, then one by one.
// The last of them overlaps the one before; a row shorter than a register has fewer lanes.
template <class Body>
NST_INLINE void over_registers(Index width, Body body) {
  Index j = 0;
  for (; j + 4 * kLanes <= width; j += 4 * kLanes) body(Registers<4>{}, j, Index{kLanes});
  for (; j + kLanes <= width; j += kLanes) body(Registers<1>{}, j, Index{kLanes});
  if (j < width) body(Registers<1>{}, larger(width - kLanes, 0), smaller(width, kLanes));
}

// G along the columns for kVecs registers of a row, or the first count lanes of one: rows[k], k from −radius
// to radius, are the rows of the plane that it sees.
template <int kVecs>
NST_INLINE void smooth_columns(const float* plane, const Index* rows, Index width, const Gaussian& g,
                               Index count, float* to) {
  Vec sums[kVecs];
  for (int v = 0; v < kVecs; ++v)
    sums[v] = g.taps[0] * load_some(plane + rows[0] * width + v * kLanes, count);
  for (Index k = 1; k <= g.radius; ++k) {
    const float *above = plane + rows[-k] * width, *below = plane + rows[k] * width;
    for (int v = 0; v < kVecs; ++v)
      sums[v] += g.taps[k] * (load_some(above + v * kLanes, count) + load_some(below + v * kLanes, count));
  }
  for (int v = 0; v < kVecs; ++v) store(to + v * kLanes, sums[v]);
}

// G along a line that goes on for radius values at both ends; then B: the share of u, and base unless null.
template <int kVecs>
NST_INLINE void smooth_row(const float* line, const float* u, const Gaussian& g, const float* base,
                           Index count, float* out) {
  Vec sums[kVecs];
  for (int v = 0; v < kVecs; ++v) sums[v] = g.taps[0] * load(line + v * kLanes);
  for (Index k = 1; k <= g.radius; ++k)
    for (int v = 0; v < kVecs; ++v)
      sums[v] += g.taps[k] * (load(line + v * kLanes - k) + load(line + v * kLanes + k));
  for (int v = 0; v < kVecs; ++v) {
    const Index at = v * kLanes;
    Vec value = g.share * load_some(u + at, count) + (1 - g.share) * sums[v];
    if (base != nullptr) value += load_some(base + at, count);
    store_some(out + at, value, count);
  }
}

}  // namespace

void smooth(const Pictures& p, const Gaussian& g, const float* base, float* out, int threads) {
  const Index count = p.images * p.channels * p.height, group = larger(kChunk / p.width, 1);
  auto* rows =
      static_cast<Index*>(scratch(Scratch::shared, (p.height + 2 * g.radius) * sizeof(Index))) + g.radius;
  for (Index i = -g.radius; i < p.height + g.radius; ++i) rows[i] = mirrored(i, p.height);
  // A row with what is mirrored at both ends, and room for a register past it: what the columns leave is read
  // back from the first-level cache.
  const Index length = p.width + 2 * g.radius + kLanes;
  auto* lines = static_cast<float*>(scratch(Scratch::packed, threads * length * sizeof(float)));
  parallel_for(divide_up(count, group), threads, [=, &p, &g](Index task, int worker) {
    float* line = lines + worker * length + g.radius;
    for (Index row = task * group; row < smaller((task + 1) * group, count); ++row) {
      const float* plane = p.data + row / p.height * p.height * p.width;
      const Index* seen = rows + row % p.height;
      over_registers(p.width, [&](auto registers, Index j, Index lanes) {
        smooth_columns<registers.count>(plane + j, seen, p.width, g, lanes, line + j);
      });
      for (Index k = 1; k <= g.radius; ++k) {
        line[-k] = line[mirrored(-k, p.width)];
        line[p.width - 1 + k] = line[mirrored(p.width - 1 + k, p.width)];
      }
      over_registers(p.width, [&](auto registers, Index j, Index lanes) {
        const Index at = row * p.width + j;
        smooth_row<registers.count>(line + j, p.data + at, g, base != nullptr ? base + at : nullptr, lanes,
                                    out + at);
      });
    }
  });
}

}  // namespace nst::NST_PATH
