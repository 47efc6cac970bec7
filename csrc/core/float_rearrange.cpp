#include "core/float_rearrange.h"

#include <algorithm>
#include <cstring>

namespace pqk {

int64_t import_floats(int64_t channels, int64_t height, int64_t width, const ConstFloatImage& input,
                      const NhwcImage& output, int64_t row_begin, int64_t row_end) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t y = row_begin; y < row_end; ++y) {
      const float* in = input.data + c * input.channel_stride + y * input.row_stride;
      float* out = output.row(y) + c;
      bool nan = false;
      for (int64_t x = 0; x < width; ++x) {
        const float value = in[x * input.pixel_stride];
        nan |= value != value;
        out[x * output.pixel_stride] = value;
      }
      if (!nan) continue;
      for (int64_t x = 0; x < width; ++x) {
        const float value = in[x * input.pixel_stride];
        if (value != value) return (c * height + y) * width + x;
      }
    }
  }
  return -1;
}

void slice_floats(const SliceParams& p, const ConstNhwcImage& input, const NhwcImage& output, int64_t row_begin,
                  int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const float* row = input.row(p.start[1] + y * p.step[1]) + p.start[0];
    for (int64_t x = 0; x < p.width; ++x) {
      const float* in = row + (p.start[2] + x * p.step[2]) * input.pixel_stride;
      float* out = output.row(y) + x * output.pixel_stride;
      for (int64_t c = 0; c < p.channels; ++c) out[c] = in[c * p.step[0]];
    }
  }
}

void pad_floats(const PadParams& p, const ConstNhwcImage& input, const NhwcImage& output, int64_t row_begin,
                int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const int64_t in_y = y - p.before[1];
    for (int64_t x = 0; x < p.out_width; ++x) {
      const int64_t in_x = x - p.before[2];
      float* out = output.row(y) + x * output.pixel_stride;
      std::fill(out, out + p.out_channels, 0.0f);
      if (in_y < 0 || in_y >= p.height || in_x < 0 || in_x >= p.width) continue;
      std::memcpy(out + p.before[0], input.row(in_y) + in_x * input.pixel_stride,
                  static_cast<size_t>(p.channels) * sizeof(float));
    }
  }
}

void dilate_floats(const DilateParams& p, const ConstNhwcImage& input, const NhwcImage& output,
                   int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    float* out = output.row(y);
    std::fill(out, out + (p.out_width - 1) * output.pixel_stride + p.channels, 0.0f);
    if (y % p.dilation[0] != 0) continue;
    const float* in = input.row(y / p.dilation[0]);
    for (int64_t x = 0; x < p.width; ++x) {
      std::memcpy(out + x * p.dilation[1] * output.pixel_stride, in + x * input.pixel_stride,
                  static_cast<size_t>(p.channels) * sizeof(float));
    }
  }
}

void copy_float_channels(int64_t channels, int64_t width, int64_t at, const ConstNhwcImage& input,
                         const NhwcImage& output, int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      std::memcpy(output.row(y) + x * output.pixel_stride + at, input.row(y) + x * input.pixel_stride,
                  static_cast<size_t>(channels) * sizeof(float));
    }
  }
}

}  // namespace pqk
