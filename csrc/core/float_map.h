// Activation functions of float32 images.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/float_image.h"
#include "core/isa.h"

namespace pqk {

enum class FloatMap { kRelu, kRelu6, kSigmoid, kSilu, kHardSwish, kHardSigmoid, kTanh };

// By its name in a file.
std::optional<FloatMap> float_map_by_name(const std::string& name);

// `width` pixels a row of `channels` floats each.
using FloatMapKernel = void(FloatMap function, int64_t channels, int64_t width, const ConstNhwcImage& input,
                            const NhwcImage& output, int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(FloatMapKernel, float_map_kernel)

}  // namespace pqk
