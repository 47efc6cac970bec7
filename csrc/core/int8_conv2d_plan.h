// What pack_conv2d prepares and the kernels of int8_*_cpu.cpp read. Private to the integer convolution.
#pragma once

#include <cstdint>

#include "core/int8_conv2d.h"
#include "core/isa.h"

namespace pqk {

// Output channels of one vector of accumulators; groups are padded to whole tiles.
constexpr int64_t kOutTile = 16;

// How the packed weights of four input channels (a quad) and one tile lie:
//   kQuads: int8 [16 channels][4], the operand of vpdpbusd;
//   kPairs: int16 [2 pairs][16 channels][2], the operand of vpmaddwd, which no u8 x s8 pair saturates; pair 0
//     is inputs 0 and 2, pair 1 inputs 1 and 3, as masking and shifting 16-bit lanes of the codes gives them.
enum class WeightFormat { kQuads, kPairs };

// What turns sums into outputs; the arrays are in the order of the kernel's packed channels.
struct Int8Epilogue {
  const int32_t* compensation;  // -input_zero_point * sum of the channel's weights
  const float* multiplier;
  const float* bias;
  int32_t quant_min, quant_max;
  bool float_output;
  bool has_residual;
  float residual_multiplier;
  int32_t residual_zero_point;
  // Whether values must be clamped to quant_max before they become integers: it is not 255, to which packing
  // saturates, or a value may lie beyond the range of int32.
  bool clamps_high;
};

// Image `index` of a run alone.
inline Int8ConvImages one_image(const Int8ConvImages& images, int64_t index, Int8Image* residual) {
  Int8ConvImages one = images;
  one.count = 1;
  one.input.data += index * images.step;
  if (one.output.data != nullptr) one.output.data += index * images.step;
  if (one.float_output != nullptr) one.float_output += index * images.float_step;
  if (images.residual != nullptr) {
    *residual = *images.residual;
    residual->data += index * images.step;
    one.residual = residual;
  }
  return one;
}

// The same run seen from output channel `channel` on.
inline Int8ConvImages from_channel(const Int8ConvImages& images, int64_t channel, Int8Image* residual) {
  Int8ConvImages moved = images;
  if (images.output.data != nullptr) moved.output.data += channel;
  if (images.float_output != nullptr) moved.float_output += channel;
  if (images.residual != nullptr) {
    *residual = *images.residual;
    residual->data += channel;
    moved.residual = residual;
  }
  return moved;
}

struct Int8DirectPlan {
  Conv2dShape shape;
  Int8Epilogue epilogue;
  // Per group: input and output channels, tiles of output channels. Packed constants of tile t of group g start
  // at (g * tiles + t) * kOutTile.
  int64_t group_in, group_out, tiles;
  int64_t tap_quads;  // quads of one tap: group_in / 4, rounded up
  int64_t row_quads;  // quads of one kernel row
  // Taps on a border of zeros add nothing: whether there are such; and whether it is just the first tap of a
  // row's first pixel, and the last tap of its last pixel.
  bool skips_border, skips_left, skips_right;
  // Tiles that one kernel call computes together. The weights of panel tiles [t, t + n) of a group start at
  // tile t's place and are [ky][quad of the row][n] blocks, n being `panel` but for a group's last panel.
  int64_t panel;
  int64_t tile_bytes;  // of one tile's blocks
  const uint8_t* weight;
};

struct Int8DirectFormat {
  WeightFormat weight;
  int64_t max_panel;
};
using Int8DirectKernel = void(const Int8DirectPlan&, const Int8ConvImages&, int64_t row_begin, int64_t row_end);
using Int8DirectFormatOf = Int8DirectFormat();
PQK_CPU_KERNEL(Int8DirectKernel, int8_direct_kernel)
PQK_CPU_KERNEL(Int8DirectFormatOf, int8_direct_format)

// Depthwise: one input and one output channel a group, kernel taps of a row as quads. Channels are packed in
// blocks of `lanes` * 4: vector i (of 4), lane l is channel l / 4 * 16 + i * 4 + l % 4 of its block, the order
// that interleaving the bytes of four pixels gives.
struct Int8DepthwisePlan {
  Conv2dShape shape;
  Int8Epilogue epilogue;
  int64_t blocks;
  // Output pixels computed from the same interleaved pixels: 2 (neighbours) or 1. Their windows of four input
  // pixels cover `span` pixels together.
  int64_t outputs, windows, span;
  const uint8_t* weight;  // [block][ky][window][output][vector]
};
struct Int8DepthwiseFormat {
  WeightFormat weight;
  int64_t lanes;  // 0: this instruction set has no such kernel
  int64_t max_outputs;
};
using Int8DepthwiseKernel = void(const Int8DepthwisePlan&, const Int8ConvImages&, int64_t row_begin,
                                 int64_t row_end);
using Int8DepthwiseFormatOf = Int8DepthwiseFormat();
PQK_CPU_KERNEL(Int8DepthwiseKernel, int8_depthwise_kernel)
PQK_CPU_KERNEL(Int8DepthwiseFormatOf, int8_depthwise_format)

// Depthwise 3x3 with unit dilation and stride 1 or 2 both ways. A lane of quads holds four input rows of one
// channel, which serve two output rows. Channels are computed in halves of 32, two vectors each:
//   a block of 64 channels has two halves, the lower and the upper 8 bytes of its every 16: channel c is in
//   half c % 16 / 8, vector c % 8 / 4, lane c / 16 * 4 + c % 4; of a last block of at most 32 channels, vector
//   c % 8 / 4 holds channel c at lane c / 8 * 4 + c % 4.
struct Int8Depthwise3x3Plan {
  Conv2dShape shape;
  Int8Epilogue epilogue;  // in the order [half][vector][lane]
  int64_t halves;
  bool spread;            // the last half is a block of its own
  const uint8_t* weight;  // [half][kx][output row, of two][vector]; with stride 2 one row's serve both
};
using Int8Depthwise3x3Kernel = void(const Int8Depthwise3x3Plan&, const Int8ConvImages&, int64_t row_begin,
                                    int64_t row_end);
using Int8Depthwise3x3Lanes = int64_t();  // of a vector; 0: this instruction set has no such kernel
PQK_CPU_KERNEL(Int8Depthwise3x3Kernel, int8_depthwise3x3_kernel)
PQK_CPU_KERNEL(Int8Depthwise3x3Lanes, int8_depthwise3x3_lanes)

}  // namespace pqk
