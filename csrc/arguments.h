// The arrays of one call, as they come from Python. Whatever the kernels rely on is checked here, once: type,
// shape, contiguity, alignment, a writable output, and no memory that an output shares. Arrays are never
// converted: a copy would hide a mistake and lose the output.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dispatch.h"

namespace nst {

namespace py = pybind11;

using Shape = std::vector<Index>;

constexpr int kMostThreads = 1024;

[[noreturn]] inline void refuse(const std::string& message) {
  py::set_error(py::module_::import("nst_fast.errors").attr("ShapeError"), message.c_str());
  throw py::error_already_set();
}

// As Python writes a tuple.
inline std::string text(const Shape& shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return out + (shape.size() == 1 ? ",)" : ")");
}

inline Shape shape_of(const py::array& array) { return Shape(array.shape(), array.shape() + array.ndim()); }

class Arguments {
 public:
  // The shape of an array that has as many axes as `axes` names, for instance "(N, C, P)", none of them
  // empty.
  static Shape shape(const char* name, const py::object& object, Index count, const char* axes) {
    Shape found;
    if (py::isinstance<py::array>(object)) found = shape_of(py::reinterpret_borrow<py::array>(object));
    bool fits = static_cast<Index>(found.size()) == count;
    for (const Index length : found) fits = fits && length > 0;
    if (!fits)
      refuse(std::string(name) + ": needs shape " + axes + ", none of them 0, not " + described(object));
    return found;
  }

  template <class T>
  const T* read(const char* name, const py::object& object, const Shape& shape) {
    return static_cast<const T*>(check<T>(name, object, shape, false));
  }

  template <class T>
  T* write(const char* name, const py::object& object, const Shape& shape) {
    return const_cast<T*>(static_cast<const T*>(check<T>(name, object, shape, true)));
  }

  // Calls body(kernels), without Python's lock, unless an output shares memory with another array.
  template <class Body>
  auto run(int threads, Body body) const {
    if (threads < 1 || threads > kMostThreads)
      refuse("threads: needs 1 to " + std::to_string(kMostThreads) + ", not " + std::to_string(threads));
    check_apart();
    const py::gil_scoped_release release;
    return body(kernels());
  }

 private:
  struct Span {
    const char* name;
    Shape shape;
    std::uintptr_t start, end;
    bool written;
  };

  static std::string described(const py::object& object) {
    if (py::isinstance<py::array>(object)) return text(shape_of(py::reinterpret_borrow<py::array>(object)));
    return py::str(py::type::of(object).attr("__name__"));
  }

  template <class T>
  const void* check(const char* name, const py::object& object, const Shape& shape, bool written) {
    const std::string needs = std::string(name) + ": needs ", wanted = text(shape);
    if (!py::isinstance<py::array>(object))
      refuse(needs + "a numpy array of shape " + wanted + ", not " + described(object));
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (shape_of(array) != shape || !py::isinstance<py::array_t<T>>(object))
      refuse(needs + "shape " + wanted + ' ' + std::string(py::str(py::dtype::of<T>())) + ", not " +
             described(object) + ' ' + std::string(py::str(array.dtype())));
    if ((array.flags() & py::array::c_style) == 0)
      refuse(needs + "C-contiguous memory for shape " + wanted +
             ", not gaps or another order; pass numpy.ascontiguousarray of it");
    const auto start = reinterpret_cast<std::uintptr_t>(array.data());
    if (start % alignof(T) != 0)
      refuse(needs + "memory that is aligned to its type for shape " + wanted + "; pass a copy of it");
    if (written && !array.writeable())
      refuse(std::string(name) + ": is written, but this array of shape " + wanted + " is read-only");
    spans_.push_back({name, shape, start, start + static_cast<std::uintptr_t>(array.nbytes()), written});
    return array.data();
  }

  // Contiguous arrays overlap exactly where their bounds do.
  void check_apart() const {
    for (const Span& out : spans_)
      for (const Span& other : spans_)
        if (out.written && &out != &other && out.start < other.end && other.start < out.end)
          refuse(std::string(out.name) + " of shape " + text(out.shape) + " shares memory with " +
                 other.name + " of shape " + text(other.shape) + "; give it its own array");
  }

  std::vector<Span> spans_;
};

}  // namespace nst
