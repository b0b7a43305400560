// Moments of feature maps: the Gram matrix, the sums and the number of pixels in one matrix. Compiled once
// per instruction set.
//
// Σ m f~ f~ᵀ has the pixels as its inner dimension, contiguous in memory. A task takes a slice of the
// pixels and a band of rows; it packs kDepth pixels at a time, transposed, as panels [pixel][channel] and
// multiplies panel by panel, above the diagonal only. Pixel weights enter as √m on the packed side. The
// last row, Σ m f, is summed while packing: as a channel of ones it would fill panels of its own.
#include "parallel.h"
#include "vec.h"

namespace nst::NST_PATH {
namespace {

constexpr Index kDepth = 256;  // pixels added in float32 before they join the double sums
constexpr Index kBand = 128;   // rows of the matrix per task
constexpr Index kMostSlices = 32;

struct Partition {
  Index width;   // C rounded up to whole panels
  Index slices;  // of the pixels
  Index slice;   // pixels per slice
  Index bands;   // of the rows of the matrix
  Index sums;    // doubles a slice sums up: (width, width) products, (width) features

  explicit Partition(const Features& f)
      : width(round_up(f.channels, kPanel)),
        slices(smaller(larger(f.pixels / (4 * f.channels), 1), kMostSlices)),
        slice(round_up(divide_up(f.pixels, slices), kDepth)),
        bands(divide_up(f.channels, kBand)),
        sums((width + 1) * width) {
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

// Packs kLanes pixels of the first `present` channels of a group, transposed; the others are 0.
NST_INLINE void pack_square(const float* features, Index stride, Index present, const float* root,
                            float* packed, bool summed, Vec (&sums)[4]) {
  Vec rows[kLanes];
  for (int r = 0; r < kLanes; ++r) rows[r] = r < present ? load(features + r * stride) : Vec{};
  if (root != nullptr)
    for (int r = 0; r < kLanes; ++r) rows[r] *= load(root);
  transpose(rows);
  for (int r = 0; r < kLanes; ++r) store(packed + r * kPanel, rows[r]);
  if (summed)
    for (int r = 0; r < kLanes; ++r) sums[r % 4] += root != nullptr ? root[r] * rows[r] : rows[r];
}

// packed[k][0..kPanel) = root[k]·features[channel..][k] for depth pixels; absent channels are 0. A null
// root is all 1. Adds Σ root·packed, channel by channel, to sums, unless it is null.
void pack_panel(const float* features, Index stride, Index channels, Index depth, const float* root,
                float* packed, double* sums) {
  for (Index group = 0; group < kPanel; group += kLanes) {
    const Index present = smaller(larger(channels - group, 0), kLanes);
    const float* source = features + group * stride;
    Vec partial[4] = {};  // independent, so that additions need not wait for one another
    Index k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
      const float* roots = root != nullptr ? root + k : nullptr;
      float* to = packed + k * kPanel + group;
      if (present == kLanes)
        pack_square(source + k, stride, kLanes, roots, to, sums != nullptr, partial);
      else
        pack_square(source + k, stride, present, roots, to, sums != nullptr, partial);
    }
    for (; k < depth; ++k) {
      const float scale = root != nullptr ? root[k] : 1.0F;
      float* row = packed + k * kPanel + group;
      for (Index r = 0; r < kLanes; ++r) row[r] = r < present ? scale * source[r * stride + k] : 0.0F;
      partial[0] += scale * load(row);
    }
    if (sums == nullptr) continue;
    const Vec total = (partial[0] + partial[1]) + (partial[2] + partial[3]);
    for (int lane = 0; lane < kLanes; ++lane) sums[group + lane] += static_cast<double>(total[lane]);
  }
}

template <int kVecs>
NST_INLINE void add_tile(const float* a, const float* b, Index depth, double* sums, Index width) {
  Vec acc[kTileRows][kVecs] = {};
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

// The rows [first, last) of the matrix, right of the diagonal, and the sums of those channels, over the
// pixels [start, stop).
void sum_band(const Features& f, const Partition& part, Index n, Index start, Index stop, Index band,
              double* products, float* packed) {
  const Index first = band * kBand, last = smaller(first + kBand, f.channels);
  const Index end = smaller(first + kBand, part.width);
  double* sums = products + part.width * part.width;
  for (Index i = first * part.width; i < end * part.width; ++i) products[i] = 0;
  for (Index i = first; i < end; ++i) sums[i] = 0;
  const float* weights = f.weights != nullptr ? f.weights + n * f.weights_stride : nullptr;
  float root[kDepth];
  for (Index k = start; k < stop; k += kDepth) {
    const Index depth = smaller(kDepth, stop - k);
    if (weights != nullptr)
      for (Index i = 0; i < depth; ++i) root[i] = __builtin_sqrtf(weights[k + i]);
    for (Index c = first; c < f.channels; c += kPanel)
      pack_panel(f.data + (n * f.channels + c) * f.pixels + k, f.pixels, f.channels - c, depth,
                 weights != nullptr ? root : nullptr, packed + (c - first) * kDepth,
                 c < last ? sums + c : nullptr);
    for (Index i = first; i < last; i += kPanel)
      for (Index j = i; j < f.channels; j += kPanel)
        add_panels(packed + (i - first) * kDepth, packed + (j - first) * kDepth, depth, i == j,
                   smaller(kPanel, f.channels - i), products + i * part.width + j, part.width);
  }
}

// Σm of image n.
double total_weight(const Features& f, Index n) {
  if (f.weights == nullptr) return static_cast<double>(f.pixels);
  const float* m = f.weights + n * f.weights_stride;
  double total = 0;
  for (Index start = 0; start < f.pixels; start += 1024) {
    const Index stop = smaller(start + 1024, f.pixels);
    Vec lanes{};
    Index p = start;
    for (; p + kLanes <= stop; p += kLanes) lanes += load(m + p);
    for (; p < stop; ++p) total += static_cast<double>(m[p]);
    total += sum(lanes);
  }
  return total;
}

// One image's matrix on its way out, (side, side).
struct Output {
  float* data;
  Index side;
  double scale;
  bool accumulate;

  void set(Index r, Index c, double total) const {
    float& value = data[r * side + c];
    value = static_cast<float>((accumulate ? static_cast<double>(value) : 0) + scale * total);
  }
  void mirror(Index r, Index c) const { data[c * side + r] = data[r * side + c]; }
};

// Adds the slices in order, and mirrors the tile at (i, j).
void reduce_tile(const Partition& part, const double* sums, Index channels, Index i, Index j,
                 const Output& out) {
  const Index rows = smaller(kPanel, channels - i), columns = smaller(kPanel, channels - j);
  for (Index r = i; r < i + rows; ++r) {
    double total[kPanel] = {};
    for (Index s = 0; s < part.slices; ++s)
      for (Index c = 0; c < kPanel; ++c) total[c] += sums[s * part.sums + r * part.width + j + c];
    for (Index c = larger(r - j, 0); c < columns; ++c) out.set(r, j + c, total[c]);
  }
  for (Index c = j; c < j + columns; ++c)
    for (Index r = i; r < smaller(i + rows, c); ++r) out.mirror(r, c);
}

}  // namespace

void moments(const Features& f, const double* normalizers, float* out, bool accumulate, int threads) {
  const Partition part(f);
  auto* sums =
      static_cast<double*>(scratch(Scratch::shared, f.images * part.slices * part.sums * sizeof(double)));
  const Index panels = part.width * kDepth;
  auto* packed = static_cast<float*>(scratch(Scratch::packed, threads * panels * sizeof(float)));

  // Bands in the outer order: the first are the longest.
  parallel_for(f.images * part.slices * part.bands, threads, [=, &f, &part](Index task, int worker) {
    const Index band = task / (f.images * part.slices), block = task % (f.images * part.slices);
    const Index n = block / part.slices, start = block % part.slices * part.slice;
    sum_band(f, part, n, start, smaller(start + part.slice, f.pixels), band, sums + block * part.sums,
             packed + worker * panels);
  });

  const Index rows = part.width / kPanel, C = f.channels;
  parallel_for(f.images * rows, threads, [=, &f, &part](Index task, int) {
    const Index n = task / rows, i = task % rows * kPanel;
    const double* image_sums = sums + n * part.slices * part.sums;
    const Output image{out + n * (C + 1) * (C + 1), C + 1, normalizers[n], accumulate};
    for (Index j = i; j < C; j += kPanel) reduce_tile(part, image_sums, C, i, j, image);
    for (Index r = i; r < smaller(i + kPanel, C); ++r) {
      double total = 0;
      for (Index s = 0; s < part.slices; ++s)
        total += image_sums[s * part.sums + part.width * part.width + r];
      image.set(r, C, total);
      image.mirror(r, C);
    }
    if (i == 0) image.set(C, C, total_weight(f, n));
  });
}

}  // namespace nst::NST_PATH
