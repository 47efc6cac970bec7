#include "core/coded_linear.h"

#include "torch/coded_linear.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::coded_linear";
constexpr int64_t kProductsPerThread = 1 << 18;  // decoding costs more than multiplying

Tensor coded_linear_cpu(const Tensor& input, const Tensor& payload, const Tensor& multiplier,
                        const Tensor& bias, const std::string& codec, int64_t input_zero_point,
                        int64_t quant_min, int64_t quant_max, std::optional<Tensor> residual,
                        double residual_multiplier, int64_t residual_zero_point, bool float_output) {
  const Int8Epilogue epilogue{input_zero_point,    quant_min,           quant_max,
                              residual_multiplier, residual_zero_point, float_output};
  check_cpu(input, kOp, "input");
  check_cpu(payload, kOp, "payload");
  check_coded_linear(input, payload, multiplier, bias, epilogue, residual, kOp);
  const int64_t in_features = input.size(input.dim() - 1), out_features = multiplier.size(0);
  check_channel_floats(multiplier, out_features, kOp, "multiplier");
  check_channel_floats(bias, out_features, kOp, "bias");
  if (residual.has_value()) check_cpu(*residual, kOp, "residual");
  const LinearOutput out(input, out_features);
  const int64_t count = out.rows;
  const Tensor payloads = torch::stable::contiguous(payload);
  const WeightShape shape{in_features * out_features, out_features};
  const auto weight = open_weight(payloads, codec, shape, kOp);
  Tensor output =
      torch::stable::new_empty(input, out.shape, float_output ? ScalarType::Float : ScalarType::Byte);
  if (count == 0 || out_features == 0) return output;

  const Tensor inputs = torch::stable::contiguous(input), multipliers = torch::stable::contiguous(multiplier),
               biases = torch::stable::contiguous(bias);
  std::optional<Tensor> residuals;
  Int8LinearRows rows{};
  // Only read.
  rows.input = {const_cast<uint8_t*>(inputs.const_data_ptr<uint8_t>()), in_features, in_features};
  rows.channels = rows.input_step = in_features;
  rows.height = rows.width = 1;
  if (residual.has_value()) {
    residuals = torch::stable::contiguous(*residual);
    rows.residual = residuals->const_data_ptr<uint8_t>();
  }
  rows.residual_step = rows.output_step = rows.float_step = out_features;
  if (float_output) {
    rows.float_output = output.mutable_data_ptr<float>();
  } else {
    rows.output = output.mutable_data_ptr<uint8_t>();
  }
  rows.count = count;
  const CodedLinear linear(weight, shape,
                           conv2d_constants(nullptr, multipliers.const_data_ptr<float>(),
                                            biases.const_data_ptr<float>(), epilogue, residual.has_value()));
  const int64_t panel_products = std::max<int64_t>(1, shape.count * count / linear.panels());
  decode_parallel(linear.panels(), std::max<int64_t>(1, kProductsPerThread / panel_products), kOp,
                  [&](int64_t begin, int64_t end) {
                    AlignedArray<uint8_t> scratch =
                        AlignedArray<uint8_t>::uninitialized(linear.scratch_bytes(count));
                    linear.run(rows, begin, end, scratch.data());
                  });
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "coded_linear(Tensor input, Tensor payload, Tensor multiplier, Tensor bias, str codec, "
      "int input_zero_point, int quant_min, int quant_max, Tensor? residual, float residual_multiplier, "
      "int residual_zero_point, bool float_output) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) { m.impl("coded_linear", TORCH_BOX(&pqk::torch_ops::coded_linear_cpu)); }
