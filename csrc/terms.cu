// What lies between a picture and the encoder, its canvas, and the terms that need no tap. Compiled behind
// device.cuh and steps.cu.

namespace steps {

// How a provider's numbers are stored. A pixel of its canvas is 16 bytes: 4 or 8 numbers, of which
// every fourth is 0. It reads x less the mean of its colour; where numbers are narrower than float32, as a
// coarse and, four numbers on, a fine one: one number has too few bits, as an edge is a small difference of
// large values.
enum NumberKind { kFloat32, kFloat16, kBfloat16 };

constexpr int kColours = 3;

// ---- To the canvas ------------------------------------------------------------------------------

// Pictures (N, 3, height, width) and their canvases; the layout is that of CANVAS in
// nst_fast/gpu/picture.py.
struct Canvas {
    const float* image;
    void* shown;        // (N, canvas_height, canvas_width, 4), or in 16 bits 8
    const float* mean;  // of each colour
    const int* rows;    // of the picture, that each of the canvas shows
    const int* columns;
    int kind;
    int height, width, canvas_height, canvas_width;
};

// A centred pixel in two parts of 16 bits a colour.
template <class Number>
__device__ __forceinline__ uint4 parts_of(const float (&values)[kColours])
{
    unsigned coarse[kColours], fine[kColours];
    for (int k = 0; k < kColours; ++k) {
        const unsigned short nearest = Number::narrow(values[k]);
        coarse[k] = nearest;
        fine[k] = Number::narrow(values[k] - Number::widen(nearest));
    }
    return {coarse[0] | coarse[1] << 16, coarse[2], fine[0] | fine[1] << 16, fine[2]};
}

// A pixel a thread, of picture blockIdx.z.
__device__ __forceinline__ void show_picture(const Canvas& canvas)
{
    const Index n = blockIdx.z, pixels = Index{canvas.canvas_height} * canvas.canvas_width;
    const Index plane = Index{canvas.height} * canvas.width;
    const float* picture = canvas.image + n * kColours * plane;
    auto* shown = static_cast<uint4*>(canvas.shown) + n * pixels;
    for (Index at = Index{blockIdx.x} * kThreads + threadIdx.x; at < pixels;
         at += Index{gridDim.x} * kThreads) {
        const int i = static_cast<int>(at) / canvas.canvas_width;
        const int j = static_cast<int>(at) - i * canvas.canvas_width;
        const float* from = picture + Index{canvas.rows[i]} * canvas.width + canvas.columns[j];
        const float values[kColours] = {from[0] - canvas.mean[0], from[plane] - canvas.mean[1],
                                        from[2 * plane] - canvas.mean[2]};
        if (canvas.kind == kFloat16)
            shown[at] = parts_of<Half>(values);
        else if (canvas.kind == kBfloat16)
            shown[at] = parts_of<Bfloat>(values);
        else
            shown[at] = {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                         0};
    }
}

// ---- Back from the canvas, and the terms of the picture -----------------------------------------

struct PicturePart {
    float variation, range, temporal;
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

// s = √(corner² + right² + below²) of a pixel, whose gradient is (right, below).
__device__ __forceinline__ float slope(float corner, float right, float below)
{
    return sqrtf(corner * corner + right * right + below * below);
}

template <int kWidth>
__device__ __forceinline__ void add_variation(const Pixels<kWidth>& p, float weight, float corner,
                                              float (&gradient)[kWidth], PicturePart& part)
{
    const bool inner_left = p.j > 0, inner_right = p.j + kWidth < p.width;
    const Index above_by = p.i > 0 ? -Index{p.width} : 0, below_by = p.i + 1 < p.height ? p.width : 0;
    float x[kWidth + 1], up[kWidth + 1], down[kWidth];  // with the pixel behind
    p.row(0, reinterpret_cast<float(&)[kWidth]>(x));
    p.row(p.i > 0 ? -1 : 0, reinterpret_cast<float(&)[kWidth]>(up));
    p.row(p.i + 1 < p.height ? 1 : 0, down);
    x[kWidth] = inner_right ? p.here[kWidth] : x[kWidth - 1];
    up[kWidth] = inner_right ? p.here[above_by + kWidth] : up[kWidth - 1];
    float left = 0;  // the slope of the pixel before towards this one, over its s
    if (inner_left) {
        const float before = p.here[-1];
        left = (x[0] - before) / slope(corner, x[0] - before, p.here[below_by - 1] - before);
    }
    for (int k = 0; k < kWidth; ++k) {
        const float right = x[k + 1] - x[k], below = down[k] - x[k], above = x[k] - up[k];
        const float s = slope(corner, right, below);
        const float over = above / slope(corner, up[k + 1] - up[k], above);
        gradient[k] += weight * (left + over - (right + below) / s);
        part.variation += (right * right + below * below) / (s + corner);
        left = right / s;
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

// `anchor` and `weights` are at this thread's pixels.
template <int kWidth>
__device__ __forceinline__ void add_temporal(const Pixels<kWidth>& p, const float* anchor,
                                             const float* weights, float twice_weight,
                                             float (&gradient)[kWidth], PicturePart& part)
{
    float x[kWidth], a[kWidth], m[kWidth];
    p.row(0, x);
    load_neighbours(anchor, a);
    load_neighbours(weights, m);
    for (int k = 0; k < kWidth; ++k) {
        const float off = x[k] - a[k], weighted = m[k] * off;
        gradient[k] += twice_weight * weighted;
        part.temporal += weighted * off;
    }
}

// Which rows and columns of the canvas show one of the picture: those of row i are rows[row_starts[i]] up
// to, but without, rows[row_starts[i + 1]].
struct Shown {
    const int* row_starts;
    const int* rows;
    const int* column_starts;
    const int* columns;
    int height, width;  // of the canvas
};

// Pictures (N, 3, height, width) and their terms; the layout is that of PICTURE in nst_fast/gpu/picture.py.
struct Picture {
    const float* image;
    const void* provided;  // the provider's gradient, on the canvas, (N, height, width, 4 or 8)
    float* gradient;
    const float* loss_scale;      // (N), of what is provided
    double* sums;                 // (N, 4, blocks): of each term, values not finite
    double* terms;                // (N, columns)
    int* overflow;                // (N)
    const float* anchor;          // like the image; null: no temporal term
    const float* anchor_weights;  // (N, height, width)
    Shown shown;
    const double* weights;  // of a value, in each term
    double corner;          // of the variation
    int kind;
    int height, width;
    int blocks, columns;
};

struct PictureWeights {
    float inverse_scale, variation, twice_range, twice_temporal;
};

// Sum of a colour over the places of a canvas that show pixel (i, j).
template <class Number>
__device__ __forceinline__ float fold(const typename Number::Stored* colour, const Shown& shown, int i, int j)
{
    constexpr int kPixel = 16 / sizeof(typename Number::Stored);
    float sum = 0;
    for (int r = shown.row_starts[i]; r < shown.row_starts[i + 1]; ++r) {
        const auto* row = colour + Index{shown.rows[r]} * shown.width * kPixel;
        for (int c = shown.column_starts[j]; c < shown.column_starts[j + 1]; ++c)
            sum += Number::widen(row[Index{shown.columns[c]} * kPixel]);
    }
    return sum;
}

template <class Number, int kWidth>
__device__ PicturePart picture_part(const Pixels<kWidth>& p, const typename Number::Stored* provided,
                                    const Picture& picture, float* gradient, const PictureWeights& weights)
{
    const Shown& shown = picture.shown;
    PicturePart part{};
    float sum[kWidth];
    for (int k = 0; k < kWidth; ++k) {
        const float value = fold<Number>(provided, shown, p.i, p.j + k);
        part.unusable |= !is_finite(value);
        sum[k] = value * weights.inverse_scale;
    }
    if (weights.variation != 0)
        add_variation(p, weights.variation, static_cast<float>(picture.corner), sum, part);
    if (weights.twice_range != 0) add_range(p, weights.twice_range, sum, part);
    if (picture.anchor) {
        const Index before = Index{blockIdx.z} * p.height * p.width, plane = p.here - picture.image;
        add_temporal(p, picture.anchor + plane, picture.anchor_weights + before + p.at,
                     weights.twice_temporal, sum, part);
    }
    store_neighbours(gradient + p.at, sum);
    return part;
}

// One plane, blockIdx.y, of picture blockIdx.z.
template <class Number, int kWidth>
__device__ void picture_plane(const Picture& picture)
{
    const int height = picture.height, width = picture.width;
    const Index plane = Index{blockIdx.z} * gridDim.y + blockIdx.y, pixels = Index{height} * width;
    const Index pixel = 16 / sizeof(typename Number::Stored);
    const auto* stored = static_cast<const typename Number::Stored*>(picture.provided) +
                         blockIdx.z * pixel * picture.shown.height * picture.shown.width + blockIdx.y;
    float* gradient = picture.gradient + plane * pixels;
    const PictureWeights weights{1 / picture.loss_scale[blockIdx.z],
                                 static_cast<float>(picture.weights[0]),
                                 static_cast<float>(2 * picture.weights[1]),
                                 static_cast<float>(2 * picture.weights[2])};
    double variation = 0, range = 0, temporal = 0, unusable = 0;
    for (Index at = (Index{blockIdx.x} * kThreads + threadIdx.x) * kWidth; at < pixels;
         at += Index{gridDim.x} * kThreads * kWidth) {
        // A plane has fewer than 2³¹ pixels, and 64-bit division is slow.
        const int i = static_cast<int>(at) / width, j = static_cast<int>(at) - i * width;
        const Pixels<kWidth> p{picture.image + plane * pixels + at, at, i, j, height, width};
        const PicturePart part =
            picture_part<Number, kWidth>(p, stored, picture, gradient, weights);
        variation += part.variation;
        range += part.range;
        temporal += part.temporal;
        unusable += part.unusable;
    }
    __shared__ double scratch[4][kWarp];
    variation = block_sum(variation, scratch[0]);
    range = block_sum(range, scratch[1]);
    temporal = block_sum(temporal, scratch[2]);
    unusable = block_sum(unusable, scratch[3]);
    if (threadIdx.x != 0) return;
    const Index blocks = Index{gridDim.x} * gridDim.y;
    double* of_block = picture.sums + blockIdx.z * 4 * blocks + blockIdx.y * gridDim.x + blockIdx.x;
    of_block[0] = variation;
    of_block[blocks] = range;
    of_block[2 * blocks] = temporal;
    of_block[3 * blocks] = unusable;
}

template <int kWidth>
__device__ __forceinline__ void picture_planes(const Picture& picture)
{
    if (picture.kind == kFloat16)
        picture_plane<Half, kWidth>(picture);
    else if (picture.kind == kBfloat16)
        picture_plane<Bfloat, kWidth>(picture);
    else
        picture_plane<Float, kWidth>(picture);
}

}  // namespace steps

// Grid (blocks, 1, N): the canvas of a picture, or in 16 bits its parts, coarse ones first.
NST_KERNEL void __launch_bounds__(steps::kThreads) extend(const steps::Canvas canvas)
{
    steps::show_picture(canvas);
}

// Grid (blocks, 3, N): gradient = folded provided/scale and the gradients of the terms; the sums of each
// block.
NST_KERNEL void __launch_bounds__(steps::kThreads) picture_pass(const steps::Picture picture)
{
    if (picture.width % 4 == 0)
        steps::picture_planes<4>(picture);
    else
        steps::picture_planes<1>(picture);
}

// Grid (1, 1, N), four warps: the terms, from the sums of picture_pass over the blocks of a picture.
NST_KERNEL void picture_sums(const steps::Picture picture)
{
    const int which = threadIdx.x / steps::kWarp;
    const steps::Index n = blockIdx.z;
    const double sum = steps::row_sum(picture.sums + (4 * n + which) * picture.blocks, picture.blocks);
    if (threadIdx.x % steps::kWarp != 0) return;
    if (which == 3)
        picture.overflow[n] = sum > 0;
    else if (which < picture.columns)
        picture.terms[picture.columns * n + which] = picture.weights[which] * sum;
}

// weighted[n, k] = factors[n, k] · terms[n, k] of the first `given` of the columns; count = N · given.
NST_KERNEL void weigh_terms(const float* terms, const double* factors, double* weighted, int given,
                            int columns, int count)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x, at = i / given * columns + i % given;
    if (i < count) weighted[at] = factors[at] * terms[i];
}
