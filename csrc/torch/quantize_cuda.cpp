#include "torch/quantize.h"

#include "core/cuda/quantize.h"
#include "torch/cuda_library.h"

namespace pqk::torch_ops {
namespace {

using namespace quantize_detail;

// Neither the values of scale nor NaNs of the input are looked for: that would stop the stream.
Tensor quantize_cuda(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                     int64_t quant_max, std::optional<int64_t> axis) {
  check_same_device(scale, input, kQuantize, "scale");
  check_same_device(zero_point, input, kQuantize, "zero_point");
  const Quantization job(input, scale, zero_point, quant_min, quant_max, axis);
  const CudaPlace place(input);
  check_launch(cuda::quantize(place.device, place.stream, job.params), kQuantize);
  return job.output;
}

Tensor dequantize_cuda(const Tensor& input, const Tensor& scale, const Tensor& zero_point,
                       std::optional<int64_t> axis) {
  check_same_device(scale, input, kDequantize, "scale");
  check_same_device(zero_point, input, kDequantize, "zero_point");
  const Dequantization job(input, scale, zero_point, axis);
  const CudaPlace place(input);
  check_launch(cuda::dequantize(place.device, place.stream, job.params), kDequantize);
  return job.output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) {
  m.impl("quantize", TORCH_BOX(&pqk::torch_ops::quantize_cuda));
  m.impl("dequantize", TORCH_BOX(&pqk::torch_ops::dequantize_cuda));
}
