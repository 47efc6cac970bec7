// Fake-quantize on CUDA: the arithmetic and the rules of core/fake_quantize.h. Every pointer is device memory;
// the launchers put their work on `stream` (a cudaStream_t) and return without waiting.
#pragma once

#include <cstdint>

#include "core/fake_quantize.h"

namespace pqk::cuda {

struct FakeQuantizeParams {
  int device;
  void* stream;
  FloatType type;
  ChannelView view;
  const void* scale;
  const void* zero_point;  // int32_t, or of scale's type and rounded here
  bool zero_point_is_float;
  double quant_min;
  double quant_max;
  const uint8_t* mask;  // or nullptr
};

// Each returns nullptr or CUDA's words for what went wrong with the launch.
const char* fake_quantize(const FakeQuantizeParams& params, const void* input, void* output, uint8_t* in_range);

struct FakeQuantizeGradients {
  const void* input;
  const void* grad_output;
  void* grad_input;
  void* grad_scale;
  void* grad_zero_point;  // or nullptr
  double grad_factor;
  double* partial;  // [num_partials(view)], scratch
};
int64_t num_partials(const ChannelView& view);
const char* fake_quantize_backward(const FakeQuantizeParams& params, const FakeQuantizeGradients& job);

const char* straight_through(int device, void* stream, const StraightThrough& job);

}  // namespace pqk::cuda
