// The machine's ceilings, measured.
#include "core/int8_peak.h"

#include <string>

#include "python/gil.h"
#include "python/module.h"

namespace py = pybind11;

namespace pqk::python {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 32;

}  // namespace

void register_int8_peak(py::module_& module) {
  module.def(
      "int8_peak",
      [] {
        double peak = 0;
        without_gil([&] { peak = int8_peak(); });
        return peak;
      },
      "Int8 multiply-accumulates per second of the calling core with the instruction set in use, operands in "
      "registers; measured in some 30 ms.");
  module.def(
      "read_bandwidth",
      [](int64_t bytes) {
        if (bytes < 1 || bytes > kMaxBytes) {
          throw py::value_error("bytes must be from 1 to " + std::to_string(kMaxBytes) + ", got " +
                                std::to_string(bytes));
        }
        double bandwidth = 0;
        without_gil([&] { bandwidth = read_bandwidth(bytes); });
        return bandwidth;
      },
      py::arg("bytes"),
      "Bytes per second that the calling core reads from a buffer of that size (its size chooses the cache).");
}

}  // namespace pqk::python
