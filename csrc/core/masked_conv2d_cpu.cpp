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
constexpr int kMaxCells = PQK_ISA_LEVEL >= 2 ? static_cast<int>(kMostCells) : PQK_ISA_LEVEL == 1 ? 6 : 3;
constexpr int64_t kMaxRun = kMaxCells * kImageLanes;
constexpr int64_t kRowBlock = 16;  // channels that are stored together

inline Floats add_product(Floats sum, Floats a, Floats b) {
  const Floats product = a * b;
  return sum + product;
}

// Entries of some rows of the index, applied to Cells cells that lie together: `panel` is the first. Sums begin
// with `bias`, or 0 where that is null, or with what a block of channels before has left.
template <int Cells, bool First>
void sum_rows(const float* panel, const LaneEntry* entries, const int32_t* rows, int64_t count,
              const float* bias, float* sums) {
  constexpr int kVectors = Cells * kPieces;
  for (int64_t row = 0; row < count; ++row, sums += kMaxRun) {
    const LaneEntry* entry = entries + rows[row];
    const LaneEntry* end = entries + rows[row + 1];
    if (!First && entry == end) continue;
    Floats sum[kVectors];
    const Floats initial = First && bias != nullptr ? bias[row] - Floats{} : Floats{};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sum[v] = First ? initial : load_floats(sums + v * kLanes);
    for (; entry != end; ++entry) {
      const float* from = panel + entry->cell;
      const Floats weight = entry->weight - Floats{};
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[v] = add_product(sum[v], load_floats(from + v * kLanes), weight);
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store_floats(sums + v * kLanes, sum[v]);
  }
}

using RowsFunction = void(const float*, const LaneEntry*, const int32_t*, int64_t, const float*, float*);

template <bool First, int... Cells>
constexpr std::array<RowsFunction*, kMaxCells> list_rows(std::integer_sequence<int, Cells...>) {
  return {&sum_rows<Cells + 1, First>...};
}
constexpr std::array<RowsFunction*, kMaxCells> kFirstRows =
    list_rows<true>(std::make_integer_sequence<int, kMaxCells>());
constexpr std::array<RowsFunction*, kMaxCells> kLaterRows =
    list_rows<false>(std::make_integer_sequence<int, kMaxCells>());

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

// The channels of one phase at one run of cells; `panel` is the first cell.
void sum_phase(const LanePass& p, const LaneIndex& index, const float* bias, const float* panel,
               const Store& store, const Run& run, const int32_t* rows, float* sums) {
  const int64_t blocks = p.channel_blocks(), rows_of_block = p.phases() * p.out_channels;
  // With one block of inputs the sums of a few channels are stored while they are at hand.
  const int64_t together = blocks == 1 ? kRowBlock : p.out_channels;
  for (int64_t channel = 0; channel < p.out_channels; channel += together) {
    const int64_t channels = std::min(together, p.out_channels - channel);
    for (int64_t block = 0; block < blocks; ++block) {
      const auto& functions = block == 0 ? kFirstRows : kLaterRows;
      functions[run.count - 1](panel, index.entries.data(), rows + block * rows_of_block + channel, channels,
                               bias == nullptr ? nullptr : bias + channel, sums);
    }
    for (int64_t i = 0; i < channels; i += kRowBlock) {
      store.store(run, channel + i, std::min(kRowBlock, channels - i), sums + i * kMaxRun);
    }
  }
}

}  // namespace

void lane_sum_kernel(const LanePass& pass, const LaneIndex& index, const float* bias, const float* panel,
                     const LaneTile& tile, float* sums, const ImageBatch& output) {
  const Store store(pass, tile, output);
  const int64_t cells = pass.columns() * pass.blocks, pieces = (cells + kMaxCells - 1) / kMaxCells;
  const int64_t phases_x = static_cast<int64_t>(pass.origin_x.size());
  for (int64_t line = 0; line < tile.lines; ++line) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = cells * piece / pieces, count = cells * (piece + 1) / pieces - first;
      for (int64_t phase = 0; phase < pass.phases(); ++phase) {
        const int64_t y =
            pass.origin_y[phase / phases_x] + (pass.row_begin + tile.line + line) * pass.out_step_y;
        if (y < 0 || y >= pass.out_height) continue;
        sum_phase(pass, index, bias, panel + line * pass.line_pitch + first * kImageLanes, store,
                  {phase % phases_x, y, first, count}, index.rows.data() + phase * pass.out_channels, sums);
      }
    }
  }
}

#include "core/isa_end.h"
