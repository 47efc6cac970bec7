// The error of everything that reads bytes from outside: a stable code, the field at fault, where it lies, what
// was expected and what came. The bindings turn it into pqk_ext.FormatError.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pqk {

class __attribute__((visibility("default"))) FormatError : public std::runtime_error {
 public:
  FormatError(std::string code, std::string field, int64_t offset, std::string expected, std::string got)
      : std::runtime_error(field + ": expected " + expected + ", got " + got + " [" + code + "]"),
        code(std::move(code)),
        field(std::move(field)),
        offset(offset),
        expected(std::move(expected)),
        got(std::move(got)) {}

  const std::string code;
  const std::string field;
  const int64_t offset;  // in bytes within the section at fault, -1 where there is none
  const std::string expected;
  const std::string got;
};

}  // namespace pqk
