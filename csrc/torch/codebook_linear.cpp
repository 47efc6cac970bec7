#include "core/codebook_linear.h"

#include "torch/coded_linear.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::codebook_linear";
constexpr int64_t kProductsPerThread = 1 << 18;

void check_finite(const Tensor& codebook) {
  const float* entries = codebook.const_data_ptr<float>();
  for (int64_t i = 0; i < codebook.numel(); ++i) {
    STD_TORCH_CHECK(std::isfinite(entries[i]), kOp, ": codebook must be finite, got ", entries[i], " at index ",
                    i);
  }
}

Tensor codebook_linear_cpu(const Tensor& input, const Tensor& payload, const Tensor& codebook,
                           const std::string& codec, int64_t out_features, int64_t zero,
                           std::optional<Tensor> bias) {
  check_cpu(input, kOp, "input");
  check_cpu(payload, kOp, "payload");
  check_cpu(codebook, kOp, "codebook");
  if (bias.has_value()) check_cpu(*bias, kOp, "bias");
  const WeightShape shape = check_codebook_linear(input, payload, codebook, out_features, zero, bias, kOp);
  const Tensor entries = torch::stable::contiguous(codebook);
  check_finite(entries);
  std::optional<Tensor> biases;
  if (bias.has_value()) biases = torch::stable::contiguous(*bias);
  const LinearOutput out(input, out_features);
  const int64_t count = out.rows;
  const Tensor payloads = torch::stable::contiguous(payload);
  const auto weight = open_weight(payloads, codec, shape, kOp);
  Tensor output = torch::stable::new_empty(input, out.shape, ScalarType::Float);
  if (count == 0 || out_features == 0) return output;

  const Tensor inputs = torch::stable::contiguous(input);
  const CodebookLinear linear(weight, shape, entries.const_data_ptr<float>(), entries.numel(), zero,
                              biases.has_value() ? biases->const_data_ptr<float>() : nullptr);
  const FloatLinearRows rows{inputs.const_data_ptr<float>(), output.mutable_data_ptr<float>(), count};
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
      "codebook_linear(Tensor input, Tensor payload, Tensor codebook, str codec, int out_features, int zero, "
      "Tensor? bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("codebook_linear", TORCH_BOX(&pqk::torch_ops::codebook_linear_cpu));
}
