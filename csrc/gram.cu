// Gram matrices of all taps, their residuals, and the gradients at the features; see csrc/README.md.
// Compiled behind device.cuh and products.cuh.

namespace taps {

using namespace products;

constexpr int kBandRows = 4;  // rows of R that a block of 256 threads reduces
constexpr int kBandThreads = kTile * kBandRows;

// N pictures, C channels, P pixels; the layout is that of DESCRIPTOR in nst_fast/kernels/taps.py.
struct Tap {
    const void* features;  // (N, C, P)
    void* gradient;        // (N, C, P)
    const float* style;    // T, (N, C, C), or null
    const void* content;   // (N, C, P), or null
    float* residual;       // R, (N, C, C)
    void* scaled;          // R with each row times a power of two, (N, C, scaled_stride)
    float* unscale;        // the inverse of that power, (N, C)
    float* partials;       // (N, slices, tiles on and below the diagonal, 64, 64)
    double* style_sums;    // (N, bands)
    double* content_sums;  // (N, tiles of the gradient)
    int channels;
    int pixels;
    int scaled_stride;
    int slices;
    int slice_stages;    // pixels of a slice, in stages
    int style_column;    // of factors and terms
    int content_column;  // of factors and terms
    int aligned;         // whether every row of (N, C, P) starts at 16 bytes
};

// What a block does.
struct Block {
    int tap;
    int picture;
    int row;     // tile or band of rows
    int column;  // tile
    int slice;
};

// A term is factor · sum / count of the sums' values.
struct Term {
    const double* sums;  // (N, length)
    long long length;
    double count;
};

template <class T>
__device__ __forceinline__ Matrix<T> features_of(const Tap& tap, int picture)
{
    const long long offset = static_cast<long long>(picture) * tap.channels * tap.pixels;
    return {static_cast<const T*>(tap.features) + offset, tap.pixels, tap.channels, tap.pixels,
            tap.aligned != 0};
}

__device__ __forceinline__ float values_of(const Tap& tap)
{
    return static_cast<float>(tap.channels) * static_cast<float>(tap.pixels);
}

// Where the partial sums of a tile on or below the diagonal lie.
__device__ __forceinline__ float* partial_tile(const Tap& tap, int picture, int slice, int row, int column)
{
    const int across = divide_up(tap.channels, kTile), tiles = across * (across + 1) / 2;
    const long long slices = static_cast<long long>(picture) * tap.slices + slice;
    return tap.partials + (slices * tiles + row * (row + 1) / 2 + column) * (kTile * kTile);
}

// One tile of F Fᵀ over one slice of the pixels.
template <class Kind>
__device__ __forceinline__ void multiply_features(char* shared, const Tap* taps, const Block* blocks)
{
    using T = typename Kind::Stored;
    constexpr int kDepth = kRowBytes / sizeof(T);
    const Block block = blocks[blockIdx.x];
    const Tap& tap = taps[block.tap];
    const Matrix<T> features = features_of<T>(tap, block.picture);
    const int first = block.slice * tap.slice_stages;
    const int stages = min(tap.slice_stages, divide_up(tap.pixels, kDepth) - first);
    const int row = block.row * kTile, column = block.column * kTile;
    const bool diagonal = row == column;
    const bool within = Kind::RowSum::within(tap.channels - row, tap.channels - column);
    typename Kind::RowSum sum;
    pipeline(
        shared, stages,
        [&](char* stage, int at) {
            load_rows<kTile>(stage, features, row, (first + at) * kDepth);
            if (!diagonal) load_rows<kTile>(stage + kStageBytes, features, column, (first + at) * kDepth);
        },
        [&](const char* stage) {
            if (within) sum.add_rows(stage, diagonal ? stage : stage + kStageBytes);
        });
    float* tile = reinterpret_cast<float*>(shared);
    sum.store(tile);
    __syncthreads();
    float4* out = reinterpret_cast<float4*>(
        partial_tile(tap, block.picture, block.slice, block.row, block.column));
    for (int i = threadIdx.x; i < kTile * kTile / 4; i += kProductThreads)
        out[i] = *reinterpret_cast<const float4*>(tile + i / 16 * kPitch + i % 16 * 4);
}

// Entry (i, j) of G times C·P: both (i, j) and (j, i) are read from the entry below the diagonal.
__device__ __forceinline__ float add_slices(const Tap& tap, int picture, int i, int j)
{
    const int low = max(i, j), high = min(i, j);
    const float* partial = partial_tile(tap, picture, 0, low / kTile, high / kTile);
    partial += low % kTile * kTile + high % kTile;
    const long long stride = partial_tile(tap, picture, 1, 0, 0) - partial_tile(tap, picture, 0, 0, 0);
    float sum = 0;
#pragma unroll 8
    for (int slice = 0; slice < tap.slices; ++slice) sum += partial[slice * stride];
    return sum;
}

// A power of two that brings the largest magnitude of a row to between 2¹⁴ and 2¹⁵, and its inverse:
// within float16, with as many of the smaller entries as can be.
__device__ __forceinline__ float2 row_scale(float largest)
{
    const int exponent = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
    const int shift = min(14 - exponent, 126);
    return {__uint_as_float((127 + shift) << 23), __uint_as_float((127 - shift) << 23)};
}

// Largest over the threads of a block with the same row, threadIdx.x % kBandRows.
__device__ __forceinline__ float largest_of_row(float value, float (*scratch)[kBandRows])
{
    for (int distance = kBandRows; distance < 32; distance *= 2)
        value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, distance));
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane < kBandRows) scratch[warp][lane] = value;
    __syncthreads();
    for (int other = 0; other < kBandThreads / 32; ++other)
        value = fmaxf(value, scratch[other][lane % kBandRows]);
    return value;
}

// Add the slices of a band of rows, subtract the target, and scale what the gradient will be made with.
template <class Kind>
__device__ __forceinline__ void reduce_band(double* scratch, float (*largest)[kBandRows], const Tap* taps,
                                            const Block* blocks)
{
    using T = typename Kind::Stored;
    const Block block = blocks[blockIdx.x];
    const Tap& tap = taps[block.tap];
    const int channels = tap.channels, i = block.row * kBandRows + threadIdx.x % kBandRows;
    const int first = threadIdx.x / kBandRows, end = i < channels ? channels : 0;
    const long long row = static_cast<long long>(block.picture) * channels + i;
    float* residual = tap.residual + row * channels;
    const float* target = tap.style + row * channels;
    const float count = values_of(tap);
    float most = 0;
    double squares = 0;
    for (int j = first; j < end; j += kTile) {
        const float difference = add_slices(tap, block.picture, i, j) / count - target[j];
        residual[j] = difference;
        most = fmaxf(most, fabsf(difference));
        squares += static_cast<double>(difference) * difference;
    }
    const float2 scale = row_scale(largest_of_row(most, largest));
    T* scaled = static_cast<T*>(tap.scaled) + row * tap.scaled_stride;
    for (int j = first; j < end; j += kTile) scaled[j] = Kind::narrow(residual[j] * scale.x);
    if (i < channels && first == 0) tap.unscale[row] = scale.y;
    squares = block_sum(squares, scratch);
    if (threadIdx.x == 0)
        tap.style_sums[static_cast<long long>(block.picture) * divide_up(channels, kBandRows) + block.row] =
            squares;
}

// What turns R F and F − F_c into a tile of the gradient.
struct Factors {
    float style;
    float content;
};

__device__ __forceinline__ Factors gradient_factors(const Tap& tap, int picture, const double* factors,
                                                    int columns, const float* scale)
{
    const float unit = scale[picture] / values_of(tap);
    const double* own = factors + static_cast<long long>(picture) * columns;
    return {tap.style ? 4 * unit * static_cast<float>(own[tap.style_column]) : 0,
            tap.content ? 2 * unit * static_cast<float>(own[tap.content_column]) : 0};
}

template <int count>
__device__ __forceinline__ void add_products(float (&values)[count], const float* products, float unscale,
                                             float factor)
{
#pragma unroll
    for (int k = 0; k < count; k += 4) {
        const float4 quad = *reinterpret_cast<const float4*>(products + k);
        values[k] += quad.x * unscale * factor;
        values[k + 1] += quad.y * unscale * factor;
        values[k + 2] += quad.z * unscale * factor;
        values[k + 3] += quad.w * unscale * factor;
    }
}

// Returns the sum of the squared differences.
template <class Kind, int count>
__device__ __forceinline__ float add_differences(float (&values)[count],
                                                 const Chunk<typename Kind::Stored>& found,
                                                 const Chunk<typename Kind::Stored>& wanted, float factor)
{
    float sum = 0;
#pragma unroll
    for (int k = 0; k < count; ++k) {
        const float difference = Kind::widen(found.values[k]) - Kind::widen(wanted.values[k]);
        values[k] += difference * factor;
        sum = fmaf(difference, difference, sum);
    }
    return sum;
}

// Write a tile of the gradient from `products`, the scaled R F; returns this thread's Σ (F − F_c)².
template <class Kind>
__device__ __forceinline__ double write_gradient(const Tap& tap, const Block& block, const float* products,
                                                 Factors factors)
{
    using T = typename Kind::Stored;
    constexpr int kValues = 16 / sizeof(T), kChunks = kTile / kValues;
    double squares = 0;
    for (int at = threadIdx.x; at < kTile * kChunks; at += kProductThreads) {
        const int down = at / kChunks, across = at % kChunks * kValues;
        const int i = block.row * kTile + down, column = block.column * kTile + across;
        const int present = min(tap.pixels - column, kValues);
        if (i >= tap.channels || present <= 0) continue;
        const long long row = static_cast<long long>(block.picture) * tap.channels + i;
        const long long offset = row * tap.pixels + column;
        float values[kValues] = {};
        if (tap.style)
            add_products(values, products + down * kPitch + across, tap.unscale[row], factors.style);
        if (tap.content) {
            const auto found = read_chunk(static_cast<const T*>(tap.features) + offset, present, tap.aligned);
            const auto wanted = read_chunk(static_cast<const T*>(tap.content) + offset, present, tap.aligned);
            squares += add_differences<Kind>(values, found, wanted, factors.content);
        }
        Chunk<T> chunk;
#pragma unroll
        for (int k = 0; k < kValues; ++k) chunk.values[k] = Kind::narrow(values[k]);
        write_chunk(static_cast<T*>(tap.gradient) + offset, chunk, present, tap.aligned);
    }
    return squares;
}

// One tile of the gradient of a tap's style and content terms.
template <class Kind>
__device__ __forceinline__ void make_gradient(char* shared, double* scratch, const Tap* taps,
                                              const Block* blocks, const double* factors, int columns,
                                              const float* scale)
{
    using T = typename Kind::Stored;
    constexpr int kDepth = kRowBytes / sizeof(T);
    const Block block = blocks[blockIdx.x];
    const Tap& tap = taps[block.tap];
    const Matrix<T> features = features_of<T>(tap, block.picture);
    const Matrix<T> residual = {
        static_cast<const T*>(tap.scaled) +
            static_cast<long long>(block.picture) * tap.channels * tap.scaled_stride,
        tap.scaled_stride, tap.channels, tap.scaled_stride, true};
    const int row = block.row * kTile, column = block.column * kTile;
    const bool within = Kind::ColumnSum::within(tap.channels - row, tap.pixels - column);
    typename Kind::ColumnSum sum;
    pipeline(
        shared, tap.style ? divide_up(tap.channels, kDepth) : 0,
        [&](char* stage, int at) {
            load_rows<kTile>(stage, residual, row, at * kDepth);
#pragma unroll
            for (int side = 0; side < kTile / kDepth; ++side)
                load_rows<kDepth>(stage + kStageBytes + side * kDepth * kRowBytes, features, at * kDepth,
                                  column + side * kDepth);
        },
        [&](const char* stage) {
            if (within) sum.add_columns(stage, stage + kStageBytes);
        });
    float* products = reinterpret_cast<float*>(shared);
    sum.store(products);
    __syncthreads();
    const Factors own = gradient_factors(tap, block.picture, factors, columns, scale);
    const double squares = write_gradient<Kind>(tap, block, products, own);
    if (!tap.content) return;
    const double total = block_sum(squares, scratch);
    const int across = divide_up(tap.pixels, kTile), down = divide_up(tap.channels, kTile);
    const long long tile = (static_cast<long long>(block.picture) * across + block.column) * down + block.row;
    if (threadIdx.x == 0) tap.content_sums[tile] = total;
}

}  // namespace taps

// Launched in this order; all numbers that change between launches are read from memory.
// Grid: one block for each entry of `blocks`.

#define NST_GRAM_KERNEL(Kind)                                                                              \
    __shared__ __align__(128) char shared[products::kProductBytes];                                        \
    taps::multiply_features<taps::Kind>(shared, table, blocks);

#define NST_RESIDUAL_KERNEL(Kind)                                                                          \
    __shared__ double scratch[32];                                                                         \
    __shared__ float largest[taps::kBandThreads / 32][taps::kBandRows];                                    \
    taps::reduce_band<taps::Kind>(scratch, largest, table, blocks);

#define NST_GRADIENT_KERNEL(Kind)                                                                          \
    __shared__ __align__(128) char shared[products::kProductBytes];                                        \
    __shared__ double scratch[32];                                                                         \
    taps::make_gradient<taps::Kind>(shared, scratch, table, blocks, factors, columns, scale);

NST_KERNEL void __launch_bounds__(128) gram_fp16(const taps::Tap* table, const taps::Block* blocks)
{
    NST_GRAM_KERNEL(Fp16)
}

NST_KERNEL void __launch_bounds__(128) gram_bf16(const taps::Tap* table, const taps::Block* blocks)
{
    NST_GRAM_KERNEL(Bf16)
}

NST_KERNEL void __launch_bounds__(128) gram_tf32(const taps::Tap* table, const taps::Block* blocks)
{
    NST_GRAM_KERNEL(Tf32)
}

NST_KERNEL void __launch_bounds__(128) gram_fp32(const taps::Tap* table, const taps::Block* blocks)
{
    NST_GRAM_KERNEL(Fp32)
}

NST_KERNEL void __launch_bounds__(256) residual_fp16(const taps::Tap* table, const taps::Block* blocks)
{
    NST_RESIDUAL_KERNEL(Fp16)
}

NST_KERNEL void __launch_bounds__(256) residual_bf16(const taps::Tap* table, const taps::Block* blocks)
{
    NST_RESIDUAL_KERNEL(Bf16)
}

NST_KERNEL void __launch_bounds__(256) residual_tf32(const taps::Tap* table, const taps::Block* blocks)
{
    NST_RESIDUAL_KERNEL(Tf32)
}

NST_KERNEL void __launch_bounds__(256) residual_fp32(const taps::Tap* table, const taps::Block* blocks)
{
    NST_RESIDUAL_KERNEL(Fp32)
}

NST_KERNEL void __launch_bounds__(128) gradient_fp16(const taps::Tap* table, const taps::Block* blocks,
                                                     const double* factors, int columns, const float* scale)
{
    NST_GRADIENT_KERNEL(Fp16)
}

NST_KERNEL void __launch_bounds__(128) gradient_bf16(const taps::Tap* table, const taps::Block* blocks,
                                                     const double* factors, int columns, const float* scale)
{
    NST_GRADIENT_KERNEL(Bf16)
}

NST_KERNEL void __launch_bounds__(128) gradient_tf32(const taps::Tap* table, const taps::Block* blocks,
                                                     const double* factors, int columns, const float* scale)
{
    NST_GRADIENT_KERNEL(Tf32)
}

NST_KERNEL void __launch_bounds__(128) gradient_fp32(const taps::Tap* table, const taps::Block* blocks,
                                                     const double* factors, int columns, const float* scale)
{
    NST_GRADIENT_KERNEL(Fp32)
}

// terms[n, k] = factors[n, k] · Σ sums / count. Grid: (K, N), K being the number of columns.
NST_KERNEL void __launch_bounds__(256) add_terms(const taps::Term* table, const double* factors,
                                                 double* terms)
{
    __shared__ double scratch[32];
    const taps::Term term = table[blockIdx.x];
    const double* sums = term.sums + blockIdx.y * term.length;
    double sum = 0;
    for (long long i = threadIdx.x; i < term.length; i += 256) sum += sums[i];
    sum = block_sum(sum, scratch);
    const unsigned at = blockIdx.y * gridDim.x + blockIdx.x;
    if (threadIdx.x == 0) terms[at] = factors[at] * sum / term.count;
}
