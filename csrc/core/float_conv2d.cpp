#include "core/float_conv2d.h"

#include "core/float_packing.h"

namespace pqk {

const std::vector<FloatConv2dKernel>& float_conv2d_kernels() {
  static const std::vector<FloatConv2dKernel> kernels{{"float_depthwise", pack_float_depthwise},
                                                      {"float_sparse", pack_float_sparse},
                                                      {"float_direct", pack_float_direct}};
  return kernels;
}

std::unique_ptr<PackedFloatConv2d> pack_float_conv2d(const Conv2dShape& shape,
                                                     const FloatConv2dConstants& constants,
                                                     const std::string& kernel) {
  for (const FloatConv2dKernel& candidate : float_conv2d_kernels()) {
    if (!kernel.empty() && kernel != candidate.name) continue;
    if (kernel.empty() && candidate.pack == pack_float_sparse && !float_sparse_wins(shape, constants)) continue;
    if (std::unique_ptr<PackedFloatConv2d> packed = candidate.pack(shape, constants)) return packed;
  }
  return nullptr;
}

}  // namespace pqk
