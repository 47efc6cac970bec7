// Argument checks shared by the ops whose weight is a CSR matrix.
#pragma once

#include "core/csr.h"
#include "core/sparse_conv2d.h"
#include "torch/check.h"

namespace pqk::torch_ops {

// crow_indices, col_indices and values as kernels may read them.
struct CsrArguments {
  Tensor crow_indices, col_indices, values;
  int64_t rows;
  SparseWeight weight() const {
    return {crow_indices.const_data_ptr<int32_t>(), col_indices.const_data_ptr<int32_t>(),
            values.const_data_ptr()};
  }
};

// Dtypes and shapes of a CSR matrix; not where it lies, nor its indices.
inline CsrArguments check_csr_shape(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                                    const char* op) {
  const auto check_vector = [&](const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.dim() == 1, op, ": ", name, " must have 1 dimension, got shape ",
                    shape_string(tensor));
  };
  check_vector(crow_indices, "crow_indices");
  check_vector(col_indices, "col_indices");
  check_vector(values, "values");
  check_dtype(crow_indices, ScalarType::Int, op, "crow_indices");
  check_dtype(col_indices, ScalarType::Int, op, "col_indices");
  STD_TORCH_CHECK(crow_indices.numel() >= 1, op, ": crow_indices must have out_channels + 1 elements, got 0");
  return {torch::stable::contiguous(crow_indices), torch::stable::contiguous(col_indices),
          torch::stable::contiguous(values), crow_indices.numel() - 1};
}

inline CsrArguments check_csr(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                              int64_t cols, const char* op) {
  check_cpu(crow_indices, op, "crow_indices");
  check_cpu(col_indices, op, "col_indices");
  check_cpu(values, op, "values");
  CsrArguments csr = check_csr_shape(crow_indices, col_indices, values, op);
  try {
    validate_csr({csr.crow_indices.const_data_ptr<int32_t>(), csr.crow_indices.numel(),
                  csr.col_indices.const_data_ptr<int32_t>(), csr.col_indices.numel(), csr.values.numel(),
                  csr.rows, cols});
  } catch (const FormatError& error) {
    STD_TORCH_CHECK(false, op, ": ", error.what());
  }
  return csr;
}

// values and bias of the dtype of `input`, which is float32 or float64.
inline SparseType check_floating_dtypes(const Tensor& input, const Tensor& values,
                                        const std::optional<Tensor>& bias, int64_t rows, const char* op) {
  const ScalarType dtype = input.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                  ": input must be Float or Double, got ", torch::headeronly::toString(dtype));
  check_dtype(values, dtype, op, "values");
  if (bias.has_value()) {
    check_dtype(*bias, dtype, op, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == rows, op, ": bias must have shape [", rows, "], got ",
                    shape_string(*bias));
  }
  return dtype == ScalarType::Float ? SparseType::kFloat : SparseType::kDouble;
}

inline SparseType check_floating(const Tensor& input, const Tensor& values, const std::optional<Tensor>& bias,
                                 int64_t rows, const char* op) {
  check_cpu(input, op, "input");
  if (bias.has_value()) check_cpu(*bias, op, "bias");
  return check_floating_dtypes(input, values, bias, rows, op);
}

// What follows an int8 sum; holds the tensors that its pointers point into.
struct Int8SparseEpilogue {
  Tensor multiplier, bias;
  SparseEpilogue epilogue;
};

inline Int8SparseEpilogue check_int8(const Tensor& input, const CsrArguments& csr, const Tensor& multiplier,
                                     const Tensor& bias, int64_t input_zero_point, int64_t quant_min,
                                     int64_t quant_max, bool float_output, const char* op) {
  check_cpu(input, op, "input");
  check_dtype(input, ScalarType::Byte, op, "input");
  check_dtype(csr.values, ScalarType::Char, op, "values");
  const auto check_channels = [&](const Tensor& tensor, const char* name) {
    check_cpu(tensor, op, name);
    check_dtype(tensor, ScalarType::Float, op, name);
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == csr.rows, op, ": ", name, " must have shape [",
                    csr.rows, "], got ", shape_string(tensor));
    Tensor dense = torch::stable::contiguous(tensor);
    const float* values = dense.const_data_ptr<float>();
    for (int64_t i = 0; i < csr.rows; ++i) {
      STD_TORCH_CHECK(std::isfinite(values[i]), op, ": ", name, " must be finite, got ", values[i],
                      " at index ", i);
    }
    return dense;
  };
  Tensor multipliers = check_channels(multiplier, "multiplier"), biases = check_channels(bias, "bias");
  STD_TORCH_CHECK(0 <= input_zero_point && input_zero_point <= 255, op,
                  ": input_zero_point must be in [0, 255], got ", input_zero_point);
  check_quant_range(quant_min, quant_max, 0, 255, op);
  // Beyond this a sum of 255 x -128 could leave int32.
  constexpr int64_t kMaxPerRow = INT32_MAX / (255 * 128);
  const int32_t* crow = csr.crow_indices.const_data_ptr<int32_t>();
  for (int64_t row = 0; row < csr.rows; ++row) {
    STD_TORCH_CHECK(crow[row + 1] - crow[row] <= kMaxPerRow, op, ": a row may have at most ", kMaxPerRow,
                    " values, row ", row, " has ", crow[row + 1] - crow[row]);
  }
  const SparseEpilogue epilogue{biases.const_data_ptr(),
                                multipliers.const_data_ptr<float>(),
                                static_cast<int32_t>(input_zero_point),
                                static_cast<int32_t>(quant_min),
                                static_cast<int32_t>(quant_max),
                                float_output};
  return {multipliers, biases, epilogue};
}

inline void run_sparse(SparseType type, const Conv2dShape& shape, const CsrArguments& csr,
                       const SparseInput& input, const SparseEpilogue& epilogue, const SparseOutput& output,
                       const char* op) {
  try {
    sparse_conv2d(type, shape, csr.weight(), input, epilogue, output, TorchParallel());
  } catch (const std::length_error& error) {
    STD_TORCH_CHECK(false, op, ": input of ", shape.in_channels, " x ", shape.in_height, " x ", shape.in_width,
                    ": ", error.what());
  }
}

}  // namespace pqk::torch_ops
