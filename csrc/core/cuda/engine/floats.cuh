// Steps of float codebooks. Sums go through taps and channels in their order, whatever the executor and batch.
#pragma once

#include "core/cuda/engine/frame.cuh"

namespace pqk::engine::device {

PQK_DEVICE void run(const FloatConv& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    const int group = s.by_group_out.divide(at.c);
    const float* window = read_floats(frame, s.input, at.image) + s.origin + at.y * s.row_step +
                          at.x * s.column_step + group * s.group_in;
    const float* weight = s.weight.at(frame) + at.c;
    float sum = 0.0f;
    for (int ky = 0; ky < s.kernel_height; ++ky) {
      for (int kx = 0; kx < s.kernel_width; ++kx) {
        const float* tap = window + ky * s.tap_row + kx * s.tap_column;
#pragma unroll 8
        for (int i = 0; i < s.group_in; ++i, weight += s.extent.channels) {
          sum = fmaf(tap[i], __ldg(weight), sum);
        }
      }
    }
    float value = sum * s.multiplier.at(frame)[at.c];
    if (s.has_residual) value = value + load_float(frame, s.residual, at);
    store_float(frame, s.output, at, clamp_float(value + s.bias.at(frame)[at.c], s.clamp_min, s.clamp_max));
  });
}

PQK_DEVICE void run(const FloatAdd& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    const float sum = load_float(frame, s.a, at) + load_float(frame, s.b, at);
    store_float(frame, s.output, at, clamp_float(sum, s.clamp_min, s.clamp_max));
  });
}

PQK_DEVICE void run(const FloatAffine& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    const float product = load_float(frame, s.input, at) * s.multiplier.at(frame)[at.c];
    store_float(frame, s.output, at, clamp_float(product + s.bias.at(frame)[at.c], s.clamp_min, s.clamp_max));
  });
}

PQK_DEVICE float map_value(FloatMap function, float x) {
  switch (function) {
    case FloatMap::kRelu:
      return x < 0.0f ? 0.0f : x;
    case FloatMap::kRelu6:
      return relu6(x);
    case FloatMap::kSigmoid:
      return sigmoid(x);
    case FloatMap::kSilu:
      return x * sigmoid(x);
    case FloatMap::kHardSwish:
      return x * (relu6(x + 3.0f) / 6.0f);
    case FloatMap::kHardSigmoid:
      return relu6(x + 3.0f) / 6.0f;
    default:
      return tanh_value(x);
  }
}

PQK_DEVICE void run(const FloatMapStep& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    store_float(frame, s.output, at, map_value(s.function, load_float(frame, s.input, at)));
  });
}

}  // namespace pqk::engine::device
