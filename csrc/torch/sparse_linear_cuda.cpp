#include "torch/int8_linear.h"
#include "torch/sparse_cuda.h"
#include "torch/sparse_linear.h"

namespace pqk::torch_ops {
namespace {

Tensor sparse_linear_cuda(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                          const Tensor& values, std::optional<Tensor> bias) {
  constexpr const char* kOp = "pqk::sparse_linear";
  check_sparse_input(input, kOp);
  const CsrArguments csr = check_csr_cuda(input, crow_indices, col_indices, values, kOp);
  const Tensor contiguous = torch::stable::contiguous(input);
  Tensor output = torch::stable::new_empty(contiguous, sparse_output_sizes(input, csr.rows));
  const int64_t in = input.size(input.dim() - 1), rows = csr.rows == 0 ? 0 : output.numel() / csr.rows;
  run_sparse_cuda(sparse_linear_shape(in, csr.rows), contiguous,
                  {contiguous.const_data_ptr(), rows, in, 1, in, in}, csr, bias,
                  {output.mutable_data_ptr(), csr.rows, 1, csr.rows}, kOp);
  return output;
}

Tensor int8_sparse_linear_cuda(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                               const Tensor& values, const Tensor& multiplier, const Tensor& bias,
                               int64_t input_zero_point, int64_t quant_min, int64_t quant_max,
                               bool float_output) {
  constexpr const char* kOp = "pqk::int8_sparse_linear";
  check_sparse_input(input, kOp);
  const CsrArguments csr = check_csr_cuda(input, crow_indices, col_indices, values, kOp);
  const ChannelConstants constants(multiplier, bias, csr.rows, input, kOp);
  const LinearOutput out(input, csr.rows);
  const int64_t in = input.size(input.dim() - 1);
  cuda::Int8Conv2d job = sparse_int8_job(input, linear_layer_shape(out.rows, in, csr.rows), 1, csr, constants,
                                         {input_zero_point, quant_min, quant_max, 0.0, 0, float_output}, kOp);
  const Tensor inputs = torch::stable::contiguous(input);
  job.input = as_column(inputs, in);
  Tensor output = torch::stable::new_empty(input, out.shape, output_type(float_output));
  job.output = output.mutable_data_ptr();
  run_cuda_job(job, input, kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) {
  m.impl("sparse_linear", TORCH_BOX(&pqk::torch_ops::sparse_linear_cuda));
  m.impl("int8_sparse_linear", TORCH_BOX(&pqk::torch_ops::int8_sparse_linear_cuda));
}
