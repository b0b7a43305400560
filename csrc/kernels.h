// The CPU contract: shapes, aliasing, threads. No Python, no CUDA.
//
// N images, C channels, P = H·W pixels. Every array is row-major and contiguous; float unless said.
// One source is compiled once per instruction set; each compilation fills one Kernels table.
// Every sum over pixels is cut into blocks that depend on the shape alone, and the blocks are added in
// a fixed order in double: results are the same bits for any number of threads.
#pragma once

#include <cstdint>

namespace nst {

using Index = std::int64_t;

// Feature maps of one tap, (N, C, P), and optional pixel weights m ≥ 0.
struct Features {
  const float* data;  // (N, C, P)
  Index images, channels, pixels;
  const float* weights;  // (N, P), or (P) when weights_stride is 0; null: all 1
  Index weights_stride;  // P or 0
};

// The content term of a tap: c·Σ m (F − content)².
struct Content {
  const float* data;      // (N, C, P); null: no content term
  const double* factors;  // c, (N)
  double* losses;         // (N), overwritten
};

struct Lbfgs {
  const float* x;          // (D): the accepted point
  float* x_prev;           // (D): overwritten with x
  const float* gradient;   // (D): at x
  float* gradient_prev;    // (D): overwritten with gradient
  std::uint16_t* history;  // (2m, D) bfloat16: s in rows 0..m-1, y in rows m..2m-1
  Index size, memory;      // D, m
  Index slot, count;       // where the new pair goes; slots 0..count-1 hold pairs, slot included
  double* dots;            // (3, 2m + 1): s, y, g (rows) with every history row and g (columns)
};

struct Adam {
  float *x, *m, *v;       // (D), updated
  const float* gradient;  // (D)
  Index size;
  float beta1, beta2, step, root_scale, epsilon;  // x −= step·m / (√v·root_scale + epsilon)
  float low, high;
};

// Pictures (N, channels, H, W).
struct Pictures {
  const float* data;
  Index images, channels, height, width;
};

// What pictures shall stay close to, where it is weighed: Σ m (x − anchor)².
struct Anchor {
  const float* data;     // like the pictures
  const float* weights;  // m ≥ 0, (N, H, W)
};

// What smooths pictures along their columns and rows, which are mirrored at their ends, those repeated.
struct Gaussian {
  const float* taps;  // (radius + 1): of the middle, then of both neighbours at each distance
  Index radius;
  float share;  // of the picture itself
};

// Planes (H, W) and the larger canvases (H', W') that show them: canvas[i, j] = plane[rows[i], columns[j]].
struct Canvas {
  Index planes, plane_height, plane_width, height, width;
  const std::int32_t* rows;     // (H'), from 0 to H − 1
  const std::int32_t* columns;  // (W'), from 0 to W − 1
};

// The members of the table, in their order.
#define NST_KERNELS(X)                                                                                 \
  X(moments)                                                                                           \
  X(pull_back)                                                                                         \
  X(content_pull_back) X(extend) X(fold) X(smooth) X(total_variation) X(range_penalty)                 \
      X(temporal_loss) X(lbfgs_update) X(lbfgs_direction) X(retract) X(adam_update) X(clamp)

struct Kernels {
  const char* name;

  // out (N, C+1, C+1) = [out +] normalizers[n]·Σ m f~ f~ᵀ with f~ = [f; 1]; exactly symmetric.
  void (*moments)(const Features&, const double* normalizers, float* out, bool accumulate, int threads);

  // out (N, C, P) = [out +] (A F + b 1ᵀ) diag(m) + 2·c[n]·m∘(F − content); derivative (N, C, C+1): [A b],
  // A symmetric.
  void (*pull_back)(const Features&, const float* derivative, const Content&, float* out, bool accumulate,
                    int threads);

  // out (N, C, P) = [out +] 2·c[n]·m∘(F − content).
  void (*content_pull_back)(const Features&, const Content&, float* out, bool accumulate, int threads);

  // planes (H, W) → canvases (H', W').
  void (*extend)(const float* planes, const Canvas&, float* canvases, int threads);
  // Its adjoint: every value of a canvas is added to its source; planes are overwritten.
  void (*fold)(const float* canvases, const Canvas&, float* planes, int threads);

  // out = [base +] share·u + (1 − share)·G u; base may be null.
  void (*smooth)(const Pictures& u, const Gaussian&, const float* base, float* out, int threads);

  // gradient += d/dx of w[n]·Σ (√(corner² + right² + below²) − corner), the differences of each value from
  // its neighbours; losses: the terms.
  void (*total_variation)(const Pictures&, float corner, const double* weights, float* gradient,
                          double* losses, int threads);

  // gradient += d/dx of w[n]·Σ (x − clamp(x, 0, 1))²; losses: the terms.
  void (*range_penalty)(const Pictures&, const double* weights, float* gradient, double* losses, int threads);

  // gradient += d/dx of w[n]·Σ m (x − anchor)²; losses: the terms.
  void (*temporal_loss)(const Pictures&, const Anchor&, const double* weights, float* gradient,
                        double* losses, int threads);

  void (*lbfgs_update)(const Lbfgs&, int threads);
  // x = x_prev + Σ coefficients[i]·history[i] + gradient_coefficient·gradient; zero coefficients are not
  // read.
  void (*lbfgs_direction)(const std::uint16_t* history, const double* coefficients, Index rows,
                          const float* gradient, double gradient_coefficient, const float* x_prev, float* x,
                          Index size, int threads);
  // x = x_prev + ratio·(x − x_prev).
  void (*retract)(float* x, const float* x_prev, float ratio, Index size, int threads);
  // Returns gradient·gradient.
  double (*adam_update)(const Adam&, int threads);
  void (*clamp)(float* x, float low, float high, Index size, int threads);
};

}  // namespace nst
