// Any function of one code: out = table[x]. Sigmoid, SiLU, hard-swish, requantization.
#pragma once

#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

struct LookupParams {
  int64_t channels, width;
  const uint8_t* table;  // [256]
};

using LookupKernel = void(const LookupParams&, const Int8Image& input, const Int8Image& output,
                          int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(LookupKernel, lookup_kernel)

}  // namespace pqk
