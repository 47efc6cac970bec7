// Argument checks of the ops on 2:4 weights on any device (core/semi_structured_linear.h).
#pragma once

#include "core/semi_structured_linear.h"
#include "torch/int8_arguments.h"

namespace pqk::torch_ops {

// Dtypes and shapes of an input and a compressed weight; not where they lie, nor what the indices say.
inline void check_semi_structured_linear(const Tensor& input, const Tensor& values, const Tensor& indices,
                                         const char* op) {
  check_dtype(input, ScalarType::Byte, op, "input");
  check_dtype(values, ScalarType::Char, op, "values");
  check_dtype(indices, ScalarType::Byte, op, "indices");
  STD_TORCH_CHECK(input.dim() >= 1, op, ": input must have at least 1 dimension, got none");
  const int64_t in_features = input.size(input.dim() - 1);
  STD_TORCH_CHECK(in_features % kGroupSize == 0, op, ": input must have a multiple of 4 features, got ",
                  in_features);
  STD_TORCH_CHECK(values.dim() == 2 && values.size(1) == in_features / 2, op, ": values must have shape [O, ",
                  in_features / 2, "], got ", shape_string(values));
  const SemiStructuredWeight weight{nullptr, nullptr, values.size(0), in_features};
  STD_TORCH_CHECK(
      indices.dim() == 2 && indices.size(0) == weight.rows && indices.size(1) == weight.index_bytes(), op,
      ": indices must have shape [", weight.rows, ", ", weight.index_bytes(), "], got ", shape_string(indices));
  check_fan_in(values.size(1), op);
}

// `values` and `indices` are contiguous.
inline SemiStructuredWeight semi_structured_weight(const Tensor& values, const Tensor& indices) {
  return {values.const_data_ptr<int8_t>(), indices.const_data_ptr<uint8_t>(), values.size(0),
          values.size(1) * 2};
}

}  // namespace pqk::torch_ops
