// Adam, the terms of the picture itself, and what lbfgs.cu needs too. N pictures move side by side: each
// has its own state in device memory and its own row of blocks, so none depends on another. Launches
// have constant arguments and can be recorded in a CUDA graph. Compiled behind device.cuh.
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

// What the provider reads of x where it does not read x itself: x minus the mean of its channel, as a
// coarse and a fine number of 16 bits, (N, 2, D). One number has too few bits: an edge is a small
// difference of large values.
struct Parts {
    unsigned short* values;
    int kind;
    const float* mean;  // of each channel
    Index plane;        // numbers of a channel
};

enum PartsKind { kNoParts, kFloat16, kBfloat16 };

template <class Number>
__device__ __forceinline__ void split(float value, unsigned short& coarse, unsigned short& fine)
{
    coarse = Number::narrow(value);
    fine = Number::narrow(value - Number::widen(coarse));
}

template <bool kAligned>
__device__ __forceinline__ void store_parts(const Span<kAligned>& span, const Parts& parts, Index n,
                                            const float (&values)[kItems])
{
    if (parts.kind == kNoParts) return;
    unsigned short coarse[kItems] = {}, fine[kItems] = {};
    Index channel = span.first / parts.plane, end = (channel + 1) * parts.plane;
    for (int j = 0; j < kItems; ++j) {
        const Index at = span.index(j);
        if (at >= span.size) break;
        for (; at >= end; end += parts.plane) ++channel;
        const float centred = values[j] - parts.mean[channel];
        if (parts.kind == kFloat16)
            split<Half>(centred, coarse[j], fine[j]);
        else
            split<Bfloat>(centred, coarse[j], fine[j]);
    }
    unsigned short* row = parts.values + 2 * n * span.size;
    span.store(row, coarse);
    span.store(row + span.size, fine);
}

// Sum of a row in a fixed order, the same on every lane.
__device__ __forceinline__ double row_sum(const double* row, int count)
{
    double sum = 0;
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) sum += row[i];
    return warp_sum(sum);
}

// ---- The terms of the picture -------------------------------------------------------------------

struct PicturePart {
    float variation, range;
    bool unusable;
};

// Where the loop over a plane is: kWidth neighbouring pixels of one row.
template <int kWidth>
struct Pixels {
    const float* here;
    Index at;  // in the plane
    int i, j, height, width;

    // The pixels `down` rows further.
    __device__ __forceinline__ void row(int down, float (&out)[kWidth]) const
    {
        load_neighbours(here + Index{down} * width, out);
    }
};

template <int kWidth>
__device__ __forceinline__ void add_variation(const Pixels<kWidth>& p, float twice_weight,
                                              float (&gradient)[kWidth], PicturePart& part)
{
    float x[kWidth], up[kWidth], down[kWidth];
    p.row(0, x);
    p.row(p.i > 0 ? -1 : 0, up);
    p.row(p.i + 1 < p.height ? 1 : 0, down);
    const float before = p.j > 0 ? p.here[-1] : x[0];
    const float behind = p.j + kWidth < p.width ? p.here[kWidth] : x[kWidth - 1];
    for (int k = 0; k < kWidth; ++k) {
        const float left = x[k] - (k > 0 ? x[k - 1] : before);
        const float right = (k + 1 < kWidth ? x[k + 1] : behind) - x[k];
        const float above = x[k] - up[k], below = down[k] - x[k];
        gradient[k] += twice_weight * ((left - right) + (above - below));
        part.variation += right * right + below * below;
    }
}

template <int kWidth>
__device__ __forceinline__ void add_range(const Pixels<kWidth>& p, float twice_weight,
                                          float (&gradient)[kWidth], PicturePart& part)
{
    float x[kWidth];
    p.row(0, x);
    for (int k = 0; k < kWidth; ++k) {
        const float outside = x[k] < 0 ? x[k] : x[k] > 1 ? x[k] - 1 : x[k] * 0;  // NaN stays
        gradient[k] += twice_weight * outside;
        part.range += outside * outside;
    }
}

struct PictureWeights {
    float inverse_scale, twice_variation, twice_range;
};

template <class Number, int kWidth>
__device__ PicturePart picture_part(const Pixels<kWidth>& p, const typename Number::Stored* provided,
                                    float* gradient, const PictureWeights& weights)
{
    typename Number::Stored stored[kWidth];
    load_neighbours(provided + p.at, stored);
    PicturePart part{};
    float sum[kWidth];
    for (int k = 0; k < kWidth; ++k) {
        const float value = Number::widen(stored[k]);
        part.unusable |= !is_finite(value);
        sum[k] = value * weights.inverse_scale;
    }
    if (weights.twice_variation != 0) add_variation(p, weights.twice_variation, sum, part);
    if (weights.twice_range != 0) add_range(p, weights.twice_range, sum, part);
    store_neighbours(gradient + p.at, sum);
    return part;
}

// One plane, blockIdx.y, of picture blockIdx.z; sums has room for the three sums of each block.
template <class Number, int kWidth>
__device__ void picture_plane(const float* image, const void* provided, float* gradient,
                              const PictureWeights& weights, double* sums, int height, int width)
{
    const Index plane = Index{blockIdx.z} * gridDim.y + blockIdx.y, pixels = Index{height} * width;
    const auto* stored = static_cast<const typename Number::Stored*>(provided) + plane * pixels;
    double variation = 0, range = 0, unusable = 0;
    for (Index at = (Index{blockIdx.x} * kThreads + threadIdx.x) * kWidth; at < pixels;
         at += Index{gridDim.x} * kThreads * kWidth) {
        // A plane has fewer than 2³¹ pixels, and 64-bit division is slow.
        const int i = static_cast<int>(at) / width, j = static_cast<int>(at) - i * width;
        const Pixels<kWidth> p{image + plane * pixels + at, at, i, j, height, width};
        const PicturePart part =
            picture_part<Number, kWidth>(p, stored, gradient + plane * pixels, weights);
        variation += part.variation;
        range += part.range;
        unusable += part.unusable;
    }
    __shared__ double scratch[3][kWarp];
    variation = block_sum(variation, scratch[0]);
    range = block_sum(range, scratch[1]);
    unusable = block_sum(unusable, scratch[2]);
    if (threadIdx.x != 0) return;
    const Index blocks = Index{gridDim.x} * gridDim.y;
    double* of_block = sums + blockIdx.z * 3 * blocks + blockIdx.y * gridDim.x + blockIdx.x;
    of_block[0] = variation;
    of_block[blocks] = range;
    of_block[2 * blocks] = unusable;
}

template <int kWidth>
__device__ __forceinline__ void picture_planes(const float* image, const void* provided, int kind,
                                               float* gradient, const PictureWeights& weights,
                                               double* sums, int height, int width)
{
    if (kind == kFloat16)
        picture_plane<Half, kWidth>(image, provided, gradient, weights, sums, height, width);
    else if (kind == kBfloat16)
        picture_plane<Bfloat, kWidth>(image, provided, gradient, weights, sums, height, width);
    else
        picture_plane<Float, kWidth>(image, provided, gradient, weights, sums, height, width);
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
                           float* second, const AdamState& state, const AdamOptions& options,
                           float (&moved)[kItems])
{
    float g[kItems], m[kItems], v[kItems];
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

}  // namespace steps

// Grid (blocks, 3, N): gradient = provided/scale and the gradients of both terms, which are weighted by
// `variation` and `range` a value. provided has kind 0: float32, 1: float16, 2: bfloat16. sums is
// (N, 3, 3 blocks): squares for the variation, for the range, values that are not finite.
NST_KERNEL void __launch_bounds__(steps::kThreads)
    picture_pass(const float* image, const void* provided, float* gradient, const float* scale,
                 double* sums, int kind, int height, int width, double variation, double range)
{
    const steps::PictureWeights weights{1 / scale[blockIdx.z], static_cast<float>(2 * variation),
                                        static_cast<float>(2 * range)};
    if (width % 4 == 0)
        steps::picture_planes<4>(image, provided, kind, gradient, weights, sums, height, width);
    else
        steps::picture_planes<1>(image, provided, kind, gradient, weights, sums, height, width);
}

// Grid (1, 1, N), three warps: the sums of picture_pass over the blocks of a picture.
NST_KERNEL void picture_sums(const double* sums, double* terms, int* overflow, int blocks,
                             double variation, double range)
{
    const int which = threadIdx.x / steps::kWarp;
    const steps::Index n = blockIdx.z;
    const double sum = steps::row_sum(sums + (3 * n + which) * blocks, blocks);
    if (threadIdx.x % steps::kWarp != 0) return;
    if (which == 2)
        overflow[n] = sum > 0;
    else
        terms[2 * n + which] = (which == 0 ? variation : range) * sum;
}

// Grid (chunks, 1, N): to = from, and its narrower copy.
NST_KERNEL void __launch_bounds__(steps::kThreads)
    place_picture(const float* from, float* to, void* parts, int kind, const float* mean,
                  long long plane, long long size)
{
    const steps::Index row = blockIdx.z * size;
    const steps::Parts copy{static_cast<unsigned short*>(parts), kind, mean, plane};
    const auto place = [&](const auto& span) {
        float values[steps::kItems];
        span.load(from + row, values);
        span.store(to + row, values);
        steps::store_parts(span, copy, blockIdx.z, values);
    };
    if (steps::aligned(size))
        place(steps::Span<true>(blockIdx.x, size));
    else
        place(steps::Span<false>(blockIdx.x, size));
}

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
    adam_move(float* x, void* parts, int kind, const float* mean, long long plane,
              const float* gradient, float* first, float* second, const steps::AdamState* states,
              float beta1, float beta2, float epsilon, float low, float high, long long size)
{
    const steps::Index row = blockIdx.z * size;
    const steps::Parts copy{static_cast<unsigned short*>(parts), kind, mean, plane};
    const steps::AdamState& state = states[blockIdx.z];
    if (!state.moves) return;
    const steps::AdamOptions options{beta1, beta2, epsilon, low, high};
    const auto move = [&](const auto& span) {
        float moved[steps::kItems];
        steps::adam_chunk(span, x + row, gradient + row, first + row, second + row, state, options,
                          moved);
        steps::store_parts(span, copy, blockIdx.z, moved);
    };
    if (steps::aligned(size))
        move(steps::Span<true>(blockIdx.x, size));
    else
        move(steps::Span<false>(blockIdx.x, size));
}
