// Lanes are channels. Four output pixels of a row share each weight that is loaded.
#include <algorithm>

#include "core/float_depthwise.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

#include "core/float_vector_cpu.h"

namespace {

constexpr int kPixels = 4;

struct Row {
  const float* input;  // of the first pixel's first tap
  int64_t row_step, tap_step, pixel_step;
  const float* residual;  // null without one
  int64_t residual_step;
  float* output;
  int64_t output_step;
};

template <int Pixels>
void compute(const FloatDepthwisePlan& p, const Row& row, int64_t channel) {
  const int64_t count = std::min<int64_t>(kLanes, p.shape.out_channels - channel);
  Floats sum[Pixels] = {};
  const float* weight = p.weight + channel;
  for (int64_t ky = 0; ky < p.shape.kernel_height; ++ky) {
    const float* input = row.input + ky * row.row_step + channel;
    for (int64_t kx = 0; kx < p.shape.kernel_width; ++kx, input += row.tap_step, weight += p.row_floats) {
      const Floats w = load_floats(weight);
#pragma GCC unroll 8
      for (int i = 0; i < Pixels; ++i) {
        // Past the last channel lies the next pixel, or memory that may be read: those lanes are not stored.
        sum[i] = multiply_add(load_floats(input + i * row.pixel_step), w, sum[i]);
      }
    }
  }
  const FloatEpilogue& e = p.epilogue;
  const Floats multiplier = load_floats(e.multiplier + channel), bias = load_floats(e.bias + channel);
  const Floats low = broadcast(e.clamp_min), high = broadcast(e.clamp_max);
#pragma GCC unroll 8
  for (int i = 0; i < Pixels; ++i) {
    Floats y = sum[i] * multiplier;
    if (row.residual != nullptr) y = y + load_some(row.residual + i * row.residual_step + channel, count);
    store_some(row.output + i * row.output_step + channel, clamp(y + bias, low, high), count);
  }
}

}  // namespace

void float_depthwise_kernel(const FloatDepthwisePlan& p, const FloatConvImages& images, int64_t row_begin,
                            int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const ConstNhwcImage &in = images.input, &other = images.residual;
  Row row{nullptr,
          s.dilation_height * in.row_stride,
          s.dilation_width * in.pixel_stride,
          s.stride_width * in.pixel_stride,
          nullptr,
          other.pixel_stride,
          nullptr,
          images.output.pixel_stride};
  for (int64_t line = 0; line < images.count * (row_end - row_begin); ++line) {
    const int64_t image = line / (row_end - row_begin), y = row_begin + line % (row_end - row_begin);
    row.input =
        in.row(y * s.stride_height - s.pad_top) + image * images.input_step - s.pad_left * in.pixel_stride;
    row.output = images.output.row(y) + image * images.output_step;
    if (other.data != nullptr) row.residual = other.row(y) + image * images.residual_step;
    for (int64_t x = 0; x < s.out_width;) {
      const bool four = x + kPixels <= s.out_width;
      for (int64_t c = 0; c < s.out_channels; c += kLanes)
        four ? compute<kPixels>(p, row, c) : compute<1>(p, row, c);
      const int64_t done = four ? kPixels : 1;
      row.input += done * row.pixel_step;
      row.output += done * row.output_step;
      if (row.residual != nullptr) row.residual += done * row.residual_step;
      x += done;
    }
  }
}

#include "core/isa_end.h"
