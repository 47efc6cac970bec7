#include <tuple>

#include "core/cuda/fake_quantize.h"
#include "torch/cuda_library.h"
#include "torch/fake_quantize.h"

namespace pqk::torch_ops {
namespace {

using namespace fake_quantize_detail;

// The arguments on the device, with a dense output (`out` if given), checked but for the values of scale and
// zero_point: reading those would stop the stream.
struct Prepared {
  Prepared(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
           int64_t quant_max, std::optional<int64_t> axis, const std::optional<Tensor>& mask,
           const Tensor* out = nullptr)
      : arguments(input, scale, zero_point, quant_min, quant_max, axis, mask),
        output(out == nullptr ? empty_dense(input) : *out),
        scales(torch::stable::contiguous(scale)),
        zero_points(torch::stable::contiguous(zero_point)) {
    check_same_device(scale, input, kOp, "scale");
    check_same_device(zero_point, input, kOp, "zero_point");
    if (mask.has_value()) check_same_device(*mask, input, kOp, "mask");
    keep = mask_laid_out_as(mask, output);
    const CudaPlace place(input);
    params = {place.device,
              place.stream,
              arguments.type,
              memory_view(output, axis),
              scales.const_data_ptr(),
              zero_points.const_data_ptr(),
              arguments.zero_point_is_float,
              static_cast<double>(quant_min),
              static_cast<double>(quant_max),
              keep.has_value() ? static_cast<const uint8_t*>(keep->const_data_ptr()) : nullptr};
  }

  Arguments arguments;
  Tensor output, scales, zero_points;
  std::optional<Tensor> keep;
  cuda::FakeQuantizeParams params{};
};

Tensor forward_cuda(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                    int64_t quant_max, std::optional<int64_t> axis, const std::optional<Tensor>& mask,
                    Tensor* in_range, const Tensor* out = nullptr) {
  const Prepared prepared(input, scale, zero_point, quant_min, quant_max, axis, mask, out);
  if (in_range != nullptr) *in_range = new_bits(input);
  const Tensor dense = laid_out_as(input, prepared.output);
  uint8_t* bits = in_range == nullptr ? nullptr : static_cast<uint8_t*>(in_range->mutable_data_ptr());
  check_launch(
      cuda::fake_quantize(prepared.params, dense.const_data_ptr(), prepared.output.mutable_data_ptr(), bits),
      kOp);
  return prepared.output;
}

Tensor fake_quantize_cuda(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                          int64_t quant_max, std::optional<int64_t> axis, std::optional<Tensor> mask, double) {
  return forward_cuda(input, scale, zero_point, quant_min, quant_max, axis, mask, nullptr);
}

void fake_quantize_out_cuda(const Tensor& input, const Tensor& scale, const Tensor& zero_point,
                            int64_t quant_min, int64_t quant_max, std::optional<int64_t> axis,
                            std::optional<Tensor> mask, Tensor out) {
  const Arguments arguments(input, scale, zero_point, quant_min, quant_max, axis, mask);
  check_out(out, input, mask);
  check_same_device(out, input, kOp, "out");
  if (is_dense(out)) {
    forward_cuda(input, scale, zero_point, quant_min, quant_max, axis, mask, nullptr, &out);
    return;
  }
  torch::stable::copy_(out, forward_cuda(input, scale, zero_point, quant_min, quant_max, axis, mask, nullptr));
}

std::tuple<Tensor, Tensor> fake_quantize_ste_cuda(const Tensor& input, const Tensor& scale,
                                                  const Tensor& zero_point, int64_t quant_min,
                                                  int64_t quant_max, std::optional<int64_t> axis,
                                                  std::optional<Tensor> mask) {
  Tensor in_range;
  Tensor output = forward_cuda(input, scale, zero_point, quant_min, quant_max, axis, mask, &in_range);
  return {output, in_range};
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                               const Tensor& scale, const Tensor& zero_point,
                                                               int64_t quant_min, int64_t quant_max,
                                                               std::optional<int64_t> axis,
                                                               std::optional<Tensor> mask, double grad_scale) {
  const Prepared prepared(input, scale, zero_point, quant_min, quant_max, axis, mask);
  check_grad_output(grad_output, input);
  check_same_device(grad_output, input, kOp, "grad_output");
  const ParameterGradients sums(prepared.arguments, scale, zero_point);
  const Tensor dense = laid_out_as(input, prepared.output), grad = laid_out_as(grad_output, prepared.output);
  const int64_t count = cuda::num_partials(prepared.params.view);
  const Tensor partial = torch::stable::new_empty(scale, Sizes(&count, 1), ScalarType::Double);
  check_launch(
      cuda::fake_quantize_backward(
          prepared.params, {dense.const_data_ptr(), grad.const_data_ptr(), prepared.output.mutable_data_ptr(),
                            sums.scale.mutable_data_ptr(), sums.zero_point_data(), grad_scale,
                            static_cast<double*>(partial.mutable_data_ptr())}),
      kOp);
  return {prepared.output, sums.scale, sums.zero_point};
}

Tensor fake_quantize_ste_backward_cuda(const Tensor& grad_output, const Tensor& in_range) {
  const Tensor grad_input = empty_dense(grad_output);
  check_straight_through(grad_output, in_range, grad_input);
  check_same_device(in_range, grad_output, kOp, "in_range");
  const CudaPlace place(grad_output);
  check_launch(cuda::straight_through(
                   place.device, place.stream,
                   {grad_output.const_data_ptr(), static_cast<const uint8_t*>(in_range.const_data_ptr()),
                    grad_input.mutable_data_ptr(), grad_output.numel(),
                    static_cast<int64_t>(grad_output.element_size())}),
               kOp);
  return grad_input;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) {
  m.impl("fake_quantize", TORCH_BOX(&pqk::torch_ops::fake_quantize_cuda));
  m.impl("fake_quantize.out", TORCH_BOX(&pqk::torch_ops::fake_quantize_out_cuda));
  m.impl("fake_quantize_ste", TORCH_BOX(&pqk::torch_ops::fake_quantize_ste_cuda));
  m.impl("fake_quantize_backward", TORCH_BOX(&pqk::torch_ops::fake_quantize_backward_cuda));
  m.impl("fake_quantize_ste_backward", TORCH_BOX(&pqk::torch_ops::fake_quantize_ste_backward_cuda));
}
