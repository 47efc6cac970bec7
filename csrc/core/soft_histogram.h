// A histogram of weights over the integer codes, soft so that it has a gradient: u = clamp(x / scale) lies
// between the codes floor(u) and floor(u) + 1 and counts for both, in the shares 1 - f and f with f = u -
// floor(u).
//
// Shares are whole multiples of 2^-20, so sums are sums of integers: one result for any split over threads.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"

namespace pqk {

constexpr int kShareBits = 20;

// A contiguous matrix, one row a channel.
struct SoftHistogramParams {
  const float* input;
  const float* scale;  // [rows]
  const uint8_t*
      mask;  // [rows * columns] 0 or 1, or nullptr; where 0 the element is code 0 and has no gradient
  int64_t rows;
  int64_t columns;
  int32_t quant_max;  // codes -quant_max..quant_max, quant_max <= 127
  int64_t bins() const { return 2 * quant_max + 1; }
};

struct SoftHistogramBackward {
  SoftHistogramParams params;
  const float* step;   // [bins], gradient with respect to u between code i - quant_max and the next one
  float* grad_input;   // [rows * columns]
  float* grad_scale;   // [rows]
  double grad_factor;  // on grad_scale
};

// Adds rows [begin, end) to counts[bins + 1], in units of 2^-20; the last entry stays 0 in sum and only spares
// a branch. Returns whether a NaN was among them (it counts as code 0).
using SoftHistogramKernel = bool(const SoftHistogramParams&, int64_t* counts, int64_t begin, int64_t end);
using SoftHistogramBackwardKernel = void(const SoftHistogramBackward&, int64_t begin, int64_t end);
PQK_CPU_KERNEL(SoftHistogramKernel, soft_histogram_kernel)
PQK_CPU_KERNEL(SoftHistogramBackwardKernel, soft_histogram_backward_kernel)

// counts[bins]: how many elements each code has. All NaN if a kept element is.
void soft_histogram(const SoftHistogramParams& params, double* counts, const Parallel& parallel);
// The gradient is 0 where u is an integer, a corner of the histogram, and where it was clamped.
void soft_histogram_backward(const SoftHistogramBackward& job, const Parallel& parallel);

}  // namespace pqk
