// Steps that compute every element of codes by itself, and softmax.
#pragma once

#include "core/cuda/engine/frame.cuh"

namespace pqk::engine::device {

// The quad of code(k) for the channels of a quad.
template <class Code>
PQK_DEVICE uint32_t quad_of(const Code& code) {
  uint32_t quad = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) quad |= static_cast<uint32_t>(code(k)) << (8 * k);
  return quad;
}

PQK_DEVICE void run(const Quantize& s, const Frame& frame, const Team& team) {
  for (int i = team.thread; i < num_items(s.extent, frame); i += team.threads) {
    const Position quad = pixels_first(s.extent, i);
    const auto code = [&](int k) -> uint8_t {
      Position at = quad;
      at.c = 4 * quad.c + k;
      if (at.c >= s.extent.channels) return 0;
      const float x = load_float(frame, s.input, at);
      const float value = quantize_value(x, s.inv_scale, s.zero_point, s.quant_min, s.quant_max);
      if (value == value) return static_cast<uint8_t>(value);
      if (s.tells) report_nan(frame, s.extent, at);
      return static_cast<uint8_t>(s.quant_min);
    };
    store_quad(frame, s.output, quad, quad_of(code));
  }
}

PQK_DEVICE void run(const Dequantize& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    const float code = pixel_of(frame, s.input, at)[at.c];
    store_float(frame, s.output, at, dequantize_value(code, s.scale, s.zero_point));
  });
}

PQK_DEVICE void run(const Add& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    const uint32_t a = load_quad(frame, s.a, at), b = load_quad(frame, s.b, at);
    store_quad(frame, s.output, at, quad_of([&](int k) {
                 const float first = static_cast<float>(byte_of(a, k) - s.zero_point_a) * s.multiplier_a;
                 const float second = static_cast<float>(byte_of(b, k) - s.zero_point_b) * s.multiplier_b;
                 const float sum = first + second;
                 return to_code(sum + s.bias, s.quant_min, s.quant_max);
               }));
  });
}

PQK_DEVICE void run(const Affine& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& at) {
    const int centred = pixel_of(frame, s.input, at)[at.c] - s.zero_point.at(frame)[at.c];
    const float value = rescale(centred, s.multiplier.at(frame)[at.c], s.bias.at(frame)[at.c]);
    pixel_of(frame, s.output, at)[at.c] = to_code(value, s.quant_min, s.quant_max);
  });
}

PQK_DEVICE void run(const Lookup& s, const Frame& frame, const Team& team) {
  const uint8_t* table = s.table.at(frame);
  for_each(s.extent, frame, team, [&](const Position& at) {
    const uint32_t codes = load_quad(frame, s.input, at);
    store_quad(frame, s.output, at, quad_of([&](int k) { return __ldg(table + byte_of(codes, k)); }));
  });
}

// A warp an image. The sum goes through the channels in their order, on every lane alike.
PQK_DEVICE void run(const Softmax& s, const Frame& frame, const Team& team) {
  const int lane = team.thread % cuda::kWarp;
  for (int image = team.thread / cuda::kWarp; image < frame.images; image += team.threads / cuda::kWarp) {
    const float* in = read_floats(frame, s.input, image);
    float* out = write_floats(frame, s.output, image);
    float largest = in[0];
    for (int c = 1; c < s.channels; ++c) largest = in[c] > largest ? in[c] : largest;
    float sum = 0.0f;
    for (int first = 0; first < s.channels; first += cuda::kWarp) {
      const int c = first + lane;
      const float e = c < s.channels ? exp_nonpositive(in[c] - largest) : 0.0f;
      for (int k = 0; k < cuda::kWarp && first + k < s.channels; ++k) {
        sum = sum + __shfl_sync(cuda::kAllLanes, e, k);
      }
    }
    for (int c = lane; c < s.channels; c += cuda::kWarp) out[c] = exp_nonpositive(in[c] - largest) / sum;
  }
}

}  // namespace pqk::engine::device
