// The kernel of float_conv2d.h for layers whose groups are single channels.
#pragma once

#include "core/float_packing.h"

namespace pqk {

struct FloatDepthwisePlan {
  Conv2dShape shape;
  const float* weight;  // [kernel row][kernel column][row_floats]
  int64_t row_floats;   // channels, rounded up to whole vectors of any instruction set
  FloatEpilogue epilogue;
};

using FloatDepthwiseKernel = void(const FloatDepthwisePlan&, const FloatConvImages&, int64_t row_begin,
                                  int64_t row_end);
PQK_CPU_KERNEL(FloatDepthwiseKernel, float_depthwise_kernel)

}  // namespace pqk
