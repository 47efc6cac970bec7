#include "torch/sparse_conv2d.h"

namespace pqk::torch_ops {
namespace {

void run_conv2d(SparseType type, const Conv2dShape& shape, const Tensor& input, const CsrArguments& csr,
                const SparseEpilogue& epilogue, Tensor& output, const char* op) {
  const int64_t pixels = shape.out_height * shape.out_width;
  run_sparse(type, shape, csr,
             {input.const_data_ptr(), input.size(0), input.stride(0), input.stride(1), input.stride(2),
              input.stride(3)},
             epilogue, {output.mutable_data_ptr(), shape.out_channels * pixels, pixels, 1}, op);
}

Tensor sparse_conv2d_cpu(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                         const Tensor& values, std::optional<Tensor> bias, std::vector<int64_t> kernel_size,
                         std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation, int64_t groups) {
  constexpr const char* kOp = "pqk::sparse_conv2d";
  const Conv2dShape shape = check_sparse_shape(input, {kernel_size, stride, padding, dilation, groups},
                                               crow_indices.numel() - 1, kOp);
  const CsrArguments csr = check_csr(crow_indices, col_indices, values, sparse_columns(shape), kOp);
  const SparseType type = check_floating(input, csr.values, bias, csr.rows, kOp);
  Tensor output = new_sparse_output(input, shape, input.scalar_type());
  std::optional<Tensor> biases;
  if (bias.has_value()) biases = torch::stable::contiguous(*bias);
  SparseEpilogue epilogue{};
  epilogue.bias = biases.has_value() ? biases->const_data_ptr() : nullptr;
  run_conv2d(type, shape, input, csr, epilogue, output, kOp);
  return output;
}

Tensor int8_sparse_conv2d_cpu(const Tensor& input, const Tensor& crow_indices, const Tensor& col_indices,
                              const Tensor& values, const Tensor& multiplier, const Tensor& bias,
                              std::vector<int64_t> kernel_size, int64_t input_zero_point, int64_t quant_min,
                              int64_t quant_max, std::vector<int64_t> stride, std::vector<int64_t> padding,
                              std::vector<int64_t> dilation, int64_t groups, bool float_output) {
  constexpr const char* kOp = "pqk::int8_sparse_conv2d";
  const Conv2dShape shape = check_sparse_shape(input, {kernel_size, stride, padding, dilation, groups},
                                               crow_indices.numel() - 1, kOp);
  const CsrArguments csr = check_csr(crow_indices, col_indices, values, sparse_columns(shape), kOp);
  const Int8SparseEpilogue int8 =
      check_int8(input, csr, multiplier, bias, input_zero_point, quant_min, quant_max, float_output, kOp);
  Tensor output = new_sparse_output(input, shape, float_output ? ScalarType::Float : ScalarType::Byte);
  run_conv2d(SparseType::kInt8, shape, input, csr, int8.epilogue, output, kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "sparse_conv2d(Tensor input, Tensor crow_indices, Tensor col_indices, Tensor values, Tensor? bias, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "int8_sparse_conv2d(Tensor input, Tensor crow_indices, Tensor col_indices, Tensor values, Tensor "
      "multiplier, "
      "Tensor bias, int[] kernel_size, int input_zero_point, int quant_min, int quant_max, int[] stride, "
      "int[] padding, int[] dilation, int groups, bool float_output=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("sparse_conv2d", TORCH_BOX(&pqk::torch_ops::sparse_conv2d_cpu));
  m.impl("int8_sparse_conv2d", TORCH_BOX(&pqk::torch_ops::int8_sparse_conv2d_cpu));
}
