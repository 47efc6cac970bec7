// core/quantize.h on CUDA: the same codes, but that a NaN becomes quant_min, as looking for one would stop the
// stream. Pointers are device memory; the work goes onto `stream` and nobody waits for it.
#pragma once

#include <cstdint>

#include "core/quantize.h"

namespace pqk::cuda {

// Each returns nullptr or CUDA's words for what went wrong with the launch.
const char* quantize(int device, void* stream, const QuantizeParams& params);
const char* dequantize(int device, void* stream, const DequantizeParams& params);

}  // namespace pqk::cuda
