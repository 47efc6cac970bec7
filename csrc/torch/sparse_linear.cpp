#include "torch/sparse_linear.h"

namespace pqk::torch_ops {
namespace {

void run_linear(SparseType type, const Tensor& input, const CsrArguments& csr, const SparseEpilogue& epilogue,
                Tensor& output, const char* op) {
  const int64_t in = input.size(input.dim() - 1), out = csr.rows;
  const int64_t images = out == 0 ? 0 : output.numel() / out;
  const Conv2dShape shape = sparse_linear_shape(in, out);
  run_sparse(type, shape, csr, {input.const_data_ptr(), images, in, 1, in, in}, epilogue,
             {output.mutable_data_ptr(), out, 1, out}, op);
}

Tensor sparse_linear_cpu(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                         const Tensor& values, std::optional<Tensor> bias) {
  constexpr const char* kOp = "pqk::sparse_linear";
  check_sparse_input(input, kOp);
  const CsrArguments csr = check_csr(crow_indices, col_indices, values, input.size(input.dim() - 1), kOp);
  const SparseType type = check_floating(input, csr.values, bias, csr.rows, kOp);
  const Tensor contiguous = torch::stable::contiguous(input);
  Tensor output = torch::stable::new_empty(contiguous, sparse_output_sizes(input, csr.rows));
  std::optional<Tensor> biases;
  if (bias.has_value()) biases = torch::stable::contiguous(*bias);
  SparseEpilogue epilogue{};
  epilogue.bias = biases.has_value() ? biases->const_data_ptr() : nullptr;
  run_linear(type, contiguous, csr, epilogue, output, kOp);
  return output;
}

Tensor int8_sparse_linear_cpu(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                              const Tensor& values, const Tensor& multiplier, const Tensor& bias,
                              int64_t input_zero_point, int64_t quant_min, int64_t quant_max,
                              bool float_output) {
  constexpr const char* kOp = "pqk::int8_sparse_linear";
  check_sparse_input(input, kOp);
  const CsrArguments csr = check_csr(crow_indices, col_indices, values, input.size(input.dim() - 1), kOp);
  const Int8SparseEpilogue int8 =
      check_int8(input, csr, multiplier, bias, input_zero_point, quant_min, quant_max, float_output, kOp);
  const Tensor contiguous = torch::stable::contiguous(input);
  Tensor output = torch::stable::new_empty(contiguous, sparse_output_sizes(input, csr.rows),
                                           float_output ? ScalarType::Float : ScalarType::Byte);
  run_linear(SparseType::kInt8, contiguous, csr, int8.epilogue, output, kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "sparse_linear(Tensor input, Tensor crow_indices, Tensor col_indices, Tensor values, Tensor? bias=None) "
      "-> "
      "Tensor");
  m.def(
      "int8_sparse_linear(Tensor input, Tensor crow_indices, Tensor col_indices, Tensor values, Tensor "
      "multiplier, "
      "Tensor bias, int input_zero_point, int quant_min, int quant_max, bool float_output=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("sparse_linear", TORCH_BOX(&pqk::torch_ops::sparse_linear_cpu));
  m.impl("int8_sparse_linear", TORCH_BOX(&pqk::torch_ops::int8_sparse_linear_cpu));
}
