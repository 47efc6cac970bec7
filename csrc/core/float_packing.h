// Constants of packed float layers, and the kernels that there are.
#pragma once

#include "core/float_conv2d.h"
#include "core/int8_packing.h"

namespace pqk {

// What follows a sum: clamp((sum * multiplier [+ residual]) + bias).
struct FloatEpilogue {
  const float *multiplier, *bias;
  float clamp_min, clamp_max;
};

// Copies of the constants, with kFloatSlack more slots of zeros.
inline constexpr int64_t kFloatSlack = 64;

class PackedFloatEpilogue {
 public:
  PackedFloatEpilogue(const FloatConv2dConstants& constants, int64_t channels)
      : multiplier_(channels + kFloatSlack), bias_(channels + kFloatSlack) {
    const auto bytes = static_cast<size_t>(channels) * sizeof(float);
    std::memcpy(multiplier_.data(), constants.multiplier, bytes);
    std::memcpy(bias_.data(), constants.bias, bytes);
    epilogue_ = {multiplier_.data(), bias_.data(), constants.clamp_min, constants.clamp_max};
  }
  const FloatEpilogue& get() const { return epilogue_; }

 private:
  AlignedArray<float> multiplier_, bias_;
  FloatEpilogue epilogue_;
};

// See FloatConv2dKernel::pack.
std::unique_ptr<PackedFloatConv2d> pack_float_direct(const Conv2dShape& shape,
                                                     const FloatConv2dConstants& constants);
std::unique_ptr<PackedFloatConv2d> pack_float_sparse(const Conv2dShape& shape,
                                                     const FloatConv2dConstants& constants);
// Whether the sparse kernel is the faster one, by an estimate.
bool float_sparse_wins(const Conv2dShape& shape, const FloatConv2dConstants& constants);
std::unique_ptr<PackedFloatConv2d> pack_float_depthwise(const Conv2dShape& shape,
                                                        const FloatConv2dConstants& constants);

}  // namespace pqk
