// Argument checks of soft_histogram on any device.
#pragma once

#include "core/soft_histogram.h"
#include "torch/check.h"

namespace pqk::torch_ops {

// The arguments as contiguous tensors, checked but for where they lie and the values of scale.
class SoftHistogramArguments {
 public:
  static constexpr const char* kOp = "pqk::soft_histogram";

  SoftHistogramArguments(const Tensor& input, const Tensor& scale, int64_t quant_max,
                         const std::optional<Tensor>& mask)
      : input(input), scale(scale), quant_max_(quant_max) {
    check_dtype(input, ScalarType::Float, kOp, "input");
    STD_TORCH_CHECK(input.dim() >= 1, kOp, ": input must have at least 1 dimension, got a scalar");
    check_dtype(scale, ScalarType::Float, kOp, "scale");
    channel_view(input, scale, 0, kOp);
    STD_TORCH_CHECK(quant_max >= 1, kOp, ": quant_max must be at least 1, got ", quant_max);
    check_quant_range(-quant_max, quant_max, -127, 127, kOp);
    if (mask.has_value()) {
      check_dtype(*mask, ScalarType::Bool, kOp, "mask");
      STD_TORCH_CHECK(shape_string(*mask) == shape_string(input), kOp, ": mask must have input's shape ",
                      shape_string(input), ", got ", shape_string(*mask));
      mask_ = torch::stable::contiguous(*mask);
    }
    this->input = torch::stable::contiguous(input);
    this->scale = torch::stable::contiguous(scale);
  }

  SoftHistogramParams params() const {
    const int64_t rows = input.size(0);
    return {input.const_data_ptr<float>(),
            scale.const_data_ptr<float>(),
            mask_.has_value() ? static_cast<const uint8_t*>(mask_->const_data_ptr()) : nullptr,
            rows,
            rows == 0 ? 0 : input.numel() / rows,
            static_cast<int32_t>(quant_max_)};
  }

  void check_grad_counts(const Tensor& grad_counts) const {
    const int64_t bins = params().bins();
    check_dtype(grad_counts, ScalarType::Double, kOp, "grad_counts");
    STD_TORCH_CHECK(grad_counts.dim() == 1 && grad_counts.size(0) == bins, kOp,
                    ": grad_counts must have shape [", bins, "], got ", shape_string(grad_counts));
  }

  Tensor input, scale;

 private:
  int64_t quant_max_;
  std::optional<Tensor> mask_;
};

}  // namespace pqk::torch_ops
