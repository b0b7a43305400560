// Products of matrices, tile by tile, for taps.cu. Compiled behind device.cuh.
//
// A block of 256 threads, warps in two rows of four, multiplies a tile of 64 by 64 or 128 by 128 numbers.
// Each stage of its loop holds 8 KiB of either operand in shared memory: 64 lines of 128 bytes, whose
// 16-byte chunks are permuted so that neither lines nor columns of them share banks. A row of a matrix is
// what lies together in memory: with the channels last, those of a pixel.

namespace products {

constexpr int kProductThreads = 256;
constexpr int kWarpsAcross = 4;
constexpr int kRowBytes = 128;
constexpr int kLines = 64;
constexpr int kOperandBytes = kLines * kRowBytes;
constexpr int kStageBytes = 2 * kOperandBytes;
constexpr int kStages = 3;
constexpr int kWarpSums = 384;  // floats that a warp passes its sums on by
constexpr int kSumBytes = kProductThreads / 32 * kWarpSums * sizeof(float);
constexpr int kProductBytes = kStages * kStageBytes + kSumBytes;

template <class T>
struct Matrix {
    const T* first;
    long long stride;
    int rows;
    int columns;
    bool aligned;
};

__device__ __forceinline__ int divide_up(int count, int size) { return (count - 1) / size + 1; }

// How far a stage reaches along the inner dimension.
template <class T, int tile>
constexpr int kDepth = kOperandBytes / static_cast<int>(tile * sizeof(T));

// Chunk of 16 bytes of a line. Eight lines have it in different banks, and four lines have it and its
// neighbour there.
__device__ __forceinline__ char* place(char* operand, int line, int chunk)
{
    const int permutation = (line << 1 | (line >> 2 & 1)) & 7;
    return operand + line * kRowBytes + (chunk ^ permutation) * 16;
}

__device__ __forceinline__ const char* place(const char* operand, int line, int chunk)
{
    return place(const_cast<char*>(operand), line, chunk);
}

// Where an operand whose rows are those of the tile has a chunk of a row, that is, of the inner dimension.
// Of a tile of 128 two rows share a line.
template <class T, int tile>
__device__ __forceinline__ const char* across(const char* operand, int row, int chunk)
{
    constexpr int kChunks = kDepth<T, tile> * static_cast<int>(sizeof(T)) / 16;
    return place(operand, row % kLines, row / kLines * kChunks + chunk);
}

// Where an operand whose rows are the inner dimension has the chunk of a row that holds a column of the
// tile. What does not fit a line lies further down.
template <class T, int tile>
__device__ __forceinline__ const char* down(const char* operand, int row, int column)
{
    const int byte = column * static_cast<int>(sizeof(T));
    return place(operand, byte / kRowBytes * kDepth<T, tile> + row,
                 byte % kRowBytes / 16);
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

template <class T>
__device__ __forceinline__ void write_chunk(T* to, const Chunk<T>& chunk, int present, bool aligned)
{
    if (aligned) {
        *reinterpret_cast<uint4*>(to) = chunk.words;
    } else {
        for (int i = 0; i < 16 / static_cast<int>(sizeof(T)); ++i)
            if (i < present) to[i] = chunk.values[i];
    }
}

// Copy the 16 bytes at (row, column) of a matrix to shared memory; zeros where it has ended.
template <class T>
__device__ __forceinline__ void load_chunk(char* to, const Matrix<T>& matrix, int row, int column)
{
    const int present = row < matrix.rows ? matrix.columns - column : 0;
    const T* from = matrix.first + (present > 0 ? row * matrix.stride + column : 0);
    if (matrix.aligned)
        copy_async(to, from, present > 0);
    else
        *reinterpret_cast<uint4*>(to) = read_chunk(from, present, false).words;
}

// An operand whose rows are those of the tile, from (row, column) on.
template <int tile, class T>
__device__ __forceinline__ void load_across(char* operand, const Matrix<T>& matrix, int row, int column)
{
    constexpr int kValues = 16 / sizeof(T), kChunks = kDepth<T, tile> / kValues;
    const int chunk = threadIdx.x % 8;
#pragma unroll
    for (int line = threadIdx.x / 8; line < kLines; line += kProductThreads / 8)
        load_chunk(place(operand, line, chunk), matrix, row + line + chunk / kChunks * kLines,
                   column + chunk % kChunks * kValues);
}

// An operand whose rows are the inner dimension, from (row, column) on.
template <int tile, class T>
__device__ __forceinline__ void load_down(char* operand, const Matrix<T>& matrix, int row, int column)
{
    constexpr int kValues = 16 / sizeof(T), kInner = kDepth<T, tile>;
    const int chunk = threadIdx.x % 8;
#pragma unroll
    for (int line = threadIdx.x / 8; line < kLines; line += kProductThreads / 8)
        load_chunk(place(operand, line, chunk), matrix, row + line % kInner,
                   column + (line / kInner * 8 + chunk) * kValues);
}

// A tile's sums on tensor cores: each of eight warps has half of the rows and a quarter of the columns, in
// blocks of 16 by 8.
template <class Kind, int tile>
class TensorSum {
    using T = typename Kind::Stored;

public:
    // Whether this warp's share begins within the first rows and columns of the tile.
    static __device__ __forceinline__ bool within(int rows, int columns)
    {
        return first_row() < rows && first_column() < columns;
    }

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int i = 0; i < kDown; ++i)
#pragma unroll
            for (int j = 0; j < kAcross; ++j)
#pragma unroll
                for (int k = 0; k < 4; ++k) sums_[i][j][k] = 0;
    }

    // Add A Bᵀ: the rows of both are those of the tile.
    __device__ __forceinline__ void add_rows(const char* a, const char* b)
    {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int i = 0; i < kDown; ++i) {
                const int row = first_row() + 16 * i + lane % 16;
                load_matrices(left_[i], across<T, tile>(a, row, 2 * step + lane / 16));
                Kind::round(left_[i]);
            }
#pragma unroll
            for (int j = 0; j < kAcross / 2; ++j) {
                const int row = first_column() + 16 * j + lane / 16 * 8 + lane % 8;
                unsigned words[4];
                load_matrices(words, across<T, tile>(b, row, 2 * step + lane / 8 % 2));
                Kind::round(words);
                multiply(2 * j, words[0], words[1]);
                multiply(2 * j + 1, words[2], words[3]);
            }
        }
    }

    // Add Aᵀ B: the rows of both are the inner dimension.
    __device__ __forceinline__ void add_columns(const char* a, const char* b)
    {
#pragma unroll Kind::kUnrolled
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int i = 0; i < kDown; ++i)
                Kind::template load_left<tile>(left_[i], a, step, first_row() + 16 * i);
#pragma unroll
            for (int j = 0; j < kAcross / 2; ++j) {
                unsigned words[4];
                Kind::template load_right<tile>(words, b, step, first_column() + 16 * j);
                multiply(2 * j, words[0], words[1]);
                multiply(2 * j + 1, words[2], words[3]);
            }
        }
    }

    // Calls use(row, column, sums) with as many neighbours of a row as 16 bytes of the features hold. They
    // pass through this warp's part of `shared`.
    template <class Use>
    __device__ __forceinline__ void visit(float* shared, Use use) const
    {
        constexpr int kValues = 16 / sizeof(T), kChunks = kColumns / kValues;
        constexpr int kHalves = 16 / kColumns + 1;  // of the 16 rows of a block, at a time
        constexpr int kPitch = kColumns + 8;        // no conflicts between rows
        const int lane = threadIdx.x % 32;
        float* const own = shared + threadIdx.x / 32 * kWarpSums;
#pragma unroll
        for (int i = 0; i < kDown; ++i)
#pragma unroll
            for (int half = 0; half < 2; half += kHalves) {
                __syncwarp();
#pragma unroll
                for (int part = half; part < half + kHalves; ++part)
#pragma unroll
                    for (int j = 0; j < kAcross; ++j)
                        *reinterpret_cast<float2*>(own + ((part - half) * 8 + lane / 4) * kPitch + 8 * j +
                                                   lane % 4 * 2) = {sums_[i][j][2 * part],
                                                                    sums_[i][j][2 * part + 1]};
                __syncwarp();
#pragma unroll
                for (int at = lane; at < 8 * kHalves * kChunks; at += 32) {
                    const int row = at / kChunks, column = at % kChunks * kValues;
                    float values[kValues];
#pragma unroll
                    for (int k = 0; k < kValues; k += 4)
                        *reinterpret_cast<float4*>(values + k) =
                            *reinterpret_cast<const float4*>(own + row * kPitch + column + k);
                    use(first_row() + 16 * i + 8 * half + row, first_column() + column, values);
                }
            }
    }

private:
    static constexpr int kRows = tile / 2, kColumns = tile / kWarpsAcross;
    static constexpr int kDown = kRows / 16, kAcross = kColumns / 8;
    static constexpr int kSteps = kDepth<T, tile> * static_cast<int>(sizeof(T)) / 32;
    float sums_[kDown][kAcross][4] = {};
    unsigned left_[kDown][4];

    static __device__ __forceinline__ int first_row() { return threadIdx.x / 32 / kWarpsAcross * kRows; }
    static __device__ __forceinline__ int first_column() { return threadIdx.x / 32 % kWarpsAcross * kColumns; }

    __device__ __forceinline__ void multiply(int j, unsigned low, unsigned high)
    {
        const unsigned right[2] = {low, high};
#pragma unroll
        for (int i = 0; i < kDown; ++i) Kind::multiply(sums_[i][j], left_[i], right);
    }
};

// The same in float32, of a tile of 64: each thread has 4 by 4 sums.
class FmaSum {
    static constexpr int kTile = 64;

public:
    static __device__ __forceinline__ bool within(int rows, int columns)
    {
        return row(0) < rows && column(0) < columns;
    }

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sums_[i][j] = 0;
    }

    __device__ __forceinline__ void add_rows(const char* a, const char* b)
    {
        // Each thread begins elsewhere, else the rows would share banks.
        const int turn = threadIdx.x % 16 / 2 + threadIdx.x % 2 * 4;
        for (int step = 0; step < 8; ++step) {
            const int chunk = (step + turn) % 8;
            float4 left[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) left[i] = quad(across<float, kTile>(a, row(i), chunk));
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float4 right = quad(across<float, kTile>(b, column(j), chunk));
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
        for (int k = 0; k < kDepth<float, kTile>; ++k) {
            const float4 quads[2] = {quad(down<float, kTile>(a, k, row(0))),
                                     quad(down<float, kTile>(b, k, column(0)))};
            const float left[4] = {quads[0].x, quads[0].y, quads[0].z, quads[0].w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums_[i][0] = fmaf(left[i], quads[1].x, sums_[i][0]);
                sums_[i][1] = fmaf(left[i], quads[1].y, sums_[i][1]);
                sums_[i][2] = fmaf(left[i], quads[1].z, sums_[i][2]);
                sums_[i][3] = fmaf(left[i], quads[1].w, sums_[i][3]);
            }
        }
    }

    template <class Use>
    __device__ __forceinline__ void visit(float*, Use use) const
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float values[4] = {sums_[i][0], sums_[i][1], sums_[i][2], sums_[i][3]};
            use(row(i), column(0), values);
        }
    }

private:
    float sums_[4][4] = {};

    static __device__ __forceinline__ int row(int i) { return threadIdx.x / 16 * 4 + i; }
    static __device__ __forceinline__ int column(int j) { return threadIdx.x % 16 * 4 + j; }
    static __device__ __forceinline__ float4 quad(const char* from)
    {
        return *reinterpret_cast<const float4*>(from);
    }
};

// The kinds: how numbers are stored and multiplied, and the tile that wide matrices are cut in. load_left
// and load_right read fragments of operands whose rows are the inner dimension.

template <class Format, void (*mma)(float (&)[4], const unsigned (&)[4], const unsigned (&)[2])>
struct HalfKind : Format {
    template <int tile>
    using Sum = TensorSum<HalfKind, tile>;
    static constexpr int kWide = 128, kUnrolled = 4;
    static __device__ __forceinline__ void round(unsigned (&)[4]) {}
    template <int tile>
    static __device__ __forceinline__ void load_left(unsigned (&words)[4], const char* a, int step, int row)
    {
        const int lane = threadIdx.x % 32, inner = 16 * step + lane / 16 * 8 + lane % 8;
        load_matrices_transposed(words,
                                 down<typename Format::Stored, tile>(a, inner, row + lane / 8 % 2 * 8));
    }
    template <int tile>
    static __device__ __forceinline__ void load_right(unsigned (&words)[4], const char* b, int step, int column)
    {
        const int lane = threadIdx.x % 32, inner = 16 * step + lane % 16;
        load_matrices_transposed(words,
                                 down<typename Format::Stored, tile>(b, inner, column + lane / 16 * 8));
    }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2])
    {
        mma(d, a, b);
    }
};
using Fp16 = HalfKind<Half, mma_half>;
using Bf16 = HalfKind<Bfloat, mma_bfloat>;

// Tensor cores cut numbers off: rounding first leaves no bias.
struct Tf32 : Float {
    template <int tile>
    using Sum = TensorSum<Tf32, tile>;
    static constexpr int kWide = 128, kUnrolled = 1;
    static __device__ __forceinline__ void round(unsigned (&words)[4])
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = float_to_tf32(__uint_as_float(words[i]));
    }
    template <int tile>
    static __device__ __forceinline__ void load_left(unsigned (&words)[4], const char* a, int step, int row)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = word<tile>(a, 8 * step + i / 2 * 4, row + i % 2 * 8);
        round(words);
    }
    template <int tile>
    static __device__ __forceinline__ void load_right(unsigned (&words)[4], const char* b, int step, int column)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = word<tile>(b, 8 * step + i % 2 * 4, column + i / 2 * 8);
        round(words);
    }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2])
    {
        mma_tf32(d, a, b);
    }

private:
    // Of four rows and eight columns from (row, column) on, this lane's.
    template <int tile>
    static __device__ __forceinline__ unsigned word(const char* operand, int row, int column)
    {
        const int lane = threadIdx.x % 32, at = column + lane / 4;
        return reinterpret_cast<const unsigned*>(down<float, tile>(operand, row + lane % 4, at))[at % 4];
    }
};

struct Fp32 : Float {
    template <int tile>
    using Sum = FmaSum;
    static constexpr int kWide = 64;
};

// Load stage after stage, two ahead of the one that is worked on. Both are given where a stage lies, and its
// number.
template <class Load, class Add>
__device__ __forceinline__ void pipeline(char* shared, int stages, Load load, Add add)
{
    for (int stage = 0; stage < kStages - 1; ++stage) {
        if (stage < stages) load(shared + stage * kStageBytes, stage);
        commit_copies();
    }
    for (int stage = 0; stage < stages; ++stage) {
        wait_for_copies<kStages - 2>();
        __syncthreads();  // all have left the stage that is loaded next
        const int next = stage + kStages - 1;
        if (next < stages) load(shared + next % kStages * kStageBytes, next);
        commit_copies();
        add(shared + stage % kStages * kStageBytes, stage);
    }
}

}  // namespace products
