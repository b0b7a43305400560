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

// The content term of a tap: b·‖F − content‖².
struct Content {
  const float* data;           // (N, C, P); null: no content term
  const double* coefficients;  // (N)
  double* losses;              // (N), overwritten
};

struct Lbfgs {
  float* x;                // (D): the accepted point
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

// Pictures (N, channels, H, W) of the total variation.
struct Pictures {
  const float* data;
  Index images, channels, height, width;
};

struct Kernels {
  const char* name;

  // out (N, C, C) = F diag(m) Fᵀ / (C·Σm); exactly symmetric.
  void (*gram)(const Features&, float* out, int threads);

  // gram ← R = gram − target; losses[n] = coefficients[n]·‖R[n]‖²_F. target_stride: C² or 0 (shared).
  void (*style_residual)(float* gram, const float* target, Index target_stride, const double* coefficients,
                         double* losses, Index images, Index channels, int threads);

  // out (N, C, P) = [out +] coefficients[n]·4/(C·Σm)·(R F) diag(m) + 2·b[n]·(F − content); R symmetric.
  void (*gram_gradient)(const Features&, const float* residual, const double* coefficients, const Content&,
                        float* out, bool accumulate, int threads);

  // out (N, size) = [out +] 2·b[n]·(F − content).
  void (*content_gradient)(const float* features, const Content&, Index images, Index size, float* out,
                           bool accumulate, int threads);

  // gradient += d/dx of w[n]·(Σ horizontal differences² + Σ vertical differences²); losses: the terms.
  void (*total_variation)(const Pictures&, const double* weights, float* gradient, double* losses,
                          int threads);

  // gradient += d/dx of w[n]·Σ (x − clamp(x, 0, 1))²; losses: the terms.
  void (*range_penalty)(const Pictures&, const double* weights, float* gradient, double* losses, int threads);

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
