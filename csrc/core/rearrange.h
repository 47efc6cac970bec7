// Operators that only move codes: slice, pad, dilate, concat, flatten. Copies run at memory speed with memcpy,
// so they are built once.
#pragma once

#include "core/int8_conv2d.h"

namespace pqk {

struct SliceParams {
  int64_t channels, width;    // of the output
  int64_t start[3], step[3];  // along C, H, W
};
void slice_rows(const SliceParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                int64_t row_end);

struct PadParams {
  int64_t channels, height, width;              // of the input
  int64_t out_channels, out_height, out_width;  // of the output
  int64_t before[3];                            // along C, H, W
  uint8_t zero_point;
};
void pad_rows(const PadParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
              int64_t row_end);

struct DilateParams {
  int64_t channels, width;  // of the input
  int64_t out_width;
  int64_t dilation[2];
  uint8_t zero_point;
};
// Every pixel to `dilation` times its row and column; the zero point to all others.
void dilate_rows(const DilateParams& p, const Int8Image& input, const Int8Image& output, int64_t row_begin,
                 int64_t row_end);

// Copies `channels` channels of every pixel to channel `at` of the output.
void copy_channels(int64_t channels, int64_t width, int64_t at, const Int8Image& input, const Int8Image& output,
                   int64_t row_begin, int64_t row_end);

// (C, H, W) codes to a vector, C slowest: rows are channels here.
void flatten_channels(int64_t height, int64_t width, const Int8Image& input, uint8_t* output,
                      int64_t channel_begin, int64_t channel_end);

}  // namespace pqk
