// Threads of a block as fibers, which one thread of the CPU runs until they wait; the block's barrier.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "words.h"

// The bounds of that section, which the linker knows.
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_nst_shared[], __stop_nst_shared[];

namespace shim {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr std::size_t kStack = 64 * 1024;

struct Lane;
using WarpOperation = void (*)(Lane* lanes);

struct Copy {
    void* to;
    const void* from;
    bool present;
    int group;
};

enum class State { ready, at_barrier, at_warp_operation, finished };

struct Lane {
    State state;
    bool started;
    WarpOperation operation;
    void* argument;
    jmp_buf context;
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    std::vector<Copy> copies;
    int group;
};

inline Lane lanes[kMostThreads];
inline Lane* current;
inline jmp_buf scheduler;
inline void (*body)(void**);
inline void** arguments;
inline std::string failure;

inline void fail(const std::string& what)
{
    if (!failure.empty()) return;
    failure = what + ": block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
              std::to_string(blockIdx.z) + "), thread " + std::to_string(threadIdx.x);
}

// After the first switch into a fiber, _setjmp and _longjmp: they make no system call.
inline void wait(State state)
{
    current->state = state;
    if (_setjmp(current->context) == 0) _longjmp(scheduler, 1);
}

// Run `operation` once, when all lanes of the warp have come with an argument for it.
inline void warp_operation(WarpOperation operation, void* argument)
{
    current->operation = operation;
    current->argument = argument;
    wait(State::at_warp_operation);
}

template <class T>
T& argument_of(Lane& lane)
{
    return *static_cast<T*>(lane.argument);
}

inline void fiber()
{
    body(arguments);
    wait(State::finished);
}

inline void prepare(Lane& lane)
{
    if (!lane.stack) lane.stack.reset(new char[kStack]);
    getcontext(&lane.start);
    lane.start.uc_stack.ss_sp = lane.stack.get();
    lane.start.uc_stack.ss_size = kStack;
    lane.start.uc_link = nullptr;
    makecontext(&lane.start, fiber, 0);
    lane.state = State::ready;
    lane.started = false;
    lane.copies.clear();
    lane.group = 0;
}

inline void resume(int thread)
{
    current = &lanes[thread];
    threadIdx = {static_cast<unsigned>(thread), 0, 0};
    if (_setjmp(scheduler) != 0) return;
    if (current->started) _longjmp(current->context, 1);
    current->started = true;
    setcontext(&current->start);
}

// Run a warp until each of its lanes waits at the block's barrier or has finished.
inline void run_warp(int first, bool backwards)
{
    Lane* warp = lanes + first;
    while (failure.empty()) {
        for (int i = 0; i < kWarp; ++i) {
            const int lane = backwards ? kWarp - 1 - i : i;
            if (warp[lane].state == State::ready) resume(first + lane);
        }
        const auto waits = [](const Lane& lane) { return lane.state == State::at_warp_operation; };
        const auto strays = [&](const Lane& lane) { return !waits(lane) || lane.operation != warp->operation; };
        if (std::none_of(warp, warp + kWarp, waits)) return;
        if (std::any_of(warp, warp + kWarp, strays)) return fail("a warp is not of one mind");
        warp->operation(warp);
        for (int i = 0; i < kWarp; ++i) warp[i].state = State::ready;
    }
}

inline void check_dynamic()
{
    const auto written = [](char byte) { return byte != '\xFF'; };
    if (std::any_of(dynamic + dynamic_bytes, dynamic + kMostDynamic, written))
        fail("a block wrote behind its shared memory");
}

// The order of warps and lanes follows from `seed`, so that a missing barrier shows.
inline void run_block(int threads, unsigned seed)
{
    std::memset(__start_nst_shared, 0xFF, __stop_nst_shared - __start_nst_shared);
    std::memset(dynamic, 0xFF, kMostDynamic);
    std::for_each(lanes, lanes + threads, prepare);
    const int warps = threads / kWarp;
    while (failure.empty()) {
        for (int i = 0; i < warps; ++i) run_warp((i + seed) % warps * kWarp, seed / 2 & 1);
        const auto finished = [](const Lane& lane) { return lane.state == State::finished; };
        const auto done = std::count_if(lanes, lanes + threads, finished);
        if (done == threads) return check_dynamic();
        if (done > 0) return fail("some threads wait at a barrier, others have finished");
        for (int i = 0; i < threads; ++i) lanes[i].state = State::ready;
    }
}

}  // namespace shim

inline void __syncthreads() { shim::wait(shim::State::at_barrier); }
