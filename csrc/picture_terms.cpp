// The terms of the picture itself: total variation, range, temporal loss. Compiled once per instruction set.
#include "chunks.h"

namespace nst::NST_PATH {
namespace {

// One row of the total variation: up and down are the neighbouring rows, or the row itself at an edge.
// Returns Σ(right − x)² + Σ(down − x)².
double variation_row(const float* x, const float* up, const float* down, Index width, float twice_w,
                     float* gradient) {
  double total = 0;
  const auto scalar = [&](Index j) {
    const float right = j + 1 < width ? x[j + 1] - x[j] : 0, left = j > 0 ? x[j] - x[j - 1] : 0;
    const float below = down[j] - x[j], above = x[j] - up[j];
    gradient[j] += twice_w * ((left - right) + (above - below));
    total += static_cast<double>(right) * right + static_cast<double>(below) * below;
  };
  scalar(0);
  Index j = 1;
  while (j + kLanes < width) {
    Vec squares{};
    for (const Index stop = smaller(width, j + kBlock); j + kLanes < stop; j += kLanes) {
      const Vec here = load(x + j);
      const Vec right = load(x + j + 1) - here, left = here - load(x + j - 1);
      const Vec below = load(down + j) - here, above = here - load(up + j);
      store(gradient + j, load(gradient + j) + twice_w * ((left - right) + (above - below)));
      squares += right * right + below * below;
    }
    total += sum(squares);
  }
  for (; j < width; ++j) scalar(j);
  return total;
}

// One row of the range penalty: pixels outside [0, 1]. Returns Σ (x − clamped x)².
double range_row(const float* x, Index width, float twice_w, float* gradient) {
  double total = 0;
  const Vec low = splat(0), high = splat(1);
  const Index whole = width / kLanes * kLanes;
  for (Index j = 0; j < whole;) {
    Vec squares{};
    for (const Index stop = smaller(whole, j + kBlock); j < stop; j += kLanes) {
      const Vec here = load(x + j), outside = here - clamped(here, low, high);
      store(gradient + j, load(gradient + j) + twice_w * outside);
      squares += outside * outside;
    }
    total += sum(squares);
  }
  for (Index j = whole; j < width; ++j) {
    const float outside = x[j] < 0 ? x[j] : x[j] > 1 ? x[j] - 1 : x[j] * 0;  // NaN stays NaN
    gradient[j] += twice_w * outside;
    total += static_cast<double>(outside) * outside;
  }
  return total;
}

// One row of the temporal loss. Returns Σ m (x − anchor)².
double temporal_row(const float* x, const float* anchor, const float* m, Index width, float twice_w,
                    float* gradient) {
  double total = 0;
  const Index whole = width / kLanes * kLanes;
  for (Index j = 0; j < whole;) {
    Vec squares{};
    for (const Index stop = smaller(whole, j + kBlock); j < stop; j += kLanes) {
      const Vec off = load(x + j) - load(anchor + j), weighted = load(m + j) * off;
      store(gradient + j, load(gradient + j) + twice_w * weighted);
      squares += weighted * off;
    }
    total += sum(squares);
  }
  for (Index j = whole; j < width; ++j) {
    const float off = x[j] - anchor[j], weighted = m[j] * off;
    gradient[j] += twice_w * weighted;
    total += static_cast<double>(weighted) * off;
  }
  return total;
}

// losses[n] = weights[n]·Σ row_term(row) over the rows of image n, added up in their order.
template <class RowTerm>
void sum_rows(const Pictures& p, const double* weights, double* losses, int threads,
              const RowTerm& row_term) {
  const Index rows = p.images * p.channels * p.height, group = smaller(16, rows);
  auto* sums = static_cast<double*>(scratch(Scratch::shared, rows * sizeof(double)));
  parallel_for(divide_up(rows, group), threads, [=, &row_term](Index task, int) {
    for (Index row = task * group; row < smaller((task + 1) * group, rows); ++row) sums[row] = row_term(row);
  });
  for (Index n = 0; n < p.images; ++n) {
    double total = 0;
    for (Index row = 0; row < p.channels * p.height; ++row) total += sums[n * p.channels * p.height + row];
    losses[n] = weights[n] * total;
  }
}

}  // namespace

void total_variation(const Pictures& p, const double* weights, float* gradient, double* losses, int threads) {
  sum_rows(p, weights, losses, threads, [=, &p](Index row) {
    const float* x = p.data + row * p.width;
    const Index i = row % p.height, n = row / (p.channels * p.height);
    return variation_row(x, i > 0 ? x - p.width : x, i + 1 < p.height ? x + p.width : x, p.width,
                         static_cast<float>(2 * weights[n]), gradient + row * p.width);
  });
}

void range_penalty(const Pictures& p, const double* weights, float* gradient, double* losses, int threads) {
  sum_rows(p, weights, losses, threads, [=, &p](Index row) {
    const Index n = row / (p.channels * p.height);
    return range_row(p.data + row * p.width, p.width, static_cast<float>(2 * weights[n]),
                     gradient + row * p.width);
  });
}

void temporal_loss(const Pictures& p, const Anchor& anchor, const double* weights, float* gradient,
                   double* losses, int threads) {
  sum_rows(p, weights, losses, threads, [=, &p, &anchor](Index row) {
    const Index at = row * p.width, n = row / (p.channels * p.height);
    const float* m = anchor.weights + (n * p.height + row % p.height) * p.width;
    return temporal_row(p.data + at, anchor.data + at, m, p.width, static_cast<float>(2 * weights[n]),
                        gradient + at);
  });
}

}  // namespace nst::NST_PATH
