#include "torch/semi_structured_linear.h"

#include <tuple>

namespace pqk::torch_ops {
namespace {

std::tuple<Tensor, Tensor> semi_structured_compress_cpu(const Tensor& weight) {
  constexpr const char* kOp = "pqk::semi_structured_compress";
  check_cpu(weight, kOp, "weight");
  check_dtype(weight, ScalarType::Char, kOp, "weight");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) % kGroupSize == 0, kOp,
                  ": weight must have shape [O, I], I a multiple of 4, got ", shape_string(weight));
  const Tensor dense = torch::stable::contiguous(weight);
  const SemiStructuredWeight shape{nullptr, nullptr, weight.size(0), weight.size(1)};
  Tensor values = torch::stable::new_empty(weight, {shape.rows, shape.columns / 2}, ScalarType::Char);
  Tensor indices = torch::stable::new_empty(weight, {shape.rows, shape.index_bytes()}, ScalarType::Byte);
  const int64_t wrong = compress_semi_structured(dense.const_data_ptr<int8_t>(), shape.rows, shape.columns,
                                                 values.mutable_data_ptr<int8_t>(),
                                                 indices.mutable_data_ptr<uint8_t>(), TorchParallel());
  if (wrong >= 0) {
    const int64_t row = wrong / shape.groups(), column = wrong % shape.groups() * kGroupSize;
    STD_TORCH_CHECK(false, kOp,
                    ": weight must have at most 2 non-zeros in each 4 neighbours of a row, got more in row ",
                    row, ", columns ", column, " to ", column + kGroupSize - 1);
  }
  return {values, indices};
}

Tensor int8_semi_structured_linear_cpu(const Tensor& input, const Tensor& values, const Tensor& indices,
                                       const Tensor& multiplier, const Tensor& bias, int64_t input_zero_point,
                                       int64_t quant_min, int64_t quant_max, std::optional<Tensor> residual,
                                       double residual_multiplier, int64_t residual_zero_point,
                                       bool float_output) {
  constexpr const char* kOp = "pqk::int8_semi_structured_linear";
  check_cpu(input, kOp, "input");
  check_cpu(values, kOp, "values");
  check_cpu(indices, kOp, "indices");
  check_semi_structured_linear(input, values, indices, kOp);
  check_channel_floats(multiplier, values.size(0), kOp, "multiplier");
  check_channel_floats(bias, values.size(0), kOp, "bias");
  const Int8Epilogue epilogue{input_zero_point,    quant_min,           quant_max,
                              residual_multiplier, residual_zero_point, float_output};
  check_epilogue(epilogue, kOp);
  const LinearOutput out(input, values.size(0));
  if (residual.has_value()) check_residual(*residual, out.shape, kOp);
  const Tensor kept = torch::stable::contiguous(values), places = torch::stable::contiguous(indices);
  const SemiStructuredWeight weight = semi_structured_weight(kept, places);
  const int64_t wrong = first_unordered_group(weight, TorchParallel());
  if (wrong >= 0) {
    STD_TORCH_CHECK(false, kOp, ": indices must rise within a group, but do not in row ",
                    wrong / weight.groups(), ", group ", wrong % weight.groups());
  }
  Tensor output =
      torch::stable::new_empty(input, out.shape, float_output ? ScalarType::Float : ScalarType::Byte);
  const Tensor inputs = torch::stable::contiguous(input), multipliers = torch::stable::contiguous(multiplier),
               biases = torch::stable::contiguous(bias);
  std::optional<Tensor> residuals;
  if (residual.has_value()) residuals = torch::stable::contiguous(*residual);
  semi_structured_linear(weight,
                         conv2d_constants(nullptr, multipliers.const_data_ptr<float>(),
                                          biases.const_data_ptr<float>(), epilogue, residual.has_value()),
                         out.rows, inputs.const_data_ptr<uint8_t>(),
                         residuals.has_value() ? residuals->const_data_ptr<uint8_t>() : nullptr,
                         output.mutable_data_ptr(), TorchParallel());
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def("semi_structured_compress(Tensor weight) -> (Tensor values, Tensor indices)");
  m.def(
      "int8_semi_structured_linear(Tensor input, Tensor values, Tensor indices, Tensor multiplier, "
      "Tensor bias, int input_zero_point, int quant_min, int quant_max, Tensor? residual, "
      "float residual_multiplier, int residual_zero_point, bool float_output) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("semi_structured_compress", TORCH_BOX(&pqk::torch_ops::semi_structured_compress_cpu));
  m.impl("int8_semi_structured_linear", TORCH_BOX(&pqk::torch_ops::int8_semi_structured_linear_cpu));
}
