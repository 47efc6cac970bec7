#include <algorithm>
#include <array>
#include <utility>

#include "core/masked_conv2d.h"
#if defined(PQK_X86_64)
#include <immintrin.h>
#endif

#include "core/isa_begin.h"

#include "core/float_vector_cpu.h"

namespace {

constexpr int kPieces = static_cast<int>(kImageLanes) / kLanes;  // vectors of 16 images
constexpr int kMaxEntries = PQK_ISA_LEVEL >= 2 ? 8 : PQK_ISA_LEVEL == 1 ? 6 : 3;

inline Floats add_product(Floats sum, Floats a, Floats b) {
  const Floats product = a * b;
  return sum + product;
}

// One tree for every instruction set.
inline float sum_lanes(const Floats* sum) {
#if PQK_ISA_LEVEL >= 2
  Floats x = sum[0];
  x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  x += __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return x[0];
#else
  float lanes[kImageLanes];
  for (int v = 0; v < kPieces; ++v) store_floats(lanes + v * kLanes, sum[v]);
  for (int64_t half = kImageLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
#endif
}

// Some entries of one output channel: where the tile begins in the panel and in the channel's gradient.
struct Lines {
  const float* panel;
  const float* gradient;
  int64_t panel_pitch, gradient_pitch;
  int64_t lines, cells;
};

template <int Entries>
void gradient_of(const Lines& at, const LaneEntry* entries, float* sums) {
  Floats sum[Entries][kPieces] = {};
  int64_t cell[Entries];
  for (int e = 0; e < Entries; ++e) cell[e] = entries[e].cell;
  const float *panel = at.panel, *gradient = at.gradient;
  for (int64_t line = 0; line < at.lines; ++line) {
    for (int64_t i = 0; i < at.cells * kImageLanes; i += kImageLanes) {
#pragma GCC unroll 4
      for (int v = 0; v < kPieces; ++v) {
        const Floats upstream = load_floats(gradient + i + v * kLanes);
#pragma GCC unroll 8
        for (int e = 0; e < Entries; ++e) {
          sum[e][v] = add_product(sum[e][v], load_floats(panel + cell[e] + i + v * kLanes), upstream);
        }
      }
    }
    panel += at.panel_pitch;
    gradient += at.gradient_pitch;
  }
#pragma GCC unroll 8
  for (int e = 0; e < Entries; ++e) sums[e] += sum_lanes(sum[e]);
}

using EntriesFunction = void(const Lines&, const LaneEntry*, float*);

template <int... Entries>
constexpr std::array<EntriesFunction*, kMaxEntries> list_entries(std::integer_sequence<int, Entries...>) {
  return {&gradient_of<Entries + 1>...};
}
constexpr std::array<EntriesFunction*, kMaxEntries> kEntries =
    list_entries(std::make_integer_sequence<int, kMaxEntries>());

}  // namespace

void lane_gradient_kernel(const LanePass& pass, const LaneIndex& index, const float* panel,
                          const LanePass& upstream, const float* gradient, const LaneTile& tile, int64_t chunk,
                          float* sums) {
  const int64_t cells = pass.columns() * pass.blocks, blocks = pass.channel_blocks();
  for (int64_t line = 0; line < tile.lines; line += chunk) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t channel = 0; channel < pass.out_channels; ++channel) {
        const int32_t* row = index.rows.data() + block * pass.out_channels + channel;
        const Lines lines{panel + line * pass.line_pitch,
                          gradient + channel * upstream.channel_pitch + line * upstream.line_pitch,
                          pass.line_pitch,
                          upstream.line_pitch,
                          std::min(chunk, tile.lines - line),
                          cells};
        const int64_t begin = row[0], count = row[1] - begin;
        const int64_t groups = (count + kMaxEntries - 1) / kMaxEntries;
        for (int64_t group = 0; group < groups; ++group) {
          const int64_t first = begin + count * group / groups, end = begin + count * (group + 1) / groups;
          kEntries[end - first - 1](lines, index.entries.data() + first, sums + first);
        }
      }
    }
  }
}

#include "core/isa_end.h"
