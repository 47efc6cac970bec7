// Maximum and mean over windows of float32 images.
#pragma once

#include "core/float_image.h"
#include "core/isa.h"

namespace pqk {

struct FloatPool2dParams {
  int64_t channels, out_width;
  // The positions in the image of each output row's and column's window.
  const FloatSpan *rows, *columns;
  // Of a mean: what sums are divided by; 0 for the number of positions.
  int64_t divisor;
};
using FloatPool2dKernel = void(const FloatPool2dParams&, const ConstNhwcImage& input, const NhwcImage& output,
                               int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(FloatPool2dKernel, float_max_pool2d_kernel)
PQK_CPU_KERNEL(FloatPool2dKernel, float_avg_pool2d_kernel)

}  // namespace pqk
