#include "core/cuda/soft_histogram.h"

#include <tuple>

#include "torch/cuda_library.h"
#include "torch/soft_histogram.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = SoftHistogramArguments::kOp;

// Looking at the values of scale would stop the stream.
SoftHistogramArguments check_arguments(const Tensor& input, const Tensor& scale, int64_t quant_max,
                                       const std::optional<Tensor>& mask) {
  check_same_device(input, input, kOp, "input");
  check_same_device(scale, input, kOp, "scale");
  if (mask.has_value()) check_same_device(*mask, input, kOp, "mask");
  return {input, scale, quant_max, mask};
}

Tensor soft_histogram_cuda(const Tensor& input, const Tensor& scale, int64_t quant_max,
                           std::optional<Tensor> mask, double) {
  const SoftHistogramArguments arguments = check_arguments(input, scale, quant_max, mask);
  const SoftHistogramParams params = arguments.params();
  const CudaPlace place(input);
  const int64_t scratch = cuda::soft_histogram_blocks(place.device, params) * (params.bins() + 1);
  const Tensor partial = torch::stable::new_empty(input, {scratch}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(input, {params.bins()}, ScalarType::Double);
  check_launch(cuda::soft_histogram(place.device, place.stream, params, partial.mutable_data_ptr<int64_t>(),
                                    counts.mutable_data_ptr<double>()),
               kOp);
  return counts;
}

std::tuple<Tensor, Tensor> soft_histogram_backward_cuda(const Tensor& grad_counts, const Tensor& input,
                                                        const Tensor& scale, int64_t quant_max,
                                                        std::optional<Tensor> mask, double grad_scale) {
  const SoftHistogramArguments arguments = check_arguments(input, scale, quant_max, mask);
  arguments.check_grad_counts(grad_counts);
  check_same_device(grad_counts, input, kOp, "grad_counts");
  const Tensor grad = torch::stable::contiguous(grad_counts);
  Tensor grad_input = torch::stable::new_empty(arguments.input, arguments.input.sizes(), ScalarType::Float);
  Tensor grad_of_scale = torch::stable::new_empty(arguments.scale, arguments.scale.sizes(), ScalarType::Float);
  const CudaPlace place(input);
  check_launch(
      cuda::soft_histogram_backward(place.device, place.stream, arguments.params(),
                                    {grad.const_data_ptr<double>(), grad_input.mutable_data_ptr<float>(),
                                     grad_of_scale.mutable_data_ptr<float>(), grad_scale}),
      kOp);
  return {grad_input, grad_of_scale};
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) {
  m.impl("soft_histogram", TORCH_BOX(&pqk::torch_ops::soft_histogram_cuda));
  m.impl("soft_histogram_backward", TORCH_BOX(&pqk::torch_ops::soft_histogram_backward_cuda));
}
