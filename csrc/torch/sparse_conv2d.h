// Shapes of the convolutions whose weight is a CSR matrix, on any device.
#pragma once

#include "torch/sparse.h"

namespace pqk::torch_ops {

struct SparseConvArguments {
  std::vector<int64_t> kernel_size, stride, padding, dilation;  // padding: top, left, bottom, right
  int64_t groups;
};

inline void check_list(const std::vector<int64_t>& list, size_t length, int64_t least, const char* op,
                       const char* name) {
  STD_TORCH_CHECK(list.size() == length, op, ": ", name, " must have ", length, " elements, got ", list.size());
  for (const int64_t value : list) {
    STD_TORCH_CHECK(value >= least && value <= INT32_MAX, op, ": ", name, " must be in [", least, ", ",
                    INT32_MAX, "], got ", value);
  }
}

// Of a padded axis; 0 or less where the kernel does not fit.
inline int64_t output_length(int64_t length, int64_t kernel, int64_t stride, int64_t dilation) {
  return (length - dilation * (kernel - 1) - 1) / stride + 1;
}

// Everything but the weight; in_channels / groups * KH * KW is its number of columns.
inline Conv2dShape check_sparse_shape(const Tensor& input, const SparseConvArguments& conv, int64_t rows,
                                      const char* op) {
  STD_TORCH_CHECK(input.dim() == 4, op, ": input must have shape [N, C, H, W], got ", shape_string(input));
  check_list(conv.kernel_size, 2, 1, op, "kernel_size");
  check_list(conv.stride, 2, 1, op, "stride");
  check_list(conv.padding, 4, 0, op, "padding");
  check_list(conv.dilation, 2, 1, op, "dilation");
  const int64_t channels = input.size(1), groups = conv.groups;
  STD_TORCH_CHECK(groups >= 1 && channels % groups == 0 && rows % groups == 0, op,
                  ": groups must be positive and divide ", channels, " input and ", rows,
                  " output channels, got ", groups);
  const std::vector<int64_t>& pad = conv.padding;
  const int64_t height = input.size(2) + pad[0] + pad[2], width = input.size(3) + pad[1] + pad[3];
  const int64_t reach_y = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1;
  const int64_t reach_x = conv.dilation[1] * (conv.kernel_size[1] - 1) + 1;
  STD_TORCH_CHECK(reach_y <= height && reach_x <= width, op, ": kernel_size with dilation covers ", reach_y,
                  " x ", reach_x, " pixels, more than the padded input's ", height, " x ", width);
  return {channels,
          input.size(2),
          input.size(3),
          rows,
          output_length(height, conv.kernel_size[0], conv.stride[0], conv.dilation[0]),
          output_length(width, conv.kernel_size[1], conv.stride[1], conv.dilation[1]),
          conv.kernel_size[0],
          conv.kernel_size[1],
          conv.stride[0],
          conv.stride[1],
          conv.dilation[0],
          conv.dilation[1],
          groups,
          pad[0],
          pad[1],
          pad[2],
          pad[3]};
}

inline int64_t sparse_columns(const Conv2dShape& shape) {
  return shape.in_channels / shape.groups * shape.kernel_height * shape.kernel_width;
}

inline Tensor new_sparse_output(const Tensor& input, const Conv2dShape& shape, ScalarType dtype) {
  return torch::stable::new_empty(input, {input.size(0), shape.out_channels, shape.out_height, shape.out_width},
                                  dtype);
}

}  // namespace pqk::torch_ops
