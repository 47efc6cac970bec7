// Sum of two code images on different scales: code(((a - zp_a) * m_a + (b - zp_b) * m_b) + bias).
#pragma once

#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

struct AddParams {
  int64_t channels, width;
  int32_t zero_point_a, zero_point_b;
  float multiplier_a, multiplier_b, bias;
  int32_t quant_min, quant_max;
  bool fits_int32;  // every value before it is rounded
};

using AddKernel = void(const AddParams&, const Int8Image& a, const Int8Image& b, const Int8Image& output,
                       int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(AddKernel, add_kernel)

}  // namespace pqk
