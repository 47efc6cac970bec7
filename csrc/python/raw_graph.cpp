// From the Python objects of pqk_ext/runtime/graph.py to a checked graph.
#include "python/raw_graph.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string_view>

#include "core/error.h"

namespace py = pybind11;

namespace pqk::python {
namespace {

using engine::RawAttribute;
using engine::RawNode;
using engine::RawTensor;
using engine::RawValue;

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

engine::CodedPayload coded_payload(const std::string& codec, const py::bytes& bytes) {
  const std::string_view view = bytes;
  return {codec, {reinterpret_cast<const uint8_t*>(view.data()), static_cast<int64_t>(view.size())}};
}

}  // namespace

std::string type_name(const py::handle& object) { return Py_TYPE(object.ptr())->tp_name; }

engine::Graph checked_graph(const py::object& graph, int64_t max_activation_bytes, const CodedWeights& coded,
                            std::vector<py::array>& kept) {
  if (max_activation_bytes < 1) {
    throw py::value_error("max_activation_bytes must be positive, got " + std::to_string(max_activation_bytes));
  }
  engine::Graph checked(to_value(graph.attr("input"), "input"), {max_activation_bytes});
  size_t index = 0;
  for (const py::handle node : graph.attr("nodes")) {
    RawNode raw = to_node(node, index, kept);
    if (const auto payload = coded.find(index); payload != coded.end()) {
      raw.coded_weight = coded_payload(payload->second.first, payload->second.second);
    }
    checked.add(raw);
    ++index;
  }
  checked.finish();
  return checked;
}

}  // namespace pqk::python
