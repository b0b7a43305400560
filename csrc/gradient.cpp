// Gradients of the style and content terms at the features. Compiled once per instruction set.
//
// R F has the channels as its inner dimension. A task takes a block of pixels, packs it as panels
// [channel][pixel], and multiplies it by the scaled, packed R. The content term reads F back from the
// packed panel, so it costs one more stream and no second pass.
#include "parallel.h"
#include "vec.h"

namespace nst::NST_PATH {
namespace {

constexpr Index kPackedFloats = 65536;  // of a block of pixels: 256 KiB, a part of L2
constexpr Index kMostColumns = 1024;

// packed[panel][k][r] = scale·R[panel·kTileRows + r][k]; R is symmetric, so rows are read for columns.
void pack_residual(const float* residual, Index channels, float scale, Index panel, float* packed) {
  const Index first = panel * kTileRows, present = smaller(kTileRows, channels - first);
  for (Index k = 0; k < channels; ++k)
    for (Index r = 0; r < kTileRows; ++r)
      packed[(panel * channels + k) * kTileRows + r] =
          r < present ? scale * residual[k * channels + first + r] : 0.0F;
}

// packed[panel][k][0..kPanel) = features[k][panel·kPanel ...]; columns past the end are 0.
void pack_pixels(const float* features, Index stride, Index channels, Index columns, float* packed) {
  for (Index k = 0; k < channels; ++k) {
    const float* row = features + k * stride;
    Index p = 0;
    for (; p + kPanel <= columns; p += kPanel)
      for (int v = 0; v < kTileVecs; ++v)
        store(packed + p * channels + k * kPanel + v * kLanes, load(row + p + v * kLanes));
    for (Index i = 0; p < columns && i < kPanel; ++i)
      packed[p * channels + k * kPanel + i] = p + i < columns ? row[p + i] : 0.0F;
  }
}

// One row of a tile on its way out: weights, then what was there, then the content term.
struct Row {
  const float* weights;   // (kPanel); null: 1
  const float* features;  // (kPanel)
  const float* content;   // (kPanel); null: none
  float twice_b;
  bool accumulate;
};

NST_INLINE void write_row(const Row& row, const Vec (&acc)[kTileVecs], float* out, Vec& squares) {
  for (int v = 0; v < kTileVecs; ++v) {
    const int at = v * kLanes;
    Vec value = acc[v];
    if (row.weights != nullptr) value *= load(row.weights + at);
    if (row.accumulate) value += load(out + at);
    if (row.content != nullptr) {
      const Vec difference = load(row.features + at) - load(row.content + at);
      value += row.twice_b * difference;
      squares += difference * difference;
    }
    store(out + at, value);
  }
}

NST_INLINE void copy(float* to, const float* from, Index count) {
  for (Index i = 0; i < count; ++i) to[i] = from[i];
}

// The same for the last, narrow panel, by way of full-width copies.
void write_narrow_row(Row row, const Vec (&acc)[kTileVecs], float* out, Vec& squares, Index columns) {
  float weights[kPanel] = {}, content[kPanel] = {}, target[kPanel] = {};
  if (row.weights != nullptr) copy(weights, row.weights, columns), row.weights = weights;
  if (row.content != nullptr) copy(content, row.content, columns), row.content = content;
  if (row.accumulate) copy(target, out, columns);
  write_row(row, acc, target, squares);
  copy(out, target, columns);
}

struct Block {
  Index channels, pixels, start, columns;
  const float* residual;  // packed
  const float* packed;    // pixels, packed
  const float* weights;   // (P) or null
  const float* content;   // (C, P) or null
  float twice_b;
  float* out;  // (C, P)
  bool accumulate;
};

// Returns Σ(F − content)² over the block.
double multiply_block(const Block& b) {
  double squares = 0;
  for (Index i = 0; i < b.channels; i += kTileRows) {
    const Index rows = smaller(kTileRows, b.channels - i);
    for (Index p = 0; p < b.columns; p += kPanel) {
      const float* panel = b.packed + p * b.channels;
      Vec acc[kTileRows][kTileVecs];
      multiply_tile<kTileVecs>(b.residual + i * b.channels, kTileRows, panel, b.channels, acc);
      const Index columns = smaller(kPanel, b.columns - p);
      Vec tile_squares{};
      for (Index r = 0; r < rows; ++r) {
        const Index at = (i + r) * b.pixels + b.start + p;
        const Row row{b.weights != nullptr ? b.weights + b.start + p : nullptr, panel + (i + r) * kPanel,
                      b.content != nullptr ? b.content + at : nullptr, b.twice_b, b.accumulate};
        if (columns == kPanel)
          write_row(row, acc[r], b.out + at, tile_squares);
        else
          write_narrow_row(row, acc[r], b.out + at, tile_squares, columns);
      }
      if (b.content != nullptr) squares += sum(tile_squares);
    }
  }
  return squares;
}

void write_losses(const Content& content, const double* squares, Index images, Index blocks) {
  for (Index n = 0; n < images; ++n) {
    double total = 0;
    for (Index i = 0; i < blocks; ++i) total += squares[n * blocks + i];
    content.losses[n] = content.coefficients[n] * total;
  }
}

}  // namespace

void gram_gradient(const Features& f, const float* residual, const double* coefficients,
                   const Content& content, float* out, bool accumulate, int threads) {
  const Index C = f.channels, P = f.pixels;
  const Index columns = smaller(larger(kPackedFloats / C / kPanel, 1) * kPanel, kMostColumns);
  const Index blocks = divide_up(P, columns), panels = divide_up(C, kTileRows);
  const Index matrix = panels * kTileRows * C, packed_size = columns * C;
  auto* packed_residual = static_cast<float*>(
      scratch(Scratch::shared, f.images * (matrix * sizeof(float) + (blocks + 1) * sizeof(double)) + 64));
  auto* squares = reinterpret_cast<double*>(packed_residual + round_up(f.images * matrix, 2));
  double* scales = squares + f.images * blocks;
  auto* packed = static_cast<float*>(scratch(Scratch::packed, threads * packed_size * sizeof(float)));

  for (Index n = 0; n < f.images; ++n) scales[n] = 4 * coefficients[n] * gram_scale(f, n);
  parallel_for(f.images * panels, threads, [=](Index task, int) {
    const Index n = task / panels;
    pack_residual(residual + n * C * C, C, static_cast<float>(scales[n]), task % panels,
                  packed_residual + n * matrix);
  });
  parallel_for(f.images * blocks, threads, [=, &f, &content](Index task, int worker) {
    const Index n = task / blocks, start = task % blocks * columns, map = n * C * P;
    Block block{C,
                P,
                start,
                smaller(columns, P - start),
                packed_residual + n * matrix,
                packed + worker * packed_size,
                f.weights != nullptr ? f.weights + n * f.weights_stride : nullptr,
                content.data != nullptr ? content.data + map : nullptr,
                content.data != nullptr ? static_cast<float>(2 * content.coefficients[n]) : 0.0F,
                out + map,
                accumulate};
    pack_pixels(f.data + map + start, P, C, block.columns, packed + worker * packed_size);
    squares[task] = multiply_block(block);
  });
  if (content.data != nullptr) write_losses(content, squares, f.images, blocks);
}

void content_gradient(const float* features, const Content& content, Index images, Index size, float* out,
                      bool accumulate, int threads) {
  const Index chunk = 16384, chunks = divide_up(size, chunk);
  auto* squares = static_cast<double*>(scratch(Scratch::shared, images * chunks * sizeof(double)));
  parallel_for(images * chunks, threads, [=, &content](Index task, int) {
    const Index n = task / chunks, start = task % chunks * chunk, stop = smaller(start + chunk, size);
    const float twice_b = static_cast<float>(2 * content.coefficients[n]);
    double total = 0;
    for (Index at = start; at < stop; at += 1024) {
      const Index end = n * size + smaller(at + 1024, stop);
      Index i = n * size + at;
      Vec lanes{};
      for (; i + kLanes <= end; i += kLanes) {
        const Vec difference = load(features + i) - load(content.data + i);
        Vec value = twice_b * difference;
        if (accumulate) value += load(out + i);
        store(out + i, value);
        lanes += difference * difference;
      }
      for (; i < end; ++i) {
        const float difference = features[i] - content.data[i];
        out[i] = twice_b * difference + (accumulate ? out[i] : 0.0F);
        total += static_cast<double>(difference) * static_cast<double>(difference);
      }
      total += sum(lanes);
    }
    squares[task] = total;
  });
  write_losses(content, squares, images, chunks);
}

}  // namespace nst::NST_PATH
