// How the output pixels of a run are cut into strips: neighbouring pixels of one row, at equal distances.
#pragma once

#include <algorithm>

#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

namespace {

// Bytes from a pixel, a row and an image to the next.
struct Distances {
  int64_t pixel, row, image;
};

// The output pixels of `images` images of `rows` rows of `width`; where the windows of their inputs begin.
struct PixelGrid {
  int64_t width, rows, images;
  const uint8_t* input;
  OutputPixel output;
  Distances in, residual, out;

  // Output rows [row, row + rows), from the first channels on. May `join` rows and images to longer rows.
  PixelGrid(const Conv2dShape& s, bool float_output, const Int8ConvImages& from, int64_t row, int64_t row_count,
            bool join)
      : width(s.out_width), rows(row_count), images(from.count), residual{} {
    in = {s.stride_width * from.input.pixel_stride, s.stride_height * from.input.row_stride, from.step};
    input = from.input.data - s.pad_top * from.input.row_stride - s.pad_left * from.input.pixel_stride +
            row * in.row;
    if (float_output) {
      const int64_t pixel = s.out_channels * static_cast<int64_t>(sizeof(float));
      out = {pixel, width * pixel, from.float_step * static_cast<int64_t>(sizeof(float))};
      output.output = reinterpret_cast<uint8_t*>(from.float_output) + row * out.row;
    } else {
      out = {from.output.pixel_stride, from.output.row_stride, from.step};
      output.output = from.output.data + row * out.row;
    }
    output.residual = nullptr;
    if (from.residual != nullptr) {
      residual = {from.residual->pixel_stride, from.residual->row_stride, from.step};
      output.residual = from.residual->data + row * residual.row;
    }
    if (!join) return;
    join_rows();
    if (rows > 1) return;
    rows = images;
    images = 1;
    for (Distances* d : {&in, &residual, &out}) d->row = d->image;
    join_rows();
  }

  const uint8_t* input_at(int64_t image, int64_t row) const { return input + image * in.image + row * in.row; }
  OutputPixel output_at(int64_t image, int64_t row) const {
    return {output.residual + image * residual.image + row * residual.row,
            output.output + image * out.image + row * out.row};
  }

 private:
  // Makes one row of all where each begins where the one before it ends, or where rows are one pixel.
  void join_rows() {
    if (rows == 1) return;
    if (width == 1) {
      for (Distances* d : {&in, &residual, &out}) d->pixel = d->row;
    }
    for (const Distances* d : {&in, &residual, &out}) {
      if (d->row != width * d->pixel) return;
    }
    width *= rows;
    rows = 1;
  }
};

// The width of all strips of a row but its last: at most `most`, nearly equal, and whole groups of four, which
// are requantized together, where that leaves nothing over.
inline int64_t strip_width(int64_t width, int64_t most) {
  const int64_t strips = (width + most - 1) / most, even = (width + strips - 1) / strips;
  return width % 4 == 0 && most % 4 == 0 ? (even + 3) / 4 * 4 : even;
}

}  // namespace

#include "core/isa_end.h"
