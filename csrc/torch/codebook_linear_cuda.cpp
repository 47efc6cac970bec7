#include "core/cuda/codebook_linear.h"

#include "torch/coded_linear.h"
#include "torch/coded_payload_cuda.h"
#include "torch/int8_cuda.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::codebook_linear";

// Looking at the payload, or at the entries of the codebook, would stop the stream.
Tensor codebook_linear_cuda(const Tensor& input, const Tensor& payload, const Tensor& codebook,
                            const std::string& codec, int64_t out_features, int64_t zero,
                            std::optional<Tensor> bias) {
  const WeightShape shape = check_codebook_linear(input, payload, codebook, out_features, zero, bias, kOp);
  check_on_device(input, kOp);
  check_same_device(payload, input, kOp, "payload");
  check_same_device(codebook, input, kOp, "codebook");
  if (bias.has_value()) check_same_device(*bias, input, kOp, "bias");
  const LinearOutput out(input, out_features);
  const CudaPlace place(input);
  const DevicePayload weight(payload, codec, shape, place, kOp);
  Tensor output = torch::stable::new_empty(input, out.shape, ScalarType::Float);
  if (out.rows == 0 || out_features == 0) return output;

  const Tensor inputs = torch::stable::contiguous(input), entries = torch::stable::contiguous(codebook);
  std::optional<Tensor> biases;
  if (bias.has_value()) biases = torch::stable::contiguous(*bias);
  const cuda::CodebookLinearJob job{inputs.const_data_ptr<float>(),
                                    entries.const_data_ptr<float>(),
                                    biases.has_value() ? biases->const_data_ptr<float>() : nullptr,
                                    output.mutable_data_ptr<float>(),
                                    out.rows,
                                    static_cast<int>(entries.numel()),
                                    static_cast<int>(zero)};
  const Tensor scratch = torch::stable::new_empty(
      input, {cuda::codebook_linear_scratch(weight.value, out.rows)}, ScalarType::Byte);
  check_launch(cuda::codebook_linear(weight.value, weight.plan(), scratch.mutable_data_ptr(), job), kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) { m.impl("codebook_linear", TORCH_BOX(&pqk::torch_ops::codebook_linear_cuda)); }
