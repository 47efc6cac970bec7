// Direct convolution on NHWC images. A tile of output pixels x NR * 16 output channels stays in registers while
// the kernel window runs over its input channels, four at a time (a quad): every pixel's quad is broadcast,
// every weight block is loaded once per tile. With unit dilation the taps of one kernel row are adjacent bytes,
// so they are one run.
#include <algorithm>
#include <array>
#include <utility>

#include "core/int8_conv2d_plan.h"
#include "core/int8_requantize_cpu.h"
#include "core/int8_strips_cpu.h"

#include "core/isa_begin.h"

namespace {

#if PQK_ISA_LEVEL >= 2
// Most pixels of a tile for 1, 2, 3, 4 tiles of output channels: at most 24 of 32 registers hold sums; 8 sums
// are enough to hide the latency of the multiply-add.
constexpr int kTilePixels[] = {16, 12, 8, 6};
#elif PQK_ISA_LEVEL == 1
constexpr int kTilePixels[] = {5};
#else
constexpr int kTilePixels[] = {2};
#endif
constexpr int kMaxPanel = std::size(kTilePixels), kMaxPixels = kTilePixels[0], kMaxSums = 24;
// A tile is one strip of up to kTilePixels, or several of this width at most, from any rows and images.
constexpr int kNarrow = 4;
constexpr int64_t kBlockBytes = kVectors * kVectorWeights;  // the weights of a quad and a tile

struct Tile {
  const Int8DirectPlan* plan;
  const uint8_t* weight;
  int64_t constants;  // index of the tile's first channel in the packed constants
  // Bytes from an output pixel's window to the next's, from a kernel row to the next, and from a run of
  // adjacent quads to the next.
  int64_t pixel_step, row_step, run_step;
  int64_t runs, run_quads;
  const uint8_t* input[kMaxPixels];  // of each strip's first pixel, the window's first tap
  // The result, [pixel][tile of channels][16]. It leaves the registers here because the compiler spills them
  // inside the loop when one function holds both the loop and the requantization.
  alignas(64) int32_t sums[kMaxSums * kOutTile];
};

inline void add_quad(TileAccumulator& sum, const Quads& x, const uint8_t* weight) {
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    sum.vector[i] = add_products(sum.vector[i], x, weight + i * kLanes * 4, kBlockBytes / 2);
  }
}

// The sums of `Strips` strips of `Width` pixels.
template <int NR, int Width, int Strips>
void multiply_tile(Tile& tile) {
  const Int8DirectPlan& p = *tile.plan;
  // Four pixels share a pointer: the others are one, two and three steps away.
  constexpr int kShared = 4, kPointers = (Width + kShared - 1) / kShared;
  const int64_t step = tile.pixel_step, step3 = 3 * step;
  const uint8_t* input[Strips][kPointers];
  TileAccumulator sum[Strips][Width][NR];
#pragma GCC unroll 32
  for (int s = 0; s < Strips; ++s) {
#pragma GCC unroll 32
    for (int i = 0; i < kPointers; ++i) input[s][i] = tile.input[s] + i * kShared * step;
#pragma GCC unroll 32
    for (int m = 0; m < Width * NR * kVectors; ++m) {
      const int n = m / kVectors % NR, i = m % kVectors;
      sum[s][m / kVectors / NR][n].vector[i] =
          load_ints(p.epilogue.compensation + tile.constants + n * kOutTile + i * kLanes);
    }
  }
  const auto advance = [&](int64_t bytes) {
#pragma GCC unroll 32
    for (int i = 0; i < Strips * kPointers; ++i) input[i / kPointers][i % kPointers] += bytes;
  };
  const uint8_t* weight = tile.weight;
  for (int64_t ky = p.shape.kernel_height; ky > 0; --ky) {
    for (int64_t run = tile.runs; run > 0; --run) {
      for (int64_t left = tile.run_quads; left > 0; --left) {
#pragma GCC unroll 32
        for (int m = 0; m < Strips * Width; ++m) {
          const int s = m / Width, x = m % Width, i = x % kShared;
          const uint8_t* from = input[s][x / kShared] + (i == 3 ? step3 : i * step);
          const Quads quads = broadcast_quad(from);
#pragma GCC unroll 4
          for (int n = 0; n < NR; ++n) add_quad(sum[s][x][n], quads, weight + n * kBlockBytes);
        }
        advance(4);
        weight += NR * kBlockBytes;
      }
      advance(tile.run_step - tile.run_quads * 4);
    }
    advance(tile.row_step - tile.runs * tile.run_step);
  }
#pragma GCC unroll 32
  for (int m = 0; m < Strips * Width; ++m) {
#pragma GCC unroll 32
    for (int i = 0; i < NR * kVectors; ++i) {
      store_ints(tile.sums + m * NR * kOutTile + i * kLanes,
                 sum[m / Width][m % Width][i / kVectors].vector[i % kVectors]);
    }
  }
}

using TileFunction = void(Tile&);

// [width - 1][strips - 1]
using TileShapes = std::array<std::array<TileFunction*, kMaxPixels / 2>, kMaxPixels>;

// How many strips of a width a tile can take.
constexpr int most_strips(int panel, int width) {
  return width == 1 || width > kNarrow ? 1 : kTilePixels[panel - 1] / width;
}

template <int NR, int Width, int... Strips>
constexpr void list_strips(TileShapes& shapes, std::integer_sequence<int, Strips...>) {
  ((shapes[Width - 1][Strips] = &multiply_tile<NR, Width, Strips + 1>), ...);
}

template <int NR, int... Width>
constexpr TileShapes list_widths(std::integer_sequence<int, Width...>) {
  TileShapes shapes{};
  (list_strips<NR, Width + 1>(shapes, std::make_integer_sequence<int, most_strips(NR, Width + 1)>()), ...);
  return shapes;
}

template <int... N>
constexpr auto list_panels(std::integer_sequence<int, N...>) {
  return std::array<TileShapes, kMaxPanel>{
      list_widths<N + 1>(std::make_integer_sequence<int, kTilePixels[N]>())...};
}

constexpr auto kTiles = list_panels(std::make_integer_sequence<int, kMaxPanel>());

// The outputs of one panel of `panel` tiles, of which `channels` channels exist.
struct Panel {
  const Int8DirectPlan* plan;
  int64_t panel, channels;

  // Rows wider than a tile, or nearly: one strip a tile.
  void wide_rows(const PixelGrid& grid, Tile& tile) const {
    const int64_t most = strip_width(grid.width, kTilePixels[panel - 1]);
    for (int64_t image = 0; image < grid.images; ++image) {
      for (int64_t row = 0; row < grid.rows; ++row) {
        tile.input[0] = grid.input_at(image, row);
        PixelRow pixels{grid.output_at(image, row), grid.residual.pixel, grid.out.pixel};
        for (int64_t left = grid.width; left > 0; left -= most) {
          const int64_t width = std::min(most, left);
          kTiles[panel - 1][width - 1][0](tile);
          requantize(plan->epilogue, TileSums{tile.sums, width, panel, tile.constants, channels}, pixels);
          tile.input[0] += width * grid.in.pixel;
          pixels.skip(width);
        }
      }
    }
  }

  // Narrow rows: as many as fill a tile, from as many images as that takes.
  void narrow_rows(const PixelGrid& grid, Tile& tile) const {
    const int64_t most = most_strips(panel, grid.width), rows = grid.images * grid.rows;
    const int64_t tiles = (rows + most - 1) / most;
    OutputPixel pixels[kMaxPixels];
    int64_t image = 0, row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t strips = rows / tiles + (i < rows % tiles);
      for (int64_t s = 0; s < strips; ++s) {
        tile.input[s] = grid.input_at(image, row);
        PixelRow strip{grid.output_at(image, row), grid.residual.pixel, grid.out.pixel};
        for (int64_t x = 0; x < grid.width; ++x) pixels[s * grid.width + x] = strip.next();
        if (++row < grid.rows) continue;
        row = 0;
        ++image;
      }
      kTiles[panel - 1][grid.width - 1][strips - 1](tile);
      const TileSums sums{tile.sums, strips * grid.width, panel, tile.constants, channels};
      requantize(plan->epilogue, sums, PixelList{pixels});
    }
  }
};

}  // namespace

Int8DirectFormat int8_direct_format() { return {kWeightFormat, kMaxPanel}; }

void int8_direct_kernel(const Int8DirectPlan& p, const Int8ConvImages& images, int64_t row_begin,
                        int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const int64_t tap_step = s.dilation_width * images.input.pixel_stride;
  const bool one_run = s.groups == 1 && tap_step == p.tap_quads * 4;
  Tile tile;
  tile.plan = &p;
  tile.row_step = s.dilation_height * images.input.row_stride;
  tile.run_step = tap_step;
  tile.runs = one_run ? 1 : s.kernel_width;
  tile.run_quads = one_run ? p.row_quads : p.tap_quads;
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t first = 0; first < p.tiles; first += p.panel) {
      const int64_t panel = std::min(p.panel, p.tiles - first);
      tile.constants = (group * p.tiles + first) * kOutTile;
      tile.weight = p.weight + (group * p.tiles + first) * p.tile_bytes;
      const int64_t channels = std::min(panel * kOutTile, p.group_out - first * kOutTile);
      const PixelGrid grid(s, p.epilogue.float_output, images, row_begin, row_end - row_begin,
                           group * p.group_in, group * p.group_out + first * kOutTile);
      tile.pixel_step = grid.in.pixel;
      const Panel outputs{&p, panel, channels};
      if (grid.width > 1 && most_strips(panel, grid.width) > 1) {
        outputs.narrow_rows(grid, tile);
      } else {
        outputs.wide_rows(grid, tile);
      }
    }
  }
}

#include "core/isa_end.h"
