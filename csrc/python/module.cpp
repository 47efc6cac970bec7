// pqk_ext._core: the torch-free native part of the package, numpy in and numpy out.
#include "python/module.h"

#include "python/errors.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native codecs and inference engine of pqk_ext; needs no torch.";
  py::register_exception_translator(&pqk::python::translate_format_error);
  pqk::python::register_codec(module);
  pqk::python::register_csr(module);
  pqk::python::register_engine(module);
  pqk::python::register_int8_peak(module);
  pqk::python::register_isa(module);
}
