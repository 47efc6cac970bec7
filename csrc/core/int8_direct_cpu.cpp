// Direct convolution on NHWC images. A tile of MR output pixels x NR * 16 output channels stays in registers
// while the kernel window runs over its input channels, four at a time (a quad): every pixel's quad is
// broadcast, every weight block is loaded once per tile. With unit dilation the taps of one kernel row are
// adjacent bytes, so they are one run.
#include <algorithm>
#include <array>
#include <utility>

#include "core/int8_conv2d_plan.h"
#include "core/int8_pixel_walk_cpu.h"
#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

namespace {

constexpr int64_t kMaxPixels = 12, kMaxSums = 24;

struct Tile {
  const Int8DirectPlan* plan;
  const uint8_t* weight;
  int64_t constants;  // index of the tile's first channel in the packed constants
  int64_t row_step, run_step, runs, run_quads;
  const uint8_t* input[kMaxPixels];  // of the window's first tap
  OutputPixel output[kMaxPixels];
  // The result, [pixel][tile of channels][16]. It leaves the registers here because the compiler spills them
  // inside the loop when one function holds both the loop and the requantization.
  alignas(64) int32_t sums[kMaxSums * kOutTile];
};

#if PQK_ISA_LEVEL >= 2
// Most pixels of a tile for 1, 2, 3, 4 tiles of output channels: at most 24 of 32 registers hold sums; 8 sums
// are enough to hide the latency of the multiply-add.
constexpr int kTilePixels[] = {8, 12, 8, 6};
#elif PQK_ISA_LEVEL == 1
constexpr int kTilePixels[] = {5};
#else
constexpr int kTilePixels[] = {2};
#endif
constexpr int64_t kBlockBytes = kVectors * kVectorWeights;  // the weights of a quad and a tile

inline void add_quad(TileAccumulator& sum, const Quads& x, const uint8_t* weight) {
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    sum.vector[i] = add_products(sum.vector[i], x, weight + i * kLanes * 4, kBlockBytes / 2);
  }
}

constexpr int kMaxPanel = std::size(kTilePixels);

template <int MR, int NR>
void multiply_tile(Tile& tile) {
  const Int8DirectPlan& p = *tile.plan;
  const uint8_t* input[MR];
  TileAccumulator sum[MR][NR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    input[m] = tile.input[m];
#pragma GCC unroll 4
    for (int n = 0; n < NR; ++n) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        sum[m][n].vector[i] = load_ints(p.epilogue.compensation + tile.constants + n * kOutTile + i * kLanes);
      }
    }
  }
  const uint8_t* weight = tile.weight;
  for (int64_t ky = 0; ky < p.shape.kernel_height; ++ky) {
    for (int64_t run = 0; run < tile.runs; ++run) {
      int64_t offset = ky * tile.row_step + run * tile.run_step;
      const int64_t end = offset + tile.run_quads * 4;
#pragma GCC unroll 1
      for (; offset < end; offset += 4, weight += NR * kBlockBytes) {
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
          const Quads x = broadcast_quad(input[m] + offset);
#pragma GCC unroll 4
          for (int n = 0; n < NR; ++n) add_quad(sum[m][n], x, weight + n * kBlockBytes);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < NR; ++n) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        store_ints(tile.sums + (m * NR + n) * kOutTile + i * kLanes, sum[m][n].vector[i]);
      }
    }
  }
}

using TileFunction = void(Tile&);

template <int NR, int... M>
constexpr auto tile_table(std::integer_sequence<int, M...>) {
  return std::array<TileFunction*, kMaxPixels>{&multiply_tile<M + 1, NR>...};
}

template <int NR>
constexpr auto tile_table() {
  return tile_table<NR>(std::make_integer_sequence<int, kTilePixels[NR - 1]>());
}

template <int... N>
constexpr auto all_tiles(std::integer_sequence<int, N...>) {
  return std::array<std::array<TileFunction*, kMaxPixels>, kMaxPanel>{tile_table<N + 1>()...};
}

// [vectors of output channels - 1][pixels - 1]
constexpr auto kTiles = all_tiles(std::make_integer_sequence<int, kMaxPanel>());

// Output rows [row_begin, row_end) of every image.
void multiply_rows(const Int8DirectPlan& p, const Int8ConvImages& images, int64_t row_begin, int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const int64_t rows = row_end - row_begin, pixels = images.count * rows * s.out_width;
  const int64_t tap_step = s.dilation_width * images.input.pixel_stride;
  const bool one_run = p.compact_rows > 0 || (s.groups == 1 && tap_step == p.tap_quads * 4);
  Tile tile;
  tile.plan = &p;
  tile.row_step = s.dilation_height * images.input.row_stride;
  tile.run_step = tap_step;
  tile.runs = one_run ? 1 : s.kernel_width;
  tile.run_quads = one_run ? p.row_quads : p.tap_quads;
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t first = 0; first < p.tiles; first += p.panel) {
      const int64_t panel = std::min(p.panel, p.tiles - first);
      const int64_t most = kTilePixels[panel - 1], count = (pixels + most - 1) / most;
      tile.constants = (group * p.tiles + first) * kOutTile;
      tile.weight = p.weight + (group * p.tiles + first) * p.tile_bytes;
      const int64_t channels = std::min(panel * kOutTile, p.group_out - first * kOutTile);
      PixelWalk walk(s, p.epilogue.float_output, images, row_begin, rows, group * p.group_in,
                     group * p.group_out + first * kOutTile);
      // `count` tiles whose sizes differ by at most one.
      for (int64_t i = 0; i < count; ++i) {
        const int64_t size = pixels / count + (i < pixels % count);
        walk.next(size, tile.input, tile.output);
        kTiles[panel - 1][size - 1](tile);
        requantize(p.epilogue, tile.sums, size, panel, tile.constants, channels, tile.output);
      }
    }
  }
}

// The images from output row `row` on, with another input.
Int8ConvImages from_row(const Int8DirectPlan& p, const Int8ConvImages& images, int64_t row,
                        const Int8Image& input, Int8Image* residual) {
  Int8ConvImages moved = images;
  moved.input = input;
  if (images.residual != nullptr) {
    *residual = *images.residual;
    residual->data += row * residual->row_stride;
    moved.residual = residual;
  }
  if (p.epilogue.float_output) {
    moved.float_output += row * p.shape.out_width * p.shape.out_channels;
  } else {
    moved.output.data += row * moved.output.row_stride;
  }
  return moved;
}

// Copies the input rows of output rows [row_begin, row_begin + rows) without the padding of their pixels.
void compact_input(const Int8DirectPlan& p, const Int8Image& input, int64_t row_begin, int64_t rows,
                   uint8_t* compact) {
  const Conv2dShape& s = p.shape;
  const int64_t first = row_begin * s.stride_height - s.pad_top, width = s.in_width + s.pad_left + s.pad_right;
  const int64_t count = (rows - 1) * s.stride_height + s.dilation_height * (s.kernel_height - 1) + 1;
  for (int64_t y = 0; y < count; ++y) {
    const uint8_t* from = input.data + (first + y) * input.row_stride - s.pad_left * input.pixel_stride;
    uint8_t* to = compact + y * compact_row_bytes(s);
    if (s.in_channels == 1 && input.pixel_stride == 4) {
      for (int64_t x = 0; x < width; ++x) to[x] = from[x * 4];
      continue;
    }
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < s.in_channels; ++c) to[x * s.in_channels + c] = from[x * input.pixel_stride + c];
    }
  }
}

void multiply_compact(const Int8DirectPlan& p, const Int8ConvImages& images, int64_t row_begin,
                      int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const int64_t row_bytes = compact_row_bytes(s);
  alignas(64) uint8_t compact[kCompactBytes + 64];  // a quad may reach 3 bytes behind the last row
  const Int8Image input{compact + s.pad_top * row_bytes + s.pad_left * s.in_channels, row_bytes, s.in_channels};
  for (int64_t row = row_begin; row < row_end; row += p.compact_rows) {
    const int64_t rows = std::min(p.compact_rows, row_end - row);
    compact_input(p, images.input, row, rows, compact);
    Int8Image residual;
    multiply_rows(p, from_row(p, images, row, input, &residual), 0, rows);
  }
}

}  // namespace

Int8DirectFormat int8_direct_format() { return {kWeightFormat, kMaxPanel}; }

void int8_direct_kernel(const Int8DirectPlan& p, const Int8ConvImages& images, int64_t row_begin,
                        int64_t row_end) {
  if (p.compact_rows == 0) {
    multiply_rows(p, images, row_begin, row_end);
    return;
  }
  for (int64_t i = 0; i < images.count; ++i) {
    Int8Image residual;
    multiply_compact(p, one_image(images, i, &residual), row_begin, row_end);
  }
}

#include "core/isa_end.h"
