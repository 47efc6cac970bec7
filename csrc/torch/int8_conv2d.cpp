#include "torch/int8_arguments.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::int8_conv2d";

void check_sizes(const std::vector<int64_t>& values, size_t count, int64_t least, const char* argument) {
  STD_TORCH_CHECK(values.size() == count, kOp, ": ", argument, " must have ", count, " elements, got ",
                  values.size());
  for (const int64_t value : values) {
    STD_TORCH_CHECK(value >= least, kOp, ": ", argument, " must be at least ", least, ", got ", value);
  }
}

int64_t output_size(int64_t input, int64_t padding, int64_t kernel, int64_t stride, int64_t dilation,
                    const char* side) {
  const int64_t window = dilation * (kernel - 1) + 1, space = input + padding - window;
  STD_TORCH_CHECK(space >= 0, kOp, ": input ", side, " ", input, " plus padding ", padding,
                  " is smaller than the kernel's ", window);
  return space / stride + 1;
}

Conv2dShape conv2d_shape(const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                         int64_t groups) {
  STD_TORCH_CHECK(input.dim() == 4, kOp, ": input must have 4 dimensions (N, C, H, W), got ",
                  shape_string(input));
  STD_TORCH_CHECK(weight.dim() == 4, kOp, ": weight must have 4 dimensions (O, C / groups, KH, KW), got ",
                  shape_string(weight));
  check_sizes(stride, 2, 1, "stride");
  check_sizes(padding, 4, 0, "padding");
  check_sizes(dilation, 2, 1, "dilation");
  const int64_t in_channels = input.size(1), out_channels = weight.size(0);
  STD_TORCH_CHECK(groups >= 1 && in_channels % groups == 0 && out_channels % groups == 0, kOp,
                  ": groups must divide the ", in_channels, " input and ", out_channels,
                  " output channels, got ", groups);
  STD_TORCH_CHECK(weight.size(1) == in_channels / groups, kOp, ": weight must have ", in_channels / groups,
                  " input channels (", in_channels, " / groups), got shape ", shape_string(weight));
  STD_TORCH_CHECK(weight.size(2) >= 1 && weight.size(3) >= 1, kOp, ": weight must have a kernel, got shape ",
                  shape_string(weight));
  check_fan_in(weight.size(1) * weight.size(2) * weight.size(3), kOp);
  Conv2dShape s{};
  s.in_channels = in_channels, s.in_height = input.size(2), s.in_width = input.size(3);
  s.kernel_height = weight.size(2), s.kernel_width = weight.size(3);
  s.stride_height = stride[0], s.stride_width = stride[1];
  s.dilation_height = dilation[0], s.dilation_width = dilation[1];
  s.groups = groups;
  s.pad_top = padding[0], s.pad_left = padding[1], s.pad_bottom = padding[2], s.pad_right = padding[3];
  s.out_channels = out_channels;
  s.out_height =
      output_size(s.in_height, s.pad_top + s.pad_bottom, s.kernel_height, stride[0], dilation[0], "height");
  s.out_width =
      output_size(s.in_width, s.pad_left + s.pad_right, s.kernel_width, stride[1], dilation[1], "width");
  return s;
}

StridedCodes strided(const Tensor& codes) {
  return {codes.const_data_ptr<uint8_t>(), codes.stride(0), codes.stride(1), codes.stride(2), codes.stride(3)};
}

Tensor int8_conv2d_cpu(const Tensor& input, const Tensor& weight, const Tensor& multiplier, const Tensor& bias,
                       int64_t input_zero_point, int64_t quant_min, int64_t quant_max,
                       std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                       int64_t groups, std::optional<Tensor> residual, double residual_multiplier,
                       int64_t residual_zero_point, bool float_output) {
  check_cpu(input, kOp, "input");
  check_dtype(input, ScalarType::Byte, kOp, "input");
  check_cpu(weight, kOp, "weight");
  check_dtype(weight, ScalarType::Char, kOp, "weight");
  const Conv2dShape shape = conv2d_shape(input, weight, stride, padding, dilation, groups);
  check_channel_floats(multiplier, shape.out_channels, kOp, "multiplier");
  check_channel_floats(bias, shape.out_channels, kOp, "bias");
  const Int8Epilogue epilogue{input_zero_point,    quant_min,           quant_max,
                              residual_multiplier, residual_zero_point, float_output};
  check_epilogue(epilogue, kOp);
  const int64_t images = input.size(0);
  StridedCodes residual_codes{};
  if (residual.has_value()) {
    check_residual(*residual, {images, shape.out_channels, shape.out_height, shape.out_width}, kOp);
    residual_codes = strided(*residual);
  }
  Tensor output =
      torch::stable::new_empty(input, {images, shape.out_height, shape.out_width, shape.out_channels},
                               float_output ? ScalarType::Float : ScalarType::Byte);
  const Tensor weights = torch::stable::contiguous(weight), multipliers = torch::stable::contiguous(multiplier),
               biases = torch::stable::contiguous(bias);
  int8_conv2d_batch(shape, conv2d_constants(weights, multipliers, biases, epilogue, residual.has_value()),
                    images, strided(input), residual.has_value() ? &residual_codes : nullptr,
                    output.mutable_data_ptr(), TorchParallel());
  // (N, H, W, C) memory seen as (N, C, H, W): channels_last.
  return torch::stable::transpose(torch::stable::transpose(output, 1, 3), 2, 3);
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "int8_conv2d(Tensor input, Tensor weight, Tensor multiplier, Tensor bias, int input_zero_point, "
      "int quant_min, int quant_max, int[] stride, int[] padding, int[] dilation, int groups, "
      "Tensor? residual, float residual_multiplier, int residual_zero_point, bool float_output) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) { m.impl("int8_conv2d", TORCH_BOX(&pqk::torch_ops::int8_conv2d_cpu)); }
