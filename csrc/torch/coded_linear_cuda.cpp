#include "torch/coded_linear.h"

#include "core/cuda/coded_linear.h"
#include "core/cuda/decode_weight.h"
#include "torch/coded_payload_cuda.h"
#include "torch/int8_cuda.h"
#include "torch/int8_linear.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::coded_linear";

// By way of the decoded weight, in memory of torch's.
void run_decoded(cuda::Int8Conv2d& dense, const DevicePayload& weight, const cuda::CodedLinearJob& job,
                 const Tensor& input) {
  const int64_t row_size = weight.value.shape.row_size();
  const Tensor weights = torch::stable::new_empty(input, {weight.value.shape.count}, ScalarType::Char);
  check_launch(cuda::decode_weight(weight.value, weight.plan(), weights.mutable_data_ptr<int8_t>()), kOp);
  dense.weight = {weights.const_data_ptr<int8_t>(), row_size, 1, row_size, row_size};
  run_cuda_job(dense, input, kOp);
  check_launch(cuda::spoil_unless_whole(weight.value, weight.plan(), job), kOp);
}

// Looking at the payload, or at the values of multiplier and bias, would stop the stream.
Tensor coded_linear_cuda(const Tensor& input, const Tensor& payload, const Tensor& multiplier,
                         const Tensor& bias, const std::string& codec, int64_t input_zero_point,
                         int64_t quant_min, int64_t quant_max, std::optional<Tensor> residual,
                         double residual_multiplier, int64_t residual_zero_point, bool float_output) {
  const Int8Epilogue epilogue{input_zero_point,    quant_min,           quant_max,
                              residual_multiplier, residual_zero_point, float_output};
  check_coded_linear(input, payload, multiplier, bias, epilogue, residual, kOp);
  check_on_device(input, kOp);
  check_same_device(payload, input, kOp, "payload");
  check_same_device(multiplier, input, kOp, "multiplier");
  check_same_device(bias, input, kOp, "bias");
  if (residual.has_value()) check_same_device(*residual, input, kOp, "residual");
  const int64_t in_features = input.size(input.dim() - 1), out_features = multiplier.size(0);
  const LinearOutput out(input, out_features);
  const CudaPlace place(input);
  const DevicePayload weight(payload, codec, {in_features * out_features, out_features}, place, kOp);
  Tensor output =
      torch::stable::new_empty(input, out.shape, float_output ? ScalarType::Float : ScalarType::Byte);
  if (out.rows == 0 || out_features == 0) return output;

  const Tensor inputs = torch::stable::contiguous(input), multipliers = torch::stable::contiguous(multiplier),
               biases = torch::stable::contiguous(bias);
  std::optional<Tensor> residuals;
  if (residual.has_value()) residuals = torch::stable::contiguous(*residual);
  cuda::CodedLinearJob job{};
  job.input = inputs.const_data_ptr<uint8_t>();
  job.residual = residuals.has_value() ? residuals->const_data_ptr<uint8_t>() : nullptr;
  job.multiplier = multipliers.const_data_ptr<float>();
  job.bias = biases.const_data_ptr<float>();
  if (float_output) {
    job.float_output = output.mutable_data_ptr<float>();
  } else {
    job.output = output.mutable_data_ptr<uint8_t>();
  }
  job.count = out.rows;
  job.input_zero_point = static_cast<int32_t>(input_zero_point);
  job.quant_min = static_cast<float>(quant_min);
  job.quant_max = static_cast<float>(quant_max);
  job.residual_multiplier = static_cast<float>(residual_multiplier);
  job.residual_zero_point = static_cast<int32_t>(residual_zero_point);
  if (out.rows <= cuda::kMostCodedRows || in_features == 0) {
    check_launch(cuda::coded_linear(weight.value, weight.plan(), job), kOp);
  } else {
    const ChannelConstants constants(multipliers, biases, out_features, input, kOp);
    cuda::Int8Conv2d dense =
        cuda_job(input, linear_layer_shape(out.rows, in_features, out_features), 1, constants, epilogue);
    dense.input = as_column(inputs, in_features);
    dense.residual = job.residual;
    dense.output = output.mutable_data_ptr();
    run_decoded(dense, weight, job, input);
  }
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) { m.impl("coded_linear", TORCH_BOX(&pqk::torch_ops::coded_linear_cuda)); }
