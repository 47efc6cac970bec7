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
constexpr int kTilePixels[] = {4};  // five leave too few of 16 registers
#else
constexpr int kTilePixels[] = {2};
#endif
constexpr int kMaxPanel = std::size(kTilePixels), kMaxPixels = kTilePixels[0], kMaxSums = 24;
constexpr int kMaxStrips = std::min(kMaxPixels, 8);
// A tile is one strip of up to kTilePixels, or several of this width at most, from any rows and images.
constexpr int kNarrow = 4;
constexpr int64_t kBlockBytes = kVectors * kVectorWeights;  // the weights of a quad and a tile

struct Tile {
  const int32_t* compensation;  // of the tile's first channel
  const uint8_t* weight;        // of the first kernel row computed
  // Bytes from an output pixel's window to the next's, from a kernel row to the next, and from a run of
  // adjacent quads to the next.
  int64_t pixel_step, row_step, run_step;
  int64_t kernel_rows, runs;
  // The quads of a run: for all pixels but the strips' first, for all, for all but the strips' last.
  int64_t left_quads, quads, right_quads;
  const uint8_t*
      input[kMaxStrips];  // of each strip's first pixel, its window's first tap in the first kernel row
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
      sum[s][m / kVectors / NR][n].vector[i] = load_ints(tile.compensation + n * kOutTile + i * kLanes);
    }
  }
  const auto advance = [&](int64_t bytes) {
#pragma GCC unroll 32
    for (int i = 0; i < Strips * kPointers; ++i) input[i / kPointers][i % kPointers] += bytes;
  };
  const uint8_t* weight = tile.weight;
  // Without each strip's `First` first and `Last` last pixels.
  const auto multiply = [&]<int First, int Last>(int64_t quads) __attribute__((always_inline)) {
    for (; quads > 0; --quads) {
#pragma GCC unroll 32
      for (int m = 0; m < Strips * Width; ++m) {
        const int s = m / Width, x = m % Width, i = x % kShared;
        if (x < First || x >= Width - Last) continue;
        const Quads codes = broadcast_quad(input[s][x / kShared] + (i == 3 ? step3 : i * step));
#pragma GCC unroll 4
        for (int n = 0; n < NR; ++n) add_quad(sum[s][x][n], codes, weight + n * kBlockBytes);
      }
      advance(4);
      weight += NR * kBlockBytes;
    }
  };
  for (int64_t ky = tile.kernel_rows; ky > 0; --ky) {
    for (int64_t run = tile.runs; run > 0; --run) {
      multiply.template operator()<1, 0>(tile.left_quads);
      multiply.template operator()<0, 0>(tile.quads);
      multiply.template operator()<0, 1>(tile.right_quads);
      advance(tile.run_step - (tile.left_quads + tile.quads + tile.right_quads) * 4);
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
using TileShapes = std::array<std::array<TileFunction*, kMaxStrips>, kMaxPixels>;

// How many strips of a width a tile can take.
constexpr int most_strips(int panel, int width) {
  return width > kNarrow ? 1 : std::min(kMaxStrips, kTilePixels[panel - 1] / width);
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

// Kernel rows whose taps do not all lie on the border.
struct KernelRows {
  int64_t begin, end;
  bool operator==(const KernelRows&) const = default;
};

KernelRows kernel_rows(const Int8DirectPlan& p, int64_t out_row) {
  const Conv2dShape& s = p.shape;
  KernelRows rows{0, s.kernel_height};
  if (!p.skips_border) return rows;
  const int64_t above = s.pad_top - out_row * s.stride_height, below = above + s.in_height;
  while (rows.begin < rows.end && rows.begin * s.dilation_height < above) ++rows.begin;
  while (rows.end > rows.begin && (rows.end - 1) * s.dilation_height >= below) --rows.end;
  return rows;
}

// Computes output rows [row, row + rows) of every image, a panel of tiles of channels at a time.
class DirectRun {
 public:
  DirectRun(const Int8DirectPlan& p, const Int8ConvImages& images, int64_t row, int64_t rows)
      : plan_(p),
        grid_(p.shape, p.epilogue.float_output, images, row, rows, !p.skips_border),
        origin_{grid_.input, grid_.output},
        channel_bytes_(p.epilogue.float_output ? sizeof(float) : 1),
        first_row_(row) {
    const Conv2dShape& s = p.shape;
    const int64_t tap_step = s.dilation_width * images.input.pixel_stride;
    one_run_ = s.groups == 1 && tap_step == p.tap_quads * 4;
    tile_.pixel_step = grid_.in.pixel;
    tile_.row_step = s.dilation_height * images.input.row_stride;
    tile_.run_step = tap_step;
    tile_.runs = one_run_ ? 1 : s.kernel_width;
  }

  // The panel of tiles that begins with tile `first` of the group.
  void run(int64_t group, int64_t first) {
    const int64_t channel = group * plan_.group_out + first * kOutTile;
    grid_.input = origin_.input + group * plan_.group_in;
    grid_.output.output = origin_.output.output + channel * channel_bytes_;
    if (plan_.epilogue.has_residual) grid_.output.residual = origin_.output.residual + channel;
    tiles_ = std::min(plan_.panel, plan_.tiles - first);
    channels_ = std::min(tiles_ * kOutTile, plan_.group_out - first * kOutTile);
    constants_ = (group * plan_.tiles + first) * kOutTile;
    weight_ = plan_.weight + (group * plan_.tiles + first) * plan_.tile_bytes;
    tile_.compensation = plan_.epilogue.compensation + constants_;
    set_taps({0, plan_.shape.kernel_height}, false, false);
    most_strips_ =
        grid_.width > kNarrow ? 1 : most_strips(static_cast<int>(tiles_), static_cast<int>(grid_.width));
    most_strips_ > 1 ? narrow_rows() : wide_rows();
  }

 private:
  // Rows wider than a tile, or nearly: one strip a tile.
  void wide_rows() {
    const int64_t most = strip_width(grid_.width, kTilePixels[tiles_ - 1]);
    for (int64_t image = 0; image < grid_.images; ++image) {
      for (int64_t row = 0; row < grid_.rows; ++row) {
        const KernelRows taps = kernel_rows(plan_, first_row_ + row);
        const uint8_t* input = grid_.input_at(image, row) + taps.begin * tile_.row_step;
        PixelRow pixels{grid_.output_at(image, row), grid_.residual.pixel, grid_.out.pixel};
        for (int64_t x = 0; x < grid_.width; x += most) {
          const int64_t width = std::min(most, grid_.width - x);
          tile_.input[0] = input + x * grid_.in.pixel;
          if (plan_.skips_border) set_taps(taps, x == 0, x + width == grid_.width);
          compute(width, 1, pixels);
          pixels.skip(width);
        }
      }
    }
  }

  // Narrow rows, as many as fill a tile: those at the same height in all images before the next, because what
  // lies on the border is left out for a whole tile only. A tile ends where that changes, if it has enough
  // sums.
  void narrow_rows() {
    constexpr int64_t kEnough = 8;
    OutputPixel pixels[kMaxPixels];
    KernelRows taps = kernel_rows(plan_, first_row_);
    int64_t strips = 0;
    const auto flush = [&] {
      if (strips == 0) return;
      for (int64_t i = 0; i < strips; ++i) tile_.input[i] += taps.begin * tile_.row_step;
      set_taps(taps, true, true);
      compute(grid_.width, strips, PixelList{pixels});
      strips = 0;
    };
    for (int64_t row = 0; row < grid_.rows; ++row) {
      const KernelRows own = kernel_rows(plan_, first_row_ + row);
      if (own != taps && strips * grid_.width * tiles_ >= kEnough) flush();
      taps = strips == 0 ? own : KernelRows{std::min(taps.begin, own.begin), std::max(taps.end, own.end)};
      for (int64_t image = 0; image < grid_.images; ++image) {
        if (strips == most_strips_) {
          flush();
          taps = own;
        }
        tile_.input[strips] = grid_.input_at(image, row);
        PixelRow strip{grid_.output_at(image, row), grid_.residual.pixel, grid_.out.pixel};
        for (int64_t x = 0; x < grid_.width; ++x) pixels[strips * grid_.width + x] = strip.next();
        ++strips;
      }
    }
    flush();
  }

  // What of the window is computed; whether the strips begin or end their rows.
  void set_taps(const KernelRows& taps, bool row_begins, bool row_ends) {
    const int64_t row_bytes = tiles_ * plan_.row_quads * kBlockBytes;
    tile_.weight = weight_ + taps.begin * row_bytes;
    tile_.kernel_rows = taps.end - taps.begin;
    tile_.left_quads = one_run_ && row_begins && plan_.skips_left ? plan_.tap_quads : 0;
    tile_.right_quads = one_run_ && row_ends && plan_.skips_right ? plan_.tap_quads : 0;
    tile_.quads = (one_run_ ? plan_.row_quads : plan_.tap_quads) - tile_.left_quads - tile_.right_quads;
  }

  template <class Pixels>
  void compute(int64_t width, int64_t strips, const Pixels& pixels) {
    kTiles[tiles_ - 1][width - 1][strips - 1](tile_);
    requantize(plan_.epilogue, TileSums{tile_.sums, width * strips, tiles_, constants_, channels_}, pixels);
  }

  const Int8DirectPlan& plan_;
  PixelGrid grid_;
  const struct {
    const uint8_t* input;
    OutputPixel output;
  } origin_;  // of the grid for the first channels
  const int64_t channel_bytes_, first_row_;
  bool one_run_;
  int64_t tiles_, channels_, constants_, most_strips_;  // of the panel
  const uint8_t* weight_;
  Tile tile_;
};

}  // namespace

Int8DirectFormat int8_direct_format() { return {kWeightFormat, kMaxPanel}; }

void int8_direct_kernel(const Int8DirectPlan& p, const Int8ConvImages& images, int64_t row_begin,
                        int64_t row_end) {
  DirectRun run(p, images, row_begin, row_end - row_begin);
  for (int64_t group = 0; group < p.shape.groups; ++group) {
    for (int64_t first = 0; first < p.tiles; first += p.panel) run.run(group, first);
  }
}

#include "core/isa_end.h"
