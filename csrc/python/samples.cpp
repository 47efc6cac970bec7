#include "python/samples.h"

#include <algorithm>
#include <string>

#include "python/raw_graph.h"

namespace py = pybind11;

namespace pqk::python {
namespace {

std::string shape_text(const std::vector<py::ssize_t>& shape, bool with_batch) {
  std::string text = with_batch ? "(N, " : "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text.append(", ");
    text.append(std::to_string(shape[i]));
  }
  return text.append(shape.size() == 1 && !with_batch ? ",)" : ")");
}

std::vector<py::ssize_t> shape_of(const engine::Value& value, bool sequence) {
  if (value.rank == 1) return {value.channels};
  if (sequence) return {value.channels, value.width};
  return {value.channels, value.height, value.width};
}

bool has_shape(const py::array& array, const std::vector<py::ssize_t>& shape) {
  return array.ndim() == static_cast<py::ssize_t>(shape.size()) + 1 &&
         std::equal(shape.begin(), shape.end(), array.shape() + 1);
}

void require_float32(const py::object& object, const char* name) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(name) + " must be a numpy array of float32, got " + type_name(object));
  }
  const py::dtype dtype = py::reinterpret_borrow<py::array>(object).dtype();
  if (dtype.is(py::dtype::of<float>()) || dtype.equal(py::dtype::of<float>())) return;
  throw py::type_error(std::string(name) + " must be float32, got " + std::string(py::str(dtype)));
}

}  // namespace

Samples::Samples(const engine::Graph& graph)
    : input_shape_(shape_of(graph.input(), graph.sequence())),
      output_shape_(shape_of(graph.output(), graph.sequence())) {}

py::array Samples::checked_input(const py::object& x) const {
  require_float32(x, "x");
  const py::array array = py::reinterpret_borrow<py::array>(x);
  if (!has_shape(array, input_shape_)) {
    throw py::value_error("x must have shape " + shape_text(input_shape_, true) + ", got " +
                          shape_text({array.shape(), array.shape() + array.ndim()}, false));
  }
  const bool aligned = reinterpret_cast<uintptr_t>(array.data()) % alignof(float) == 0;
  if ((array.flags() & py::array::c_style) != 0 && aligned) return array;
  return array.attr("copy")("C");
}

py::array Samples::checked_output(const py::object& out, py::ssize_t batch) const {
  require_float32(out, "out");
  const py::array array = py::reinterpret_borrow<py::array>(out);
  if (!has_shape(array, output_shape_) || array.shape(0) != batch) {
    std::vector<py::ssize_t> wanted{batch};
    wanted.insert(wanted.end(), output_shape_.begin(), output_shape_.end());
    throw py::value_error("out must have shape " + shape_text(wanted, false) + ", got " +
                          shape_text({array.shape(), array.shape() + array.ndim()}, false));
  }
  const bool aligned = reinterpret_cast<uintptr_t>(array.data()) % alignof(float) == 0;
  if ((array.flags() & py::array::c_style) == 0 || !array.writeable() || !aligned) {
    throw py::value_error("out must be contiguous, aligned and writeable");
  }
  return array;
}

py::array Samples::output(const py::object& out, py::ssize_t batch) const {
  if (!out.is_none()) return checked_output(out, batch);
  std::vector<py::ssize_t> shape{batch};
  shape.insert(shape.end(), output_shape_.begin(), output_shape_.end());
  return py::array_t<float>(shape);
}

py::array Samples::input_to_profile(const py::object& x, int repeats) const {
  py::array input = checked_input(x);
  if (input.shape(0) < 1) throw py::value_error("profile needs at least one image");
  if (repeats < 1) throw py::value_error("repeats must be positive, got " + std::to_string(repeats));
  return input;
}

void check_no_nan(int64_t index) {
  if (index < 0) return;
  throw py::value_error("x must not contain NaN, found one at flat index " + std::to_string(index));
}

}  // namespace pqk::python
