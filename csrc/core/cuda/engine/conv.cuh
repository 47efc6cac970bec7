// Integer convolutions and linear layers: on tensor cores, and depthwise ones on the integer units.
#pragma once

#include "core/cuda/engine/maps.cuh"
#include "core/cuda/mma.h"

namespace pqk::engine::device {

PQK_DEVICE float value_of(const Epilogue& e, int sum, float multiplier, float bias, int residual) {
  if (!e.has_residual) return rescale(sum, multiplier, bias);
  return rescale_residual(sum, multiplier, residual, e.residual_zero_point, e.residual_multiplier, bias);
}

// What turns the sums of four channels into values.
struct Scales {
  int start[4];
  float multiplier[4], bias[4];
};

PQK_DEVICE Scales scales_of(const Epilogue& e, const Frame& frame, int first) {
  const int4 s = __ldg(reinterpret_cast<const int4*>(e.start.at(frame) + first));
  const float4 m = __ldg(reinterpret_cast<const float4*>(e.multiplier.at(frame) + first));
  const float4 b = __ldg(reinterpret_cast<const float4*>(e.bias.at(frame) + first));
  return {{s.x, s.y, s.z, s.w}, {m.x, m.y, m.z, m.w}, {b.x, b.y, b.z, b.w}};
}

PQK_DEVICE uint8_t code_of(const Epilogue& e, const Scales& scales, const int (&sums)[4], int k, int residual) {
  const float value = value_of(e, sums[k] + scales.start[k], scales.multiplier[k], scales.bias[k], residual);
  return to_code(value, e.quant_min, e.quant_max);
}

// Sums of four channels from at.c on to codes that are stored at once.
PQK_DEVICE void finish_quad(const Epilogue& e, const Frame& frame, const Position& at, const Scales& scales,
                            const int (&sums)[4]) {
  uint32_t residual = 0;
  if (e.has_residual) {
    residual = *reinterpret_cast<const uint32_t*>(pixel_of(frame, e.residual, at) + at.c);
  }
  *reinterpret_cast<uint32_t*>(pixel_of(frame, e.output, at) + at.c) =
      quad_of([&](int k) { return code_of(e, scales, sums, k, byte_of(residual, k)); });
}

// The same for any layer. Of the four channels the first `count` exist.
PQK_DEVICE void finish(const Epilogue& e, const Frame& frame, Position at, int count, const Scales& scales,
                       const int (&sums)[4]) {
  if (e.words) return finish_quad(e, frame, at, scales, sums);
#pragma unroll
  for (int k = 0; k < 4; ++k, ++at.c) {
    if (k >= count) return;
    if (e.float_output) {
      const float value = rescale(sums[k] + scales.start[k], scales.multiplier[k], scales.bias[k]);
      store_float(frame, e.floats, at, value);
    } else {
      const int residual = e.has_residual ? pixel_of(frame, e.residual, at)[at.c] : 0;
      pixel_of(frame, e.output, at)[at.c] = code_of(e, scales, sums, k, residual);
    }
  }
}

// A lane's 16 bytes of a block of a window.
template <Conv::Load kLoad>
PQK_DEVICE void load_block(const uint8_t* window, const int32_t* offsets, int block, int quad_lane,
                           uint32_t (&words)[4]) {
  const int slot = 4 * block + quad_lane;
  if constexpr (kLoad == Conv::Load::kVectors) {
    const uint4 v = *reinterpret_cast<const uint4*>(window + __ldg(offsets + slot));
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else if constexpr (kLoad == Conv::Load::kWords) {
    const int4 at = __ldg(reinterpret_cast<const int4*>(offsets) + slot);
    const int offset[4] = {at.x, at.y, at.z, at.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = *reinterpret_cast<const uint32_t*>(window + offset[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int4 at = __ldg(reinterpret_cast<const int4*>(offsets) + 4 * slot + i);
      words[i] =
          window[at.x] | window[at.y] << 8 | window[at.z] << 16 | static_cast<uint32_t>(window[at.w]) << 24;
    }
  }
}

// Output row `row` of all images' pixels.
PQK_DEVICE Position conv_position(const Conv& s, int row) {
  Position at{};
  at.x = s.by_width.split(s.by_pixels.split(row, at.image), at.y);
  return at;
}

// A warp's tile of kRows times 16 output pixels and kPairs times 16 channels. Large ones are for layers that
// store whole words.
template <int kRows, int kPairs, Conv::Load kLoad>
PQK_DEVICE void conv_tile(const Conv& s, const Frame& frame, int lane, int group, int first_row,
                          int first_pair) {
  const int quad = lane / 4, quad_lane = lane % 4;
  const int rows = frame.images * static_cast<int>(s.by_pixels.divisor);
  const uint8_t* windows[2 * kRows];
#pragma unroll
  for (int i = 0; i < 2 * kRows; ++i) {
    const int row = first_row + 8 * i + quad;
    const Position at = conv_position(s, row < rows ? row : rows - 1);
    windows[i] = image_of(frame, s.input, at.image) + s.origin + at.y * s.row_step + at.x * s.column_step +
                 group * s.group_in;
  }
  const auto* weights = reinterpret_cast<const uint4*>(s.weight.at(frame)) +
                        (group * s.channel_tiles + first_pair) * s.blocks * 2 * cuda::kWarp + lane;
  const int32_t* offsets = s.offsets.at(frame);
  int sums[kRows][kPairs][2][4] = {};
#pragma unroll 2
  for (int block = 0; block < s.blocks; ++block) {
    uint32_t codes[2 * kRows][4];
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) load_block<kLoad>(windows[i], offsets, block, quad_lane, codes[i]);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 w = __ldg(weights + ((pair * s.blocks + block) * 2 + half) * cuda::kWarp);
        const uint32_t low[2] = {w.x, w.y}, high[2] = {w.z, w.w};
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const uint32_t (&top)[4] = codes[2 * i], (&bottom)[4] = codes[2 * i + 1];
          cuda::mma_u8s8(sums[i][pair][half], {top[0], bottom[0], top[1], bottom[1]}, low);
          cuda::mma_u8s8(sums[i][pair][half], {top[2], bottom[2], top[3], bottom[3]}, high);
        }
      }
    }
  }
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    // Columns are ordered so that a lane has four neighbouring channels of two tiles.
    const int channel = 16 * (first_pair + pair) + 4 * quad_lane;
    if (channel >= s.group_out) continue;
    const Scales scales = scales_of(s.epilogue, frame, group * 16 * s.channel_tiles + channel);
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) {
      const int row = first_row + 8 * i + quad;
      if (row >= rows) continue;
      Position at = conv_position(s, row);
      at.c = group * s.group_out + channel;
      const int (&left)[4] = sums[i / 2][pair][0], (&right)[4] = sums[i / 2][pair][1];
      const int upper = i % 2 == 0 ? 0 : 2;
      const int four[4] = {left[upper], left[upper + 1], right[upper], right[upper + 1]};
      if constexpr (kRows > 1) {
        finish_quad(s.epilogue, frame, at, scales, four);
      } else {
        finish(s.epilogue, frame, at, s.group_out - channel, scales, four);
      }
    }
  }
}

template <int kRows, int kPairs, Conv::Load kLoad>
PQK_DEVICE void conv_tiles(const Conv& s, const Frame& frame, const Team& team) {
  const int rows = frame.images * static_cast<int>(s.by_pixels.divisor);
  const int tiles = cuda::ceil_div(rows, 16 * kRows) * s.groups * (s.channel_tiles / kPairs);
  for (int tile = team.thread / cuda::kWarp; tile < tiles; tile += team.threads / cuda::kWarp) {
    __syncwarp();  // the end of the tile before parts the lanes
    int rest, row_tile;
    const int channels = s.by_channels.split(tile, rest), group = s.by_groups.split(rest, row_tile);
    conv_tile<kRows, kPairs, kLoad>(s, frame, team.thread % cuda::kWarp, group, 16 * kRows * row_tile,
                                    kPairs * channels);
  }
}

template <class AnyTeam>
PQK_DEVICE void run(const Conv& s, const Frame& frame, const AnyTeam& team) {
  using Load = Conv::Load;
  if (s.load == Load::kBytes) return conv_tiles<1, 1, Load::kBytes>(s, frame, team);
  if (s.load == Load::kWords) return conv_tiles<1, 1, Load::kWords>(s, frame, team);
  if constexpr (AnyTeam::kMostPairs >= 4) {
    if (s.pair_tiles == 4) return conv_tiles<2, 4, Load::kVectors>(s, frame, team);
  }
  if (s.pair_tiles == 2) return conv_tiles<2, 2, Load::kVectors>(s, frame, team);
  return conv_tiles<1, 1, Load::kVectors>(s, frame, team);
}

PQK_DEVICE void run(const Depthwise& s, const Frame& frame, const Team& team) {
  for_each(s.extent, frame, team, [&](const Position& quad) {
    const uint8_t* window = image_of(frame, s.input, quad.image) + s.origin + quad.y * s.row_step +
                            quad.x * s.column_step + 4 * quad.c;
    const auto quads = static_cast<int>(s.extent.by_channels.divisor);
    const auto* weights = reinterpret_cast<const uint32_t*>(s.weight.at(frame)) + quad.c;
    int sums[4] = {};
    for (int ky = 0; ky < s.kernel_height; ++ky) {
      const uint8_t* tap = window + ky * s.tap_row;
#pragma unroll 4
      for (int kx = 0; kx < s.kernel_width; ++kx, tap += s.tap_column, weights += quads) {
        const uint32_t codes = *reinterpret_cast<const uint32_t*>(tap), w = __ldg(weights);
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[k] += byte_of(codes, k) * static_cast<int8_t>(byte_of(w, k));
      }
    }
    Position at = quad;
    at.c = 4 * quad.c;
    finish(s.epilogue, frame, at, s.extent.channels - at.c, scales_of(s.epilogue, frame, at.c), sums);
  });
}

}  // namespace pqk::engine::device
