#include "torch/quantize.h"

namespace pqk::torch_ops {
namespace {

using namespace quantize_detail;

Tensor quantize_cpu(const Tensor& input, const Tensor& scale, const Tensor& zero_point, int64_t quant_min,
                    int64_t quant_max, std::optional<int64_t> axis) {
  check_cpu(input, kQuantize, "input");
  check_cpu(scale, kQuantize, "scale");
  check_scale(scale, kQuantize);
  const Quantization job(input, scale, zero_point, quant_min, quant_max, axis);
  const int64_t nan_at = quantize(job.params, TorchParallel());
  STD_TORCH_CHECK(nan_at < 0, kQuantize, ": input must not contain NaN, found one at flat index ", nan_at);
  return job.output;
}

Tensor dequantize_cpu(const Tensor& input, const Tensor& scale, const Tensor& zero_point,
                      std::optional<int64_t> axis) {
  check_cpu(input, kDequantize, "input");
  check_cpu(scale, kDequantize, "scale");
  check_scale(scale, kDequantize);
  const Dequantization job(input, scale, zero_point, axis);
  dequantize(job.params, TorchParallel());
  return job.output;
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) {
  m.def(
      "quantize(Tensor input, Tensor scale, Tensor zero_point, int quant_min, int quant_max, int? axis=None) "
      "-> "
      "Tensor");
  m.def("dequantize(Tensor input, Tensor scale, Tensor zero_point, int? axis=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("quantize", TORCH_BOX(&pqk::torch_ops::quantize_cpu));
  m.impl("dequantize", TORCH_BOX(&pqk::torch_ops::dequantize_cpu));
}
