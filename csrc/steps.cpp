// The optimisers' vector work and the total variation: one pass over memory each. Compiled once per
// instruction set.
#include "parallel.h"
#include "vec.h"

namespace nst::NST_PATH {
namespace {

constexpr Index kChunk = 16384;  // elements per task
constexpr Index kBlock = 1024;   // elements added in float32 before they join the double sums
// The processor's own prefetching loses its way among the rows of the history.
constexpr Index kAhead = 256;  // elements of a row prefetched, where all rows advance together
constexpr int kVecs = 8;       // registers that do

// Calls body(start, stop) for every chunk of [0, size), in parallel.
template <class Body>
void over_chunks(Index size, int threads, Body body) {
  parallel_for(divide_up(size, kChunk), threads,
               [=](Index task, int) { body(task * kChunk, smaller((task + 1) * kChunk, size)); });
}

// Asks for an element that may lie past the end, which no pointer may.
NST_INLINE void prefetch(const std::uint16_t* p, Index ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + sizeof *p * ahead));
}

// A block of s, y and g in the first-level cache, zero past the end, rounded as the history is.
struct Pairs {
  alignas(64) float s[kBlock], y[kBlock], g[kBlock];
};

// Rounds s = x − x_prev and y = g − g_prev into the history and moves x and g on; count is a multiple of
// kLanes.
NST_INLINE void store_pair(const float* x, float* x_prev, const float* g, float* g_prev, std::uint16_t* s_row,
                           std::uint16_t* y_row, Index count, Pairs& pairs) {
  for (Index i = 0; i < count; i += kLanes) {
    const Vec x_now = load(x + i), g_now = load(g + i);
    store(pairs.s + i, store_half(s_row + i, x_now - load(x_prev + i)));
    store(pairs.y + i, store_half(y_row + i, g_now - load(g_prev + i)));
    store(pairs.g + i, g_now);
    store(x_prev + i, x_now);
    store(g_prev + i, g_now);
  }
}

template <class T>
NST_INLINE void copy(T* to, const T* from, Index count) {
  for (Index i = 0; i < count; ++i) to[i] = from[i];
}

// The last elements of the arrays, fewer than kLanes, by way of padded copies.
void store_pair_tail(const Lbfgs& a, Index at, Index count, Index offset, Pairs& pairs) {
  float x[kLanes] = {}, x_prev[kLanes] = {}, g[kLanes] = {}, g_prev[kLanes] = {};
  std::uint16_t s[kLanes], y[kLanes];
  copy(x, a.x + at, count);
  copy(x_prev, a.x_prev + at, count);
  copy(g, a.gradient + at, count);
  copy(g_prev, a.gradient_prev + at, count);
  Pairs tail;
  store_pair(x, x_prev, g, g_prev, s, y, kLanes, tail);
  copy(a.x_prev + at, x, count);
  copy(a.gradient_prev + at, g, count);
  copy(a.history + a.slot * a.size + at, s, count);
  copy(a.history + (a.memory + a.slot) * a.size + at, y, count);
  copy(pairs.s + offset, tail.s, kLanes);
  copy(pairs.y + offset, tail.y, kLanes);
  copy(pairs.g + offset, tail.g, kLanes);
}

NST_INLINE void dot_pair(const Pairs& pairs, const std::uint16_t* s_row, const std::uint16_t* y_row,
                         Index from, Index to, Vec (&dots)[6]) {
  for (Index i = from; i < to; i += kLanes) {
    const Vec s = load_half(s_row + i - from), y = load_half(y_row + i - from);
    prefetch(s_row + i - from, kBlock);
    prefetch(y_row + i - from, kBlock);
    const Vec ours[3] = {load(pairs.s + i), load(pairs.y + i), load(pairs.g + i)};
    for (int k = 0; k < 3; ++k) {
      dots[2 * k] += ours[k] * s;
      dots[2 * k + 1] += ours[k] * y;
    }
  }
}

// Adds the dots of one block, [at, at + count), to sums: (3, 2m + 1).
void dot_block(const Lbfgs& a, const Pairs& pairs, Index at, Index count, double* sums) {
  const Index whole = count / kLanes * kLanes, columns = 2 * a.memory + 1;
  Vec squares{};
  for (Index i = 0; i < round_up(count, kLanes); i += kLanes)
    squares += load(pairs.g + i) * load(pairs.g + i);
  sums[2 * columns + 2 * a.memory] += sum(squares);
  for (Index slot = 0; slot < a.count; ++slot) {
    const std::uint16_t* s_row = a.history + slot * a.size + at;
    const std::uint16_t* y_row = a.history + (a.memory + slot) * a.size + at;
    Vec dots[6] = {};
    dot_pair(pairs, s_row, y_row, 0, whole, dots);
    if (whole < count) {
      std::uint16_t s[kLanes] = {}, y[kLanes] = {};
      copy(s, s_row + whole, count - whole);
      copy(y, y_row + whole, count - whole);
      dot_pair(pairs, s, y, whole, whole + kLanes, dots);
    }
    for (int k = 0; k < 3; ++k) {
      sums[k * columns + slot] += sum(dots[2 * k]);
      sums[k * columns + a.memory + slot] += sum(dots[2 * k + 1]);
    }
  }
}

void update_chunk(const Lbfgs& a, Index start, Index stop, double* sums) {
  Pairs pairs;
  for (Index at = start; at < stop; at += kBlock) {
    const Index count = smaller(kBlock, stop - at), whole = count / kLanes * kLanes;
    store_pair(a.x + at, a.x_prev + at, a.gradient + at, a.gradient_prev + at,
               a.history + a.slot * a.size + at, a.history + (a.memory + a.slot) * a.size + at, whole, pairs);
    if (whole < count) store_pair_tail(a, at + whole, count - whole, whole, pairs);
    dot_block(a, pairs, at, count, sums);
  }
}

}  // namespace

static void lbfgs_update(const Lbfgs& a, int threads) {
  const Index columns = 2 * a.memory + 1, chunks = divide_up(a.size, kChunk);
  auto* sums = static_cast<double*>(scratch(Scratch::shared, chunks * 3 * columns * sizeof(double)));
  for (Index i = 0; i < chunks * 3 * columns; ++i) sums[i] = 0;
  over_chunks(a.size, threads, [=, &a](Index start, Index stop) {
    update_chunk(a, start, stop, sums + start / kChunk * 3 * columns);
  });
  for (Index i = 0; i < 3 * columns; ++i) {
    a.dots[i] = 0;
    for (Index chunk = 0; chunk < chunks; ++chunk) a.dots[i] += sums[chunk * 3 * columns + i];
  }
  a.dots[2 * a.memory] = a.dots[2 * columns + a.slot];
  a.dots[columns + 2 * a.memory] = a.dots[2 * columns + a.memory + a.slot];
}

// x[i] = x_prev[i] + Σ coefficients[row]·history[row][i] + scale·gradient[i] for kVecs registers.
NST_INLINE void combine(const std::uint16_t* history, const float* coefficients, Index rows, Index stride,
                        const float* gradient, float scale, const float* x_prev, float* x) {
  Vec sums[kVecs];
  for (int v = 0; v < kVecs; ++v) sums[v] = scale * load(gradient + v * kLanes);
  for (Index row = 0; row < rows; ++row) {
    if (coefficients[row] == 0.0F) continue;
    for (int v = 0; v < kVecs; ++v) {
      const std::uint16_t* h = history + row * stride + v * kLanes;
      prefetch(h, kAhead);
      sums[v] += coefficients[row] * load_half(h);
    }
  }
  for (int v = 0; v < kVecs; ++v) store(x + v * kLanes, load(x_prev + v * kLanes) + sums[v]);
}

static void lbfgs_direction(const std::uint16_t* history, const double* coefficients, Index rows,
                            const float* gradient, double gradient_coefficient, const float* x_prev, float* x,
                            Index size, int threads) {
  const float scale = static_cast<float>(gradient_coefficient);
  auto* factors = static_cast<float*>(scratch(Scratch::shared, rows * sizeof(float)));
  for (Index row = 0; row < rows; ++row) factors[row] = static_cast<float>(coefficients[row]);
  over_chunks(size, threads, [=](Index start, Index stop) {
    Index i = start;
    for (; i + kVecs * kLanes <= stop; i += kVecs * kLanes)
      combine(history + i, factors, rows, size, gradient + i, scale, x_prev + i, x + i);
    for (; i < stop; ++i) {
      float total = scale * gradient[i];
      for (Index row = 0; row < rows; ++row)
        if (factors[row] != 0.0F) total += factors[row] * wide(history[row * size + i]);
      x[i] = x_prev[i] + total;
    }
  });
}

static void retract(float* x, const float* x_prev, float ratio, Index size, int threads) {
  over_chunks(size, threads, [=](Index start, Index stop) {
    for (Index i = start; i < stop; ++i) x[i] = x_prev[i] + ratio * (x[i] - x_prev[i]);
  });
}

static void clamp(float* x, float low, float high, Index size, int threads) {
  over_chunks(size, threads, [=](Index start, Index stop) {
    for (Index i = start; i < stop; ++i) {
      const float value = x[i] < low ? low : x[i];
      x[i] = value > high ? high : value;
    }
  });
}

NST_INLINE void adam_block(const Adam& a, float* x, float* m, float* v, const float* g, Index count,
                           Vec& squares) {
  const Vec low = splat(a.low), high = splat(a.high);
  for (Index i = 0; i < count; i += kLanes) {
    const Vec gradient = load(g + i);
    const Vec first = a.beta1 * load(m + i) + (1 - a.beta1) * gradient;
    const Vec second = a.beta2 * load(v + i) + (1 - a.beta2) * gradient * gradient;
    store(m + i, first);
    store(v + i, second);
    const Vec moved = load(x + i) - a.step * first / (square_root(second) * a.root_scale + a.epsilon);
    store(x + i, clamped(moved, low, high));
    squares += gradient * gradient;
  }
}

static double adam_update(const Adam& a, int threads) {
  const Index chunks = divide_up(a.size, kChunk);
  auto* sums = static_cast<double*>(scratch(Scratch::shared, chunks * sizeof(double)));
  over_chunks(a.size, threads, [=, &a](Index start, Index stop) {
    double total = 0;
    for (Index at = start; at < stop; at += kBlock) {
      const Index count = smaller(kBlock, stop - at), whole = count / kLanes * kLanes, end = at + whole;
      Vec squares{};
      adam_block(a, a.x + at, a.m + at, a.v + at, a.gradient + at, whole, squares);
      if (whole < count) {
        float tail[4][kLanes] = {};
        const float* arrays[4] = {a.x, a.m, a.v, a.gradient};
        for (int k = 0; k < 4; ++k) copy(tail[k], arrays[k] + end, count - whole);
        adam_block(a, tail[0], tail[1], tail[2], tail[3], kLanes, squares);
        float* updated[3] = {a.x, a.m, a.v};
        for (int k = 0; k < 3; ++k) copy(updated[k] + end, tail[k], count - whole);
      }
      total += sum(squares);
    }
    sums[start / kChunk] = total;
  });
  double total = 0;
  for (Index chunk = 0; chunk < chunks; ++chunk) total += sums[chunk];
  return total;
}

// One row of the total variation: up and down are the neighbouring rows, or the row itself at an edge.
// Returns Σ(right − x)² + Σ(down − x)².
static double variation_row(const float* x, const float* up, const float* down, Index width, float twice_w,
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
static double range_row(const float* x, Index width, float twice_w, float* gradient) {
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

// losses[n] = weights[n]·Σ row_term(row) over the rows of image n, added up in their order.
template <class RowTerm>
static void sum_rows(const Pictures& p, const double* weights, double* losses, int threads,
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

static void total_variation(const Pictures& p, const double* weights, float* gradient, double* losses,
                            int threads) {
  sum_rows(p, weights, losses, threads, [=, &p](Index row) {
    const float* x = p.data + row * p.width;
    const Index i = row % p.height, n = row / (p.channels * p.height);
    return variation_row(x, i > 0 ? x - p.width : x, i + 1 < p.height ? x + p.width : x, p.width,
                         static_cast<float>(2 * weights[n]), gradient + row * p.width);
  });
}

static void range_penalty(const Pictures& p, const double* weights, float* gradient, double* losses,
                          int threads) {
  sum_rows(p, weights, losses, threads, [=, &p](Index row) {
    const Index n = row / (p.channels * p.height);
    return range_row(p.data + row * p.width, p.width, static_cast<float>(2 * weights[n]),
                     gradient + row * p.width);
  });
}

#define NST_TEXT_(x) #x
#define NST_TEXT(x) NST_TEXT_(x)
extern const Kernels table;
const Kernels table{
    NST_TEXT(NST_PATH), moments,       pull_back,    content_pull_back, extend,  fold,        smooth,
    total_variation,    range_penalty, lbfgs_update, lbfgs_direction,   retract, adam_update, clamp};

}  // namespace nst::NST_PATH
