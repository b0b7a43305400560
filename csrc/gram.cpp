// Gram matrices and style residuals. Compiled once per instruction set.
//
// G = F Fᵀ has the pixels as its inner dimension, contiguous in memory. A task takes a slice of the
// pixels and a band of rows of G; it packs kDepth pixels at a time, transposed, as panels [pixel][channel]
// and multiplies panel by panel, above the diagonal only. Pixel weights enter as √m on the packed side.
#include "parallel.h"
#include "vec.h"

namespace nst::NST_PATH {
namespace {

constexpr Index kDepth = 256;  // pixels added in float32 before they join the double sums
constexpr Index kBand = 128;   // rows of G per task
constexpr Index kMostSlices = 32;

struct Partition {
  Index width;   // C rounded up to whole panels
  Index slices;  // of the pixels
  Index slice;   // pixels per slice
  Index bands;   // of the rows of G

  explicit Partition(const Features& f)
      : width(round_up(f.channels, kPanel)),
        slices(smaller(larger(f.pixels / (4 * f.channels), 1), kMostSlices)),
        slice(round_up(divide_up(f.pixels, slices), kDepth)),
        bands(divide_up(f.channels, kBand)) {
    slices = divide_up(f.pixels, slice);
  }
};

NST_INLINE void transpose(Vec (&rows)[kLanes]) {
  Vec next[kLanes];
  for (int stage = 1; stage < kLanes; stage *= 2) {
    for (int i = 0; i < kLanes / 2; ++i) {
      const Vec a = rows[i], b = rows[i + kLanes / 2];
#if defined(__AVX512F__)
      next[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] =
          __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
      next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
      next[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// packed[k][0..kPanel) = root[k]·features[channel..][k] for depth pixels; absent channels are 0.
void pack_panel(const float* features, Index stride, Index channels, Index depth, const float* root,
                float* packed) {
  for (Index group = 0; group < kPanel; group += kLanes) {
    const Index present = smaller(larger(channels - group, 0), kLanes);
    const float* source = features + group * stride;
    Index k = 0;
    for (; present == kLanes && k + kLanes <= depth; k += kLanes) {
      Vec rows[kLanes];
      for (int r = 0; r < kLanes; ++r) rows[r] = load(source + r * stride + k);
      if (root != nullptr)
        for (int r = 0; r < kLanes; ++r) rows[r] *= load(root + k);
      transpose(rows);
      for (int r = 0; r < kLanes; ++r) store(packed + (k + r) * kPanel + group, rows[r]);
    }
    for (; k < depth; ++k) {
      const float scale = root != nullptr ? root[k] : 1.0F;
      for (Index r = 0; r < kLanes; ++r)
        packed[k * kPanel + group + r] = r < present ? scale * source[r * stride + k] : 0.0F;
    }
  }
}

template <int kVecs>
NST_INLINE void add_tile(const float* a, const float* b, Index depth, double* sums, Index width) {
  Vec acc[kTileRows][kVecs];
  multiply_tile<kVecs>(a, kPanel, b, depth, acc);
  float tile[kTileRows][kVecs * kLanes];
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kVecs; ++v) store(&tile[r][v * kLanes], acc[r][v]);
  for (int r = 0; r < kTileRows; ++r)
    for (int c = 0; c < kVecs * kLanes; ++c) sums[r * width + c] += static_cast<double>(tile[r][c]);
}

// Adds one block of panel i times panel j to the sums; on the diagonal only what touches the triangle.
void add_panels(const float* a, const float* b, Index depth, bool diagonal, Index rows, double* sums,
                Index width) {
  for (Index r = 0; r < rows; r += kTileRows) {
    if (diagonal && r >= kLanes)
      add_tile<1>(a + r, b + kLanes, depth, sums + r * width + kLanes, width);
    else
      add_tile<kTileVecs>(a + r, b, depth, sums + r * width, width);
  }
}

// The rows [first, last) of G, right of the diagonal, summed over the pixels [start, stop).
void sum_band(const Features& f, const Partition& part, Index n, Index start, Index stop, Index band,
              double* sums, float* packed) {
  const Index first = band * kBand, last = smaller(first + kBand, f.channels);
  for (Index i = first * part.width; i < smaller(first + kBand, part.width) * part.width; ++i) sums[i] = 0;
  const float* weights = f.weights != nullptr ? f.weights + n * f.weights_stride : nullptr;
  float root[kDepth];
  for (Index k = start; k < stop; k += kDepth) {
    const Index depth = smaller(kDepth, stop - k);
    if (weights != nullptr)
      for (Index i = 0; i < depth; ++i) root[i] = __builtin_sqrtf(weights[k + i]);
    for (Index c = first; c < f.channels; c += kPanel)
      pack_panel(f.data + (n * f.channels + c) * f.pixels + k, f.pixels, f.channels - c, depth,
                 weights != nullptr ? root : nullptr, packed + (c - first) * kDepth);
    for (Index i = first; i < last; i += kPanel)
      for (Index j = i; j < f.channels; j += kPanel)
        add_panels(packed + (i - first) * kDepth, packed + (j - first) * kDepth, depth, i == j,
                   smaller(kPanel, f.channels - i), sums + i * part.width + j, part.width);
  }
}

// Adds the slices in order, scales, and mirrors the tile at (i, j) of G.
void reduce_tile(const Partition& part, const double* sums, Index channels, double scale, Index i, Index j,
                 float* out) {
  const Index rows = smaller(kPanel, channels - i), columns = smaller(kPanel, channels - j);
  for (Index r = i; r < i + rows; ++r) {
    double total[kPanel] = {};
    for (Index s = 0; s < part.slices; ++s)
      for (Index c = 0; c < kPanel; ++c) total[c] += sums[(s * part.width + r) * part.width + j + c];
    for (Index c = 0; c < columns; ++c)
      if (j + c >= r) out[r * channels + j + c] = static_cast<float>(total[c] * scale);
  }
  for (Index c = j; c < j + columns; ++c)
    for (Index r = i; r < smaller(i + rows, c); ++r) out[c * channels + r] = out[r * channels + c];
}

}  // namespace

void gram(const Features& f, float* out, int threads) {
  const Partition part(f);
  const Index matrix = part.width * part.width;
  auto* sums =
      static_cast<double*>(scratch(Scratch::shared, f.images * part.slices * matrix * sizeof(double)));
  const Index panels = part.width * kDepth;
  auto* packed = static_cast<float*>(scratch(Scratch::packed, threads * panels * sizeof(float)));

  // Bands in the outer order: the first are the longest.
  parallel_for(f.images * part.slices * part.bands, threads, [=, &f, &part](Index task, int worker) {
    const Index band = task / (f.images * part.slices), block = task % (f.images * part.slices);
    const Index n = block / part.slices, start = block % part.slices * part.slice;
    sum_band(f, part, n, start, smaller(start + part.slice, f.pixels), band, sums + block * matrix,
             packed + worker * panels);
  });

  const Index rows = part.width / kPanel;
  parallel_for(f.images * rows, threads, [=, &f, &part](Index task, int) {
    const Index n = task / rows, i = task % rows * kPanel;
    const double scale = gram_scale(f, n);
    for (Index j = i; j < f.channels; j += kPanel)
      reduce_tile(part, sums + n * part.slices * matrix, f.channels, scale, i, j,
                  out + n * f.channels * f.channels);
  });
}

void style_residual(float* gram, const float* target, Index target_stride, const double* coefficients,
                    double* losses, Index images, Index channels, int threads) {
  const Index size = channels * channels, chunk = 16384, chunks = divide_up(size, chunk);
  auto* sums = static_cast<double*>(scratch(Scratch::shared, images * chunks * sizeof(double)));
  parallel_for(images * chunks, threads, [=](Index task, int) {
    const Index n = task / chunks, start = task % chunks * chunk, stop = smaller(start + chunk, size);
    float* g = gram + n * size;
    const float* t = target + n * target_stride;
    double lanes[kLanes] = {};
    Index i = start;
    for (; i + kLanes <= stop; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) {
        const float residual = g[i + lane] - t[i + lane];
        g[i + lane] = residual;
        lanes[lane] += static_cast<double>(residual) * static_cast<double>(residual);
      }
    double total = 0;
    for (; i < stop; ++i) {
      g[i] -= t[i];
      total += static_cast<double>(g[i]) * static_cast<double>(g[i]);
    }
    for (const double lane : lanes) total += lane;
    sums[task] = total;
  });
  for (Index n = 0; n < images; ++n) {
    double total = 0;
    for (Index i = 0; i < chunks; ++i) total += sums[n * chunks + i];
    losses[n] = coefficients[n] * total;
  }
}

}  // namespace nst::NST_PATH
