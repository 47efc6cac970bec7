#include <array>
#include <tuple>

#include "torch/masked.h"

namespace pqk::torch_ops {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

struct Geometry {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
};

Tensor torch_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Geometry& geometry) {
  std::array<StableIValue, 7> stack{from(input),           from(weight),           from(bias),
                                    from(geometry.stride), from(geometry.padding), from(geometry.dilation),
                                    from(geometry.groups)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::conv2d", "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

// Gradients of input and weight; one that is not wanted is not computed.
std::array<Tensor, 2> torch_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                     const Geometry& geometry, bool want_input, bool want_weight) {
  const std::array<bool, 3> wanted{want_input, want_weight, false};
  std::array<StableIValue, 11> stack{from(grad),
                                     from(input),
                                     from(weight),
                                     from(std::optional<std::vector<int64_t>>()),
                                     from(geometry.stride),
                                     from(geometry.padding),
                                     from(geometry.dilation),
                                     from(false),
                                     from(std::vector<int64_t>{0, 0}),
                                     from(geometry.groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted.data(), 3))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  to<Tensor>(stack[2]);  // owned by nobody else
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// False for whatever torch's own convolution should handle or refuse. Both sizes have 4 elements.
bool fill_shape(const std::vector<int64_t>& input, const std::vector<int64_t>& weight, const Geometry& geometry,
                Conv2dShape& shape) {
  const auto count = [](const std::vector<int64_t>& sizes) {
    return sizes[0] * sizes[1] * sizes[2] * sizes[3];
  };
  const bool regular = input.size() == 4 && weight.size() == 4 && geometry.groups == 1 &&
                       input[1] == weight[1] && geometry.stride.size() == 2 && geometry.padding.size() == 2 &&
                       geometry.dilation.size() == 2 && count(input) > 0 && count(weight) > 0 &&
                       count(weight) <= INT32_MAX;
  if (!regular) return false;
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t stride = geometry.stride[axis], pad = geometry.padding[axis],
                  dilation = geometry.dilation[axis];
    if (stride < 1 || pad < 0 || dilation < 1) return false;
    const int64_t room = input[2 + axis] + 2 * pad - dilation * (weight[2 + axis] - 1) - 1;
    if (room < 0) return false;
    out[axis] = room / stride + 1;
  }
  shape = {input[1],
           input[2],
           input[3],
           weight[0],
           out[0],
           out[1],
           weight[2],
           weight[3],
           geometry.stride[0],
           geometry.stride[1],
           geometry.dilation[0],
           geometry.dilation[1],
           1,
           geometry.padding[0],
           geometry.padding[1],
           geometry.padding[0],
           geometry.padding[1]};
  return true;
}

bool fill_shape(const Tensor& input, const Tensor& weight, const Geometry& geometry, Conv2dShape& shape) {
  return is_float(input) && is_float(weight) &&
         fill_shape({input.sizes().begin(), input.sizes().end()},
                    {weight.sizes().begin(), weight.sizes().end()}, geometry, shape);
}

// Torch's convolutions give channels_last where input or weight is so.
bool gives_channels_last(const Tensor& input, const Tensor& weight) {
  return is_channels_last(input) || is_channels_last(weight);
}

Tensor new_images(const Tensor& like, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  return torch::stable::empty({like.size(0), channels, height, width}, ScalarType::Float, std::nullopt,
                              like.device(), std::nullopt, memory_format(channels_last));
}

// Either layout is read as it lies; others are copied.
Tensor dense_images(const Tensor& tensor, bool channels_last) {
  return tensor.stride(1) == 1 || tensor.stride(3) == 1
             ? tensor
             : torch::stable::contiguous(tensor, memory_format(channels_last));
}

ImageBatch batch(const Tensor& t) {
  return {static_cast<float*>(t.data_ptr()), t.size(0), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

Tensor masked_conv2d_cpu(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation, int64_t groups, std::string kernel,
                         bool assume_masked) {
  constexpr const char* kOp = "pqk::masked_conv2d";
  check_mask(weight, mask, kOp);
  const Geometry geometry{stride, padding, dilation, groups};
  Conv2dShape shape{};
  const bool possible = fill_shape(input, weight, geometry, shape) && fits_bias(bias, weight.size(0));
  const bool channels_last = gives_channels_last(input, weight);
  const Planner planner(check_kernel(kernel, kOp), possible, shape, input.size(0), mask, channels_last, kOp);
  if (!planner.sparse(MaskedStep::kOutput)) {
    return torch_conv2d(input, assume_masked ? weight : masked_weight(weight, mask), bias, geometry);
  }
  const WeightArguments weights(weight, mask);
  const Tensor images = dense_images(input, channels_last);
  std::optional<Tensor> biases;
  if (bias.has_value()) biases = torch::stable::contiguous(*bias);
  Tensor output = new_images(input, shape.out_channels, shape.out_height, shape.out_width, channels_last);
  run_masked(kOp, [&] {
    masked_conv2d(shape, weights.get(), biases.has_value() ? biases->const_data_ptr<float>() : nullptr,
                  batch(images), batch(output), TorchParallel());
  });
  return output;
}

struct BackwardArguments {
  const Tensor &grad, &input, &weight, &mask;
  const Geometry& geometry;
  const Conv2dShape& shape;
  bool channels_last;
};

Tensor sparse_grad_input(const BackwardArguments& a, const char* op) {
  const WeightArguments weights(a.weight, a.mask);
  const Tensor grad = dense_images(a.grad, a.channels_last);
  Tensor output = new_images(a.input, a.input.size(1), a.input.size(2), a.input.size(3), a.channels_last);
  run_masked(op, [&] {
    masked_conv2d_grad_input(a.shape, weights.get(), batch(grad), batch(output), TorchParallel());
  });
  return output;
}

Tensor sparse_grad_weight(const BackwardArguments& a, const char* op) {
  const WeightArguments weights(a.weight, a.mask);
  const Tensor grad = dense_images(a.grad, a.channels_last), input = dense_images(a.input, a.channels_last);
  Tensor output = torch::stable::empty(a.weight.sizes(), ScalarType::Float, std::nullopt, a.weight.device(),
                                       std::nullopt, memory_format(weights.channels_last));
  run_masked(op, [&] {
    masked_conv2d_grad_weight(a.shape, weights.get(), batch(input), batch(grad),
                              output.mutable_data_ptr<float>(), TorchParallel());
  });
  return output;
}

// Gradients of input and weight, each empty where it is not wanted. Layouts do not depend on the kernels: that
// of the output for the input's, the weight's for its own.
std::tuple<Tensor, Tensor> masked_conv2d_backward_cpu(const Tensor& grad, const Tensor& input,
                                                      const Tensor& weight, const Tensor& mask,
                                                      std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                      std::vector<int64_t> dilation, int64_t groups,
                                                      std::string kernel, bool assume_masked, bool want_input,
                                                      bool want_weight) {
  constexpr const char* kOp = "pqk::masked_conv2d_backward";
  check_mask(weight, mask, kOp);
  const Geometry geometry{stride, padding, dilation, groups};
  Conv2dShape shape{};
  bool possible = fill_shape(input, weight, geometry, shape) && is_float(grad) && grad.dim() == 4;
  if (possible) {
    const std::string expected = shape_string(grad);
    const int64_t sizes[] = {input.size(0), shape.out_channels, shape.out_height, shape.out_width};
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(grad.size(i) == sizes[i], kOp, ": grad must have the output's shape [", sizes[0], ", ",
                      sizes[1], ", ", sizes[2], ", ", sizes[3], "], got ", expected);
    }
  }
  const bool channels_last = gives_channels_last(input, weight);
  const Planner planner(check_kernel(kernel, kOp), possible, shape, input.size(0), mask, channels_last, kOp);
  const bool sparse_input = want_input && planner.sparse(MaskedStep::kGradInput);
  const bool sparse_weight = want_weight && planner.sparse(MaskedStep::kGradWeight);
  const BackwardArguments arguments{grad, input, weight, mask, geometry, shape, channels_last};
  Tensor grad_input = torch::stable::new_empty(grad, {0}), grad_weight = torch::stable::new_empty(grad, {0});
  const bool dense_input = want_input && !sparse_input, dense_weight = want_weight && !sparse_weight;
  if (dense_input || dense_weight) {
    const std::array<Tensor, 2> dense = torch_backward(
        grad, input, assume_masked ? weight : masked_weight(weight, mask), geometry, dense_input, dense_weight);
    if (dense_input) grad_input = torch::stable::contiguous(dense[0], memory_format(channels_last));
    if (dense_weight) {
      const auto format = memory_format(is_channels_last(weight));
      grad_weight = torch::stable::contiguous(assume_masked ? dense[1] : masked_weight(dense[1], mask), format);
    }
  }
  if (sparse_input) grad_input = sparse_grad_input(arguments, kOp);
  if (sparse_weight) grad_weight = sparse_grad_weight(arguments, kOp);
  return {grad_input, grad_weight};
}

// Whether the output, the gradient of the input or that of the weight would come from kept weights alone.
bool masked_conv2d_skips_cpu(std::vector<int64_t> input, std::vector<int64_t> weight, int64_t kept,
                             std::vector<int64_t> stride, std::vector<int64_t> padding,
                             std::vector<int64_t> dilation, bool channels_last) {
  Conv2dShape shape{};
  if (!fill_shape(input, weight, {stride, padding, dilation, 1}, shape)) return false;
  return masked_conv2d_wins(MaskedStep::kOutput, shape, input[0], kept, channels_last) ||
         masked_conv2d_wins(MaskedStep::kGradInput, shape, input[0], kept, channels_last) ||
         masked_conv2d_wins(MaskedStep::kGradWeight, shape, input[0], kept, channels_last);
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "masked_conv2d(Tensor input, Tensor weight, Tensor mask, Tensor? bias, int[] stride, int[] padding, "
      "int[] dilation, int groups, str kernel=\"auto\", bool assume_masked=False) -> Tensor");
  m.def(
      "masked_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor mask, int[] stride, int[] "
      "padding, int[] dilation, int groups, str kernel, bool assume_masked, bool want_input, bool want_weight) "
      "-> (Tensor, "
      "Tensor)");
  m.def(
      "masked_conv2d_skips(int[] input, int[] weight, int kept, int[] stride, int[] padding, int[] dilation, "
      "bool channels_last) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CompositeExplicitAutograd, m) {
  m.impl("masked_conv2d_skips", TORCH_BOX(&pqk::torch_ops::masked_conv2d_skips_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("masked_conv2d", TORCH_BOX(&pqk::torch_ops::masked_conv2d_cpu));
  m.impl("masked_conv2d_backward", TORCH_BOX(&pqk::torch_ops::masked_conv2d_backward_cpu));
}
