// Runs CUDA kernels on the CPU, so that tests need no GPU: included in front of csrc/device.cuh and the
// kernels. Blocks run one after another in the order given. The threads of a block are fibers that run
// up to their next barrier or warp operation; once all of a block or warp have arrived at the same one it
// releases them, and where they cannot it reports an error. Shared memory holds NaN when a block starts;
// its arrays must be declared in kernels, not in templates.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "warp.h"

namespace shim {

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

}  // namespace shim

// Types of a kernel's parameters, a space behind each; null where there is no such kernel.
extern "C" __attribute__((visibility("default"))) const char* shim_signature(const char* name)
{
    const auto found = shim::kernels.find(name);
    return found == shim::kernels.end() ? nullptr : found->second.signature.c_str();
}

// Run the blocks of a grid in the given order; returns what went wrong, or an empty string.
extern "C" __attribute__((visibility("default"))) const char* shim_launch(
    const char* name, const unsigned* grid, unsigned threads, unsigned shared, const long long* order,
    unsigned seed, void** values)
{
    shim::dynamic_bytes = shared;
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
