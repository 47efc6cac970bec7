#include "core/quantize.h"

#include "torch/check.h"

namespace pqk::torch_ops {
namespace {

void check_zero_point(const Tensor& zero_point, const Tensor& scale, const char* op) {
  check_dtype(zero_point, ScalarType::Int, op, "zero_point");
  STD_TORCH_CHECK(zero_point.numel() == scale.numel(), op, ": zero_point must have as many elements as scale (",
                  scale.numel(), "), got ", zero_point.numel());
}

Tensor quantize_cpu(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                    int64_t quant_max, std::optional<int64_t> axis) {
  constexpr const char* kOp = "pqk::quantize";
  check_cpu(input, kOp, "input");
  check_dtype(input, ScalarType::Float, kOp, "input");
  check_scale(scale, kOp);
  const bool is_signed = quant_min < 0;
  check_quant_range(quant_min, quant_max, is_signed ? -128 : 0, is_signed ? 127 : 255, kOp);
  const ChannelView view = channel_view(input, scale, axis, kOp);
  check_zero_point(zero_point, scale, kOp);
  const Tensor contiguous = torch::stable::contiguous(input);
  const Tensor scales = torch::stable::contiguous(scale), zero_points = torch::stable::contiguous(zero_point);
  Tensor output =
      torch::stable::new_empty(contiguous, contiguous.sizes(), is_signed ? ScalarType::Char : ScalarType::Byte);
  const QuantizeParams params{contiguous.const_data_ptr<float>(),
                              output.mutable_data_ptr(),
                              scales.const_data_ptr<float>(),
                              zero_points.const_data_ptr<int32_t>(),
                              view,
                              static_cast<int32_t>(quant_min),
                              static_cast<int32_t>(quant_max),
                              is_signed};
  const int64_t nan_at = quantize(params, TorchParallel());
  STD_TORCH_CHECK(nan_at < 0, kOp, ": input must not contain NaN, found one at flat index ", nan_at);
  return output;
}

Tensor dequantize_cpu(const Tensor& input, const Tensor& scale, const Tensor& zero_point,
                      std::optional<int64_t> axis) {
  constexpr const char* kOp = "pqk::dequantize";
  check_cpu(input, kOp, "input");
  const bool is_signed = input.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(is_signed || input.scalar_type() == ScalarType::Byte, kOp,
                  ": input must be int8 or uint8, got ", torch::headeronly::toString(input.scalar_type()));
  check_scale(scale, kOp);
  const ChannelView view = channel_view(input, scale, axis, kOp);
  check_zero_point(zero_point, scale, kOp);
  const Tensor contiguous = torch::stable::contiguous(input);
  const Tensor scales = torch::stable::contiguous(scale), zero_points = torch::stable::contiguous(zero_point);
  Tensor output = torch::stable::new_empty(contiguous, contiguous.sizes(), ScalarType::Float);
  dequantize({contiguous.const_data_ptr(), output.mutable_data_ptr<float>(), scales.const_data_ptr<float>(),
              zero_points.const_data_ptr<int32_t>(), view, is_signed},
             TorchParallel());
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "quantize(Tensor input, Tensor scale, Tensor zero_point, int quant_min, int quant_max, int? axis=None) "
      "-> "
      "Tensor");
  m.def("dequantize(Tensor input, Tensor scale, Tensor zero_point, int? axis=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("quantize", TORCH_BOX(&pqk::torch_ops::quantize_cpu));
  m.impl("dequantize", TORCH_BOX(&pqk::torch_ops::dequantize_cpu));
}
