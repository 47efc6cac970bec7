// pqk_ext._core: the torch-free native part of the package, numpy in and numpy out.
#include "python/module.h"

#include "core/error.h"

namespace py = pybind11;

namespace {

// core's FormatError becomes pqk_ext.errors.FormatError, with the same five fields.
void translate_format_error(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const pqk::FormatError& error) {
    const py::object type = py::module_::import("pqk_ext.errors").attr("FormatError");
    const py::object value = type(error.code, error.field, error.offset, error.expected, error.got);
    PyErr_SetObject(type.ptr(), value.ptr());
  }
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native codecs and inference engine of pqk_ext; needs no torch.";
  py::register_exception_translator(&translate_format_error);
  pqk::python::register_codec(module);
  pqk::python::register_csr(module);
  pqk::python::register_engine(module);
  pqk::python::register_int8_peak(module);
  pqk::python::register_isa(module);
}
