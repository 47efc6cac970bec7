// Per-channel map of codes, a batch norm in front of a convolution: code((x - zp[c]) * m[c] + bias[c]).
#pragma once

#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

struct AffineParams {
  int64_t channels, width;
  const uint8_t* zero_point;  // [channels]
  const float* multiplier;    // [channels]
  const float* bias;          // [channels]
  int32_t quant_min, quant_max;
  bool fits_int32;  // every value before it is rounded
};

using AffineKernel = void(const AffineParams&, const Int8Image& input, const Int8Image& output,
                          int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(AffineKernel, affine_kernel)

}  // namespace pqk
