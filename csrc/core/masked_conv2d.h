// Convolutions of training, float32, whose weight keeps few entries: the output, the gradient of the input, and
// the gradient of the kept weights.
//
// Vector lanes are images: 16 images of one value lie side by side in a panel that a kernel fills from its
// input, whatever the input's layout, so that every tap of every stride and dilation is an aligned load. A
// linear layer is a 1x1 convolution of 1x1 images.
//
// Every sum has one order, and products and sums are rounded separately: the same bits on every instruction
// set, for any number of threads and any layout of the activations.
#pragma once

#include <cstdint>
#include <vector>

#include "core/int8_conv2d.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace pqk {

constexpr int64_t kImageLanes = 16;

// A batch of images, strides in floats. Fast where the stride of channels or of columns is 1.
struct ImageBatch {
  float* data;
  int64_t images;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

// What one axis of a panel reads: line `l` of slot `s` is the source's index first[s] + l * step, or zero where
// there is no such index. Slots are the phases of a stride.
struct PanelAxis {
  std::vector<int64_t> first;  // of each slot
  int64_t step;
  std::vector<int64_t> slot, shift;  // of each tap: where output i reads, at line i + shift
  int64_t reach;                     // the largest shift
};

// Sums over taps of a panel. Outputs come in phases, one for each pair of origins: the pixels
// (origin_y + i * out_step_y, origin_x + j * out_step_x) for i in [row_begin, row_end), j in [column_begin,
// column_end), as far as they exist.
struct LanePass {
  int64_t in_channels, in_height, in_width;
  int64_t out_channels, out_height, out_width;
  PanelAxis y, x;
  int64_t row_begin, row_end, column_begin, column_end;
  std::vector<int64_t> origin_y, origin_x;
  int64_t out_step_y, out_step_x;

  int64_t blocks;         // of 16 images that lie together
  int64_t tile_rows;      // output rows of a panel
  int64_t channel_block;  // channels that the kernel of sums takes together
  // In floats.
  int64_t line_pitch, slot_pitch, channel_pitch, panel_floats;

  int64_t columns() const { return column_end - column_begin; }
  int64_t channel_blocks() const { return (in_channels + channel_block - 1) / channel_block; }
  int64_t phases() const { return static_cast<int64_t>(origin_y.size() * origin_x.size()); }
  int64_t tap(int64_t ky, int64_t kx) const;  // from output (row_begin, column_begin) of a tile, in floats
};

struct LaneEntry {
  int32_t cell;  // of the first output of a tile, within the panel
  float weight;
};

// A row is an output's channel; all those of a phase come after another's. Entries of a row are sorted by input
// channel, row and column of the tap, whatever the weight's layout.
struct LaneIndex {
  std::vector<int32_t> rows;  // [channel_blocks][phases * out_channels], and the end of the last
  std::vector<LaneEntry> entries;
  std::vector<int32_t> places;  // of each entry in the weight
};

// A weight [out_channels, in_channels, KH, KW] and its mask: rows are contiguous, in that order or, with
// channels_last, as [KH, KW, in_channels].
struct MaskedWeight {
  const float* weight;
  const uint8_t* mask;
  bool channels_last;
};

// A tile: images [image, image + images) and output lines [line, line + lines).
struct LaneTile {
  int64_t image, images;
  int64_t line, lines;
  bool follows;  // the panel holds the tile of the lines before, whose last lines are this one's first
};

// Fills the panel of a tile.
using LaneFillKernel = void(const LanePass&, const ImageBatch& source, const LaneTile&, float* panel);
// The sums of a tile, with `bias` of each channel or null, into `output`. `sums` has room for kMostCells cells
// of each output channel.
constexpr int64_t kMostCells = 16;
using LaneSumKernel = void(const LanePass&, const LaneIndex&, const float* bias, const float* panel,
                           const LaneTile&, float* sums, const ImageBatch& output);
// Adds to sums[e] the products of entry e's input with the gradient of its output, over the tile, in chunks of
// `chunk` lines. `gradient` is the panel of a pass that reads every output once.
using LaneGradientKernel = void(const LanePass&, const LaneIndex&, const float* panel, const LanePass& upstream,
                                const float* gradient, const LaneTile&, int64_t chunk, float* sums);
PQK_CPU_KERNEL(LaneFillKernel, lane_fill_kernel)
PQK_CPU_KERNEL(LaneSumKernel, lane_sum_kernel)
PQK_CPU_KERNEL(LaneGradientKernel, lane_gradient_kernel)

// Whether this is faster than a dense convolution is likely to be; `kept` weights are not masked. Of the
// arguments alone, so that a run that is resumed chooses as the first did.
enum class MaskedStep { kOutput, kGradInput, kGradWeight };
bool masked_conv2d_wins(MaskedStep step, const Conv2dShape& shape, int64_t images, int64_t kept,
                        bool channels_last);

// The shape's groups must be 1. All throw std::length_error where a panel is too large for 32-bit offsets.
void masked_conv2d(const Conv2dShape& shape, const MaskedWeight& weight, const float* bias,
                   const ImageBatch& input, const ImageBatch& output, const Parallel& parallel);
// `grad` is the gradient of the output.
void masked_conv2d_grad_input(const Conv2dShape& shape, const MaskedWeight& weight, const ImageBatch& grad,
                              const ImageBatch& grad_input, const Parallel& parallel);
// `grad_weight` lies as the weight does, and is 0 where the mask is.
void masked_conv2d_grad_weight(const Conv2dShape& shape, const MaskedWeight& weight, const ImageBatch& input,
                               const ImageBatch& grad, float* grad_weight, const Parallel& parallel);

}  // namespace pqk
