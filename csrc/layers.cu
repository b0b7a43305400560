// What lies between an encoder's convolutions, one pass over each map: bias, ReLU and pooling; and on the
// way back masks, pooling and the gradients of taps. Compiled behind products.cuh.

namespace layers {

using products::Chunk;
using products::read_chunk;
using products::write_chunk;

constexpr int kThreads = 256;

enum Pooling { kNone, kMaximum, kAverage };

// One layer of N pictures; the layout is that of LAYER in nst_fast/gpu/layers.py. Maps are (N, H, W, C),
// and half of that in either direction where they are pooled.
struct Layer {
    void* activation;   // what the convolution wrote; then max(that + bias, 0)
    const float* bias;  // (C)
    void* pooled;       // or null
    const void* above;  // the gradient where the next layer reads: at the activation or at `pooled`; or null
    const void* tap;    // the gradient of terms at the activation, or null
    void* gradient;     // where the convolution wrote; may be `above` where nothing is pooled
    int rows;           // N·H
    int columns;
    int channels;
    int pooling;
    int aligned;  // whether every pixel starts at 16 bytes
};

// Neighbouring channels of a pixel, or of a window of two by two.
template <class Number, int side>
class Window {
public:
    using T = typename Number::Stored;
    static constexpr int kValues = 16 / sizeof(T), kCells = side * side;

    // 64-bit division is slow, and 2³¹ of 16 bytes are no map.
    __device__ __forceinline__ Window(const Layer& layer, int index) : layer_(layer)
    {
        const int parts = products::divide_up(layer.channels, kValues), across = layer.columns / side;
        const int place = index / parts, row = place / across;
        channel_ = (index - place * parts) * kValues;
        small_ = static_cast<long long>(place) * layer.channels + channel_;
        const long long first = static_cast<long long>(row) * side * layer.columns;
        first_ = (first + (place - row * across) * side) * layer.channels + channel_;
    }

    static __device__ __forceinline__ int count(const Layer& layer)
    {
        const int windows = layer.rows / side * (layer.columns / side);
        return windows * products::divide_up(layer.channels, kValues);
    }

    __device__ __forceinline__ int present() const { return min(layer_.channels - channel_, kValues); }
    __device__ __forceinline__ int channel() const { return channel_; }

    __device__ __forceinline__ void load(const void* map, int cell, float (&values)[kValues]) const
    {
        widen(read_chunk(static_cast<const T*>(map) + at(cell), present(), layer_.aligned), values);
    }
    __device__ __forceinline__ void store(void* map, int cell, const float (&values)[kValues]) const
    {
        write_chunk(static_cast<T*>(map) + at(cell), narrow(values), present(), layer_.aligned);
    }
    __device__ __forceinline__ void load_pooled(const void* map, float (&values)[kValues]) const
    {
        widen(read_chunk(static_cast<const T*>(map) + small_, present(), layer_.aligned), values);
    }
    __device__ __forceinline__ void store_pooled(void* map, const float (&values)[kValues]) const
    {
        write_chunk(static_cast<T*>(map) + small_, narrow(values), present(), layer_.aligned);
    }

private:
    const Layer& layer_;
    long long first_, small_;
    int channel_;

    __device__ __forceinline__ long long at(int cell) const
    {
        return first_ + static_cast<long long>(cell / side * layer_.columns + cell % side) * layer_.channels;
    }
    static __device__ __forceinline__ void widen(const Chunk<T>& chunk, float (&values)[kValues])
    {
#pragma unroll
        for (int k = 0; k < kValues; ++k) values[k] = Number::widen(chunk.values[k]);
    }
    static __device__ __forceinline__ Chunk<T> narrow(const float (&values)[kValues])
    {
        Chunk<T> chunk;
#pragma unroll
        for (int k = 0; k < kValues; ++k) chunk.values[k] = Number::narrow(values[k]);
        return chunk;
    }
};

// What is not a number stays so.
__device__ __forceinline__ float larger(float a, float b) { return a >= b ? a : b == b && a == a ? b : a + b; }

template <class Number, int side>
__device__ __forceinline__ void rectify(const Layer& layer)
{
    using At = Window<Number, side>;
    constexpr int kValues = At::kValues;
    for (int index = blockIdx.x * kThreads + threadIdx.x; index < At::count(layer);
         index += gridDim.x * kThreads) {
        const At window(layer, index);
        float bias[kValues] = {}, pooled[kValues] = {};
        for (int k = 0; k < window.present(); ++k) bias[k] = layer.bias[window.channel() + k];
#pragma unroll
        for (int cell = 0; cell < At::kCells; ++cell) {
            float values[kValues];
            window.load(layer.activation, cell, values);
#pragma unroll
            for (int k = 0; k < kValues; ++k) {
                // As it is stored: cells are compared with their maximum on the way back.
                values[k] = Number::widen(Number::narrow(larger(values[k] + bias[k], 0)));
                pooled[k] = layer.pooling == kAverage ? pooled[k] + values[k] / At::kCells
                                                      : larger(pooled[k], values[k]);
            }
            window.store(layer.activation, cell, values);
        }
        if (side > 1) window.store_pooled(layer.pooled, pooled);
    }
}

// gradient = (what comes from above + that of the tap) where the activation is above 0. Cells that are
// equal to the maximum of their window share its gradient; of an average each has all of it, and the
// weights of the convolution above have the quarter.
template <class Number, int side>
__device__ __forceinline__ void descend(const Layer& layer)
{
    using At = Window<Number, side>;
    constexpr int kValues = At::kValues;
    for (int index = blockIdx.x * kThreads + threadIdx.x; index < At::count(layer);
         index += gridDim.x * kThreads) {
        const At window(layer, index);
        float x[At::kCells][kValues], most[kValues] = {}, cells[kValues] = {}, share[kValues] = {};
#pragma unroll
        for (int cell = 0; cell < At::kCells; ++cell) {
            window.load(layer.activation, cell, x[cell]);
#pragma unroll
            for (int k = 0; k < kValues; ++k) most[k] = larger(most[k], x[cell][k]);
        }
        if (layer.above) window.load_pooled(layer.above, share);
        const bool shared = layer.pooling == kMaximum;
#pragma unroll
        for (int k = 0; k < kValues; ++k) {
#pragma unroll
            for (int cell = 0; cell < At::kCells; ++cell) cells[k] += x[cell][k] == most[k] ? 1.0F : 0.0F;
            if (shared) share[k] /= cells[k];
        }
#pragma unroll
        for (int cell = 0; cell < At::kCells; ++cell) {
            float values[kValues] = {};
            if (layer.tap) window.load(layer.tap, cell, values);
#pragma unroll
            for (int k = 0; k < kValues; ++k) {
                if (!shared || x[cell][k] == most[k]) values[k] += share[k];
                values[k] = x[cell][k] > 0 ? values[k] : 0.0F;
            }
            window.store(layer.gradient, cell, values);
        }
    }
}

}  // namespace layers

#define NST_LAYER_KERNELS(kind, Number)                                                                     \
    NST_KERNEL void __launch_bounds__(layers::kThreads) rectify_##kind(const layers::Layer layer)           \
    {                                                                                                       \
        if (layer.pooling == layers::kNone)                                                                 \
            layers::rectify<Number, 1>(layer);                                                              \
        else                                                                                                \
            layers::rectify<Number, 2>(layer);                                                              \
    }                                                                                                       \
    NST_KERNEL void __launch_bounds__(layers::kThreads) descend_##kind(const layers::Layer layer)           \
    {                                                                                                       \
        if (layer.pooling == layers::kNone)                                                                 \
            layers::descend<Number, 1>(layer);                                                              \
        else                                                                                                \
            layers::descend<Number, 2>(layer);                                                              \
    }

NST_LAYER_KERNELS(fp16, Half)
NST_LAYER_KERNELS(fp32, Float)
