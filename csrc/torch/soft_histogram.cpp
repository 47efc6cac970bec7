#include "core/soft_histogram.h"

#include <tuple>

#include "torch/check.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::soft_histogram";

// The arguments, checked, as contiguous tensors.
class Arguments {
 public:
  Arguments(const Tensor& input, const Tensor& scale, int64_t quant_max, const std::optional<Tensor>& mask)
      : input(input), scale(scale), quant_max_(quant_max) {
    check_cpu(input, kOp, "input");
    check_dtype(input, ScalarType::Float, kOp, "input");
    STD_TORCH_CHECK(input.dim() >= 1, kOp, ": input must have at least 1 dimension, got a scalar");
    check_scale(scale, kOp);
    channel_view(input, scale, 0, kOp);
    STD_TORCH_CHECK(quant_max >= 1, kOp, ": quant_max must be at least 1, got ", quant_max);
    check_quant_range(-quant_max, quant_max, -127, 127, kOp);
    this->input = torch::stable::contiguous(input);
    this->scale = torch::stable::contiguous(scale);
    if (!mask.has_value()) return;
    check_dtype(*mask, ScalarType::Bool, kOp, "mask");
    STD_TORCH_CHECK(shape_string(*mask) == shape_string(input), kOp, ": mask must have input's shape ",
                    shape_string(input), ", got ", shape_string(*mask));
    check_cpu(*mask, kOp, "mask");
    mask_ = torch::stable::contiguous(*mask);
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

  Tensor input, scale;

 private:
  int64_t quant_max_;
  std::optional<Tensor> mask_;
};

Tensor soft_histogram_cpu(const Tensor& input, const Tensor& scale, int64_t quant_max,
                          std::optional<Tensor> mask, double) {
  const Arguments arguments(input, scale, quant_max, mask);
  const SoftHistogramParams params = arguments.params();
  Tensor counts = torch::stable::new_empty(input, {params.bins()}, ScalarType::Double);
  soft_histogram(params, counts.mutable_data_ptr<double>(), TorchParallel());
  return counts;
}

std::tuple<Tensor, Tensor> soft_histogram_backward_cpu(const Tensor& grad_counts, const Tensor& input,
                                                       const Tensor& scale, int64_t quant_max,
                                                       std::optional<Tensor> mask, double grad_scale) {
  const Arguments arguments(input, scale, quant_max, mask);
  const SoftHistogramParams params = arguments.params();
  check_cpu(grad_counts, kOp, "grad_counts");
  check_dtype(grad_counts, ScalarType::Double, kOp, "grad_counts");
  STD_TORCH_CHECK(grad_counts.dim() == 1 && grad_counts.size(0) == params.bins(), kOp,
                  ": grad_counts must have shape [", params.bins(), "], got ", shape_string(grad_counts));
  const Tensor grad = torch::stable::contiguous(grad_counts);
  const double* of_count = grad.const_data_ptr<double>();
  std::vector<float> step(params.bins(), 0.0f);
  for (int64_t i = 0; i + 1 < params.bins(); ++i) step[i] = static_cast<float>(of_count[i + 1] - of_count[i]);
  Tensor grad_input = torch::stable::new_empty(arguments.input, arguments.input.sizes(), ScalarType::Float);
  Tensor grad_of_scale = torch::stable::new_empty(arguments.scale, arguments.scale.sizes(), ScalarType::Float);
  soft_histogram_backward({params, step.data(), grad_input.mutable_data_ptr<float>(),
                           grad_of_scale.mutable_data_ptr<float>(), grad_scale},
                          TorchParallel());
  return {grad_input, grad_of_scale};
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "soft_histogram(Tensor input, Tensor scale, int quant_max, Tensor? mask=None, float grad_scale=1.0) -> "
      "Tensor");
  m.def(
      "soft_histogram_backward(Tensor grad_counts, Tensor input, Tensor scale, int quant_max, "
      "Tensor? mask=None, float grad_scale=1.0) -> (Tensor grad_input, Tensor grad_scale)");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("soft_histogram", TORCH_BOX(&pqk::torch_ops::soft_histogram_cpu));
  m.impl("soft_histogram_backward", TORCH_BOX(&pqk::torch_ops::soft_histogram_backward_cpu));
}
