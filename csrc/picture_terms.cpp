// The terms of the picture itself: total variation, range, temporal loss. Compiled once per instruction set.
#include "chunks.h"

namespace nst::NST_PATH {
namespace {

// Of one row, with its lower neighbour, or the row itself at an edge: 1/s of each pixel,
// s = √(corner² + right² + below²). Returns Σ s − corner, without its cancellation.
double slopes_row(const float* x, const float* down, Index width, float corner, float* inverse) {
  double total = 0;
  const float least = corner * corner;
  const auto scalar = [&](Index j) {
    const float right = j + 1 < width ? x[j + 1] - x[j] : 0, below = down[j] - x[j];
    const float squares = right * right + below * below, s = __builtin_sqrtf(least + squares);
    inverse[j] = 1.0F / s;
    total += squares / (s + corner);
  };
  Index j = 0;
  while (j + kLanes < width) {
    Vec lengths{};
    for (const Index stop = smaller(width, j + kBlock); j + kLanes < stop; j += kLanes) {
      const Vec here = load(x + j), right = load(x + j + 1) - here, below = load(down + j) - here;
      const Vec squares = right * right + below * below, s = square_root(least + squares);
      store(inverse + j, 1.0F / s);
      lengths += squares / (s + corner);
    }
    total += sum(lengths);
  }
  for (; j < width; ++j) scalar(j);
  return total;
}

// Adds one row of the variation's gradient; `up` is the row above, or the row itself at an edge, with the
// inverses of both from slopes_row.
void variation_row(const float* x, const float* up, const float* down, const float* inverse,
                   const float* inverse_up, Index width, float w, float* gradient) {
  const auto scalar = [&](Index j) {
    const float right = j + 1 < width ? x[j + 1] - x[j] : 0, below = down[j] - x[j];
    const float left = j > 0 ? (x[j] - x[j - 1]) * inverse[j - 1] : 0;
    gradient[j] += w * (left + (x[j] - up[j]) * inverse_up[j] - (right + below) * inverse[j]);
  };
  scalar(0);
  Index j = 1;
  for (; j + kLanes < width; j += kLanes) {
    const Vec here = load(x + j), right = load(x + j + 1) - here, below = load(down + j) - here;
    const Vec left = (here - load(x + j - 1)) * load(inverse + j - 1);
    const Vec above = (here - load(up + j)) * load(inverse_up + j);
    store(gradient + j, load(gradient + j) + w * (left + above - (right + below) * load(inverse + j)));
  }
  for (; j < width; ++j) scalar(j);
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

// losses[n] = weights[n]·Σ row_term(row, first, thread) over the rows of image n, added up in their order;
// `first` tells the first row of those that a thread takes one after another.
template <class RowTerm>
void sum_rows(const Pictures& p, const double* weights, double* losses, int threads,
              const RowTerm& row_term) {
  const Index rows = p.images * p.channels * p.height, group = smaller(16, rows);
  auto* sums = static_cast<double*>(scratch(Scratch::shared, rows * sizeof(double)));
  parallel_for(divide_up(rows, group), threads, [=, &row_term](Index task, int thread) {
    const Index begin = task * group;
    for (Index row = begin; row < smaller(begin + group, rows); ++row)
      sums[row] = row_term(row, row == begin, thread);
  });
  for (Index n = 0; n < p.images; ++n) {
    double total = 0;
    for (Index row = 0; row < p.channels * p.height; ++row) total += sums[n * p.channels * p.height + row];
    losses[n] = weights[n] * total;
  }
}

}  // namespace

void total_variation(const Pictures& p, float corner, const double* weights, float* gradient,
                     double* losses, int threads) {
  auto* inverses = static_cast<float*>(scratch(Scratch::packed, threads * 2 * p.width * sizeof(float)));
  sum_rows(p, weights, losses, threads, [=, &p](Index row, bool first, int thread) {
    const float* x = p.data + row * p.width;
    const Index i = row % p.height, n = row / (p.channels * p.height);
    const float *up = i > 0 ? x - p.width : x, *down = i + 1 < p.height ? x + p.width : x;
    float *inverse = inverses + (2 * thread + row % 2) * p.width;
    float *inverse_up = inverses + (2 * thread + (row + 1) % 2) * p.width;
    const double total = slopes_row(x, down, p.width, corner, inverse);
    if (first || i == 0) slopes_row(up, i > 0 ? x : down, p.width, corner, inverse_up);
    variation_row(x, up, down, inverse, inverse_up, p.width, static_cast<float>(weights[n]),
                  gradient + row * p.width);
    return total;
  });
}

void range_penalty(const Pictures& p, const double* weights, float* gradient, double* losses, int threads) {
  sum_rows(p, weights, losses, threads, [=, &p](Index row, bool, int) {
    const Index n = row / (p.channels * p.height);
    return range_row(p.data + row * p.width, p.width, static_cast<float>(2 * weights[n]),
                     gradient + row * p.width);
  });
}

void temporal_loss(const Pictures& p, const Anchor& anchor, const double* weights, float* gradient,
                   double* losses, int threads) {
  sum_rows(p, weights, losses, threads, [=, &p, &anchor](Index row, bool, int) {
    const Index at = row * p.width, n = row / (p.channels * p.height);
    const float* m = anchor.weights + (n * p.height + row % p.height) * p.width;
    return temporal_row(p.data + at, anchor.data + at, m, p.width, static_cast<float>(2 * weights[n]),
                        gradient + at);
  });
}

}  // namespace nst::NST_PATH
