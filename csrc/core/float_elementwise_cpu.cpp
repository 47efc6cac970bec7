#include "core/float_elementwise.h"

#include "core/numerics.h"

#include "core/isa_begin.h"

void float_add_kernel(const FloatAddParams& p, const ConstNhwcImage& a, const ConstNhwcImage& b,
                      const NhwcImage& output, int64_t row_begin, int64_t row_end) {
  const float low = p.clamp_min, high = p.clamp_max;
  // A row is one run: pixels of float images lie next to each other.
  const int64_t count = p.width * p.channels;
  for (int64_t y = row_begin; y < row_end; ++y) {
    const float *first = a.row(y), *second = b.row(y);
    float* out = output.row(y);
    for (int64_t i = 0; i < count; ++i) {
      const float sum = first[i] + second[i];
      const float raised = sum < low ? low : sum;
      out[i] = raised > high ? high : raised;
    }
  }
}

void float_affine_kernel(const FloatAffineParams& p, const ConstNhwcImage& input, const NhwcImage& output,
                         int64_t row_begin, int64_t row_end) {
  const float low = p.clamp_min, high = p.clamp_max;
  const float *multiplier = p.multiplier, *bias = p.bias;
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < p.width; ++x) {
      const float* in = input.row(y) + x * input.pixel_stride;
      float* out = output.row(y) + x * output.pixel_stride;
      for (int64_t c = 0; c < p.channels; ++c) {
        const float product = in[c] * multiplier[c];
        const float value = product + bias[c];
        const float raised = value < low ? low : value;
        out[c] = raised > high ? high : raised;
      }
    }
  }
}

#include "core/isa_end.h"
