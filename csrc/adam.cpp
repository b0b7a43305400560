// Adam, and the range of what it moves. Compiled once per instruction set.
#include "chunks.h"

namespace nst::NST_PATH {
namespace {

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

}  // namespace

double adam_update(const Adam& a, int threads) {
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

void clamp(float* x, float low, float high, Index size, int threads) {
  over_chunks(size, threads, [=](Index start, Index stop) {
    for (Index i = start; i < stop; ++i) {
      const float value = x[i] < low ? low : x[i];
      x[i] = value > high ? high : value;
    }
  });
}

}  // namespace nst::NST_PATH
