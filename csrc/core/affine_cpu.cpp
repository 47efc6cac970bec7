#include "core/affine.h"

#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

void affine_pixel(const uint8_t* zero_point, const float* multiplier, const float* bias, float low, float high,
                  const uint8_t* in, uint8_t* __restrict out, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = to_code(rescale(in[c] - zero_point[c], multiplier[c], bias[c]), low, high);
  }
}

}  // namespace

void affine_kernel(const AffineParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                   int64_t row_end) {
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < p.width; ++x) {
      affine_pixel(p.zero_point, p.multiplier, p.bias, low, high,
                   input.data + y * input.row_stride + x * input.pixel_stride,
                   output.data + y * output.row_stride + x * output.pixel_stride, p.channels);
    }
  }
}

#include "core/isa_end.h"
