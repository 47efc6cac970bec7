// Each file of this folder binds one topic and is listed in module.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace pqk::python {

// Throws ValueError for a number of threads that cannot be had.
inline void check_num_threads(int num_threads) {
  constexpr int kMaxThreads = 1024;
  if (num_threads >= 1 && num_threads <= kMaxThreads) return;
  throw pybind11::value_error("num_threads must be from 1 to " + std::to_string(kMaxThreads) + ", got " +
                              std::to_string(num_threads));
}

void register_codec(pybind11::module_& module);
void register_csr(pybind11::module_& module);
void register_engine(pybind11::module_& module);
void register_int8_peak(pybind11::module_& module);
void register_isa(pybind11::module_& module);

}  // namespace pqk::python
