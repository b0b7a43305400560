// How a pass over memory is cut: into chunks, one a task, and blocks, which bound the sums in float32. Both
// depend on the shape alone.
#pragma once

#include "parallel.h"
#include "vec.h"

namespace nst::NST_PATH {
namespace {

constexpr Index kChunk = 16384;  // elements per task, about
constexpr Index kBlock = 1024;   // elements added in float32 before they join the double sums

// Calls body(start, stop) for every chunk of [0, size), in parallel.
template <class Body>
void over_chunks(Index size, int threads, Body body) {
  parallel_for(divide_up(size, kChunk), threads,
               [=](Index task, int) { body(task * kChunk, smaller((task + 1) * kChunk, size)); });
}

}  // namespace
}  // namespace nst::NST_PATH
