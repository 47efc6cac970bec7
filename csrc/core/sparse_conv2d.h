// Convolution and linear layers whose weight is a CSR matrix (out_channels, in_channels / groups * KH * KW):
// float32, float64, and u8 activations x s8 weights.
//
// Vector lanes are output positions: each stored weight is broadcast over a panel of consecutive positions. For
// that the input is first laid out so that the positions of one panel read consecutive cells for every weight
// (see SparseLayout). A linear layer is a 1x1 convolution of 1x1 images.
//
// Every float output is the plain sum of its products in column order, product and sum rounded separately, then
// the bias: the same bits on every instruction set and for every split over threads.
#pragma once

#include <cstdint>
#include <vector>

#include "core/int8_conv2d.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace pqk {

enum class SparseType { kFloat, kDouble, kInt8 };

// A checked CSR matrix (validate_csr). For kInt8 the caller's int8 values; see group_int8 for what kernels see.
struct SparseWeight {
  const int32_t* crow_indices;
  const int32_t* col_indices;
  const void* values;
};

// Any strides, in elements.
struct SparseInput {
  const void* data;
  int64_t images;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

// position_stride lies between one output pixel and the next in row-major order.
struct SparseOutput {
  void* data;  // float, double, or u8
  int64_t image_stride, channel_stride, position_stride;
};

// What follows the sum. float and double use `bias` alone, which may be null; kInt8 is as in numerics.h:
// rescale, then to_code unless float_output.
struct SparseEpilogue {
  const void* bias;
  const float* multiplier;
  int32_t input_zero_point;
  int32_t quant_min, quant_max;
  bool float_output;
};

// A tile is `images` consecutive images in working memory. A cell holds one input value of one position: a
// float, a double, or for kInt8 the values of `group` consecutive channels in 4 bytes. The padded input is
// split into slots, one for each pair of a row phase and a column phase of the stride, so that all positions of
// a weight lie in one slot one after the other. Position p = (image * rows + oy) * columns + ox; those with oy
// >= out_height or ox >= out_width are computed and dropped.
struct SparseLayout {
  int64_t images;
  int64_t rows, columns;              // of one image in one slot
  std::vector<int64_t> row_phase;     // of each slot row; first row of the padded input
  std::vector<int64_t> column_phase;  // the same for columns
  int64_t slot_pitch;                 // cells from a slot to the next
  int64_t group, units_per_group;     // channels per cell; cells per position and channel group
  int64_t cells;                      // of the whole tile
  int64_t positions;                  // of the whole tile
  std::vector<int32_t> offset;        // [units_per_group * KH * KW]: cell of position 0
  int64_t unit_pitch() const {
    return slot_pitch * static_cast<int64_t>(row_phase.size() * column_phase.size());
  }
};

// For up to `images` images together. Throws std::length_error where one is too large for 32-bit offsets.
SparseLayout sparse_layout(SparseType type, const Conv2dShape& shape, int64_t images);

// The whole job, as kernels see it.
struct SparseTask {
  SparseType type;
  Conv2dShape shape;
  SparseLayout layout;
  SparseWeight weight;  // for kInt8 grouped: columns are units, values int32 of `group` weights
  SparseInput input;
  SparseEpilogue epilogue;
  SparseOutput output;
  std::vector<int32_t> initial;  // kInt8: -zero_point * (sum of the row's weights)
};

// Lays units [unit_begin, unit_end) of the tile that begins with image `first` out at `cells`.
using SparseFillKernel = void(const SparseTask&, int64_t first, int64_t unit_begin, int64_t unit_end,
                              void* cells);
// Computes output channels [row_begin, row_end) of positions [begin, end) of the tile.
using SparseRowsKernel = void(const SparseTask&, int64_t first, const void* cells, int64_t begin, int64_t end,
                              int64_t row_begin, int64_t row_end);
// Positions that one panel of this type has.
using SparsePanelKernel = int64_t(SparseType);
// Channels that one kInt8 cell has: 4 bytes, or 2 of 16 bits.
using SparseGroupKernel = int64_t();
PQK_CPU_KERNEL(SparseFillKernel, sparse_fill_kernel)
PQK_CPU_KERNEL(SparseRowsKernel, sparse_rows_kernel)
PQK_CPU_KERNEL(SparsePanelKernel, sparse_panel_kernel)
PQK_CPU_KERNEL(SparseGroupKernel, sparse_group_kernel)

// Throws std::length_error where one image is too large for 32-bit offsets.
void sparse_conv2d(SparseType type, const Conv2dShape& shape, const SparseWeight& weight,
                   const SparseInput& input, const SparseEpilogue& epilogue, const SparseOutput& output,
                   const Parallel& parallel);

}  // namespace pqk
