// Sums and per-channel scales of float32 images.
#pragma once

#include "core/float_image.h"
#include "core/isa.h"

namespace pqk {

struct FloatAddParams {
  int64_t channels, width;
  float clamp_min, clamp_max;
};
// clamp(a + b)
using FloatAddKernel = void(const FloatAddParams&, const ConstNhwcImage& a, const ConstNhwcImage& b,
                            const NhwcImage& output, int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(FloatAddKernel, float_add_kernel)

struct FloatAffineParams {
  int64_t channels, width;
  const float *multiplier, *bias;
  float clamp_min, clamp_max;
};
// clamp(x * multiplier[c] + bias[c])
using FloatAffineKernel = void(const FloatAffineParams&, const ConstNhwcImage& input, const NhwcImage& output,
                               int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(FloatAffineKernel, float_affine_kernel)

}  // namespace pqk
