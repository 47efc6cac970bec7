#include "core/fake_quantize.h"

#include <tuple>

#include "torch/fake_quantize.h"

namespace pqk::torch_ops {
namespace {

using namespace fake_quantize_detail;

// `output` is dense, of input's shape and dtype.
void forward_into(const Arguments& arguments, const Tensor& input, const Tensor& scale,
                  const Tensor& zero_point, std::optional<int64_t> axis, const std::optional<Tensor>& mask,
                  const Tensor& output, uint8_t* in_range) {
  const Tensor dense = laid_out_as(input, output);
  const ChannelParameters channels(arguments, scale, zero_point);
  const std::optional<Tensor> keep = mask_laid_out_as(mask, output);
  fake_quantize({channels.params(arguments, output, axis, keep), dense.const_data_ptr(),
                 output.mutable_data_ptr(), in_range},
                TorchParallel());
}

Tensor forward_cpu(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                   int64_t quant_max, std::optional<int64_t> axis, const std::optional<Tensor>& mask,
                   Tensor* in_range) {
  check_cpu(input, kOp, "input");
  const Arguments arguments(input, scale, zero_point, quant_min, quant_max, axis, mask);
  const Tensor output = empty_dense(input);
  if (in_range != nullptr) *in_range = new_bits(input);
  if (input.numel() == 0) return output;
  forward_into(arguments, input, scale, zero_point, axis, mask, output,
               in_range == nullptr ? nullptr : static_cast<uint8_t*>(in_range->mutable_data_ptr()));
  return output;
}

// grad_scale's factor is used by the backward pass alone.
Tensor fake_quantize_cpu(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                         int64_t quant_max, std::optional<int64_t> axis, std::optional<Tensor> mask, double) {
  return forward_cpu(input, scale, zero_point, quant_min, quant_max, axis, mask, nullptr);
}

void fake_quantize_out_cpu(const Tensor& input, const Tensor& scale, const Tensor& zero_point,
                           int64_t quant_min, int64_t quant_max, std::optional<int64_t> axis,
                           std::optional<Tensor> mask, Tensor out) {
  check_cpu(input, kOp, "input");
  check_cpu(out, kOp, "out");
  const Arguments arguments(input, scale, zero_point, quant_min, quant_max, axis, mask);
  check_out(out, input, mask);
  if (input.numel() == 0) return;
  if (is_dense(out)) return forward_into(arguments, input, scale, zero_point, axis, mask, out, nullptr);
  const Tensor output = empty_dense(input);
  forward_into(arguments, input, scale, zero_point, axis, mask, output, nullptr);
  torch::stable::copy_(out, output);
}

std::tuple<Tensor, Tensor> fake_quantize_ste_cpu(const Tensor& input, const Tensor& scale,
                                                 const Tensor& zero_point, int64_t quant_min, int64_t quant_max,
                                                 std::optional<int64_t> axis, std::optional<Tensor> mask) {
  Tensor in_range;
  Tensor output = forward_cpu(input, scale, zero_point, quant_min, quant_max, axis, mask, &in_range);
  return {output, in_range};
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                              const Tensor& scale, const Tensor& zero_point,
                                                              int64_t quant_min, int64_t quant_max,
                                                              std::optional<int64_t> axis,
                                                              std::optional<Tensor> mask, double grad_scale) {
  check_cpu(input, kOp, "input");
  const Arguments arguments(input, scale, zero_point, quant_min, quant_max, axis, mask);
  check_grad_output(grad_output, input);
  const Tensor grad_input = empty_dense(input);
  const ParameterGradients sums(arguments, scale, zero_point);
  const Tensor dense = laid_out_as(input, grad_input), grad = laid_out_as(grad_output, grad_input);
  const ChannelParameters channels(arguments, scale, zero_point);
  const std::optional<Tensor> keep = mask_laid_out_as(mask, grad_input);
  fake_quantize_backward(
      {channels.params(arguments, grad_input, axis, keep), dense.const_data_ptr(), grad.const_data_ptr(),
       grad_input.mutable_data_ptr(), sums.scale.mutable_data_ptr(), sums.zero_point_data(), grad_scale},
      TorchParallel());
  return {grad_input, sums.scale, sums.zero_point};
}

Tensor fake_quantize_ste_backward_cpu(const Tensor& grad_output, const Tensor& in_range) {
  check_cpu(grad_output, kOp, "grad_output");
  const Tensor grad_input = empty_dense(grad_output);
  check_straight_through(grad_output, in_range, grad_input);
  straight_through(
      {grad_output.const_data_ptr(), static_cast<const uint8_t*>(in_range.const_data_ptr()),
       grad_input.mutable_data_ptr(), grad_output.numel(), static_cast<int64_t>(grad_output.element_size())},
      TorchParallel());
  return grad_input;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "fake_quantize(Tensor input, Tensor scale, Tensor zero_point, int quant_min, int quant_max, "
      "int? axis=None, Tensor? mask=None, float grad_scale=1.0) -> Tensor");
  m.def(
      "fake_quantize.out(Tensor input, Tensor scale, Tensor zero_point, int quant_min, int quant_max, "
      "int? axis=None, Tensor? mask=None, *, Tensor(a!) out) -> ()");
  m.def(
      "fake_quantize_ste(Tensor input, Tensor scale, Tensor zero_point, int quant_min, int quant_max, "
      "int? axis=None, Tensor? mask=None) -> (Tensor output, Tensor in_range)");
  m.def(
      "fake_quantize_backward(Tensor grad_output, Tensor input, Tensor scale, Tensor zero_point, int "
      "quant_min, "
      "int quant_max, int? axis=None, Tensor? mask=None, float grad_scale=1.0) -> "
      "(Tensor grad_input, Tensor grad_scale, Tensor grad_zero_point)");
  m.def("fake_quantize_ste_backward(Tensor grad_output, Tensor in_range) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("fake_quantize", TORCH_BOX(&pqk::torch_ops::fake_quantize_cpu));
  m.impl("fake_quantize.out", TORCH_BOX(&pqk::torch_ops::fake_quantize_out_cpu));
  m.impl("fake_quantize_ste", TORCH_BOX(&pqk::torch_ops::fake_quantize_ste_cpu));
  m.impl("fake_quantize_backward", TORCH_BOX(&pqk::torch_ops::fake_quantize_backward_cpu));
  m.impl("fake_quantize_ste_backward", TORCH_BOX(&pqk::torch_ops::fake_quantize_ste_backward_cpu));
}
