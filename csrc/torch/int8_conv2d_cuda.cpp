#include "torch/int8_conv2d.h"
#include "torch/int8_cuda.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::int8_conv2d";

Tensor int8_conv2d_cuda(const Tensor& input, const Tensor& weight, const Tensor& multiplier, const Tensor& bias,
                        int64_t input_zero_point, int64_t quant_min, int64_t quant_max,
                        std::vector<int64_t> stride, std::vector<int64_t> padding,
                        std::vector<int64_t> dilation, int64_t groups, std::optional<Tensor> residual,
                        double residual_multiplier, int64_t residual_zero_point, bool float_output) {
  check_on_device(input, kOp);
  check_same_device(weight, input, kOp, "weight");
  const Conv2dShape shape = conv2d_shape(input, weight, stride, padding, dilation, groups, kOp);
  const ChannelConstants constants(multiplier, bias, shape.out_channels, input, kOp);
  const Int8Epilogue epilogue{input_zero_point,    quant_min,           quant_max,
                              residual_multiplier, residual_zero_point, float_output};
  check_epilogue(epilogue, kOp);
  const int64_t images = input.size(0);
  cuda::Int8Conv2d job = cuda_job(input, shape, images, constants, epilogue);
  std::optional<Tensor> residuals;
  if (residual.has_value()) {
    check_same_device(*residual, input, kOp, "residual");
    check_residual_shape(*residual, {images, shape.out_channels, shape.out_height, shape.out_width}, kOp);
    residuals = torch::stable::contiguous(seen_as_nhwc(*residual));
    job.residual = residuals->const_data_ptr<uint8_t>();
  }
  job.input = strided(input);
  job.weight = {weight.const_data_ptr<int8_t>(), weight.stride(0), weight.stride(1), weight.stride(2),
                weight.stride(3)};
  Tensor output = torch::stable::new_empty(
      input, {images, shape.out_height, shape.out_width, shape.out_channels}, output_type(float_output));
  job.output = output.mutable_data_ptr();
  run_cuda_job(job, input, kOp);
  return seen_as_nchw(output);
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) { m.impl("int8_conv2d", TORCH_BOX(&pqk::torch_ops::int8_conv2d_cuda)); }
