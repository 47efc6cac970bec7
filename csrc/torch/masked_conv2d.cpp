#include <array>

#include "torch/masked.h"

namespace pqk::torch_ops {
namespace {

struct Geometry {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
};

Tensor torch_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Geometry& geometry) {
  using torch::stable::detail::from;
  std::array<StableIValue, 7> stack{from(input),           from(weight),           from(bias),
                                    from(geometry.stride), from(geometry.padding), from(geometry.dilation),
                                    from(geometry.groups)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::conv2d", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// False for whatever torch's own convolution should handle or refuse.
bool fill_shape(const Tensor& input, const Tensor& weight, const Geometry& geometry, Conv2dShape& shape) {
  const bool regular = input.dim() == 4 && weight.dim() == 4 && geometry.groups == 1 && weight.numel() > 0 &&
                       input.size(1) == weight.size(1) && input.is_contiguous() &&
                       geometry.stride.size() == 2 && geometry.padding.size() == 2 &&
                       geometry.dilation.size() == 2;
  if (!regular) return false;
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t stride = geometry.stride[axis], pad = geometry.padding[axis],
                  dilation = geometry.dilation[axis];
    const int64_t room = input.size(2 + axis) + 2 * pad - dilation * (weight.size(2 + axis) - 1) - 1;
    if (stride < 1 || pad < 0 || dilation < 1 || room < 0) return false;
    out[axis] = room / stride + 1;
  }
  shape = {input.size(1),
           input.size(2),
           input.size(3),
           weight.size(0),
           out[0],
           out[1],
           weight.size(2),
           weight.size(3),
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

Tensor masked_conv2d_cpu(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation, int64_t groups) {
  constexpr const char* kOp = "pqk::masked_conv2d";
  check_mask(weight, mask, kOp);
  const Geometry geometry{stride, padding, dilation, groups};
  Conv2dShape shape{};
  int64_t kept = -1;
  if (fill_shape(input, weight, geometry, shape)) {
    kept = sparse_count(input, weight, mask, bias, input.size(0) * shape.out_height * shape.out_width);
  }
  if (kept < 0) return torch_conv2d(input, masked_weight(weight, mask), bias, geometry);
  const int64_t pixels = shape.out_height * shape.out_width;
  Tensor output = torch::stable::new_empty(
      input, {input.size(0), shape.out_channels, shape.out_height, shape.out_width}, input.scalar_type());
  run_masked(shape, weight, mask, kept,
             {input.const_data_ptr(), input.size(0), input.stride(0), input.stride(1), input.stride(2),
              input.stride(3)},
             bias, {output.mutable_data_ptr(), shape.out_channels * pixels, pixels, 1}, kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "masked_conv2d(Tensor input, Tensor weight, Tensor mask, Tensor? bias, int[] stride, int[] padding, "
      "int[] dilation, int groups) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("masked_conv2d", TORCH_BOX(&pqk::torch_ops::masked_conv2d_cpu));
}
