// What lies between a picture and the encoder, its canvas, and the terms that need no tap. Compiled behind
// device.cuh and steps.cu.

namespace steps {

// How a provider's numbers are stored. Where they are narrower than float32 it reads x less the mean of
// its channel, as a coarse and a fine number: one number has too few bits, as an edge is a small
// difference of large values.
enum NumberKind { kFloat32, kFloat16, kBfloat16 };

// ---- To the canvas ------------------------------------------------------------------------------

// The rows and columns of the picture that those of the canvas show.
struct Canvas {
    const int* rows;
    const int* columns;
    int height, width;
};

template <class Number, int kWidth>
__device__ __forceinline__ void store_parts(unsigned short* coarse, unsigned short* fine, Index at,
                                            float mean, const float (&values)[kWidth])
{
    unsigned short high[kWidth], low[kWidth];
    for (int k = 0; k < kWidth; ++k) {
        const float centred = values[k] - mean;
        high[k] = Number::narrow(centred);
        low[k] = Number::narrow(centred - Number::widen(high[k]));
    }
    store_neighbours(coarse + at, high);
    store_neighbours(fine + at, low);
}

// One plane, blockIdx.y, of picture blockIdx.z.
template <int kWidth>
__device__ void extend_plane(const float* image, void* out, int kind, const float* mean,
                             const Canvas& canvas, int height, int width)
{
    const Index n = blockIdx.z, channel = blockIdx.y, channels = gridDim.y;
    const Index pixels = Index{canvas.height} * canvas.width;
    const float* plane = image + (n * channels + channel) * height * width;
    auto* parts = static_cast<unsigned short*>(out) + 2 * n * channels * pixels;
    unsigned short *coarse = parts + channel * pixels, *fine = coarse + channels * pixels;
    for (Index at = (Index{blockIdx.x} * kThreads + threadIdx.x) * kWidth; at < pixels;
         at += Index{gridDim.x} * kThreads * kWidth) {
        const int i = static_cast<int>(at) / canvas.width, j = static_cast<int>(at) - i * canvas.width;
        const float* row = plane + Index{canvas.rows[i]} * width;
        float values[kWidth];
        for (int k = 0; k < kWidth; ++k) values[k] = row[canvas.columns[j + k]];
        if (kind == kFloat16)
            store_parts<Half>(coarse, fine, at, mean[channel], values);
        else if (kind == kBfloat16)
            store_parts<Bfloat>(coarse, fine, at, mean[channel], values);
        else
            store_neighbours(static_cast<float*>(out) + (n * channels + channel) * pixels + at, values);
    }
}

// ---- Back from the canvas, and the terms of the picture -----------------------------------------

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

// Which rows and columns of the canvas show one of the picture: those of row i are rows[row_starts[i]] up
// to, but without, rows[row_starts[i + 1]].
struct Shown {
    const int* row_starts;
    const int* rows;
    const int* column_starts;
    const int* columns;
    int height, width;  // of the canvas
};

// Sum over the places of a canvas plane that show pixel (i, j).
template <class Number>
__device__ __forceinline__ float fold(const typename Number::Stored* plane, const Shown& shown, int i, int j)
{
    float sum = 0;
    for (int r = shown.row_starts[i]; r < shown.row_starts[i + 1]; ++r) {
        const auto* row = plane + Index{shown.rows[r]} * shown.width;
        for (int c = shown.column_starts[j]; c < shown.column_starts[j + 1]; ++c)
            sum += Number::widen(row[shown.columns[c]]);
    }
    return sum;
}

template <class Number, int kWidth>
__device__ PicturePart picture_part(const Pixels<kWidth>& p, const typename Number::Stored* provided,
                                    const Shown& shown, float* gradient, const PictureWeights& weights)
{
    PicturePart part{};
    float sum[kWidth];
    for (int k = 0; k < kWidth; ++k) {
        const float value = fold<Number>(provided, shown, p.i, p.j + k);
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
__device__ void picture_plane(const float* image, const void* provided, const Shown& shown, float* gradient,
                              const PictureWeights& weights, double* sums, int height, int width)
{
    const Index plane = Index{blockIdx.z} * gridDim.y + blockIdx.y, pixels = Index{height} * width;
    const auto* stored =
        static_cast<const typename Number::Stored*>(provided) + plane * shown.height * shown.width;
    double variation = 0, range = 0, unusable = 0;
    for (Index at = (Index{blockIdx.x} * kThreads + threadIdx.x) * kWidth; at < pixels;
         at += Index{gridDim.x} * kThreads * kWidth) {
        // A plane has fewer than 2³¹ pixels, and 64-bit division is slow.
        const int i = static_cast<int>(at) / width, j = static_cast<int>(at) - i * width;
        const Pixels<kWidth> p{image + plane * pixels + at, at, i, j, height, width};
        const PicturePart part =
            picture_part<Number, kWidth>(p, stored, shown, gradient + plane * pixels, weights);
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
                                               const Shown& shown, float* gradient,
                                               const PictureWeights& weights, double* sums, int height,
                                               int width)
{
    if (kind == kFloat16)
        picture_plane<Half, kWidth>(image, provided, shown, gradient, weights, sums, height, width);
    else if (kind == kBfloat16)
        picture_plane<Bfloat, kWidth>(image, provided, shown, gradient, weights, sums, height, width);
    else
        picture_plane<Float, kWidth>(image, provided, shown, gradient, weights, sums, height, width);
}

}  // namespace steps

// Grid (blocks, channels, N): the canvas (N, channels, canvas_height, canvas_width) of a picture, or in 16
// bits its parts, (N, 2 channels, …), coarse ones first.
NST_KERNEL void __launch_bounds__(steps::kThreads)
    extend(const float* image, void* canvas, int kind, const float* mean, const int* rows,
           const int* columns, int canvas_height, int canvas_width, int height, int width)
{
    const steps::Canvas shown{rows, columns, canvas_height, canvas_width};
    if (canvas_width % 4 == 0)
        steps::extend_plane<4>(image, canvas, kind, mean, shown, height, width);
    else
        steps::extend_plane<1>(image, canvas, kind, mean, shown, height, width);
}

// Grid (blocks, 3, N): gradient = folded provided/scale and the gradients of both terms, which are weighted
// by `variation` and `range` a value. sums is (N, 3, 3 blocks): squares for the variation, for the range,
// values that are not finite.
NST_KERNEL void __launch_bounds__(steps::kThreads)
    picture_pass(const float* image, const void* provided, int kind, const int* row_starts,
                 const int* rows, const int* column_starts, const int* columns, int canvas_height,
                 int canvas_width, float* gradient, const float* scale, double* sums, int height,
                 int width, double variation, double range)
{
    const steps::PictureWeights weights{1 / scale[blockIdx.z], static_cast<float>(2 * variation),
                                        static_cast<float>(2 * range)};
    const steps::Shown shown{row_starts, rows, column_starts, columns, canvas_height, canvas_width};
    if (width % 4 == 0)
        steps::picture_planes<4>(image, provided, kind, shown, gradient, weights, sums, height, width);
    else
        steps::picture_planes<1>(image, provided, kind, shown, gradient, weights, sums, height, width);
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

// weighted[n, k] = factors[n, k] · terms[n, k] of the first `given` of the columns; count = N · given.
NST_KERNEL void weigh_terms(const float* terms, const double* factors, double* weighted, int given,
                            int columns, int count)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x, at = i / given * columns + i % given;
    if (i < count) weighted[at] = factors[at] * terms[i];
}
