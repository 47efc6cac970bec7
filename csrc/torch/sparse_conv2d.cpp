#include "torch/sparse.h"

namespace pqk::torch_ops {
namespace {

struct ConvArguments {
  std::vector<int64_t> kernel_size, stride, padding, dilation;  // padding: top, left, bottom, right
  int64_t groups;
};

void check_list(const std::vector<int64_t>& list, size_t length, int64_t least, const char* op,
                const char* name) {
  STD_TORCH_CHECK(list.size() == length, op, ": ", name, " must have ", length, " elements, got ", list.size());
  for (const int64_t value : list) {
    STD_TORCH_CHECK(value >= least && value <= INT32_MAX, op, ": ", name, " must be in [", least, ", ",
                    INT32_MAX, "], got ", value);
  }
}

// Of a padded axis; 0 or less where the kernel does not fit.
int64_t output_length(int64_t length, int64_t kernel, int64_t stride, int64_t dilation) {
  return (length - dilation * (kernel - 1) - 1) / stride + 1;
}

// Everything but the weight; in_channels / groups * KH * KW is its number of columns.
Conv2dShape check_shape(const Tensor& input, const ConvArguments& conv, int64_t rows, const char* op) {
  STD_TORCH_CHECK(input.dim() == 4, op, ": input must have shape [N, C, H, W], got ", shape_string(input));
  check_list(conv.kernel_size, 2, 1, op, "kernel_size");
  check_list(conv.stride, 2, 1, op, "stride");
  check_list(conv.padding, 4, 0, op, "padding");
  check_list(conv.dilation, 2, 1, op, "dilation");
  const int64_t channels = input.size(1), groups = conv.groups;
  STD_TORCH_CHECK(groups >= 1 && channels % groups == 0 && rows % groups == 0, op,
                  ": groups must be positive and divide ", channels, " input and ", rows,
                  " output channels, got ", groups);
  const std::vector<int64_t>& pad = conv.padding;
  const int64_t height = input.size(2) + pad[0] + pad[2], width = input.size(3) + pad[1] + pad[3];
  const int64_t reach_y = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1;
  const int64_t reach_x = conv.dilation[1] * (conv.kernel_size[1] - 1) + 1;
  STD_TORCH_CHECK(reach_y <= height && reach_x <= width, op, ": kernel_size with dilation covers ", reach_y,
                  " x ", reach_x, " pixels, more than the padded input's ", height, " x ", width);
  return {channels,
          input.size(2),
          input.size(3),
          rows,
          output_length(height, conv.kernel_size[0], conv.stride[0], conv.dilation[0]),
          output_length(width, conv.kernel_size[1], conv.stride[1], conv.dilation[1]),
          conv.kernel_size[0],
          conv.kernel_size[1],
          conv.stride[0],
          conv.stride[1],
          conv.dilation[0],
          conv.dilation[1],
          groups,
          pad[0],
          pad[1],
          pad[2],
          pad[3]};
}

int64_t columns(const Conv2dShape& shape) {
  return shape.in_channels / shape.groups * shape.kernel_height * shape.kernel_width;
}

Tensor new_output(const Tensor& input, const Conv2dShape& shape, ScalarType dtype) {
  return torch::stable::new_empty(input, {input.size(0), shape.out_channels, shape.out_height, shape.out_width},
                                  dtype);
}

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
  const Conv2dShape shape =
      check_shape(input, {kernel_size, stride, padding, dilation, groups}, crow_indices.numel() - 1, kOp);
  const CsrArguments csr = check_csr(crow_indices, col_indices, values, columns(shape), kOp);
  const SparseType type = check_floating(input, csr.values, bias, csr.rows, kOp);
  Tensor output = new_output(input, shape, input.scalar_type());
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
  const Conv2dShape shape =
      check_shape(input, {kernel_size, stride, padding, dilation, groups}, crow_indices.numel() - 1, kOp);
  const CsrArguments csr = check_csr(crow_indices, col_indices, values, columns(shape), kOp);
  const Int8Epilogue int8 =
      check_int8(input, csr, multiplier, bias, input_zero_point, quant_min, quant_max, float_output, kOp);
  Tensor output = new_output(input, shape, float_output ? ScalarType::Float : ScalarType::Byte);
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
