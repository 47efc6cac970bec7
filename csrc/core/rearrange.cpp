#include "core/rearrange.h"

#include <cstring>

namespace pqk {
namespace {

// A pixel's channels: few bytes, for which a call of memcpy takes longer than the copy.
inline void copy_codes(uint8_t* to, const uint8_t* from, int64_t count) {
  constexpr int64_t kStep = 16;
  if (count < kStep) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    return;
  }
  for (int64_t i = 0; i < count - kStep; i += kStep) std::memcpy(to + i, from + i, kStep);
  std::memcpy(to + count - kStep, from + count - kStep, kStep);  // may overlap the last step
}

inline void fill_codes(uint8_t* to, uint8_t code, int64_t count) {
  constexpr int64_t kStep = 16;
  if (count < kStep) {
    for (int64_t i = 0; i < count; ++i) to[i] = code;
    return;
  }
  for (int64_t i = 0; i < count - kStep; i += kStep) std::memset(to + i, code, kStep);
  std::memset(to + count - kStep, code, kStep);
}

}  // namespace

void slice_rows(const SliceParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const uint8_t* in = input.data + (p.start[1] + y * p.step[1]) * input.row_stride +
                        p.start[2] * input.pixel_stride + p.start[0];
    uint8_t* out = output.data + y * output.row_stride;
    for (int64_t x = 0; x < p.width; ++x, in += p.step[2] * input.pixel_stride, out += output.pixel_stride) {
      if (p.step[0] == 1) {
        copy_codes(out, in, p.channels);
      } else {
        for (int64_t c = 0; c < p.channels; ++c) out[c] = in[c * p.step[0]];
      }
    }
  }
}

void pad_rows(const PadParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
              int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const int64_t in_y = y - p.before[1];
    for (int64_t x = 0; x < p.out_width; ++x) {
      uint8_t* out = output.data + y * output.row_stride + x * output.pixel_stride;
      fill_codes(out, p.zero_point, p.out_channels);
      const int64_t in_x = x - p.before[2];
      if (in_y < 0 || in_y >= p.height || in_x < 0 || in_x >= p.width) continue;
      copy_codes(out + p.before[0], input.data + in_y * input.row_stride + in_x * input.pixel_stride,
                 p.channels);
    }
  }
}

void dilate_rows(const DilateParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                 int64_t row_end) {
  // Else the bytes behind a pixel's channels are other values of a concatenation.
  const bool alone = output.pixel_stride == int8_pixel_stride(p.channels);
  for (int64_t y = row_begin; y < row_end; ++y) {
    uint8_t* out = output.data + y * output.row_stride;
    if (alone) {
      std::memset(out, p.zero_point, static_cast<size_t>(p.out_width * output.pixel_stride));
    } else {
      for (int64_t x = 0; x < p.out_width; ++x)
        fill_codes(out + x * output.pixel_stride, p.zero_point, p.channels);
    }
    if (y % p.dilation[0] != 0) continue;
    const uint8_t* in = input.data + y / p.dilation[0] * input.row_stride;
    for (int64_t x = 0; x < p.width; ++x) {
      copy_codes(out + x * p.dilation[1] * output.pixel_stride, in + x * input.pixel_stride, p.channels);
    }
  }
}

void copy_channels(int64_t channels, int64_t width, int64_t at, const Int8Image& input, const Int8Image& output,
                   int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const uint8_t* in = input.data + y * input.row_stride;
    uint8_t* out = output.data + y * output.row_stride + at;
    for (int64_t x = 0; x < width; ++x, in += input.pixel_stride, out += output.pixel_stride) {
      copy_codes(out, in, channels);
    }
  }
}

void flatten_channels(int64_t height, int64_t width, const Int8Image& input, uint8_t* output,
                      int64_t channel_begin, int64_t channel_end) {
  for (int64_t c = channel_begin; c < channel_end; ++c) {
    uint8_t* out = output + c * height * width;
    for (int64_t y = 0; y < height; ++y) {
      const uint8_t* in = input.data + y * input.row_stride + c;
      for (int64_t x = 0; x < width; ++x) *out++ = in[x * input.pixel_stride];
    }
  }
}

}  // namespace pqk
