// One integer convolution over a batch of strided tensors: packs the layer, brings every image into the
// bordered NHWC form that the kernels read, and spreads the work over threads.
#pragma once

#include <cstdint>

#include "core/int8_conv2d.h"
#include "core/parallel.h"

namespace pqk {

// Codes of shape (N, C, H, W) with any strides, in elements.
struct StridedCodes {
  const uint8_t* data;
  int64_t image, channel, row, column;
};

// A linear layer of so many rows: a 1x1 convolution of an image of one column.
inline Conv2dShape linear_layer_shape(int64_t rows, int64_t in_features, int64_t out_features) {
  Conv2dShape shape{};
  shape.in_channels = in_features, shape.out_channels = out_features;
  shape.in_height = shape.out_height = rows;
  shape.in_width = shape.out_width = 1;
  shape.kernel_height = shape.kernel_width = shape.stride_height = shape.stride_width = 1;
  shape.dilation_height = shape.dilation_width = shape.groups = 1;
  return shape;
}

// `output` is (N, out_height, out_width, out_channels), dense: codes, or floats for a float32 layer. `residual`
// has the logical shape (N, out_channels, out_height, out_width), null without one.
void int8_conv2d_batch(const Conv2dShape& shape, const Conv2dConstants& constants, int64_t images,
                       const StridedCodes& input, const StridedCodes* residual, void* output,
                       const Parallel& parallel);

}  // namespace pqk
