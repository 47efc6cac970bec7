#include <array>

#include "torch/masked.h"

namespace pqk::torch_ops {
namespace {

Tensor torch_linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(input), torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor masked_linear_cpu(const Tensor& input, const Tensor& weight, const Tensor& mask,
                         std::optional<Tensor> bias) {
  constexpr const char* kOp = "pqk::masked_linear";
  check_mask(weight, mask, kOp);
  const int64_t in = weight.dim() == 2 ? weight.size(1) : 0;
  const bool regular = in > 0 && weight.size(0) > 0 && input.dim() >= 1 && input.size(input.dim() - 1) == in;
  const int64_t images = regular ? input.numel() / in : 0;
  const int64_t kept = regular ? sparse_count(input, weight, mask, bias, images) : -1;
  if (kept < 0) return torch_linear(input, masked_weight(weight, mask), bias);
  const int64_t out = weight.size(0);
  const Tensor contiguous = torch::stable::contiguous(input);
  std::vector<int64_t> sizes(input.sizes().begin(), input.sizes().end());
  sizes.back() = out;
  Tensor output = torch::stable::new_empty(contiguous, sizes);
  Conv2dShape shape{};
  shape.in_channels = in;
  shape.out_channels = out;
  shape.in_height = shape.in_width = shape.out_height = shape.out_width = 1;
  shape.kernel_height = shape.kernel_width = shape.stride_height = shape.stride_width = 1;
  shape.dilation_height = shape.dilation_width = shape.groups = 1;
  run_masked(shape, weight, mask, kept, {contiguous.const_data_ptr(), images, in, 1, in, in}, bias,
             {output.mutable_data_ptr(), out, 1, out}, kOp);
  return output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def("masked_linear(Tensor input, Tensor weight, Tensor mask, Tensor? bias=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&pqk::torch_ops::masked_linear_cpu));
}
