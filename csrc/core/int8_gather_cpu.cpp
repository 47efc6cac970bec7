// Convolution with unstructured sparse weights: see int8_gather_plan.h. A tile of output pixels x one vector of
// output channels stays in registers while a program of windows runs; every index and weight is loaded once per
// tile of pixels.
#include <algorithm>
#include <array>
#include <utility>

#include "core/int8_gather_plan.h"
#include "core/int8_pixel_walk_cpu.h"
#include "core/int8_requantize_panel_cpu.h"

#include "core/isa_begin.h"

#if PQK_ISA_LEVEL >= 1

namespace {

#if PQK_ISA_LEVEL >= 2
// Sums and window of every pixel, and three more registers.
constexpr int kMaxPixels = 14;
using Bytes = __m512i;
inline Bytes load_window(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Ints load_step(const uint8_t* p) { return _mm512_load_si512(p); }
inline Ints add_step(Ints sum, Bytes window, Ints index, Ints weight) {
  return _mm512_dpbusd_epi32(sum, _mm512_permutexvar_epi8(index, window), weight);
}
#else
constexpr int kMaxPixels = 12;
using Bytes = __m256i;
inline Bytes load_window(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Ints load_step(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline Ints add_step(Ints sum, Bytes window, Ints index, Ints weight) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(window, index), weight));
}
#endif
constexpr int64_t kStepBytes = 2 * sizeof(Ints);

// Pixels that are walked over and requantized together: several tiles where there are few channels, so that the
// sums take little memory.
constexpr int64_t kStripSums = 4 * kMaxPixels * kOutTile;
struct Strip {
  const uint8_t* input[4 * kMaxPixels];  // of the window's first tap
  OutputPixel output[4 * kMaxPixels + 3];
  alignas(64) int32_t sums[kStripSums + 3 * kPanelChannels];  // [pixel][tile][16]
};

// A tile of pixels.
struct Tile {
  const uint8_t* const* input;
  int64_t row_step;  // bytes from a kernel row's input to the next's
  int32_t* sums;
  int64_t sums_step;  // from a pixel's sums to the next's
};

template <int MR>
struct Sums {
  Ints of[MR];
};

// Windows of `Steps` steps each.
template <int Steps, int MR>
[[gnu::always_inline]] inline void add_windows(Sums<MR>& sum, const uint8_t* const (&input)[MR],
                                               int64_t row_step, int64_t count, const GatherWindow*& window,
                                               const uint8_t*& step) {
  const GatherWindow* const end = window + count;
#pragma GCC unroll 1
  for (; window != end; ++window) {
    const int64_t offset = window->row * row_step + window->column;
    if constexpr (Steps == 1) {
      const Ints index = load_step(step), weight = load_step(step + sizeof(Ints));
      step += kStepBytes;
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        sum.of[m] = add_step(sum.of[m], load_window(input[m] + offset), index, weight);
      }
      continue;
    }
    Bytes bytes[MR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) bytes[m] = load_window(input[m] + offset);
#pragma GCC unroll 4
    for (int s = 0; s < Steps; ++s, step += kStepBytes) {
      const Ints index = load_step(step), weight = load_step(step + sizeof(Ints));
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) sum.of[m] = add_step(sum.of[m], bytes[m], index, weight);
    }
  }
}

template <int MR>
void multiply_tile(const GatherProgram& program, const int32_t* compensation, const Tile& tile) {
  const uint8_t* input[MR];
  Sums<MR> sum;
  const Ints start = load_ints(compensation);
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    input[m] = tile.input[m];
    sum.of[m] = start;
  }
  const GatherWindow* window = program.windows;
  const uint8_t* step = program.steps;
#if PQK_ISA_LEVEL >= 2
  add_windows<4>(sum, input, tile.row_step, program.count[3], window, step);
  add_windows<3>(sum, input, tile.row_step, program.count[2], window, step);
  add_windows<2>(sum, input, tile.row_step, program.count[1], window, step);
#endif
  add_windows<1>(sum, input, tile.row_step, program.count[0], window, step);
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) store_ints(tile.sums + m * tile.sums_step, sum.of[m]);
}

using TileFunction = void(const GatherProgram&, const int32_t*, const Tile&);

template <int... M>
constexpr auto all_tiles(std::integer_sequence<int, M...>) {
  return std::array<TileFunction*, kMaxPixels>{&multiply_tile<M + 1>...};
}
constexpr auto kTiles = all_tiles(std::make_integer_sequence<int, kMaxPixels>());

// Tiles [first, first + tiles) of output channels.
inline void multiply_panel(const Int8GatherPlan& p, int64_t first, int64_t tiles, int64_t pixels, Tile tile) {
  TileFunction* const multiply = kTiles[static_cast<size_t>(pixels - 1)];
  for (int64_t v = first * kVectors; v < (first + tiles) * kVectors; ++v, tile.sums += kLanes) {
    multiply(p.programs[v], p.epilogue.compensation + v * kLanes, tile);
  }
}

inline void requantize_strip(const Int8GatherPlan& p, int64_t first, int64_t tiles, int64_t pixels,
                             Strip& strip) {
  const int64_t channel = first * kOutTile,
                channels = std::min(tiles * kOutTile, p.shape.out_channels - channel);
#if PQK_ISA_LEVEL >= 2
  if (p.orders != nullptr) {
    alignas(64) uint8_t nowhere[64];
    for (int64_t m = pixels; m < pixels + 3; ++m) strip.output[m] = {strip.output[0].residual, nowhere};
    requantize_panel(p.epilogue, p.orders[first / kPanelTiles], strip.sums, pixels, tiles, channel, channels,
                     strip.output);
    return;
  }
#endif
  requantize(p.epilogue, strip.sums, pixels, tiles, channel, channels, strip.output);
}

}  // namespace

Int8GatherFormat int8_gather_format() {
#if PQK_ISA_LEVEL >= 2
  return {kLanes, 64, 4, kMaxWindowSteps, 2.2, 1.38, true};
#else
  return {kLanes, 16, 2, 1, 1, 1, false};
#endif
}

void int8_gather_kernel(const Int8GatherPlan& p, const Int8ConvImages& images, int64_t row_begin,
                        int64_t row_end) {
  const Conv2dShape& s = p.shape;
  const int64_t rows = row_end - row_begin, pixels = images.count * rows * s.out_width;
  // `count` tiles whose sizes differ by at most one.
  const int64_t count = (pixels + kMaxPixels - 1) / kMaxPixels;
  const auto begin_of = [&](int64_t i) { return i * (pixels / count) + std::min(i, pixels % count); };
  Strip strip;
  for (int64_t first = 0; first < p.tiles; first += kPanelTiles) {
    const int64_t tiles = std::min(kPanelTiles, p.tiles - first), sums_step = tiles * kOutTile;
    const int64_t strip_tiles = kStripSums / (kMaxPixels * sums_step);
    PixelWalk walk(s, p.epilogue.float_output, images, row_begin, rows, 0, first * kOutTile);
    for (int64_t i = 0; i < count; i += strip_tiles) {
      const int64_t begin = begin_of(i), last = std::min(i + strip_tiles, count), size = begin_of(last) - begin;
      walk.next(size, strip.input, strip.output);
      for (int64_t t = i; t < last; ++t) {
        const int64_t at = begin_of(t) - begin;
        multiply_panel(p, first, tiles, begin_of(t + 1) - begin_of(t),
                       {strip.input + at, s.dilation_height * images.input.row_stride,
                        strip.sums + at * sums_step, sums_step});
      }
      requantize_strip(p, first, tiles, size, strip);
    }
  }
}

#else

Int8GatherFormat int8_gather_format() { return {}; }

void int8_gather_kernel(const Int8GatherPlan&, const Int8ConvImages&, int64_t, int64_t) {}

#endif

#include "core/isa_end.h"
