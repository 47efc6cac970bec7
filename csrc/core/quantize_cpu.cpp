#include "core/quantize.h"

#include "core/numerics.h"

#include "core/isa_begin.h"

namespace {

template <class Code>
int64_t quantize_rows(const QuantizeParams& p, int64_t begin, int64_t end) {
  const float low = static_cast<float>(p.quant_min), high = static_cast<float>(p.quant_max);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t channel = row % p.view.channels;
    const float inv_scale = 1.0f / p.scale[channel];
    const float zero_point = static_cast<float>(p.zero_point[channel]);
    const float* in = p.input + row * p.view.inner;
    Code* out = static_cast<Code*>(p.output) + row * p.view.inner;
    int nan_seen = 0;
    for (int64_t i = 0; i < p.view.inner; ++i) {
      const float x = in[i];
      nan_seen |= x != x;
      // The cast of a NaN is undefined; its row is reported below and its codes are never used.
      out[i] = static_cast<Code>(x != x ? low : quantize_value(x, inv_scale, zero_point, low, high));
    }
    if (!nan_seen) continue;
    for (int64_t i = 0; i < p.view.inner; ++i) {
      if (in[i] != in[i]) return row * p.view.inner + i;
    }
  }
  return -1;
}

template <class Code>
void dequantize_rows(const DequantizeParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t channel = row % p.view.channels;
    const float scale = p.scale[channel], zero_point = static_cast<float>(p.zero_point[channel]);
    const Code* in = static_cast<const Code*>(p.input) + row * p.view.inner;
    float* out = p.output + row * p.view.inner;
    for (int64_t i = 0; i < p.view.inner; ++i) {
      out[i] = dequantize_value(static_cast<float>(in[i]), scale, zero_point);
    }
  }
}

}  // namespace

int64_t quantize_kernel(const QuantizeParams& p, int64_t begin, int64_t end) {
  return p.is_signed ? quantize_rows<int8_t>(p, begin, end) : quantize_rows<uint8_t>(p, begin, end);
}

void dequantize_kernel(const DequantizeParams& p, int64_t begin, int64_t end) {
  p.is_signed ? dequantize_rows<int8_t>(p, begin, end) : dequantize_rows<uint8_t>(p, begin, end);
}

#include "core/isa_end.h"
