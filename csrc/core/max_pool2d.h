// Largest code of a window. Padding never wins: windows are clipped to the image, the border is not read.
#pragma once

#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

struct MaxPool2dParams {
  int64_t channels, in_height, in_width, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_top, pad_left;
  int64_t dilation_height, dilation_width;
};

// Every window holds at least one position of the image.
using MaxPool2dKernel = void(const MaxPool2dParams&, const Int8Image& input, const Int8Image& output,
                             int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(MaxPool2dKernel, max_pool2d_kernel)

}  // namespace pqk
