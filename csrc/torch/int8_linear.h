// Argument checks of int8_linear on any device, and what its arguments are to a convolution.
#pragma once

#include "torch/int8_arguments.h"

namespace pqk::torch_ops {

inline void check_linear(const Tensor& input, const Tensor& weight, const char* op) {
  check_dtype(input, ScalarType::Byte, op, "input");
  check_dtype(weight, ScalarType::Char, op, "weight");
  STD_TORCH_CHECK(input.dim() >= 1, op, ": input must have at least 1 dimension, got none");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == input.size(input.dim() - 1), op,
                  ": weight must have shape [O, ", input.size(input.dim() - 1), "], got ",
                  shape_string(weight));
  check_fan_in(weight.size(1), op);
}

// (rows, features), contiguous, as an image of one column: every row is one output row of a 1x1 convolution.
inline StridedCodes as_column(const Tensor& codes, int64_t features) {
  return {codes.const_data_ptr<uint8_t>(), 0, 1, features, features};
}

}  // namespace pqk::torch_ops
