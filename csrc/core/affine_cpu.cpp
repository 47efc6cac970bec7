#include "core/affine.h"

#include "core/numerics.h"

#include "core/isa_begin.h"

void affine_kernel(const AffineParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                   int64_t row_end) {
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  const uint8_t* const zero_point = p.zero_point;
  const float* const multiplier = p.multiplier;
  const float* const bias = p.bias;
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < p.width; ++x) {
      const uint8_t* in = input.data + y * input.row_stride + x * input.pixel_stride;
      uint8_t* __restrict out = output.data + y * output.row_stride + x * output.pixel_stride;
      for (int64_t c = 0; c < p.channels; ++c) {
        out[c] = to_code(rescale(in[c] - zero_point[c], multiplier[c], bias[c]), low, high);
      }
    }
  }
}

#include "core/isa_end.h"
