// L-BFGS by the algorithm of optimizers/lbfgs.py, each picture's state on the device. Compiled behind
// steps.cu.

namespace steps {

// ---- L-BFGS -------------------------------------------------------------------------------------

constexpr int kPairsOfLane = (kMostPairs + kWarp - 1) / kWarp;
// Of a matrix of dot products that fits into shared memory: that of 32 pairs, 33 of 48 KiB.
constexpr int kSharedWidth = 2 * 32 + 1;

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
static_assert(sizeof(LbfgsState) == 128, "gpu/optimizers.py allocates it");

// The layout is that of LBFGS in nst_fast/gpu/optimizers.py.
struct Lbfgs {
    Watch watch;
    float* x;       // (N, size), as are the next three
    float* x_prev;  // the last accepted point
    const float* gradient;
    float* gradient_prev;
    unsigned short* history;  // (N, 2 memory, size), bits of bfloat16: s of slot i in row i, y in memory + i
    LbfgsState* states;       // (N)
    double* products;         // (N, 2 memory + 1, 2 memory + 1): dot products of s..., y..., gradient
    float* coefficients;      // (N, 2 memory + 1): of the next step, of the same
    double* sums;             // (N, 6 memory + 1, blocks): of lbfgs_update
    Index size;
    int memory;
    int blocks;
    double first_step, max_step, noise;
};

__device__ __forceinline__ int slot_of(const LbfgsState& state, int age, int memory)
{
    return (state.oldest + age) % memory;
}

// Drop the history and step along the gradient, whose square is given, `length` far.
__device__ void steepest(LbfgsState& state, float* coefficients, const Lbfgs& run,
                         double square, double length)
{
    const double rms = sqrt(square / run.size), factor = rms > 0 ? -length / rms : 0.0;
    for (int i = 0; i < 2 * run.memory; ++i) coefficients[i] = 0;
    coefficients[2 * run.memory] = static_cast<float>(factor);
    state.pairs = 0;
    state.slope = factor * square;
    state.length = rms > 0 ? length : 0;
    state.move = Move::combine;
}

// Shorten the step to the minimum of the parabola, or give the history up.
__device__ void retreat(LbfgsState& state, double loss, float* coefficients,
                        const Lbfgs& run, double square)
{
    const double curvature = loss - state.loss - state.slope;  // above 0: the point was refused
    const double lowest = -state.slope / (2 * curvature);
    const double ratio = min(max(lowest, kLeastRatio), kGreatestRatio);
    if (++state.backtracks > kBacktracks) {
        state.backtracks = 0;
        // Where the gradient's own step failed, go on from its length.
        state.radius = state.pairs ? 0.1 * state.radius : ratio * state.length;
        steepest(state, coefficients, run, square, state.radius);
        return;
    }
    state.length *= ratio;
    state.slope *= ratio;
    state.ratio = static_cast<float>(ratio);
    state.move = Move::shorten;
}

__device__ void accept(LbfgsState& state, double loss, const Lbfgs& run)
{
    const bool first = state.points++ == 0;
    state.loss = loss;
    state.best = first ? loss : min(state.best, loss);
    state.radius = first ? run.first_step : min(2 * state.radius, run.first_step);
    state.backtracks = 0;
    state.fresh = 1;
    if (state.pairs == run.memory) {  // make room for the new pair
        state.oldest = (state.oldest + 1) % run.memory;
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
__device__ void update_chunk(const Lbfgs& run, Index n, const LbfgsState& state, Index chunk, float* sums)
{
    const Index size = run.size, row = n * size;
    const int memory = run.memory;
    unsigned short* history = run.history + 2 * memory * row;
    const Span<kAligned> span(chunk, size);
    float s[kItems], y[kItems], g[kItems];
    span.load(run.x + row, s);
    span.load(run.gradient + row, g);
    for (int j = 0; j < kItems; ++j) y[j] = g[j];
    difference(span, run.x_prev + row, s);
    difference(span, run.gradient_prev + row, y);
    const int newest = slot_of(state, state.pairs, memory);
    remember(span, history + newest * size, s);
    remember(span, history + (memory + newest) * size, y);
    add_dot(sums[6 * memory], g, g);
    for (int age = 0; age <= state.pairs; ++age) {
        const int slot = slot_of(state, age, memory);
        float other_s[kItems], other_y[kItems];
        span.load_bfloats(history + slot * size, other_s);
        span.load_bfloats(history + (memory + slot) * size, other_y);
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

__device__ __forceinline__ double from_lane(double value, int lane)
{
    return __shfl_sync(0xFFFFFFFFu, value, lane);
}

// −Hg as coefficients c of the basis s..., y..., gradient: the two-loop recursion (Nocedal & Wright 2006,
// algorithm 7.4) on dot products (Chen et al. 2014), as two substitutions by columns. One warp; a lane has
// the pairs of ages lane, lane + 32, .... What a loop finds for a pair leaves its lane by a shuffle, and
// every lane takes its share from what it has of its own pairs: no sum over the warp, no division and no
// read of memory is waited for in between.
__device__ void two_loop(const LbfgsState& state, const double* products, int memory, double* c)
{
    const int width = 2 * memory + 1, lane = threadIdx.x % kWarp, pairs = state.pairs;
    const double* of_gradient = products + 2 * memory * width;
    for (int j = lane; j < width; j += kWarp) c[j] = 0;
    int slots[kPairsOfLane];
    double along_s[kPairsOfLane], along_y[kPairsOfLane], inverses[kPairsOfLane], alphas[kPairsOfLane] = {};
    for (int k = 0; k < kPairsOfLane; ++k) {
        const int slot = slots[k] = slot_of(state, lane + k * kWarp, memory);
        along_s[k] = -of_gradient[slot];  // s·q, where q begins as −g
        along_y[k] = -of_gradient[memory + slot];
        inverses[k] = 1 / products[slot * width + memory + slot];  // of what is no pair unused
    }
    for (int k = kPairsOfLane - 1; k >= 0; --k)
        for (int from = min(kWarp, pairs - k * kWarp) - 1; from >= 0; --from) {
            const double alpha = from_lane(along_s[k] * inverses[k], from);
            if (lane == from) alphas[k] = alpha;
            const double* of_y = products + (memory + slot_of(state, k * kWarp + from, memory)) * width;
            for (int i = 0; i < kPairsOfLane && i * kWarp < pairs; ++i) {
                along_s[i] -= alpha * of_y[slots[i]];
                along_y[i] -= alpha * of_y[memory + slots[i]];
            }
        }
    double gamma = 1;
    if (pairs > 0) {
        const int s = slot_of(state, pairs - 1, memory), y = memory + s;
        // H₀ = γI, as in nst_fast/optimizers/lbfgs.py.
        const double ss = products[s * width + s], sy = products[s * width + y];
        const double yy = products[y * width + y];
        gamma = sy / yy / sqrt(sy / sqrt(ss * yy));
    }
    for (int k = 0; k < kPairsOfLane; ++k) along_y[k] *= gamma;
    __syncwarp();
    for (int k = 0; k < kPairsOfLane; ++k)
        for (int from = 0; from < min(kWarp, pairs - k * kWarp); ++from) {
            const double change = from_lane(alphas[k] - along_y[k] * inverses[k], from);
            if (lane == from) {
                c[slots[k]] = change;
                c[memory + slots[k]] = -gamma * alphas[k];
            }
            const double* of_s = products + slot_of(state, k * kWarp + from, memory) * width + memory;
            for (int i = 0; i < kPairsOfLane && i * kWarp < pairs; ++i)
                along_y[i] += change * of_s[slots[i]];
        }
    if (lane == 0) c[2 * memory] = -gamma;
}

// Length of the combination c of the basis, root mean square over a picture; a block of whole warps, each
// of which gets it. `scratch` is a number for each.
__device__ __forceinline__ double length_of(const double* c, const double* products, const Lbfgs& run,
                                            double* scratch)
{
    const int width = 2 * run.memory + 1, lane = threadIdx.x % kWarp, own = threadIdx.x / kWarp;
    const int warps = blockDim.x / kWarp;
    double square = 0;
    for (int row = own; row < width; row += warps) square += c[row] * dot(c, products + row * width, width);
    if (lane == 0) scratch[own] = square;
    __syncthreads();
    return sqrt(max(warp_sum(lane < warps ? scratch[lane] : 0), 0.0) / run.size);
}

// Whether the newest pair is curved, so that it is kept.
__device__ __forceinline__ bool curved(const LbfgsState& state, const double* products, int memory)
{
    const int width = 2 * memory + 1, s = slot_of(state, state.pairs, memory), y = memory + s;
    const double ss = products[s * width + s], sy = products[s * width + y],
                 yy = products[y * width + y];
    // At the first point s is 0, and so is s·y.
    return sy > kLeastCurvature * sqrt(ss * yy);
}

// What a block that plans has in shared memory, all of it for the most pairs.
struct PlanMemory {
    double* dots;     // of the new pair and the gradient, as in `sums`
    double* c;        // the coefficients
    double* scratch;  // a number a warp
};

// Take the dot products of the accepted point into the matrix `products`, of which `kept` is the copy that
// lasts, and find the step along −Hg, or along the gradient alone. A block of whole warps.
__device__ __forceinline__ void plan(const Lbfgs& run, Index n, double* products, double* kept,
                                     const PlanMemory& shared)
{
    LbfgsState state = run.states[n];  // every thread's own: all of them decide alike
    const int memory = run.memory, width = 2 * memory + 1, columns = 6 * memory + 1;
    const int warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
    if (products != kept)
        for (int k = threadIdx.x; k < width * width; k += blockDim.x) products[k] = kept[k];
    for (int k = threadIdx.x / kWarp; k < columns; k += warps) {
        const double sum = row_sum(run.sums + (n * columns + k) * run.blocks, run.blocks);
        if (lane == 0) shared.dots[k] = sum;
    }
    __syncthreads();
    const int newest = slot_of(state, state.pairs, memory);
    for (int slot = threadIdx.x; slot < memory; slot += blockDim.x)
        enter(products, shared.dots, slot, newest, memory);
    const double square = shared.dots[columns - 1];  // of the gradient
    if (threadIdx.x == 0) products[width * width - 1] = square;
    __syncthreads();
    if (products != kept)
        for (int k = threadIdx.x; k < width * width; k += blockDim.x) kept[k] = products[k];
    if (curved(state, products, memory)) ++state.pairs;
    if (!is_finite(square)) {
        if (threadIdx.x != 0) return;
        fail(run.watch.progress[n], state);
        run.states[n] = state;
        return;
    }
    if (threadIdx.x < kWarp) two_loop(state, products, memory, shared.c);
    __syncthreads();
    const double slope = dot(shared.c, products + (width - 1) * width, width);
    const double length = length_of(shared.c, products, run, shared.scratch);
    const bool downhill = state.pairs > 0 && slope < 0;
    const double factor = length > run.max_step ? run.max_step / length : 1;
    float* coefficients = run.coefficients + n * width;
    if (downhill)
        for (int j = threadIdx.x; j < width; j += blockDim.x)
            coefficients[j] = static_cast<float>(factor * shared.c[j]);
    if (threadIdx.x != 0) return;
    if (downhill) {
        state.slope = factor * slope;
        state.move = Move::combine;
    } else {
        steepest(state, coefficients, run, square, state.radius);
    }
    run.states[n] = state;
}

template <bool kAligned>
__device__ void move_chunk(const Lbfgs& run, Index n, const LbfgsState& state, const Span<kAligned>& span)
{
    const Index at = n * run.size;
    const int memory = run.memory;
    const unsigned short* history = run.history + 2 * memory * at;
    const float* coefficients = run.coefficients + n * (2 * memory + 1);
    float from[kItems], sum[kItems];
    span.load(run.x_prev + at, from);
    if (state.move == Move::combine) {
        span.load(run.gradient_prev + at, sum);
        for (int j = 0; j < kItems; ++j) sum[j] *= coefficients[2 * memory];
        for (int row = 0; row < 2 * memory; ++row) {
            const float coefficient = coefficients[row];
            if (coefficient == 0) continue;
            float values[kItems];
            span.load_bfloats(history + row * span.size, values);
            for (int j = 0; j < kItems; ++j) sum[j] += coefficient * values[j];
        }
    } else {
        span.load(run.x + at, sum);
        // Not a product with 0, which NaN would survive.
        for (int j = 0; j < kItems; ++j)
            sum[j] = state.move == Move::shorten ? state.ratio * (sum[j] - from[j]) : 0;
    }
    for (int j = 0; j < kItems; ++j) sum[j] += from[j];
    span.store(run.x + at, sum);
}

}  // namespace steps

// Grid (1, 1, N), one warp: log the evaluation and decide on the point just evaluated.
NST_KERNEL void lbfgs_judge(const steps::Lbfgs run)
{
    const steps::Index n = blockIdx.z;
    steps::LbfgsState state = run.states[n];  // read while the terms are
    const double loss = steps::log_terms(run.watch, n);
    if (threadIdx.x != 0) return;
    const int width = 2 * run.memory + 1;
    state.fresh = 0;
    state.move = steps::Move::stay;
    const steps::Finding finding = steps::inspect(run.watch, n, loss);
    const bool stays = finding == steps::Finding::over || finding == steps::Finding::skipped;
    if (finding == steps::Finding::failed)
        steps::fail(run.watch.progress[n], state);
    else if (!stays && !steps::acceptable(state, loss, run.noise))
        steps::retreat(state, loss, run.coefficients + n * width, run,
                       run.products[(n + 1) * width * width - 1]);
    else if (finding == steps::Finding::no_gradient)
        steps::fail(run.watch.progress[n], state);
    else if (!stays)
        steps::accept(state, loss, run);
    run.states[n] = state;
}

// Grid (blocks, 1, N): where the point was accepted, store the pair, move x_prev and gradient_prev on, and
// write the block's dot products to sums.
NST_KERNEL void __launch_bounds__(steps::kThreads) lbfgs_update(const steps::Lbfgs run)
{
    const steps::Index n = blockIdx.z;
    const steps::LbfgsState state = run.states[n];
    if (!state.fresh) return;
    __shared__ float of_warp[steps::kWarps][6 * steps::kMostPairs + 1];
    const int columns = 6 * run.memory + 1;
    float* ours = of_warp[threadIdx.x / steps::kWarp];
    for (int k = threadIdx.x % steps::kWarp; k < columns; k += steps::kWarp) ours[k] = 0;
    __syncwarp();
    for (steps::Index chunk = blockIdx.x; chunk * steps::kChunk < run.size; chunk += gridDim.x) {
        if (steps::aligned(run.size))
            steps::update_chunk<true>(run, n, state, chunk, ours);
        else
            steps::update_chunk<false>(run, n, state, chunk, ours);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < columns; k += steps::kThreads) {
        double sum = 0;
        for (int warp = 0; warp < steps::kWarps; ++warp) sum += of_warp[warp][k];
        run.sums[(n * columns + k) * run.blocks + blockIdx.x] = sum;
    }
}

// Grid (1, 1, N), whole warps: add the dot products up and find the next step's coefficients.
NST_KERNEL void __launch_bounds__(512) lbfgs_plan(const steps::Lbfgs run)
{
    const steps::Index n = blockIdx.z;
    if (!run.states[n].fresh) return;
    __shared__ double dots[6 * steps::kMostPairs + 1], c[2 * steps::kMostPairs + 1],
        scratch[steps::kWarp], matrix[steps::kSharedWidth * steps::kSharedWidth];
    const int width = 2 * run.memory + 1;
    double* kept = run.products + n * width * width;
    if (width <= steps::kSharedWidth)
        steps::plan(run, n, matrix, kept, {dots, c, scratch});
    else
        steps::plan(run, n, kept, kept, {dots, c, scratch});
}

// Grid (chunks, 1, N): x = x_prev + Σ coefficients·history + coefficient·gradient_prev, or a shorter step
// the same way, or back; where the picture does not move, nothing is touched.
NST_KERNEL void __launch_bounds__(steps::kThreads) lbfgs_move(const steps::Lbfgs run)
{
    const steps::LbfgsState& state = run.states[blockIdx.z];
    if (state.move == steps::Move::stay) return;
    if (steps::aligned(run.size))
        steps::move_chunk(run, blockIdx.z, state, steps::Span<true>(blockIdx.x, run.size));
    else
        steps::move_chunk(run, blockIdx.z, state, steps::Span<false>(blockIdx.x, run.size));
}
