#include "torch/soft_histogram.h"

#include <tuple>

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = SoftHistogramArguments::kOp;

SoftHistogramArguments check_arguments(const Tensor& input, const Tensor& scale, int64_t quant_max,
                                       const std::optional<Tensor>& mask) {
  check_cpu(input, kOp, "input");
  check_cpu(scale, kOp, "scale");
  if (mask.has_value()) check_cpu(*mask, kOp, "mask");
  check_scale(scale, kOp);
  return {input, scale, quant_max, mask};
}

Tensor soft_histogram_cpu(const Tensor& input, const Tensor& scale, int64_t quant_max,
                          std::optional<Tensor> mask, double) {
  const SoftHistogramArguments arguments = check_arguments(input, scale, quant_max, mask);
  const SoftHistogramParams params = arguments.params();
  Tensor counts = torch::stable::new_empty(input, {params.bins()}, ScalarType::Double);
  soft_histogram(params, counts.mutable_data_ptr<double>(), TorchParallel());
  return counts;
}

std::tuple<Tensor, Tensor> soft_histogram_backward_cpu(const Tensor& grad_counts, const Tensor& input,
                                                       const Tensor& scale, int64_t quant_max,
                                                       std::optional<Tensor> mask, double grad_scale) {
  const SoftHistogramArguments arguments = check_arguments(input, scale, quant_max, mask);
  const SoftHistogramParams params = arguments.params();
  check_cpu(grad_counts, kOp, "grad_counts");
  arguments.check_grad_counts(grad_counts);
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
