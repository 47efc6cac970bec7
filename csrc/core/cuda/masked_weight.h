// core/masked_weight.h's mask_weight on CUDA. Pointers are device memory; the work goes onto `stream` and
// nobody waits for it.
#pragma once

#include "core/masked_weight.h"

namespace pqk::cuda {

// nullptr or CUDA's words for what went wrong with the launch.
const char* mask_weight(int device, void* stream, const MaskParams& params);

}  // namespace pqk::cuda
