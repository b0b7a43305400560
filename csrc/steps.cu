// Adam, smoothing, and what lbfgs.cu and terms.cu need too. N pictures move side by side: each has its own
// state in device memory and its own row of blocks, so none depends on another. Launches have constant
// arguments and can be recorded in a CUDA graph. Compiled behind device.cuh.
//
// Sums are in float32 within a block, at most, then in double, in an order that depends on shapes alone.

namespace steps {

using Index = long long;

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block that passes over a picture
constexpr int kWarps = kThreads / kWarp;
constexpr int kItems = 8;  // numbers that a thread holds of each array
constexpr Index kChunk = kThreads * kItems;
constexpr int kMostPairs = 100;

// Of optimizers/lbfgs.py.
constexpr double kSufficientDecrease = 1e-4;
constexpr double kLeastCurvature = 1e-4;
constexpr int kBacktracks = 4;
constexpr double kLeastRatio = 0.1, kGreatestRatio = 0.5;

constexpr int kGoodRow = 200;  // evaluations that fit into float16 before the loss scale doubles
constexpr float kLeastScale = 1.0F / (1 << 24);

__device__ __forceinline__ bool is_finite(double value) { return value - value == 0; }

// ---- Memory -------------------------------------------------------------------------------------

// What kBytes move as.
template <int kBytes> struct WordOf { using Type = uint4; };
template <> struct WordOf<8> { using Type = uint2; };
template <> struct WordOf<4> { using Type = unsigned; };
template <> struct WordOf<2> { using Type = unsigned short; };

template <class Word>
__device__ __forceinline__ void store_word(Word* to, const Word& word) { *to = word; }

// By hand: NVRTC makes four stores of it.
__device__ __forceinline__ void store_word(uint4* to, const uint4& word)
{
#ifdef NST_SHIM
    *to = word;
#else
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x),
                 "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
#endif
}

// Neighbours in memory, aligned to all their bytes or to 16.
template <class T, int kCount>
__device__ __forceinline__ void load_neighbours(const T* from, T (&out)[kCount])
{
    constexpr int kBytes = kCount * sizeof(T);
    using Word = typename WordOf<kBytes>::Type;
    constexpr int kWords = kBytes / sizeof(Word);
    Word words[kWords];
    for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(from)[i];
    memcpy(out, words, kBytes);
}

template <class T, int kCount>
__device__ __forceinline__ void store_neighbours(T* to, const T (&in)[kCount])
{
    constexpr int kBytes = kCount * sizeof(T);
    using Word = typename WordOf<kBytes>::Type;
    constexpr int kWords = kBytes / sizeof(Word);
    Word words[kWords];
    memcpy(words, in, kBytes);
    for (int i = 0; i < kWords; ++i) store_word(reinterpret_cast<Word*>(to) + i, words[i]);
}

// Whether every row of an array begins aligned for kItems neighbours.
__device__ __forceinline__ bool aligned(Index size) { return size % kItems == 0; }

// The numbers of a row that this thread holds: kItems neighbours where every row begins aligned, else
// one of every kThreads.
template <bool kAligned>
struct Span {
    Index first, size;

    __device__ __forceinline__ Span(Index chunk, Index row_size)
        : first(chunk * kChunk + threadIdx.x * (kAligned ? kItems : 1)), size(row_size)
    {
    }

    // Where number j of this thread is in the row.
    __device__ __forceinline__ Index index(int j) const { return first + j * (kAligned ? 1 : kThreads); }

    // Zeros past the end.
    template <class T>
    __device__ __forceinline__ void load(const T* row, T (&out)[kItems]) const
    {
        for (int j = 0; j < kItems; ++j) out[j] = 0;
        if constexpr (kAligned) {
            if (first < size) load_neighbours(row + first, out);
        } else {
            for (int j = 0; j < kItems; ++j)
                if (first + j * kThreads < size) out[j] = row[first + j * kThreads];
        }
    }

    template <class T>
    __device__ __forceinline__ void store(T* row, const T (&in)[kItems]) const
    {
        if constexpr (kAligned) {
            if (first < size) store_neighbours(row + first, in);
        } else {
            for (int j = 0; j < kItems; ++j)
                if (first + j * kThreads < size) row[first + j * kThreads] = in[j];
        }
    }

    __device__ __forceinline__ void load_bfloats(const unsigned short* row, float (&out)[kItems]) const
    {
        unsigned short bits[kItems];
        load(row, bits);
        for (int j = 0; j < kItems; ++j) out[j] = bfloat_to_float(bits[j]);
    }
};

// Sum of a row in a fixed order, the same on every lane.
__device__ __forceinline__ double row_sum(const double* row, int count)
{
    double sum = 0;
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) sum += row[i];
    return warp_sum(sum);
}

// ---- What both optimisers do with an evaluation -------------------------------------------------

// Of one picture; the host reads it.
struct Progress {
    int evaluations;
    int failed;   // the evaluation that could not be repaired, 0: none
    int skipped;  // evaluations whose gradient did not fit into float16
    int good;     // evaluations since the scale last changed
};
static_assert(sizeof(Progress) == 16, "on_device.py reads it as four int32");

// The same for every picture.
struct Watch {
    const unsigned long long* terms;  // (arrays, 2): address of (N, columns) float64, columns
    int arrays;
    int scaled;  // whether a smaller loss scale can mend a gradient
    float* scale;
    float* first_scale;
    const int* overflow;
    double* log;  // (N, capacity, columns of all)
    int capacity;
    Progress* progress;
};

enum class Finding { usable, skipped, no_gradient, failed, over };

// Sum the terms of picture n in a fixed order and log them; one warp, the same on every lane.
__device__ double log_terms(const Watch& watch, Index n)
{
    const int lane = threadIdx.x % kWarp;
    int columns = 0, column = 0;
    for (int a = 0; a < watch.arrays; ++a) columns += static_cast<int>(watch.terms[2 * a + 1]);
    const Index entry = n * watch.capacity + watch.progress[n].evaluations % watch.capacity;
    double loss = 0;
    for (int a = 0; a < watch.arrays; ++a) {
        const auto* terms = reinterpret_cast<const double*>(watch.terms[2 * a]);
        const int count = static_cast<int>(watch.terms[2 * a + 1]);
        for (int k = lane; k < count; k += kWarp) {
            const double term = terms[n * count + k];
            watch.log[entry * columns + column + k] = term;
            loss += term;
        }
        column += count;
    }
    return warp_sum(loss);
}

// Count the evaluation, and keep the loss scale within what float16 holds; one thread.
__device__ Finding inspect(const Watch& watch, Index n, double loss)
{
    Progress& progress = watch.progress[n];
    float& scale = watch.scale[n];
    if (progress.evaluations++ == 0) watch.first_scale[n] = scale;
    if (progress.failed) return Finding::over;
    if (!is_finite(loss)) {
        progress.failed = progress.evaluations;
        return Finding::failed;
    }
    if (!watch.overflow[n]) {
        if (++progress.good >= kGoodRow && scale < watch.first_scale[n]) {
            scale *= 2;
            progress.good = 0;
        }
        return Finding::usable;
    }
    progress.good = 0;
    if (!watch.scaled || scale <= kLeastScale) return Finding::no_gradient;
    scale = max(scale / 4, kLeastScale);
    ++progress.skipped;
    return Finding::skipped;
}

// ---- Adam ---------------------------------------------------------------------------------------

struct AdamState {
    int count;  // t of the paper
    int moves;  // whether x moves now
    float step, root_scale;
};
static_assert(sizeof(AdamState) == 16, "on_device.py allocates it");

struct AdamOptions {
    float beta1, beta2, epsilon, low, high;
};

template <bool kAligned>
__device__ void adam_chunk(const Span<kAligned>& span, float* x, const float* gradient, float* first,
                           float* second, const AdamState& state, const AdamOptions& options)
{
    float moved[kItems], g[kItems], m[kItems], v[kItems];
    span.load(x, moved);
    span.load(gradient, g);
    span.load(first, m);
    span.load(second, v);
    for (int j = 0; j < kItems; ++j) {
        m[j] = options.beta1 * m[j] + (1 - options.beta1) * g[j];
        v[j] = options.beta2 * v[j] + (1 - options.beta2) * g[j] * g[j];
        const float root = sqrtf(v[j]) * state.root_scale + options.epsilon;
        const float value = moved[j] - state.step * m[j] / root;
        const float raised = value < options.low ? options.low : value;
        moved[j] = raised > options.high ? options.high : raised;
    }
    span.store(first, m);
    span.store(second, v);
    span.store(x, moved);
}

// ---- Smoothing ----------------------------------------------------------------------------------

constexpr int kSmoothRows = 32;  // of a block, and as many columns

// Position i of a line that is mirrored at both ends, which are repeated.
__device__ __forceinline__ int mirrored(int i, int length)
{
    if (0 <= i && i < length) return i;
    const int period = 2 * length, at = (i % period + period) % period;
    return at < length ? at : period - 1 - at;
}

// Σ taps[|k|] line[n + k], |k| ≤ radius, of a line whose numbers are `stride` apart.
__device__ __forceinline__ float weighted_sum(const float* line, Index stride, int n, int length,
                                              const float* taps, int radius)
{
    float sum = taps[0] * line[n * stride];
    for (int k = 1; k <= radius; ++k)
        sum += taps[k] * (line[mirrored(n - k, length) * stride] + line[mirrored(n + k, length) * stride]);
    return sum;
}

// Call body(i, j) for this thread's pixels of the block's part of a plane.
template <class Body>
__device__ __forceinline__ void over_part(int height, int width, Body body)
{
    const int j = static_cast<int>(blockIdx.x * kWarp + threadIdx.x % kWarp);
    const int first = static_cast<int>(blockIdx.y * kSmoothRows), end = min(first + kSmoothRows, height);
    if (j >= width) return;
    for (int i = first + static_cast<int>(threadIdx.x / kWarp); i < end; i += kWarps) body(i, j);
}

}  // namespace steps

// Grid (1, 1, N), one warp: log the evaluation, and correct the bias of the moments (Kingma & Ba 2015,
// algorithm 1) through step and epsilon.
NST_KERNEL void adam_judge(const unsigned long long* terms, int arrays, int scaled, float* scale,
                           float* first_scale, const int* overflow, double* log, int capacity,
                           steps::Progress* progress, steps::AdamState* states, double learning_rate,
                           double beta1, double beta2)
{
    const steps::Index n = blockIdx.z;
    const steps::Watch watch{terms,    arrays, scaled,   scale,   first_scale,
                             overflow, log,    capacity, progress};
    const double loss = steps::log_terms(watch, n);
    if (threadIdx.x != 0) return;
    const steps::Finding finding = steps::inspect(watch, n, loss);
    steps::AdamState& state = states[n];
    state.moves = finding == steps::Finding::usable;
    if (finding == steps::Finding::no_gradient) progress[n].failed = progress[n].evaluations;
    if (!state.moves) return;
    const double count = ++state.count;
    state.step = static_cast<float>(learning_rate / (1 - pow(beta1, count)));
    state.root_scale = static_cast<float>(1 / sqrt(1 - pow(beta2, count)));
}

// Grid (chunks, 1, N): one step of Adam, clamped to [low, high].
NST_KERNEL void __launch_bounds__(steps::kThreads)
    adam_move(float* x, const float* gradient, float* first, float* second,
              const steps::AdamState* states, float beta1, float beta2, float epsilon, float low,
              float high, long long size)
{
    const steps::Index row = blockIdx.z * size;
    const steps::AdamState& state = states[blockIdx.z];
    if (!state.moves) return;
    const steps::AdamOptions options{beta1, beta2, epsilon, low, high};
    const auto move = [&](const auto& span) {
        steps::adam_chunk(span, x + row, gradient + row, first + row, second + row, state, options);
    };
    if (steps::aligned(size))
        move(steps::Span<true>(blockIdx.x, size));
    else
        move(steps::Span<false>(blockIdx.x, size));
}

// Grid (columns / kWarp, rows / kSmoothRows, planes): a Gaussian along the rows of every plane.
NST_KERNEL void __launch_bounds__(steps::kThreads)
    smooth_rows(const float* in, float* out, const float* taps, int radius, int height, int width)
{
    const steps::Index plane = blockIdx.z * steps::Index{height} * width;
    steps::over_part(height, width, [&](int i, int j) {
        const steps::Index row = plane + steps::Index{i} * width;
        out[row + j] = steps::weighted_sum(in + row, 1, j, width, taps, radius);
    });
}

// The same grid: out = [start +] share·image + (1 − share)·the Gaussian along the columns of `in`; out may
// be the image.
NST_KERNEL void __launch_bounds__(steps::kThreads)
    smooth_columns(const float* in, const float* image, const float* start, float* out,
                   const float* taps, int radius, float share, int add_start, int height, int width)
{
    const steps::Index plane = blockIdx.z * steps::Index{height} * width;
    steps::over_part(height, width, [&](int i, int j) {
        const steps::Index at = plane + steps::Index{i} * width + j;
        const float sum = steps::weighted_sum(in + plane + j, width, i, height, taps, radius);
        out[at] = (add_start ? start[at] : 0.0F) + (share * image[at] + (1 - share) * sum);
    });
}
