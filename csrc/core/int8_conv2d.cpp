#include "core/int8_conv2d.h"

#include "core/int8_packing.h"

namespace pqk {

PackedEpilogue::PackedEpilogue(const Conv2dConstants& constants, int64_t slots)
    : compensation_(slots), multiplier_(slots), bias_(slots) {
  epilogue_ = {compensation_.data(),
               multiplier_.data(),
               bias_.data(),
               constants.quant_min,
               constants.quant_max,
               constants.float_output,
               constants.has_residual,
               constants.residual_multiplier,
               constants.residual_zero_point};
}

void PackedEpilogue::set(const Conv2dConstants& constants, int64_t channel, int64_t fan_in, int64_t slot) {
  int32_t sum = 0;
  for (int64_t i = 0; i < fan_in; ++i) sum += constants.weight[channel * fan_in + i];
  compensation_.data()[slot] = static_cast<int32_t>(-int64_t{constants.input_zero_point} * sum);
  multiplier_.data()[slot] = constants.multiplier[channel];
  bias_.data()[slot] = constants.bias[channel];
}

const std::vector<Conv2dKernel>& conv2d_kernels() {
  static const std::vector<Conv2dKernel> kernels{{"depthwise3x3", pack_depthwise3x3},
                                                 {"depthwise", pack_depthwise},
                                                 {"direct", pack_direct},
                                                 {"gather", pack_gather},
                                                 {"blocks", pack_blocks}};
  return kernels;
}

std::unique_ptr<PackedConv2d> pack_conv2d(const Conv2dShape& shape, const Conv2dConstants& constants) {
  for (const Conv2dKernel& kernel : conv2d_kernels()) {
    if (std::unique_ptr<PackedConv2d> packed = kernel.pack(shape, constants)) return packed;
  }
  return nullptr;  // not reached: the direct kernel takes every layer
}

}  // namespace pqk
