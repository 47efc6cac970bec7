// Integer convolution and linear layers on CUDA: the layers, the arithmetic and the bits of core/int8_conv2d.h.
// Every pointer is device memory; launchers put their work on `stream` (a cudaStream_t) and return without
// waiting. Working memory is the caller's, so that a call can be captured into a CUDA graph.
//
// Three kernels share the work: a matrix product on tensor cores whose left matrix is gathered from the image
// while it is loaded (implicit GEMM), one for depthwise layers, and one for a few rows of a linear layer.
#pragma once

#include <cstdint>

#include "core/int8_batch.h"

namespace pqk::cuda {

// Weight codes of shape (out_channels, in_channels / groups, kernel_height, kernel_width), any strides.
struct StridedWeight {
  const int8_t* data;
  int64_t out, in, row, column;
};

// Where sparse weights come from instead: a CSR matrix (out_channels, in_channels / groups * KH * KW). Entries
// that lie outside of it, or before the start of the arrays, are not read.
struct CsrWeight {
  const int32_t* crow_indices;
  const int32_t* col_indices;
  const int8_t* values;  // null: the weight is dense
  int64_t count;
};

// A linear layer of R rows is a 1x1 convolution of one image of R x 1 pixels.
struct Int8Conv2d {
  int device;
  void* stream;
  Conv2dShape shape;
  int64_t images;
  StridedCodes input;
  StridedWeight weight;  // data is null for a sparse weight
  CsrWeight csr;
  const float* multiplier;  // [out_channels]
  const float* bias;        // [out_channels]
  const uint8_t* residual;  // (images, out_height, out_width, out_channels), dense, or null
  void* output;             // of the same shape, dense: codes, or floats
  int32_t input_zero_point;
  int32_t quant_min, quant_max;
  float residual_multiplier;
  int32_t residual_zero_point;
  bool float_output;
};

// Bytes of device memory, 256-byte aligned, that int8_conv2d works in; depends on shapes, strides and
// alignment alone.
int64_t int8_conv2d_workspace(const Int8Conv2d& job);

// Returns nullptr or what went wrong with a launch.
const char* int8_conv2d(const Int8Conv2d& job, void* workspace);

}  // namespace pqk::cuda
