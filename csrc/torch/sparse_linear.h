// Shapes of the linear layers whose weight is a CSR matrix, on any device.
#pragma once

#include "torch/sparse.h"

namespace pqk::torch_ops {

inline void check_sparse_input(const Tensor& input, const char* op) {
  STD_TORCH_CHECK(input.dim() >= 1, op, ": input must have at least 1 dimension, got shape ",
                  shape_string(input));
}

inline std::vector<int64_t> sparse_output_sizes(const Tensor& input, int64_t rows) {
  std::vector<int64_t> sizes(input.sizes().begin(), input.sizes().end());
  sizes.back() = rows;
  return sizes;
}

// A linear layer is a 1x1 convolution of 1x1 images.
inline Conv2dShape sparse_linear_shape(int64_t in_features, int64_t out_features) {
  Conv2dShape shape{};
  shape.in_channels = in_features;
  shape.out_channels = out_features;
  shape.in_height = shape.in_width = shape.out_height = shape.out_width = 1;
  shape.kernel_height = shape.kernel_width = shape.stride_height = shape.stride_width = 1;
  shape.dilation_height = shape.dilation_width = shape.groups = 1;
  return shape;
}

}  // namespace pqk::torch_ops
