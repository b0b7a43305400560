// The only file that knows pybind11: takes pointers, checks lengths, releases the GIL.
// Shapes are checked, and explained, in nst_fast/kernels/cpu.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <utility>

#include "dispatch.h"

namespace py = pybind11;
using nst::Index;
using nst::kernels;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Doubles = Array<double>;
using Halves = Array<std::uint16_t>;

void expect(bool fits, const char* name) {
  if (!fits) throw std::invalid_argument(std::string("_core: array does not fit: ") + name);
}

template <class T>
const T* in(const Array<T>& array, Index size, const char* name) {
  expect(array.size() == size, name);
  return array.data();
}

template <class T>
T* out(Array<T>& array, Index size, const char* name) {
  expect(array.size() == size, name);
  return array.mutable_data();  // throws if read-only
}

nst::Features features_of(const Floats& features, const std::optional<Floats>& weights) {
  expect(features.ndim() == 3 && features.size() > 0, "features");
  nst::Features f{features.data(), features.shape(0), features.shape(1), features.shape(2), nullptr, 0};
  if (weights) {
    expect(weights->size() == f.pixels || weights->size() == f.images * f.pixels, "pixel_weights");
    f.weights = weights->data();
    f.weights_stride = weights->ndim() == 1 ? 0 : f.pixels;
  }
  return f;
}

int positive(int threads) {
  if (threads < 1) throw std::invalid_argument("_core: threads must be 1 or more");
  return threads;
}

void gram(const Floats& features, Floats result, const std::optional<Floats>& weights, int threads) {
  const nst::Features f = features_of(features, weights);
  float* g = out(result, f.images * f.channels * f.channels, "out");
  positive(threads);
  const py::gil_scoped_release release;
  kernels().gram(f, g, threads);
}

void style_residual(Floats gram, const Floats& target, const Doubles& coefficients, Doubles losses,
                    int threads) {
  expect(gram.ndim() == 3 && gram.size() > 0, "gram");
  const Index images = gram.shape(0), channels = gram.shape(1), matrix = channels * channels;
  expect(target.size() == matrix || target.size() == images * matrix, "target");
  float* g = out(gram, images * matrix, "gram");
  const Index stride = target.ndim() == 2 ? 0 : matrix;
  const double* c = in(coefficients, images, "coefficients");
  double* l = out(losses, images, "losses");
  const float* t = target.data();
  positive(threads);
  const py::gil_scoped_release release;
  kernels().style_residual(g, t, stride, c, l, images, channels, threads);
}

void gram_gradient(const Floats& features, const Floats& residual, const Doubles& coefficients, Floats result,
                   bool accumulate, const std::optional<Floats>& weights,
                   const std::optional<Floats>& content_features,
                   const std::optional<Doubles>& content_coefficients, std::optional<Doubles> content_losses,
                   int threads) {
  const nst::Features f = features_of(features, weights);
  nst::Content content{};
  if (content_features) {
    expect(content_coefficients && content_losses, "content_coefficients, content_losses");
    content = {in(*content_features, features.size(), "content"),
               in(*content_coefficients, f.images, "content_coefficients"),
               out(*content_losses, f.images, "content_losses")};
  }
  const float* r = in(residual, f.images * f.channels * f.channels, "residual");
  const double* c = in(coefficients, f.images, "coefficients");
  float* gradient = out(result, features.size(), "out");
  positive(threads);
  const py::gil_scoped_release release;
  kernels().gram_gradient(f, r, c, content, gradient, accumulate, threads);
}

void content_gradient(const Floats& features, const Floats& content, const Doubles& coefficients,
                      Floats result, Doubles losses, bool accumulate, int threads) {
  expect(features.ndim() >= 1 && features.size() > 0, "features");
  const Index images = features.shape(0);
  const nst::Content term{in(content, features.size(), "content"), in(coefficients, images, "coefficients"),
                          out(losses, images, "losses")};
  float* gradient = out(result, features.size(), "out");
  const float* f = features.data();
  const Index size = features.size() / images;
  positive(threads);
  const py::gil_scoped_release release;
  kernels().content_gradient(f, term, images, size, gradient, accumulate, threads);
}

using PictureTerm = void (*)(const nst::Pictures&, const double*, float*, double*, int);

void picture_term(PictureTerm term, const Floats& image, const Doubles& weights, Floats gradient,
                  Doubles losses, int threads) {
  expect(image.ndim() == 4 && image.size() > 0, "image");
  const nst::Pictures pictures{image.data(), image.shape(0), image.shape(1), image.shape(2), image.shape(3)};
  const double* w = in(weights, pictures.images, "weights");
  float* g = out(gradient, image.size(), "gradient");
  double* l = out(losses, pictures.images, "losses");
  positive(threads);
  const py::gil_scoped_release release;
  term(pictures, w, g, l, threads);
}

void total_variation(const Floats& image, const Doubles& weights, Floats gradient, Doubles losses,
                     int threads) {
  picture_term(kernels().total_variation, image, weights, std::move(gradient), std::move(losses), threads);
}

void range_penalty(const Floats& image, const Doubles& weights, Floats gradient, Doubles losses,
                   int threads) {
  picture_term(kernels().range_penalty, image, weights, std::move(gradient), std::move(losses), threads);
}

void lbfgs_update(Floats x, Floats x_prev, const Floats& gradient, Floats gradient_prev, Halves history,
                  Index slot, Index count, Doubles dots, int threads) {
  const Index size = x.size();
  expect(history.ndim() == 2 && history.shape(1) == size && size > 0, "history");
  const Index memory = history.shape(0) / 2;
  expect(0 <= slot && slot < count && count <= memory, "slot, count");
  const nst::Lbfgs state{out(x, size, "x"),
                         out(x_prev, size, "x_prev"),
                         in(gradient, size, "gradient"),
                         out(gradient_prev, size, "gradient_prev"),
                         history.mutable_data(),
                         size,
                         memory,
                         slot,
                         count,
                         out(dots, 3 * (2 * memory + 1), "dots")};
  positive(threads);
  const py::gil_scoped_release release;
  kernels().lbfgs_update(state, threads);
}

void lbfgs_direction(const Halves& history, const Doubles& coefficients, const Floats& gradient,
                     double gradient_coefficient, const Floats& x_prev, Floats x, int threads) {
  const Index size = x.size(), rows = coefficients.size();
  expect(history.ndim() == 2 && history.shape(0) == rows && history.shape(1) == size, "history");
  const float* g = in(gradient, size, "gradient");
  const float* from = in(x_prev, size, "x_prev");
  float* to = out(x, size, "x");
  const std::uint16_t* h = history.data();
  const double* c = coefficients.data();
  positive(threads);
  const py::gil_scoped_release release;
  kernels().lbfgs_direction(h, c, rows, g, gradient_coefficient, from, to, size, threads);
}

void retract(Floats x, const Floats& x_prev, float ratio, int threads) {
  const float* from = in(x_prev, x.size(), "x_prev");
  float* to = out(x, x.size(), "x");
  const Index size = x.size();
  positive(threads);
  const py::gil_scoped_release release;
  kernels().retract(to, from, ratio, size, threads);
}

double adam_update(Floats x, const Floats& gradient, Floats m, Floats v, float beta1, float beta2, float step,
                   float root_scale, float epsilon, float low, float high, int threads) {
  const Index size = x.size();
  const nst::Adam state{out(x, size, "x"),
                        out(m, size, "m"),
                        out(v, size, "v"),
                        in(gradient, size, "gradient"),
                        size,
                        beta1,
                        beta2,
                        step,
                        root_scale,
                        epsilon,
                        low,
                        high};
  positive(threads);
  const py::gil_scoped_release release;
  return kernels().adam_update(state, threads);
}

void clamp(Floats x, float low, float high, int threads) {
  float* values = out(x, x.size(), "x");
  const Index size = x.size();
  positive(threads);
  const py::gil_scoped_release release;
  kernels().clamp(values, low, high, size, threads);
}

void use_path(const std::string& name) {
  if (!nst::use_path(name)) throw std::invalid_argument("no kernel path '" + name + "' on this machine");
}

}  // namespace

// Arrays are never converted: a copy would hide a mistake and lose the output.
PYBIND11_MODULE(_core, m) {
  const auto a = [](const char* name) { return py::arg(name).noconvert(); };
  m.doc() = "Gram and optimiser kernels; use them through nst_fast.kernels.";
  m.attr("__version__") = NST_VERSION;
  m.def("paths", &nst::paths);
  m.def("path", [] { return kernels().name; });
  m.def("use_path", &use_path, py::arg("name"));
  m.def("cpu_features", &nst::cpu_features);
  m.def("gram", &gram, a("features"), a("out"), a("pixel_weights"), py::arg("threads"));
  m.def("style_residual", &style_residual, a("gram"), a("target"), a("coefficients"), a("losses"),
        py::arg("threads"));
  m.def("gram_gradient", &gram_gradient, a("features"), a("residual"), a("coefficients"), a("out"),
        py::arg("accumulate"), a("pixel_weights"), a("content"), a("content_coefficients"),
        a("content_losses"), py::arg("threads"));
  m.def("content_gradient", &content_gradient, a("features"), a("content"), a("coefficients"), a("out"),
        a("losses"), py::arg("accumulate"), py::arg("threads"));
  m.def("total_variation", &total_variation, a("image"), a("weights"), a("gradient"), a("losses"),
        py::arg("threads"));
  m.def("range_penalty", &range_penalty, a("image"), a("weights"), a("gradient"), a("losses"),
        py::arg("threads"));
  m.def("lbfgs_update", &lbfgs_update, a("x"), a("x_prev"), a("gradient"), a("gradient_prev"), a("history"),
        py::arg("slot"), py::arg("count"), a("dots"), py::arg("threads"));
  m.def("lbfgs_direction", &lbfgs_direction, a("history"), a("coefficients"), a("gradient"),
        py::arg("gradient_coefficient"), a("x_prev"), a("x"), py::arg("threads"));
  m.def("retract", &retract, a("x"), a("x_prev"), py::arg("ratio"), py::arg("threads"));
  m.def("adam_update", &adam_update, a("x"), a("gradient"), a("m"), a("v"), py::arg("beta1"),
        py::arg("beta2"), py::arg("step"), py::arg("root_scale"), py::arg("epsilon"), py::arg("low"),
        py::arg("high"), py::arg("threads"));
  m.def("clamp", &clamp, a("x"), py::arg("low"), py::arg("high"), py::arg("threads"));
}
