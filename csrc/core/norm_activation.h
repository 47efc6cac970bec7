// Batch norm, residual addition, ReLU or ReLU6 and fake-quantize of a training step in as few passes over
// memory as they allow: forward one for the statistics and one for the output, backward one for all sums and
// one for the gradients.
//
// Of an element, in float32: s = x * multiplier + shift (+ residual), r = clamp(s, low, high), and if quantized
// y = fake_quantize(r). Gradients pass where low < s < high and the code is in range.
//
// Tensors are dense, read in memory order and seen as (outer, channels, inner), as in core/fake_quantize.h.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/quantize.h"

namespace pqk {

struct NormStatistics {
  ChannelView view;
  const float* input;
  double* mean;      // [channels]
  double* variance;  // [channels], biased
};

struct NormActivation {
  ChannelView view;
  const float* input;
  const float* residual;    // as input, or nullptr
  const float* multiplier;  // [channels]
  const float* shift;       // [channels]
  float low;
  float high;
  bool quantized;
  float scale;
  float zero_point;
  float quant_max;  // codes are 0..quant_max
};

struct NormActivationForward {
  NormActivation values;
  float* output;
};

struct NormActivationSums {
  NormActivation values;
  const float* grad_output;
  const float* mean;   // [channels]
  float* grad_sum;     // as input: the gradient of s; or nullptr
  double* grad;        // [channels]: sums of the gradient of s
  double* grad_input;  // [channels]: sums of that times (x - mean)
  double* grad_scale;  // one value
};

// grad_input = (g * multiplier - (x - mean) * slope) - offset, where g is the gradient of s.
struct NormActivationGradient {
  NormActivation values;
  const float* grad_output;  // of y; or if `grad_sum` is given, nullptr
  const float* grad_sum;     // of s
  const float* mean;         // [channels]
  const float* slope;        // [channels]
  const float* offset;       // [channels]
  float* grad_input;
};

void norm_statistics(const NormStatistics& job, const Parallel& parallel);
void norm_activation(const NormActivationForward& job, const Parallel& parallel);
void norm_activation_sums(const NormActivationSums& job, const Parallel& parallel);
void norm_activation_gradient(const NormActivationGradient& job, const Parallel& parallel);

// How a tensor is cut into items, whatever the threads and the instruction set. Where channels are innermost an
// item is a group of rows by a block of columns; elsewhere it is a piece of a row, which has one channel.
struct NormItems {
  static constexpr int64_t kElements = 4096;
  static constexpr int64_t kColumns = 128;

  explicit NormItems(const ChannelView& v) : view(v), by_column(v.inner == 1 && v.channels > 1) {
    if (view.numel() == 0) return;
    if (by_column) {
      blocks = v.channels < kColumns ? 1 : v.channels / kColumns;
      const int64_t columns = v.channels < kColumns ? v.channels : kColumns;
      rows = kElements / columns;
      groups = (v.outer + rows - 1) / rows;
    } else {
      blocks = v.channels;
      pieces = v.inner < kElements ? 1 : v.inner / kElements;
      groups = v.outer * pieces;
    }
  }
  int64_t count() const { return groups * blocks; }
  // Rows of a group, or elements of a piece; the last ones take what remains.
  int64_t length(int64_t group) const {
    if (by_column) return group + 1 < groups ? rows : view.outer - group * rows;
    const int64_t piece = group % pieces;
    return piece + 1 < pieces ? kElements : view.inner - piece * kElements;
  }

  ChannelView view;
  bool by_column;
  int64_t blocks = 0, groups = 0;
  int64_t rows = 0;    // of a group, by column
  int64_t pieces = 0;  // of a row, by row
};

// Items [begin, end). `partial` has two values for each group and channel at 2 * (group * channels + channel):
// for statistics the mean and the sum of squared differences from it. `scale_partial` has one for each item.
using NormStatisticsKernel = void(const NormStatistics&, const NormItems&, double* partial, int64_t begin,
                                  int64_t end);
using NormActivationKernel = void(const NormActivationForward&, const NormItems&, int64_t begin, int64_t end);
using NormActivationSumsKernel = void(const NormActivationSums&, const NormItems&, double* partial,
                                      double* scale_partial, int64_t begin, int64_t end);
using NormActivationGradientKernel = void(const NormActivationGradient&, const NormItems&, int64_t begin,
                                          int64_t end);
PQK_CPU_KERNEL(NormStatisticsKernel, norm_statistics_kernel)
PQK_CPU_KERNEL(NormActivationKernel, norm_activation_kernel)
PQK_CPU_KERNEL(NormActivationSumsKernel, norm_activation_sums_kernel)
PQK_CPU_KERNEL(NormActivationGradientKernel, norm_activation_gradient_kernel)

}  // namespace pqk
