// What the kernels of norm_activation share, once per instruction set: how an item is walked, and one step of
// sixteen elements. Only *_cpu.cpp files may include it, above their own core/isa_begin.h.
#pragma once

#include "core/fake_quantize_lanes.h"
#include "core/norm_activation.h"

#include "core/isa_begin.h"

// Steps of `lanes` elements, `stride` apart, whose lanes keep their channels.
struct NormStrip {
  int64_t at;  // of the first element
  int64_t steps;
  int64_t stride;
  int64_t channel;  // of the first lane; of all lanes where rows have one channel
  int first;        // lanes before this one were in another strip: they are computed again, but not counted
  int lanes;        // below sixteen only where there is no room for a step
};

// Calls `visit.template operator()<kGroups>(strip)` for all strips of an item; they have 16 * kGroups lanes.
// Where channels are innermost, kGroups is as many as fit, up to kMax, so that whole cache lines are read one
// after the other.
template <int kMax, class Visit>
PQK_INLINE void for_each_strip(const NormItems& items, int64_t item, const Visit& visit) {
  const int64_t group = item / items.blocks, block = item % items.blocks, length = items.length(group);
  if (items.by_column) {
    const int64_t channels = items.view.channels, row = group * items.rows;
    const int64_t begin = block * NormItems::kColumns;
    const int64_t end = block + 1 < items.blocks ? begin + NormItems::kColumns : channels;
    int64_t c = begin;
    for (; c + kMax * kStep <= end; c += kMax * kStep) {
      visit.template operator()<kMax>(NormStrip{row * channels + c, length, channels, c, 0, kMax * kStep});
    }
    for (; c < end; c += kStep) {
      const int64_t first = c + kStep <= end || end - begin < kStep ? c : end - kStep;
      const int lanes = static_cast<int>(std::min<int64_t>(kStep, end - first));
      visit.template operator()<1>(
          NormStrip{row * channels + first, length, channels, first, static_cast<int>(c - first), lanes});
    }
    return;
  }
  const int64_t outer = group / items.pieces, piece = group % items.pieces;
  const int64_t at = (outer * items.view.channels + block) * items.view.inner + piece * NormItems::kElements;
  const int64_t steps = length / kStep, rest = length % kStep;
  if (steps > 0) visit.template operator()<1>(NormStrip{at, steps, kStep, block, 0, kStep});
  if (rest == 0) return;
  const int64_t back = steps > 0 ? kStep - rest : 0;
  visit.template operator()<1>(NormStrip{at + length - rest - back, 1, kStep, block, static_cast<int>(back),
                                         static_cast<int>(rest + back)});
}

// Registers of 16 * kGroups values.
template <int kGroups>
struct NormLanes {
  using V = FloatLanes::V;
  static constexpr int kElements = kGroups * kStep;
  static constexpr int kCount = kElements / FloatLanes::kWidth;
  V v[kCount];

  static PQK_INLINE NormLanes set(float value) {
    NormLanes result;
    for (int i = 0; i < kCount; ++i) result.v[i] = FloatLanes::set(value);
    return result;
  }
  // The parameters of a strip's lanes.
  static PQK_INLINE NormLanes of(const float* channel_values, const NormStrip& strip, bool by_column) {
    if (!by_column) return set(channel_values[strip.channel]);
    if (strip.lanes >= kStep) return load(channel_values + strip.channel);
    float buffer[kStep];
    NormLanes result = set(0);
    fetch<float>(channel_values + strip.channel, buffer, strip.lanes);
    for (int i = 0; i < kStep / FloatLanes::kWidth; ++i) {
      result.v[i] = FloatLanes::load(buffer + i * FloatLanes::kWidth);
    }
    return result;
  }
  static PQK_INLINE NormLanes load(const float* at) {
    NormLanes result;
    for (int i = 0; i < kCount; ++i) result.v[i] = FloatLanes::load(at + i * FloatLanes::kWidth);
    return result;
  }
  PQK_INLINE void store(float* at) const {
    for (int i = 0; i < kCount; ++i) FloatLanes::store(at + i * FloatLanes::kWidth, v[i]);
  }
  // The sum of the counted lanes: a fixed tree, in double.
  double total(const NormStrip& strip) const {
    float values[kElements];
    store(values);
    double sums[kElements];
    for (int i = 0; i < kElements; ++i) sums[i] = i >= strip.first && i < strip.lanes ? values[i] : 0.0;
    for (int width = kElements / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    return sums[0];
  }
};

// What is computed of one register of elements in both directions.
struct NormElement {
  using L = FloatLanes;
  using V = L::V;
  using M = L::M;

  explicit NormElement(const NormActivation& values)
      : low(L::set(values.low)),
        high(L::set(values.high)),
        scale(L::set(values.scale)),
        inv_scale(L::set(1.0f / values.scale)),
        zero_point(L::set(values.zero_point)),
        zero(L::set(0)),
        quant_max(L::set(values.quant_max)) {}

  PQK_INLINE V output(V sum, bool quantized) const {
    const V value = L::clamp(sum, low, high);
    if (!quantized) return value;
    const V shifted = L::rint(value * inv_scale) + zero_point;
    return (L::clamp(shifted, zero, quant_max) - zero_point) * scale;
  }

  // The gradient of `sum`, given that of the output.
  PQK_INLINE V gradient(V sum, V grad, bool quantized) const {
    if (quantized) {
      const V shifted = L::rint(L::clamp(sum, low, high) * inv_scale) + zero_point;
      grad = L::zero_unless(L::both(L::at_least(shifted, zero), L::at_least(quant_max, shifted)), grad);
    }
    return passed(sum, grad);
  }

  // The same, and the gradient of the scale is added to `scale_sum`.
  PQK_INLINE V gradient_and_slope(V sum, V grad, V& scale_sum) const {
    const V scaled = L::clamp(sum, low, high) * inv_scale;
    const V rounded = L::rint(scaled);
    const V shifted = rounded + zero_point;
    const M in_range = L::both(L::at_least(shifted, zero), L::at_least(quant_max, shifted));
    const V clamped = L::clamp(shifted, zero, quant_max) - zero_point;
    const V slope = grad * L::select(in_range, rounded - scaled, clamped);
    scale_sum = scale_sum + L::zero_unless(L::ordered(shifted), slope);
    return passed(sum, L::zero_unless(in_range, grad));
  }

  // A NaN sum lets the gradient pass, as torch's ReLU does.
  PQK_INLINE V passed(V sum, V grad) const {
    const M below = L::at_least(sum, high), above = L::at_least(low, sum);
    return L::select(above, zero, L::select(below, zero, grad));
  }

  V low, high, scale, inv_scale, zero_point, zero, quant_max;
};

#include "core/isa_end.h"
