// Operators that only move floats. Copies run at memory speed, so they are built once.
#pragma once

#include "core/float_image.h"
#include "core/quantize_image.h"
#include "core/rearrange.h"

namespace pqk {

// Any layout to NHWC. Returns the smallest index, counted in C, H, W order of an image of that many rows, of a
// NaN in the rows, or -1.
int64_t import_floats(int64_t channels, int64_t height, int64_t width, const ConstFloatImage& input,
                      const NhwcImage& output, int64_t row_begin, int64_t row_end);

void slice_floats(const SliceParams& p, const ConstNhwcImage& input, const NhwcImage& output, int64_t row_begin,
                  int64_t row_end);

// The zero point of the parameters is of no meaning here and below: rows of 0.
void pad_floats(const PadParams& p, const ConstNhwcImage& input, const NhwcImage& output, int64_t row_begin,
                int64_t row_end);

void dilate_floats(const DilateParams& p, const ConstNhwcImage& input, const NhwcImage& output,
                   int64_t row_begin, int64_t row_end);

// Copies `channels` channels of every pixel to channel `at` of the output.
void copy_float_channels(int64_t channels, int64_t width, int64_t at, const ConstNhwcImage& input,
                         const NhwcImage& output, int64_t row_begin, int64_t row_end);

}  // namespace pqk
