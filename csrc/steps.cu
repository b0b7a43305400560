// The optimisers, and the terms of the picture itself. N pictures move side by side: each has its own
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

// What the provider reads of x: nothing but x, or a narrower copy.
enum HalfKind { kNoHalf, kFloat16, kBfloat16 };

template <bool kAligned>
__device__ __forceinline__ void store_half(const Span<kAligned>& span, unsigned short* row, int kind,
                                           const float (&values)[kItems])
{
    if (kind == kNoHalf) return;
    unsigned short bits[kItems];
    if (kind == kFloat16)
        for (int j = 0; j < kItems; ++j) bits[j] = float_to_half(values[j]);
    else
        for (int j = 0; j < kItems; ++j) bits[j] = float_to_bfloat(values[j]);
    span.store(row, bits);
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
    place_picture(const float* from, float* to, void* half, int half_kind, long long size)
{
    const steps::Index row = blockIdx.z * size;
    const auto place = [&](const auto& span) {
        float values[steps::kItems];
        span.load(from + row, values);
        span.store(to + row, values);
        steps::store_half(span, static_cast<unsigned short*>(half) + row, half_kind, values);
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
    adam_move(float* x, void* half, int half_kind, const float* gradient, float* first, float* second,
              const steps::AdamState* states, float beta1, float beta2, float epsilon, float low,
              float high, long long size)
{
    const steps::Index row = blockIdx.z * size;
    const steps::AdamState& state = states[blockIdx.z];
    if (!state.moves) return;
    const steps::AdamOptions options{beta1, beta2, epsilon, low, high};
    const auto move = [&](const auto& span) {
        float moved[steps::kItems];
        steps::adam_chunk(span, x + row, gradient + row, first + row, second + row, state, options,
                          moved);
        steps::store_half(span, static_cast<unsigned short*>(half) + row, half_kind, moved);
    };
    if (steps::aligned(size))
        move(steps::Span<true>(blockIdx.x, size));
    else
        move(steps::Span<false>(blockIdx.x, size));
}

namespace steps {

// ---- L-BFGS -------------------------------------------------------------------------------------

enum class Move { stay, combine, shorten, go_back };

// Of one picture, all zero before the first evaluation. The slots of the history are a ring.
struct alignas(128) LbfgsState {
    double loss;    // at the last accepted point
    double best;    // of the accepted ones
    double slope;   // gradient(x_prev)·(x − x_prev)
    double length;  // of x − x_prev, root mean square; kept of steps along the gradient
    double radius;  // of the next step along the gradient
    int points;     // accepted
    int backtracks;
    int oldest;  // slot
    int pairs;
    int fresh;  // whether the point just judged was accepted
    Move move;
    float ratio;  // by which to shorten
};
static_assert(sizeof(LbfgsState) == 128, "on_device.py allocates it");

struct LbfgsOptions {
    int memory;
    Index size;
    double first_step, max_step, noise;
};

__device__ __forceinline__ int slot_of(const LbfgsState& state, int age, int memory)
{
    return (state.oldest + age) % memory;
}

// Drop the history and step along the gradient, whose square is given, `length` far.
__device__ void steepest(LbfgsState& state, float* coefficients, const LbfgsOptions& options,
                         double square, double length)
{
    const double rms = sqrt(square / options.size), factor = rms > 0 ? -length / rms : 0.0;
    for (int i = 0; i < 2 * options.memory; ++i) coefficients[i] = 0;
    coefficients[2 * options.memory] = static_cast<float>(factor);
    state.pairs = 0;
    state.slope = factor * square;
    state.length = rms > 0 ? length : 0;
    state.move = Move::combine;
}

// Shorten the step to the minimum of the parabola, or give the history up.
__device__ void retreat(LbfgsState& state, double loss, float* coefficients,
                        const LbfgsOptions& options, double square)
{
    const double curvature = loss - state.loss - state.slope;  // above 0: the point was refused
    const double lowest = -state.slope / (2 * curvature);
    const double ratio = min(max(lowest, kLeastRatio), kGreatestRatio);
    if (++state.backtracks > kBacktracks) {
        state.backtracks = 0;
        // Where the gradient's own step failed, go on from its length.
        state.radius = state.pairs ? 0.1 * state.radius : ratio * state.length;
        steepest(state, coefficients, options, square, state.radius);
        return;
    }
    state.length *= ratio;
    state.slope *= ratio;
    state.ratio = static_cast<float>(ratio);
    state.move = Move::shorten;
}

__device__ void accept(LbfgsState& state, double loss, const LbfgsOptions& options)
{
    const bool first = state.points++ == 0;
    state.loss = loss;
    state.best = first ? loss : min(state.best, loss);
    state.radius = first ? options.first_step : min(2 * state.radius, options.first_step);
    state.backtracks = 0;
    state.fresh = 1;
    if (state.pairs == options.memory) {  // make room for the new pair
        state.oldest = (state.oldest + 1) % options.memory;
        --state.pairs;
    }
}

__device__ __forceinline__ bool acceptable(const LbfgsState& state, double loss, double noise)
{
    const double enough = state.loss + kSufficientDecrease * state.slope;
    return state.points == 0 || loss <= max(enough, state.best + noise * fabs(state.best));
}

// Move the picture back for good.
__device__ __forceinline__ void fail(Progress& progress, LbfgsState& state)
{
    progress.failed = progress.evaluations;
    state.fresh = 0;
    state.move = Move::go_back;
}

// The arrays of a pass over memory, at one picture.
struct LbfgsRows {
    const float* x;
    float* x_prev;
    const float* gradient;
    float* gradient_prev;
    unsigned short* history;  // (2 memory, size), bits of bfloat16: s of slot i in row i, y in memory + i
};

// Round to the history, and keep the rounded values.
template <bool kAligned>
__device__ __forceinline__ void remember(const Span<kAligned>& span, unsigned short* row,
                                         float (&values)[kItems])
{
    unsigned short bits[kItems];
    for (int j = 0; j < kItems; ++j) {
        bits[j] = float_to_bfloat(values[j]);
        values[j] = bfloat_to_float(bits[j]);
    }
    span.store(row, bits);
}

// values ← values − before, before ← values.
template <bool kAligned>
__device__ __forceinline__ void difference(const Span<kAligned>& span, float* before,
                                           float (&values)[kItems])
{
    float old[kItems];
    span.load(before, old);
    span.store(before, values);
    for (int j = 0; j < kItems; ++j) values[j] -= old[j];
}

__device__ __forceinline__ void add_dot(float& sum, const float (&a)[kItems], const float (&b)[kItems])
{
    float dot = 0;
    for (int j = 0; j < kItems; ++j) dot += a[j] * b[j];
    dot = warp_sum(dot);
    if (threadIdx.x % kWarp == 0) sum += dot;
}

// Store the pair of one chunk and add this warp's dot products to sums: for slot i at 6i those of the new
// s, y and the gradient with s and y of slot i, behind them the gradient's square.
template <bool kAligned>
__device__ void update_chunk(const LbfgsRows& rows, const LbfgsState& state,
                             const LbfgsOptions& options, Index chunk, float* sums)
{
    const Index size = options.size;
    const int memory = options.memory;
    const Span<kAligned> span(chunk, size);
    float s[kItems], y[kItems], g[kItems];
    span.load(rows.x, s);
    span.load(rows.gradient, g);
    for (int j = 0; j < kItems; ++j) y[j] = g[j];
    difference(span, rows.x_prev, s);
    difference(span, rows.gradient_prev, y);
    const int newest = slot_of(state, state.pairs, memory);
    remember(span, rows.history + newest * size, s);
    remember(span, rows.history + (memory + newest) * size, y);
    add_dot(sums[6 * memory], g, g);
    for (int age = 0; age <= state.pairs; ++age) {
        const int slot = slot_of(state, age, memory);
        float other_s[kItems], other_y[kItems];
        span.load_bfloats(rows.history + slot * size, other_s);
        span.load_bfloats(rows.history + (memory + slot) * size, other_y);
        add_dot(sums[6 * slot], s, other_s);
        add_dot(sums[6 * slot + 1], s, other_y);
        add_dot(sums[6 * slot + 2], y, other_s);
        add_dot(sums[6 * slot + 3], y, other_y);
        add_dot(sums[6 * slot + 4], g, other_s);
        add_dot(sums[6 * slot + 5], g, other_y);
    }
}

// Put the dot products of the new pair and the gradient into the matrix; one thread a slot.
__device__ __forceinline__ void enter(double* products, const double* sums, int slot, int newest,
                                      int memory)
{
    const int width = 2 * memory + 1;
    const int rows[3] = {newest, memory + newest, 2 * memory};
    for (int k = 0; k < 6; ++k) {
        const int row = rows[k / 2], column = k % 2 ? memory + slot : slot;
        products[row * width + column] = products[column * width + row] = sums[6 * slot + k];
    }
}

__device__ __forceinline__ double dot(const double* a, const double* b, int width)
{
    double sum = 0;
    for (int j = threadIdx.x % kWarp; j < width; j += kWarp) sum += a[j] * b[j];
    return warp_sum(sum);
}

// −Hg as coefficients c of the basis s..., y..., gradient: the two-loop recursion (Nocedal & Wright 2006,
// algorithm 7.4) on dot products (Chen et al. 2014). One warp; c and alphas in shared memory.
__device__ void two_loop(const LbfgsState& state, const double* products, int memory, double* c,
                         double* alphas)
{
    const int width = 2 * memory + 1;
    const bool leader = threadIdx.x == 0;
    for (int j = threadIdx.x; j < width; j += kWarp) c[j] = j == 2 * memory ? -1 : 0;
    __syncwarp();
    for (int age = state.pairs - 1; age >= 0; --age) {
        const int s = slot_of(state, age, memory), y = memory + s;
        const double alpha = dot(c, products + s * width, width) / products[s * width + y];
        if (leader) {
            alphas[age] = alpha;
            c[y] -= alpha;
        }
        __syncwarp();
    }
    if (state.pairs > 0) {
        const int s = slot_of(state, state.pairs - 1, memory), y = memory + s;
        // H₀ = γI, equation 7.20.
        const double gamma = products[s * width + y] / products[y * width + y];
        for (int j = threadIdx.x; j < width; j += kWarp) c[j] *= gamma;
        __syncwarp();
    }
    for (int age = 0; age < state.pairs; ++age) {
        const int s = slot_of(state, age, memory), y = memory + s;
        const double beta = dot(c, products + y * width, width) / products[s * width + y];
        if (leader) c[s] += alphas[age] - beta;
        __syncwarp();
    }
}

// Length of the combination c of the basis, root mean square over a picture; one warp.
__device__ double length_of(const double* c, const double* products, const LbfgsOptions& options)
{
    const int width = 2 * options.memory + 1;
    double square = 0;
    for (int row = threadIdx.x; row < width; row += kWarp) {
        double sum = 0;
        for (int j = 0; j < width; ++j) sum += products[row * width + j] * c[j];
        square += c[row] * sum;
    }
    return sqrt(max(warp_sum(square), 0.0) / options.size);
}

// Step along −Hg, or along the gradient alone; one warp.
__device__ void advance(LbfgsState& state, const double* products, const LbfgsOptions& options,
                        float* coefficients, double* c, double* alphas)
{
    const int width = 2 * options.memory + 1;
    const double* of_gradient = products + (width - 1) * width;
    two_loop(state, products, options.memory, c, alphas);
    const double slope = dot(c, of_gradient, width), length = length_of(c, products, options);
    const bool downhill = state.pairs > 0 && slope < 0;
    const double factor = length > options.max_step ? options.max_step / length : 1;
    __syncwarp();
    if (downhill)
        for (int j = threadIdx.x; j < width; j += kWarp)
            coefficients[j] = static_cast<float>(factor * c[j]);
    if (threadIdx.x != 0) return;
    if (!downhill) {
        steepest(state, coefficients, options, of_gradient[width - 1], state.radius);
        return;
    }
    state.slope = factor * slope;
    state.move = Move::combine;
}

// Keep the newest pair if it is curved; one thread.
__device__ void keep_pair(LbfgsState& state, const double* products, int memory)
{
    const int width = 2 * memory + 1, s = slot_of(state, state.pairs, memory), y = memory + s;
    const double ss = products[s * width + s], sy = products[s * width + y],
                 yy = products[y * width + y];
    // At the first point s is 0, and so is s·y.
    if (sy > kLeastCurvature * sqrt(ss * yy)) ++state.pairs;
}

template <bool kAligned>
__device__ void move_chunk(float* x, const float* x_prev, const float* gradient,
                           const unsigned short* history, const float* coefficients,
                           const LbfgsState& state, int memory, const Span<kAligned>& span,
                           float (&moved)[kItems])
{
    float from[kItems], sum[kItems];
    span.load(x_prev, from);
    if (state.move == Move::combine) {
        span.load(gradient, sum);
        for (int j = 0; j < kItems; ++j) sum[j] *= coefficients[2 * memory];
        for (int row = 0; row < 2 * memory; ++row) {
            const float coefficient = coefficients[row];
            if (coefficient == 0) continue;
            float values[kItems];
            span.load_bfloats(history + row * span.size, values);
            for (int j = 0; j < kItems; ++j) sum[j] += coefficient * values[j];
        }
    } else {
        span.load(x, sum);
        // Not a product with 0, which NaN would survive.
        for (int j = 0; j < kItems; ++j)
            sum[j] = state.move == Move::shorten ? state.ratio * (sum[j] - from[j]) : 0;
    }
    for (int j = 0; j < kItems; ++j) moved[j] = from[j] + sum[j];
    span.store(x, moved);
}

}  // namespace steps

// Grid (1, 1, N), one warp: log the evaluation and decide on the point just evaluated.
NST_KERNEL void lbfgs_judge(const unsigned long long* terms, int arrays, int scaled, float* scale,
                            float* first_scale, const int* overflow, double* log, int capacity,
                            steps::Progress* progress, steps::LbfgsState* states,
                            const double* products, float* coefficients, int memory, long long size,
                            double first_step, double noise)
{
    const steps::Index n = blockIdx.z;
    const steps::Watch watch{terms,    arrays, scaled,   scale,   first_scale,
                             overflow, log,    capacity, progress};
    const double loss = steps::log_terms(watch, n);
    if (threadIdx.x != 0) return;
    const steps::LbfgsOptions options{memory, size, first_step, 0, noise};
    const int width = 2 * memory + 1;
    steps::LbfgsState& state = states[n];
    state.fresh = 0;
    state.move = steps::Move::stay;
    const steps::Finding finding = steps::inspect(watch, n, loss);
    if (finding == steps::Finding::over || finding == steps::Finding::skipped) return;
    if (finding == steps::Finding::failed)
        steps::fail(progress[n], state);
    else if (!steps::acceptable(state, loss, noise))
        steps::retreat(state, loss, coefficients + n * width, options,
                       products[(n + 1) * width * width - 1]);
    else if (finding == steps::Finding::no_gradient)
        steps::fail(progress[n], state);
    else
        steps::accept(state, loss, options);
}

// Grid (blocks, 1, N): store the pair of an accepted point, and take the dot products of the pair and the
// gradient; sums is (N, 6 memory + 1, blocks). x_prev and gradient_prev move on.
NST_KERNEL void __launch_bounds__(steps::kThreads)
    lbfgs_update(const float* x, float* x_prev, const float* gradient, float* gradient_prev,
                 unsigned short* history, const steps::LbfgsState* states, double* sums, int memory,
                 long long size)
{
    const steps::Index n = blockIdx.z;
    const steps::LbfgsState state = states[n];
    if (!state.fresh) return;
    __shared__ float of_warp[steps::kWarps][6 * steps::kMostPairs + 1];
    const int columns = 6 * memory + 1;
    float* ours = of_warp[threadIdx.x / steps::kWarp];
    for (int k = threadIdx.x % steps::kWarp; k < columns; k += steps::kWarp) ours[k] = 0;
    __syncwarp();
    const steps::LbfgsRows rows{x + n * size, x_prev + n * size, gradient + n * size,
                                gradient_prev + n * size, history + n * 2 * memory * size};
    const steps::LbfgsOptions options{memory, size, 0, 0, 0};
    for (steps::Index chunk = blockIdx.x; chunk * steps::kChunk < size; chunk += gridDim.x) {
        if (steps::aligned(size))
            steps::update_chunk<true>(rows, state, options, chunk, ours);
        else
            steps::update_chunk<false>(rows, state, options, chunk, ours);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < columns; k += steps::kThreads) {
        double sum = 0;
        for (int warp = 0; warp < steps::kWarps; ++warp) sum += of_warp[warp][k];
        sums[(n * columns + k) * gridDim.x + blockIdx.x] = sum;
    }
}

// Grid (1, 1, N), whole warps: add the dot products up and find the next step's coefficients.
NST_KERNEL void __launch_bounds__(512)
    lbfgs_plan(const double* sums, int blocks, steps::Progress* progress, steps::LbfgsState* states,
               double* products, float* coefficients, int memory, long long size, double max_step)
{
    const steps::Index n = blockIdx.z;
    steps::LbfgsState& state = states[n];
    if (!state.fresh) return;
    __shared__ double dots[6 * steps::kMostPairs + 1], c[2 * steps::kMostPairs + 1],
        alphas[steps::kMostPairs];
    const int columns = 6 * memory + 1, width = 2 * memory + 1;
    const int warps = blockDim.x / steps::kWarp, lane = threadIdx.x % steps::kWarp;
    for (int k = threadIdx.x / steps::kWarp; k < columns; k += warps) {
        const double sum = steps::row_sum(sums + (n * columns + k) * blocks, blocks);
        if (lane == 0) dots[k] = sum;
    }
    __syncthreads();
    double* matrix = products + n * width * width;
    const int newest = steps::slot_of(state, state.pairs, memory);
    for (int slot = threadIdx.x; slot < memory; slot += blockDim.x)
        steps::enter(matrix, dots, slot, newest, memory);
    if (threadIdx.x == 0) matrix[width * width - 1] = dots[columns - 1];
    __syncthreads();
    if (threadIdx.x == 0) {
        steps::keep_pair(state, matrix, memory);
        if (!steps::is_finite(dots[columns - 1])) steps::fail(progress[n], state);
    }
    __syncthreads();
    if (threadIdx.x >= steps::kWarp || state.move == steps::Move::go_back) return;
    const steps::LbfgsOptions options{memory, size, 0, max_step, 0};
    steps::advance(state, matrix, options, coefficients + n * width, c, alphas);
}

// Grid (chunks, 1, N): x = x_prev + Σ coefficients·history + coefficient·gradient_prev, or a shorter step
// the same way, or back; where the picture does not move, nothing is touched.
NST_KERNEL void __launch_bounds__(steps::kThreads)
    lbfgs_move(float* x, void* half, int half_kind, const float* x_prev, const float* gradient_prev,
               const unsigned short* history, const float* coefficients,
               const steps::LbfgsState* states, int memory, long long size)
{
    const steps::Index n = blockIdx.z, row = n * size;
    const steps::LbfgsState& state = states[n];
    if (state.move == steps::Move::stay) return;
    const auto move = [&](const auto& span) {
        float moved[steps::kItems];
        steps::move_chunk(x + row, x_prev + row, gradient_prev + row, history + 2 * memory * row,
                          coefficients + n * (2 * memory + 1), state, memory, span, moved);
        steps::store_half(span, static_cast<unsigned short*>(half) + row, half_kind, moved);
    };
    if (steps::aligned(size))
        move(steps::Span<true>(blockIdx.x, size));
    else
        move(steps::Span<false>(blockIdx.x, size));
}
