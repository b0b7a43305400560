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
using Indices = Array<std::int32_t>;

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

void moments(const Floats& features, const Doubles& scales, Floats result,
             const std::optional<Floats>& weights, bool accumulate, int threads) {
  const nst::Features f = features_of(features, weights);
  const double* s = in(scales, f.images, "scales");
  float* m = out(result, f.images * (f.channels + 1) * (f.channels + 1), "out");
  positive(threads);
  const py::gil_scoped_release release;
  kernels().moments(f, s, m, accumulate, threads);
}

void pull_back(const Floats& features, const Floats& derivative, Floats result,
               const std::optional<Floats>& weights, const std::optional<Floats>& content_features,
               const std::optional<Doubles>& content_factors, std::optional<Doubles> content_losses,
               int threads) {
  const nst::Features f = features_of(features, weights);
  nst::Content content{};
  if (content_features) {
    expect(content_factors && content_losses, "content_factors, content_losses");
    content = {in(*content_features, features.size(), "content"),
               in(*content_factors, f.images, "content_factors"),
               out(*content_losses, f.images, "content_losses")};
  }
  const float* d = in(derivative, f.images * f.channels * (f.channels + 1), "derivative");
  float* gradient = out(result, features.size(), "out");
  positive(threads);
  const py::gil_scoped_release release;
  kernels().pull_back(f, d, content, gradient, threads);
}

void content_pull_back(const Floats& features, const Floats& content, const Doubles& factors, Floats result,
                       Doubles losses, const std::optional<Floats>& weights, int threads) {
  const nst::Features f = features_of(features, weights);
  const nst::Content term{in(content, features.size(), "content"), in(factors, f.images, "factors"),
                          out(losses, f.images, "losses")};
  float* gradient = out(result, features.size(), "out");
  positive(threads);
  const py::gil_scoped_release release;
  kernels().content_pull_back(f, term, gradient, threads);
}

const std::int32_t* table(const Indices& indices, Index size, Index stop, const char* name) {
  const std::int32_t* values = in(indices, size, name);
  for (Index i = 0; i < size; ++i) expect(0 <= values[i] && values[i] < stop, name);
  return values;
}

nst::Canvas canvas_of(const Floats& planes, const Floats& canvases, const Indices& rows,
                      const Indices& columns) {
  expect(planes.ndim() == 4 && planes.size() > 0, "image");
  expect(canvases.ndim() == 4 && canvases.size() > 0, "canvas");
  const Index count = planes.shape(0) * planes.shape(1), height = planes.shape(2), width = planes.shape(3);
  expect(canvases.shape(0) * canvases.shape(1) == count, "canvas");
  return {count,
          height,
          width,
          canvases.shape(2),
          canvases.shape(3),
          table(rows, canvases.shape(2), height, "rows"),
          table(columns, canvases.shape(3), width, "columns")};
}

void extend(const Floats& image, const Indices& rows, const Indices& columns, Floats canvas, int threads) {
  const nst::Canvas shape = canvas_of(image, canvas, rows, columns);
  const float* from = image.data();
  float* to = canvas.mutable_data();
  positive(threads);
  const py::gil_scoped_release release;
  kernels().extend(from, shape, to, threads);
}

void fold(const Floats& canvas, const Indices& rows, const Indices& columns, Floats image, int threads) {
  const nst::Canvas shape = canvas_of(image, canvas, rows, columns);
  const float* from = canvas.data();
  float* to = image.mutable_data();
  positive(threads);
  const py::gil_scoped_release release;
  kernels().fold(from, shape, to, threads);
}

nst::Pictures pictures_of(const Floats& image, const char* name) {
  expect(image.ndim() == 4 && image.size() > 0, name);
  return {image.data(), image.shape(0), image.shape(1), image.shape(2), image.shape(3)};
}

void smooth(const Floats& image, const Floats& taps, float share, Floats result,
            const std::optional<Floats>& base, int threads) {
  const nst::Pictures pictures = pictures_of(image, "image");
  expect(taps.ndim() == 1 && taps.size() > 0, "taps");
  const nst::Gaussian gaussian{taps.data(), taps.size() - 1, share};
  const float* start = base ? in(*base, image.size(), "base") : nullptr;
  float* y = out(result, image.size(), "out");
  positive(threads);
  const py::gil_scoped_release release;
  kernels().smooth(pictures, gaussian, start, y, threads);
}

using PictureTerm = void (*)(const nst::Pictures&, const double*, float*, double*, int);

void picture_term(PictureTerm term, const Floats& image, const Doubles& weights, Floats gradient,
                  Doubles losses, int threads) {
  const nst::Pictures pictures = pictures_of(image, "image");
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
  m.doc() = "Kernels for features, pictures and optimisers; use them through nst_fast.kernels.";
  m.attr("__version__") = NST_VERSION;
  m.def("paths", &nst::paths);
  m.def("path", [] { return kernels().name; });
  m.def("use_path", &use_path, py::arg("name"));
  m.def("cpu_features", &nst::cpu_features);
  m.def("moments", &moments, a("features"), a("scales"), a("out"), a("pixel_weights"), py::arg("accumulate"),
        py::arg("threads"));
  m.def("pull_back", &pull_back, a("features"), a("derivative"), a("out"), a("pixel_weights"), a("content"),
        a("content_factors"), a("content_losses"), py::arg("threads"));
  m.def("content_pull_back", &content_pull_back, a("features"), a("content"), a("factors"), a("out"),
        a("losses"), a("pixel_weights"), py::arg("threads"));
  m.def("extend", &extend, a("image"), a("rows"), a("columns"), a("canvas"), py::arg("threads"));
  m.def("fold", &fold, a("canvas"), a("rows"), a("columns"), a("image"), py::arg("threads"));
  m.def("smooth", &smooth, a("image"), a("taps"), py::arg("share"), a("out"), a("base"), py::arg("threads"));
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
