#include "core/csr.h"

#include <pybind11/numpy.h>

#include "python/gil.h"
#include "python/module.h"

namespace py = pybind11;

namespace pqk::python {
namespace {

template <class Value>
using Array = py::array_t<Value, py::array::c_style>;

template <class Value>
Array<Value> to_array(const std::vector<Value>& values) {
  return Array<Value>(static_cast<py::ssize_t>(values.size()), values.data());
}

void check_dim(const py::array& array, py::ssize_t dim, const char* name) {
  if (array.ndim() == dim) return;
  throw py::value_error(std::string(name) + " must have " + std::to_string(dim) + " dimension(s), got " +
                        std::to_string(array.ndim()));
}

template <class Value>
py::tuple from_dense(const Array<Value>& dense) {
  check_dim(dense, 2, "dense");
  CsrMatrix<Value> csr;
  without_gil([&] { csr = csr_from_dense(dense.data(), dense.shape(0), dense.shape(1)); });
  return py::make_tuple(to_array(csr.crow_indices), to_array(csr.col_indices), to_array(csr.values));
}

template <class Value>
Array<Value> to_dense(const Array<int32_t>& crow_indices, const Array<int32_t>& col_indices,
                      const Array<Value>& values, int64_t cols, int64_t max_bytes) {
  check_dim(crow_indices, 1, "crow_indices");
  check_dim(col_indices, 1, "col_indices");
  check_dim(values, 1, "values");
  if (cols < 0) throw py::value_error("cols must not be negative, got " + std::to_string(cols));
  const int64_t rows = crow_indices.size() - 1;
  validate_csr({crow_indices.data(), crow_indices.size(), col_indices.data(), col_indices.size(), values.size(),
                std::max<int64_t>(rows, 0), cols});
  const int64_t most = std::max<int64_t>(max_bytes, 0) / static_cast<int64_t>(sizeof(Value));
  if (cols > 0 && rows > most / cols) {
    throw FormatError("E_BOMB", "crow_indices", -1,
                      "a dense matrix of at most " + std::to_string(max_bytes) + " bytes",
                      std::to_string(rows) + " x " + std::to_string(cols) + " values of " +
                          std::to_string(sizeof(Value)) + " bytes");
  }
  Array<Value> dense({rows, cols});
  csr_to_dense(crow_indices.data(), col_indices.data(), values.data(), rows, cols, dense.mutable_data());
  return dense;
}

template <class Value>
void register_value(py::module_& module) {
  module.def(
      "csr_from_dense", &from_dense<Value>, py::arg("dense").noconvert(),
      "(crow_indices, col_indices, values) of the non-zeros of a 2-d C-contiguous int8 or float32 array.");
  module.def(
      "csr_to_dense", &to_dense<Value>, py::arg("crow_indices").noconvert(), py::arg("col_indices").noconvert(),
      py::arg("values").noconvert(), py::arg("cols"), py::arg("max_bytes") = int64_t{1} << 31,
      "The dense 2-d array; FormatError where the indices are not a valid matrix or it would be too large.");
}

}  // namespace

void register_csr(py::module_& module) {
  register_value<int8_t>(module);
  register_value<float>(module);
}

}  // namespace pqk::python
