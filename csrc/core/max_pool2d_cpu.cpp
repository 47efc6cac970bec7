#include "core/max_pool2d.h"

#include "core/isa_begin.h"

namespace {

struct Taps {
  int64_t begin, end;  // of the kernel, inside the image
};

inline Taps clip(int64_t start, int64_t size, int64_t kernel, int64_t dilation) {
  const int64_t begin = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
  const int64_t inside = start < size ? (size - 1 - start) / dilation + 1 : 0;
  return {begin, inside < kernel ? inside : kernel};
}

inline void take_larger(uint8_t* __restrict out, const uint8_t* in, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c] = in[c] > out[c] ? in[c] : out[c];
}

}  // namespace

void max_pool2d_kernel(const MaxPool2dParams& p, const Int8Image& input, const Int8Image& output,
                       int64_t row_begin, int64_t row_end) {
  for (int64_t y = row_begin; y < row_end; ++y) {
    const int64_t top = y * p.stride_height - p.pad_top;
    const Taps rows = clip(top, p.in_height, p.kernel_height, p.dilation_height);
    for (int64_t x = 0; x < p.out_width; ++x) {
      const int64_t left = x * p.stride_width - p.pad_left;
      const Taps columns = clip(left, p.in_width, p.kernel_width, p.dilation_width);
      uint8_t* out = output.data + y * output.row_stride + x * output.pixel_stride;
      for (int64_t c = 0; c < p.channels; ++c) out[c] = 0;
      for (int64_t ky = rows.begin; ky < rows.end; ++ky) {
        const uint8_t* row = input.data + (top + ky * p.dilation_height) * input.row_stride;
        for (int64_t kx = columns.begin; kx < columns.end; ++kx) {
          take_larger(out, row + (left + kx * p.dilation_width) * input.pixel_stride, p.channels);
        }
      }
    }
  }
}

#include "core/isa_end.h"
