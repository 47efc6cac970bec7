// Argument checks of decode_weight on any device.
#pragma once

#include "torch/coded_weight.h"

namespace pqk::torch_ops {

inline WeightShape check_decode_weight(const Tensor& payload, int64_t rows, int64_t row_size, const char* op) {
  check_payload_shape(payload, op);
  STD_TORCH_CHECK(rows >= 0, op, ": rows must not be negative, got ", rows);
  STD_TORCH_CHECK(row_size >= 0, op, ": row_size must not be negative, got ", row_size);
  int64_t count = 0;
  STD_TORCH_CHECK(!__builtin_mul_overflow(rows, row_size, &count), op,
                  ": rows must leave fewer than 2^63 weights, got ", rows);
  return {count, rows};
}

}  // namespace pqk::torch_ops
