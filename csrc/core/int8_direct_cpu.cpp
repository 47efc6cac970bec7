// Direct convolution on NHWC images. A tile of MR output pixels x NR * 16 output channels stays in registers
// while the kernel window runs over its input channels, four at a time (a quad): every pixel's quad is
// broadcast, every weight block is loaded once per tile. With unit dilation the taps of one kernel row are
// adjacent bytes, so they are one run.
#include <algorithm>
#include <array>
#include <utility>

#include "core/int8_conv2d_plan.h"
#include "core/int8_requantize_cpu.h"

#include "core/isa_begin.h"

namespace {

constexpr int64_t kMaxPixels = 12, kMaxSums = 24;

struct Tile {
  const Int8ConvPlan* plan;
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

// Most pixels of a tile for 1, 2, 3, 4 vectors of output channels: at most 24 of 32 registers hold
// accumulators.
constexpr int kTilePixels[] = {12, 12, 8, 6};

using Quad = __m512i;

inline Quad broadcast_quad(const uint8_t* x) {
  int32_t quad;
  memcpy(&quad, x, 4);
  return _mm512_set1_epi32(quad);
}

inline void add_quad(TileAccumulator& sum, Quad x, const uint8_t* weight) {
  sum.vector[0] = _mm512_dpbusd_epi32(sum.vector[0], x, _mm512_load_si512(weight));
}

#elif defined(PQK_X86_64)

// A quad as 16-bit numbers: channels 0 and 2, and 1 and 3. A product of u8 and s8 and the sum of two fit the 32
// bits of the multiply-add, so nothing saturates.
struct Quad {
  Ints even, odd;
};

#if PQK_ISA_LEVEL == 1

constexpr int kTilePixels[] = {6};

inline Quad broadcast_quad(const uint8_t* x) {
  int32_t quad;
  memcpy(&quad, x, 4);
  const __m256i bytes = _mm256_set1_epi32(quad);
  return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
}

inline Ints multiply_pairs(Ints x, const uint8_t* weight) {
  return _mm256_madd_epi16(x, _mm256_load_si256(reinterpret_cast<const __m256i*>(weight)));
}

inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
#else
constexpr int kTilePixels[] = {3};

inline Quad broadcast_quad(const uint8_t* x) {
  int32_t quad;
  memcpy(&quad, x, 4);
  const __m128i bytes = _mm_set1_epi32(quad);
  return {_mm_and_si128(bytes, _mm_set1_epi16(0xff)), _mm_srli_epi16(bytes, 8)};
}

inline Ints multiply_pairs(Ints x, const uint8_t* weight) {
  return _mm_madd_epi16(x, _mm_load_si128(reinterpret_cast<const __m128i*>(weight)));
}

inline Ints add(Ints a, Ints b) { return _mm_add_epi32(a, b); }
#endif

inline void add_quad(TileAccumulator& sum, const Quad& x, const uint8_t* weight) {
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    sum.vector[i] = add(sum.vector[i], multiply_pairs(x.even, weight + i * sizeof(Ints)));
    sum.vector[i] = add(sum.vector[i], multiply_pairs(x.odd, weight + 64 + i * sizeof(Ints)));
  }
}

#else

constexpr int kTilePixels[] = {4};

using Quad = const uint8_t*;

inline Quad broadcast_quad(const uint8_t* x) { return x; }

inline void add_quad(TileAccumulator& sum, Quad x, const uint8_t* weight) {
  const int8_t* w = reinterpret_cast<const int8_t*>(weight);
  for (int64_t lane = 0; lane < kOutTile; ++lane) {
    for (int64_t i = 0; i < 4; ++i) sum.vector[lane] += x[i] * w[lane * 4 + i];
  }
}

#endif

#if PQK_ISA_LEVEL <= 1 && defined(PQK_X86_64)
constexpr WeightFormat kFormat = WeightFormat::kPairs;
constexpr int64_t kBlockBytes = kOutTile * 8;
#else
constexpr WeightFormat kFormat = WeightFormat::kQuads;
constexpr int64_t kBlockBytes = kOutTile * 4;
#endif
constexpr int kMaxPanel = std::size(kTilePixels);

template <int MR, int NR>
void multiply_tile(Tile& tile) {
  const Int8ConvPlan& p = *tile.plan;
  const uint8_t* input[MR];
  TileAccumulator sum[MR][NR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    input[m] = tile.input[m];
#pragma GCC unroll 4
    for (int n = 0; n < NR; ++n) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        sum[m][n].vector[i] = load_ints(p.compensation + tile.constants + n * kOutTile + i * kLanes);
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
          const Quad x = broadcast_quad(input[m] + offset);
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

// Walks over the output pixels of an image row by row and gives their addresses.
class PixelWalk {
 public:
  // From row `row` on, for the group and its output channel that the pointers shall point at.
  PixelWalk(const Int8ConvPlan& p, const Int8Image& input, const Int8Image* residual, const Int8Image& output,
            float* float_output, int64_t row, int64_t group, int64_t channel)
      : width_(p.shape.out_width), left_(p.shape.out_width) {
    const Conv2dShape& s = p.shape;
    input_ = {input.data + group * p.group_in + (row * s.stride_height - s.pad_top) * input.row_stride -
                  s.pad_left * input.pixel_stride,
              s.stride_width * input.pixel_stride, s.stride_height * input.row_stride, s.out_width};
    if (residual != nullptr) {
      residual_ = {residual->data + channel + row * residual->row_stride, residual->pixel_stride,
                   residual->row_stride, s.out_width};
    }
    if (p.float_output) {
      const int64_t pixel = s.out_channels * sizeof(float), line = s.out_width * pixel;
      output_ = {reinterpret_cast<uint8_t*>(float_output + channel) + row * line, pixel, line, s.out_width};
    } else {
      output_ = {output.data + channel + row * output.row_stride, output.pixel_stride, output.row_stride,
                 s.out_width};
    }
  }

  void next(int64_t count, Tile* tile) {
    for (int64_t m = 0; m < count; ++m) {
      tile->input[m] = input_.at;
      tile->output[m] = {residual_.at, output_.at};
      input_.at += input_.step;
      residual_.at += residual_.step;
      output_.at += output_.step;
      if (--left_ > 0) continue;
      left_ = width_;
      input_.at += input_.wrap;
      residual_.at += residual_.wrap;
      output_.at += output_.wrap;
    }
  }

 private:
  template <class Byte>
  struct Line {
    Line() = default;
    Line(Byte* first, int64_t pixel, int64_t row, int64_t width)
        : at(first), step(pixel), wrap(row - width * pixel) {}
    Byte* at = nullptr;
    int64_t step = 0;  // to the next pixel
    int64_t wrap = 0;  // from behind the last pixel of a row to the next row
  };
  Line<const uint8_t> input_, residual_;
  Line<uint8_t> output_;
  int64_t width_, left_;
};

}  // namespace

Int8DirectFormat int8_direct_format() { return {kFormat, kMaxPanel}; }

void int8_direct_kernel(const Int8ConvPlan& p, const Int8Image& input, const Int8Image* residual,
                        const Int8Image& output, float* float_output, int64_t row_begin, int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const int64_t pixels = (row_end - row_begin) * s.out_width;
  const int64_t tap_step = s.dilation_width * input.pixel_stride;
  const bool one_run = s.groups == 1 && tap_step == p.tap_quads * 4;
  Tile tile;
  tile.plan = &p;
  tile.row_step = s.dilation_height * input.row_stride;
  tile.run_step = tap_step;
  tile.runs = one_run ? 1 : s.kernel_width;
  tile.run_quads = one_run ? s.kernel_width * p.tap_quads : p.tap_quads;
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t first = 0; first < p.tiles; first += p.panel) {
      const int64_t panel = std::min(p.panel, p.tiles - first);
      const int64_t most = kTilePixels[panel - 1], count = (pixels + most - 1) / most;
      tile.constants = (group * p.tiles + first) * kOutTile;
      tile.weight = p.weight + (group * p.tiles + first) * p.tile_bytes;
      const int64_t channels = std::min(panel * kOutTile, p.group_out - first * kOutTile);
      PixelWalk walk(p, input, residual, output, float_output, row_begin, group,
                     group * p.group_out + first * kOutTile);
      // `count` tiles whose sizes differ by at most one.
      for (int64_t i = 0; i < count; ++i) {
        const int64_t size = pixels / count + (i < pixels % count);
        walk.next(size, &tile);
        kTiles[panel - 1][size - 1](tile);
        requantize(p, tile.sums, size, panel, tile.constants, channels, tile.output);
      }
    }
  }
}

#include "core/isa_end.h"
