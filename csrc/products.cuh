// Products of matrices, tile by tile, for taps.cu. Compiled behind device.cuh.
//
// A block of 128 threads multiplies one tile of 64 by 64 numbers. Each stage of its loop holds, of both
// operands, 8 KiB in shared memory: rows of 128 bytes, 64 or 32 numbers, whose 16-byte chunks are
// permuted so that neither rows nor columns of them share banks.

namespace products {

constexpr int kTile = 64;
constexpr int kRowBytes = 128;
constexpr int kStageBytes = kTile * kRowBytes;
constexpr int kProductBytes = 4 * kStageBytes;  // two operands, two stages
constexpr int kProductThreads = 128;
constexpr int kPitch = kTile + 8;  // of a tile of sums in shared memory: no conflicts between rows

template <class T>
struct Matrix {
    const T* first;
    long long stride;
    int rows;
    int columns;
    bool aligned;
};

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

// The kinds: how numbers are stored and multiplied. load_columns reads the fragments of 16 columns of a
// stage whose rows are the inner dimension.

template <class Format, void (*mma)(float (&)[4], const unsigned (&)[4], const unsigned (&)[2])>
struct HalfKind : Format {
    using RowSum = TensorSum<HalfKind>;
    using ColumnSum = TensorSum<HalfKind>;
    static __device__ __forceinline__ void round(unsigned (&)[4]) {}
    static __device__ __forceinline__ void load_columns(unsigned (&words)[4], const char* b, int step,
                                                        int column)
    {
        const int lane = threadIdx.x % 32;
        load_matrices_transposed(words, place(b, 16 * step + lane % 16, column / 8 + lane / 16));
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
    using RowSum = TensorSum<Tf32>;
    using ColumnSum = TensorSum<Tf32>;
    static __device__ __forceinline__ void round(unsigned (&words)[4])
    {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = float_to_tf32(__uint_as_float(words[i]));
    }
    static __device__ __forceinline__ void load_columns(unsigned (&words)[4], const char* b, int step,
                                                        int column)
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

// Load stage after stage, each while the one before is worked on. Both are given where a stage lies, and
// its number.
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
        add(shared + stage % 2 * 2 * kStageBytes, stage);
        __syncthreads();
    }
}

}  // namespace products
