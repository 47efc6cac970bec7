#include "core/cuda/semi_structured_linear.h"

#include "torch/int8_cuda.h"
#include "torch/int8_linear.h"
#include "torch/semi_structured_linear.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::int8_semi_structured_linear";

Tensor int8_semi_structured_linear_cuda(const Tensor& input, const Tensor& values, const Tensor& indices,
                                        const Tensor& multiplier, const Tensor& bias, int64_t input_zero_point,
                                        int64_t quant_min, int64_t quant_max, std::optional<Tensor> residual,
                                        double residual_multiplier, int64_t residual_zero_point,
                                        bool float_output) {
  check_on_device(input, kOp);
  check_same_device(values, input, kOp, "values");
  check_same_device(indices, input, kOp, "indices");
  check_semi_structured_linear(input, values, indices, kOp);
  const ChannelConstants constants(multiplier, bias, values.size(0), input, kOp);
  const Int8Epilogue epilogue{input_zero_point,    quant_min,           quant_max,
                              residual_multiplier, residual_zero_point, float_output};
  check_epilogue(epilogue, kOp);
  const LinearOutput out(input, values.size(0));
  const Tensor kept = torch::stable::contiguous(values), places = torch::stable::contiguous(indices),
               inputs = torch::stable::contiguous(input);
  const SemiStructuredWeight weight = semi_structured_weight(kept, places);
  const Conv2dShape shape = linear_layer_shape(out.rows, weight.columns, weight.rows);
  cuda::SemiStructuredLinear job{cuda_job(input, shape, 1, constants, epilogue), weight};
  std::optional<Tensor> residuals;
  if (residual.has_value()) {
    check_same_device(*residual, input, kOp, "residual");
    check_residual_shape(*residual, out.shape, kOp);
    residuals = torch::stable::contiguous(*residual);
    job.layer.residual = residuals->const_data_ptr<uint8_t>();
  }
  job.layer.input = as_column(inputs, weight.columns);
  Tensor output = torch::stable::new_empty(input, out.shape, output_type(float_output));
  job.layer.output = output.mutable_data_ptr();
  const Tensor workspace =
      torch::stable::new_empty(input, {cuda::semi_structured_workspace(job)}, ScalarType::Byte);
  check_launch(cuda::semi_structured_linear(job, workspace.mutable_data_ptr()), kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) {
  m.impl("int8_semi_structured_linear", TORCH_BOX(&pqk::torch_ops::int8_semi_structured_linear_cuda));
}
