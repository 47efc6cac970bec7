// Argument checks and tensor access of int8_conv2d, on any device.
#pragma once

#include "torch/int8_arguments.h"

namespace pqk::torch_ops {

inline void check_sizes(const std::vector<int64_t>& values, size_t count, int64_t least, const char* op,
                        const char* argument) {
  STD_TORCH_CHECK(values.size() == count, op, ": ", argument, " must have ", count, " elements, got ",
                  values.size());
  for (const int64_t value : values) {
    STD_TORCH_CHECK(value >= least, op, ": ", argument, " must be at least ", least, ", got ", value);
  }
}

inline int64_t output_size(int64_t input, int64_t padding, int64_t kernel, int64_t stride, int64_t dilation,
                           const char* op, const char* side) {
  const int64_t window = dilation * (kernel - 1) + 1, space = input + padding - window;
  STD_TORCH_CHECK(space >= 0, op, ": input ", side, " ", input, " plus padding ", padding,
                  " is smaller than the kernel's ", window);
  return space / stride + 1;
}

inline Conv2dShape conv2d_shape(const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride,
                                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                int64_t groups, const char* op) {
  check_dtype(input, ScalarType::Byte, op, "input");
  check_dtype(weight, ScalarType::Char, op, "weight");
  STD_TORCH_CHECK(input.dim() == 4, op, ": input must have 4 dimensions (N, C, H, W), got ",
                  shape_string(input));
  STD_TORCH_CHECK(weight.dim() == 4, op, ": weight must have 4 dimensions (O, C / groups, KH, KW), got ",
                  shape_string(weight));
  check_sizes(stride, 2, 1, op, "stride");
  check_sizes(padding, 4, 0, op, "padding");
  check_sizes(dilation, 2, 1, op, "dilation");
  const int64_t in_channels = input.size(1), out_channels = weight.size(0);
  STD_TORCH_CHECK(groups >= 1 && in_channels % groups == 0 && out_channels % groups == 0, op,
                  ": groups must divide the ", in_channels, " input and ", out_channels,
                  " output channels, got ", groups);
  STD_TORCH_CHECK(weight.size(1) == in_channels / groups, op, ": weight must have ", in_channels / groups,
                  " input channels (", in_channels, " / groups), got shape ", shape_string(weight));
  STD_TORCH_CHECK(weight.size(2) >= 1 && weight.size(3) >= 1, op, ": weight must have a kernel, got shape ",
                  shape_string(weight));
  check_fan_in(weight.size(1) * weight.size(2) * weight.size(3), op);
  Conv2dShape s{};
  s.in_channels = in_channels, s.in_height = input.size(2), s.in_width = input.size(3);
  s.kernel_height = weight.size(2), s.kernel_width = weight.size(3);
  s.stride_height = stride[0], s.stride_width = stride[1];
  s.dilation_height = dilation[0], s.dilation_width = dilation[1];
  s.groups = groups;
  s.pad_top = padding[0], s.pad_left = padding[1], s.pad_bottom = padding[2], s.pad_right = padding[3];
  s.out_channels = out_channels;
  s.out_height =
      output_size(s.in_height, s.pad_top + s.pad_bottom, s.kernel_height, stride[0], dilation[0], op, "height");
  s.out_width =
      output_size(s.in_width, s.pad_left + s.pad_right, s.kernel_width, stride[1], dilation[1], op, "width");
  return s;
}

inline StridedCodes strided(const Tensor& codes) {
  return {codes.const_data_ptr<uint8_t>(), codes.stride(0), codes.stride(1), codes.stride(2), codes.stride(3)};
}

// (N, H, W, C) memory seen as (N, C, H, W): channels_last.
inline Tensor seen_as_nchw(const Tensor& output) {
  return torch::stable::transpose(torch::stable::transpose(output, 1, 3), 2, 3);
}

inline Tensor seen_as_nhwc(const Tensor& codes) {
  return torch::stable::transpose(torch::stable::transpose(codes, 2, 3), 1, 3);
}

}  // namespace pqk::torch_ops
