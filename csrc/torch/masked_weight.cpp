#include "torch/masked.h"

namespace pqk::torch_ops {
namespace {

Tensor masked_weight_cpu(const Tensor& weight, const Tensor& mask) {
  check_mask(weight, mask, "pqk::masked_weight");
  return masked_weight(weight, mask);
}

}  // namespace
}  // namespace pqk::torch_ops

STABLE_TORCH_LIBRARY_FRAGMENT(pqk, m) { m.def("masked_weight(Tensor weight, Tensor mask) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(pqk, CPU, m) {
  m.impl("masked_weight", TORCH_BOX(&pqk::torch_ops::masked_weight_cpu));
}
