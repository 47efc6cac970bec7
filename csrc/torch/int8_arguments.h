// Argument checks that int8_conv2d and int8_linear share.
#pragma once

#include <optional>

#include "core/int8_batch.h"
#include "torch/check.h"

namespace pqk::torch_ops {

// A sum of K products of a code and a weight is exact in int32 up to this K: 255 * 128 * K < 2^31.
constexpr int64_t kMaxFanIn = 65793;

struct Int8Epilogue {
  int64_t input_zero_point, quant_min, quant_max;
  double residual_multiplier;
  int64_t residual_zero_point;
  bool float_output;
};

inline void check_code(int64_t value, const char* op, const char* argument) {
  STD_TORCH_CHECK(0 <= value && value <= 255, op, ": ", argument, " must be in [0, 255], got ", value);
}

// The dtype and shape of an argument with a float32 for each output channel; not where it lies, nor its values.
inline void check_channel_shape(const Tensor& values, int64_t channels, const char* op, const char* argument) {
  check_dtype(values, ScalarType::Float, op, argument);
  STD_TORCH_CHECK(values.dim() == 1 && values.size(0) == channels, op, ": ", argument, " must have shape [",
                  channels, "], got ", shape_string(values));
}

inline void check_channel_floats(const Tensor& values, int64_t channels, const char* op, const char* argument) {
  check_cpu(values, op, argument);
  check_channel_shape(values, channels, op, argument);
  const float* data = values.const_data_ptr<float>();
  for (int64_t i = 0; i < channels; ++i) {
    const float value = data[i * values.stride(0)];
    STD_TORCH_CHECK(std::isfinite(value), op, ": ", argument, " must be finite, got ", value, " at index ", i);
  }
}

inline void check_fan_in(int64_t fan_in, const char* op) {
  STD_TORCH_CHECK(fan_in <= kMaxFanIn, op, ": weight must have at most ", kMaxFanIn,
                  " elements per output channel, or the int32 accumulator could overflow; got ", fan_in);
}

inline void check_epilogue(const Int8Epilogue& e, const char* op) {
  check_code(e.input_zero_point, op, "input_zero_point");
  check_quant_range(e.quant_min, e.quant_max, 0, 255, op);
  STD_TORCH_CHECK(std::isfinite(static_cast<float>(e.residual_multiplier)), op,
                  ": residual_multiplier must be finite, got ", e.residual_multiplier);
  check_code(e.residual_zero_point, op, "residual_zero_point");
}

inline void check_residual_shape(const Tensor& residual, const std::vector<int64_t>& shape, const char* op) {
  check_dtype(residual, ScalarType::Byte, op, "residual");
  bool equal = residual.dim() == static_cast<int64_t>(shape.size());
  std::string text;
  for (size_t i = 0; i < shape.size(); ++i) {
    equal = equal && residual.size(static_cast<int64_t>(i)) == shape[i];
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  STD_TORCH_CHECK(equal, op, ": residual must have the output's shape [", text, "], got ",
                  shape_string(residual));
}

inline void check_residual(const Tensor& residual, const std::vector<int64_t>& shape, const char* op) {
  check_cpu(residual, op, "residual");
  check_residual_shape(residual, shape, op);
}

inline Conv2dConstants conv2d_constants(const int8_t* weight, const float* multiplier, const float* bias,
                                        const Int8Epilogue& e, bool has_residual) {
  return {weight,
          multiplier,
          bias,
          static_cast<int32_t>(e.input_zero_point),
          static_cast<int32_t>(e.quant_min),
          static_cast<int32_t>(e.quant_max),
          e.float_output,
          has_residual,
          static_cast<float>(e.residual_multiplier),
          static_cast<int32_t>(e.residual_zero_point)};
}

inline Conv2dConstants conv2d_constants(const Tensor& weight, const Tensor& multiplier, const Tensor& bias,
                                        const Int8Epilogue& e, bool has_residual) {
  return conv2d_constants(weight.const_data_ptr<int8_t>(), multiplier.const_data_ptr<float>(),
                          bias.const_data_ptr<float>(), e, has_residual);
}

}  // namespace pqk::torch_ops
