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

inline Conv2dShape linear_shape(int64_t rows, int64_t in_features, int64_t out_features) {
  Conv2dShape shape{};
  shape.in_channels = in_features, shape.out_channels = out_features;
  shape.in_height = shape.out_height = rows;
  shape.in_width = shape.out_width = 1;
  shape.kernel_height = shape.kernel_width = shape.stride_height = shape.stride_width = 1;
  shape.dilation_height = shape.dilation_width = shape.groups = 1;
  return shape;
}

}  // namespace pqk::torch_ops
