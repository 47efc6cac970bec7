// Direct convolution on NHWC images. A tile of output pixels x vectors of output channels stays in registers
// while the kernel window runs over its input channels, each of which is broadcast. The pixels of a tile may
// lie anywhere, in several rows and images.
#include <algorithm>
#include <array>
#include <utility>

#include "core/float_direct.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

#include "core/float_vector_cpu.h"

#include "core/float_finish_cpu.h"

namespace {

// Sums for all pixels of a tile, the weights of two vectors and a broadcast input fit the registers.
#if PQK_ISA_LEVEL >= 2
constexpr int kMaxPixels = 14;
#elif PQK_ISA_LEVEL == 1
constexpr int kMaxPixels = 6;
#else
constexpr int kMaxPixels = 4;
#endif
constexpr int kVectors = 2, kPanel = kVectors * kLanes;

struct Tile {
  const float* input[kMaxPixels];  // of each pixel, its window's first tap
  const float* weight;
  // Floats from a kernel row to the next and from a run of adjacent inputs to the next.
  int64_t row_step, run_step;
  int64_t kernel_rows, runs, inputs;  // inputs of a run
  alignas(64) float sums[kMaxPixels * kPanel];
};

template <int NV, int Pixels>
void multiply_tile(Tile& tile) {
  Floats sum[Pixels][NV];
  const float* input[Pixels];
#pragma GCC unroll 32
  for (int p = 0; p < Pixels; ++p) {
    input[p] = tile.input[p];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[p][v] = Floats{};
  }
  const float* weight = tile.weight;
  for (int64_t ky = 0; ky < tile.kernel_rows; ++ky) {
    for (int64_t run = 0; run < tile.runs; ++run) {
      const int64_t begin = ky * tile.row_step + run * tile.run_step, end = begin + tile.inputs;
      for (int64_t i = begin; i < end; ++i, weight += NV * kLanes) {
        Floats w[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) w[v] = load_floats(weight + v * kLanes);
#pragma GCC unroll 32
        for (int p = 0; p < Pixels; ++p) {
          const Floats x = broadcast(input[p][i]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[p][v] = multiply_add(x, w[v], sum[p][v]);
        }
      }
    }
  }
#pragma GCC unroll 32
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store_floats(tile.sums + (p * NV + v) * kLanes, sum[p][v]);
  }
}

using TileFunction = void(Tile&);

template <int NV, int... Pixels>
constexpr std::array<TileFunction*, kMaxPixels> list_tiles(std::integer_sequence<int, Pixels...>) {
  return {&multiply_tile<NV, Pixels + 1>...};
}
constexpr std::array<TileFunction*, kMaxPixels> kTiles[kVectors] = {
    list_tiles<1>(std::make_integer_sequence<int, kMaxPixels>()),
    list_tiles<2>(std::make_integer_sequence<int, kMaxPixels>())};

class DirectRun {
 public:
  DirectRun(const FloatDirectPlan& plan, const FloatConvImages& images, int64_t row_begin, int64_t row_end)
      : plan_(plan), images_(images), row_begin_(row_begin), rows_(row_end - row_begin) {
    const Conv2dShape& s = plan.shape;
    const int64_t tap_step = s.dilation_width * images.input.pixel_stride;
    const bool one_run = tap_step == plan.group_in;
    tile_.row_step = s.dilation_height * images.input.row_stride;
    tile_.run_step = tap_step;
    tile_.kernel_rows = s.kernel_height;
    tile_.runs = one_run ? 1 : s.kernel_width;
    tile_.inputs = one_run ? s.kernel_width * plan.group_in : plan.group_in;
  }

  void run(int64_t panel) {
    const int64_t group = panel / plan_.group_panels, first = panel % plan_.group_panels * kPanel;
    const int64_t channel = group * plan_.group_out + first;
    const int64_t channels = std::min<int64_t>(kPanel, plan_.group_out - first);
    const int64_t fan_in = plan_.group_in * plan_.shape.kernel_height * plan_.shape.kernel_width;
    const Channels finish(plan_.epilogue, channel, channels);
    tile_.weight = plan_.weight + group * plan_.group_floats + first * fan_in;
    group_input_ = group * plan_.group_in;
    const auto& functions = kTiles[finish.vectors - 1];
    const int64_t width = plan_.shape.out_width, pixels = images_.count * rows_ * width;
    const int64_t tiles = (pixels + kMaxPixels - 1) / kMaxPixels;
    for (int64_t i = 0, begin = 0; i < tiles; ++i) {
      const int64_t end = pixels * (i + 1) / tiles;
      const float* residual[kMaxPixels];
      float* output[kMaxPixels];
      for (int64_t p = begin; p < end; ++p) locate(p, p - begin, channel, residual, output);
      functions[end - begin - 1](tile_);
      for (int64_t p = 0; p < end - begin; ++p) {
        finish.finish(tile_.sums + p * finish.vectors * kLanes, residual[p], output[p]);
      }
      begin = end;
    }
  }

 private:
  // Where pixel `pixel` of all rows and images reads and writes.
  void locate(int64_t pixel, int64_t slot, int64_t channel, const float** residual, float** output) {
    const Conv2dShape& s = plan_.shape;
    const int64_t x = pixel % s.out_width, line = pixel / s.out_width;
    const int64_t y = row_begin_ + line % rows_, image = line / rows_;
    tile_.input[slot] = images_.input.row(y * s.stride_height - s.pad_top) + image * images_.input_step +
                        (x * s.stride_width - s.pad_left) * images_.input.pixel_stride + group_input_;
    const NhwcImage& out = images_.output;
    output[slot] = out.row(y) + image * images_.output_step + x * out.pixel_stride + channel;
    const ConstNhwcImage& other = images_.residual;
    residual[slot] = other.data == nullptr
                         ? nullptr
                         : other.row(y) + image * images_.residual_step + x * other.pixel_stride + channel;
  }

  const FloatDirectPlan& plan_;
  const FloatConvImages& images_;
  const int64_t row_begin_, rows_;
  int64_t group_input_ = 0;
  Tile tile_;
};

}  // namespace

FloatDirectFormat float_direct_format() { return {kLanes, kPanel}; }

void float_direct_kernel(const FloatDirectPlan& plan, const FloatConvImages& images, int64_t row_begin,
                         int64_t row_end, int64_t panel_begin, int64_t panel_end) {
  DirectRun run(plan, images, row_begin, row_end);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) run.run(panel);
}

#include "core/isa_end.h"
