// Argument checks of norm_activation on any device.
#pragma once

#include "core/norm_activation.h"
#include "torch/fake_quantize.h"

namespace pqk::torch_ops::norm_activation_detail {

using fake_quantize_detail::empty_dense;
using fake_quantize_detail::laid_out_as;
using fake_quantize_detail::memory_view;

inline constexpr const char* kOp = "pqk::norm_activation";

inline Tensor new_floats(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {size}, ScalarType::Float);
}

inline void check_channels(const std::optional<Tensor>& tensor, int64_t channels, const char* argument) {
  if (!tensor.has_value()) return;
  check_dtype(*tensor, ScalarType::Float, kOp, argument);
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == channels && tensor->is_contiguous(), kOp, ": ",
                  argument, " must be contiguous of shape [", channels, "], got ", shape_string(*tensor));
}

inline void check_like_input(const Tensor& tensor, const Tensor& input, const char* argument) {
  check_dtype(tensor, ScalarType::Float, kOp, argument);
  STD_TORCH_CHECK(shape_string(tensor) == shape_string(input), kOp, ": ", argument,
                  " must have the shape of input, ", shape_string(input), ", got ", shape_string(tensor));
}

// The arguments that both directions share.
struct Arguments {
  const Tensor& input;
  const std::optional<Tensor>&residual, &weight, &bias, &scale, &zero_point;
  double eps, low, high;
  int64_t quant_max;

  int64_t channels() const { return input.size(1); }

  // All but the value of scale; check_place(tensor, argument) checks where a tensor lies.
  template <class CheckPlace>
  void check(const CheckPlace& check_place) const {
    check_place(input, "input");
    const std::pair<const std::optional<Tensor>&, const char*> others[] = {{residual, "residual"},
                                                                           {weight, "weight"},
                                                                           {bias, "bias"},
                                                                           {scale, "scale"},
                                                                           {zero_point, "zero_point"}};
    for (const auto& [tensor, argument] : others) {
      if (tensor.has_value()) check_place(*tensor, argument);
    }
    check_dtype(input, ScalarType::Float, kOp, "input");
    STD_TORCH_CHECK(input.dim() >= 2, kOp, ": input must have at least 2 dimensions, got ",
                    shape_string(input));
    if (residual.has_value()) check_like_input(*residual, input, "residual");
    check_channels(weight, channels(), "weight");
    check_channels(bias, channels(), "bias");
    STD_TORCH_CHECK(scale.has_value() == zero_point.has_value(), kOp,
                    ": scale and zero_point must be given together");
    if (!scale.has_value()) return;
    check_dtype(*scale, ScalarType::Float, kOp, "scale");
    check_dtype(*zero_point, ScalarType::Int, kOp, "zero_point");
    STD_TORCH_CHECK(scale->numel() == 1 && zero_point->numel() == 1, kOp,
                    ": scale and zero_point must have 1 element, got ", scale->numel(), " and ",
                    zero_point->numel());
    check_quant_range(0, quant_max, 0, fake_quantize_detail::kCodeLimit, kOp);
  }

  // Backward's; whether the forward pass normalized.
  template <class CheckPlace>
  bool check_backward(const Tensor& grad_output, const Tensor& mean, const Tensor& variance,
                      const CheckPlace& check_place) const {
    check_place(grad_output, "grad_output");
    check_like_input(grad_output, input, "grad_output");
    if (mean.numel() == 0) return false;
    check_place(mean, "mean");
    check_place(variance, "variance");
    check_channels(mean, channels(), "mean");
    check_channels(variance, channels(), "variance");
    return true;
  }

  // Forward's.
  template <class CheckPlace>
  void check_statistics(const std::optional<Tensor>& mean, const std::optional<Tensor>& variance,
                        bool batch_statistics, const CheckPlace& check_place) const {
    if (mean.has_value()) check_place(*mean, "mean");
    if (variance.has_value()) check_place(*variance, "variance");
    check_channels(mean, channels(), "mean");
    check_channels(variance, channels(), "variance");
    STD_TORCH_CHECK(mean.has_value() == variance.has_value(), kOp,
                    ": mean and variance must be given together");
    STD_TORCH_CHECK(!batch_statistics || input.numel() > channels(), kOp,
                    ": batch statistics need more than 1 value per channel, got input of shape ",
                    shape_string(input));
  }
};

}  // namespace pqk::torch_ops::norm_activation_detail
