#include "torch/int8_cuda.h"
#include "torch/int8_linear.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::int8_linear";

Tensor int8_linear_cuda(const Tensor& input, const Tensor& weight, const Tensor& multiplier, const Tensor& bias,
                        int64_t input_zero_point, int64_t quant_min, int64_t quant_max,
                        std::optional<Tensor> residual, double residual_multiplier, int64_t residual_zero_point,
                        bool float_output) {
  check_on_device(input, kOp);
  check_same_device(weight, input, kOp, "weight");
  check_linear(input, weight, kOp);
  const int64_t in_features = weight.size(1), out_features = weight.size(0);
  const ChannelConstants constants(multiplier, bias, out_features, input, kOp);
  const Int8Epilogue epilogue{input_zero_point,    quant_min,           quant_max,
                              residual_multiplier, residual_zero_point, float_output};
  check_epilogue(epilogue, kOp);
  const LinearOutput out(input, out_features);
  cuda::Int8Conv2d job =
      cuda_job(input, linear_layer_shape(out.rows, in_features, out_features), 1, constants, epilogue);
  std::optional<Tensor> residuals;
  if (residual.has_value()) {
    check_same_device(*residual, input, kOp, "residual");
    check_residual_shape(*residual, out.shape, kOp);
    residuals = torch::stable::contiguous(*residual);
    job.residual = residuals->const_data_ptr<uint8_t>();
  }
  const Tensor inputs = torch::stable::contiguous(input);
  job.input = as_column(inputs, in_features);
  job.weight = {weight.const_data_ptr<int8_t>(), weight.stride(0), weight.stride(1), in_features, in_features};
  Tensor output = torch::stable::new_empty(input, out.shape, output_type(float_output));
  job.output = output.mutable_data_ptr();
  run_cuda_job(job, input, kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) { m.impl("int8_linear", TORCH_BOX(&pqk::torch_ops::int8_linear_cuda)); }
