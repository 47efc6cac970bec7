// Argument checks of coded_linear and codebook_linear on any device.
#pragma once

#include "torch/coded_weight.h"
#include "torch/int8_arguments.h"

namespace pqk::torch_ops {

// Of coded_linear, but for where tensors lie and the values in them.
inline void check_coded_linear(const Tensor& input, const Tensor& payload, const Tensor& multiplier,
                               const Tensor& bias, const Int8Epilogue& epilogue,
                               const std::optional<Tensor>& residual, const char* op) {
  check_dtype(input, ScalarType::Byte, op, "input");
  STD_TORCH_CHECK(input.dim() >= 1, op, ": input must have at least 1 dimension, got none");
  check_payload_shape(payload, op);
  STD_TORCH_CHECK(multiplier.dim() == 1, op, ": multiplier must have shape [O], got ",
                  shape_string(multiplier));
  const int64_t out_features = multiplier.size(0);
  check_fan_in(input.size(input.dim() - 1), op);
  check_channel_shape(multiplier, out_features, op, "multiplier");
  check_channel_shape(bias, out_features, op, "bias");
  check_epilogue(epilogue, op);
  if (residual.has_value()) check_residual_shape(*residual, LinearOutput(input, out_features).shape, op);
}

// Of codebook_linear likewise; the shape of the weight.
inline WeightShape check_codebook_linear(const Tensor& input, const Tensor& payload, const Tensor& codebook,
                                         int64_t out_features, int64_t zero, const std::optional<Tensor>& bias,
                                         const char* op) {
  check_dtype(input, ScalarType::Float, op, "input");
  STD_TORCH_CHECK(input.dim() >= 1, op, ": input must have at least 1 dimension, got none");
  check_payload_shape(payload, op);
  STD_TORCH_CHECK(out_features >= 0, op, ": out_features must not be negative, got ", out_features);
  check_dtype(codebook, ScalarType::Float, op, "codebook");
  STD_TORCH_CHECK(codebook.dim() == 1 && codebook.numel() >= 1 && codebook.numel() <= 256, op,
                  ": codebook must have shape [K] with K from 1 to 256, got ", shape_string(codebook));
  STD_TORCH_CHECK(0 <= zero && zero < codebook.numel(), op, ": zero must be in [0, ", codebook.numel() - 1,
                  "], got ", zero);
  if (bias.has_value()) {
    check_dtype(*bias, ScalarType::Float, op, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == out_features, op, ": bias must have shape [",
                    out_features, "], got ", shape_string(*bias));
  }
  int64_t weights = 0;
  STD_TORCH_CHECK(!__builtin_mul_overflow(input.size(input.dim() - 1), out_features, &weights), op,
                  ": out_features must leave fewer than 2^63 weights, got ", out_features);
  return {weights, out_features};
}

}  // namespace pqk::torch_ops
