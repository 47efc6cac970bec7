// float32 <-> 8-bit codes, per tensor or per channel.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/parallel.h"

namespace pqk {

// A contiguous tensor seen as (outer, channels, inner); per tensor is channels == 1.
struct ChannelView {
  int64_t outer;
  int64_t channels;
  int64_t inner;
  constexpr int64_t numel() const { return outer * channels * inner; }
};

struct QuantizeParams {
  const float* input;
  void* output;               // uint8_t or int8_t, by is_signed
  const float* scale;         // [channels]
  const int32_t* zero_point;  // [channels]
  ChannelView view;
  int32_t quant_min;
  int32_t quant_max;
  bool is_signed;
};

struct DequantizeParams {
  const void* input;
  float* output;
  const float* scale;
  const int32_t* zero_point;
  ChannelView view;
  bool is_signed;
};

// Both work on rows [begin, end) of the (outer * channels, inner) matrix. Quantize returns the flat index of
// the first NaN among them, or -1: a NaN has no code.
using QuantizeKernel = int64_t(const QuantizeParams&, int64_t begin, int64_t end);
using DequantizeKernel = void(const DequantizeParams&, int64_t begin, int64_t end);
PQK_CPU_KERNEL(QuantizeKernel, quantize_kernel)
PQK_CPU_KERNEL(DequantizeKernel, dequantize_kernel)

// Returns the flat index of the first NaN in `input`, or -1.
int64_t quantize(const QuantizeParams& params, const Parallel& parallel);
void dequantize(const DequantizeParams& params, const Parallel& parallel);

}  // namespace pqk
