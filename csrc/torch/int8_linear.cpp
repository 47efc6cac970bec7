#include "torch/int8_linear.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::int8_linear";

Tensor int8_linear_cpu(const Tensor& input, const Tensor& weight, const Tensor& multiplier, const Tensor& bias,
                       int64_t input_zero_point, int64_t quant_min, int64_t quant_max,
                       std::optional<Tensor> residual, double residual_multiplier, int64_t residual_zero_point,
                       bool float_output) {
  check_cpu(input, kOp, "input");
  check_cpu(weight, kOp, "weight");
  check_linear(input, weight, kOp);
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
  const Conv2dShape shape = linear_layer_shape(rows, in_features, out_features);
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
