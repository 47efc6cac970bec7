// Between float32 tensors of any layout and NHWC code images.
#pragma once

#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

// One float32 image; strides in elements. NCHW is {data, H * W, W, 1}, NHWC {data, 1, W * C, C}.
template <class Float>
struct BasicFloatImage {
  Float* data;
  int64_t channel_stride, row_stride, pixel_stride;
};
using FloatImage = BasicFloatImage<float>;
using ConstFloatImage = BasicFloatImage<const float>;

struct QuantizeImageParams {
  int64_t channels, height, width;
  float inv_scale;
  int32_t zero_point, quant_min, quant_max;
};

struct DequantizeImageParams {
  int64_t channels, width;
  float scale;
  int32_t zero_point;
};

// Returns the smallest index, counted in C, H, W order, of a NaN in the rows, or -1. NaNs get code quant_min.
using QuantizeImageKernel = int64_t(const QuantizeImageParams&, const ConstFloatImage& input,
                                    const Int8Image& output, int64_t row_begin, int64_t row_end);
using DequantizeImageKernel = void(const DequantizeImageParams&, const Int8Image& input,
                                   const FloatImage& output, int64_t row_begin, int64_t row_end);
PQK_CPU_KERNEL(QuantizeImageKernel, quantize_image_kernel)
PQK_CPU_KERNEL(DequantizeImageKernel, dequantize_image_kernel)

}  // namespace pqk
