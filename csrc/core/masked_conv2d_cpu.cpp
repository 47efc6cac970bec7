#include <algorithm>
#include <array>
#include <utility>

#include "core/masked_conv2d.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

#include "core/float_vector_cpu.h"

#include "core/float_transpose_cpu.h"
#include "core/masked_lanes_cpu.h"

namespace {

constexpr int kPieces = static_cast<int>(kImageLanes) / kLanes;  // vectors of 16 images
constexpr int kMaxCells = PQK_ISA_LEVEL >= 2 ? 16 : PQK_ISA_LEVEL == 1 ? 6 : 3;
constexpr int64_t kMaxRun = kMaxCells * kImageLanes;
constexpr int64_t kRowBlock = 16;  // channels that are stored together

inline Floats add_product(Floats sum, Floats a, Floats b) {
  const Floats product = a * b;
  return sum + product;
}

// The sums of one channel over `Cells` cells that lie together.
template <int Cells>
void sum_cells(const float* panel, const LaneEntry* entry, const LaneEntry* end, float initial, float* sums) {
  constexpr int kVectors = Cells * kPieces;
  Floats sum[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) sum[v] = broadcast(initial);
  for (; entry != end; ++entry) {
    const float* from = panel + entry->cell;
    const Floats weight = entry->weight - Floats{};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sum[v] = add_product(sum[v], load_floats(from + v * kLanes), weight);
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) store_floats(sums + v * kLanes, sum[v]);
}

using CellsFunction = void(const float*, const LaneEntry*, const LaneEntry*, float, float*);

template <int... Cells>
constexpr std::array<CellsFunction*, kMaxCells> list_cells(std::integer_sequence<int, Cells...>) {
  return {&sum_cells<Cells + 1>...};
}
constexpr std::array<CellsFunction*, kMaxCells> kCells =
    list_cells(std::make_integer_sequence<int, kMaxCells>());

// The outputs of one phase that lie at one row, cells [first, first + count) of its line.
struct Run {
  int64_t phase_x, y, first, count;
};

class Store {
 public:
  Store(const LanePass& pass, const LaneTile& tile, const ImageBatch& output)
      : p_(pass), tile_(tile), out_(output) {}

  // `sums` holds channels [channel, channel + channels), kMaxRun floats apart.
  void store(const Run& run, int64_t channel, int64_t channels, const float* sums) const {
    float* row =
        out_.data + tile_.image * out_.image_stride + channel * out_.channel_stride + run.y * out_.row_stride;
    if (out_.column_stride == 1 && p_.out_step_x == 1 && out_.channel_stride != 1) {
      for (int64_t c = 0; c < channels; ++c) {
        store_columns(run, row + c * out_.channel_stride, sums + c * kMaxRun);
      }
      return;
    }
    for (int64_t i = 0; i < run.count; ++i) {
      const int64_t x = column(run, run.first + i), block = (run.first + i) % p_.blocks;
      const int64_t images = images_of(block);
      if (x < 0 || x >= p_.out_width || images <= 0) continue;
      float* to = row + block * kImageLanes * out_.image_stride + x * out_.column_stride;
      if (out_.channel_stride == 1) {
        scatter_lanes(sums + i * kImageLanes, kMaxRun, channels, to, out_.image_stride, images);
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t image = 0; image < images; ++image) {
            to[c * out_.channel_stride + image * out_.image_stride] =
                sums[c * kMaxRun + i * kImageLanes + image];
          }
        }
      }
    }
  }

 private:
  int64_t column(const Run& run, int64_t cell) const {
    return p_.origin_x[run.phase_x] + (p_.column_begin + cell / p_.blocks) * p_.out_step_x;
  }
  int64_t images_of(int64_t block) const {
    return std::min<int64_t>(kImageLanes, tile_.images - block * kImageLanes);
  }

  // Neighbouring columns of one channel; with a step of 1 all of them exist.
  void store_columns(const Run& run, float* row, const float* sums) const {
    for (int64_t i = 0; i < std::min(p_.blocks, run.count); ++i) {
      const int64_t cell = run.first + i, block = cell % p_.blocks, images = images_of(block);
      if (images <= 0) continue;
      const int64_t columns = (run.count - i + p_.blocks - 1) / p_.blocks;
      scatter_lanes(sums + i * kImageLanes, p_.blocks * kImageLanes, columns,
                    row + block * kImageLanes * out_.image_stride + column(run, cell), out_.image_stride,
                    images);
    }
  }

  const LanePass& p_;
  const LaneTile& tile_;
  const ImageBatch& out_;
};

}  // namespace

void lane_sum_kernel(const LanePass& pass, const LaneIndex& index, const float* bias, const float* panel,
                     const LaneTile& tile, const ImageBatch& output) {
  const Store store(pass, tile, output);
  const int64_t cells = pass.columns() * pass.blocks, pieces = (cells + kMaxCells - 1) / kMaxCells;
  const int64_t phases_x = static_cast<int64_t>(pass.origin_x.size());
  alignas(64) float sums[kRowBlock * kMaxRun];
  for (int64_t line = 0; line < tile.lines; ++line) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = cells * piece / pieces, count = cells * (piece + 1) / pieces - first;
      const float* from = panel + line * pass.line_pitch + first * kImageLanes;
      for (int64_t phase = 0; phase < pass.phases(); ++phase) {
        const int64_t y =
            pass.origin_y[phase / phases_x] + (pass.row_begin + tile.line + line) * pass.out_step_y;
        if (y < 0 || y >= pass.out_height) continue;
        for (int64_t channel = 0; channel < pass.out_channels; channel += kRowBlock) {
          const int64_t channels = std::min(kRowBlock, pass.out_channels - channel);
          const int32_t* rows = index.rows.data() + phase * pass.out_channels + channel;
          for (int64_t c = 0; c < channels; ++c) {
            kCells[count - 1](from, index.entries.data() + rows[c], index.entries.data() + rows[c + 1],
                              bias == nullptr ? 0.0f : bias[channel + c], sums + c * kMaxRun);
          }
          store.store({phase % phases_x, y, first, count}, channel, channels, sums);
        }
      }
    }
  }
}

#include "core/isa_end.h"
