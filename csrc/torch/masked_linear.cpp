#include <array>
#include <tuple>

#include "torch/masked.h"

namespace pqk::torch_ops {
namespace {

Tensor torch_linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(input), torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// A linear layer as a 1x1 convolution of 1x1 images; false for whatever torch's own should handle or refuse.
bool fill_shape(const Tensor& input, const Tensor& weight, Conv2dShape& shape) {
  const bool regular = weight.dim() == 2 && weight.numel() > 0 && weight.numel() <= INT32_MAX &&
                       input.dim() >= 1 && input.numel() > 0 && is_float(input) && is_float(weight) &&
                       input.size(input.dim() - 1) == weight.size(1);
  if (!regular) return false;
  shape.in_channels = weight.size(1);
  shape.out_channels = weight.size(0);
  shape.in_height = shape.in_width = shape.out_height = shape.out_width = 1;
  shape.kernel_height = shape.kernel_width = shape.stride_height = shape.stride_width = 1;
  shape.dilation_height = shape.dilation_width = shape.groups = 1;
  return true;
}

ImageBatch batch(const Tensor& contiguous, int64_t features) {
  return {static_cast<float*>(contiguous.data_ptr()),
          contiguous.numel() / features,
          features,
          1,
          features,
          features};
}

Tensor masked_linear_cpu(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         std::optional<Tensor> bias, std::string kernel, bool assume_masked) {
  constexpr const char* kOp = "pqk::masked_linear";
  check_mask(weight, mask, kOp);
  Conv2dShape shape{};
  const bool possible = fill_shape(input, weight, shape) && fits_bias(bias, weight.size(0));
  const int64_t rows = possible ? input.numel() / shape.in_channels : 0;
  const Planner planner(check_kernel(kernel, kOp), possible, shape, rows, mask, true, kOp);
  if (!planner.sparse(MaskedStep::kOutput)) {
    return torch_linear(input, assume_masked ? weight : masked_weight(weight, mask), bias);
  }
  const WeightArguments weights(weight, mask);
  const Tensor contiguous = torch::stable::contiguous(input);
  std::optional<Tensor> biases;
  if (bias.has_value()) biases = torch::stable::contiguous(*bias);
  Tensor output = torch::stable::new_empty(contiguous, LinearOutput(input, shape.out_channels).shape);
  run_masked(kOp, [&] {
    masked_conv2d(shape, weights.get(), biases.has_value() ? biases->const_data_ptr<float>() : nullptr,
                  batch(contiguous, shape.in_channels), batch(output, shape.out_channels), TorchParallel());
  });
  return output;
}

Tensor torch_grad_weight(const Tensor& grad, const Tensor& input) {
  const Tensor rows = torch::stable::reshape(grad, {-1, grad.size(grad.dim() - 1)});
  const Tensor inputs = torch::stable::reshape(input, {-1, input.size(input.dim() - 1)});
  return torch::stable::matmul(torch::stable::transpose(rows, 0, 1), inputs);
}

// Gradients of input and weight, contiguous, each empty where it is not wanted.
std::tuple<Tensor, Tensor> masked_linear_backward_cpu(const Tensor& grad, const Tensor& input,
                                                      const Tensor& weight, const Tensor& mask,
                                                      std::string kernel, bool assume_masked, bool want_input,
                                                      bool want_weight) {
  constexpr const char* kOp = "pqk::masked_linear_backward";
  check_mask(weight, mask, kOp);
  STD_TORCH_CHECK(weight.dim() == 2 && input.dim() >= 1 && input.size(input.dim() - 1) == weight.size(1), kOp,
                  ": input must have shape (..., ", weight.dim() == 2 ? weight.size(1) : -1, "), got ",
                  shape_string(input));
  const LinearOutput output(input, weight.size(0));
  STD_TORCH_CHECK(std::vector<int64_t>(grad.sizes().begin(), grad.sizes().end()) == output.shape, kOp,
                  ": grad must have the output's shape, got ", shape_string(grad));
  Conv2dShape shape{};
  const bool possible = fill_shape(input, weight, shape) && is_float(grad);
  const Planner planner(check_kernel(kernel, kOp), possible, shape, output.rows, mask, true, kOp);
  Tensor grad_input = torch::stable::new_empty(grad, {0}), grad_weight = torch::stable::new_empty(grad, {0});
  const Tensor grads = torch::stable::contiguous(grad);
  if (want_input && planner.sparse(MaskedStep::kGradInput)) {
    const WeightArguments weights(weight, mask);
    grad_input = torch::stable::new_empty(grads, input.sizes());
    run_masked(kOp, [&] {
      masked_conv2d_grad_input(shape, weights.get(), batch(grads, shape.out_channels),
                               batch(grad_input, shape.in_channels), TorchParallel());
    });
  } else if (want_input) {
    grad_input = torch::stable::contiguous(
        torch::stable::matmul(grads, assume_masked ? weight : masked_weight(weight, mask)));
  }
  if (want_weight && planner.sparse(MaskedStep::kGradWeight)) {
    const WeightArguments weights(weight, mask);
    const Tensor inputs = torch::stable::contiguous(input);
    grad_weight = torch::stable::new_empty(grads, weight.sizes());
    run_masked(kOp, [&] {
      masked_conv2d_grad_weight(shape, weights.get(), batch(inputs, shape.in_channels),
                                batch(grads, shape.out_channels), grad_weight.mutable_data_ptr<float>(),
                                TorchParallel());
    });
  } else if (want_weight) {
    const Tensor dense = torch_grad_weight(grads, input);
    grad_weight = torch::stable::contiguous(assume_masked ? dense : masked_weight(dense, mask));
  }
  return {grad_input, grad_weight};
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "masked_linear(Tensor input, Tensor weight, Tensor mask, Tensor? bias=None, str kernel=\"auto\", bool "
      "assume_masked=False) -> Tensor");
  m.def(
      "masked_linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor mask, str kernel, bool "
      "assume_masked, bool want_input, bool want_weight) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&pqk::torch_ops::masked_linear_cpu));
  m.impl("masked_linear_backward", TORCH_BOX(&pqk::torch_ops::masked_linear_backward_cpu));
}
