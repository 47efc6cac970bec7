#include "torch/int8_arguments.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::int8_linear";

// (rows, features), contiguous, as an image of one column: every row is one output row of a 1x1 convolution.
StridedCodes as_column(const Tensor& codes, int64_t features) {
  return {codes.const_data_ptr<uint8_t>(), 0, 1, features, features};
}

Tensor int8_linear_cpu(const Tensor& input, const Tensor& weight, const Tensor& multiplier, const Tensor& bias,
                       int64_t input_zero_point, int64_t quant_min, int64_t quant_max,
                       std::optional<Tensor> residual, double residual_multiplier, int64_t residual_zero_point,
                       bool float_output) {
  check_cpu(input, kOp, "input");
  check_dtype(input, ScalarType::Byte, kOp, "input");
  check_cpu(weight, kOp, "weight");
  check_dtype(weight, ScalarType::Char, kOp, "weight");
  STD_TORCH_CHECK(input.dim() >= 1, kOp, ": input must have at least 1 dimension, got none");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == input.size(input.dim() - 1), kOp,
                  ": weight must have shape [O, ", input.size(input.dim() - 1), "], got ",
                  shape_string(weight));
  check_fan_in(weight.size(1), kOp);
  const int64_t in_features = weight.size(1), out_features = weight.size(0);
  check_channel_floats(multiplier, out_features, kOp, "multiplier");
  check_channel_floats(bias, out_features, kOp, "bias");
  const Int8Epilogue epilogue{input_zero_point,    quant_min,           quant_max,
                              residual_multiplier, residual_zero_point, float_output};
  check_epilogue(epilogue, kOp);
  const LinearOutput out(input, out_features);
  const int64_t rows = out.rows;
  if (residual.has_value()) check_residual(*residual, out.shape, kOp);
  Tensor output =
      torch::stable::new_empty(input, out.shape, float_output ? ScalarType::Float : ScalarType::Byte);
  if (rows == 0) return output;

  const Tensor inputs = torch::stable::contiguous(input), weights = torch::stable::contiguous(weight),
               multipliers = torch::stable::contiguous(multiplier), biases = torch::stable::contiguous(bias);
  std::optional<Tensor> residuals;
  StridedCodes residual_codes{};
  if (residual.has_value()) {
    residuals = torch::stable::contiguous(*residual);
    residual_codes = as_column(*residuals, out_features);
  }
  Conv2dShape shape{};
  shape.in_channels = in_features, shape.out_channels = out_features;
  shape.in_height = shape.out_height = rows;
  shape.in_width = shape.out_width = 1;
  shape.kernel_height = shape.kernel_width = shape.stride_height = shape.stride_width = 1;
  shape.dilation_height = shape.dilation_width = shape.groups = 1;
  int8_conv2d_batch(shape, conv2d_constants(weights, multipliers, biases, epilogue, residual.has_value()), 1,
                    as_column(inputs, in_features), residual.has_value() ? &residual_codes : nullptr,
                    output.mutable_data_ptr(), TorchParallel());
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "int8_linear(Tensor input, Tensor weight, Tensor multiplier, Tensor bias, int input_zero_point, "
      "int quant_min, int quant_max, Tensor? residual, float residual_multiplier, int residual_zero_point, "
      "bool float_output) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) { m.impl("int8_linear", TORCH_BOX(&pqk::torch_ops::int8_linear_cpu)); }
