// Each file of this folder binds one topic and is listed in module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace pqk::python {

void register_codec(pybind11::module_& module);
void register_csr(pybind11::module_& module);
void register_engine(pybind11::module_& module);
void register_int8_peak(pybind11::module_& module);
void register_isa(pybind11::module_& module);

}  // namespace pqk::python
