// The mirrored margin between a picture and the encoder. Compiled once per instruction set.
#include "chunks.h"

namespace nst::NST_PATH {
namespace {

// The longest run of a table along which it counts up: table[at + i] =
// table[at] + i for i < count.
struct Run {
  Index at = 0, count = 0;
};

Run longest_run(const std::int32_t* table, Index size) {
  Run best;
  for (Index at = 0, next; at < size; at = next) {
    for (next = at + 1; next < size && table[next] == table[next - 1] + 1;) ++next;
    if (next - at > best.count) best = {at, next - at};
  }
  return best;
}

void extend_row(const Canvas& c, Run run, const float* from, float* to) {
  const Index end = run.at + run.count;
  for (Index j = 0; j < run.at; ++j) to[j] = from[c.columns[j]];
  __builtin_memcpy(to + run.at, from + c.columns[run.at], run.count * sizeof(float));
  for (Index j = end; j < c.width; ++j) to[j] = from[c.columns[j]];
}

void fold_row(const Canvas& c, Run run, const float* from, float* to) {
  const Index end = run.at + run.count;
  for (Index j = 0; j < run.at; ++j) to[c.columns[j]] += from[j];
  for (Index i = 0; i < run.count; ++i) to[c.columns[run.at] + i] += from[run.at + i];
  for (Index j = end; j < c.width; ++j) to[c.columns[j]] += from[j];
}

// Calls body(plane, row) for every row of every plane, in parallel.
template <class Body>
void over_rows(Index planes, Index height, Index width, int threads, Body body) {
  const Index rows = planes * height, group = larger(kChunk / width, 1);
  parallel_for(divide_up(rows, group), threads, [=](Index task, int) {
    for (Index row = task * group; row < smaller((task + 1) * group, rows); ++row)
      body(row / height, row % height);
  });
}

}  // namespace

void extend(const float* planes, const Canvas& c, float* canvases, int threads) {
  const Run run = longest_run(c.columns, c.width);
  over_rows(c.planes, c.height, c.width, threads, [=, &c](Index plane, Index i) {
    extend_row(c, run, planes + (plane * c.plane_height + c.rows[i]) * c.plane_width,
               canvases + (plane * c.height + i) * c.width);
  });
}

void fold(const float* canvases, const Canvas& c, float* planes, int threads) {
  const Run run = longest_run(c.columns, c.width);
  // The canvas's rows that show row r: first[r], next[first[r]], ... until −1.
  auto* first = static_cast<Index*>(scratch(Scratch::shared, (c.plane_height + c.height) * sizeof(Index)));
  Index* next = first + c.plane_height;
  for (Index r = 0; r < c.plane_height; ++r) first[r] = -1;
  for (Index i = c.height; i-- > 0;) {
    next[i] = first[c.rows[i]];
    first[c.rows[i]] = i;
  }
  over_rows(c.planes, c.plane_height, c.plane_width, threads, [=, &c](Index plane, Index r) {
    float* to = planes + (plane * c.plane_height + r) * c.plane_width;
    for (Index j = 0; j < c.plane_width; ++j) to[j] = 0;
    for (Index i = first[r]; i >= 0; i = next[i])
      fold_row(c, run, canvases + (plane * c.height + i) * c.width, to);
  });
}

}  // namespace nst::NST_PATH
