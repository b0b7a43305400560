// Gram matrices of all taps, their residuals, and the gradients at the features; see csrc/README.md.
// Compiled behind device.cuh.
//
// A block multiplies one tile of 64 by 64 numbers. Each stage of its loop holds, of both operands, 8 KiB
// in shared memory: rows of 128 bytes, 64 or 32 numbers, whose 16-byte chunks are permuted so that
// neither rows nor columns of them share banks.

namespace taps {

constexpr int kTile = 64;
constexpr int kRowBytes = 128;
constexpr int kStageBytes = kTile * kRowBytes;
constexpr int kProductBytes = 4 * kStageBytes;  // two operands, two stages
constexpr int kProductThreads = 128;
constexpr int kPitch = kTile + 8;  // of a tile of sums in shared memory: no conflicts between rows
constexpr int kBandRows = 4;       // rows of R that a block of 256 threads reduces
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
struct Matrix {
    const T* first;
    long long stride;
    int rows;
    int columns;
    bool aligned;
};

template <class T>
__device__ __forceinline__ Matrix<T> features_of(const Tap& tap, int picture)
{
    const long long offset = static_cast<long long>(picture) * tap.channels * tap.pixels;
    return {static_cast<const T*>(tap.features) + offset, tap.pixels, tap.channels, tap.pixels,
            tap.aligned != 0};
}

__device__ __forceinline__ int divide_up(int count, int size) { return (count - 1) / size + 1; }

// Chunk of 16 bytes of a row in a stage. Eight rows have it in different banks, and four rows have it
// and its neighbour there.
__device__ __forceinline__ char* place(char* stage, int row, int chunk)
{
    const int permutation = (row << 1 | (row >> 2 & 1)) & 7;
    return stage + row * kRowBytes + (chunk ^ permutation) * 16;
}

__device__ __forceinline__ const char* place(const char* stage, int row, int chunk)
{
    return place(const_cast<char*>(stage), row, chunk);
}

template <class T>
union Chunk {
    T values[16 / sizeof(T)];
    uint4 words;
};

// Read the 16 bytes at `from`, of which the first `present` values exist; the others are 0.
template <class T>
__device__ __forceinline__ Chunk<T> read_chunk(const T* from, int present, bool aligned)
{
    Chunk<T> chunk;
    chunk.words = {0, 0, 0, 0};
    if (aligned && present > 0) {
        chunk.words = *reinterpret_cast<const uint4*>(from);
    } else {
        for (int i = 0; i < 16 / static_cast<int>(sizeof(T)); ++i)
            if (i < present) chunk.values[i] = from[i];
    }
    return chunk;
}

// Copy rows and columns from (row, column) on, 128 bytes of each row; zeros where the matrix has ended.
template <int rows, class T>
__device__ __forceinline__ void load_rows(char* stage, const Matrix<T>& matrix, int row, int column)
{
    constexpr int kValues = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < rows * 8 / kProductThreads; ++i) {
        const int chunk = threadIdx.x % 8, down = threadIdx.x / 8 + i * (kProductThreads / 8);
        const int first = column + chunk * kValues;
        const int present = row + down < matrix.rows ? matrix.columns - first : 0;
        const T* from = matrix.first + (present > 0 ? (row + down) * matrix.stride + first : 0);
        char* to = place(stage, down, chunk);
        if (matrix.aligned)
            copy_async(to, from, present > 0);
        else
            *reinterpret_cast<uint4*>(to) = read_chunk(from, present, false).words;
    }
}

// A tile's sums on tensor cores: each of four warps has a quarter, as 2 by 4 blocks of 16 by 8.
template <class Kind>
class TensorSum {
public:
    // Whether this thread's share begins within the first rows and columns of the tile.
    static __device__ __forceinline__ bool within(int rows, int columns)
    {
        return first_row() < rows && first_column() < columns;
    }

    // Add A Bᵀ, both in stages of 64 rows.
    __device__ __forceinline__ void add_rows(const char* a, const char* b)
    {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            load_left(a, step);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int row = first_column() + 16 * j + lane / 16 * 8 + lane % 8;
                unsigned words[4];
                load_matrices(words, place(b, row, 2 * step + lane / 8 % 2));
                Kind::round(words);
                multiply(2 * j, words[0], words[1]);
                multiply(2 * j + 1, words[2], words[3]);
            }
        }
    }

    // Add A B, where the rows of B are the inner dimension.
    __device__ __forceinline__ void add_columns(const char* a, const char* b)
    {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            load_left(a, step);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                unsigned words[4];
                Kind::load_columns(words, b, step, first_column() + 16 * j);
                multiply(2 * j, words[0], words[1]);
                multiply(2 * j + 1, words[2], words[3]);
            }
        }
    }

    __device__ __forceinline__ void store(float* tile) const
    {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = first_row() + 16 * i + 8 * half + lane / 4;
                    const int column = first_column() + 8 * j + lane % 4 * 2;
                    *reinterpret_cast<float2*>(tile + row * kPitch + column) = {
                        sums_[i][j][2 * half], sums_[i][j][2 * half + 1]};
                }
    }

private:
    float sums_[2][4][4] = {};
    unsigned left_[2][4];

    static __device__ __forceinline__ int first_row() { return threadIdx.x / 64 * 32; }
    static __device__ __forceinline__ int first_column() { return threadIdx.x / 32 % 2 * 32; }

    __device__ __forceinline__ void load_left(const char* a, int step)
    {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            load_matrices(left_[i], place(a, first_row() + 16 * i + lane % 16, 2 * step + lane / 16));
            Kind::round(left_[i]);
        }
    }

    __device__ __forceinline__ void multiply(int j, unsigned low, unsigned high)
    {
        const unsigned right[2] = {low, high};
#pragma unroll
        for (int i = 0; i < 2; ++i) Kind::multiply(sums_[i][j], left_[i], right);
    }
};

// The same in float32: each thread has 4 by 8 sums, of columns that lie `adjacent` together.
template <int adjacent>
class FmaSum {
public:
    static __device__ __forceinline__ bool within(int rows, int columns)
    {
        return row(0) < rows && column(0) < columns;
    }

    __device__ __forceinline__ void add_rows(const char* a, const char* b)
    {
        for (int chunk = 0; chunk < 8; ++chunk) {
            float4 left[4];
            load_left(left, a, chunk);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float4 right = *reinterpret_cast<const float4*>(place(b, column(j), chunk));
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float& sum = sums_[i][j];
                    sum = fmaf(left[i].x, right.x, sum);
                    sum = fmaf(left[i].y, right.y, sum);
                    sum = fmaf(left[i].z, right.z, sum);
                    sum = fmaf(left[i].w, right.w, sum);
                }
            }
        }
    }

    __device__ __forceinline__ void add_columns(const char* a, const char* b)
    {
        for (int chunk = 0; chunk < 8; ++chunk) {
            float4 left[4];
            load_left(left, a, chunk);
            add_column(left[0].x, left[1].x, left[2].x, left[3].x, b, 4 * chunk);
            add_column(left[0].y, left[1].y, left[2].y, left[3].y, b, 4 * chunk + 1);
            add_column(left[0].z, left[1].z, left[2].z, left[3].z, b, 4 * chunk + 2);
            add_column(left[0].w, left[1].w, left[2].w, left[3].w, b, 4 * chunk + 3);
        }
    }

    __device__ __forceinline__ void store(float* tile) const
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) tile[row(i) * kPitch + column(j)] = sums_[i][j];
    }

private:
    float sums_[4][8] = {};

    static __device__ __forceinline__ int row(int i) { return threadIdx.x / 8 + 16 * i; }
    static __device__ __forceinline__ int column(int j)
    {
        return threadIdx.x % 8 * adjacent + j / adjacent * 8 * adjacent + j % adjacent;
    }

    static __device__ __forceinline__ void load_left(float4 (&left)[4], const char* a, int chunk)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) left[i] = *reinterpret_cast<const float4*>(place(a, row(i), chunk));
    }

    // One column of A times one row of B, whose second 32 numbers are 32 rows further down.
    __device__ __forceinline__ void add_column(float a0, float a1, float a2, float a3, const char* b, int k)
    {
        const float left[4] = {a0, a1, a2, a3};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const char* from = place(b + half * kStageBytes / 2, k, threadIdx.x % 8);
            const float4 right = *reinterpret_cast<const float4*>(from);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float* sums = sums_[i] + 4 * half;
                sums[0] = fmaf(left[i], right.x, sums[0]);
                sums[1] = fmaf(left[i], right.y, sums[1]);
                sums[2] = fmaf(left[i], right.z, sums[2]);
                sums[3] = fmaf(left[i], right.w, sums[3]);
            }
        }
    }
};

// The kinds: how features are stored and multiplied.

// Fragments of 16-bit numbers for 16 columns of a stage whose rows are the inner dimension.
__device__ __forceinline__ void load_half_columns(unsigned (&words)[4], const char* b, int step, int column)
{
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(words, place(b, 16 * step + lane % 16, column / 8 + lane / 16));
}

struct Fp16 : Half {
    using RowSum = TensorSum<Fp16>;
    using ColumnSum = TensorSum<Fp16>;
    static __device__ __forceinline__ void round(unsigned (&)[4]) {}
    static __device__ __forceinline__ void load_columns(unsigned (&words)[4], const char* b, int step, int column)
    {
        load_half_columns(words, b, step, column);
    }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2])
    {
        mma_half(d, a, b);
    }
};

struct Bf16 : Bfloat {
    using RowSum = TensorSum<Bf16>;
    using ColumnSum = TensorSum<Bf16>;
    static __device__ __forceinline__ void round(unsigned (&)[4]) {}
    static __device__ __forceinline__ void load_columns(unsigned (&words)[4], const char* b, int step, int column)
    {
        load_half_columns(words, b, step, column);
    }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2])
    {
        mma_bfloat(d, a, b);
    }
};

// Tensor cores cut numbers off: rounding first leaves no bias.
struct Tf32 : Float {
    using RowSum = TensorSum<Tf32>;
    using ColumnSum = TensorSum<Tf32>;
    static __device__ __forceinline__ void round(unsigned (&words)[4])
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = float_to_tf32(__uint_as_float(words[i]));
    }
    static __device__ __forceinline__ void load_columns(unsigned (&words)[4], const char* b, int step, int column)
    {
        const int lane = threadIdx.x % 32;
        const char* half = b + column / 32 * kStageBytes / 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = 8 * step + i % 2 * 4 + lane % 4, across = column % 32 + i / 2 * 8 + lane / 4;
            words[i] = reinterpret_cast<const unsigned*>(place(half, row, across / 4))[across % 4];
        }
        round(words);
    }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2])
    {
        mma_tf32(d, a, b);
    }
};

struct Fp32 : Float {
    using RowSum = FmaSum<1>;
    using ColumnSum = FmaSum<4>;
};

// Load stage after stage, each while the one before is worked on.
template <class Load, class Add>
__device__ __forceinline__ void pipeline(char* shared, int stages, Load load, Add add)
{
    if (stages > 0) load(shared, 0);
    commit_copies();
    for (int stage = 0; stage < stages; ++stage) {
        char* next = shared + (stage + 1) % 2 * 2 * kStageBytes;
        if (stage + 1 < stages) load(next, stage + 1);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        add(shared + stage % 2 * 2 * kStageBytes);
        __syncthreads();
    }
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
    const float count = static_cast<float>(channels) * static_cast<float>(tap.pixels);
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
    const double unit = scale[picture] / (static_cast<double>(tap.channels) * tap.pixels);
    const double* own = factors + static_cast<long long>(picture) * columns;
    return {tap.style ? static_cast<float>(4 * unit * own[tap.style_column]) : 0,
            tap.content ? static_cast<float>(2 * unit * own[tap.content_column]) : 0};
}

// Write a tile of the gradient from `products`, the scaled R F; returns this thread's part of Σ (F − F_c)².
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
        if (tap.style) {
            const float unscale = tap.unscale[row];
#pragma unroll
            for (int k = 0; k < kValues; ++k)
                values[k] = products[down * kPitch + across + k] * unscale * factors.style;
        }
        if (tap.content) {
            const auto found = read_chunk(static_cast<const T*>(tap.features) + offset, present, tap.aligned);
            const auto wanted = read_chunk(static_cast<const T*>(tap.content) + offset, present, tap.aligned);
#pragma unroll
            for (int k = 0; k < kValues; ++k) {
                const float difference = Kind::widen(found.values[k]) - Kind::widen(wanted.values[k]);
                values[k] += difference * factors.content;
                squares += static_cast<double>(difference) * difference;
            }
        }
        Chunk<T> chunk;
#pragma unroll
        for (int k = 0; k < kValues; ++k) chunk.values[k] = Kind::narrow(values[k]);
        T* out = static_cast<T*>(tap.gradient) + offset;
        if (tap.aligned) {
            *reinterpret_cast<uint4*>(out) = chunk.words;
        } else {
            for (int k = 0; k < kValues; ++k)
                if (k < present) out[k] = chunk.values[k];
        }
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
    __shared__ __align__(128) char shared[taps::kProductBytes];                                            \
    taps::multiply_features<taps::Kind>(shared, table, blocks);

#define NST_RESIDUAL_KERNEL(Kind)                                                                          \
    __shared__ double scratch[32];                                                                         \
    __shared__ float largest[taps::kBandThreads / 32][taps::kBandRows];                                    \
    taps::reduce_band<taps::Kind>(scratch, largest, table, blocks);

#define NST_GRADIENT_KERNEL(Kind)                                                                          \
    __shared__ __align__(128) char shared[taps::kProductBytes];                                            \
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
NST_KERNEL void __launch_bounds__(256) add_terms(const taps::Term* table, const double* factors, double* terms)
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
