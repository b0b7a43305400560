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

// Sum of a row in a fixed order, the same on every lane. All numbers of a lane are under way before the
// first is added, up to 512 in a row, which is as many blocks as write one.
__device__ __forceinline__ double row_sum(const double* row, int count)
{
    constexpr int kAtOnce = 16;
    double sum = 0;
    for (int first = threadIdx.x % kWarp; first < count; first += kAtOnce * kWarp) {
        double values[kAtOnce];
        for (int k = 0; k < kAtOnce; ++k)
            values[k] = first + k * kWarp < count ? row[first + k * kWarp] : 0;
        for (int k = 0; k < kAtOnce; ++k) sum += values[k];
    }
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
static_assert(sizeof(Progress) == 16, "gpu/optimizers.py reads it as four int32");

// What an optimiser is told of its pictures; the layout is that of WATCH in nst_fast/gpu/optimizers.py.
struct Watch {
    const unsigned long long* terms;  // (arrays, 2): address of (N, columns) float64, columns
    float* loss_scale;                // (N)
    float* first_scale;               // (N), what it began with
    const int* overflow;              // (N), whether the gradient is of no use
    double* log;                      // (N, capacity, columns of all)
    Progress* progress;               // (N)
    int arrays;
    int capacity;
    int scaled;  // whether a smaller loss scale can mend a gradient
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
    float& scale = watch.loss_scale[n];
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
static_assert(sizeof(AdamState) == 16, "gpu/optimizers.py allocates it");

// The layout is that of ADAM in nst_fast/gpu/optimizers.py.
struct Adam {
    Watch watch;
    float* x;  // (N, size), as are the next three
    const float* gradient;
    float* first;
    float* second;
    AdamState* states;  // (N)
    Index size;
    double learning_rate, beta1, beta2;
    float epsilon, low, high;
};

template <bool kAligned>
__device__ void adam_chunk(const Adam& adam, Index row, const AdamState& state, const Span<kAligned>& span)
{
    const auto beta1 = static_cast<float>(adam.beta1), beta2 = static_cast<float>(adam.beta2);
    float moved[kItems], g[kItems], m[kItems], v[kItems];
    span.load(adam.x + row, moved);
    span.load(adam.gradient + row, g);
    span.load(adam.first + row, m);
    span.load(adam.second + row, v);
    for (int j = 0; j < kItems; ++j) {
        m[j] = beta1 * m[j] + (1 - beta1) * g[j];
        v[j] = beta2 * v[j] + (1 - beta2) * g[j] * g[j];
        const float root = sqrtf(v[j]) * state.root_scale + adam.epsilon;
        const float value = moved[j] - state.step * m[j] / root;
        const float raised = value < adam.low ? adam.low : value;
        moved[j] = raised > adam.high ? adam.high : raised;
    }
    span.store(adam.first + row, m);
    span.store(adam.second + row, v);
    span.store(adam.x + row, moved);
}

// ---- Smoothing ----------------------------------------------------------------------------------

constexpr int kSmoothRows = 32;   // of a block, and as many columns
constexpr int kMostRadius = 48;   // of the least corner that settings allow

// Position i of a line that is mirrored at both ends, which are repeated.
__device__ __forceinline__ int mirrored(int i, int length)
{
    if (0 <= i && i < length) return i;
    const int period = 2 * length, at = (i % period + period) % period;
    return at < length ? at : period - 1 - at;
}

// Of planes (height, width); the layout is that of SMOOTHING in nst_fast/gpu/smoothing.py.
struct Smoothing {
    const float* image;
    const float* start;  // added to the result; null: 0
    float* out;          // not the image
    const float* taps;   // (radius + 1)
    int radius, height, width;
    float share;
};

// Σ taps[|k|] line[n + k], |k| ≤ radius.
__device__ __forceinline__ float weighted_sum(const float* line, int n, int length, const float* taps,
                                              int radius)
{
    float sum = taps[0] * line[n];
    if (n >= radius && n + radius < length)
        for (int k = 1; k <= radius; ++k) sum += taps[k] * (line[n - k] + line[n + k]);
    else
        for (int k = 1; k <= radius; ++k)
            sum += taps[k] * (line[mirrored(n - k, length)] + line[mirrored(n + k, length)]);
    return sum;
}

}  // namespace steps

// Grid (1, 1, N), one warp: log the evaluation, and correct the bias of the moments (Kingma & Ba 2015,
// algorithm 1) through step and epsilon.
NST_KERNEL void adam_judge(const steps::Adam adam)
{
    const steps::Index n = blockIdx.z;
    const double loss = steps::log_terms(adam.watch, n);
    if (threadIdx.x != 0) return;
    const steps::Finding finding = steps::inspect(adam.watch, n, loss);
    steps::AdamState& state = adam.states[n];
    steps::Progress& progress = adam.watch.progress[n];
    state.moves = finding == steps::Finding::usable;
    if (finding == steps::Finding::no_gradient) progress.failed = progress.evaluations;
    if (!state.moves) return;
    const double count = ++state.count;
    state.step = static_cast<float>(adam.learning_rate / (1 - pow(adam.beta1, count)));
    state.root_scale = static_cast<float>(1 / sqrt(1 - pow(adam.beta2, count)));
}

// Grid (chunks, 1, N): one step of Adam, clamped to [low, high].
NST_KERNEL void __launch_bounds__(steps::kThreads) adam_move(const steps::Adam adam)
{
    const steps::AdamState state = adam.states[blockIdx.z];
    if (!state.moves) return;
    const steps::Index row = blockIdx.z * adam.size;
    if (steps::aligned(adam.size))
        steps::adam_chunk(adam, row, state, steps::Span<true>(blockIdx.x, adam.size));
    else
        steps::adam_chunk(adam, row, state, steps::Span<false>(blockIdx.x, adam.size));
}

// Grid (columns / kWarp, rows / kSmoothRows, planes): out = [start +] share·image + (1 − share)·G image.
// The rows that a block's columns reach are smoothed along themselves into shared memory.
NST_KERNEL void __launch_bounds__(steps::kThreads) smooth(const steps::Smoothing s)
{
    using steps::kWarp;
    __shared__ float taps[steps::kMostRadius + 1];
    __shared__ float between[(steps::kSmoothRows + 2 * steps::kMostRadius) * kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, j = blockIdx.x * kWarp + lane;
    const int first = blockIdx.y * steps::kSmoothRows, end = min(first + steps::kSmoothRows, s.height);
    const float* image = s.image + blockIdx.z * steps::Index{s.height} * s.width;
    if (static_cast<int>(threadIdx.x) <= s.radius) taps[threadIdx.x] = s.taps[threadIdx.x];
    __syncthreads();
    const int top = first - s.radius;  // the row that `between` begins with
    if (j < s.width)
        for (int i = top + warp; i < end + s.radius; i += steps::kWarps) {
            const float* row = image + steps::Index{steps::mirrored(i, s.height)} * s.width;
            between[(i - top) * kWarp + lane] = steps::weighted_sum(row, j, s.width, taps, s.radius);
        }
    __syncthreads();
    if (j >= s.width) return;
    for (int i = first + warp; i < end; i += steps::kWarps) {
        const float* here = between + (i - top) * kWarp + lane;
        float sum = taps[0] * here[0];
        for (int k = 1; k <= s.radius; ++k) sum += taps[k] * (here[-k * kWarp] + here[k * kWarp]);
        const steps::Index at = blockIdx.z * steps::Index{s.height} * s.width + steps::Index{i} * s.width + j;
        const float mixed = s.share * s.image[at] + (1 - s.share) * sum;
        s.out[at] = (s.start ? s.start[at] : 0.0F) + mixed;
    }
}
