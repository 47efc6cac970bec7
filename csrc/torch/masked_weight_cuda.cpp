#include "core/cuda/masked_weight.h"
#include "torch/cuda_library.h"
#include "torch/masked.h"

namespace pqk::torch_ops {
namespace {

constexpr const char* kOp = "pqk::masked_weight";

Tensor masked_weight_cuda(const Tensor& weight, const Tensor& mask) {
  check_same_device(mask, weight, kOp, "mask");
  check_mask_fits(weight, mask, kOp);
  const Masking masking(weight, mask);
  const CudaPlace place(weight);
  check_launch(cuda::mask_weight(place.device, place.stream, masking.params()), kOp);
  return masking.output;
}

}  // namespace
}  // namespace pqk::torch_ops

PQK_CUDA_LIBRARY_IMPL(m) { m.impl("masked_weight", TORCH_BOX(&pqk::torch_ops::masked_weight_cuda)); }
