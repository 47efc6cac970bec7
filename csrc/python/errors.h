// Exceptions of the core as Python knows them.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

#include "core/error.h"

namespace pqk::python {

// core's FormatError becomes pqk_ext.errors.FormatError, with the same five fields.
inline void translate_format_error(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const FormatError& error) {
    const pybind11::object type = pybind11::module_::import("pqk_ext.errors").attr("FormatError");
    const pybind11::object value = type(error.code, error.field, error.offset, error.expected, error.got);
    PyErr_SetObject(type.ptr(), value.ptr());
  }
}

}  // namespace pqk::python
