// The inference engine: a Graph of pqk_ext/runtime/graph.py in, arrays in and out.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <new>
#include <string_view>

#include "core/engine/execute.h"
#include "core/error.h"
#include "core/float_conv2d.h"
#include "python/gil.h"
#include "python/module.h"

namespace py = pybind11;

namespace pqk::python {
namespace {

using engine::Engine;
using engine::RawAttribute;
using engine::RawNode;
using engine::RawTensor;
using engine::RawValue;

std::string type_name(const py::handle& object) { return Py_TYPE(object.ptr())->tp_name; }

// --- the graph -----------------------------------------------------------------------------------------------

int64_t to_int(const py::handle& object, const std::string& field, const char* code) {
  if (!PyLong_Check(object.ptr()) || PyBool_Check(object.ptr())) {
    throw FormatError(code, field, -1, "an integer", type_name(object));
  }
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
  if (overflow != 0) throw FormatError(code, field, -1, "an integer of 64 bits", "a larger one");
  return value;
}

std::vector<int64_t> to_ints(const py::handle& object, const std::string& field, const char* code) {
  if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) {
    throw FormatError(code, field, -1, "a list of integers", type_name(object));
  }
  std::vector<int64_t> values;
  for (const py::handle item : object) {
    values.push_back(to_int(item, field + "[" + std::to_string(values.size()) + "]", code));
  }
  return values;
}

RawAttribute to_attribute(const py::handle& object, const std::string& field) {
  if (PyFloat_Check(object.ptr())) return PyFloat_AS_DOUBLE(object.ptr());
  if (PyLong_Check(object.ptr())) return to_int(object, field, "E_GRAPH_ATTR");
  if (PyUnicode_Check(object.ptr())) return object.cast<std::string>();
  return to_ints(object, field, "E_GRAPH_ATTR");
}

RawValue to_value(const py::handle& object, const std::string& field) {
  RawValue value;
  value.shape = to_ints(object.attr("shape"), field + ".shape", "E_GRAPH_SHAPE");
  value.dtype = object.attr("dtype").cast<std::string>();
  const py::object scale = object.attr("scale"), zero_point = object.attr("zero_point");
  value.has_scale = !scale.is_none();
  value.has_zero_point = !zero_point.is_none();
  if (value.has_scale) {
    if (!PyFloat_Check(scale.ptr())) {
      throw FormatError("E_QPARAM", field + ".scale", -1, "a real number", type_name(scale));
    }
    value.scale = PyFloat_AS_DOUBLE(scale.ptr());
  }
  if (value.has_zero_point) value.zero_point = to_int(zero_point, field + ".zero_point", "E_QPARAM");
  return value;
}

// `kept` keeps the contiguous copies alive, where the arrays given are none.
RawTensor to_tensor(const py::handle& object, const std::string& field, std::vector<py::array>& kept) {
  if (!py::isinstance<py::array>(object)) {
    throw FormatError("E_GRAPH_ATTR", field, -1, "a numpy array", type_name(object));
  }
  const py::array array = py::array::ensure(object, py::array::c_style);
  kept.push_back(array);
  RawTensor tensor;
  const py::dtype dtype = array.dtype();
  if (dtype.is(py::dtype::of<int8_t>())) {
    tensor.dtype = "i8";
  } else if (dtype.is(py::dtype::of<uint8_t>())) {
    tensor.dtype = "u8";
  } else if (dtype.is(py::dtype::of<float>())) {
    tensor.dtype = "f32";
  } else {
    tensor.dtype = py::str(dtype);
  }
  tensor.shape.assign(array.shape(), array.shape() + array.ndim());
  tensor.data = array.data();
  return tensor;
}

using CodedWeights = std::map<size_t, std::pair<std::string, py::bytes>>;

RawNode to_node(const py::handle& object, size_t index, std::vector<py::array>& kept) {
  RawNode node;
  node.op = object.attr("op").cast<std::string>();
  node.name = object.attr("name").cast<std::string>();
  const std::string label = engine::node_label(index, node.name);
  node.inputs = to_ints(object.attr("inputs"), label + ".inputs", "E_GRAPH_REF");
  node.value = to_value(object.attr("value"), label + ".value");
  for (const auto& [key, value] : py::dict(object.attr("attributes"))) {
    const std::string name = key.cast<std::string>();
    node.attributes.emplace(name, to_attribute(value, label + "." + name));
  }
  for (const auto& [key, value] : py::dict(object.attr("tensors"))) {
    const std::string name = key.cast<std::string>();
    node.tensors.emplace(name, to_tensor(value, label + ".tensors." + name, kept));
  }
  return node;
}

// --- the engine ----------------------------------------------------------------------------------------------

std::string shape_text(const std::vector<py::ssize_t>& shape, bool with_batch) {
  std::string text = with_batch ? "(N, " : "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text.append(", ");
    text.append(std::to_string(shape[i]));
  }
  return text.append(shape.size() == 1 && !with_batch ? ",)" : ")");
}

class PyEngine {
 public:
  PyEngine(const py::object& graph, int num_threads, int64_t max_activation_bytes,
           const engine::KernelChoices& kernels, const engine::KernelTable& kernel_table, bool measure,
           const CodedWeights& coded)
      : coded_(coded) {
    check_num_threads(num_threads);
    if (max_activation_bytes < 1) {
      throw py::value_error("max_activation_bytes must be positive, got " +
                            std::to_string(max_activation_bytes));
    }
    std::vector<py::array> kept;
    engine::Graph checked(to_value(graph.attr("input"), "input"), {max_activation_bytes});
    size_t index = 0;
    for (const py::handle node : graph.attr("nodes")) {
      RawNode raw = to_node(node, index, kept);
      if (const auto payload = coded_.find(index); payload != coded_.end()) {
        raw.coded_weight = coded_payload(payload->second.first, payload->second.second);
      }
      checked.add(raw);
      ++index;
    }
    checked.finish();
    input_shape_ = shape_of(checked.input(), checked.sequence());
    output_shape_ = shape_of(checked.output(), checked.sequence());
    without_gil([&] {
      engine_ =
          std::make_unique<Engine>(checked, num_threads, engine::KernelOptions{kernels, kernel_table, measure});
    });
  }

  py::array run(const py::object& x, const py::object& out) const {
    const py::array input = checked_input(x);
    const py::ssize_t batch = input.shape(0);
    py::array output = out.is_none() ? new_output(batch) : checked_output(out, batch);
    const float* from = static_cast<const float*>(input.data());
    float* to = static_cast<float*>(output.mutable_data());
    int64_t nan = -1;
    without_gil([&] { nan = engine_->run(from, to, batch); });
    if (nan >= 0)
      throw py::value_error("x must not contain NaN, found one at flat index " + std::to_string(nan));
    return output;
  }

  std::vector<std::tuple<std::string, std::string, double>> profile(const py::object& x, int repeats) const {
    const py::array input = checked_input(x);
    if (input.shape(0) < 1) throw py::value_error("profile needs at least one image");
    if (repeats < 1) throw py::value_error("repeats must be positive, got " + std::to_string(repeats));
    const float* from = static_cast<const float*>(input.data());
    std::vector<double> seconds;
    without_gil([&] { seconds = engine_->profile(from, repeats); });
    std::vector<std::tuple<std::string, std::string, double>> result;
    for (size_t i = 0; i < seconds.size(); ++i) {
      result.emplace_back(engine_->plan().infos()[i].node, engine_->plan().infos()[i].kernel, seconds[i]);
    }
    return result;
  }

  std::vector<std::pair<std::string, std::string>> kernels() const {
    std::vector<std::pair<std::string, std::string>> result;
    for (const engine::StepInfo& info : engine_->plan().infos()) result.emplace_back(info.node, info.kernel);
    return result;
  }

  const Engine& engine() const { return *engine_; }

 private:
  static engine::CodedPayload coded_payload(const std::string& codec, const py::bytes& bytes) {
    const std::string_view view = bytes;
    return {codec, {reinterpret_cast<const uint8_t*>(view.data()), static_cast<int64_t>(view.size())}};
  }

  static std::vector<py::ssize_t> shape_of(const engine::Value& value, bool sequence) {
    if (value.rank == 1) return {value.channels};
    if (sequence) return {value.channels, value.width};
    return {value.channels, value.height, value.width};
  }

  bool has_shape(const py::array& array, const std::vector<py::ssize_t>& shape) const {
    return array.ndim() == static_cast<py::ssize_t>(shape.size()) + 1 &&
           std::equal(shape.begin(), shape.end(), array.shape() + 1);
  }

  static void require_float32(const py::object& object, const char* name) {
    if (!py::isinstance<py::array>(object)) {
      throw py::type_error(std::string(name) + " must be a numpy array of float32, got " + type_name(object));
    }
    const py::dtype dtype = py::reinterpret_borrow<py::array>(object).dtype();
    if (dtype.is(py::dtype::of<float>()) || dtype.equal(py::dtype::of<float>())) return;
    throw py::type_error(std::string(name) + " must be float32, got " + std::string(py::str(dtype)));
  }

  // Contiguous; a copy where the caller's array is not.
  py::array checked_input(const py::object& x) const {
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

  py::array checked_output(const py::object& out, py::ssize_t batch) const {
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

  py::array new_output(py::ssize_t batch) const {
    std::vector<py::ssize_t> shape{batch};
    shape.insert(shape.end(), output_shape_.begin(), output_shape_.end());
    return py::array_t<float>(shape);
  }

  CodedWeights coded_;  // whose bytes the engine reads
  std::unique_ptr<Engine> engine_;
  std::vector<py::ssize_t> input_shape_, output_shape_;
};

}  // namespace

void register_engine(py::module_& module) {
  module.def(
      "conv2d_kernels",
      [] {
        std::vector<std::string> names;
        for (const Conv2dKernel& kernel : conv2d_kernels()) names.emplace_back(kernel.name);
        return names;
      },
      "Names of the kernels for convolutions and linear layers.");
  module.def(
      "float_conv2d_kernels",
      [] {
        std::vector<std::string> names;
        for (const FloatConv2dKernel& kernel : float_conv2d_kernels()) names.emplace_back(kernel.name);
        return names;
      },
      "The same for float codebooks.");
  py::class_<PyEngine>(module, "Engine", "A graph made ready to run; see pqk_ext.runtime.Model.")
      .def(py::init<const py::object&, int, int64_t, const engine::KernelChoices&, const engine::KernelTable&,
                    bool, const CodedWeights&>(),
           py::arg("graph"), py::kw_only(), py::arg("num_threads"), py::arg("max_activation_bytes"),
           py::arg("kernels") = engine::KernelChoices{}, py::arg("kernel_table") = engine::KernelTable{},
           py::arg("measure") = false, py::arg("coded") = CodedWeights{})
      .def("run", &PyEngine::run, py::arg("x"), py::arg("out") = py::none(),
           "Outputs for a float32 array (N, *input shape), with the GIL released.")
      .def("profile", &PyEngine::profile, py::arg("x"), py::arg("repeats"),
           "(node, kernel, least seconds) of every step for the first image, on one thread.")
      .def_property_readonly("kernels", &PyEngine::kernels, "(node, kernel) of every step.")
      .def_property_readonly(
          "measured", [](const PyEngine& self) { return self.engine().plan().measured(); },
          "Seconds by layer and kernel, of layers that kernel_table lacked.")
      .def_property_readonly("isa", [](const PyEngine& self) { return self.engine().plan().isa(); })
      .def_property_readonly("num_threads", [](const PyEngine& self) { return self.engine().num_threads(); })
      .def_property_readonly("weight_bytes",
                             [](const PyEngine& self) { return self.engine().plan().weight_bytes(); })
      .def_property_readonly("activation_bytes",
                             [](const PyEngine& self) { return self.engine().plan().arena_bytes(); });
}

}  // namespace pqk::python
