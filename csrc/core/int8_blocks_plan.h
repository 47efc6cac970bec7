// What pack_blocks prepares and int8_blocks_cpu.cpp reads: convolutions whose weights are sparse in blocks of
// four consecutive input channels of one tap.
//
// Vectors hold one quad (four channels) of `lanes` output positions. Positions are computed in panels. For a
// panel the codes that its windows cover are first brought into scratch memory as aligned lines of such
// vectors, so that every block costs one broadcast of its weights and, for each vector of positions, one load
// and one multiply-add.
#pragma once

#include <cstdint>

#include "core/int8_conv2d_plan.h"

namespace pqk {

// Positions that lie one after the other in the lines of a quad: kernel_width copies, each for the next tap of
// a kernel row. Kernel rows whose windows see the same codes, some output rows later, share a stream.
struct Int8BlocksStream {
  int64_t row;         // input row of its first position, from the panel's first window
  int64_t first_line;  // of the quad's lines
  int64_t lines;       // of a copy
  int64_t more_rows;   // output rows that it is longer than the panel
};

struct Int8Block {
  uint32_t offset;  // bytes from the start of scratch to the line of the panel's first vector
  int8_t weight[4];
};

struct Int8BlocksPlan {
  Conv2dShape shape;
  Int8Epilogue epilogue;
  int64_t quads;  // of input channels
  // Where the lines of all quads do not fit the first-level cache, panels are computed slice by slice of so
  // many quads, with int32 sums kept behind the lines in scratch.
  int64_t slice_quads, slices;
  int64_t vectors;  // of positions in a panel, at most
  // Output rows of one image in a panel; 0 where panels go on over rows and images, which streams then cannot.
  int64_t panel_rows;
  int64_t lines;  // of one quad
  const Int8BlocksStream* streams;
  int64_t stream_count;
  // The channels of a tile in order of their number of blocks: a loop that often ends after as many rounds as
  // last time is predicted well. Slot i of slice s has blocks [begin[j], begin[j + 1]), j = s * slots + i.
  const Int8Block* blocks;
  int64_t slots;           // channels, rounded up to whole tiles
  const uint32_t* begin;   // [slices * slots + 1]
  const uint8_t* channel;  // [slices * slots]: of the slot's tile
};

constexpr int64_t kMaxBlockVectors = 8;
// Positions of a stream that is shared by taps.
constexpr int64_t kMaxStreamPositions = 512;
constexpr int64_t kQuadsAtOnce = 4;  // lines are written for so many quads together

struct Int8BlocksFormat {
  int64_t lanes;
  int64_t max_vectors;        // of positions that are computed together
  int64_t max_panel_vectors;  // of a panel; more than these make streams share more lines
};
// Rows of the output, and tiles of its channels.
struct Int8BlocksPart {
  int64_t row_begin, row_end, tile_begin, tile_end;
};
using Int8BlocksKernel = void(const Int8BlocksPlan&, const Int8ConvImages&, const Int8BlocksPart&);
using Int8BlocksFormatOf = Int8BlocksFormat();
PQK_CPU_KERNEL(Int8BlocksKernel, int8_blocks_kernel)
PQK_CPU_KERNEL(Int8BlocksFormatOf, int8_blocks_format)

}  // namespace pqk
