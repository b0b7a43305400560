// Every kernel of every instruction set over odd shapes, on several threads and from several callers,
// against plain loops in double: what `make sanitize` runs under the sanitizers. Without Python, so that
// they see nothing but the kernels.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../dispatch.h"

namespace {

using nst::Index;
using nst::Kernels;

constexpr double kTolerance = 1e-5;

// Memory of exactly this size behind one element, so that vectors are unaligned and what lies behind an
// array is not ours.
template <class T>
class Array {
 public:
  explicit Array(Index size, T value = T{}) : size_(size), data_(new T[static_cast<std::size_t>(size) + 1]) {
    for (Index i = 0; i < size; ++i) (*this)[i] = value;
  }
  Array(const Array& other) : Array(other.size_) {
    for (Index i = 0; i < size_; ++i) (*this)[i] = other[i];
  }
  Array& operator=(const Array&) = delete;
  ~Array() { delete[] data_; }

  T* data() const { return data_ + 1; }
  T& operator[](Index i) const { return data()[i]; }
  Index size() const { return size_; }
  std::string bytes() const {
    return {reinterpret_cast<const char*>(data()), static_cast<std::size_t>(size_) * sizeof(T)};
  }

 private:
  Index size_;
  T* data_;
};

using Floats = Array<float>;
using Doubles = Array<double>;

// The same numbers on every machine, from −1 to 1.
Floats noise(Index size, std::uint32_t seed) {
  Floats values(size);
  for (Index i = 0; i < size; ++i) {
    seed = seed * 1664525U + 1013904223U;
    values[i] = static_cast<float>(seed >> 8) / static_cast<float>(1U << 23) - 1.0F;
  }
  return values;
}

Floats weights_of(Index size) {
  Floats m = noise(size, 77);
  for (Index i = 0; i < size; ++i) m[i] = i % 3 == 1 ? 0.0F : std::fabs(m[i]);
  return m;
}

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

template <class T>
void expect_close(const std::string& what, const Array<T>& ours, const Doubles& expected) {
  double error = 0, size = 0;
  for (Index i = 0; i < ours.size(); ++i) {
    error += std::pow(static_cast<double>(ours[i]) - expected[i], 2);
    size += expected[i] * expected[i];
  }
  if (!(std::sqrt(error) <= kTolerance * std::sqrt(size) + 1e-12))
    fail(what + ": relative error " + std::to_string(std::sqrt(error / size)));
}

double wide(std::uint16_t bits) {
  const std::uint32_t all = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &all, sizeof value);
  return value;
}

// A run of all kernels on one set of shapes: outputs are checked, and kept to be compared to the bit.
class Run {
 public:
  Run(const Kernels& kernels, int threads) : k_(kernels), threads_(threads) {}
  const std::string& outputs() const { return outputs_; }

  void maps(Index N, Index C, Index P) {
    for (const int weighting : {0, 1, 2}) {
      const Floats F = noise(N * C * P, 1), target = noise(N * C * P, 2);
      const Floats m = weights_of(weighting == 2 ? N * P : P);
      const nst::Features f{F.data(), N, C, P, weighting > 0 ? m.data() : nullptr, weighting == 2 ? P : 0};
      moments(f);
      pull_back(f, nullptr);
      pull_back(f, target.data());
    }
  }

  void pictures(Index N, Index K, Index H, Index W) {
    terms(N, K, H, W);
    temporal(N, K, H, W);
    for (const Index radius : {0, 1, 4}) smooth(N, K, H, W, radius);
    for (const Index margin : {0, 3, 21}) canvas(N * K, H, W, margin);
  }

  void vectors(Index D) {
    lbfgs(D, 1, 0, 1);
    lbfgs(D, 3, 1, 3);
    adam(D);
  }

 private:
  template <class T>
  void check(const char* name, const Array<T>& ours, const Doubles& expected) {
    expect_close(std::string(k_.name) + ' ' + name, ours, expected);
    outputs_ += ours.bytes();
  }

  static double weight(const nst::Features& f, Index n, Index p) {
    return f.weights != nullptr ? static_cast<double>(f.weights[n * f.weights_stride + p]) : 1.0;
  }
  static double feature(const nst::Features& f, Index n, Index c, Index p) {
    return c == f.channels ? 1.0 : static_cast<double>(f.data[(n * f.channels + c) * f.pixels + p]);
  }

  void moments(const nst::Features& f) {
    const Index N = f.images, side = f.channels + 1;
    const Doubles s(N, 0.5);
    const Floats M = noise(N * side * side, 3);
    Doubles expected(M.size());
    for (Index n = 0; n < N; ++n)
      for (Index i = 0; i < side; ++i)
        for (Index j = 0; j < side; ++j) {
          double sum = 0;
          for (Index p = 0; p < f.pixels; ++p)
            sum += weight(f, n, p) * feature(f, n, i, p) * feature(f, n, j, p);
          expected[(n * side + i) * side + j] = s[n] * sum;
        }
    k_.moments(f, s.data(), M.data(), false, threads_);
    check("moments", M, expected);
    k_.moments(f, s.data(), M.data(), true, threads_);
    for (Index i = 0; i < M.size(); ++i) expected[i] *= 2;
    check("moments, accumulated", M, expected);
  }

  void pull_back(const nst::Features& f, const float* target) {
    const Index N = f.images, C = f.channels, P = f.pixels;
    Floats d = noise(N * C * (C + 1), 4);
    for (Index n = 0; n < N; ++n)
      for (Index i = 0; i < C; ++i)
        for (Index j = 0; j < i; ++j) d[(n * C + i) * (C + 1) + j] = d[(n * C + j) * (C + 1) + i];
    const Floats out(N * C * P);
    const Doubles c(N, 0.3), losses(N);
    Doubles expected(out.size()), of_content(out.size()), expected_losses(N);
    for (Index n = 0; n < N; ++n)
      for (Index i = 0; i < C; ++i)
        for (Index p = 0; p < P; ++p) {
          const Index at = (n * C + i) * P + p;
          double sum = 0;
          for (Index j = 0; j <= C; ++j)
            sum += static_cast<double>(d[(n * C + i) * (C + 1) + j]) * feature(f, n, j, p);
          const double difference =
              target != nullptr ? feature(f, n, i, p) - static_cast<double>(target[at]) : 0;
          of_content[at] = 2 * c[n] * weight(f, n, p) * difference;
          expected[at] = sum * weight(f, n, p) + of_content[at];
          expected_losses[n] += c[n] * weight(f, n, p) * difference * difference;
        }
    const nst::Content content{target, c.data(), losses.data()};
    k_.pull_back(f, d.data(), content, out.data(), false, threads_);
    check("pull_back", out, expected);
    if (target != nullptr) check("pull_back's losses", losses, expected_losses);
    k_.pull_back(f, d.data(), content, out.data(), true, threads_);
    for (Index i = 0; i < out.size(); ++i) expected[i] *= 2;
    check("pull_back, accumulated", out, expected);
    if (target == nullptr) return;
    k_.content_pull_back(f, content, out.data(), true, threads_);
    for (Index i = 0; i < out.size(); ++i) expected[i] += of_content[i];
    check("content_pull_back, accumulated", out, expected);
    k_.content_pull_back(f, content, out.data(), false, threads_);
    check("content_pull_back", out, of_content);
    check("content_pull_back's losses", losses, expected_losses);
  }

  void terms(Index N, Index K, Index H, Index W) {
    const Floats x = noise(N * K * H * W, 5), varied = noise(x.size(), 6), ranged(varied);
    const Doubles w(N, 0.7), variation(N), range(N);
    Doubles of_variation(x.size()), of_range(x.size()), expected_variation(N), expected_range(N);
    for (Index i = 0; i < x.size(); ++i) of_variation[i] = of_range[i] = static_cast<double>(varied[i]);
    const double corner = 0.25;  // a float, too
    for (Index at = 0; at < x.size(); ++at) {
      const Index n = at / (K * H * W), i = at / W % H, j = at % W;
      const double value = static_cast<double>(x[at]);
      const double right = j + 1 < W ? static_cast<double>(x[at + 1]) - value : 0;
      const double below = i + 1 < H ? static_cast<double>(x[at + W]) - value : 0;
      const double s = std::sqrt(corner * corner + right * right + below * below);
      if (j + 1 < W) of_variation[at + 1] += w[n] * right / s;
      if (i + 1 < H) of_variation[at + W] += w[n] * below / s;
      of_variation[at] -= w[n] * (right + below) / s;
      expected_variation[n] += w[n] * (s - corner);
      const double outside = value - std::fmin(std::fmax(value, 0), 1);
      of_range[at] += 2 * w[n] * outside;
      expected_range[n] += w[n] * outside * outside;
    }
    const nst::Pictures p{x.data(), N, K, H, W};
    k_.total_variation(p, static_cast<float>(corner), w.data(), varied.data(), variation.data(), threads_);
    k_.range_penalty(p, w.data(), ranged.data(), range.data(), threads_);
    check("total_variation", varied, of_variation);
    check("total_variation's losses", variation, expected_variation);
    check("range_penalty", ranged, of_range);
    check("range_penalty's losses", range, expected_range);
  }

  void temporal(Index N, Index K, Index H, Index W) {
    const Floats x = noise(N * K * H * W, 9), anchor = noise(x.size(), 10), gradient = noise(x.size(), 11);
    const Floats m = weights_of(N * H * W);
    const Doubles w(N, 0.7), losses(N);
    Doubles expected(x.size()), expected_losses(N);
    for (Index at = 0; at < x.size(); ++at) {
      const Index n = at / (K * H * W);
      const auto weight = static_cast<double>(m[n * H * W + at % (H * W)]);
      const double off = static_cast<double>(x[at]) - static_cast<double>(anchor[at]);
      expected[at] = static_cast<double>(gradient[at]) + 2 * w[n] * weight * off;
      expected_losses[n] += w[n] * weight * off * off;
    }
    const nst::Pictures p{x.data(), N, K, H, W};
    k_.temporal_loss(p, {anchor.data(), m.data()}, w.data(), gradient.data(), losses.data(), threads_);
    check("temporal_loss", gradient, expected);
    check("temporal_loss's losses", losses, expected_losses);
  }

  void smooth(Index N, Index K, Index H, Index W, Index radius) {
    const Floats u = noise(N * K * H * W, 7), base = noise(u.size(), 8), out(u.size());
    const Floats taps(radius + 1, 1.0F / static_cast<float>(2 * radius + 1));
    const auto mirrored = [](Index i, Index n) {
      while (i < 0 || i >= n) i = i < 0 ? -1 - i : 2 * n - 1 - i;
      return i;
    };
    Doubles expected(u.size());
    for (Index at = 0; at < u.size(); ++at) {
      const Index plane = at / (H * W) * H * W, i = at / W % H, j = at % W;
      double sum = 0;
      for (Index a = -radius; a <= radius; ++a)
        for (Index b = -radius; b <= radius; ++b)
          sum += static_cast<double>(u[plane + mirrored(i + a, H) * W + mirrored(j + b, W)]);
      sum *= static_cast<double>(taps[0]) * static_cast<double>(taps[0]);
      expected[at] = 0.25 * static_cast<double>(u[at]) + 0.75 * sum;
    }
    const nst::Pictures p{u.data(), N, K, H, W};
    const nst::Gaussian gaussian{taps.data(), radius, 0.25F};
    k_.smooth(p, gaussian, nullptr, out.data(), threads_);
    check("smooth", out, expected);
    k_.smooth(p, gaussian, base.data(), out.data(), threads_);
    for (Index i = 0; i < u.size(); ++i) expected[i] += static_cast<double>(base[i]);
    check("smooth on a base", out, expected);
  }

  void canvas(Index planes, Index H, Index W, Index margin) {
    const Index height = H + 2 * margin, width = W + margin;
    Array<std::int32_t> rows(height), columns(width);
    for (Index i = 0; i < height; ++i) rows[i] = static_cast<std::int32_t>(std::llabs(i - margin) % H);
    for (Index j = 0; j < width; ++j) columns[j] = static_cast<std::int32_t>((j + margin) % W);
    const nst::Canvas sizes{planes, H, W, height, width, rows.data(), columns.data()};
    const Floats x = noise(planes * H * W, 9), g = noise(planes * height * width, 10);
    const Floats shown(g.size()), folded(x.size());
    Doubles expected(g.size()), back(x.size());
    for (Index at = 0; at < g.size(); ++at) {
      const Index plane = at / (height * width), i = at / width % height, j = at % width;
      const Index from = (plane * H + rows[i]) * W + columns[j];
      expected[at] = static_cast<double>(x[from]);
      back[from] += static_cast<double>(g[at]);
    }
    k_.extend(x.data(), sizes, shown.data(), threads_);
    check("extend", shown, expected);
    k_.fold(g.data(), sizes, folded.data(), threads_);
    check("fold", folded, back);
  }

  void lbfgs(Index D, Index memory, Index slot, Index count) {
    const Floats x = noise(D, 11), x_prev = noise(D, 12), g = noise(D, 13), g_prev = noise(D, 14);
    const Index columns = 2 * memory + 1;
    const Array<std::uint16_t> history(2 * memory * D, 0x3f00);
    const Doubles dots(3 * columns);
    const nst::Lbfgs state{x.data(), x_prev.data(), g.data(), g_prev.data(), history.data(),
                           D,        memory,        slot,     count,         dots.data()};
    Doubles s(D), expected(dots.size());
    for (Index i = 0; i < D; ++i) s[i] = static_cast<double>(x[i]) - static_cast<double>(x_prev[i]);
    k_.lbfgs_update(state, threads_);
    Doubles stored(D);
    for (Index i = 0; i < D; ++i) {
      stored[i] = wide(history[slot * D + i]);
      if (std::fabs(stored[i] - s[i]) > std::fabs(s[i]) / 128) fail("lbfgs_update: a pair is not rounded");
    }
    const auto row = [&](Index r, Index i) {
      return r == 2 * memory ? static_cast<double>(g[i]) : wide(history[r * D + i]);
    };
    const Index ours[3] = {slot, memory + slot, 2 * memory};
    for (Index k = 0; k < 3; ++k)
      for (Index r = 0; r < columns; ++r)
        for (Index i = 0; i < D && (r == 2 * memory || r % memory < count); ++i)
          expected[k * columns + r] += row(ours[k], i) * row(r, i);
    check("lbfgs_update", dots, expected);
    outputs_ += history.bytes() + x_prev.bytes() + g_prev.bytes();

    Doubles coefficients(2 * memory), moved(D);
    for (Index r = 0; r < 2 * memory; ++r) coefficients[r] = r == 1 ? 0 : 0.1 * static_cast<double>(r + 1);
    for (Index i = 0; i < D; ++i) {
      moved[i] = static_cast<double>(x_prev[i]) - 0.3 * static_cast<double>(g[i]);
      for (Index r = 0; r < 2 * memory; ++r) moved[i] += coefficients[r] * wide(history[r * D + i]);
    }
    k_.lbfgs_direction(history.data(), coefficients.data(), 2 * memory, g.data(), -0.3, x_prev.data(),
                       x.data(), D, threads_);
    check("lbfgs_direction", x, moved);
    for (Index i = 0; i < D; ++i) moved[i] = 0.75 * static_cast<double>(x_prev[i]) + 0.25 * moved[i];
    k_.retract(x.data(), x_prev.data(), 0.25F, D, threads_);
    check("retract", x, moved);
  }

  void adam(Index D) {
    const Floats x = noise(D, 15), m(D), v(D), g = noise(D, 16);
    Doubles expected(D), square(1);
    for (Index i = 0; i < D; ++i) {
      const double gradient = static_cast<double>(g[i]), first = 0.1 * gradient;
      const double root = std::sqrt(0.01 * gradient * gradient);
      const double to = static_cast<double>(x[i]) - 0.2 * first / (root * 10 + 1e-8);
      expected[i] = std::fmin(std::fmax(to, -0.5), 0.5);
      square[0] += gradient * gradient;
    }
    const nst::Adam state{x.data(), m.data(), v.data(), g.data(), D,     0.9F,
                          0.99F,    0.2F,     10.0F,    1e-8F,    -0.5F, 0.5F};
    const Doubles squares(1, k_.adam_update(state, threads_));
    check("adam_update", x, expected);
    check("adam_update's squares", squares, square);
    for (Index i = 0; i < D; ++i) expected[i] = std::fmin(std::fmax(expected[i], -0.25), 0.1);
    k_.clamp(x.data(), -0.25F, 0.1F, D, threads_);
    check("clamp", x, expected);
  }

  const Kernels& k_;
  int threads_;
  std::string outputs_;
};

std::string run_all(int threads) {
  Run run(nst::kernels(), threads);
  const Index maps[][3] = {{1, 1, 1},    {2, 3, 7},    {1, 17, 257}, {2, 33, 300},
                           {1, 64, 512}, {1, 131, 70}, {1, 2, 17000}};
  for (const auto& s : maps) run.maps(s[0], s[1], s[2]);
  const Index pictures[][4] = {{1, 1, 1, 1}, {2, 3, 1, 19}, {1, 3, 23, 1}, {2, 3, 9, 37}, {1, 1, 40, 600}};
  for (const auto& s : pictures) run.pictures(s[0], s[1], s[2], s[3]);
  for (const Index size : {1, 15, 16, 1023, 1040, 40001}) run.vectors(size);
  return run.outputs();
}

}  // namespace

int main() {
  for (const std::string& path : nst::paths()) {
    nst::use_path(path);
    const std::string alone = run_all(1);
    for (const int threads : {2, 5})
      if (run_all(threads) != alone) fail(path + ": other bits on " + std::to_string(threads) + " threads");
    // Callers that find the pool busy compute on their own thread.
    std::vector<std::string> found(3);
    std::vector<std::thread> callers;
    for (std::string& outputs : found) callers.emplace_back([&outputs] { outputs = run_all(3); });
    for (std::thread& caller : callers) caller.join();
    for (const std::string& outputs : found)
      if (outputs != alone) fail(path + ": other bits where several threads call");
    std::printf("%s: every kernel is right\n", path.c_str());
  }
}
