// Moments of the features of all taps, and the way back to gradients there; see csrc/README.md. Nothing
// here knows a loss. Compiled behind device.cuh and products.cuh.

namespace taps {

using namespace products;

constexpr int kBandRows = 4;      // rows of a small matrix that a block of 256 threads passes over
constexpr int kBandColumns = 64;  // and columns
constexpr int kBandThreads = kBandRows * kBandColumns;

// N pictures, C channels, P pixels; the layout is that of DESCRIPTOR in nst_fast/gpu/taps.py.
struct Tap {
    const void* features;     // F, (N, P, C)
    void* gradient;           // dF, (N, P, C)
    const float* weights;     // m, (N, weight_stride), 0 from P on; null: all 1
    const double* mass;       // Σ m, (N)
    float* moments;           // M, (N, C + 1, C + 1)
    const float* derivative;  // [A b], (N, C, C + 1), or null
    const void* content;      // F_c, (N, P, C), or null
    void* narrowed;           // A with each row times a power of two, (N, C, narrowed_stride)
    float* unscale;           // the inverse of that power, (N, channel_stride)
    float* offsets;           // b, (N, channel_stride)
    float* partials;          // (N, slices, tiles on and below the diagonal, tile, tile)
    float* partial_means;     // Σ m f of a slice, (N, slices, channel_stride)
    double* content_sums;     // (N, content_stride), of which this window has one a block of the gradient
    int channels;
    int pixels;
    int tile;  // 64 or 128
    int weight_stride;
    int narrowed_stride;
    int channel_stride;  // C up to whole tiles
    int slices;
    int slice_stages;  // pixels of a slice, in stages
    int run_tiles;     // pixels of a block of the gradient, in tiles
    int content_stride;
    int style_column;    // of factors and normalizers
    int content_column;  // of factors and normalizers
    int aligned;         // whether every pixel of (N, P, C) starts at 16 bytes
    int adds;            // whether the gradient is added to what is there
};

// What a block does.
struct Block {
    int tap;
    int picture;
    int row;     // tile or band of rows
    int column;  // tile, or part of a band
    int slice;   // of the pixels
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
    return {static_cast<const T*>(tap.features) + offset, tap.channels, tap.pixels, tap.channels,
            tap.aligned != 0};
}

__device__ __forceinline__ const float* weights_of(const Tap& tap, int picture)
{
    return tap.weights ? tap.weights + static_cast<long long>(picture) * tap.weight_stride : nullptr;
}

// Where the partial sums of a tile on or below the diagonal lie.
__device__ __forceinline__ float* partial_tile(const Tap& tap, int picture, int slice, int row, int column)
{
    const int across = tap.channel_stride / tap.tile, tiles = across * (across + 1) / 2;
    const long long slices = static_cast<long long>(picture) * tap.slices + slice;
    return tap.partials + (slices * tiles + row * (row + 1) / 2 + column) * (tap.tile * tap.tile);
}

// An operand of pixels times their weights, rounded to the type of the features.
template <class Kind, int tile>
__device__ __forceinline__ void weigh_pixels(char* to, const char* from, const float* weights)
{
    using T = typename Kind::Stored;
    const int chunk = threadIdx.x % 8;
#pragma unroll
    for (int line = threadIdx.x / 8; line < kLines; line += kProductThreads / 8) {
        const float weight = weights[line % kDepth<T, tile>];
        Chunk<T> values;
        values.words = *reinterpret_cast<const uint4*>(place(from, line, chunk));
#pragma unroll
        for (int k = 0; k < 16 / static_cast<int>(sizeof(T)); ++k)
            values.values[k] = Kind::narrow(Kind::widen(values.values[k]) * weight);
        *reinterpret_cast<uint4*>(place(to, line, chunk)) = values.words;
    }
}

// Σ m f of the channels of a tile: each thread adds up what passes by at two places of an operand.
template <class Kind, int tile>
class MeanSum {
    using T = typename Kind::Stored;
    static constexpr int kValues = 16 / sizeof(T), kInner = kDepth<T, tile>;
    static constexpr int kStep = kProductThreads / 8;  // lines between the two

public:
    __device__ __forceinline__ void add(const char* operand)
    {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            Chunk<T> values;
            values.words = *reinterpret_cast<const uint4*>(
                place(operand, threadIdx.x / 8 + i * kStep, threadIdx.x % 8));
#pragma unroll
            for (int k = 0; k < kValues; ++k) sums_[i][k] += Kind::widen(values.values[k]);
        }
    }

    // All threads must call; `shared` is 16 KiB that none reads any more.
    __device__ __forceinline__ void store(float* shared, float* out) const
    {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int k = 0; k < kValues; ++k)
                shared[(i * kProductThreads + threadIdx.x) * kValues + k] = sums_[i][k];
        __syncthreads();
        const int column = threadIdx.x, first = column / (kRowBytes / sizeof(T)) * kInner;
        if (column >= tile) return;
        float sum = 0;
        for (int line = first; line < first + kInner; ++line)
            sum += shared[line * (kRowBytes / sizeof(T)) + column % (kRowBytes / sizeof(T))];
        out[column] = sum;
    }

private:
    float sums_[2][kValues] = {};
};

// One tile of Fᵀ diag(m) F over one slice of the pixels; on the diagonal Σ m f of its channels, too.
template <class Kind, int tile>
__device__ __forceinline__ void multiply_features(char* shared, const Tap& tap, const Block& block)
{
    using T = typename Kind::Stored;
    constexpr int kInner = kDepth<T, tile>;
    const Matrix<T> features = features_of<T>(tap, block.picture);
    const float* weights = weights_of(tap, block.picture);
    float* staged = reinterpret_cast<float*>(shared + kProductBytes);
    const int first = block.slice * tap.slice_stages;
    const int stages = min(tap.slice_stages, divide_up(tap.pixels, kInner) - first);
    const int row = block.row * tile, column = block.column * tile;
    const bool diagonal = row == column;
    using Sum = typename Kind::template Sum<tile>;
    const bool within = Sum::within(tap.channels - row, tap.channels - column);
    Sum sum;
    MeanSum<Kind, tile> mean;
    pipeline(
        shared, stages,
        [&](char* stage, int next) {
            const int pixel = (first + next) * kInner, quad = 4 * threadIdx.x;
            load_down<tile>(stage, features, pixel, row);
            if (!diagonal) load_down<tile>(stage + kOperandBytes, features, pixel, column);
            if (weights && quad < kInner)
                copy_async(staged + next % kStages * kLines + quad, weights + pixel + quad, true);
        },
        [&](char* stage, int at) {
            char* right = diagonal && !weights ? stage : stage + kOperandBytes;
            if (weights) {
                weigh_pixels<Kind, tile>(right, diagonal ? stage : right, staged + at % kStages * kLines);
                __syncthreads();
            }
            if (within) sum.add_columns(stage, right);
            if (diagonal) mean.add(right);
        });
    float* out = partial_tile(tap, block.picture, block.slice, block.row, block.column);
    float* passed = reinterpret_cast<float*>(shared + kStages * kStageBytes);
    sum.visit(passed, [&](int i, int j, const auto& values) {
#pragma unroll
        for (int k = 0; k < static_cast<int>(sizeof values / sizeof(float)); k += 4)
            *reinterpret_cast<float4*>(out + i * tile + j + k) = {values[k], values[k + 1], values[k + 2],
                                                                  values[k + 3]};
    });
    if (!diagonal) return;
    const long long slice = static_cast<long long>(block.picture) * tap.slices + block.slice;
    __syncthreads();
    mean.store(reinterpret_cast<float*>(shared), tap.partial_means + slice * tap.channel_stride + row);
}

__device__ __forceinline__ void add(float4& sum, const float4& other)
{
    sum.x += other.x;
    sum.y += other.y;
    sum.z += other.z;
    sum.w += other.w;
}

// Slices first, first + 4, …; four neighbours at a time.
__device__ __forceinline__ float4 add_slices(const float* partial, long long stride, int first, int slices)
{
    float4 sum = {0, 0, 0, 0};
#pragma unroll 8
    for (int slice = first; slice < slices; slice += 4)
        add(sum, *reinterpret_cast<const float4*>(partial + slice * stride));
    return sum;
}

// Entries j to j + 3 of row i of Σ m f̃ f̃ᵀ, j a multiple of 4, as far as they lie on or below the diagonal:
// the share of every fourth slice. Row C is Σ m f.
__device__ __forceinline__ float4 share_of(const Tap& tap, int picture, int i, int j, int first)
{
    if (i == tap.channels && j >= tap.channel_stride) return {0, 0, 0, 0};
    const float* partial;
    long long stride;
    if (i == tap.channels) {
        stride = tap.channel_stride;
        partial = tap.partial_means + static_cast<long long>(picture) * tap.slices * stride + j;
    } else {
        partial = partial_tile(tap, picture, 0, i / tap.tile, j / tap.tile) + i % tap.tile * tap.tile +
                  j % tap.tile;
        stride = partial_tile(tap, picture, 1, 0, 0) - partial_tile(tap, picture, 0, 0, 0);
    }
    return add_slices(partial, stride, first, tap.slices);
}

// Where the factors, or normalizers, of a picture are.
__device__ __forceinline__ const double* row_of(const double* matrix, int picture, int columns)
{
    return matrix + static_cast<long long>(picture) * columns;
}

// Add the slices of 64 columns of a band of rows to moments, or to those of the windows before. What lies
// below the diagonal is written above it, too. `shares` is one for each thread.
__device__ __forceinline__ void reduce_band(float4* shares, const Tap* taps, const Block* blocks,
                                            const double* normalizers, int columns, int accumulate)
{
    constexpr int kQuads = kBandColumns / 4;
    const Block block = blocks[blockIdx.x];
    const Tap& tap = taps[block.tap];
    const int side = tap.channels + 1, place = threadIdx.x % (kQuads * kBandRows);
    const int i = block.row * kBandRows + place / kQuads;
    const int j = block.column * kBandColumns + place % kQuads * 4;
    const bool present = i < side && j <= i;
    if (present) shares[threadIdx.x] = share_of(tap, block.picture, i, j, threadIdx.x / (kQuads * kBandRows));
    __syncthreads();
    if (!present || threadIdx.x >= kQuads * kBandRows) return;
    float4 total = shares[place];
    for (int share = 1; share < 4; ++share) add(total, shares[share * kQuads * kBandRows + place]);
    const float sums[4] = {total.x, total.y, total.z, total.w};
    const double scale = row_of(normalizers, block.picture, columns)[tap.style_column];
    float* moments = tap.moments + static_cast<long long>(block.picture) * side * side;
    for (int k = 0; k < 4 && j + k <= i; ++k) {
        const double sum = j + k == tap.channels ? tap.mass[block.picture] : sums[k];
        float* below = moments + static_cast<long long>(i) * side + j + k;
        const float value = (accumulate ? *below : 0.0F) + static_cast<float>(scale * sum);
        *below = value;
        moments[static_cast<long long>(j + k) * side + i] = value;
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
    for (int j = first; j < end; j += kBandColumns) most = fmaxf(most, fabsf(derivative[j]));
    const float2 scale = row_scale(largest_of_row(most, largest));
    T* narrowed = static_cast<T*>(tap.narrowed) + row * tap.narrowed_stride;
    for (int j = first; j < end; j += kBandColumns) narrowed[j] = Kind::narrow(derivative[j] * scale.x);
    if (i >= channels || first != 0) return;
    const long long at = static_cast<long long>(block.picture) * tap.channel_stride + i;
    tap.unscale[at] = scale.y;
    tap.offsets[at] = derivative[channels];
}

// Add unscale · products + offsets, all of it `scale` times.
template <int count>
__device__ __forceinline__ void add_products(float (&values)[count], const float (&products)[count],
                                             const float* unscale, const float* offsets, float scale)
{
#pragma unroll
    for (int k = 0; k < count; k += 4) {
        const float4 factor = *reinterpret_cast<const float4*>(unscale + k);
        const float4 offset = *reinterpret_cast<const float4*>(offsets + k);
        values[k] += fmaf(products[k], factor.x * scale, offset.x * scale);
        values[k + 1] += fmaf(products[k + 1], factor.y * scale, offset.y * scale);
        values[k + 2] += fmaf(products[k + 2], factor.z * scale, offset.z * scale);
        values[k + 3] += fmaf(products[k + 3], factor.w * scale, offset.w * scale);
    }
}

// Add the differences times a factor; returns the sum of their squares.
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

// Write neighbouring channels of a pixel of the gradient, `scale` times, from `products`, the scaled A F,
// with `pull` = 2c; returns their m (F − F_c)².
template <class Kind, int count>
__device__ __forceinline__ float write_gradient(const Tap& tap, int picture, int pixel, int channel,
                                                const float (&products)[count], float pull, float scale)
{
    using T = typename Kind::Stored;
    const int present = min(tap.channels - channel, count);
    if (pixel >= tap.pixels || present <= 0) return 0;
    const long long at = (static_cast<long long>(picture) * tap.pixels + pixel) * tap.channels + channel;
    const float* weights = weights_of(tap, picture);
    const float m = weights ? weights[pixel] : 1.0F;
    float values[count] = {}, squares = 0;
    if (tap.derivative) {
        const long long first = static_cast<long long>(picture) * tap.channel_stride + channel;
        add_products(values, products, tap.unscale + first, tap.offsets + first, scale);
    }
    if (tap.content) {
        const auto found = read_chunk(static_cast<const T*>(tap.features) + at, present, tap.aligned);
        const auto wanted = read_chunk(static_cast<const T*>(tap.content) + at, present, tap.aligned);
        squares = m * add_differences<Kind>(values, found, wanted, pull * scale);
    }
    T* const gradient = static_cast<T*>(tap.gradient) + at;
    Chunk<T> chunk{};
    if (tap.adds) chunk = read_chunk(static_cast<const T*>(gradient), present, tap.aligned);
#pragma unroll
    for (int k = 0; k < count; ++k) {
        float value = values[k] * m;
        if (tap.adds) value += Kind::widen(chunk.values[k]);
        chunk.values[k] = Kind::narrow(value);
    }
    write_chunk(gradient, chunk, present, tap.aligned);
    return squares;
}

// The gradient of a tap's style and content terms in a tile of channels, for a run of tiles of pixels;
// returns this thread's Σ m (F − F_c)².
template <class Kind, int tile>
__device__ __forceinline__ double make_gradient(char* shared, const Tap& tap, const Block& block, float pull,
                                                float scale)
{
    using T = typename Kind::Stored;
    using Sum = typename Kind::template Sum<tile>;
    constexpr int kInner = kDepth<T, tile>;
    const Matrix<T> features = features_of<T>(tap, block.picture);
    const Matrix<T> narrowed = {
        static_cast<const T*>(tap.narrowed) +
            static_cast<long long>(block.picture) * tap.channels * tap.narrowed_stride,
        tap.narrowed_stride, tap.channels, tap.narrowed_stride, true};
    const int first = block.slice * tap.run_tiles, channel = block.column * tile;
    const int tiles = min(tap.run_tiles, divide_up(tap.pixels, tile) - first);
    float* passed = reinterpret_cast<float*>(shared + kStages * kStageBytes);
    Sum sum;
    double squares = 0;
    const auto write = [&](int at) {
        float here = 0;
        sum.visit(passed, [&](int row, int column, const auto& products) {
            here += write_gradient<Kind>(tap, block.picture, (first + at) * tile + row, channel + column,
                                         products, pull, scale);
        });
        squares += here;
    };
    if (!tap.derivative) {
        for (int at = 0; at < tiles; ++at) write(at);
        return squares;
    }
    const int steps = divide_up(tap.channels, kInner);
    pipeline(
        shared, tiles * steps,
        [&](char* stage, int next) {
            const int inner = next % steps * kInner;
            load_across<tile>(stage, features, (first + next / steps) * tile, inner);
            load_across<tile>(stage + kOperandBytes, narrowed, channel, inner);
        },
        [&](const char* stage, int at) {
            if (at % steps == 0) sum.clear();
            const int pixel = (first + at / steps) * tile;
            if (Sum::within(tap.pixels - pixel, tap.channels - channel))
                sum.add_rows(stage, stage + kOperandBytes);
            if (at % steps == steps - 1) write(at / steps);
        });
    return squares;
}

// Leave a block's Σ m (F − F_c)² for add_terms.
__device__ __forceinline__ void store_squares(double* scratch, const Tap& tap, const Block& block,
                                              double squares)
{
    if (!tap.content) return;
    const double total = block_sum(squares, scratch);
    const int at = block.slice * (tap.channel_stride / tap.tile) + block.column;
    if (threadIdx.x == 0)
        tap.content_sums[static_cast<long long>(block.picture) * tap.content_stride + at] = total;
}

__device__ __forceinline__ float pull_of(const Tap& tap, int picture, const double* factors,
                                         const double* normalizers, int columns)
{
    if (!tap.content) return 0;
    return static_cast<float>(2 * row_of(factors, picture, columns)[tap.content_column] *
                              row_of(normalizers, picture, columns)[tap.content_column]);
}

}  // namespace taps

// All numbers that change between launches are read from memory. Grid: one block for each entry of
// `blocks`. factors and normalizers are (N, K), one column a term.

// What is compiled for each way to store and multiply features. Shared memory: products::kProductBytes, and
// for moments behind it the weights of the pixels of kStages stages, kLines of each.
#define NST_TAP_KERNELS(kind, Kind)                                                                         \
    NST_KERNEL void __launch_bounds__(products::kProductThreads, 2)                                         \
        moments_##kind(const taps::Tap* table, const taps::Block* blocks)                                   \
    {                                                                                                       \
        NST_DYNAMIC_SHARED(shared);                                                                         \
        const taps::Block block = blocks[blockIdx.x];                                                       \
        const taps::Tap& tap = table[block.tap];                                                            \
        if (tap.tile == 64)                                                                                 \
            taps::multiply_features<taps::Kind, 64>(shared, tap, block);                                    \
        else                                                                                                \
            taps::multiply_features<taps::Kind, taps::Kind::kWide>(shared, tap, block);                     \
    }                                                                                                       \
    NST_KERNEL void __launch_bounds__(taps::kBandThreads)                                                   \
        narrow_##kind(const taps::Tap* table, const taps::Block* blocks)                                    \
    {                                                                                                       \
        __shared__ float largest[taps::kBandThreads / 32][taps::kBandRows];                                 \
        taps::narrow_band<taps::Kind>(largest, table, blocks);                                              \
    }                                                                                                       \
    NST_KERNEL void __launch_bounds__(products::kProductThreads, 2)                                         \
        pull_back_##kind(const taps::Tap* table, const taps::Block* blocks, const double* factors,          \
                         const double* normalizers, int columns, const float* loss_scale)                   \
    {                                                                                                       \
        NST_DYNAMIC_SHARED(shared);                                                                         \
        __shared__ double scratch[32];                                                                      \
        const taps::Block block = blocks[blockIdx.x];                                                       \
        const taps::Tap& tap = table[block.tap];                                                            \
        const float pull = taps::pull_of(tap, block.picture, factors, normalizers, columns);                \
        const float scale = loss_scale[block.picture];                                                      \
        const double squares =                                                                              \
            tap.tile == 64                                                                                  \
                ? taps::make_gradient<taps::Kind, 64>(shared, tap, block, pull, scale)                      \
                : taps::make_gradient<taps::Kind, taps::Kind::kWide>(shared, tap, block, pull, scale);      \
        taps::store_squares(scratch, tap, block, squares);                                                  \
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
    __shared__ float4 shares[taps::kBandThreads];
    taps::reduce_band(shares, table, blocks, normalizers, columns, accumulate);
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
