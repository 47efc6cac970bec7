#include "torch/int8_conv2d.h"
#include "torch/sparse_conv2d.h"
#include "torch/sparse_cuda.h"

namespace pqk::torch_ops {
namespace {

Tensor sparse_conv2d_cuda(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                          const Tensor& values, std::optional<Tensor> bias, std::vector<int64_t> kernel_size,
                          std::vector<int64_t> stride, std::vector<int64_t> padding,
                          std::vector<int64_t> dilation, int64_t groups) {
  constexpr const char* kOp = "pqk::sparse_conv2d";
  const Conv2dShape shape = check_sparse_shape(input, {kernel_size, stride, padding, dilation, groups},
                                               crow_indices.numel() - 1, kOp);
  const CsrArguments csr = check_csr_cuda(input, crow_indices, col_indices, values, kOp);
  Tensor output = new_sparse_output(input, shape, input.scalar_type());
  const int64_t pixels = shape.out_height * shape.out_width;
  run_sparse_cuda(shape, input,
                  {input.const_data_ptr(), input.size(0), input.stride(0), input.stride(1), input.stride(2),
                   input.stride(3)},
                  csr, bias, {output.mutable_data_ptr(), shape.out_channels * pixels, pixels, 1}, kOp);
  return output;
}

Tensor int8_sparse_conv2d_cuda(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                               const Tensor& values, const Tensor& multiplier, const Tensor& bias,
                               std::vector<int64_t> kernel_size, int64_t input_zero_point, int64_t quant_min,
                               int64_t quant_max, std::vector<int64_t> stride, std::vector<int64_t> padding,
                               std::vector<int64_t> dilation, int64_t groups, bool float_output) {
  constexpr const char* kOp = "pqk::int8_sparse_conv2d";
  const Conv2dShape shape = check_sparse_shape(input, {kernel_size, stride, padding, dilation, groups},
                                               crow_indices.numel() - 1, kOp);
  const CsrArguments csr = check_csr_cuda(input, crow_indices, col_indices, values, kOp);
  const ChannelConstants constants(multiplier, bias, csr.rows, input, kOp);
  cuda::Int8Conv2d job = sparse_int8_job(input, shape, input.size(0), csr, constants,
                                         {input_zero_point, quant_min, quant_max, 0.0, 0, float_output}, kOp);
  job.input = strided(input);
  const Tensor pixels = torch::stable::new_empty(
      input, {input.size(0), shape.out_height, shape.out_width, shape.out_channels}, output_type(float_output));
  job.output = pixels.mutable_data_ptr();
  run_cuda_job(job, input, kOp);
  Tensor output = new_sparse_output(input, shape, output_type(float_output));
  return torch::stable::copy_(output, seen_as_nchw(pixels));
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) {
  m.impl("sparse_conv2d", TORCH_BOX(&pqk::torch_ops::sparse_conv2d_cuda));
  m.impl("int8_sparse_conv2d", TORCH_BOX(&pqk::torch_ops::int8_sparse_conv2d_cuda));
}
