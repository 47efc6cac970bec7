// Argument checks of quantize and dequantize, shared by their CPU and CUDA bindings.
#pragma once

#include "core/quantize.h"
#include "torch/check.h"

namespace pqk::torch_ops::quantize_detail {

inline constexpr const char* kQuantize = "pqk::quantize";
inline constexpr const char* kDequantize = "pqk::dequantize";

inline void check_zero_point(const Tensor& zero_point, const Tensor& scale, const char* op) {
  check_dtype(zero_point, ScalarType::Int, op, "zero_point");
  STD_TORCH_CHECK(zero_point.numel() == scale.numel(), op, ": zero_point must have as many elements as scale (",
                  scale.numel(), "), got ", zero_point.numel());
}

// Everything that can be checked without reading a tensor's elements, and the kernels' arguments.
struct Quantization {
  Quantization(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
               int64_t quant_max, std::optional<int64_t> axis) {
    check_dtype(input, ScalarType::Float, kQuantize, "input");
    check_dtype(scale, ScalarType::Float, kQuantize, "scale");
    const bool is_signed = quant_min < 0;
    check_quant_range(quant_min, quant_max, is_signed ? -128 : 0, is_signed ? 127 : 255, kQuantize);
    const ChannelView view = channel_view(input, scale, axis, kQuantize);
    check_zero_point(zero_point, scale, kQuantize);
    inputs = torch::stable::contiguous(input);
    scales = torch::stable::contiguous(scale);
    zero_points = torch::stable::contiguous(zero_point);
    output = torch::stable::new_empty(inputs, inputs.sizes(), is_signed ? ScalarType::Char : ScalarType::Byte);
    params = {inputs.const_data_ptr<float>(),
              output.mutable_data_ptr(),
              scales.const_data_ptr<float>(),
              zero_points.const_data_ptr<int32_t>(),
              view,
              static_cast<int32_t>(quant_min),
              static_cast<int32_t>(quant_max),
              is_signed};
  }

  Tensor inputs, scales, zero_points, output;
  QuantizeParams params;
};

struct Dequantization {
  Dequantization(const Tensor& input, const Tensor& scale, const Tensor& zero_point,
                 std::optional<int64_t> axis) {
    const bool is_signed = input.scalar_type() == ScalarType::Char;
    STD_TORCH_CHECK(is_signed || input.scalar_type() == ScalarType::Byte, kDequantize,
                    ": input must be int8 or uint8, got ", torch::headeronly::toString(input.scalar_type()));
    check_dtype(scale, ScalarType::Float, kDequantize, "scale");
    const ChannelView view = channel_view(input, scale, axis, kDequantize);
    check_zero_point(zero_point, scale, kDequantize);
    inputs = torch::stable::contiguous(input);
    scales = torch::stable::contiguous(scale);
    zero_points = torch::stable::contiguous(zero_point);
    output = torch::stable::new_empty(inputs, inputs.sizes(), ScalarType::Float);
    params = {inputs.const_data_ptr(),
              output.mutable_data_ptr<float>(),
              scales.const_data_ptr<float>(),
              zero_points.const_data_ptr<int32_t>(),
              view,
              is_signed};
  }

  Tensor inputs, scales, zero_points, output;
  DequantizeParams params;
};

}  // namespace pqk::torch_ops::quantize_detail
