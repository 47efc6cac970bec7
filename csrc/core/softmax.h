// softmax of one float32 vector: e[c] = exp_nonpositive(x[c] - max x); e[c] / sum e, summed in channel order.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace pqk {

using SoftmaxKernel = void(const float* input, float* output, int64_t channels);
PQK_CPU_KERNEL(SoftmaxKernel, softmax_kernel)

}  // namespace pqk
