// Moments of the features of all taps, and the way back to gradients there; see csrc/README.md. Nothing
// here knows a loss. Compiled behind device.cuh and products.cuh.

namespace taps {

using namespace products;

constexpr int kBandRows = 4;  // rows of a small matrix that a block of 256 threads passes over
constexpr int kBandThreads = kTile * kBandRows;
constexpr int kMomentBytes = kProductBytes + 2 * kTile * sizeof(float);  // with the weights of two stages

// N pictures, C channels, P pixels; the layout is that of DESCRIPTOR in nst_fast/gpu/taps.py.
struct Tap {
    const void* features;     // F, (N, C, P)
    void* gradient;           // dF, (N, C, P)
    const float* weights;     // m, (N, weight_stride), 0 from P on; null: all 1
    const double* mass;       // Σ m, (N)
    float* moments;           // M, (N, C + 1, C + 1)
    const float* derivative;  // [A b], (N, C, C + 1), or null
    const void* content;      // F_c, (N, C, P), or null
    void* narrowed;           // A with each row times a power of two, (N, C, narrowed_stride)
    float* unscale;           // the inverse of that power, (N, C)
    float* partials;          // (N, slices, tiles on and below the diagonal, 64, 64)
    float* partial_means;     // Σ m f of a slice, (N, slices, C)
    double* content_sums;     // (N, content_stride), of which this window has one a tile of the gradient
    int channels;
    int pixels;
    int weight_stride;
    int narrowed_stride;
    int slices;
    int slice_stages;    // pixels of a slice, in stages
    int content_stride;
    int style_column;    // of factors and normalizers
    int content_column;  // of factors and normalizers
    int aligned;         // whether every row of (N, C, P) starts at 16 bytes
    int adds;            // whether the gradient is added to what is there
};

// What a block does.
struct Block {
    int tap;
    int picture;
    int row;     // tile or band of rows
    int column;  // tile
    int slice;
};

// A content term is factor · scale · sum of the sums.
struct Term {
    const double* sums;  // (N, length)
    long long length;
    long long column;
};

template <class T>
__device__ __forceinline__ Matrix<T> features_of(const Tap& tap, int picture)
{
    const long long offset = static_cast<long long>(picture) * tap.channels * tap.pixels;
    return {static_cast<const T*>(tap.features) + offset, tap.pixels, tap.channels, tap.pixels,
            tap.aligned != 0};
}

__device__ __forceinline__ const float* weights_of(const Tap& tap, int picture)
{
    return tap.weights ? tap.weights + static_cast<long long>(picture) * tap.weight_stride : nullptr;
}

// Where the partial sums of a tile on or below the diagonal lie.
__device__ __forceinline__ float* partial_tile(const Tap& tap, int picture, int slice, int row, int column)
{
    const int across = divide_up(tap.channels, kTile), tiles = across * (across + 1) / 2;
    const long long slices = static_cast<long long>(picture) * tap.slices + slice;
    return tap.partials + (slices * tiles + row * (row + 1) / 2 + column) * (kTile * kTile);
}

// 64 rows of a stage times the weights of its pixels, rounded to the type of the features.
template <class Kind>
__device__ __forceinline__ void weigh_rows(char* to, const char* from, const float* weights)
{
    using T = typename Kind::Stored;
    constexpr int kValues = 16 / sizeof(T);
    const int chunk = threadIdx.x % 8;
    for (int row = threadIdx.x / 8; row < kTile; row += kProductThreads / 8) {
        Chunk<T> values;
        values.words = *reinterpret_cast<const uint4*>(place(from, row, chunk));
#pragma unroll
        for (int k = 0; k < kValues; ++k)
            values.values[k] = Kind::narrow(Kind::widen(values.values[k]) * weights[chunk * kValues + k]);
        *reinterpret_cast<uint4*>(place(to, row, chunk)) = values.words;
    }
}

// Half the sum of row threadIdx.x / 2 of a stage.
template <class Kind>
__device__ __forceinline__ float half_row_sum(const char* stage)
{
    using T = typename Kind::Stored;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        Chunk<T> values;
        values.words = *reinterpret_cast<const uint4*>(
            place(stage, threadIdx.x / 2, 2 * i + threadIdx.x % 2));
#pragma unroll
        for (int k = 0; k < 16 / static_cast<int>(sizeof(T)); ++k) sum += Kind::widen(values.values[k]);
    }
    return sum;
}

// One tile of F diag(m) Fᵀ over one slice of the pixels; on the diagonal Σ m f of its rows, too.
template <class Kind>
__device__ __forceinline__ void multiply_features(char* shared, const Tap* taps, const Block* blocks)
{
    using T = typename Kind::Stored;
    constexpr int kDepth = kRowBytes / sizeof(T);
    const Block block = blocks[blockIdx.x];
    const Tap& tap = taps[block.tap];
    const Matrix<T> features = features_of<T>(tap, block.picture);
    const float* weights = weights_of(tap, block.picture);
    float* staged = reinterpret_cast<float*>(shared + kProductBytes);
    const int first = block.slice * tap.slice_stages;
    const int stages = min(tap.slice_stages, divide_up(tap.pixels, kDepth) - first);
    const int row = block.row * kTile, column = block.column * kTile;
    const bool diagonal = row == column;
    const bool within = Kind::RowSum::within(tap.channels - row, tap.channels - column);
    typename Kind::RowSum sum;
    float mean = 0;
    pipeline(
        shared, stages,
        [&](char* stage, int next) {
            const int pixel = (first + next) * kDepth;
            load_rows<kTile>(stage, features, row, pixel);
            if (!diagonal) load_rows<kTile>(stage + kStageBytes, features, column, pixel);
            if (weights && threadIdx.x < kDepth / 4)
                copy_async(staged + next % 2 * kTile + 4 * threadIdx.x, weights + pixel + 4 * threadIdx.x,
                           true);
        },
        [&](char* stage, int at) {
            char* right = diagonal && !weights ? stage : stage + kStageBytes;
            if (weights) {
                weigh_rows<Kind>(right, diagonal ? stage : right, staged + at % 2 * kTile);
                __syncthreads();
            }
            if (within) sum.add_rows(stage, right);
            if (diagonal) mean += half_row_sum<Kind>(right);
        });
    float* tile = reinterpret_cast<float*>(shared);
    sum.store(tile);
    __syncthreads();
    float4* out = reinterpret_cast<float4*>(
        partial_tile(tap, block.picture, block.slice, block.row, block.column));
    for (int i = threadIdx.x; i < kTile * kTile / 4; i += kProductThreads)
        out[i] = *reinterpret_cast<const float4*>(tile + i / 16 * kPitch + i % 16 * 4);
    if (!diagonal) return;
    mean += __shfl_xor_sync(0xFFFFFFFFu, mean, 1);
    const int channel = row + threadIdx.x / 2;
    const long long slice = static_cast<long long>(block.picture) * tap.slices + block.slice;
    if (threadIdx.x % 2 == 0 && channel < tap.channels)
        tap.partial_means[slice * tap.channels + channel] = mean;
}

__device__ __forceinline__ float add_slices(const float* partial, long long stride, int slices)
{
    float sum = 0;
#pragma unroll 8
    for (int slice = 0; slice < slices; ++slice) sum += partial[slice * stride];
    return sum;
}

// Entry (i, j) of Σ m f̃ f̃ᵀ: both (i, j) and (j, i) are read from the entry below the diagonal.
__device__ __forceinline__ double entry_of(const Tap& tap, int picture, int i, int j)
{
    const int low = max(i, j), high = min(i, j), channels = tap.channels;
    if (high == channels) return tap.mass[picture];
    if (low == channels) {
        const long long first = static_cast<long long>(picture) * tap.slices * channels + high;
        return add_slices(tap.partial_means + first, channels, tap.slices);
    }
    const float* partial = partial_tile(tap, picture, 0, low / kTile, high / kTile);
    const long long stride = partial_tile(tap, picture, 1, 0, 0) - partial_tile(tap, picture, 0, 0, 0);
    return add_slices(partial + low % kTile * kTile + high % kTile, stride, tap.slices);
}

// Where the factors, or normalizers, of a picture are.
__device__ __forceinline__ const double* row_of(const double* matrix, int picture, int columns)
{
    return matrix + static_cast<long long>(picture) * columns;
}

// Add the slices of a band of rows to moments, or to those of the windows before.
__device__ __forceinline__ void reduce_band(const Tap* taps, const Block* blocks, const double* normalizers,
                                            int columns, int accumulate)
{
    const Block block = blocks[blockIdx.x];
    const Tap& tap = taps[block.tap];
    const int side = tap.channels + 1, i = block.row * kBandRows + threadIdx.x % kBandRows;
    if (i >= side) return;
    const double scale = row_of(normalizers, block.picture, columns)[tap.style_column];
    float* row = tap.moments + (static_cast<long long>(block.picture) * side + i) * side;
    for (int j = threadIdx.x / kBandRows; j < side; j += kTile) {
        const float before = accumulate ? row[j] : 0.0F;
        row[j] = before + static_cast<float>(scale * entry_of(tap, block.picture, i, j));
    }
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

// Scale and round a band of rows of A, to be multiplied by F.
template <class Kind>
__device__ __forceinline__ void narrow_band(float (*largest)[kBandRows], const Tap* taps, const Block* blocks)
{
    using T = typename Kind::Stored;
    const Block block = blocks[blockIdx.x];
    const Tap& tap = taps[block.tap];
    const int channels = tap.channels, i = block.row * kBandRows + threadIdx.x % kBandRows;
    const int first = threadIdx.x / kBandRows, end = i < channels ? channels : 0;
    const long long row = static_cast<long long>(block.picture) * channels + i;
    const float* derivative = tap.derivative + row * (channels + 1);
    float most = 0;
    for (int j = first; j < end; j += kTile) most = fmaxf(most, fabsf(derivative[j]));
    const float2 scale = row_scale(largest_of_row(most, largest));
    T* narrowed = static_cast<T*>(tap.narrowed) + row * tap.narrowed_stride;
    for (int j = first; j < end; j += kTile) narrowed[j] = Kind::narrow(derivative[j] * scale.x);
    if (i < channels && first == 0) tap.unscale[row] = scale.y;
}

// Add A F + b, of which `products` is scaled.
template <int count>
__device__ __forceinline__ void add_products(float (&values)[count], const float* products, float unscale,
                                             float offset)
{
#pragma unroll
    for (int k = 0; k < count; k += 4) {
        const float4 quad = *reinterpret_cast<const float4*>(products + k);
        values[k] += fmaf(quad.x, unscale, offset);
        values[k + 1] += fmaf(quad.y, unscale, offset);
        values[k + 2] += fmaf(quad.z, unscale, offset);
        values[k + 3] += fmaf(quad.w, unscale, offset);
    }
}

// Add the differences times a factor; returns the weighted sum of their squares.
template <class Kind, int count>
__device__ __forceinline__ float add_differences(float (&values)[count],
                                                 const Chunk<typename Kind::Stored>& found,
                                                 const Chunk<typename Kind::Stored>& wanted,
                                                 const float (&weights)[count], float factor)
{
    float sum = 0;
#pragma unroll
    for (int k = 0; k < count; ++k) {
        const float difference = Kind::widen(found.values[k]) - Kind::widen(wanted.values[k]);
        values[k] += difference * factor;
        sum = fmaf(weights[k] * difference, difference, sum);
    }
    return sum;
}

// Weights of neighbouring pixels from a multiple of their number on.
template <int count>
__device__ __forceinline__ void read_weights(float (&out)[count], const float* weights, int pixel)
{
#pragma unroll
    for (int k = 0; k < count; k += 4) {
        const float4 quad =
            weights ? *reinterpret_cast<const float4*>(weights + pixel + k) : float4{1, 1, 1, 1};
        out[k] = quad.x;
        out[k + 1] = quad.y;
        out[k + 2] = quad.z;
        out[k + 3] = quad.w;
    }
}

// Write a tile of the gradient, `scale` times, from `products`, the scaled A F, with `pull` = 2c; returns
// this thread's Σ m (F − F_c)².
template <class Kind>
__device__ __forceinline__ double write_gradient(const Tap& tap, const Block& block, const float* products,
                                                 float pull, float scale)
{
    using T = typename Kind::Stored;
    constexpr int kValues = 16 / sizeof(T), kChunks = kTile / kValues;
    const float* weights = weights_of(tap, block.picture);
    double squares = 0;
    for (int at = threadIdx.x; at < kTile * kChunks; at += kProductThreads) {
        const int down = at / kChunks, across = at % kChunks * kValues;
        const int i = block.row * kTile + down, column = block.column * kTile + across;
        const int present = min(tap.pixels - column, kValues);
        if (i >= tap.channels || present <= 0) continue;
        const long long row = static_cast<long long>(block.picture) * tap.channels + i;
        const long long offset = row * tap.pixels + column;
        float values[kValues] = {}, m[kValues];
        read_weights(m, weights, column);
        if (tap.derivative) {
            const float b = tap.derivative[row * (tap.channels + 1) + tap.channels];
            add_products(values, products + down * kPitch + across, tap.unscale[row] * scale, b * scale);
        }
        if (tap.content) {
            const auto found = read_chunk(static_cast<const T*>(tap.features) + offset, present, tap.aligned);
            const auto wanted = read_chunk(static_cast<const T*>(tap.content) + offset, present, tap.aligned);
            squares += add_differences<Kind>(values, found, wanted, m, pull * scale);
        }
        T* const gradient = static_cast<T*>(tap.gradient) + offset;
        Chunk<T> chunk{};
        if (tap.adds) chunk = read_chunk(static_cast<const T*>(gradient), present, tap.aligned);
#pragma unroll
        for (int k = 0; k < kValues; ++k) {
            float value = values[k] * m[k];
            if (tap.adds) value += Kind::widen(chunk.values[k]);
            chunk.values[k] = Kind::narrow(value);
        }
        write_chunk(gradient, chunk, present, tap.aligned);
    }
    return squares;
}

// One tile of the gradient of a tap's style and content terms.
template <class Kind>
__device__ __forceinline__ void make_gradient(char* shared, double* scratch, const Tap* taps,
                                              const Block* blocks, const double* factors,
                                              const double* normalizers, int columns, const float* loss_scale)
{
    using T = typename Kind::Stored;
    constexpr int kDepth = kRowBytes / sizeof(T);
    const Block block = blocks[blockIdx.x];
    const Tap& tap = taps[block.tap];
    const Matrix<T> features = features_of<T>(tap, block.picture);
    const Matrix<T> narrowed = {
        static_cast<const T*>(tap.narrowed) +
            static_cast<long long>(block.picture) * tap.channels * tap.narrowed_stride,
        tap.narrowed_stride, tap.channels, tap.narrowed_stride, true};
    const int row = block.row * kTile, column = block.column * kTile;
    const bool within = Kind::ColumnSum::within(tap.channels - row, tap.pixels - column);
    typename Kind::ColumnSum sum;
    pipeline(
        shared, tap.derivative ? divide_up(tap.channels, kDepth) : 0,
        [&](char* stage, int at) {
            load_rows<kTile>(stage, narrowed, row, at * kDepth);
#pragma unroll
            for (int side = 0; side < kTile / kDepth; ++side)
                load_rows<kDepth>(stage + kStageBytes + side * kDepth * kRowBytes, features, at * kDepth,
                                  column + side * kDepth);
        },
        [&](const char* stage, int) {
            if (within) sum.add_columns(stage, stage + kStageBytes);
        });
    float* products = reinterpret_cast<float*>(shared);
    sum.store(products);
    __syncthreads();
    double pull = 0;
    if (tap.content)
        pull = 2 * row_of(factors, block.picture, columns)[tap.content_column] *
               row_of(normalizers, block.picture, columns)[tap.content_column];
    const double squares =
        write_gradient<Kind>(tap, block, products, static_cast<float>(pull), loss_scale[block.picture]);
    if (!tap.content) return;
    const double total = block_sum(squares, scratch);
    const int tile = block.column * divide_up(tap.channels, kTile) + block.row;
    if (threadIdx.x == 0)
        tap.content_sums[static_cast<long long>(block.picture) * tap.content_stride + tile] = total;
}

}  // namespace taps

// All numbers that change between launches are read from memory. Grid: one block for each entry of
// `blocks`. factors and normalizers are (N, K), one column a term.

// What is compiled for each way to store and multiply features.
#define NST_TAP_KERNELS(kind, Kind)                                                                         \
    NST_KERNEL void __launch_bounds__(products::kProductThreads)                                            \
        moments_##kind(const taps::Tap* table, const taps::Block* blocks)                                   \
    {                                                                                                       \
        __shared__ __align__(128) char shared[taps::kMomentBytes];                                          \
        taps::multiply_features<taps::Kind>(shared, table, blocks);                                         \
    }                                                                                                       \
    NST_KERNEL void __launch_bounds__(taps::kBandThreads)                                                   \
        narrow_##kind(const taps::Tap* table, const taps::Block* blocks)                                    \
    {                                                                                                       \
        __shared__ float largest[taps::kBandThreads / 32][taps::kBandRows];                                 \
        taps::narrow_band<taps::Kind>(largest, table, blocks);                                              \
    }                                                                                                       \
    NST_KERNEL void __launch_bounds__(products::kProductThreads)                                            \
        pull_back_##kind(const taps::Tap* table, const taps::Block* blocks, const double* factors,          \
                         const double* normalizers, int columns, const float* loss_scale)                   \
    {                                                                                                       \
        __shared__ __align__(128) char shared[products::kProductBytes];                                     \
        __shared__ double scratch[32];                                                                      \
        taps::make_gradient<taps::Kind>(shared, scratch, table, blocks, factors, normalizers, columns,      \
                                        loss_scale);                                                        \
    }

NST_TAP_KERNELS(fp16, Fp16)
NST_TAP_KERNELS(bf16, Bf16)
NST_TAP_KERNELS(tf32, Tf32)
NST_TAP_KERNELS(fp32, Fp32)

// Writes the moments, or adds to them.
NST_KERNEL void __launch_bounds__(taps::kBandThreads)
    reduce(const taps::Tap* table, const taps::Block* blocks, const double* normalizers, int columns,
           int accumulate)
{
    taps::reduce_band(table, blocks, normalizers, columns, accumulate);
}

// terms[n, k] = factors[n, k] · normalizers[n, k] · Σ sums of content term k. Grid: (content terms, N).
NST_KERNEL void __launch_bounds__(256) add_terms(const taps::Term* table, const double* factors,
                                                 const double* normalizers, double* terms, int columns)
{
    __shared__ double scratch[32];
    const taps::Term term = table[blockIdx.x];
    const double* sums = term.sums + blockIdx.y * term.length;
    double sum = 0;
    for (long long i = threadIdx.x; i < term.length; i += 256) sum += sums[i];
    sum = block_sum(sum, scratch);
    const long long at = static_cast<long long>(blockIdx.y) * columns + term.column;
    if (threadIdx.x == 0) terms[at] = factors[at] * normalizers[at] * sum;
}
