#include "torch/int8_conv2d.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::int8_conv2d";

Tensor int8_conv2d_cpu(const Tensor& input, const Tensor& weight, const Tensor& multiplier, const Tensor& bias,
                       int64_t input_zero_point, int64_t quant_min, int64_t quant_max,
                       std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                       int64_t groups, std::optional<Tensor> residual, double residual_multiplier,
                       int64_t residual_zero_point, bool float_output) {
  check_cpu(input, kOp, "input");
  check_cpu(weight, kOp, "weight");
  const Conv2dShape shape = conv2d_shape(input, weight, stride, padding, dilation, groups, kOp);
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
  return seen_as_nchw(output);
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
