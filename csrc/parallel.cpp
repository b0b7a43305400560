#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#if defined(_WIN32)
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

namespace nst {
namespace {

struct Job {
  void (*call)(void*, Index, int);
  void* context;
  Index tasks;
  std::atomic<Index> next{0};

  void work(int worker) {
    for (Index task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      call(context, task, worker);
  }
};

// Sleeping workers that join one job at a time.
class Pool {
 public:
  const int process = static_cast<int>(getpid());
  std::mutex owner;  // held by the thread whose job runs

  void run(Job& job, int threads) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < threads - 1; ++workers_) start();
      job_ = &job;
      joining_ = threads - 1;
      active_ = threads - 1;
      ++round_;
    }
    wake_.notify_all();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    active_ -= joining_;  // workers still asleep are not waited for
    joining_ = 0;
    done_.wait(lock, [this] { return active_ == 0; });
    job_ = nullptr;
  }

 private:
  // Started under the lock, so a new worker also sees the round that started it.
  void start() {
    std::thread([this, seen = round_] { serve(seen); }).detach();
  }

  void serve(unsigned seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return seen != round_; });
      seen = round_;
      if (joining_ == 0) continue;
      const int worker = joining_--;
      Job& job = *job_;
      lock.unlock();
      job.work(worker);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int workers_ = 0, joining_ = 0, active_ = 0;
  unsigned round_ = 0;
};

// The pool of this process. A forked child has none of its parent's threads and makes its own; no pool
// is ever destroyed, because its threads outlive static destructors.
Pool& pool() {
  static std::atomic<Pool*> current{nullptr};
  Pool* known = current.load();
  const int process = static_cast<int>(getpid());
  while (known == nullptr || known->process != process) {
    auto fresh = std::make_unique<Pool>();
    if (current.compare_exchange_strong(known, fresh.get())) return *fresh.release();
  }
  return *known;
}

}  // namespace

void run_tasks(Index tasks, int threads, void (*call)(void*, Index, int), void* context) {
  Job job{call, context, tasks};
  threads = static_cast<int>(std::min<Index>(threads, tasks));
  if (threads > 1) {
    Pool& shared = pool();
    const std::unique_lock<std::mutex> owned(shared.owner, std::try_to_lock);
    if (owned) return shared.run(job, threads);
  }
  job.work(0);
}

void* scratch(Scratch which, std::size_t bytes) {
  constexpr std::align_val_t alignment{64};
  struct Block {
    void* data = nullptr;
    std::size_t bytes = 0;
    void release() {
      ::operator delete(data, alignment);
      data = nullptr;
      bytes = 0;
    }
    ~Block() { release(); }
  };
  thread_local Block blocks[2];
  Block& block = blocks[static_cast<int>(which)];
  if (block.bytes < bytes) {
    block.release();
    block.data = ::operator new(bytes, alignment);
    block.bytes = bytes;
  }
  return block.data;
}

}  // namespace nst
