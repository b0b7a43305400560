// Threads and scratch memory. Compiled once, without instruction-set flags.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace nst {

// Runs call(context, task, worker) for every task in [0, tasks); worker is in [0, threads).
// Which worker takes a task depends on timing, so a task's result must not depend on its worker.
// Runs on the calling thread alone while another thread holds the pool.
void run_tasks(Index tasks, int threads, void (*call)(void*, Index, int), void* context);

template <class Body>
inline void parallel_for(Index tasks, int threads, Body body) {
  run_tasks(
      tasks, threads,
      [](void* context, Index task, int worker) { (*static_cast<Body*>(context))(task, worker); }, &body);
}

enum class Scratch { shared, packed };  // two live at a time

// 64-byte aligned memory of the calling thread, kept and grown between calls; contents undefined.
void* scratch(Scratch which, std::size_t bytes);

}  // namespace nst
