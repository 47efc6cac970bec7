// What masked_linear and masked_conv2d share: the mask's checks, and the choice between torch's dense kernels
// on the masked weight and the sparse kernel on what the mask keeps.
#pragma once

#include "core/masked_weight.h"
#include "torch/sparse.h"

namespace pqk::torch_ops {

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) > 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

inline void check_mask(const Tensor& weight, const Tensor& mask, const char* op) {
  check_cpu(weight, op, "weight");
  check_cpu(mask, op, "mask");
  check_dtype(mask, ScalarType::Bool, op, "mask");
  const ScalarType dtype = weight.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
                  op, ": weight must be Float, Double or BFloat16, got ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(shape_string(weight) == shape_string(mask), op, ": mask must have weight's shape ",
                  shape_string(weight), ", got ", shape_string(mask));
}

// The weight with exact zeros where the mask is false; strides kept where weight and mask share a dense layout.
inline Tensor masked_weight(const Tensor& weight, const Tensor& mask) {
  Tensor output = torch::stable::empty_like(weight);
  Tensor weights = weight, masks = mask;
  if (!same_strides(weight, mask) || !same_strides(weight, output)) {
    weights = torch::stable::contiguous(weight);
    masks = torch::stable::contiguous(mask);
    output = torch::stable::new_empty(weights, weights.sizes());
  }
  const ScalarType dtype = weight.scalar_type();
  const int64_t bytes = dtype == ScalarType::BFloat16 ? 2 : (dtype == ScalarType::Float ? 4 : 8);
  mask_weight({weights.const_data_ptr(), static_cast<const uint8_t*>(masks.const_data_ptr()),
               output.mutable_data_ptr(), weights.numel(), bytes},
              TorchParallel());
  return output;
}

// Measured: below these the sparse kernel does not pay for making the index.
constexpr double kSparseDensity = 0.25;
constexpr int64_t kSparsePositions = 32;  // outputs that share one weight
constexpr int64_t kSparsePerRow = 8;      // kept weights of an output channel

// How many weights to give the sparse kernel, or -1 for the dense one, which also refuses what does not fit.
// `positions` is the number of outputs that share one weight.
inline int64_t sparse_count(const Tensor& input, const Tensor& weight, const Tensor& mask,
                            const std::optional<Tensor>& bias, int64_t positions) {
  const ScalarType dtype = weight.scalar_type();
  const int64_t rows = weight.size(0), count = weight.numel();
  const bool fits = (dtype == ScalarType::Float || dtype == ScalarType::Double) && input.is_cpu() &&
                    input.scalar_type() == dtype && count <= INT32_MAX && weight.is_contiguous() &&
                    mask.is_contiguous() &&
                    (!bias.has_value() || (bias->is_cpu() && bias->scalar_type() == dtype &&
                                           bias->is_contiguous() && bias->dim() == 1 && bias->size(0) == rows));
  if (!fits || positions < kSparsePositions) return -1;
  const int64_t kept = count_kept(static_cast<const uint8_t*>(mask.const_data_ptr()), count, TorchParallel());
  const bool pays = static_cast<double>(kept) <= kSparseDensity * static_cast<double>(count);
  return pays && kept >= kSparsePerRow * rows ? kept : -1;
}

// The sparse kernel on what the mask keeps of a contiguous weight.
template <class Value>
void run_masked_as(SparseType type, const Conv2dShape& shape, const Tensor& weight, const Tensor& mask,
                   int64_t kept, const SparseInput& input, const std::optional<Tensor>& bias,
                   const SparseOutput& output, const char* op) {
  const int64_t rows = weight.size(0);
  const CsrMatrix<Value> csr =
      csr_from_mask(weight.const_data_ptr<Value>(), static_cast<const uint8_t*>(mask.const_data_ptr()), rows,
                    weight.numel() / rows, kept);
  SparseEpilogue epilogue{};
  epilogue.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
  try {
    sparse_conv2d(type, shape, {csr.crow_indices.data(), csr.col_indices.data(), csr.values.data()}, input,
                  epilogue, output, TorchParallel());
  } catch (const std::length_error& error) {
    STD_TORCH_CHECK(false, op, ": ", error.what());
  }
}

inline void run_masked(const Conv2dShape& shape, const Tensor& weight, const Tensor& mask, int64_t kept,
                       const SparseInput& input, const std::optional<Tensor>& bias, const SparseOutput& output,
                       const char* op) {
  if (weight.scalar_type() == ScalarType::Float) {
    run_masked_as<float>(SparseType::kFloat, shape, weight, mask, kept, input, bias, output, op);
  } else {
    run_masked_as<double>(SparseType::kDouble, shape, weight, mask, kept, input, bias, output, op);
  }
}

}  // namespace pqk::torch_ops
