// The kernels as functions of Python. What their arguments mean is documented in nst_fast/kernels; that they
// fit is checked by Arguments.
#include <pybind11/stl.h>

#include <string>

#include "arguments.h"

namespace py = pybind11;
using nst::Arguments;
using nst::Index;
using nst::Kernels;
using nst::refuse;
using nst::Shape;
using nst::text;

namespace {

nst::Features features_of(Arguments& call, const py::object& features, const py::object& weights) {
  const Shape shape = Arguments::shape("features", features, 3, "(N, C, P)");
  nst::Features f{call.read<float>("features", features, shape), shape[0], shape[1], shape[2], nullptr, 0};
  if (weights.is_none()) return f;
  const bool each =
      py::isinstance<py::array>(weights) && py::reinterpret_borrow<py::array>(weights).ndim() != 1;
  f.weights = call.read<float>("pixel_weights", weights, each ? Shape{f.images, f.pixels} : Shape{f.pixels});
  f.weights_stride = each ? f.pixels : 0;
  return f;
}

Shape map_of(const nst::Features& f) { return {f.images, f.channels, f.pixels}; }

void moments(const py::object& features, const py::object& normalizers, const py::object& out,
             const py::object& pixel_weights, bool accumulate, int threads) {
  Arguments call;
  const nst::Features f = features_of(call, features, pixel_weights);
  const auto* s = call.read<double>("normalizers", normalizers, {f.images});
  auto* m = call.write<float>("out", out, {f.images, f.channels + 1, f.channels + 1});
  call.run(threads, [&](const Kernels& k) { k.moments(f, s, m, accumulate, threads); });
}

void pull_back(const py::object& features, const py::object& derivative, const py::object& out,
               const py::object& pixel_weights, const py::object& content, const py::object& content_factors,
               const py::object& content_losses, bool accumulate, int threads) {
  Arguments call;
  const nst::Features f = features_of(call, features, pixel_weights);
  const auto* d = call.read<float>("derivative", derivative, {f.images, f.channels, f.channels + 1});
  auto* gradient = call.write<float>("out", out, map_of(f));
  if (content.is_none() != content_factors.is_none() || content.is_none() != content_losses.is_none())
    refuse("content, content_factors and content_losses must be given together");
  nst::Content term{};
  if (!content.is_none())
    term = {call.read<float>("content", content, map_of(f)),
            call.read<double>("content_factors", content_factors, {f.images}),
            call.write<double>("content_losses", content_losses, {f.images})};
  call.run(threads, [&](const Kernels& k) { k.pull_back(f, d, term, gradient, accumulate, threads); });
}

void content_pull_back(const py::object& features, const py::object& content, const py::object& factors,
                       const py::object& out, const py::object& losses, const py::object& pixel_weights,
                       bool accumulate, int threads) {
  Arguments call;
  const nst::Features f = features_of(call, features, pixel_weights);
  const nst::Content term{call.read<float>("content", content, map_of(f)),
                          call.read<double>("factors", factors, {f.images}),
                          call.write<double>("losses", losses, {f.images})};
  auto* gradient = call.write<float>("out", out, map_of(f));
  call.run(threads, [&](const Kernels& k) { k.content_pull_back(f, term, gradient, accumulate, threads); });
}

// Which rows or columns of the image, axis 2 or 3 of it, those of a canvas show.
const std::int32_t* table_of(Arguments& call, const char* name, const py::object& table, Index length,
                             const Shape& image, int axis) {
  const auto* values = call.read<std::int32_t>(name, table, {length});
  for (Index i = 0; i < length; ++i)
    if (values[i] < 0 || values[i] >= image[axis])
      refuse(std::string(name) + ": needs values from 0 to " + std::to_string(image[axis] - 1) +
             " for an image of shape " + text(image) + ", not " + std::to_string(values[i]));
  return values;
}

// Pictures and what shows them.
struct Shown {
  Shape image, canvas;
  nst::Canvas sizes;
};

Shown shown_by(Arguments& call, const py::object& image, const py::object& canvas, const py::object& rows,
               const py::object& columns) {
  const Shape from = Arguments::shape("image", image, 4, "(N, C, H, W)");
  const Shape to = Arguments::shape("canvas", canvas, 4, "(N, C, H, W)");
  return {from,
          {from[0], from[1], to[2], to[3]},
          {from[0] * from[1], from[2], from[3], to[2], to[3], table_of(call, "rows", rows, to[2], from, 2),
           table_of(call, "columns", columns, to[3], from, 3)}};
}

void extend(const py::object& image, const py::object& rows, const py::object& columns,
            const py::object& canvas, int threads) {
  Arguments call;
  const Shown shown = shown_by(call, image, canvas, rows, columns);
  const auto* from = call.read<float>("image", image, shown.image);
  auto* to = call.write<float>("canvas", canvas, shown.canvas);
  call.run(threads, [&](const Kernels& k) { k.extend(from, shown.sizes, to, threads); });
}

void fold(const py::object& canvas, const py::object& rows, const py::object& columns,
          const py::object& image, int threads) {
  Arguments call;
  const Shown shown = shown_by(call, image, canvas, rows, columns);
  const auto* from = call.read<float>("canvas", canvas, shown.canvas);
  auto* to = call.write<float>("image", image, shown.image);
  call.run(threads, [&](const Kernels& k) { k.fold(from, shown.sizes, to, threads); });
}

struct Image {
  Shape shape;
  nst::Pictures pictures;
};

Image image_of(Arguments& call, const py::object& image) {
  const Shape shape = Arguments::shape("image", image, 4, "(N, C, H, W)");
  return {shape, {call.read<float>("image", image, shape), shape[0], shape[1], shape[2], shape[3]}};
}

void smooth(const py::object& image, const py::object& taps, const py::object& out, float share,
            const py::object& base, int threads) {
  Arguments call;
  const Image u = image_of(call, image);
  const Shape line = Arguments::shape("taps", taps, 1, "(r + 1,)");
  const nst::Gaussian gaussian{call.read<float>("taps", taps, line), line[0] - 1, share};
  const float* start = base.is_none() ? nullptr : call.read<float>("base", base, u.shape);
  auto* smoothed = call.write<float>("out", out, u.shape);
  call.run(threads, [&](const Kernels& k) { k.smooth(u.pictures, gaussian, start, smoothed, threads); });
}

void total_variation(const py::object& image, float corner, const py::object& weights,
                     const py::object& gradient, const py::object& losses, int threads) {
  Arguments call;
  if (!(corner > 0)) refuse("corner: needs a number above 0, not " + std::to_string(corner));
  const Image x = image_of(call, image);
  const auto* w = call.read<double>("weights", weights, {x.shape[0]});
  auto* g = call.write<float>("gradient", gradient, x.shape);
  auto* l = call.write<double>("losses", losses, {x.shape[0]});
  call.run(threads, [&](const Kernels& k) { k.total_variation(x.pictures, corner, w, g, l, threads); });
}

void range_penalty(const py::object& image, const py::object& weights, const py::object& gradient,
                   const py::object& losses, int threads) {
  Arguments call;
  const Image x = image_of(call, image);
  const auto* w = call.read<double>("weights", weights, {x.shape[0]});
  auto* g = call.write<float>("gradient", gradient, x.shape);
  auto* l = call.write<double>("losses", losses, {x.shape[0]});
  call.run(threads, [&](const Kernels& k) { k.range_penalty(x.pictures, w, g, l, threads); });
}

void temporal_loss(const py::object& image, const py::object& anchor, const py::object& pixel_weights,
                   const py::object& weights, const py::object& gradient, const py::object& losses,
                   int threads) {
  Arguments call;
  const Image x = image_of(call, image);
  const nst::Anchor near{
      call.read<float>("anchor", anchor, x.shape),
      call.read<float>("pixel_weights", pixel_weights, {x.shape[0], x.shape[2], x.shape[3]})};
  const auto* w = call.read<double>("weights", weights, {x.shape[0]});
  auto* g = call.write<float>("gradient", gradient, x.shape);
  auto* l = call.write<double>("losses", losses, {x.shape[0]});
  call.run(threads, [&](const Kernels& k) { k.temporal_loss(x.pictures, near, w, g, l, threads); });
}

Index length_of(const py::object& x) { return Arguments::shape("x", x, 1, "(D,)")[0]; }

// The rows of a history, (2m, D).
Index rows_of(const py::object& history) {
  const Shape shape = Arguments::shape("history", history, 2, "(2m, D)");
  if (shape[0] % 2 != 0) refuse("history: needs shape (2m, D), not " + text(shape));
  return shape[0];
}

void lbfgs_update(const py::object& x, const py::object& x_prev, const py::object& gradient,
                  const py::object& gradient_prev, const py::object& history, Index slot, Index count,
                  const py::object& dots, int threads) {
  Arguments call;
  const Index size = length_of(x), rows = rows_of(history), memory = rows / 2;
  if (slot < 0 || slot >= count || count > memory)
    refuse("slot " + std::to_string(slot) + " and count " + std::to_string(count) +
           ": need 0 <= slot < count <= " + std::to_string(memory) + ", the pairs");
  const nst::Lbfgs state{call.read<float>("x", x, {size}),
                         call.write<float>("x_prev", x_prev, {size}),
                         call.read<float>("gradient", gradient, {size}),
                         call.write<float>("gradient_prev", gradient_prev, {size}),
                         call.write<std::uint16_t>("history", history, {rows, size}),
                         size,
                         memory,
                         slot,
                         count,
                         call.write<double>("dots", dots, {3, rows + 1})};
  call.run(threads, [&](const Kernels& k) { k.lbfgs_update(state, threads); });
}

void lbfgs_direction(const py::object& history, const py::object& coefficients, const py::object& gradient,
                     const py::object& x_prev, const py::object& x, double gradient_coefficient,
                     int threads) {
  Arguments call;
  const Index size = length_of(x), rows = rows_of(history);
  const auto* h = call.read<std::uint16_t>("history", history, {rows, size});
  const auto* c = call.read<double>("coefficients", coefficients, {rows});
  const auto* g = call.read<float>("gradient", gradient, {size});
  const auto* from = call.read<float>("x_prev", x_prev, {size});
  auto* to = call.write<float>("x", x, {size});
  call.run(threads, [&](const Kernels& k) {
    k.lbfgs_direction(h, c, rows, g, gradient_coefficient, from, to, size, threads);
  });
}

void retract(const py::object& x, const py::object& x_prev, float ratio, int threads) {
  Arguments call;
  const Index size = length_of(x);
  const auto* from = call.read<float>("x_prev", x_prev, {size});
  auto* to = call.write<float>("x", x, {size});
  call.run(threads, [&](const Kernels& k) { k.retract(to, from, ratio, size, threads); });
}

double adam_update(const py::object& x, const py::object& gradient, const py::object& m, const py::object& v,
                   float beta1, float beta2, float step, float root_scale, float epsilon, float low,
                   float high, int threads) {
  Arguments call;
  const Index size = length_of(x);
  const nst::Adam state{call.write<float>("x", x, {size}),
                        call.write<float>("m", m, {size}),
                        call.write<float>("v", v, {size}),
                        call.read<float>("gradient", gradient, {size}),
                        size,
                        beta1,
                        beta2,
                        step,
                        root_scale,
                        epsilon,
                        low,
                        high};
  return call.run(threads, [&](const Kernels& k) { return k.adam_update(state, threads); });
}

void clamp(const py::object& x, float low, float high, int threads) {
  Arguments call;
  const Shape shape =
      py::isinstance<py::array>(x) ? nst::shape_of(py::reinterpret_borrow<py::array>(x)) : Shape{};
  auto* values = call.write<float>("x", x, shape);
  Index size = 1;
  for (const Index length : shape) size *= length;
  call.run(threads, [&](const Kernels& k) { k.clamp(values, low, high, size, threads); });
}

void use_path(const std::string& name) {
  if (!nst::use_path(name)) throw std::invalid_argument("no kernel path '" + name + "' on this machine");
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Kernels for features, pictures and optimisers; use them through nst_fast.kernels.";
  m.attr("__version__") = NST_VERSION;
  m.def("paths", &nst::paths);
  m.def("path", [] { return nst::kernels().name; });
  m.def("use_path", &use_path);
  m.def("cpu_features", &nst::cpu_features);
  m.def("moments", &moments);
  m.def("pull_back", &pull_back);
  m.def("content_pull_back", &content_pull_back);
  m.def("extend", &extend);
  m.def("fold", &fold);
  m.def("smooth", &smooth);
  m.def("total_variation", &total_variation);
  m.def("range_penalty", &range_penalty);
  m.def("temporal_loss", &temporal_loss);
  m.def("lbfgs_update", &lbfgs_update);
  m.def("lbfgs_direction", &lbfgs_direction);
  m.def("retract", &retract);
  m.def("adam_update", &adam_update);
  m.def("clamp", &clamp);
}
