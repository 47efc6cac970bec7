// What callers give to engines and get from them: float32 arrays of samples.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

#include "core/engine/graph.h"
#include "python/gil.h"

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
  // What an engine makes of `x`, in `out` or in a new array, with the GIL released.
  template <class Engine>
  pybind11::array run(const Engine& engine, const pybind11::object& x, const pybind11::object& out) const;

 private:
  pybind11::array checked_output(const pybind11::object& out, pybind11::ssize_t batch) const;

  std::vector<pybind11::ssize_t> input_shape_, output_shape_;
};

// Throws ValueError for the flat index of a NaN, if it is one.
void check_no_nan(int64_t index);

template <class Engine>
pybind11::array Samples::run(const Engine& engine, const pybind11::object& x,
                             const pybind11::object& out) const {
  const pybind11::array input = checked_input(x);
  const pybind11::ssize_t batch = input.shape(0);
  pybind11::array result = output(out, batch);
  const float* from = static_cast<const float*>(input.data());
  float* to = static_cast<float*>(result.mutable_data());
  int64_t nan = -1;
  without_gil([&] { nan = engine.run(from, to, batch); });
  check_no_nan(nan);
  return result;
}

}  // namespace pqk::python
