// L-BFGS: the pair of a step with its dot products, the next step, a shorter one. Compiled once per
// instruction set.
#include "chunks.h"

namespace nst::NST_PATH {
namespace {

// The processor's own prefetching loses its way among the rows of the history.
constexpr Index kAhead = 256;  // elements of a row prefetched, where all rows advance together
constexpr int kVecs = 8;       // registers that do

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

}  // namespace

void lbfgs_update(const Lbfgs& a, int threads) {
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

void lbfgs_direction(const std::uint16_t* history, const double* coefficients, Index rows,
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

void retract(float* x, const float* x_prev, float ratio, Index size, int threads) {
  over_chunks(size, threads, [=](Index start, Index stop) {
    for (Index i = start; i < stop; ++i) x[i] = x_prev[i] + ratio * (x[i] - x_prev[i]);
  });
}

}  // namespace nst::NST_PATH
