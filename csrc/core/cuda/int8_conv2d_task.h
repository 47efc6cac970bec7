// What the kernels of int8_conv2d share: their parameters and the way from sums to outputs.
#pragma once

#include "core/cuda/device.h"
#include "core/cuda/int8_conv2d.h"
#include "core/numerics.h"

namespace pqk::cuda {

// From a sum to a code or a float (numerics.h). `offset` is what the zero point adds to a channel's sum.
struct Int8Epilogue {
  const int32_t* offset;  // [out_channels], or null for zero
  const float* multiplier;
  const float* bias;
  const uint8_t* residual;
  void* output;
  float residual_multiplier;
  int32_t residual_zero_point;
  float quant_min, quant_max;
  bool float_output;

  // Sums wrap on the way; the end fits.
  __device__ static int32_t wrapping_add(int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }
  __device__ int32_t channel_offset(int64_t channel) const { return offset == nullptr ? 0 : offset[channel]; }
  __device__ float real(int32_t accumulator, float channel_multiplier, float channel_bias, uint8_t code) const {
    return residual == nullptr ? rescale(accumulator, channel_multiplier, channel_bias)
                               : rescale_residual(accumulator, channel_multiplier, code, residual_zero_point,
                                                  residual_multiplier, channel_bias);
  }
  __device__ uint8_t code(float value) const { return to_code(value, quant_min, quant_max); }
};

// A convolution as a matrix product: row p is output pixel p, column n is channel n of the group, and depth
// k = (ky * kernel_width + kx) * group_in + c. `weight` is [groups * group_out][weight_pitch].
struct Int8MatrixTask {
  const uint8_t* input;
  int64_t image_stride, channel_stride, row_stride, pixel_stride;
  const int8_t* weight;
  int64_t weight_pitch;
  int64_t pixels;  // rows of the product
  int64_t out_channels;
  int32_t in_height, in_width, out_width, out_area;
  int32_t kernel_height, kernel_width;
  int32_t stride_height, stride_width, dilation_height, dilation_width;
  int32_t pad_top, pad_left;
  int32_t groups, group_in, group_out;
  int32_t depth;       // kernel_height * kernel_width * group_in
  uint32_t border;     // four codes of the zero point
  bool words;          // 4 channels of a pixel can be read at once
  bool vector_output;  // so can 16 channels of the output and of the residual be
  Int8Epilogue epilogue;
};

// The matrix product; `gathered` reads the image code by code, with any strides, and is for few channels.
// Otherwise channels lie side by side, group_in is a multiple of 16 and everything is 16-byte aligned.
const char* launch_int8_matrix(const Int8MatrixTask& task, int device, void* stream);
const char* launch_int8_matrix_gathered(const Int8MatrixTask& task, int device, void* stream);

// One input and one output channel in each group. `weight` holds for 4 channels and 4 taps at a time a 16-byte
// vector: word c has the taps of channel c, zero behind the last; [ceil(channels / 4)][ceil(taps / 4)].
// `offset` counts codes less 128.
struct Int8DepthwiseTask {
  const uint8_t* input;
  int64_t image_stride, row_stride, pixel_stride;
  const uint4* weight;
  int64_t images, channels;
  int32_t in_height, in_width, out_height, out_width;
  int32_t kernel_height, kernel_width;
  int32_t stride_height, stride_width, dilation_height, dilation_width;
  int32_t pad_top, pad_left;
  uint32_t border;
  bool word_output;  // 4 channels of the output and of the residual can be accessed at once
  Int8Epilogue epilogue;
};
const char* launch_int8_depthwise(const Int8DepthwiseTask& task, void* stream);

// A few rows of a linear layer: a warp sums one output channel for all rows, the weight's sum with them.
constexpr int64_t kMaxVectorRows = 8;
struct Int8VectorTask {
  const uint8_t* input;
  int64_t row_stride;
  const int8_t* weight;
  int64_t weight_pitch;
  int64_t rows, in_features, out_features;
  int32_t input_zero_point;
  Int8Epilogue epilogue;
};
const char* launch_int8_vector(const Int8VectorTask& task, void* stream);
// The same from a sparse weight; the input may have any strides.
const char* launch_int8_csr_vector(const Int8VectorTask& task, const CsrWeight& csr, int64_t feature_stride,
                                   void* stream);

}  // namespace pqk::cuda
