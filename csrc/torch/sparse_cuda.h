// What the CUDA bindings of layers with a CSR weight share. Indices and values are not checked: reading them
// would stop the stream. Kernels leave entries out that lie outside of the matrix.
#pragma once

#include "core/cuda/sparse_conv2d.h"
#include "torch/int8_cuda.h"
#include "torch/sparse.h"

namespace pqk::torch_ops {

inline CsrArguments check_csr_cuda(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                                   const Tensor& values, const char* op) {
  check_on_device(input, op);
  check_same_device(crow_indices, input, op, "crow_indices");
  check_same_device(col_indices, input, op, "col_indices");
  check_same_device(values, input, op, "values");
  CsrArguments csr = check_csr_shape(crow_indices, col_indices, values, op);
  STD_TORCH_CHECK(col_indices.numel() == values.numel(), op, ": col_indices: expected ", values.numel(),
                  " entries, one for each value, got ", col_indices.numel(), " [E_CSR_NNZ]");
  return csr;
}

inline void run_sparse_cuda(const Conv2dShape& shape, const Tensor& input, const SparseInput& layout,
                            const CsrArguments& csr, const std::optional<Tensor>& bias,
                            const SparseOutput& output, const char* op) {
  if (bias.has_value()) check_same_device(*bias, input, op, "bias");
  const SparseType type = check_floating_dtypes(input, csr.values, bias, csr.rows, op);
  std::optional<Tensor> biases;
  if (bias.has_value()) biases = torch::stable::contiguous(*bias);
  const CudaPlace place(input);
  const cuda::SparseConv2d job{
      place.device, place.stream, type == SparseType::kDouble,
      shape,        csr.weight(), csr.values.numel(),
      layout,       output,       biases.has_value() ? biases->const_data_ptr() : nullptr};
  const Tensor workspace =
      torch::stable::new_empty(input, {cuda::sparse_conv2d_workspace(job)}, ScalarType::Byte);
  check_launch(cuda::sparse_conv2d(job, workspace.mutable_data_ptr()), op);
}

// The integer layer but for its input and output.
inline cuda::Int8Conv2d sparse_int8_job(const Tensor& input, const Conv2dShape& shape, int64_t images,
                                        const CsrArguments& csr, const ChannelConstants& constants,
                                        const Int8Epilogue& epilogue, const char* op) {
  check_dtype(input, ScalarType::Byte, op, "input");
  check_dtype(csr.values, ScalarType::Char, op, "values");
  check_epilogue(epilogue, op);
  cuda::Int8Conv2d job = cuda_job(input, shape, images, constants, epilogue);
  job.csr = {csr.crow_indices.const_data_ptr<int32_t>(), csr.col_indices.const_data_ptr<int32_t>(),
             csr.values.const_data_ptr<int8_t>(), csr.values.numel()};
  return job;
}

}  // namespace pqk::torch_ops
