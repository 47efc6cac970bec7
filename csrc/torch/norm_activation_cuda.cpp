#include "core/cuda/norm_activation.h"

#include <tuple>

#include "torch/cuda_library.h"
#include "torch/norm_activation.h"

namespace pqk::torch_ops {
namespace {

using namespace norm_activation_detail;

auto same_device_as(const Tensor& input) {
  return
      [&input](const Tensor& tensor, const char* argument) { check_same_device(tensor, input, kOp, argument); };
}

const float* floats(const std::optional<Tensor>& tensor) {
  return tensor.has_value() && tensor->numel() > 0 ? tensor->const_data_ptr<float>() : nullptr;
}

// Tensors in one memory order, and scratch memory. Looking at the value of scale would stop the stream.
struct Prepared {
  Prepared(const Arguments& a, const Tensor& like, const std::optional<Tensor>& mean,
           const std::optional<Tensor>& variance)
      : input(laid_out_as(a.input, like)),
        residual(a.residual.has_value() ? std::optional<Tensor>(laid_out_as(*a.residual, like))
                                        : std::nullopt) {
    const CudaPlace place(a.input);
    params = {place.device,
              place.stream,
              memory_view(like, 1),
              input.const_data_ptr<float>(),
              floats(residual),
              floats(a.weight),
              floats(a.bias),
              floats(mean),
              floats(variance),
              a.eps,
              static_cast<float>(a.low),
              static_cast<float>(a.high),
              floats(a.scale),
              a.zero_point.has_value() ? a.zero_point->const_data_ptr<int32_t>() : nullptr,
              static_cast<float>(a.quant_max)};
    scratch = torch::stable::new_empty(like, {cuda::norm_activation_scratch(params)}, ScalarType::Byte);
  }
  void* memory() const { return scratch.mutable_data_ptr(); }

  Tensor input, scratch;
  std::optional<Tensor> residual;
  cuda::NormActivationParams params{};
};

std::tuple<Tensor, Tensor, Tensor> forward_cuda(const Tensor& input, std::optional<Tensor> residual,
                                                std::optional<Tensor> weight, std::optional<Tensor> bias,
                                                std::optional<Tensor> mean, std::optional<Tensor> variance,
                                                std::optional<Tensor> scale, std::optional<Tensor> zero_point,
                                                bool batch_statistics, double eps, double low, double high,
                                                int64_t quant_max, double) {
  const Arguments arguments{input, residual, weight, bias, scale, zero_point, eps, low, high, quant_max};
  arguments.check(same_device_as(input));
  arguments.check_statistics(mean, variance, batch_statistics, same_device_as(input));
  const bool normalizes = batch_statistics || mean.has_value();
  const int64_t statistics = normalizes ? arguments.channels() : 0;
  Tensor output = empty_dense(input);
  Tensor used_mean = new_floats(input, statistics), used_variance = new_floats(input, statistics);
  const Prepared prepared(arguments, output, used_mean, used_variance);
  if (batch_statistics) {
    check_launch(cuda::norm_statistics(prepared.params, prepared.memory(), used_mean.mutable_data_ptr<float>(),
                                       used_variance.mutable_data_ptr<float>()),
                 kOp);
  } else if (normalizes) {
    torch::stable::copy_(used_mean, *mean);
    torch::stable::copy_(used_variance, *variance);
  }
  check_launch(cuda::norm_activation(prepared.params, prepared.memory(), output.mutable_data_ptr<float>()),
               kOp);
  return {output, used_mean, used_variance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_cuda(
    const Tensor& grad_output, const Tensor& input, std::optional<Tensor> residual,
    std::optional<Tensor> weight, std::optional<Tensor> bias, const Tensor& mean, const Tensor& variance,
    std::optional<Tensor> scale, std::optional<Tensor> zero_point, bool batch_statistics, double eps,
    double low, double high, int64_t quant_max, double grad_scale) {
  const Arguments arguments{input, residual, weight, bias, scale, zero_point, eps, low, high, quant_max};
  const auto check_place = same_device_as(input);
  arguments.check(check_place);
  const int64_t channels = arguments.channels();
  const bool normalizes = arguments.check_backward(grad_output, mean, variance, check_place);
  const Tensor grad_input = empty_dense(input);
  const bool has_sum = normalizes && residual.has_value();
  const Tensor grad_sum = has_sum ? empty_dense(input) : new_floats(input, 0);
  const Tensor grad_weight = new_floats(input, channels), grad_bias = new_floats(input, channels);
  const Tensor grad_of_scale = new_floats(input, 1);
  const Prepared prepared(arguments, grad_input, mean, variance);
  const Tensor grad = laid_out_as(grad_output, grad_input);
  check_launch(
      cuda::norm_activation_backward(
          prepared.params, prepared.memory(),
          {grad.const_data_ptr<float>(), batch_statistics, grad_input.mutable_data_ptr<float>(),
           has_sum ? grad_sum.mutable_data_ptr<float>() : nullptr, grad_weight.mutable_data_ptr<float>(),
           grad_bias.mutable_data_ptr<float>(), grad_of_scale.mutable_data_ptr<float>(), grad_scale}),
      kOp);
  return {grad_input, grad_sum, grad_weight, grad_bias, grad_of_scale};
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) {
  m.impl("norm_activation", TORCH_BOX(&pqk::torch_ops::forward_cuda));
  m.impl("norm_activation_backward", TORCH_BOX(&pqk::torch_ops::backward_cuda));
}
