// float32 NHWC images: what float operators read and write.
#pragma once

#include <cstdint>

namespace pqk {

// `data` is pixel (0, 0), channel 0; the channels of a pixel are adjacent. Strides in floats.
template <class Float>
struct BasicNhwcImage {
  Float* data;
  int64_t row_stride, pixel_stride;

  Float* row(int64_t y) const { return data + y * row_stride; }
};
using NhwcImage = BasicNhwcImage<float>;
using ConstNhwcImage = BasicNhwcImage<const float>;

// The positions of a pooling window that lie in the image, along one axis.
struct FloatSpan {
  int64_t begin, end, step;
};

}  // namespace pqk
