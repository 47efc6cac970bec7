// Convolution and linear layers from a float32 or float64 CSR matrix on CUDA, with the bits of
// core/sparse_conv2d.h: every output is the plain sum of its products in column order, border included as
// zeros. Integer layers are core/cuda/int8_conv2d.h's. Every pointer is device memory; nothing waits.
//
// Indices are not checked: entries that lie outside of the matrix are left out.
#pragma once

#include <cstdint>

#include "core/sparse_conv2d.h"

namespace pqk::cuda {

struct SparseConv2d {
  int device;
  void* stream;
  bool is_double;
  Conv2dShape shape;
  SparseWeight weight;
  int64_t count;  // of stored values
  SparseInput input;
  SparseOutput output;
  const void* bias;  // or null
};

// Bytes of device memory, 256-byte aligned, that sparse_conv2d works in.
int64_t sparse_conv2d_workspace(const SparseConv2d& job);

// Returns nullptr or what went wrong with a launch.
const char* sparse_conv2d(const SparseConv2d& job, void* workspace);

}  // namespace pqk::cuda
