// What callers give to engines and get from them: float32 arrays of samples.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

#include "core/engine/graph.h"

namespace pqk::python {

class Samples {
 public:
  Samples() = default;
  explicit Samples(const engine::Graph& graph);

  // Contiguous; a copy where the caller's array is not. Throws TypeError or ValueError for what is no input.
  pybind11::array checked_input(const pybind11::object& x) const;
  // The same for a profile, which needs a sample and a positive number of repeats.
  pybind11::array input_to_profile(const pybind11::object& x, int repeats) const;
  // `out`, checked, or a new array where it is None.
  pybind11::array output(const pybind11::object& out, pybind11::ssize_t batch) const;

 private:
  pybind11::array checked_output(const pybind11::object& out, pybind11::ssize_t batch) const;

  std::vector<pybind11::ssize_t> input_shape_, output_shape_;
};

// Throws ValueError for the flat index of a NaN, if it is one.
void check_no_nan(int64_t index);

}  // namespace pqk::python
