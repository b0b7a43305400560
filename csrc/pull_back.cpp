// From the derivatives at the moments to the gradient at the features, and the content term. Compiled once
// per instruction set.
//
// A F has the channels as its inner dimension. A task takes a block of pixels, packs it as panels
// [channel][pixel], and multiplies it by the packed A; b is what the sums start from. The content term
// reads F back from the packed panel, so it costs one more stream and no second pass.
#include "chunks.h"

namespace nst::NST_PATH {
namespace {

constexpr Index kPackedFloats = 65536;  // of a block of pixels: 256 KiB, a part of L2
constexpr Index kMostColumns = 1024;

// packed[panel][k][r] = [A b][panel·kTileRows + r][k], for k up to C; rows past the end are 0. A is
// symmetric, so its rows are read for columns.
void pack_derivative(const float* derivative, Index channels, Index panel, float* packed) {
  const Index first = panel * kTileRows, present = smaller(kTileRows, channels - first), width = channels + 1;
  packed += panel * width * kTileRows;
  for (Index k = 0; k < channels; ++k)
    for (Index r = 0; r < kTileRows; ++r)
      packed[k * kTileRows + r] = r < present ? derivative[k * width + first + r] : 0.0F;
  for (Index r = 0; r < kTileRows; ++r)
    packed[channels * kTileRows + r] = r < present ? derivative[(first + r) * width + channels] : 0.0F;
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

// One row of a tile on its way out: the content term, then weights.
struct Row {
  const float* weights;   // (kPanel); null: 1
  const float* features;  // (kPanel)
  const float* content;   // (kPanel); null: none
  float twice_c;
  bool accumulate;  // onto what the output holds
};

NST_INLINE void write_row(const Row& row, const Vec (&acc)[kTileVecs], float* out, Vec& squares) {
  for (int v = 0; v < kTileVecs; ++v) {
    const int at = v * kLanes;
    Vec value = acc[v];
    if (row.content != nullptr) {
      const Vec difference = load(row.features + at) - load(row.content + at);
      value += row.twice_c * difference;
      squares +=
          row.weights != nullptr ? load(row.weights + at) * difference * difference : difference * difference;
    }
    if (row.weights != nullptr) value *= load(row.weights + at);
    if (row.accumulate) value += load(out + at);
    store(out + at, value);
  }
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
  const float* derivative;  // packed
  const float* packed;      // pixels, packed
  const float* weights;     // (P) or null
  const float* content;     // (C, P) or null
  float twice_c;
  float* out;  // (C, P)
  bool accumulate;
};

// Returns Σ m (F − content)² over the block.
double multiply_block(const Block& b) {
  double squares = 0;
  for (Index i = 0; i < b.channels; i += kTileRows) {
    const Index rows = smaller(kTileRows, b.channels - i);
    const float* derivative = b.derivative + i * (b.channels + 1);
    for (Index p = 0; p < b.columns; p += kPanel) {
      const float* panel = b.packed + p * b.channels;
      Vec acc[kTileRows][kTileVecs];
      for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < kTileVecs; ++v) acc[r][v] = splat(derivative[b.channels * kTileRows + r]);
      multiply_tile<kTileVecs>(derivative, kTileRows, panel, b.channels, acc);
      const Index columns = smaller(kPanel, b.columns - p);
      Vec tile_squares{};
      for (Index r = 0; r < rows; ++r) {
        const Index at = (i + r) * b.pixels + b.start + p;
        const Row row{b.weights != nullptr ? b.weights + b.start + p : nullptr, panel + (i + r) * kPanel,
                      b.content != nullptr ? b.content + at : nullptr, b.twice_c, b.accumulate};
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

// Adds the tasks' squares in order.
void write_losses(const Content& content, const double* squares, Index images, Index tasks) {
  for (Index n = 0; n < images; ++n) {
    double total = 0;
    for (Index i = 0; i < tasks; ++i) total += squares[n * tasks + i];
    content.losses[n] = content.factors[n] * total;
  }
}

// out = [out +] twice_c·m∘(features − content) for one row of pixels; returns Σ m (features − content)².
double write_content(const float* features, const float* content, const float* weights, float twice_c,
                     Index count, float* out, bool accumulate) {
  double total = 0;
  for (Index at = 0; at < count; at += kBlock) {
    const Index stop = smaller(at + kBlock, count);
    Vec lanes{};
    Index i = at;
    for (; i + kLanes <= stop; i += kLanes) {
      const Vec difference = load(features + i) - load(content + i);
      const Vec weighted = weights != nullptr ? load(weights + i) * difference : difference;
      store(out + i, accumulate ? load(out + i) + twice_c * weighted : twice_c * weighted);
      lanes += weighted * difference;
    }
    for (; i < stop; ++i) {
      const float difference = features[i] - content[i];
      const float weighted = weights != nullptr ? weights[i] * difference : difference;
      out[i] = accumulate ? out[i] + twice_c * weighted : twice_c * weighted;
      total += static_cast<double>(weighted) * static_cast<double>(difference);
    }
    total += sum(lanes);
  }
  return total;
}

}  // namespace

void pull_back(const Features& f, const float* derivative, const Content& content, float* out,
               bool accumulate, int threads) {
  const Index C = f.channels, P = f.pixels;
  const Index columns = smaller(larger(kPackedFloats / C / kPanel, 1) * kPanel, kMostColumns);
  const Index blocks = divide_up(P, columns), panels = divide_up(C, kTileRows);
  const Index matrix = panels * kTileRows * (C + 1), packed_size = columns * C;
  auto* squares = static_cast<double*>(
      scratch(Scratch::shared, f.images * (blocks * sizeof(double) + matrix * sizeof(float))));
  auto* packed_derivative = reinterpret_cast<float*>(squares + f.images * blocks);
  auto* packed = static_cast<float*>(scratch(Scratch::packed, threads * packed_size * sizeof(float)));

  parallel_for(f.images * panels, threads, [=](Index task, int) {
    const Index n = task / panels;
    pack_derivative(derivative + n * C * (C + 1), C, task % panels, packed_derivative + n * matrix);
  });
  parallel_for(f.images * blocks, threads, [=, &f, &content](Index task, int worker) {
    const Index n = task / blocks, start = task % blocks * columns, map = n * C * P;
    Block block{C,
                P,
                start,
                smaller(columns, P - start),
                packed_derivative + n * matrix,
                packed + worker * packed_size,
                f.weights != nullptr ? f.weights + n * f.weights_stride : nullptr,
                content.data != nullptr ? content.data + map : nullptr,
                content.data != nullptr ? static_cast<float>(2 * content.factors[n]) : 0.0F,
                out + map,
                accumulate};
    pack_pixels(f.data + map + start, P, C, block.columns, packed + worker * packed_size);
    squares[task] = multiply_block(block);
  });
  if (content.data != nullptr) write_losses(content, squares, f.images, blocks);
}

void content_pull_back(const Features& f, const Content& content, float* out, bool accumulate, int threads) {
  const Index C = f.channels, P = f.pixels;
  // A task takes a part of one row or, where rows are short, several whole rows.
  const Index parts = divide_up(P, kChunk), rows = larger(kChunk / P, 1);
  const Index tasks = divide_up(C, rows) * parts;
  auto* squares = static_cast<double*>(scratch(Scratch::shared, f.images * tasks * sizeof(double)));
  parallel_for(f.images * tasks, threads, [=, &f, &content](Index task, int) {
    const Index n = task / tasks, first = task % tasks / parts * rows, start = task % parts * kChunk;
    const float* weights = f.weights != nullptr ? f.weights + n * f.weights_stride + start : nullptr;
    squares[task] = 0;
    for (Index row = first; row < smaller(first + rows, C); ++row) {
      const Index at = (n * C + row) * P + start;
      squares[task] +=
          write_content(f.data + at, content.data + at, weights, static_cast<float>(2 * content.factors[n]),
                        smaller(kChunk, P - start), out + at, accumulate);
    }
  });
  write_losses(content, squares, f.images, tasks);
}

}  // namespace nst::NST_PATH
