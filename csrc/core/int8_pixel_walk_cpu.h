// The order in which int8_*_cpu.cpp compute output pixels.
#pragma once

#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

namespace {

// Walks over the output pixels of the images, row by row, and gives their addresses.
class PixelWalk {
 public:
  // From row `row` on, `rows` of each image; the pointers shall point at these input and output channels.
  PixelWalk(const Conv2dShape& s, bool float_output, const Int8ConvImages& images, int64_t row, int64_t rows,
            int64_t in_channel, int64_t out_channel)
      : width_(s.out_width), left_(s.out_width), rows_(rows), rows_left_(rows) {
    const Int8Image &input = images.input, *residual = images.residual, &output = images.output;
    input_ = {input.data + in_channel + (row * s.stride_height - s.pad_top) * input.row_stride -
                  s.pad_left * input.pixel_stride,
              s.stride_width * input.pixel_stride, s.stride_height * input.row_stride, s.out_width};
    if (residual != nullptr) {
      residual_ = {residual->data + out_channel + row * residual->row_stride, residual->pixel_stride,
                   residual->row_stride, s.out_width};
    }
    if (float_output) {
      const int64_t pixel = s.out_channels * sizeof(float), line = s.out_width * pixel;
      output_ = {reinterpret_cast<uint8_t*>(images.float_output + out_channel) + row * line, pixel, line,
                 s.out_width};
    } else {
      output_ = {output.data + out_channel + row * output.row_stride, output.pixel_stride, output.row_stride,
                 s.out_width};
    }
    input_.set_image(images.step, s.stride_height * input.row_stride, rows);
    if (residual != nullptr) residual_.set_image(images.step, residual->row_stride, rows);
    const int64_t line = s.out_width * s.out_channels * static_cast<int64_t>(sizeof(float));
    if (float_output) {
      output_.set_image(images.float_step * static_cast<int64_t>(sizeof(float)), line, rows);
    } else {
      output_.set_image(images.step, output.row_stride, rows);
    }
  }

  // The addresses of the next `count` pixels: of the first tap in the input, and of the outputs.
  void next(int64_t count, const uint8_t** inputs, OutputPixel* outputs) {
    while (count > 0) {
      const int64_t line = count < left_ ? count : left_;
      for (int64_t m = 0; m < line; ++m) {
        inputs[m] = input_.at + m * input_.step;
        outputs[m] = {residual_.at + m * residual_.step, output_.at + m * output_.step};
      }
      inputs += line;
      outputs += line;
      count -= line;
      left_ -= line;
      const bool next_row = left_ == 0, next_image = next_row && --rows_left_ == 0;
      if (next_row) left_ = width_;
      if (next_image) rows_left_ = rows_;
      input_.advance(line, next_row, next_image);
      residual_.advance(line, next_row, next_image);
      output_.advance(line, next_row, next_image);
    }
  }

 private:
  template <class Byte>
  struct Line {
    Line() = default;
    Line(Byte* first, int64_t pixel, int64_t row, int64_t width)
        : at(first), step(pixel), wrap(row - width * pixel) {}
    void set_image(int64_t image, int64_t row, int64_t rows) { next_image = image - rows * row; }
    void advance(int64_t pixels, bool row, bool image) {
      at += pixels * step + (row ? wrap : 0) + (image ? next_image : 0);
    }
    Byte* at = nullptr;
    int64_t step = 0;        // to the next pixel
    int64_t wrap = 0;        // from behind the last pixel of a row to the next row
    int64_t next_image = 0;  // from behind the last row of an image to the next image's first
  };
  Line<const uint8_t> input_, residual_;
  Line<uint8_t> output_;
  int64_t width_, left_, rows_, rows_left_;
};

}  // namespace

#include "core/isa_end.h"
