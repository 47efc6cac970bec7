// The soft histogram of core/soft_histogram.h on CUDA: counts and gradients of the weights have its bits; the
// sums for the gradient of a scale have an order of their own, one for each shape.
#pragma once

#include "core/soft_histogram.h"

namespace pqk::cuda {

// Thread blocks whose histograms are added up; each has num_bins + 1 entries of `partial`.
int64_t soft_histogram_blocks(int device, const SoftHistogramParams& params);

// Pointers are device memory; `partial` is scratch of soft_histogram_blocks() * (bins + 1) int64. Each returns
// nullptr or CUDA's words for what went wrong with the launch, and does not wait.
const char* soft_histogram(int device, void* stream, const SoftHistogramParams& params, int64_t* partial,
                           double* counts);

struct SoftHistogramGradients {
  const double* grad_counts;  // [bins]
  float* grad_input;          // [rows * columns]
  float* grad_scale;          // [rows]
  double grad_factor;         // on grad_scale
};
const char* soft_histogram_backward(int device, void* stream, const SoftHistogramParams& params,
                                    const SoftHistogramGradients& job);

}  // namespace pqk::cuda
