// Batch norm, residual addition, ReLU or ReLU6 and fake-quantize on CUDA: the arithmetic and the passes of
// core/norm_activation.h. Elements have the CPU's bits, given the same mean and variance; sums over a channel
// have one order for each shape, but not the CPU's.
#pragma once

#include "core/norm_activation.h"

namespace pqk::cuda {

// Every pointer is device memory; optional ones may be nullptr.
struct NormActivationParams {
  int device;
  void* stream;
  ChannelView view;
  const float* input;
  const float* residual;  // optional
  const float* weight;    // [channels], optional
  const float* bias;      // [channels], optional
  const float* mean;      // [channels], optional: nothing is normalized without it
  const float* variance;  // [channels], biased
  double eps;
  float low, high;
  const float* scale;         // one value, optional: nothing is quantized without it
  const int32_t* zero_point;  // one value
  float quant_max;            // codes are 0..quant_max
};

// Bytes of scratch memory, aligned to 16, that any of the following works in.
int64_t norm_activation_scratch(const NormActivationParams& params);

// Each returns nullptr or CUDA's words for what went wrong with the launch, and does not wait.
//
// Of params.input; params.mean and params.variance may be where they go.
const char* norm_statistics(const NormActivationParams& params, void* scratch, float* mean, float* variance);
const char* norm_activation(const NormActivationParams& params, void* scratch, float* output);

struct NormActivationGradients {
  const float* grad_output;
  bool batch_statistics;
  float* grad_input;
  float* grad_sum;  // that of the residual, if it is another than grad_input; or nullptr
  float* grad_weight;
  float* grad_bias;
  float* grad_scale;   // one value
  double grad_factor;  // on grad_scale
};
const char* norm_activation_backward(const NormActivationParams& params, void* scratch,
                                     const NormActivationGradients& job);

}  // namespace pqk::cuda
