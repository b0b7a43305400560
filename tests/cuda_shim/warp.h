// What the lanes of a warp do together, and asynchronous copies: fragments of matrices lie as the PTX
// ISA says.
#pragma once

#include <cstdint>
#include <cstring>

#include "fibers.h"

namespace shim {

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
