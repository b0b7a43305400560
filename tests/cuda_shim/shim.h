// Runs CUDA kernels on the CPU, so that tests need no GPU: included in front of csrc/device.cuh and the
// kernels. Blocks run one after another in the order given. The threads of a block are fibers that run
// up to their next barrier or warp operation; once all of a block or warp have arrived at the same one it
// releases them, and where they cannot it reports an error. Shared memory holds NaN when a block starts;
// its arrays must be declared in kernels, not in templates. Fragments of matrices lie as the PTX ISA says.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define NST_KERNEL static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("nst_shared")))

// The bounds of that section, which the linker knows.
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_nst_shared[], __stop_nst_shared[];

struct uint3 {
    unsigned x, y, z;
};
template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T x, y;
};
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Quad {
    T x, y, z, w;
};
using ushort2 = Pair<unsigned short>;
using uint2 = Pair<unsigned>;
using int2 = Pair<int>;
using float2 = Pair<float>;
using double2 = Pair<double>;
using ushort4 = Quad<unsigned short>;
using uint4 = Quad<unsigned>;
using int4 = Quad<int>;
using float4 = Quad<float>;

static uint3 threadIdx, blockIdx, blockDim, gridDim;

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

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

// The order of warps and lanes follows from `seed`, so that a missing barrier shows.
inline void run_block(int threads, unsigned seed)
{
    std::memset(__start_nst_shared, 0xFF, __stop_nst_shared - __start_nst_shared);
    std::for_each(lanes, lanes + threads, prepare);
    const int warps = threads / kWarp;
    while (failure.empty()) {
        for (int i = 0; i < warps; ++i) run_warp((i + seed) % warps * kWarp, seed / 2 & 1);
        const auto finished = [](const Lane& lane) { return lane.state == State::finished; };
        const auto done = std::count_if(lanes, lanes + threads, finished);
        if (done == threads) return;
        if (done > 0) return fail("some threads wait at a barrier, others have finished");
        for (int i = 0; i < threads; ++i) lanes[i].state = State::ready;
    }
}

template <class T>
std::string type_name()
{
    if constexpr (std::is_pointer_v<T>)
        return "*" + type_name<std::remove_cv_t<std::remove_pointer_t<T>>>();
    else if constexpr (std::is_arithmetic_v<T>)
        return (std::is_floating_point_v<T> ? "f" : std::is_signed_v<T> ? "i" : "u") + std::to_string(sizeof(T));
    else
        return "V" + std::to_string(sizeof(T));
}

struct Kernel {
    void (*call)(void**);
    std::string signature;
};
inline std::map<std::string, Kernel> kernels;

template <auto kernel>
struct Entry;
template <class... Parameters, void (*kernel)(Parameters...)>
struct Entry<kernel> {
    template <std::size_t... i>
    static void unpack(void** values, std::index_sequence<i...>)
    {
        kernel(*static_cast<std::remove_cv_t<Parameters>*>(values[i])...);
    }
    static void call(void** values) { unpack(values, std::index_sequence_for<Parameters...>()); }
    explicit Entry(const char* name)
    {
        kernels[name] = {call, ((type_name<std::remove_cv_t<Parameters>>() + " ") + ... + "")};
    }
};

template <class T>
struct Exchange {
    T value;
    int from;
    T result;
};

template <class T>
void exchange_all(Lane* warp)
{
    for (int i = 0; i < kWarp; ++i) {
        auto& own = argument_of<Exchange<T>>(warp[i]);
        own.result = argument_of<Exchange<T>>(warp[own.from]).value;
    }
}

template <class T>
T exchange(T value, int from)
{
    Exchange<T> own{value, from, value};
    warp_operation(exchange_all<T>, &own);
    return own.result;
}

struct Product {
    float (*d)[4];
    const unsigned* a;
    const unsigned* b;
};

// With `width` numbers in a word, row g of A is in the lanes 4g to 4g + 3; so are the rows of B transposed.
template <int width, float (*value)(unsigned word, int part)>
void multiply_all(Lane* warp)
{
    constexpr int kDepth = 8 * width;
    float a[16][kDepth], b[8][kDepth];
    for (int lane = 0; lane < kWarp; ++lane) {
        const auto& own = argument_of<Product>(warp[lane]);
        for (int part = 0; part < width; ++part) {
            const int k = lane % 4 * width + part;
            for (int i = 0; i < 4; ++i)
                a[lane / 4 + i % 2 * 8][k + i / 2 * kDepth / 2] = value(own.a[i], part);
            for (int i = 0; i < 2; ++i) b[lane / 4][k + i * kDepth / 2] = value(own.b[i], part);
        }
    }
    for (int lane = 0; lane < kWarp; ++lane)
        for (int i = 0; i < 4; ++i) {
            float& sum = (*argument_of<Product>(warp[lane]).d)[i];
            for (int k = 0; k < kDepth; ++k) sum += a[lane / 4 + i / 2 * 8][k] * b[lane % 4 * 2 + i % 2][k];
        }
}

struct Rows {
    const void* row;
    unsigned* words;
};

template <bool transposed>
void load_all(Lane* warp)
{
    for (int lane = 0; lane < kWarp; ++lane)
        for (int matrix = 0; matrix < 4; ++matrix) {
            unsigned short pair[2];
            for (int i = 0; i < 2; ++i) {
                const int across = lane % 4 * 2 + i, down = lane / 4;
                const int row = transposed ? across : down, column = transposed ? down : across;
                const auto* start = argument_of<Rows>(warp[matrix * 8 + row]).row;
                pair[i] = static_cast<const unsigned short*>(start)[column];
            }
            std::memcpy(&argument_of<Rows>(warp[lane]).words[matrix], pair, sizeof pair);
        }
}

template <bool transposed>
void load_rows(unsigned* words, const void* row)
{
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("a matrix row is not aligned");
    Rows own{row, words};
    warp_operation(load_all<transposed>, &own);
}

inline void nothing(Lane*) {}

}  // namespace shim

inline unsigned __float_as_uint(float value)
{
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned short float_to_half(float value)
{
    const _Float16 half = value;
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

inline float half_to_float(unsigned short bits)
{
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return half;
}

// Nearest, ties away from 0.
inline unsigned float_to_tf32(float value)
{
    const unsigned bits = __float_as_uint(value);
    if (isnan(value)) return bits | 0x400000;
    return isinf(value) ? bits : (bits + 0x1000) & ~0x1FFFu;
}

inline void __syncthreads() { shim::wait(shim::State::at_barrier); }
inline void __syncwarp() { shim::warp_operation(shim::nothing, nullptr); }

template <class T>
T __shfl_sync(unsigned, T value, int lane)
{
    return shim::exchange(value, lane % 32);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask)
{
    return shim::exchange(value, static_cast<int>(threadIdx.x % 32) ^ mask);
}

template <class T>
T __shfl_down_sync(unsigned, T value, int distance)
{
    const int lane = threadIdx.x % 32, from = lane + distance;
    return shim::exchange(value, from < 32 ? from : lane);
}

namespace shim {

inline float half_part(unsigned word, int part) { return half_to_float(word >> 16 * part & 0xFFFF); }
inline float bfloat_part(unsigned word, int part) { return __uint_as_float(word >> 16 * part << 16); }
inline float tf32_part(unsigned word, int) { return __uint_as_float(word & ~0x1FFFu); }

template <int width, float (*value)(unsigned, int)>
void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    Product own{&d, a, b};
    warp_operation(multiply_all<width, value>, &own);
}

}  // namespace shim

inline void mma_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    shim::multiply<2, shim::half_part>(d, a, b);
}

inline void mma_bfloat(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    shim::multiply<2, shim::bfloat_part>(d, a, b);
}

inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    shim::multiply<1, shim::tf32_part>(d, a, b);
}

inline void load_matrices(unsigned (&words)[4], const void* row) { shim::load_rows<false>(words, row); }
inline void load_matrices_transposed(unsigned (&words)[4], const void* row)
{
    shim::load_rows<true>(words, row);
}

// Copies happen when they are waited for, so that one not waited for shows.
inline void copy_async(void* shared, const void* global, bool present)
{
    if ((reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global)) % 16 != 0)
        shim::fail("an asynchronous copy is not aligned");
    shim::current->copies.push_back({shared, global, present, shim::current->group});
}

inline void commit_copies() { ++shim::current->group; }

template <int pending>
void wait_for_copies()
{
    auto& copies = shim::current->copies;
    while (!copies.empty() && copies.front().group < shim::current->group - pending) {
        const shim::Copy copy = copies.front();
        if (copy.present)
            std::memcpy(copy.to, copy.from, 16);
        else
            std::memset(copy.to, 0, 16);
        copies.erase(copies.begin());
    }
}

// Types of a kernel's parameters, a space behind each; null where there is no such kernel.
extern "C" __attribute__((visibility("default"))) const char* shim_signature(const char* name)
{
    const auto found = shim::kernels.find(name);
    return found == shim::kernels.end() ? nullptr : found->second.signature.c_str();
}

// Run the blocks of a grid in the given order; returns what went wrong, or an empty string.
extern "C" __attribute__((visibility("default"))) const char* shim_launch(
    const char* name, const unsigned* grid, unsigned threads, const long long* order, unsigned seed,
    void** values)
{
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    shim::body = shim::kernels.at(name).call;
    shim::arguments = values;
    shim::failure.clear();
    const long long blocks = 1LL * grid[0] * grid[1] * grid[2];
    for (long long i = 0; i < blocks && shim::failure.empty(); ++i) {
        const long long row = order[i] / grid[0];
        blockIdx = {static_cast<unsigned>(order[i] % grid[0]), static_cast<unsigned>(row % grid[1]),
                    static_cast<unsigned>(row / grid[1])};
        shim::run_block(threads, seed + i);
    }
    return shim::failure.c_str();
}
