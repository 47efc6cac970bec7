#include "core/affine.h"

#include "core/numerics.h"

#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 2
// One row of up to 16 channels, whose constants stay in registers. Clamping before rounding gives the same
// codes, as the limits are integers.
void affine_channels(const AffineParams& p, int64_t first, const uint8_t* in, int64_t in_stride, uint8_t* out,
                     int64_t out_stride) {
  const int64_t count = p.channels - first < 16 ? p.channels - first : 16;
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
  const __m512i zero_point = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p.zero_point + first));
  const __m512 multiplier = _mm512_maskz_loadu_ps(mask, p.multiplier + first);
  const __m512 bias = _mm512_maskz_loadu_ps(mask, p.bias + first);
  const __m512 low = _mm512_set1_ps(static_cast<float>(p.quant_min));
  const __m512 high = _mm512_set1_ps(static_cast<float>(p.quant_max));
  for (int64_t x = 0; x < p.width; ++x, in += in_stride, out += out_stride) {
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, in + first));
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero_point)), multiplier);
    const __m512 value = _mm512_max_ps(_mm512_min_ps(_mm512_add_ps(product, bias), high), low);
    _mm_mask_storeu_epi8(out + first, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value)));
  }
}

void affine_row(const AffineParams& p, const uint8_t* in, int64_t in_stride, uint8_t* out, int64_t out_stride) {
  for (int64_t c = 0; c < p.channels; c += 16) affine_channels(p, c, in, in_stride, out, out_stride);
}
#else
void affine_pixel(const AffineParams& p, float low, float high, const uint8_t* in, uint8_t* __restrict out) {
  const uint8_t* const zero_point = p.zero_point;
  const float *const multiplier = p.multiplier, *const bias = p.bias;
  const int64_t channels = p.channels;
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = to_code(rescale(in[c] - zero_point[c], multiplier[c], bias[c]), low, high);
  }
}

void affine_row(const AffineParams& p, const uint8_t* in, int64_t in_stride, uint8_t* out, int64_t out_stride) {
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  for (int64_t x = 0; x < p.width; ++x) affine_pixel(p, low, high, in + x * in_stride, out + x * out_stride);
}
#endif

}  // namespace

void affine_kernel(const AffineParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                   int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    affine_row(p, input.data + y * input.row_stride, input.pixel_stride, output.data + y * output.row_stride,
               output.pixel_stride);
  }
}

#include "core/isa_end.h"
