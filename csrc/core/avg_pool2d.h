// Mean of windows, requantized: s = sum (x - zp); code(s * (multiplier / n) + bias). Serves avg_pool2d and
// adaptive_avg_pool2d, which differ in their windows and in n.
#pragma once

#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

// Positions [begin, end) of the image along one axis.
struct PoolSpan {
  int32_t begin, end;
};

struct AvgPool2dParams {
  int64_t channels, out_width;
  const PoolSpan* rows;     // [out_height]
  const PoolSpan* columns;  // [out_width]
  int64_t divisor;          // n, or 0 for the number of positions in each window
  int32_t zero_point;
  float multiplier, bias;
  int32_t quant_min, quant_max;
  bool fits_int32;  // every value before it is rounded
};

using AvgPool2dKernel = void(const AvgPool2dParams&, const Int8Image& input, const Int8Image& output,
                             int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(AvgPool2dKernel, avg_pool2d_kernel)

}  // namespace pqk
